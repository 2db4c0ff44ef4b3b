"""fan_out: one exports channel to many outputs."""

from __future__ import annotations

import math

import pytest
import trio
from helpers import make_keeper, one, running
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_statskeeper import EventMetrics, fan_out


def export(target: str, total: int, interval: float = 10) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, interval)


class Outputs:
    """`fan_out` in the background, with the channels' other ends."""

    def __init__(self, nursery: trio.Nursery, count: int) -> None:
        self.exports, receive = trio.open_memory_channel[EventMetrics](0)
        pairs = [trio.open_memory_channel[EventMetrics](0) for _ in range(count)]
        self.receivers = [receiver for _, receiver in pairs]
        self.received: list[list[tuple[str, int]]] = [[] for _ in pairs]
        self.nursery = nursery
        nursery.start_soon(fan_out, receive, *(send for send, _ in pairs))

    async def send(self, *exports: EventMetrics) -> None:
        for each in exports:
            await self.exports.send(each)
            await wait_all_tasks_blocked()

    def listen(self, *numbers: int) -> None:
        for number in numbers:
            self.nursery.start_soon(self._listen, number)

    async def _listen(self, number: int) -> None:
        async for each in self.receivers[number]:
            self.received[number].append((each.labels["dst"], each.metrics["total"]))


@pytest.fixture
async def two(nursery):
    return Outputs(nursery, 2)


async def test_every_output_gets_every_export_in_order(two):
    two.listen(0, 1)
    await two.send(export("a", 1), export("b", 1), export("a", 2))
    assert two.received == [[("a", 1), ("b", 1), ("a", 2)]] * 2


async def test_a_stuck_output_delays_neither_the_sender_nor_the_others(two):
    two.listen(1)
    for total in range(100):
        await two.send(export("a", total), export("b", total))
    assert len(two.received[1]) == 200


async def test_an_output_that_comes_back_gets_the_newest_of_each_target_alone(two):
    two.listen(1)
    for total in range(5):
        await two.send(export("a", total), export("b", total))
    two.listen(0)
    await wait_all_tasks_blocked()
    assert two.received[0] == [("a", 4), ("b", 4)]


async def test_targets_that_differ_in_one_label_are_not_taken_for_each_other(two):
    near = EventMetrics(1, 0, {"dst": "a", "zone": "near"}, {"total": 1})
    far = EventMetrics(1, 0, {"dst": "a", "zone": "far"}, {"total": 2})
    await two.send(near, far)
    two.listen(0)
    await wait_all_tasks_blocked()
    assert two.received[0] == [("a", 1), ("a", 2)]


async def test_each_target_gets_its_turn_when_passes_come_faster_than_they_are_taken(two):
    receiver = two.receivers[0]
    seen = set()
    for total in range(4):
        await two.send(*(export(target, total) for target in "abcd"))
        seen.add((await receiver.receive()).labels["dst"])
    assert seen == set("abcd")


async def test_a_target_gone_for_three_intervals_is_dropped_for_a_stuck_output(
    two, autojump_clock
):
    await two.send(export("first", 1), export("gone", 1))
    await trio.sleep(30.5)
    await two.send(export("here", 2), export("here", 3))
    two.listen(0)
    await wait_all_tasks_blocked()
    assert two.received[0] == [("here", 3)]


async def test_a_target_that_goes_on_coming_is_never_dropped(two, autojump_clock):
    for total in range(10):
        await two.send(export("a", total), export("b", total))
        await trio.sleep(20)
    two.listen(0)
    await wait_all_tasks_blocked()
    assert two.received[0] == [("a", 9), ("b", 9)]


async def test_what_a_stuck_output_holds_is_bounded_while_targets_come_and_go(
    two, autojump_clock
):
    for number in range(1000):
        await two.send(export(f"target {number}", 1))
        await trio.sleep(10)
    two.listen(0)
    await wait_all_tasks_blocked()
    assert len(two.received[0]) <= 4


async def test_a_target_that_seldom_comes_keeps_no_other_that_is_gone(two, autojump_clock):
    await two.send(export("seldom", 1, interval=math.inf))
    for number in range(1000):
        await two.send(export(f"target {number}", 1, interval=1))
        await trio.sleep(1)
    two.listen(0)
    await wait_all_tasks_blocked()
    assert len(two.received[0]) <= 5


async def test_of_many_targets_that_are_gone_at_once_none_is_delivered(two, autojump_clock):
    for number in range(2000):
        await two.exports.send(export(f"gone {number}", 1))
    await trio.sleep(30.5)
    await two.send(export("here", 2))
    two.listen(0)
    await wait_all_tasks_blocked()
    assert two.received[0] == [("here", 2)]


async def test_an_offer_stands_while_other_targets_come(two):
    await two.send(export("a", 1), export("b", 1))
    tasks = two.receivers[0].statistics().tasks_waiting_send
    steps = 0

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task):
            nonlocal steps
            steps += "_deliver" in task.name

    instrument = Steps()
    trio.lowlevel.add_instrument(instrument)
    await two.send(export("c", 1), export("b", 2))
    trio.lowlevel.remove_instrument(instrument)
    assert tasks == 1
    assert steps == 0


