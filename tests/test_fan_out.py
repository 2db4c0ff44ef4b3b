"""fan_out: one exports channel to many outputs."""

from __future__ import annotations

import itertools
import math
import sys
from functools import partial

import pytest
import trio
from helpers import all_from, channel_of, make_keeper, one, running
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import EventMetrics, _fan_out, _pacing, fan_out
from trio_statskeeper._nursery import open_flat_nursery
from trio_statskeeper._receiving import receive_batch


def export(target: str, total: int, interval: float = 10) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, interval)


class Outputs:
    """`fan_out` in the background, to outputs that receive only when told."""

    def __init__(self, nursery: trio.Nursery, count: int) -> None:
        self.exports, receive = trio.open_memory_channel[EventMetrics](0)
        self.receivers: list[trio.MemoryReceiveChannel[EventMetrics]] = []
        self.received: list[list[tuple[str, int]]] = [[] for _ in range(count)]
        self.returning = [trio.Event() for _ in range(count)]
        self.nursery = nursery
        nursery.start_soon(fan_out, receive, *[self.output] * count)

    async def output(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        number = len(self.receivers)
        self.receivers.append(exports)
        await self.returning[number].wait()

    async def send(self, *exports: EventMetrics) -> None:
        for each in exports:
            await self.exports.send(each)
            await wait_all_tasks_blocked()

    async def listen(self, *numbers: int) -> None:
        """Have these outputs take all that comes, from now on."""
        for number in numbers:
            self.nursery.start_soon(self._listen, number)
        await wait_all_tasks_blocked()

    async def _listen(self, number: int) -> None:
        async for each in self.receivers[number]:
            self.received[number].append((each.labels["dst"], each.metrics["total"]))
        self.returning[number].set()


@pytest.fixture
async def two(nursery):
    outputs = Outputs(nursery, 2)
    await wait_all_tasks_blocked()
    return outputs


async def test_it_has_started_when_all_outputs_have(autojump_clock, nursery):
    async def starts_late(exports, *, task_status):  # noqa: ASYNC114
        await trio.sleep(2)
        task_status.started("a value of no interest")
        await trio.sleep_forever()

    async def returns_without_a_word(exports, task_status):  # noqa: ASYNC114, ASYNC128
        await trio.sleep(1)

    async def tells_nothing(exports):
        await trio.sleep(3)

    tells_nothing.__signature__ = "unknown, as that of a compiled function"

    send, exports = trio.open_memory_channel[EventMetrics](0)
    with send:
        await nursery.start(
            fan_out, exports, starts_late, returns_without_a_word, tells_nothing
        )
    assert trio.current_time() == 2


async def test_an_output_that_is_cancelled_after_the_exports_have_ended_is_named(
    autojump_clock, caplog
):
    async def stuck(exports):
        await trio.sleep_forever()

    with trio.move_on_after(1):
        await fan_out(channel_of(export("a", 1)), stuck)
    (message,) = caplog.messages
    assert "stuck: was cancelled before it returned; 1 exports" in message


async def test_an_output_that_cannot_start_keeps_fan_out_from_starting(nursery):
    async def cannot_start(exports, *, task_status):  # noqa: ASYNC114, ASYNC128
        await trio.lowlevel.checkpoint()
        raise OSError("no such file")

    send, exports = trio.open_memory_channel[EventMetrics](0)
    with send, pytest.raises(OSError, match="no such file"):
        await nursery.start(fan_out, exports, cannot_start)


async def test_every_output_receives_every_export_in_order(two):
    await two.listen(0, 1)
    await two.send(export("a", 1), export("b", 1), export("a", 2))
    assert two.received == [[("a", 1), ("b", 1), ("a", 2)]] * 2


async def test_exports_stay_in_the_order_of_their_pass_when_a_target_joins(nursery):
    async def output(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        received.extend([each.labels["dst"] async for each in exports])

    received: list[str] = []
    send, exports = trio.open_memory_channel[EventMetrics](math.inf)
    nursery.start_soon(fan_out, exports, output)
    with send:
        for targets in "ac", "abc", "abc":
            for target in targets:
                send.send_nowait(export(target, 1))
            await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    assert "".join(received) == "acabcabc"


async def test_a_stuck_output_delays_neither_the_sender_nor_the_others(two):
    await two.listen(1)
    for total in range(100):
        await two.send(export("a", total), export("b", total))
    assert len(two.received[1]) == 200


async def test_an_output_that_lagged_receives_only_the_newest_of_each_target(two):
    await two.listen(1)
    for total in range(5):
        await two.send(export("a", total), export("b", total))
    await two.listen(0)
    assert two.received[0] == [("a", 4), ("b", 4)]


async def test_targets_that_differ_in_one_label_are_different_series(two):
    near = EventMetrics(1, 0, {"dst": "a", "zone": "near"}, {"total": 1})
    far = EventMetrics(1, 0, {"dst": "a", "zone": "far"}, {"total": 2})
    await two.send(near, far)
    await two.listen(0)
    assert two.received[0] == [("a", 1), ("a", 2)]


async def test_each_target_has_its_turn_when_passes_arrive_faster_than_they_are_received(
    two,
):
    receiver = two.receivers[0]
    seen = set()
    for total in range(4):
        await two.send(*(export(target, total) for target in "abcd"))
        seen.add((await receiver.receive()).labels["dst"])
    assert seen == set("abcd")


async def test_a_stale_target_is_dropped_for_a_stuck_output(two, autojump_clock):
    await two.send(export("first", 1), export("gone", 1))
    await trio.sleep(30.5)
    await two.send(export("here", 2), export("here", 3))
    await two.listen(0)
    assert two.received[0] == [("here", 3)]


async def test_a_target_that_is_exported_again_is_never_dropped(two, autojump_clock):
    for total in range(10):
        await two.send(export("a", total), export("b", total))
        await trio.sleep(20)
    await two.listen(0)
    assert two.received[0] == [("a", 9), ("b", 9)]


async def test_what_a_stuck_output_holds_is_bounded_while_targets_come_and_go(
    two, autojump_clock
):
    for number in range(1000):
        await two.send(export(f"target {number}", 1))
        await trio.sleep(10)
    await two.listen(0)
    assert len(two.received[0]) <= 4


async def test_a_target_with_a_long_interval_keeps_no_stale_ones(two, autojump_clock):
    await two.send(export("seldom", 1, interval=sys.float_info.max))
    for number in range(1000):
        await two.send(export(f"target {number}", 1, interval=1))
        await trio.sleep(1)
    await two.listen(0)
    assert len(two.received[0]) <= 5


async def test_many_targets_that_become_stale_at_once_are_all_dropped(two, autojump_clock):
    for number in range(2000):
        await two.exports.send(export(f"gone {number}", 1))
    await trio.sleep(30.5)
    await two.send(export("here", 2))
    await two.listen(0)
    assert two.received[0] == [("here", 2)]


async def test_an_output_with_only_stale_targets_waits_for_more(two, autojump_clock):
    await two.send(export("here", 1))
    await two.send(*(export(f"stale {number}", 1) for number in range(10)))
    await trio.sleep(30.5)
    await two.send(export("here", 2))
    await two.listen(0)
    await two.send(export("here", 3))
    assert two.received[0] == [("here", 2), ("here", 3)]


@pytest.mark.parametrize("count", [100, 1000], ids=["in the channel", "behind it, too"])
async def test_exports_that_become_stale_in_the_channel_are_taken_back(
    two, autojump_clock, count
):
    for number in range(count):
        await two.exports.send(export(f"stale {number}", 1))
    await trio.sleep(30.5)
    for number in range(500):
        await two.exports.send(export(f"here {number}", 2))
    await two.listen(0)
    assert two.received[0] == [(f"here {number}", 2) for number in range(500)]


async def test_without_further_exports_none_is_dropped(two, autojump_clock):
    await two.send(export("a", 1))
    await trio.sleep(1000)
    await two.listen(0)
    assert two.received[0] == [("a", 1)]


@pytest.fixture
def told(caplog):
    """Return what was logged, without the module's name."""
    return lambda: [message.removeprefix(f"{__name__}.") for message in caplog.messages]


async def test_an_output_that_closes_its_channel_receives_no_more_and_the_others_continue(
    two, told
):
    await two.listen(1)
    await two.send(export("a", 1))
    two.receivers[0].close()
    await two.send(export("a", 2), export("a", 3))
    two.returning[0].set()
    assert two.received[1] == [("a", 1), ("a", 2), ("a", 3)]
    assert told() == [
        "Outputs.output: closed its channel before it had all exports; 1 are dropped"
    ]


async def test_a_stuck_output_is_logged_and_so_is_its_recovery(
    two, told, caplog, autojump_clock
):
    caplog.set_level("INFO")
    await two.listen(1)
    for total in range(5):
        await two.send(export("a", total))
        await trio.sleep(9)
    assert told() == [
        "Outputs.output: receives no exports; keeping the newest of each target"
    ]
    await two.listen(0)
    await two.send(export("a", 5))
    assert told()[1:] == ["Outputs.output: recovered"]


async def test_an_output_that_returns_receives_no_more_and_the_others_continue(two, told):
    await two.listen(1)
    await two.send(export("a", 1))
    two.returning[0].set()
    await two.send(export("a", 2))
    assert two.received[1] == [("a", 1), ("a", 2)]
    assert told() == ["Outputs.output: returned before it had all exports; 1 are dropped"]


@pytest.mark.parametrize("room", [2, 200], ids=["some do not fit", "all fit"])
async def test_an_output_that_returns_with_a_clone_of_its_channel_open_delays_nothing(
    two, monkeypatch, room
):
    monkeypatch.setattr(_fan_out, "_BUFFER_SIZE", room)
    async with trio.open_nursery() as nursery:
        outputs = Outputs(nursery, 1)
        await wait_all_tasks_blocked()
        clone = outputs.receivers[0].clone()
        await outputs.send(*(export(target, 1) for target in "abcd"))
        outputs.returning[0].set()
    with pytest.raises(trio.BrokenResourceError):
        outputs.exports.send_nowait(export("a", 2))
    assert len(all_from(clone)) <= room + 1


async def test_an_output_is_named_in_the_log_whatever_it_is(told):
    class Callable:
        async def __call__(self, exports):
            pass

        def __repr__(self):
            return "<one more>"

    async def local(exports, path):
        pass

    exports, receive = trio.open_memory_channel[EventMetrics](0)
    await fan_out(receive, Callable(), partial(local, path="a"))
    name = "test_an_output_is_named_in_the_log_whatever_it_is.<locals>.local"
    assert {message.partition(":")[0] for message in told()} == {"<one more>", name}
    assert exports.statistics().open_receive_channels == 0


async def test_when_no_output_is_left_the_exports_are_closed_at_once(two):
    two.returning[0].set()
    await wait_all_tasks_blocked()
    two.receivers[1].close()
    await two.send(export("a", 1))
    with pytest.raises(trio.BrokenResourceError):
        await two.exports.send(export("a", 2))
    assert len(two.nursery.child_tasks) == 1  # the other output has not returned
    two.returning[1].set()
    await wait_all_tasks_blocked()
    assert not two.nursery.child_tasks


async def test_a_keeper_ends_when_all_outputs_have_returned(autojump_clock):
    async def fail_soon(exports):
        with exports:
            await trio.sleep(2.5)

    with pytest.RaisesGroup(trio.BrokenResourceError):
        async with running(make_keeper(), exports_buffer=0) as run:
            run.nursery.start_soon(fan_out, run.exports, fail_soon)
            run.send(one("a"))
            await trio.sleep(3.5)


async def test_what_an_output_raises_is_raised_bare_and_ends_the_others(two):
    async def fail(exports):
        await exports.receive()
        raise OSError("disk full")

    async def shielded(exports):
        with trio.CancelScope(shield=True):
            received.extend([each async for each in exports])

    received = []
    exports, receive = trio.open_memory_channel[EventMetrics](1)
    exports.send_nowait(export("a", 1))
    with pytest.raises(OSError, match="disk full") as caught:
        await fan_out(receive, fail, shielded)
    assert caught.value.__context__ is None
    assert received == [export("a", 1)]
    assert exports.statistics().open_receive_channels == 0


async def test_the_end_of_exports_ends_each_output_after_its_last_export(two, caplog):
    await two.send(export("a", 1), export("b", 1))
    two.exports.close()
    await two.listen(1)
    assert two.received[1] == [("a", 1), ("b", 1)]
    assert two.returning[1].is_set()
    await two.listen(0)
    assert two.received[0] == [("a", 1), ("b", 1)]
    assert not two.nursery.child_tasks
    assert caplog.messages == []


async def test_after_the_end_an_output_that_gives_up_does_not_end_the_others(
    two, monkeypatch, told
):
    monkeypatch.setattr(_fan_out, "_BUFFER_SIZE", 1)
    async with trio.open_nursery() as nursery:
        outputs = Outputs(nursery, 2)
        await wait_all_tasks_blocked()
        await outputs.send(*(export(target, 1) for target in "abcd"))
        outputs.exports.close()
        await wait_all_tasks_blocked()
        outputs.returning[0].set()
        await outputs.listen(1)
    assert outputs.received[1] == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]
    assert told() == ["Outputs.output: returned before it had all exports; 4 are dropped"]


async def test_when_cancelled_it_ends_all_channels_and_raises_a_bare_cancelled(caplog):
    async def at_the_end(exports):
        with trio.CancelScope(shield=True):
            received.extend([each async for each in exports])

    async def fan() -> None:
        try:
            await fan_out(receive, at_the_end, stuck)
        except BaseException as error:
            raised.append(error)
            raise

    async def stuck(exports):
        await trio.sleep_forever()

    raised, received = [], []
    exports, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan)
        await exports.send(export("a", 1))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in raised] == [trio.Cancelled]
    assert received == [export("a", 1)]
    assert exports.statistics().open_receive_channels == 0
    assert caplog.messages == []


