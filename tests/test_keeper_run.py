"""How a run ends: rules 10 to 12, and what the user's functions raise (rule 7)."""

from __future__ import annotations

import gc
import math
import signal
import weakref
from collections.abc import Callable
from contextlib import suppress

import attrs
import pytest
import trio
from helpers import Result, all_from, make_keeper, one, running, totals
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import Endpoint, EventMetrics, Gauge, ProbeResult, StatsKeeper
from trio_statskeeper._nursery import open_flat_nursery

# Rule 10: the end of input is a clean end


async def test_a_last_pass_is_made_when_all_senders_have_closed(autojump_clock):
    keeper = make_keeper()
    async with running(keeper) as run:
        await trio.sleep(1.5)
        run.send(one("a"), one("a"))
        run.results.close()
        exports = [export async for export in run.exports]
        assert trio.current_time() == 1.5
    assert [(export.timestamp, export.metrics["total"]) for export in exports] == [(1.5, 2)]
    assert keeper.statistics().passes == 2


async def test_a_pass_in_progress_is_finished_before_the_last(autojump_clock):
    async with running(make_keeper(["a", "b"]), exports_buffer=0) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(1.5)  # the pass waits with a
        run.send(one("b"))
        run.results.close()
        await trio.sleep(0.1)
        exports = [export async for export in run.exports]
    assert [(e.timestamp, e.labels["dst"], e.metrics["total"]) for e in exports] == [
        (1, "a", 1),
        (1, "b", 1),
        (1.6, "a", 1),
        (1.6, "b", 2),
    ]


@pytest.mark.parametrize("flush_timeout", [0, 0.5])
async def test_the_last_pass_includes_targets_listed_at_the_last_tick_or_since(
    autojump_clock, flush_timeout
):
    listed = [Endpoint(name) for name in "abce"]
    keeper = make_keeper(lambda: listed, flush_timeout=flush_timeout)
    outcome, results, exports = outcome_of(keeper, exports_buffer=math.inf)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run)
            for target in "abcde":
                results.send_nowait(one(target))
            await trio.sleep(0.5)
            listed.pop()
            await trio.sleep(1)
            assert list(totals(all_from(exports))) == ["a", "b", "c", "e"]
            listed[1:] = [Endpoint("d")]
            results.send_nowait(one("c"))
            results.send_nowait(one("e"))
            if flush_timeout:
                scope.cancel()
            else:
                results.close()
    expected = [("a", 1), ("d", 1), ("b", 1), ("c", 2), ("e", 2)]
    assert list(totals(all_from(exports)).items()) == expected


@pytest.mark.parametrize("flush_timeout", [0, 0.5])
@pytest.mark.parametrize("bad", [OSError("no luck"), ["b"]])
async def test_if_targets_raises_at_the_end_the_last_pass_has_the_targets_before(
    autojump_clock, flush_timeout, bad
):
    def targets() -> list:
        if trio.current_time() == 0:
            return [Endpoint("a"), Endpoint("b")]
        if trio.current_time() == 1:
            return [Endpoint("a")]
        if isinstance(bad, OSError):
            raise bad
        return bad

    keeper = make_keeper(targets, flush_timeout=flush_timeout)
    outcome, results, exports = outcome_of(keeper, exports_buffer=10)
    results.send_nowait(one("a"))
    results.send_nowait(one("b"))
    scope = trio.CancelScope()
    with pytest.RaisesGroup(OSError if isinstance(bad, OSError) else TypeError), scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run)
            await trio.sleep(1.5)
            assert totals(all_from(exports)) == {"a": 1, "b": 1}
            results.send_nowait(one("b"))
            if flush_timeout:
                scope.cancel()
            else:
                results.close()
    assert totals(all_from(exports)) == {"a": 1, "b": 2}


