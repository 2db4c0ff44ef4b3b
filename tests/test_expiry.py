"""Memory is bounded: rule 9."""

from __future__ import annotations

import math

import pytest
import trio
from helpers import Result, make_keeper, one, running, totals
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import Endpoint, Gauge, Map
from trio_statskeeper.testing import receive_exports

INF = math.inf


async def test_an_expired_target_starts_from_zero_when_it_returns(autojump_clock):
    a, b = Endpoint("a"), Endpoint("b")
    listed = [a, b]
    keeper = make_keeper(targets=lambda: listed, expire_after=3)
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(1.5)
        listed.remove(a)
        await trio.sleep(2)
        assert keeper.statistics().targets_tracked == 2
        await trio.sleep(1)  # not listed at 2, 3, 4
        assert keeper.statistics().targets_tracked == 1
        assert keeper.statistics().targets_expired == 1
        listed.append(a)
        run.received()
        await trio.sleep(1)
        assert totals(run.received()) == {"b": 1}
        run.send(one("a"))
        await trio.sleep(1)
        b_export, a_export = run.received()
    assert a_export.metrics == {"total": 1}
    assert (b_export.start_timestamp, a_export.start_timestamp) == (0, 5.5)


@pytest.mark.parametrize("expire_after", [0.5, None])
async def test_late_results_of_a_delisted_target_are_exported_until_it_expires(
    autojump_clock, expire_after
):
    listed = [Endpoint(name) for name in "abcd"]
    keeper = make_keeper(lambda: listed, expire_after=expire_after)
    async with running(keeper) as run:
        run.send(*map(one, "abcd"))
        await trio.sleep(1.5)
        run.received()
        run.send(*map(one, "cab"))
        del listed[1:]  # b and c have counted something since, d has not
        await trio.sleep(1)
        assert list(totals(run.received()).items()) == [("a", 2), ("b", 2), ("c", 2)]
        run.send(*map(one, "ac"), one("never listed"))
        await trio.sleep(1)
        late = {} if expire_after else {"c": 3}
        assert totals(run.received()) == {"a": 3} | late
        await trio.sleep(1)
        assert totals(run.received()) == {"a": 3}


async def test_a_target_with_late_results_that_returns_is_exported_as_a_listed_one(
    autojump_clock,
):
    a, b = Endpoint("a"), Endpoint("b")
    lists = iter([[a, b], [a, b], [b], [a, b], [b]])
    keeper = make_keeper(lambda: next(lists))
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(2.5)
        run.send(one("a"))
        run.received()
        await trio.sleep(1)
        assert [totals([export]) for export in run.received()] == [{"a": 2}, {"b": 1}]
        await trio.sleep(1)
        assert totals(run.received()) == {"b": 1}


async def test_a_target_delisted_between_runs_is_exported_once_more(
    autojump_clock,
):
    listed = [Endpoint("a"), Endpoint("b")]
    keeper = make_keeper(lambda: listed, expire_after=0.1)
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(0.5)
    del listed[1]
    for _ in range(2):  # the first ends before it has exported anything
        async with running(keeper):
            await trio.sleep(0.75)
    async with running(keeper) as run:
        await trio.sleep(2.5)
        assert [totals([export]) for export in run.received()] == [
            {"a": 1},
            {"b": 1},
            {"a": 1},
        ]
    assert keeper.statistics().targets_expired == 1


async def test_time_without_a_new_list_does_not_count_towards_expiry(
    autojump_clock,
):
    endpoints = [Endpoint("a"), Endpoint("b")]
    lists = iter([endpoints, endpoints, endpoints[:1], endpoints, endpoints[:1]])
    keeper = make_keeper(lambda: next(lists, []), expire_after=5)
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"), one("b"))
        for _ in range(3):  # the list lacks b, has it, and lacks it again
            await receive_exports(run.exports, 2)
            run.send(one("a"), one("b"), one("x"))
            await trio.sleep(100.25)  # as the next pass waits
        assert keeper.statistics().targets_expired == 0
        assert totals(await receive_exports(run.exports, 2)) == {"a": 4, "b": 4}


