"""The status page: what it keeps of each target."""

from __future__ import annotations

import gc
import math
import tracemalloc
import weakref

import pytest
import trio
from helpers import channel_of, make_keeper, one
from hypothesis import given
from hypothesis import strategies as st
from status_pages import as_json, begin, export, feed, history, latency, names, target

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    ProbeResult,
    _pacing,
)
from trio_statskeeper.status import StatusPage, _board
from trio_statskeeper.status._intervals import Interval, Totals


async def test_an_interval_is_the_difference_of_two_exports(autojump_clock):
    page = StatusPage()
    first = {"total": 4, "success": 4, "latency": latency(1.0, 1.0, 1.0, 1.0)}
    second = {"total": 8, "success": 7, "latency": latency(*[1.0] * 4, *[8.0] * 3)}
    await feed(page, export(10, **first), export(20, **second))
    found = await target(page)
    assert found["interval"] == {
        "total": 4,
        "success": 3,
        "inconclusive": 0,
        "outcome": "degraded",
        "success_ratio": 0.75,
        "p50_seconds": pytest.approx(8, rel=0.05),
        "p99_seconds": pytest.approx(8, rel=0.05),
    }
    assert found["totals"] == {"total": 8, "success": 7, "inconclusive": 0}
    [before, now] = await history(page, last=2)
    assert before == ("up", 1.0, pytest.approx(1, rel=0.05), pytest.approx(1, rel=0.05))
    assert now == ("degraded", 0.75, *[pytest.approx(8, rel=0.05)] * 2)


async def test_latencies_are_in_seconds_whatever_their_unit(autojump_clock):
    page = StatusPage()
    milliseconds = Distribution.of([500, 500], [1, 10, 100, 1000])
    each = export(10, total=2, success=2, latency=milliseconds, latency_unit=0.001)
    await feed(page, each)
    assert (await target(page))["interval"]["p50_seconds"] == pytest.approx(0.55)


@pytest.mark.parametrize(
    "latencies",
    [
        (None, None),
        (1.5, 3.0),  # a number is only their sum
        (latency(1.0), latency(1.0)),  # no sample is new
    ],
)
async def test_without_samples_there_is_no_latency(autojump_clock, latencies):
    page = StatusPage()
    before, now = latencies
    await feed(page, export(10, total=1, success=1, latency=before))
    await feed(page, export(20, total=2, success=2, latency=now))
    interval = (await target(page))["interval"]
    assert (interval["p50_seconds"], interval["p99_seconds"]) == (None, None)


@pytest.mark.parametrize("before", [latency(9.0), Distribution.of([9.0], [2.0, 20.0])])
async def test_a_distribution_of_another_kind_has_only_new_samples(autojump_clock, before):
    page = StatusPage()
    await feed(page, export(10, total=1, success=1, latency=before))
    now = Distribution.of([0.5, 0.5], [1.0, 10.0])
    await feed(page, export(20, total=2, success=2, latency=now))
    assert (await target(page))["interval"]["p50_seconds"] == pytest.approx(0.5)


async def test_a_state_lasts_until_a_run_shows_another(autojump_clock):
    page = StatusPage()
    totals = [(1, 1, 0), (2, 1, 0), (2, 1, 0), (3, 1, 0), (5, 2, 0), (5, 2, 1), (6, 3, 1)]
    states = []
    for number, (total, success, inconclusive) in enumerate(totals, 1):
        counts = {"total": total, "success": success, "inconclusive": inconclusive}
        await feed(page, export(10 * number, **counts))
        found = await target(page)
        states.append((found["state"], found["since"]))
        assert found["interval"]["outcome"] == found["state"]
    assert states == [
        ("up", 10),
        ("down", 20),
        ("down", 20),  # no run ended
        ("down", 20),
        ("degraded", 50),
        ("inconclusive", 60),
        ("up", 70),
    ]
    outcomes = [outcome for outcome, *_ in await history(page, last=8)]
    assert outcomes == [
        "missing",
        "up",
        "down",
        "idle",
        "down",
        "degraded",
        "inconclusive",
        "up",
    ]


async def test_a_target_without_runs_is_idle(autojump_clock):
    page = StatusPage()
    await feed(page, export(10, status="ready"))
    found = await target(page)
    assert (found["state"], found["interval"]["success_ratio"]) == ("idle", None)