async def test_targets_delisted_in_a_flush_that_timed_out_are_exported_later(
    autojump_clock,
):
    listed = [Endpoint(f"target {i}") for i in range(2_000)]

    def targets() -> list[Endpoint]:
        if trio.current_time() == 0.5:
            listed.clear()
            autojump_clock.jump(1)  # the flush is over before the list is gone through
        return listed[:]

    keeper = make_keeper(targets, flush_timeout=0.25)
    outcome, results, _ = outcome_of(keeper)
    for target in listed:
        results.send_nowait(one(target.key))
    with trio.move_on_after(0.5):
        await outcome.run()
    async with running(keeper) as run:
        await trio.sleep(1.5)
        assert len(run.received()) == 2_000
        await trio.sleep(10)
    assert keeper.statistics().targets_expired == 2_000


async def test_the_end_waits_for_the_last_clone_of_the_sender(autojump_clock):
    async with running(make_keeper()) as run:
        clone = run.results.clone()
        run.results.close()
        await trio.sleep(0.5)
        clone.send_nowait(one("a"))
        clone.close()
        assert [totals([export]) async for export in run.exports] == [{"a": 1}]


# Rule 11: cancellation


async def test_targets_new_in_the_drained_buffer_start_at_the_cancellation(autojump_clock):
    keeper = make_keeper()
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.nursery.cancel_scope.cancel()
        run.send(None, Result("a", {"load": Gauge(5)}))
    (export,) = keeper.snapshot()
    assert export.metrics == {"load": Gauge(5)}
    assert export.start_timestamp == 0.5
    assert keeper.statistics().results_rejected == {"error": 1}


@attrs.frozen
class Exiting:
    target = "a"

    def metrics(self):
        raise SystemExit


async def test_a_system_exit_in_the_drained_buffer_is_raised_after_draining(
    autojump_clock,
):
    keeper = make_keeper()
    with pytest.RaisesGroup(SystemExit):
        async with running(keeper) as run:
            await trio.sleep(0.5)
            run.nursery.cancel_scope.cancel()
            run.send(one("a"), Exiting(), one("a"))
    assert totals(keeper.snapshot()) == {"a": 2}


@attrs.define
class Outcome:
    """How `run` ended, and how many results were sent to it."""

    keeper: StatsKeeper
    results: trio.MemoryReceiveChannel[ProbeResult]
    exports: trio.MemorySendChannel[EventMetrics]
    raised: BaseException | None = None
    sent: int = 0

    async def run(self) -> None:
        try:
            await self.keeper.run(self.results, self.exports)
        except BaseException as error:
            self.raised = error
            raise

    async def produce(self, results: trio.MemorySendChannel[ProbeResult]) -> None:
        """Send results endlessly, and count those whose `send` returned."""
        with results:
            try:
                while True:
                    await results.send(one("a"))
                    self.sent += 1
            except trio.BrokenResourceError:
                pass

    def both_channels_are_closed(self) -> bool:
        return (
            self.results.statistics().open_receive_channels == 0
            and self.exports.statistics().open_send_channels == 0
        )


def outcome_of(
    keeper: StatsKeeper, buffer: float = math.inf, exports_buffer: float = 0
) -> tuple[
    Outcome, trio.MemorySendChannel[ProbeResult], trio.MemoryReceiveChannel[EventMetrics]
]:
    results_send, results_receive = trio.open_memory_channel[ProbeResult](buffer)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](exports_buffer)
    return Outcome(keeper, results_receive, exports_send), results_send, exports_receive


@pytest.mark.parametrize("flush_timeout", [0, 0.25])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 100])
async def test_every_result_whose_send_returned_is_in_the_totals_after_cancellation(
    autojump_clock, flush_timeout, steps
):
    keeper = make_keeper(flush_timeout=flush_timeout)
    outcome, results, _exports = outcome_of(keeper, buffer=3)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(outcome.produce, results.clone())
        results.close()
        async with trio.open_nursery() as keepers:
            keepers.start_soon(outcome.run)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            keepers.cancel_scope.cancel()
    assert type(outcome.raised) is trio.Cancelled
    assert keeper.statistics().results_accepted == outcome.sent
    assert outcome.both_channels_are_closed()