async def test_when_no_more_targets_come_none_is_dropped(two, autojump_clock):
    await two.send(export("a", 1))
    await trio.sleep(1000)
    two.listen(0)
    await wait_all_tasks_blocked()
    assert two.received[0] == [("a", 1)]


async def test_an_interval_of_no_length_drops_no_export_that_just_came(two):
    await two.send(export("a", 1, interval=0), export("b", 1, interval=-1))
    two.listen(0)
    await wait_all_tasks_blocked()
    assert ("b", 1) in two.received[0]


async def test_an_output_that_closes_its_channel_leaves_and_the_others_go_on(two, caplog):
    two.listen(1)
    two.receivers[0].close()
    await two.send(export("a", 1), export("a", 2))
    assert two.received[1] == [("a", 1), ("a", 2)]
    assert caplog.messages == ["an output has left; 1 still get exports"]


async def test_when_all_outputs_have_left_the_exports_are_closed(two):
    for receiver in two.receivers:
        receiver.close()
    await two.send(export("a", 1))
    with pytest.raises(trio.BrokenResourceError):
        await two.exports.send(export("a", 2))


async def test_a_keeper_learns_that_all_outputs_have_left(autojump_clock):
    with pytest.RaisesGroup(trio.BrokenResourceError):
        async with running(make_keeper(), exports_buffer=0) as run:
            send, receive = trio.open_memory_channel[EventMetrics](0)
            receive.close()
            run.nursery.start_soon(fan_out, run.exports, send)
            run.send(one("a"))
            await trio.sleep(2.5)


async def test_the_end_of_exports_closes_the_outputs_after_what_they_still_had_to_get(two):
    await two.send(export("a", 1), export("b", 1))
    two.exports.close()
    two.listen(1)
    await wait_all_tasks_blocked()
    assert two.received[1] == [("a", 1), ("b", 1)]
    assert two.receivers[1].statistics().open_send_channels == 0
    assert two.receivers[0].statistics().open_send_channels == 1
    two.listen(0)
    await wait_all_tasks_blocked()
    assert two.received[0] == [("a", 1), ("b", 1)]
    assert two.receivers[0].statistics().open_send_channels == 0


async def test_after_the_end_one_output_that_leaves_does_not_take_the_others_along(two):
    await two.send(export("a", 1))
    two.exports.close()
    await wait_all_tasks_blocked()
    two.receivers[0].close()
    await wait_all_tasks_blocked()
    two.listen(1)
    await wait_all_tasks_blocked()
    assert two.received[1] == [("a", 1)]


@pytest.mark.parametrize("waiting", [True, False])
async def test_cancelled_it_closes_all_channels_and_raises_a_bare_cancelled(waiting):
    exports, receive = trio.open_memory_channel[EventMetrics](0)
    sends, receivers = zip(
        *(trio.open_memory_channel[EventMetrics](0) for _ in range(2)), strict=True
    )
    raised = None

    async def fan() -> None:
        nonlocal raised
        try:
            await fan_out(receive, *sends)
        except BaseException as error:
            raised = error
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan)
        if waiting:
            await exports.send(export("a", 1))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert type(raised) is trio.Cancelled
    assert exports.statistics().open_receive_channels == 0
    assert [r.statistics().open_send_channels for r in receivers] == [0, 0]


async def test_without_outputs_it_refuses_and_closes_nothing():
    exports, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.raises(ValueError, match="at least one output, got none"):
        await fan_out(receive)
    assert exports.statistics().open_receive_channels == 1


pauses = st.lists(st.floats(0, 50), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5)), max_size=30),
    st.lists(pauses, min_size=1, max_size=3),
)
def test_however_slow_each_output_gets_every_targets_last_export_and_none_backwards(
    sent, slow
):
    received: list[list[tuple[str, int]]] = [[] for _ in slow]

    async def consume(channel: trio.MemoryReceiveChannel[EventMetrics], number: int):
        count = 0
        async for each in channel:
            received[number].append((each.labels["dst"], each.metrics["total"]))
            await trio.sleep(slow[number][count % len(slow[number])])
            count += 1

    async def main() -> None:
        exports, receive = trio.open_memory_channel[EventMetrics](0)
        sends = []
        async with trio.open_nursery() as nursery:
            for number in range(len(slow)):
                output, consumed = trio.open_memory_channel[EventMetrics](0)
                sends.append(output)
                nursery.start_soon(consume, consumed, number)
            nursery.start_soon(fan_out, receive, *sends)
            with exports:
                for total, (target, pause) in enumerate(sent):
                    await exports.send(export(target, total, interval=math.inf))
                    await trio.sleep(pause)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    last = {target: total for total, (target, _) in enumerate(sent)}
    for of_output in received:
        assert dict(of_output) == last
        for target in last:
            totals = [total for name, total in of_output if name == target]
            assert totals == sorted(set(totals))