async def test_after_a_reset_all_of_the_totals_are_new(autojump_clock):
    page = StatusPage()
    before = {
        "total": 100,
        "success": 100,
        "error": {"timeout": 3},
        "latency": latency(9.0),
    }
    after = {"total": 4, "success": 1, "error": {"timeout": 2}, "latency": latency(1.0)}
    await feed(
        page,
        export(1000, start_timestamp=995, **before),
        export(1010, start_timestamp=1003, **after),
    )
    found = await target(page)
    assert found["interval"]["success_ratio"] == 0.25
    assert found["interval"]["p50_seconds"] == pytest.approx(1, rel=0.05)
    assert found["errors"] == [{"kind": "timeout", "interval": 2, "total": 2}]
    assert found["start_timestamp"] == 1003


async def test_totals_that_fall_are_a_reset(autojump_clock):
    page = StatusPage()
    await feed(page, export(10, total=9, success=9), export(20, total=2, success=0))
    assert (await target(page))["interval"]["total"] == 2


async def test_old_totals_at_first_are_not_an_interval(autojump_clock):
    # The page began later than the keeper.
    page = StatusPage()
    old = {"total": 100, "success": 50, "error": {"timeout": 50}}
    await feed(page, export(1000, start_timestamp=0, **old))
    found = await target(page)
    assert (found["state"], found["interval"]["total"]) == ("idle", 0)
    assert found["errors"] == [{"kind": "timeout", "interval": 0, "total": 50}]
    await feed(page, export(1010, start_timestamp=0, **old | {"total": 101, "success": 51}))
    assert (await target(page))["state"] == "up"


async def test_errors_are_counted_by_kind_those_of_the_interval_first(autojump_clock):
    page = StatusPage()
    await feed(page, export(10, total=9, error={"timeout": 7, "reset": 2}))
    await feed(page, export(20, total=11, error={"timeout": 7, "reset": 3, "refused": 1}))
    assert (await target(page))["errors"] == [
        {"kind": "reset", "interval": 1, "total": 3},
        {"kind": "refused", "interval": 1, "total": 1},
        {"kind": "timeout", "interval": 0, "total": 7},
    ]


async def test_only_the_most_frequent_errors_are_kept(autojump_clock):
    page = StatusPage()
    errors = {f"error-{number}": number for number in range(1000)}
    await feed(page, export(10, total=9, error=errors))
    kinds = [error["kind"] for error in (await target(page))["errors"]]
    assert kinds == [f"error-{number}" for number in range(999, 968, -1)]


async def test_exports_that_do_not_come_leave_gaps(autojump_clock):
    page = StatusPage()
    await feed(page, export(10, total=1, success=1), export(39, total=2, success=2))
    outcomes = [outcome for outcome, *_ in await history(page)]
    assert outcomes == ["missing", "up", "missing", "missing", "up"]


async def test_a_target_that_leaves_its_passes_is_stale_and_then_dropped(autojump_clock):
    page = StatusPage()
    await feed(page, export(10, "a", total=1, success=1), export(10, "b", total=1))
    states = []
    for number in range(2, 12):
        await feed(page, export(10 * number, "b", total=number))
        status = await as_json(page)
        states += [each["state"] for each in status["targets"] if each["target"] == "a"]
        assert sum(status["keepers"][0]["targets"].values()) == len(status["targets"])
    assert states == ["up"] * 2 + ["stale"] * 7
    assert (await target(page, "b"))["state"] == "down"


async def test_what_is_dropped_begins_again(autojump_clock):
    page = StatusPage()
    await feed(page, export(10, "a", total=1, success=1))
    for number in range(2, 30):
        await feed(page, export(10 * number, "b", total=number))
    await feed(page, export(300, "a", total=1, start_timestamp=295))
    [_, last] = await history(page, last=2)
    assert last == ("down", 0.0, None, None)
    assert (await history(page, last=30))[0][0] == "missing"


async def test_all_targets_of_a_silent_keeper_are_stale_and_stay(autojump_clock):
    page = StatusPage(history=20)
    await feed(page, export(10, "a", total=1), export(10, "b", labels={"probe": "other"}))
    await trio.sleep(29.9)
    assert (await target(page))["state"] == "down"
    await trio.sleep(0.1)
    status = await as_json(page)
    assert {each["state"] for each in status["targets"]} == {"stale"}
    assert [keeper["silent"] for keeper in status["keepers"]] == [True, True]
    await trio.sleep(169)
    await feed(page, export(200, "b", labels={"probe": "other"}))
    assert await names(page) == ["a", "b"]
    await trio.sleep(1)  # as long as the history
    await feed(page, *[export(210, "b", labels={"probe": "other"})] * 2)
    assert await names(page) == ["b"]


def of_pass(number, dst, *, ends=False, **labels):
    return export(
        10 * number, dst, total=number, success=number, ends_pass=ends, labels=labels
    )