async def test_a_cancelled_keeper_makes_a_last_export_in_the_flush_timeout(
    autojump_clock,
):
    keeper = make_keeper(flush_timeout=0.5)
    outcome, results, exports = outcome_of(keeper, buffer=10)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run)
            await trio.sleep(1.25)  # the pass of second 1 waits for a consumer
            results.send_nowait(one("a"))
            results.send_nowait(one("a"))

            async def consume() -> None:
                with trio.CancelScope(shield=True):
                    received.extend([export async for export in exports])

            received: list[EventMetrics] = []
            nursery.start_soon(consume)
            await trio.sleep(0.5)
            results.send_nowait(one("a"))
            scope.cancel()
    assert [(e.timestamp, e.metrics["total"]) for e in received] == [(1.75, 3)]
    assert type(outcome.raised) is trio.Cancelled


async def test_the_last_export_times_out_if_it_is_not_received(autojump_clock):
    keeper = make_keeper(flush_timeout=0.5)
    outcome, results, exports = outcome_of(keeper)
    results.send_nowait(one("a"))
    with exports, trio.move_on_after(1.25):
        await outcome.run()
    assert trio.current_time() == 1.75
    assert type(outcome.raised) is trio.Cancelled
    assert outcome.both_channels_are_closed()


async def test_without_a_flush_timeout_cancellation_exports_nothing(autojump_clock):
    keeper = make_keeper()
    outcome, results, exports = outcome_of(keeper, exports_buffer=10)
    results.send_nowait(one("a"))
    with trio.move_on_after(0.5):
        await outcome.run()
    assert trio.current_time() == 0.5
    with pytest.raises(trio.EndOfChannel):
        exports.receive_nowait()


async def test_a_last_export_to_a_closed_consumer_ends_quietly(autojump_clock):
    outcome, results, exports = outcome_of(make_keeper(flush_timeout=0.5))
    results.send_nowait(one("a"))
    with trio.move_on_after(0.5):
        exports.close()
        await outcome.run()
    assert type(outcome.raised) is trio.Cancelled
    assert trio.current_time() == 0.5


async def test_a_last_export_to_a_channel_closed_elsewhere_ends_quietly(
    autojump_clock,
):
    outcome, results, exports = outcome_of(make_keeper(flush_timeout=0.5))
    results.send_nowait(one("a"))
    with exports, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run)
            await trio.sleep(0.5)
            outcome.exports.close()
            scope.cancel()
    assert type(outcome.raised) is trio.Cancelled