async def test_a_target_that_returns_in_time_keeps_its_totals(autojump_clock):
    a = Endpoint("a")
    listed = [a]
    keeper = make_keeper(targets=lambda: listed, expire_after=3.5)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        listed.clear()
        await trio.sleep(2)
        listed.append(a)
        run.send(one("a"))
        run.received()
        await trio.sleep(1.5)
        (export,) = run.received()
        assert (export.metrics["total"], export.start_timestamp) == (2, 0)
        await trio.sleep(10)
        assert totals(keeper.snapshot()) == {"a": 2}
    assert keeper.statistics().targets_expired == 0


@pytest.mark.parametrize("expire_after", [3.5, 4])
async def test_a_target_that_returns_at_the_tick_of_its_expiry_starts_from_zero(
    autojump_clock, expire_after
):
    a = Endpoint("a")
    listed = [a]
    keeper = make_keeper(lambda: listed, expire_after=expire_after, export_interval=2)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(3)
        listed.clear()
        await trio.sleep(2)  # not listed at 4
        listed.append(a)
        run.received()
        await trio.sleep(2)
        assert run.received() == []
    assert keeper.statistics().targets_expired == 1


@pytest.mark.parametrize("step", [0, -50])
async def test_a_reset_target_has_a_later_start_even_if_the_clock_stands_still(
    autojump_clock, step
):
    listed = [Endpoint("a")]
    time = 100.0
    keeper = make_keeper(lambda: listed, expire_after=1.5, clock=lambda: time)
    async with running(keeper) as run:
        run.send(one("a"), one("a"))
        await trio.sleep(0.5)
        time += step
        await trio.sleep(1)
        listed.clear()
        await trio.sleep(2)
        listed.append(Endpoint("a"))
        run.send(one("a"))
        await trio.sleep(1)
        before, after = run.received()
    assert (before.metrics["total"], after.metrics["total"]) == (2, 1)
    assert before.start_timestamp < after.start_timestamp <= after.timestamp


async def test_by_default_targets_expire_after_ten_intervals(autojump_clock):
    listed = [Endpoint("a")]
    keeper = make_keeper(targets=lambda: listed, export_interval=2)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(3)
        listed.clear()
        await trio.sleep(18)
        assert keeper.statistics().targets_tracked == 1
        await trio.sleep(2)
        assert keeper.statistics().targets_tracked == 0


async def test_targets_never_expire_with_an_infinite_expire_after(autojump_clock):
    listed = [Endpoint("a")]
    keeper = make_keeper(targets=lambda: listed, expire_after=INF)
    async with running(keeper) as run:
        run.send(one("a"), one("never listed"))
        await trio.sleep(1.5)
        listed.clear()
        await trio.sleep(1_000)
    assert keeper.statistics().targets_tracked == 2


async def test_a_target_that_was_never_listed_expires_too(autojump_clock):
    keeper = make_keeper(expire_after=3)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(one("x"))
        await trio.sleep(1)
        run.send(one("x"))
        await trio.sleep(2)
        assert keeper.statistics().targets_tracked == 1
        await trio.sleep(1)
    assert keeper.statistics().targets_tracked == 0


async def test_results_of_a_target_count_once_it_is_listed(
    autojump_clock,
):
    listed = []
    keeper = make_keeper(targets=lambda: listed, expire_after=0.1)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(one("a"))
        listed.append(Endpoint("a"))
        await trio.sleep(1)
        assert totals(run.received()) == {"a": 1}


async def test_never_listed_targets_are_limited(autojump_clock):
    keeper = make_keeper(["a", "b"], max_unlisted=2)
    async with running(keeper) as run:
        run.send(one("x"), one("y"), one("z"), one("x"), one("a"), one("b"))
        await trio.sleep(0.5)
    statistics = keeper.statistics()
    assert statistics.results_rejected == {"unlisted": 1}
    assert (statistics.results_accepted, statistics.targets_tracked) == (5, 4)