async def shown(page):
    status = await as_json(page)
    return {each["target"]: each["totals"]["total"] for each in status["targets"]}


async def test_a_pass_is_shown_once_its_end_has_come(autojump_clock):
    page = StatusPage()
    await feed(page, of_pass(1, "a"), of_pass(1, "b"))
    assert await shown(page) == {}
    await feed(page, of_pass(1, "c", ends=True), of_pass(2, "a"))
    assert await shown(page) == {"a": 1, "b": 1, "c": 1}
    assert (await history(page))[-1][0] == "up"
    await feed(page, of_pass(2, "c", ends=True))
    assert await shown(page) == {"a": 2, "b": 1, "c": 2}


async def test_each_keeper_has_passes_of_its_own(autojump_clock):
    page = StatusPage()
    await feed(page, of_pass(1, "a", probe="x", ends=True), of_pass(1, "b", probe="y"))
    await feed(page, of_pass(2, "a", probe="x"), of_pass(1, "c", probe="y", ends=True))
    assert await shown(page) == {"a": 1, "b": 1, "c": 1}


async def test_a_pass_that_never_ends_is_shown_after_three_intervals(autojump_clock):
    page = StatusPage()
    await feed(page, of_pass(1, "a", ends=True))
    await trio.sleep(1000)  # a pause of the keeper is no such pass
    await feed(page, of_pass(4, "b"))
    await trio.sleep(29)
    await feed(page, of_pass(4, "b"))
    assert await shown(page) == {"a": 1}
    await trio.sleep(1)
    await feed(page, of_pass(4, "c"))
    assert await shown(page) == {"a": 1, "b": 4, "c": 4}
    assert (await target(page))["state"] == "up"  # it may yet come


async def test_a_page_stays_at_its_passes_while_further_ones_come(autojump_clock):
    page = StatusPage()
    await feed(page, *[of_pass(1, dst, ends=dst == "c") for dst in "abc"])
    answer = await begin(page, "/status.json")
    pieces = [b"".join(next(answer.blocks)) for _ in range(4)]
    for number in 2, 3, 4:
        await feed(page, *[of_pass(number, dst, ends=dst == "c") for dst in "abc"])
    pieces += [part for parts in answer.blocks for part in parts]
    assert b"".join(pieces).count(b'"total": 1,') == 2 * 3


async def test_the_totals_of_a_page_add_up_to_what_was_accepted_at_one_tick(
    autojump_clock, nursery, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)  # passes and pages take many turns
    keys = [str(number) for number in range(40)]
    at_ticks = {0}

    def targets():  # called at each tick
        at_ticks.add(keeper.statistics().results_accepted)
        return [Endpoint(key) for key in keys]

    async def send_results():
        for tick in range(1, 30):
            await trio.sleep_until(tick - 0.001)
            for key in keys * 3:
                await results_send.send(one(key))

    keeper = make_keeper(targets)
    page = StatusPage()
    results_send, results = trio.open_memory_channel[ProbeResult](0)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    nursery.start_soon(keeper.run, results, exports_send)
    nursery.start_soon(page.run, exports)
    nursery.start_soon(send_results)
    sums = set()
    for tick in range(1, 30):
        await trio.sleep_until(tick)
        for _ in range(tick * 6):
            await trio.lowlevel.checkpoint()
        found = await shown(page)
        assert len(found) in {0, 40}
        sums.add(sum(found.values()))
    assert sums <= at_ticks
    assert len(sums) > 20


async def test_targets_beyond_the_limit_are_counted(autojump_clock, monkeypatch):
    monkeypatch.setattr(_board, "_MAX_TARGETS", 2)
    page = StatusPage()
    for number in 1, 2:
        await feed(page, *[of_pass(number, dst, ends=dst == "d") for dst in "abcd"])
        await feed(page, of_pass(number, "e", probe="other", ends=True))
        status = await as_json(page)
        assert (len(status["targets"]), status["not_kept"]) == (2, 2)


async def test_a_dropped_target_makes_room(autojump_clock, monkeypatch):
    monkeypatch.setattr(_board, "_MAX_TARGETS", 2)
    page = StatusPage()
    await feed(page, of_pass(1, "a"), of_pass(1, "b", ends=True))
    for number in range(2, 14):
        await feed(page, of_pass(number, "b"), of_pass(number, "c", ends=True))
    assert await shown(page) == {"b": 13, "c": 13}


async def test_a_dropped_keeper_makes_room(autojump_clock, monkeypatch):
    monkeypatch.setattr(_board, "_MAX_TARGETS", 2)
    page = StatusPage(history=10)
    await feed(page, of_pass(1, "a", ends=True), of_pass(1, "b", probe="x", ends=True))
    await trio.sleep(100)
    await feed(page, *[of_pass(11, "b", probe="x", ends=True)] * 3)
    await feed(page, of_pass(11, "c", probe="x", ends=True))
    assert await shown(page) == {"b": 11, "c": 11}