async def test_a_new_list_is_in_effect_after_a_cancellation(
    autojump_clock,
):
    listed = [Endpoint(f"other {i}") for i in range(5_000)] + [Endpoint("a")]
    keeper = make_keeper(lambda: listed, max_unlisted=0, flush_timeout=0.5)
    outcome, results, exports = outcome_of(keeper, exports_buffer=1)
    results.send_nowait(one("a"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await outcome.run()
    assert keeper.statistics().results_rejected == {}
    assert totals([exports.receive_nowait()]) == {"a": 1}


async def test_a_result_that_waits_for_the_list_is_not_lost_by_cancellation(autojump_clock):
    listed = []
    keeper = make_keeper(lambda: listed, max_unlisted=0)
    outcome, results, exports = outcome_of(keeper)
    with exports, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run)
            await trio.sleep(0.5)
            listed = [Endpoint(f"other {i}") for i in range(5_000)] + [Endpoint("a")]
            autojump_clock.jump(0.5)
            listed_targets = keeper._passes.totals.listed
            while not listed_targets.is_changing:  # noqa: ASYNC110  # there is no event
                await trio.lowlevel.checkpoint()
            results.send_nowait(one("a"))
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            assert results.statistics().current_buffer_used == 0
            assert keeper.statistics().results_accepted == 0
            scope.cancel()
    assert keeper.statistics().results_accepted == 1


async def test_a_second_run_after_cancellation_continues_counting(autojump_clock):
    keeper = make_keeper()
    for run in (1, 2, 3):
        outcome, results, exports = outcome_of(keeper)
        results.send_nowait(one("a"))
        with trio.move_on_after(1.25):
            await outcome.run()
        assert keeper.statistics().results_accepted == run
        exports.close()


# Rule 12: both channels are closed, and the exception is bare


async def leave_by_end_of_input(outcome, results, exports) -> None:
    results.close()
    await outcome.run()


async def leave_by_cancellation_before_the_first_checkpoint(outcome, _, exports) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await outcome.run()


async def leave_by_cancellation_between_ticks(outcome, results, exports) -> None:
    with trio.move_on_after(0.5):
        await outcome.run()


async def leave_by_cancellation_inside_a_send(outcome, results, exports) -> None:
    results.send_nowait(one("a"))
    with trio.move_on_after(1.5):
        await outcome.run()


async def leave_as_the_consumer_is_gone(outcome, results, exports) -> None:
    exports.close()
    await outcome.run()


async def leave_as_the_consumer_goes_while_an_export_waits(
    outcome, results, exports
) -> None:
    results.send_nowait(one("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run)
        await trio.sleep(1.5)
        exports.close()


async def leave_as_results_are_closed_elsewhere(outcome, results, exports) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run)
        await trio.sleep(0.5)
        outcome.results.close()


@pytest.mark.parametrize("flush_timeout", [0, 0.25])
@pytest.mark.parametrize(
    ("leave", "raised"),
    [
        (leave_by_end_of_input, None),
        (leave_by_cancellation_before_the_first_checkpoint, trio.Cancelled),
        (leave_by_cancellation_between_ticks, trio.Cancelled),
        (leave_by_cancellation_inside_a_send, trio.Cancelled),
        (leave_as_the_consumer_is_gone, trio.BrokenResourceError),
        (leave_as_the_consumer_goes_while_an_export_waits, trio.BrokenResourceError),
        (leave_as_results_are_closed_elsewhere, trio.ClosedResourceError),
    ],
)
async def test_both_channels_are_closed_and_the_exception_is_bare(
    autojump_clock, leave: Callable, raised: type | None, flush_timeout: float
):
    outcome, results, exports = outcome_of(make_keeper(flush_timeout=flush_timeout))
    try:
        await leave(outcome, results, exports)
    except BaseExceptionGroup:
        pass  # of a nursery in this test: `outcome.raised` is what left `run`
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        assert error is outcome.raised  # noqa: PT017
    assert type(outcome.raised) is (raised or type(None))
    assert outcome.both_channels_are_closed()


class Raising:
    """A function that raises when it is called for the `nth` time."""

    def __init__(self, nth: int, returned: object) -> None:
        self.calls_left = nth
        self.returned = returned

    def __call__(self, *_: object) -> object:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise OSError("no luck")
        return self.returned


@pytest.mark.parametrize(
    ("option", "returned", "nth", "at"),
    [
        ("targets", [Endpoint("a")], 1, 0),
        ("targets", [Endpoint("a")], 2, 1),
        ("clock", 5, 1, 0),
        ("clock", 5, 2, 0),  # for the start of the target's totals
        ("clock", 5, 3, 1),
        ("label", "x", 1, 1),
        ("label", "x", 2, 2),
    ],
)
async def test_exceptions_of_targets_labels_and_clock_are_raised_bare(
    autojump_clock, option, returned, nth, at
):
    raising = Raising(nth, returned)
    options = (
        {"additional_labels": {"x": raising}} if option == "label" else {option: raising}
    )
    outcome, results, exports = outcome_of(make_keeper(**options), exports_buffer=10)
    results.send_nowait(one("a"))
    with exports, pytest.raises(OSError, match="no luck"):
        await outcome.run()
    assert trio.current_time() == at
    assert outcome.both_channels_are_closed()


async def test_exports_before_the_one_whose_label_raises_are_sent(autojump_clock):
    labels = {"x": Raising(3, "x")}
    keeper = make_keeper(["a", "b", "c"], additional_labels=labels)
    outcome, results, exports = outcome_of(keeper, exports_buffer=10)
    for target in "abc":
        results.send_nowait(one(target))
    with pytest.raises(OSError, match="no luck"):
        await outcome.run()
    sent = [(export.labels["dst"], export.ends_pass) for export in all_from(exports)]
    assert sent == [("a", False), ("b", False)]


async def test_the_error_says_that_all_receivers_are_closed(autojump_clock):
    outcome, _results, exports = outcome_of(make_keeper())
    exports.close()
    message = r"^all receivers of the exports are closed$"
    with pytest.raises(trio.BrokenResourceError, match=message):
        await outcome.run()
    assert trio.current_time() == 1


async def test_an_exception_does_not_lose_the_results_in_the_buffer(autojump_clock):
    targets = Raising(2, [Endpoint("a")])

    def targets_and_results() -> object:
        results.send_nowait(one("a"))
        results.send_nowait(one("a"))
        return targets()

    keeper = make_keeper(targets_and_results)
    outcome, results, exports = outcome_of(keeper)
    with exports, pytest.raises(OSError, match="no luck"):
        await outcome.run()
    assert keeper.statistics().results_accepted == 4


@pytest.mark.parametrize(
    ("raises", "start"),
    [([True, True], 0), ([True, False], 5), ([False, True, True], 5)],  # 0: it is unknown
)
async def test_a_clock_that_raises_loses_no_result(autojump_clock, raises, start):
    def clock() -> float:
        if raises and raises.pop(0):
            raise OSError("no luck")
        return 5.0

    keeper = make_keeper(clock=clock)
    outcome, results, exports = outcome_of(keeper)
    for _ in range(3):
        results.send_nowait(one("a"))
    with exports, pytest.raises(OSError, match="no luck"):
        await outcome.run()
    assert keeper.statistics().results_accepted == 3
    async with running(keeper):
        (export,) = keeper.snapshot(["a"])
    assert (export.start_timestamp, export.timestamp) == (start, 5)


async def test_a_bad_list_of_targets_loses_no_result(autojump_clock):
    endpoints = [Endpoint(f"target {i}") for i in range(2_000)]
    outcome, results, exports = outcome_of(make_keeper(lambda: [*endpoints, "a"]))
    results.send_nowait(one("a"))
    with trio.CancelScope() as scope, exports, pytest.raises(TypeError):
        scope.cancel()  # so that the bad one is found after the end has begun
        await outcome.run()
    assert outcome.keeper.statistics().results_accepted == 1


async def test_if_both_tasks_fail_at_once_one_is_raised_and_the_other_logged(
    autojump_clock, caplog
):
    clock = Raising(2, 0.0)

    def targets() -> list[Endpoint]:
        if trio.current_time() > 0:
            results.send_nowait(one("a"))  # then the clock raises in the other task
            raise LookupError("no targets")
        return []

    outcome, results, exports = outcome_of(make_keeper(targets, clock=clock))
    with exports, pytest.raises((LookupError, OSError)) as caught:
        await outcome.run()
    (record,) = caplog.records
    assert " was raised, too: " in record.getMessage()
    assert {type(caught.value), type(record.exc_info[1])} == {LookupError, OSError}
    assert caught.value.__cause__ is None


async def test_a_raised_exception_is_in_no_reference_cycle(autojump_clock):
    class NoTargets(Exception):
        """An exception with weak references."""

    def targets() -> list[Endpoint]:
        if trio.current_time() > 0:
            raise NoTargets
        return []

    outcome, _results, exports = outcome_of(make_keeper(targets))
    gc.disable()
    try:
        with exports:
            try:
                await outcome.keeper.run(outcome.results, outcome.exports)
            except NoTargets as error:
                raised = weakref.ref(error)
        assert raised() is None
    finally:
        gc.enable()


async def raise_as_it_is_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise LookupError


async def sleep_in_a_nursery() -> None:
    async with trio.open_nursery():
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("tasks", "raised"),
    [
        ([trio.sleep_forever], trio.Cancelled),
        ([sleep_in_a_nursery], trio.Cancelled),
        ([raise_as_it_is_cancelled, sleep_in_a_nursery], LookupError),
        ([sleep_in_a_nursery, raise_as_it_is_cancelled], LookupError),
    ],
)
async def test_a_nursery_that_is_cancelled_raises_a_bare_exception(tasks, raised):
    with trio.CancelScope() as scope, suppress(LookupError):
        try:
            async with open_flat_nursery() as nursery:
                for task in tasks:
                    nursery.start_soon(task)
                await wait_all_tasks_blocked()
                scope.cancel()
        except BaseException as error:
            caught = type(error)
            raise
    assert caught is raised


async def test_an_exception_group_from_a_function_is_not_changed(autojump_clock):
    def targets() -> list[Endpoint]:
        if trio.current_time() > 0:
            raise ExceptionGroup("of the user's own", [OSError()])
        return []

    outcome, _results, exports = outcome_of(make_keeper(targets))
    with exports, pytest.RaisesGroup(OSError, match="of the user's own"):
        await outcome.run()


@pytest.mark.parametrize("timestamp", [math.nan, math.inf, -math.inf])
async def test_the_clock_returns_finite_seconds(autojump_clock, timestamp):
    outcome, results, exports = outcome_of(make_keeper(clock=lambda: timestamp))
    results.send_nowait(one("a"))
    with exports, pytest.raises(ValueError, match=f"clock must .* got {timestamp}"):
        await outcome.run()


async def test_targets_are_endpoints(autojump_clock):
    outcome, results, exports = outcome_of(make_keeper(lambda: ["a"]))
    results.send_nowait(one("a"))
    with exports, pytest.raises(TypeError, match="must be Endpoints, got 'a'"):
        await outcome.run()
    assert outcome.keeper.statistics().results_accepted == 1


async def test_the_function_of_a_label_returns_a_string(autojump_clock):
    keeper = make_keeper(additional_labels={"port": lambda _: 80})
    outcome, results, exports = outcome_of(keeper)
    results.send_nowait(one("a"))
    message = "label 'port' must return a string, got 80 for 'a'"
    with exports, pytest.raises(TypeError, match=message):
        await outcome.run()


class Interrupting:
    """A result during whose folding the user presses Ctrl-C."""

    target = "a"

    def metrics(self):
        signal.raise_signal(signal.SIGINT)
        return {"total": 1}


@pytest.mark.parametrize("main_task", [True, False])
def test_keyboard_interrupt_is_raised_bare_and_loses_no_result(main_task):
    keeper = make_keeper()

    async def main() -> None:
        nonlocal outcome
        outcome, results, _ = outcome_of(keeper)
        results.send_nowait(one("a"))
        results.send_nowait(Interrupting())
        results.send_nowait(one("a"))
        if main_task:
            await outcome.run()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run)
            await trio.sleep_forever()

    outcome: Outcome
    clock = trio.testing.MockClock(autojump_threshold=0)
    if main_task:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main, clock=clock)
        assert type(outcome.raised) is KeyboardInterrupt
    else:
        with pytest.RaisesGroup(KeyboardInterrupt):
            trio.run(main, clock=clock)
        assert type(outcome.raised) is trio.Cancelled
    assert keeper.statistics().results_accepted == 3
    assert outcome.both_channels_are_closed()