async def test_delisted_targets_do_not_count_as_never_listed(autojump_clock):
    listed = [Endpoint("a"), Endpoint("b")]
    keeper = make_keeper(targets=lambda: listed, max_unlisted=1)
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(0.5)
        listed.clear()
        await trio.sleep(1)
        run.send(one("a"), one("b"), one("x"), one("y"))
        await trio.sleep(0.1)
    assert keeper.statistics().results_rejected == {"unlisted": 1}
    assert keeper.statistics().results_accepted == 5


async def test_listing_a_target_makes_room_for_another_never_listed_one(
    autojump_clock,
):
    listed = []
    keeper = make_keeper(targets=lambda: listed, max_unlisted=1)
    async with running(keeper) as run:
        run.send(one("x"))
        listed.append(Endpoint("x"))
        await trio.sleep(1.5)
        run.send(one("y"))
        await trio.sleep(0.1)
    assert keeper.statistics().results_rejected == {}


async def test_a_target_whose_first_result_comes_while_it_is_delisted_expires_once(
    autojump_clock,
):
    lists = iter([[Endpoint(f"target {i}") for i in range(2_000)]])

    def targets() -> list[Endpoint]:
        if trio.current_time() == 1:
            run.send(one("target 0"))  # is folded in while the old list is gone through
        return next(lists, [])

    keeper = make_keeper(targets, expire_after=2.5)
    async with running(keeper) as run:
        await trio.sleep(2.5)
        assert keeper.statistics().targets_tracked == 1
        await trio.sleep(3)
    statistics = keeper.statistics()
    assert (statistics.targets_expired, statistics.targets_tracked) == (1, 0)


async def test_results_after_the_tick_at_which_a_target_returns_are_kept(
    autojump_clock,
):
    others = [Endpoint(f"other {i}") for i in range(2_000)]
    lists = iter([[Endpoint("a")], [Endpoint("a")], [], [], [*others, Endpoint("a")]])

    def targets() -> list[Endpoint]:
        if trio.current_time() == 4:
            run.send(one("a"))  # is folded in while the list is gone through
        return next(lists)

    keeper = make_keeper(targets, expire_after=3)
    async with running(keeper) as run:
        run.send(one("a"), one("a"))
        await trio.sleep(4.5)
        (export,) = keeper.snapshot(["a"])
    assert (export.metrics["total"], export.start_timestamp) == (1, 4)
    assert keeper.statistics().targets_expired == 1


async def test_a_bad_list_changes_nothing(autojump_clock):
    unlisted = [Endpoint(f"target {i}") for i in range(1_000)]
    listed = []
    keeper = make_keeper(lambda: listed, expire_after=2)
    with pytest.RaisesGroup(TypeError):
        async with running(keeper) as run:
            run.send(*[one(endpoint.key) for endpoint in unlisted])
            listed = [*unlisted, "no endpoint"]
            await trio.sleep(1.5)
    listed = []
    async with running(keeper):
        await trio.sleep(1.5)
    assert keeper.statistics().targets_tracked == 0


async def test_after_a_bad_list_the_last_good_one_is_kept(autojump_clock):
    listed = [Endpoint("a")]
    keeper = make_keeper(lambda: listed)
    with pytest.RaisesGroup(TypeError):
        async with running(keeper) as run:
            run.send(one("a"))
            await trio.sleep(0.5)
            listed = [Endpoint("b"), "no endpoint"]
            await trio.sleep(1)
    assert totals(keeper.snapshot()) == {"a": 1}


