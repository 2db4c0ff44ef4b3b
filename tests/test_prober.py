"""When a prober runs probes, what it counts, and how it ends.

Every test runs on the mock clock, on which a probe takes exactly as long as it sleeps.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from probing import A, B, hanging, make_prober, running, slow, times, well

from trio_statskeeper import (
    Endpoint,
    Gauge,
    Map,
    Prober,
    ProbeResult,
    StatsKeeper,
    _pacing,
)
from trio_statskeeper._listing import _REMOVED_BATCH
from trio_statskeeper._runs import _GIVEN_UP_BATCH, _TIMED_OUT
from trio_statskeeper._schedule import offset_of
from trio_statskeeper._targets import Delisted, Run, Slots, Target


async def failing(endpoint: Endpoint) -> None:
    await trio.lowlevel.checkpoint()
    raise OSError("no route")


# When it runs


@pytest.mark.parametrize("interval", [0.1, 1 / 3, 0.7])
async def test_each_target_is_probed_on_a_grid_of_its_own(autojump_clock, interval):
    await trio.sleep(12_345.678)
    start = trio.current_time()
    probe = slow(0)
    async with running(make_prober(probe, [A, B], interval=interval, timeout=0.01)):
        await trio.sleep(interval * 1_000)
    for key in "ab":
        first = math.ceil(start / interval - offset_of(key))
        grid = [(first + k + offset_of(key)) * interval for k in range(1_000)]
        assert times(probe, key) == grid


def test_the_offset_within_the_interval_is_a_hash_of_the_key():
    assert offset_of("a") == pytest.approx(0.262589560)  # in any process
    tenths = Counter(int(offset_of(f"target {i}") * 10) for i in range(1_000))
    assert set(tenths) == set(range(10))
    assert max(tenths.values()) < 150


async def test_a_new_list_changes_no_offset(autojump_clock):
    probe = slow(0)
    others = [Endpoint(f"other {i}") for i in range(50)]
    listed = [A]
    async with running(make_prober(probe, lambda: listed)):
        await trio.sleep(1.99)
        listed[:] = [*others, A]
        await trio.sleep(1)
        listed[:] = [A, *others[:5]]
        await trio.sleep(2)
    assert times(probe, "a") == [k + offset_of("a") for k in range(5)]
    assert times(probe, "other 7") == [2 + offset_of("other 7")]


async def test_targets_is_called_at_each_interval(autojump_clock):
    asked = []

    def targets() -> list[Endpoint]:
        asked.append(trio.current_time())
        return [A]

    async with running(make_prober(well, targets)):
        await trio.sleep(2.5)
    assert asked == [0, 1, 2]


async def test_runs_that_start_as_their_targets_are_delisted_are_cancelled_too(
    autojump_clock,
):
    listed = [Endpoint(f"target {i}") for i in range(20)]
    prober = make_prober(hanging(), lambda: listed, timeout=10)
    async with running(prober):
        # All are due at once, just before the list is asked for that has none of them.
        await trio.testing.wait_all_tasks_blocked()
        listed = []
        autojump_clock.jump(1)
        await trio.sleep(0.5)
        assert prober.statistics().running == 0


async def test_all_runs_of_a_delisted_target_are_cancelled(autojump_clock):
    listed = [A]
    prober = make_prober(hanging(), lambda: listed, timeout=10)
    async with running(prober):
        await trio.sleep(3.99)
        assert prober.statistics().running == 4
        listed.clear()
        await trio.sleep(1)
        assert prober.statistics().running == prober.statistics().targets == 0


async def test_a_target_that_comes_and_goes_has_no_extra_runs_at_once(autojump_clock):
    called = []

    async def stubborn(endpoint: Endpoint) -> None:
        called.append(trio.current_time())
        with trio.CancelScope(shield=True):
            await trio.sleep(19.5)

    lists = iter([[A], [A], []])
    prober = make_prober(stubborn, lambda: next(lists, [A]))
    async with running(prober):
        await trio.sleep(15)
        assert prober.statistics().running == 1
        await trio.sleep(40)
    # It is probed again as soon as the run before is over.
    assert called == pytest.approx([offset_of("a") + k * 19.5 for k in range(3)])


async def test_only_one_run_of_a_target_waits_even_after_waiting_for_a_slot(
    autojump_clock,
):
    over = trio.Event()

    async def stubborn(endpoint: Endpoint) -> None:
        with trio.move_on_after(50, shield=True):
            await over.wait()

    prober = make_prober(stubborn, [A])
    async with running(prober):
        await trio.sleep(1.999)
        assert prober.statistics().runs_missed == 0  # the second run waits for the first
        await trio.sleep(1)
        assert prober.statistics().runs_missed == 1
        over.set()
        await trio.sleep(1)
        assert prober.statistics().runs_missed == 1


async def test_stuck_runs_do_not_hold_up_other_targets(autojump_clock):
    async def probe(endpoint: Endpoint) -> None:
        if endpoint == A:
            with trio.move_on_after(50, shield=True):
                await trio.sleep_forever()

    prober = make_prober(probe, [A, B], interval=5, timeout=1, max_concurrent=1)
    async with running(prober) as run:
        await trio.sleep(20)
        assert prober.statistics().runs_stuck == 1
        successes = [target for target, metrics in run.received() if metrics["success"]]
    assert successes == ["b"] * 4


async def test_a_target_that_returns_is_probed_again_even_if_a_run_waited_when_it_left(
    autojump_clock,
):
    listed = [A, B]
    probe = slow(2.5)
    prober = make_prober(probe, lambda: listed, interval=1, timeout=5, max_concurrent=1)
    async with running(prober):
        await trio.sleep(1.99)
        listed[:] = []
        await trio.sleep(2)
        listed[:] = [A, B]
        await trio.sleep(10)
    assert {key for time, key in probe.calls if time > 5} == {"a", "b"}


async def test_delisting_a_target_cancels_its_run_and_no_other(
    autojump_clock,
):
    listed = [A, B]
    probe = slow(1.9)
    prober = make_prober(probe, lambda: listed, timeout=2)
    async with running(prober) as run:
        await trio.sleep(0.99)
        listed.remove(A)
        await trio.sleep(0.1)
        assert prober.statistics().running == 1
        await trio.sleep(3)
        assert {target for target, _ in run.received()} == {"b"}
    assert len(times(probe, "a")) == 1


@pytest.mark.parametrize("waits_for", ["its target's slot", "max_concurrent", "results"])
async def test_a_waiting_run_ends_when_its_target_is_delisted(autojump_clock, waits_for):
    listed = [A, B]
    options: dict[str, Any] = {
        "its target's slot": {"timeout": 1},
        "max_concurrent": {"timeout": 10, "max_concurrent": 1},
        "results": {"timeout": 0.2},
    }[waits_for]
    probe = slow(0) if waits_for == "results" else hanging()
    prober = make_prober(probe, lambda: listed, **options)
    async with running(prober, buffer=0):
        await trio.sleep(1.99)
        assert prober._state.session.listing.targets
        listed = []
        await trio.sleep(0.02)
        assert not prober._state.session.listing.targets
        assert not prober._state.session.listing.leaving


async def test_a_run_that_gets_a_slot_as_its_target_is_delisted_waits_for_no_other():
    slots, full = Slots(0), trio.Semaphore(0)
    run = Run(Target(A, 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.wait, slots.acquire_nowait, slots.acquire)
        await trio.testing.wait_all_tasks_blocked()
        slots.resize(1)
        run.end()
    with pytest.raises(Delisted):
        await run.wait(full.acquire_nowait, full.acquire)
    probe = hanging()
    prober = make_prober(probe, [])
    async with running(prober):
        with pytest.raises(Delisted):
            await prober._state.session.runs._measure(run, due=0, started=0)
    assert not probe.calls


async def test_a_run_gets_the_newest_endpoint_of_its_key(autojump_clock):
    zones = []
    numbers = itertools.count()

    async def probe(endpoint: Endpoint) -> None:
        await trio.lowlevel.checkpoint()
        zones.append(endpoint.labels["zone"])

    def targets() -> list[Endpoint]:
        return [Endpoint("a", labels={"zone": str(next(numbers))})]

    async with running(make_prober(probe, targets)):
        await trio.sleep(2.5)
    assert zones == ["0", "1", "2"]


async def test_of_two_targets_with_the_same_key_the_first_is_probed_and_the_other_counted(
    autojump_clock,
):
    async def probe(endpoint: Endpoint) -> None:
        await trio.lowlevel.checkpoint()
        zones[endpoint.key].append(endpoint.labels["zone"])

    zones: dict[str, list[str]] = {"a": [], "b": []}
    targets = [Endpoint(key, labels={"zone": zone}) for key, zone in ("a1", "a2", "b3")]
    prober = make_prober(probe, targets)
    async with running(prober):
        await trio.sleep(2.99)
    assert zones == {"a": ["1", "1", "1"], "b": ["3", "3", "3"]}
    assert prober.statistics().duplicate_targets == 3
    assert prober.statistics().targets == 0  # none is probed any more


@pytest.mark.parametrize("seconds", [3.7, 3_600, 0.4])
async def test_runs_due_during_a_stall_are_missed_without_a_burst(autojump_clock, seconds):
    keys = [str(i) for i in range(50)]
    probe = slow(0)
    prober = make_prober(probe, [Endpoint(key) for key in keys])
    async with running(prober):
        await trio.sleep(0.99)
        autojump_clock.jump(seconds)
        awake = trio.current_time()
        await trio.sleep(2)
        missed = 0
        for key in keys:
            due = [k + offset_of(key) for k in range(int(awake) + 3)]
            missed += sum(0.99 < time < awake for time in due)
            on_time = [time for time in due if not 0.99 < time < awake]
            assert times(probe, key) == on_time[: len(times(probe, key))]
            assert len(times(probe, key)) >= 3
        assert prober.statistics().runs_missed == missed


async def test_a_loop_that_is_always_late_loses_no_runs(autojump_clock):
    prober = make_prober(slow(0), [Endpoint(str(i)) for i in range(50)])
    async with running(prober) as run:
        most = 0.0
        for _ in range(100):
            await trio.sleep(0.01)
            autojump_clock.jump(0.03)
            assert prober.statistics().loop_lag < 0.031
            most = max(most, prober.statistics().loop_lag)
        assert len(run.received()) >= 4 * 50 - 4
    assert most == pytest.approx(0.03, abs=0.002)
    assert prober.statistics().runs_missed == 0


async def test_stalls_at_the_same_offset_of_each_interval_starve_no_target(autojump_clock):
    keys = [str(i) for i in range(50)]
    probe = slow(0)
    targets = [Endpoint(key) for key in keys]
    async with running(make_prober(probe, targets, interval=2, timeout=2)):
        for _ in range(10):
            await trio.sleep(0.3)
            autojump_clock.jump(0.6)
            await trio.sleep(1.1)
    assert min(len(times(probe, key)) for key in keys) >= 4


async def test_a_run_is_inconclusive_even_if_the_stall_begins_with_it(autojump_clock):
    async def probe(endpoint: Endpoint) -> None:
        autojump_clock.jump(0.5)
        await trio.sleep(0.05)

    async with running(make_prober(probe, timeout=0.3)) as run:
        await trio.sleep(5.9)
        received = [metrics for _, metrics in run.received()]
    assert [metrics["inconclusive"] for metrics in received] == [1] * len(received) != []


async def test_an_exception_that_replaces_a_cancellation_is_not_logged(
    autojump_clock, caplog
):
    async def probe(endpoint: Endpoint) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError("not this") from None  # noqa: ASYNC104

    async with running(make_prober(probe, timeout=10)):
        await trio.sleep(0.999)
    assert caplog.messages == []


async def test_each_target_is_probed_even_if_every_turn_of_the_loop_is_long(
    autojump_clock,
):
    keys = [str(i) for i in range(20)]
    probe = slow(0)
    turns = random.Random(1)  # noqa: S311  # no secret
    async with running(make_prober(probe, [Endpoint(key) for key in keys])):
        for _ in range(500):
            await trio.lowlevel.checkpoint()
            autojump_clock.jump(turns.uniform(0.2, 0.6))
    assert min(len(times(probe, key)) for key in keys) > 20


async def test_a_slow_targets_function_causes_no_burst_of_runs(autojump_clock):
    def targets() -> list[Endpoint]:
        autojump_clock.jump(0.7)
        return [A, B]

    probe = slow(0)
    async with running(make_prober(probe, targets, interval=2)):
        await trio.sleep_until(4.6)
    # They are asked for from 0 to 0.7 and from 2.7 to 3.4, when the second run of b is due.
    assert times(probe, "a") == [2 * (1 + offset_of("a")), 2 * (2 + offset_of("a"))]
    assert times(probe, "b") == [2 * offset_of("b")]


@pytest.mark.parametrize(
    ("stall", "metric"), [(0.2, "timeouts"), (0.8, "inconclusive"), (60, "inconclusive")]
)
@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_run_in_flight_during_a_stall_longer_than_its_timeout_is_inconclusive(
    autojump_clock, caplog, stall, metric, stubborn
):
    async def probe(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=stubborn):
            await trio.sleep(100)

    async with running(make_prober(probe)) as run:
        await trio.sleep(offset_of("a") + 0.4)
        autojump_clock.jump(stall)
        await trio.sleep(0.1)
        ((_, metrics),) = run.received()
    counts = ("total", "success", "failure", "timeouts", "inconclusive")
    assert [metrics[count] for count in counts] == (
        [1, 0, 1, 1, 0] if metric == "timeouts" else [0, 0, 0, 0, 1]
    )
    error = {"timeout": 1} if metric == "timeouts" else {}
    assert metrics["error"] == Map("error", error)
    assert "latency" not in metrics
    assert len(caplog.records) == (metric == "timeouts")


async def test_a_run_that_had_not_begun_before_a_stall_is_missed(
    autojump_clock,
):
    class Stopping(trio.abc.Instrument):
        def task_spawned(self, task: trio.lowlevel.Task) -> None:
            if task.name.endswith("._run"):
                autojump_clock.jump(8)
                trio.lowlevel.remove_instrument(self)

    probe = slow(0)
    prober = make_prober(probe, interval=20)
    async with running(prober):
        trio.lowlevel.add_instrument(Stopping())
        await trio.sleep(20 * offset_of("a") + 19)
    assert probe.calls == []
    assert prober.statistics().runs_missed == 1


async def test_many_targets_are_started_in_steps(autojump_clock, monkeypatch):
    monkeypatch.setattr(_pacing, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(_pacing, "_STEP_TIME", 25)  # targets
    prober = make_prober(well, [Endpoint(f"target {i}") for i in range(2_000)])
    rounds = 0
    async with running(prober):
        await trio.sleep(0.5)
        sent_before = prober.statistics().results_sent
        autojump_clock.jump(0.24)  # some five hundred are due at once
        while prober.statistics().results_sent < sent_before + 425 and rounds < 10_000:
            rounds += 1
            await trio.lowlevel.checkpoint()
    assert 15 <= rounds <= 50


async def test_many_targets_that_come_and_go_are_processed_in_steps(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(_pacing, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(_pacing, "_STEP_TIME", 100)  # targets
    lists = iter([[Endpoint(f"target {i}") for i in range(2_000)], []])
    prober = make_prober(hanging(), lambda: next(lists), timeout=10)

    async def rounds_until(targets: int) -> int:
        rounds = 0
        while prober.statistics().targets != targets and rounds < 10_000:
            rounds += 1
            await trio.lowlevel.checkpoint()
        return rounds

    async with running(prober):
        assert 10 <= await rounds_until(2_000) <= 40
        await trio.sleep(0.999)
        autojump_clock.jump(0.001)
        gone = 2_000 / _REMOVED_BATCH
        assert gone / 2 <= await rounds_until(0) <= gone * 2


# Timeouts and overlap


async def test_a_run_is_cancelled_at_the_timeout(autojump_clock):
    async with running(make_prober(hanging(), timeout=0.5)) as run:
        await trio.sleep(offset_of("a") + 0.49)
        assert run.received() == []
        await trio.sleep(0.02)
        ((_, metrics),) = run.received()
    assert metrics == {
        "total": 1,
        "success": 0,
        "failure": 1,
        "timeouts": 1,
        "inconclusive": 0,
        "error": Map("error", {"timeout": 1}),
    }


@pytest.mark.parametrize(
    ("interval", "timeout"), [(1, 0.7), (0.5, 0.3), (1, 0.1), (0.1, 0.1), (0.1, 0.3)]
)
async def test_rounding_makes_no_timeout_a_success_and_no_run_late(
    autojump_clock, interval, timeout
):
    await trio.sleep(12_345.678)
    prober = make_prober(hanging(), interval=interval, timeout=timeout)
    async with running(prober) as run:
        await trio.sleep(interval * 500.5)
        results = run.received()
    assert len(results) > 490
    assert {metrics["timeouts"] for _, metrics in results} == {1}
    assert prober.statistics().runs_late == prober.statistics().runs_missed == 0


async def test_a_run_that_begins_slightly_late_still_ends_in_time(autojump_clock):
    due = offset_of("a")
    prober = make_prober(hanging(), timeout=0.5)
    async with running(prober) as run:
        await trio.sleep_until(due - 0.01)
        autojump_clock.jump(0.01 + 0.04)
        await trio.sleep_until(due + 0.51)
        assert [metrics["timeouts"] for _, metrics in run.received()] == [1]
    assert prober.statistics().runs_late == 0


async def test_a_run_that_begins_late_has_its_full_timeout(autojump_clock):
    due = offset_of("a")
    prober = make_prober(hanging(), timeout=0.5)
    async with running(prober) as run:
        await trio.sleep_until(due - 0.01)
        autojump_clock.jump(0.01 + 0.06)
        await trio.sleep_until(due + 0.55)
        assert run.received() == []
        await trio.sleep_until(due + 0.57)
        assert [metrics["timeouts"] for _, metrics in run.received()] == [1]
    assert prober.statistics().runs_late == 1


async def test_a_probe_that_raises_at_its_deadline_has_timed_out(autojump_clock):
    async def probe(endpoint: Endpoint) -> None:
        await raise_when_cancelled()

    async with running(make_prober(probe)) as run:
        await trio.sleep(0.99)
        ((_, metrics),) = run.received()
    assert metrics["timeouts"] == 1
    assert metrics["error"] == Map("error", {"timeout": 1})


async def test_what_a_probe_returns_after_its_deadline_does_not_count(autojump_clock):
    async def probe(endpoint: Endpoint) -> dict:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.6)
        return {"size": 5}

    async with running(make_prober(probe)) as run:
        await trio.sleep(0.99)
        ((_, metrics),) = run.received()
    assert metrics["timeouts"] == 1
    assert "size" not in metrics


@pytest.mark.parametrize(
    ("timeout", "interval", "overlap"),
    [
        (0.5, 1, 1),
        (1, 1, 1),
        (1.5, 1, 2),
        (2, 1, 2),
        (3.5, 1, 4),
        (0.3, 0.1, 3),
        (1.1, 0.1, 11),
    ],
)
async def test_at_most_as_many_runs_of_a_target_overlap_as_the_timeout_has_intervals(
    autojump_clock, timeout, interval, overlap
):
    at_once = most = 0

    async def probe(endpoint: Endpoint) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            await trio.sleep_forever()
        finally:
            at_once -= 1

    prober = make_prober(probe, interval=interval, timeout=timeout)
    async with running(prober) as run:
        await trio.sleep(20 * interval)
        # One run began in each interval.
        assert len(run.received()) == pytest.approx(20 - timeout / interval, abs=1)
    assert most == overlap
    assert prober.statistics().runs_missed == 0


@pytest.mark.parametrize("late_end", ["returns", "raises"])
async def test_a_stuck_run_is_a_timeout_at_its_deadline_and_keeps_its_slot(
    autojump_clock, caplog, late_end
):
    called = []

    async def stubborn(endpoint: Endpoint) -> dict:
        called.append(endpoint)
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        if late_end == "raises":
            raise OSError("at last")
        return {"size": 5}

    prober = make_prober(stubborn)
    async with running(prober, buffer=0) as run:
        await trio.sleep(offset_of("a") + 0.51)
        assert run.received() == [("a", dict(_TIMED_OUT))]
        await trio.sleep_until(10.2)
        assert run.received() == []
        assert prober.statistics().runs_stuck == prober.statistics().running == 1
        await trio.sleep_until(10.5)
        assert run.received() == []
        assert len(called) == 2  # the second began when the first was over
        assert prober.statistics().runs_stuck == 0
        await trio.sleep_until(10.9)
        assert run.received() == [("a", dict(_TIMED_OUT))]
        assert prober.statistics().runs_late == 1
        assert prober.statistics().runs_missed == 9
    assert [record.getMessage() for record in caplog.records] == [
        "a: probe failed: stuck: it ignores its timeout of 0.5 s"
    ]


async def test_a_stuck_run_delays_no_other_target(autojump_clock):
    async def probe(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=endpoint == A):
            await trio.sleep(10 if endpoint == A else 0.1)

    async with running(make_prober(probe, [A, B], max_concurrent=2)) as run:
        await trio.sleep(9.99)
        counted = [(key, metrics["success"]) for key, metrics in run.received()]
    assert sorted(counted) == [("a", 0), *[("b", 1)] * 10]


async def test_a_stuck_run_whose_result_is_not_received_is_not_followed_by_another(
    autojump_clock,
):
    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)

    prober = make_prober(stubborn)
    async with running(prober, buffer=0) as run:
        await trio.sleep(20)
        assert prober.statistics().running == prober.statistics().runs_stuck == 0
        await run.results.receive()
        await trio.sleep(0.01)
        assert prober.statistics().running == 1


async def test_a_stuck_run_of_a_delisted_target_counts_until_it_ends(autojump_clock):
    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)

    listed = [A]
    prober = make_prober(stubborn, lambda: listed, timeout=1.5)
    async with running(prober) as run:
        await trio.sleep(0.9)
        listed.clear()
        await trio.sleep(5)
        assert prober.statistics().runs_stuck == 1
        await trio.sleep(5)
        assert prober.statistics().runs_stuck == 0
        assert run.received() == []


async def test_a_cancelled_prober_waits_for_a_stuck_run_whose_result_it_has_sent(
    autojump_clock,
):
    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)

    async with running(make_prober(stubborn)) as run:
        await trio.sleep(0.99)
        run.nursery.cancel_scope.cancel()
    assert trio.current_time() == offset_of("a") + 10
    assert [metrics["timeouts"] for _, metrics in run.received()] == [1]


async def test_a_system_exit_in_a_stuck_run_ends_the_program_too(autojump_clock):
    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        raise SystemExit

    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    with results_receive, pytest.raises(SystemExit):
        await make_prober(stubborn).run(results_send)


async def test_many_stuck_runs_have_one_result_each(autojump_clock):
    keys = [str(i) for i in range(200)]

    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.499 + int(endpoint.key) / 10_000)  # near the deadline

    prober = make_prober(stubborn, [Endpoint(key) for key in keys])
    async with running(prober) as run:
        await trio.sleep(2)
        counted = Counter(key for key, _ in run.received())
    assert prober.statistics().runs_stuck == prober.statistics().running == 0
    assert counted.keys() == set(keys)
    assert max(counted.values()) <= 2
    assert prober.statistics().results_sent == counted.total()


async def test_many_runs_that_get_stuck_at_once_are_abandoned_in_steps(autojump_clock):
    over = trio.Event()

    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await over.wait()

    prober = make_prober(stubborn, [Endpoint(str(i)) for i in range(1_000)], timeout=3)
    async with running(prober) as run:
        await trio.sleep(2.99)
        autojump_clock.jump(1.5)
        stuck = [0]
        while stuck[-1] < 1_000:
            await trio.lowlevel.checkpoint()
            stuck.append(prober.statistics().runs_stuck)
        steps = [after - before for before, after in itertools.pairwise(stuck)]
        over.set()
        assert max(steps) <= 2 * _GIVEN_UP_BATCH
        run.nursery.cancel_scope.cancel()


async def test_a_probe_that_swallows_its_cancellation_counts_once_and_as_a_timeout(
    autojump_clock,
):
    async def swallowing(endpoint: Endpoint) -> None:
        with pytest.raises(trio.Cancelled):
            await trio.sleep_forever()

    async with running(make_prober(swallowing)) as run:
        await trio.sleep(0.99)
        assert [metrics["error"] for _, metrics in run.received()] == [
            Map("error", {"timeout": 1})
        ]


@pytest.mark.parametrize("swallows", [True, False])
async def test_a_run_that_is_cancelled_from_outside_gives_no_result(
    autojump_clock, swallows
):
    async def probe(endpoint: Endpoint) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:  # noqa: ASYNC103  # that it does not raise is the point
            if not swallows:
                raise

    listed = [A]
    async with running(make_prober(probe, lambda: listed, timeout=2)) as run:
        await trio.sleep(0.5)
        listed.clear()
        await trio.sleep(5)
        assert run.received() == []


async def raise_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise OSError("cannot clean up")


async def test_an_error_beside_a_cancellation_from_outside_does_not_end_the_nursery(
    autojump_clock,
):
    async def probe(endpoint: Endpoint) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_when_cancelled)
            nursery.start_soon(trio.sleep_forever)

    listed = [A]
    async with running(make_prober(probe, lambda: listed, timeout=2)) as run:
        await trio.sleep(0.9)
        listed.clear()
        await trio.sleep(5)
        assert run.received() == []


# What a run counts


async def test_a_run_that_succeeds_has_a_latency_and_no_error(autojump_clock):
    async with running(make_prober(slow())) as run:
        await trio.sleep(0.99)
        assert run.received() == [
            (
                "a",
                {
                    "total": 1,
                    "success": 1,
                    "failure": 0,
                    "timeouts": 0,
                    "inconclusive": 0,
                    "latency": pytest.approx(0.25),
                    "error": Map("error", {}),
                },
            )
        ]


async def raise_a_group(endpoint: Endpoint) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failing, endpoint)


async def raise_nested_groups(endpoint: Endpoint) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_a_group, endpoint)


class UsersGroup(BaseExceptionGroup):
    """A group that is no Exception, though all that it holds are."""

    def __new__(cls, exceptions):
        return super().__new__(cls, "of the user's own", exceptions)

    def derive(self, exceptions):
        return UsersGroup(exceptions)


async def raise_a_group_of_ones_own(endpoint: Endpoint) -> None:
    await trio.lowlevel.checkpoint()
    raise UsersGroup([OSError()])


@pytest.mark.parametrize(
    "probe", [failing, raise_a_group, raise_nested_groups, raise_a_group_of_ones_own]
)
async def test_a_run_that_raises_has_failed_and_affects_no_other(autojump_clock, probe):
    async with running(make_prober(probe)) as run:
        await trio.sleep(1.99)
        assert (
            run.received()
            == [
                (
                    "a",
                    {
                        "total": 1,
                        "success": 0,
                        "failure": 1,
                        "timeouts": 0,
                        "inconclusive": 0,
                        "error": Map("error", {"OSError": 1}),
                    },
                )
            ]
            * 2
        )


async def test_metrics_that_a_probe_returns_are_added(autojump_clock):
    further = {"resp-code": Map("code", {"200": 1}), "cert-expiry": Gauge(86_400)}

    async def probe(endpoint: Endpoint) -> dict:
        await trio.lowlevel.checkpoint()
        return further

    async with running(make_prober(probe)) as run:
        await trio.sleep(0.99)
        ((_, metrics),) = run.received()
    assert metrics.items() >= further.items()
    assert metrics["success"] == 1


OWN_METRICS = [
    "total",
    "success",
    "failure",
    "timeouts",
    "inconclusive",
    "latency",
    "error",
]


class Unreadable(Mapping[str, int]):
    def __contains__(self, key: object) -> bool:
        return False

    def __getitem__(self, key: str) -> int:
        raise OSError("no value")

    def __iter__(self):
        return iter(["size"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        *[
            ({name: 5}, "ValueError", f"a probe can't add the metrics ['{name}']: the")
            for name in OWN_METRICS
        ],
        ("well", "TypeError", "a probe's metrics must be a mapping or None, got 'well'"),
        (7, "TypeError", "a probe's metrics must be a mapping or None, got 7"),
        (Unreadable(), "OSError", "no value"),
    ],
)
async def test_a_probe_that_returns_an_invalid_object_has_failed(
    autojump_clock, caplog, returned, error, message
):
    async def probe(endpoint: Endpoint) -> Any:
        await trio.lowlevel.checkpoint()
        return returned

    async with running(make_prober(probe)) as run:
        await trio.sleep(0.99)
        ((_, metrics),) = run.received()
    assert metrics["error"] == Map("error", {error: 1})
    assert metrics["total"] == 1
    assert metrics["failure"] == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(f"a: probe failed: {error}(")
    assert message in record.getMessage()


# The results channel, and the limit


async def test_a_full_results_channel_changes_no_latency(autojump_clock):
    prober = make_prober(slow())
    async with running(prober, buffer=0) as run:
        await trio.sleep(10)
        results = [await run.results.receive() for _ in range(3)]
    assert [result.metrics()["latency"] for result in results] == pytest.approx([0.25] * 3)
    assert prober.statistics().runs_missed > 0


async def test_no_more_probes_run_at_once_than_allowed(autojump_clock):
    most = 0

    async def probe(endpoint: Endpoint) -> None:
        nonlocal most
        most = max(most, prober.statistics().running)
        await trio.sleep(0.3)

    prober = make_prober(probe, [Endpoint(f"{i}") for i in range(50)], max_concurrent=4)
    async with running(prober) as run:
        await trio.sleep(10)
        latencies = [metrics["latency"] for _, metrics in run.received()]
    assert most == 4
    assert latencies == pytest.approx([0.3] * len(latencies))
    statistics = prober.statistics()
    assert statistics.results_sent == len(latencies)
    assert statistics.runs_late > 100
    # Each due run was sent, missed, or is one of the at most two that a target may have.
    assert 0 <= 10 * 50 - statistics.results_sent - statistics.runs_missed <= 2 * 50


async def test_waiting_results_do_not_count_towards_the_limit(autojump_clock):
    prober = make_prober(slow(), [A, B], max_concurrent=1)
    async with running(prober, buffer=0):
        await trio.sleep(5)
        # Both wait to be received, though only one probe may run.
        assert prober.statistics().running == 0
        statistics = prober.statistics()
        assert statistics.results_sent == 0
        assert statistics.runs_missed == 2 * (5 - 2)


# How it ends


async def test_when_cancelled_it_closes_its_channel_and_raises_a_bare_cancelled(
    autojump_clock,
):
    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    with trio.move_on_after(1.5) as scope, pytest.raises(trio.Cancelled):
        await make_prober(hanging(), timeout=5).run(results_send)
    assert scope.cancel_called
    with pytest.raises(trio.EndOfChannel):
        results_receive.receive_nowait()


async def test_when_all_receivers_are_closed_it_raises_a_bare_error(autojump_clock):
    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    results_receive.close()
    with pytest.raises(trio.BrokenResourceError):
        await make_prober(well).run(results_send)


@pytest.mark.parametrize("nth", [1, 3])
async def test_exceptions_of_targets_are_raised_bare(autojump_clock, nth):
    calls = itertools.count(1)

    def targets() -> list[Endpoint]:
        if next(calls) == nth:
            raise LookupError("no targets")
        return [A]

    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    with results_receive, pytest.raises(LookupError, match="no targets"):
        await make_prober(hanging(), targets).run(results_send)
    assert trio.current_time() == nth - 1


async def test_targets_that_are_not_endpoints_are_an_error(autojump_clock):
    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    with results_receive, pytest.raises(TypeError, match="must be Endpoints, got 'a'"):
        await make_prober(well, ["a"]).run(results_send)


@pytest.mark.parametrize("exit_error", [KeyboardInterrupt, SystemExit])
async def test_a_system_exit_is_raised_even_if_another_exception_came_first(
    autojump_clock, caplog, exit_error
):
    async def probe(endpoint: Endpoint) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise exit_error

    def targets() -> list[Endpoint]:
        if trio.current_time() > 0:
            raise LookupError("no targets")  # then the probe is cancelled
        return [A]

    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    with results_receive, pytest.raises(exit_error):
        await make_prober(probe, targets, timeout=3).run(results_send)
    assert [record.exc_info[0] for record in caplog.records] == [LookupError]


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_keyboard_interrupt_in_a_probe_is_raised_bare(autojump_clock, grouped):
    async def probe(endpoint: Endpoint) -> None:
        await trio.lowlevel.checkpoint()
        if grouped:
            raise BaseExceptionGroup("both", [OSError(), KeyboardInterrupt()])
        raise KeyboardInterrupt

    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    with results_receive, pytest.raises(KeyboardInterrupt) as caught:
        await make_prober(probe).run(results_send)
    # A traceback does not say that it was raised while a Cancelled was handled.
    assert not isinstance(caught.value.__context__, trio.Cancelled)


@pytest.mark.parametrize("nth", range(1, 26))
def test_ctrl_c_at_any_line_that_starts_a_run_ends_the_program(nth):
    lines = itertools.count(1)

    def in_spawn(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and next(lines) == nth:
            signal.raise_signal(signal.SIGINT)
        return in_spawn

    def trace(frame: FrameType, *_: object) -> Any:
        if frame.f_code.co_name == "spawn_impl":
            starts = getattr(frame.f_locals["async_fn"], "__name__", "")
            return in_spawn if starts == "_run" else None
        return None

    async def main() -> None:
        with trio.fail_after(60):
            async with running(make_prober(well)):
                await trio.sleep_forever()

    traced_before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(BaseException) as raised:
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        sys.settrace(traced_before)
    error = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert type(error) is KeyboardInterrupt


async def test_ctrl_c_interrupts_user_code_but_not_the_probers_own(autojump_clock):
    protected = []

    def targets() -> list[Endpoint]:
        protected.append(trio.lowlevel.currently_ki_protected())
        return [A]

    async def probe(endpoint: Endpoint) -> None:
        await trio.lowlevel.checkpoint()
        protected.append(trio.lowlevel.currently_ki_protected())

    async with running(make_prober(probe, targets)):
        await trio.sleep(1.5)
    assert protected == [False] * 4


async def test_a_keyboard_interrupt_during_a_cancellation_is_not_lost(autojump_clock):
    async def interrupted() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    async def probe(endpoint: Endpoint) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(interrupted)

    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    with results_receive, trio.move_on_after(1.5), pytest.raises(KeyboardInterrupt):
        await make_prober(probe, timeout=5).run(results_send)


async def test_probes_that_raise_when_cancelled_leave_the_cancellation_bare(
    autojump_clock, caplog
):
    async def probe(endpoint: Endpoint) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_when_cancelled)
            nursery.start_soon(trio.sleep_forever)

    results_send, _results_receive = trio.open_memory_channel[ProbeResult](10)
    prober = make_prober(probe, [Endpoint(f"{i}") for i in range(50)], timeout=5)
    with trio.move_on_after(1.5), pytest.raises(trio.Cancelled):
        await prober.run(results_send)
    assert caplog.records == []
    assert prober.statistics().running == 0


async def test_many_runs_without_a_receiver_raise_one_error_and_log_none(
    autojump_clock, caplog
):
    async def run() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await prober.run(results_send)

    results_send, results_receive = trio.open_memory_channel[ProbeResult](0)
    prober = make_prober(well, [Endpoint(f"{i}") for i in range(50)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(1.5)
        results_receive.close()
    assert caplog.records == []


async def test_two_runs_at_once_are_refused_and_close_nothing(autojump_clock):
    prober = make_prober(well)
    results_send, _results_receive = trio.open_memory_channel[ProbeResult](1)
    async with running(prober):
        with pytest.raises(
            trio.BusyResourceError, match=r"^this prober is already running$"
        ):
            await prober.run(results_send)
    assert results_send.statistics().open_send_channels == 1


async def test_it_may_run_again(autojump_clock):
    prober = make_prober(well)
    for expected in (2, 4):
        async with running(prober):
            await trio.sleep(1.99)
        assert prober.statistics().results_sent == expected


async def test_another_run_may_have_other_targets(autojump_clock):
    listed = [A]
    probe = slow()
    prober = make_prober(probe, lambda: listed)
    async with running(prober):
        await trio.sleep(1.99)
    listed = [B]
    second = trio.current_time()
    async with running(prober):
        await trio.sleep(1.99)
        assert prober.statistics().targets == 1
    assert {key for time, key in probe.calls if time > second} == {"b"}


async def test_finished_runs_are_not_kept(autojump_clock):
    prober = make_prober(slow())
    async with running(prober):
        await trio.sleep(50.99)
        assert len(prober._state.session.listing.targets["a"].runs) == 0


async def test_a_list_of_targets_may_change_while_the_prober_goes_through_it(
    autojump_clock,
):
    listed = [Endpoint(f"target {i}") for i in range(1_000)]
    asked = trio.Event()

    def targets() -> list[Endpoint]:
        if trio.current_time() > 0:
            asked.set()
        return listed

    prober = make_prober(well, targets)
    async with running(prober) as run:
        await asked.wait()
        await trio.lowlevel.checkpoint()
        listed.clear()
        run.received()
        await trio.sleep(0.99)
        assert len(run.received()) > 900


async def test_with_a_keeper_all_counts_are_exact(autojump_clock):
    keeper = StatsKeeper("tcp", "x", lambda: [A, B], export_interval=1)
    prober = make_prober(slow(), [A, B], interval=0.25)
    results_send, results_receive = trio.open_memory_channel[ProbeResult](10)
    exports_send, exports_receive = trio.open_memory_channel(math.inf)
    with trio.move_on_after(3.999):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run, results_receive, exports_send)
            nursery.start_soon(prober.run, results_send)
    exports_receive.close()
    assert {e.labels["dst"]: e.metrics["total"] for e in keeper.snapshot()} == {
        "a": 15,
        "b": 15,
    }


# The constructor


@pytest.mark.parametrize("option", ["interval", "timeout"])
@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_seconds_that_are_not_finite_and_above_zero_are_refused(option, seconds):
    with pytest.raises(ValueError, match=f"{option} must be finite and > 0"):
        make_prober(well, **{option: seconds})


@pytest.mark.parametrize("option", ["interval", "timeout"])
def test_seconds_that_are_not_a_number_are_refused(option):
    with pytest.raises(TypeError, match=f"{option} must be a number, got '1'"):
        make_prober(well, **{option: "1"})


class AsyncCallable:
    async def __call__(self, endpoint: Endpoint) -> None:
        await well(endpoint)


def test_an_object_that_is_not_a_probe_is_refused_and_quoted():
    with pytest.raises(TypeError, match="of an endpoint, got 7; for further arguments"):
        make_prober(7)


@pytest.mark.parametrize("probe", [print, None, lambda _: well(A), AsyncCallable])
def test_a_probe_that_is_not_async_is_refused(probe):
    with pytest.raises(TypeError, match="probe must be an async function"):
        make_prober(probe)


@pytest.mark.parametrize(
    "probe",
    [well, AsyncCallable(), functools.partial(well), functools.partial(AsyncCallable())],
)
def test_any_async_callable_is_a_probe(probe):
    assert make_prober(probe).probe is probe


@pytest.mark.parametrize(
    ("limit", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_a_limit_that_is_not_a_positive_integer_is_refused(limit, error):
    with pytest.raises(error, match="max_concurrent"):
        make_prober(well, max_concurrent=limit)


@pytest.mark.parametrize(
    ("interval", "timeout"), [(1e-310, 1), (1e-5, 1.7e308), (1, 10**400), (10**400, 1)]
)
def test_numbers_that_floats_cannot_handle_are_refused(interval, timeout):
    with pytest.raises(ValueError, match=r"interval|timeout"):
        make_prober(well, interval=interval, timeout=timeout)


async def test_if_targets_raise_at_the_start_started_is_not_called(autojump_clock):
    def targets() -> list[Endpoint]:
        raise OSError("no targets")

    with pytest.RaisesGroup(OSError):
        async with running(make_prober(well, targets)):
            pytest.fail("started")


def test_a_key_may_have_any_characters():
    assert 0 <= offset_of("\udc80") < 1


@pytest.mark.parametrize("targets", ["a", A, None, ["a"]])
def test_an_object_that_is_not_targets_is_refused(targets):
    with pytest.raises(TypeError, match="targets must be"):
        Prober(well, targets, interval=1, timeout=1)