async def test_an_export_that_comes_too_late_is_ignored(autojump_clock):
    page = StatusPage()
    await feed(page, of_pass(2, "a", ends=True), of_pass(1, "a", ends=True))
    assert await shown(page) == {"a": 2}


async def test_what_waits_is_added_before_a_page_is_made(autojump_clock, monkeypatch):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    page = StatusPage()
    await feed(page, of_pass(1, "a", ends=True))
    for dst in "ab":
        page._board.put(of_pass(2, dst, ends=dst == "b"))
    assert await shown(page) == {"a": 2, "b": 2}


async def test_what_waits_is_added_while_nothing_comes(
    autojump_clock, nursery, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    page = StatusPage()
    await feed(page, of_pass(1, "a", ends=True))
    for dst in "ab":
        page._board.put(of_pass(2, dst, ends=dst == "b"))
    _, exports = trio.open_memory_channel[EventMetrics](0)
    nursery.start_soon(page.run, exports)
    await trio.testing.wait_all_tasks_blocked()
    assert page._board.waiting == 0


async def test_what_a_page_has_shown_is_freed_in_steps(autojump_clock):
    page = StatusPage()

    async def a_pass(number):
        await feed(page, *[of_pass(number, f"{n}", ends=n == 39) for n in range(40)])

    await a_pass(1)
    [cut] = page._board.cuts()
    states = [weakref.ref(state) for each in cut.segments for state in each.values()]
    answer = await begin(page)
    del cut
    for number in range(2, 5):
        await a_pass(number)
    for _ in answer.blocks:
        pass
    assert sum(state() is not None for state in states) == 40
    await a_pass(5)
    await a_pass(6)
    assert sum(state() is not None for state in states) == 0


async def test_memory_is_bounded(autojump_clock):
    page = StatusPage(history=20)
    samples = latency(*range(100))

    async def passes(begin, end):
        for number in range(begin, end):
            for index in range(20):
                # A target that leaves is replaced by another one.
                dst = f"{index}-{number // 12 if index < 5 else ''}"
                counts = {"total": number, "success": number, "latency": samples}
                await feed(page, export(10 * number, dst, ends_pass=index == 19, **counts))
            await shown(page)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await passes(1, 50)
        after = await passes(50, 100)
    finally:
        tracemalloc.stop()
    assert after < before * 1.5


def test_a_new_run_of_trio_begins_again():
    page = StatusPage()

    async def run():
        before = await shown(page)
        await feed(page, of_pass(1, "a", ends=True))
        return before, await shown(page)

    for _ in range(2):
        before, after = trio.run(run, clock=trio.testing.MockClock())
        assert (before, after) == ({}, {"a": 1})


async def test_passes_that_took_each_others_places_are_shown_once_all_is_added(
    autojump_clock,
):
    page = StatusPage()
    both = [of_pass(number, dst, ends=dst == "b") for number in (1, 2) for dst in "ab"]
    await page.run(channel_of(*both))
    assert await shown(page) == {"a": 2, "b": 2}
    await page.run(channel_of(*both[:2], of_pass(3, "a")))
    assert await shown(page) == {"a": 2, "b": 2}


async def test_targets_are_shown_of_several_runs_at_once(autojump_clock, nursery):
    page = StatusPage()
    for probe in "xy":
        send, exports = trio.open_memory_channel[EventMetrics](1)
        await nursery.start(page.run, exports)
        send.send_nowait(of_pass(1, probe, probe=probe, ends=True))
    await trio.testing.wait_all_tasks_blocked()
    assert await shown(page) == {"x": 1, "y": 1}


@given(st.integers(0, 100), st.integers(0, 200), st.integers(0, 100), st.integers(0, 9))
def test_an_outcome_always_fits_the_runs(total, success, inconclusive, before):
    earlier = Totals(before, before, before)
    now = Totals(before + total, before + success, before + inconclusive)
    interval = Interval.between(earlier, now, 1.0)
    assert 0 <= interval.success <= interval.total
    if total:
        assert interval.point.success == min(success, total) / total
    else:
        assert interval.point.success == -1


@pytest.mark.parametrize("history", [0, -1, 1.5, True, "360", math.inf, 1441])
def test_a_history_that_makes_no_sense_is_an_error(history):
    with pytest.raises((TypeError, ValueError), match=r"history must be .*, got "):
        StatusPage(history=history)