def test_keyboard_interrupt_does_not_strike_while_the_buffer_is_drained():
    keeper = make_keeper()

    async def main() -> None:
        outcome, results, _ = outcome_of(keeper)
        for result in (one("a"), Interrupting(), one("a")):
            results.send_nowait(result)
        with trio.CancelScope() as scope:
            scope.cancel()
            await outcome.run()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert keeper.statistics().results_accepted == 3


async def test_a_keyboard_interrupt_in_targets_is_raised_bare(autojump_clock):
    def targets() -> list[Endpoint]:
        if trio.current_time() > 0:
            raise KeyboardInterrupt
        return []

    outcome, _results, exports = outcome_of(make_keeper(targets))
    with exports, pytest.raises(KeyboardInterrupt):
        await outcome.run()
    assert outcome.both_channels_are_closed()


async def test_both_channels_can_be_shared_by_cloning_them(autojump_clock):
    outcome, results, exports = outcome_of(make_keeper(), exports_buffer=10)
    receiver = outcome.results.clone()
    sender = outcome.exports.clone()
    with trio.move_on_after(0.5):
        await outcome.run()
    results.send_nowait(one("a"))
    assert receiver.receive_nowait() == one("a")
    sender.send_nowait("still open")
    assert exports.receive_nowait() == "still open"
