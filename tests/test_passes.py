"""Passes: consistent cuts without a pause, in short steps: rules 3 to 5."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType

import pytest
import trio
from helpers import make_keeper, one, running, totals

from trio_statskeeper import Endpoint, EventMetrics, _keeper_run, _sending
from trio_statskeeper._receiving import receive_batch
from trio_statskeeper.testing import receive_exports

# Rules 3 and 4: a pass is a consistent cut, and without a pause


async def test_a_pass_exports_the_totals_as_they_were_at_its_tick(autojump_clock):
    keys = [f"target {i}" for i in range(100)]
    keeper = make_keeper(keys)
    async with running(keeper, exports_buffer=0) as run:
        run.send(*map(one, keys))
        await trio.sleep(1.005)
        exports = []
        for _ in keys:  # each of which gets a result while the pass is under way
            run.send(*map(one, keys))
            await trio.sleep(0.005)
            exports.append(await run.exports.receive())
        assert totals(exports) == dict.fromkeys(keys, 1)
        assert {export.timestamp for export in exports} == {1}
        assert totals(keeper.snapshot()) == dict.fromkeys(keys, 101)


async def test_the_last_export_of_a_pass_says_so_even_if_further_targets_have_no_totals(
    autojump_clock,
):
    keeper = make_keeper(["a", "b", "c", "d"])
    async with running(keeper) as run:
        run.send(one("a"), one("b"), one("c"))
        exports = await receive_exports(run.exports, 6)
        shown = [(export.labels["dst"], export.ends_pass) for export in exports]
        assert shown == 2 * [("a", False), ("b", False), ("c", True)]
        assert [export.ends_pass for export in keeper.snapshot()] == [False, False, True]
        assert keeper.snapshot(["d"]) == ()


async def test_folding_goes_on_while_an_export_waits_for_a_slow_consumer(autojump_clock):
    keeper = make_keeper(["a", "b"])
    async with running(keeper, buffer=0, exports_buffer=0) as run:
        await run.results.send(one("a"))
        await trio.sleep(1.5)
        for _ in range(10):
            await run.results.send(one("b"))  # would hang if nobody read
        await trio.sleep(0.1)
        assert keeper.statistics().results_accepted == 11


async def test_a_target_that_first_reports_after_the_tick_waits_for_the_next_pass(
    autojump_clock,
):
    async with running(make_keeper(["a", "b"]), exports_buffer=0) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        run.send(one("b"))
        exports = await receive_exports(run.exports, 3)
    assert [(export.timestamp, *totals([export])) for export in exports] == [
        (1, "a"),
        (2, "a"),
        (2, "b"),
    ]


async def test_the_rest_of_a_cancelled_pass_is_not_part_of_the_next_cut(
    autojump_clock,
):
    keeper = make_keeper(["a", "b"])
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(1.5)
        run.send(one("b"))  # saves b's row, which is never taken
        await trio.sleep(0.1)
    async with running(keeper) as run:
        await trio.sleep(1.5)
        assert totals(run.received()) == {"a": 1, "b": 2}


async def test_a_target_that_expires_during_a_pass_and_returns_is_not_in_it(autojump_clock):
    listed = [Endpoint("a"), Endpoint("b")]
    keeper = make_keeper(targets=lambda: listed, expire_after=1)
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"), one("b"))
        assert totals(await receive_exports(run.exports, 2)) == {"a": 1, "b": 1}
        listed.reverse()
        b = listed.pop(0)
        await trio.sleep(1)  # at 2, b is gone: its time is up at once
        assert totals(await receive_exports(run.exports, 1)) == {"a": 1}
        listed.append(b)
        run.send(one("b"))
        await trio.sleep(0.25)
        assert totals(await receive_exports(run.exports, 2)) == {"a": 1, "b": 1}


async def test_the_cut_is_at_the_tick_not_after_the_change_of_the_list(autojump_clock):
    others = [Endpoint(f"other {i}") for i in range(2_000)]
    readings = itertools.count()

    def targets() -> list[Endpoint]:
        if trio.current_time() == 1:
            run.send(one("a"), one("b"))  # are folded in while the list is gone through
        return [*others, Endpoint("a"), Endpoint("b")]

    keeper = make_keeper(targets, clock=lambda: next(readings))
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
        _, b = keeper.snapshot(["a", "b"])
        assert totals(keeper.snapshot(["a", "b"])) == {"a": 2, "b": 1}
    assert totals([export]) == {"a": 1}
    assert export.timestamp < b.start_timestamp


async def test_late_results_during_a_pass_are_in_the_next_pass(
    autojump_clock,
):
    a, b, c = (Endpoint(name) for name in "abc")
    lists = iter([[a, b, c], [a, b, c], [a]])
    keeper = make_keeper(lambda: next(lists, [a]))
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"), one("b"), one("c"))
        await receive_exports(run.exports, 3)
        run.send(one("b"))
        await trio.sleep(1.5)
        run.send(one("b"), one("c"))  # as the pass with b waits
        exports = await receive_exports(run.exports, 6)
    assert [(export.timestamp, totals([export])) for export in exports] == [
        (2, {"a": 1}),
        (2, {"b": 2}),
        (3, {"a": 1}),
        (3, {"b": 3}),
        (3, {"c": 2}),
        (4, {"a": 1}),
    ]


@pytest.mark.parametrize("before", [0, 1])
async def test_late_results_during_the_change_of_the_list_are_in_the_next_pass(
    autojump_clock, before
):
    listed = [Endpoint(f"target {i}") for i in range(2_000)]

    def targets() -> list[Endpoint]:
        if trio.current_time() != 1:
            return listed
        run.send(one("target 0"))  # is folded in while the old list is gone through
        return listed[1:]

    keeper = make_keeper(targets, expire_after=0.75)
    async with running(keeper) as run:
        run.send(*[one("target 0")] * before)
        await trio.sleep(1.5)
        del listed[0]
        assert totals(run.received()) == ({"target 0": 1} if before else {})
        await trio.sleep(2)
        assert totals(run.received()) == {"target 0": before + 1}


# Rule 5: it never hogs the loop


def let_time_pass(monkeypatch, module: ModuleType, each_time: float) -> None:
    """Let time pass whenever `module` reads the time."""
    ticking = itertools.count(step=each_time)
    monkeypatch.setattr(module, "perf_counter", lambda: next(ticking))


async def spectate(count: Callable[[], int], seen: list[int]) -> None:
    """Note the count at each turn of the loop."""
    while True:
        seen.append(count())
        await trio.lowlevel.checkpoint()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # there is no event to wait for
        await trio.lowlevel.checkpoint()


async def test_a_backlog_is_folded_in_steps_of_limited_time(autojump_clock, monkeypatch):
    let_time_pass(monkeypatch, _keeper_run, _keeper_run._FOLDING_TIME / 10)
    keeper = make_keeper()
    seen: list[int] = []
    async with running(keeper) as run:
        run.nursery.start_soon(spectate, lambda: keeper.statistics().results_accepted, seen)
        await until(lambda: len(seen) > 0)
        run.send(*map(one, "a" * 1_000))
        await until(lambda: keeper.statistics().results_accepted == 1_000)
        seen.append(1_000)
    # There may be two steps between two notes, and rounding may turn 10 into 11.
    assert 9 <= max(after - before for before, after in itertools.pairwise(seen)) <= 22


@pytest.mark.parametrize(
    ("exports_buffer", "per_turn"), [(0, 20), (50, 20), (math.inf, 10)]
)
async def test_exports_are_made_in_steps_of_limited_time(
    autojump_clock, monkeypatch, exports_buffer, per_turn
):
    let_time_pass(monkeypatch, _sending, _sending._TIME_PER_STEP / 10)
    keys = [f"target {i}" for i in range(500)]
    labelled: list[Endpoint] = []
    label = lambda endpoint: str(labelled.append(endpoint))  # noqa: E731
    keeper = make_keeper(keys, additional_labels={"x": label})
    seen: list[int] = []
    async with running(keeper, exports_buffer=exports_buffer) as run:
        run.send(*map(one, keys))
        run.nursery.start_soon(drain, run.exports, [])
        await trio.sleep(0.5)
        run.nursery.start_soon(spectate, labelled.__len__, seen)
        autojump_clock.jump(0.5)
        await until(lambda: keeper.statistics().passes > 0)
    assert len(labelled) == 500
    # As above.
    most = max(after - before for before, after in itertools.pairwise(seen))
    assert per_turn - 1 <= most <= 2 * per_turn + 2


class Turns(trio.abc.Instrument):
    """Counts the turns of the scheduler."""

    count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def drain(
    exports: trio.MemoryReceiveChannel[EventMetrics], received: list[EventMetrics]
) -> None:
    with suppress(trio.EndOfChannel):
        while True:
            received += await receive_batch(exports, 1_000)


@pytest.mark.parametrize("exports_buffer", [0, 10, 1_000])
async def test_a_pass_sends_some_hundred_targets_per_turn_of_the_loop(
    autojump_clock, monkeypatch, exports_buffer
):
    for module in _keeper_run, _sending:
        let_time_pass(monkeypatch, module, 0)  # however slow the machine is
    keys = [f"target {i}" for i in range(2_000)]
    received: list[EventMetrics] = []
    turns = Turns()
    async with running(make_keeper(keys), exports_buffer=exports_buffer) as run:
        run.send(*map(one, keys))
        run.nursery.start_soon(drain, run.exports, received)
        await trio.sleep(0.5)
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(1)
        trio.lowlevel.remove_instrument(turns)
    assert list(totals(received)) == keys
    assert turns.count <= 3 * len(keys) / 100 + 10


@pytest.mark.parametrize(
    ("keys", "listed", "steps"),
    [
        pytest.param([], 5_000, 10 + 25, id="listing, and skipping"),
        pytest.param(["a"], 5_000, 10 + 10 + 25, id="one of many was never listed"),
        pytest.param([f"x{i}" for i in range(5_000)], 0, 50, id="expiring"),
    ],
)
async def test_a_tick_goes_through_many_targets_in_small_steps(
    autojump_clock, monkeypatch, keys, listed, steps
):
    let_time_pass(monkeypatch, _sending, _sending._TIME_PER_STEP / 200)
    lists = iter([[], [Endpoint(f"target {i}") for i in range(listed)]])
    keeper = make_keeper(lambda: next(lists), expire_after=0.75)
    seen: list[int] = []
    async with running(keeper) as run:
        run.send(*map(one, keys))
        await trio.sleep(0.5)
        run.nursery.start_soon(spectate, lambda: keeper.statistics().results_accepted, seen)
        autojump_clock.jump(0.5)
        await until(lambda: keeper.statistics().passes > 0)
    assert steps <= len(seen) <= 2 * steps


async def test_delisted_targets_are_gone_through_in_small_steps(autojump_clock):
    lists = iter([[Endpoint(f"target {i}") for i in range(5_000)], []])
    keeper = make_keeper(lambda: next(lists))
    seen: list[int] = []
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.nursery.start_soon(spectate, lambda: keeper.statistics().results_accepted, seen)
        autojump_clock.jump(0.5)
        await until(lambda: keeper.statistics().passes > 0)
    assert 10 <= len(seen) <= 20