@pytest.mark.parametrize("listed_at_tick", [True, False])
async def test_a_result_of_an_unknown_target_waits_for_the_new_list(
    autojump_clock, listed_at_tick
):
    calls = 0

    class Counted(Result):
        def metrics(self):
            nonlocal calls
            calls += 1
            return self.values

    others = [Endpoint(f"other {i}") for i in range(5_000)]
    lists = iter([[], [*others, *([Endpoint("late")] if listed_at_tick else [])]])

    def targets() -> list[Endpoint]:
        listed = next(lists)
        if listed:
            run.send(Counted("late", {"total": 1}))  # the list is now gone through in steps
        return listed

    keeper = make_keeper(targets=targets, max_unlisted=0)
    async with running(keeper) as run:
        await trio.sleep(1.5)
    statistics = keeper.statistics()
    assert statistics.results_accepted == listed_at_tick
    assert statistics.results_rejected == ({} if listed_at_tick else {"unlisted": 1})
    assert calls == 1


async def test_a_map_has_no_more_keys_than_allowed(autojump_clock):
    keeper = make_keeper(max_map_keys=3)
    async with running(keeper) as run:
        run.send(
            Result("a", {"code": Map("code", {"1": 1, "2": 1})}),
            Result("a", {"code": Map("code", {"3": 1, "4": 1})}),
            Result("a", {"code": Map("code", {"1": 1, "3": 1})}),
            Result("a", {"code": Map("code", {str(n): 1 for n in range(100_000)})}),
            Result("a", {"new": Map("code", {str(n): 1 for n in range(4)})}),
        )
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.metrics == {"code": Map("code", {"1": 2, "2": 1, "3": 1})}
    assert keeper.statistics().results_rejected == {"map-keys": 3}


async def test_totals_that_expired_between_runs_restart_with_a_later_start(
    autojump_clock,
):
    listed: list[Endpoint] = []
    keeper = make_keeper(lambda: listed, clock=lambda: 5.0, expire_after=0.3)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(0.9)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(one("a"))
        await trio.sleep(0.2)
        listed.append(Endpoint("a"))
        await trio.sleep(0.5)
        (export,) = run.received()
    assert export.metrics["total"] == 1
    assert export.start_timestamp == math.nextafter(5, math.inf)


async def test_an_exception_that_results_raise_repeatedly_does_not_grow(
    autojump_clock,
):
    error = LookupError()

    class Raising:
        target = "a"

        def metrics(self) -> None:
            raise error

    async with running(make_keeper()) as run:
        run.send(*[Raising()] * 20)
        await wait_all_tasks_blocked()
    assert error.__traceback__ is None


async def test_a_target_has_no_more_metrics_than_allowed(autojump_clock):
    keeper = make_keeper(max_metrics=3)
    async with running(keeper) as run:
        for number in range(5):
            run.send(Result("a", {"total": 1, f"id {number}": 1}))
        run.send(Result("a", {f"id {number}": 1 for number in range(100_000)}))
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.metrics == {"total": 3, "id 0": 1, "id 1": 1}
    assert keeper.statistics().results_rejected == {"metrics": 4}


async def test_a_stale_gauge_or_string_is_omitted(autojump_clock):
    keeper = make_keeper(expire_after=2)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(Result("a", {"total": 1, "queue": Gauge(5), "version": "v1"}))
        await trio.sleep(2)
        assert [list(export.metrics) for export in run.received()] == [
            ["total", "queue", "version"],
            ["total", "queue", "version"],
        ]
        await trio.sleep(1)
        assert [list(export.metrics) for export in run.received()] == [["total"]]
        assert list(keeper.snapshot()[0].metrics) == ["total"]
        run.send(Result("a", {"queue": Gauge(6)}))
        await trio.sleep(1)
        (export,) = run.received()
    assert export.metrics == {"total": 1, "queue": Gauge(6)}


async def test_a_target_with_only_stale_gauges_is_not_exported(autojump_clock):
    labelled = []
    keeper = make_keeper(
        expire_after=2, additional_labels={"name": lambda e: labelled.append(e) or e.name}
    )
    async with running(keeper) as run:
        run.send(Result("a", {"queue": Gauge(5)}))
        await trio.sleep(3.5)
        assert [export.timestamp for export in run.received()] == [1]
    assert len(labelled) == 1