async def test_an_export_that_arrives_with_an_exception_does_not_hide_it(caplog):
    async def fail(exports):
        await failing.wait()
        raise OSError("disk full")

    async def stuck(exports):
        await trio.sleep_forever()

    for _ in range(20):  # tasks run in any order
        failing = trio.Event()
        exports, receive = trio.open_memory_channel[EventMetrics](0)
        with pytest.raises(OSError, match="disk full"):
            async with open_flat_nursery() as nursery:
                nursery.start_soon(fan_out, receive, fail, stuck)
                await wait_all_tasks_blocked()
                failing.set()
                exports.send_nowait(export("a", 1))
                await wait_all_tasks_blocked()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ((), ValueError, "at least one output, got none"),
        (
            ("lines",),
            TypeError,
            "such as `write_lines` or an exporter's `run`, got 'lines'",
        ),
    ],
)
async def test_without_outputs_it_refuses_and_closes_nothing(outputs, error, message):
    exports, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.raises(error, match=message):
        await fan_out(receive, *outputs)
    assert exports.statistics().open_receive_channels == 1


class Turns(trio.abc.Instrument):
    """How often the scheduler has run all tasks that can run."""

    count = 0

    def before_io_wait(self, timeout):
        self.count += 1


@pytest.mark.parametrize("buffer", [0, math.inf])
async def test_a_pass_takes_few_scheduler_turns_however_many_targets(monkeypatch, buffer):
    async def drain(exports):
        with pytest.raises(trio.EndOfChannel):
            while True:
                received.extend(await receive_batch(exports, 1000))

    monkeypatch.setattr(_pacing, "perf_counter", lambda: 0)
    received = []
    exports, receive = trio.open_memory_channel[EventMetrics](buffer)
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan_out, receive, drain, drain, drain)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(turns)
        async with trio.open_nursery() as senders:
            for number in range(1000):
                senders.start_soon(exports.send, export(str(number), 1))
        exports.close()
    trio.lowlevel.remove_instrument(turns)
    assert len(received) == 3000
    assert turns.count < 60


async def test_receiving_goes_on_in_small_steps_while_many_exports_wait(monkeypatch):
    async def take_one(exports):
        await exports.receive()
        waiting.append(receive.statistics().current_buffer_used)

    monkeypatch.setattr(_pacing, "perf_counter", itertools.count().__next__)
    waiting = []
    receive = channel_of(*(export(str(number), 1) for number in range(100)))
    await fan_out(receive, take_one)
    assert waiting[0] > 90
