"""When targets are due: on the grid of a clock that may be set, each at its interval."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import trio
import trio.testing
from probing import A, B, hanging, make_prober, running, slow, times, well

from trio_statskeeper import Endpoint, Prober, ProbeResult, StatsKeeper, _pacing, _schedule
from trio_statskeeper._schedule import Schedule, WallClock, offset_of
from trio_statskeeper._targets import Target
from trio_statskeeper._wakeups import Stalls, Wakeups

KEYS = [str(i) for i in range(20)]
TARGETS = [Endpoint(key) for key in KEYS]


class Clock:
    """A clock that can be set."""

    ahead = 0.0

    def __call__(self) -> float:
        return trio.current_time() + self.ahead


def by_label(name):
    return lambda endpoint: float(endpoint.labels[name])


def timed(key: str, interval: float, timeout: float = 0.5) -> Endpoint:
    return Endpoint(key, labels={"interval": str(interval), "timeout": str(timeout)})


def make_timed(probe, targets, **options):
    options = {"interval": by_label("interval"), "timeout": by_label("timeout")} | options
    return make_prober(probe, targets, **options)


# The grid


async def test_a_restart_neither_repeats_nor_moves_a_run(autojump_clock):
    probe = slow(0)
    for _ in range(20):
        async with running(make_prober(probe, TARGETS, interval=3_600)):
            await trio.sleep(500)
    for key in KEYS:
        grid = [(k + offset_of(key)) * 3_600 for k in range(3)]
        assert times(probe, key) == pytest.approx([t for t in grid if t < 10_000])


async def test_two_machines_agree_on_when_a_target_is_due(autojump_clock):
    # Their clocks are right; Trio's began at different times.
    probes = slow(0), slow(0)
    clock = Clock()
    clock.ahead = 1_700_000_000.0
    async with running(make_prober(probes[0], TARGETS, interval=60, clock=clock)):
        await trio.sleep(17)
        async with running(make_prober(probes[1], TARGETS, interval=60, clock=clock)):
            await trio.sleep(200)
    for key in KEYS:
        first, second = (times(probe, key) for probe in probes)
        assert second == pytest.approx([time for time in first if time > 17])
        phase = ((first[0] + clock.ahead) / 60) % 1
        assert phase == pytest.approx(offset_of(key), abs=1e-6)


def assert_on_grid(calls, clock_ahead, offset, interval, tolerance=1e-6):
    for call in calls:
        slots = (call + clock_ahead) / interval - offset
        assert abs(slots - round(slots)) * interval < tolerance


@pytest.mark.parametrize("interval", [5, 60])
@pytest.mark.parametrize(
    "step", [-7_200, -61, -7.3, -4.9, -3, -1.2, -0.06, 0.06, 1.2, 3, 4.9, 7.3, 61, 7_200]
)
async def test_after_the_clock_was_set_each_target_is_due_by_the_new_time(
    autojump_clock, interval, step
):
    clock = Clock()
    probe = slow(0)
    prober = make_prober(probe, TARGETS, interval=interval, clock=clock)
    async with running(prober):
        await trio.sleep_until(10 * interval)
        clock.ahead = step
        # A clock that is set back by less than a pulse might stand still.
        followed = trio.current_time() + 1.5
        await trio.sleep_until(20 * interval)
    for key in KEYS:
        calls = times(probe, key)
        before = [time for time in calls if time < 10 * interval]
        after = [time for time in calls if time > followed]
        assert_on_grid(before, 0, offset_of(key), interval)
        # A slot that was passed over by a step as small as a slewed clock's is used.
        assert_on_grid(after[:1], step, offset_of(key), interval, 0.061)
        assert_on_grid(after[1:], step, offset_of(key), interval)
        gaps = [b - a for a, b in itertools.pairwise(calls)]
        assert 0.5 * interval <= min(gaps)
        assert max(gaps) <= 2.5 * interval
        assert sum(gap != pytest.approx(interval) for gap in gaps) <= 2
    statistics = prober.statistics()
    assert statistics.runs_missed == 0
    assert statistics.runs_late <= 2  # within the tolerance


async def test_a_slot_is_not_used_twice_even_if_the_clock_was_set_back(
    autojump_clock,
):
    clock = Clock()
    probe = slow(0)
    async with running(make_prober(probe, [A], interval=10, clock=clock)):
        used = (3 + offset_of("a")) * 10
        await trio.sleep_until(used + 0.1)
        clock.ahead = -7
        await trio.sleep_until(used + 30)
    assert times(probe, "a")[3:5] == pytest.approx([used, used + 10 + 7])


async def test_a_slewed_clock_is_followed_and_no_run_is_lost(autojump_clock):
    def clock() -> float:
        return trio.current_time() * 1.05

    probe = slow(0)
    prober = make_prober(probe, TARGETS, interval=5, timeout=2, clock=clock)
    async with running(prober):
        await trio.sleep(1_000)
    for key in KEYS:
        slots = [time * 1.05 / 5 - offset_of(key) for time in times(probe, key)]
        assert [round(slot) for slot in slots] == list(range(len(slots)))
        assert max(abs(slot - round(slot)) * 5 for slot in slots) < 0.11
    assert prober.statistics().runs_missed == prober.statistics().runs_late == 0


async def test_a_clock_that_stands_still_is_not_followed(autojump_clock):
    probe = slow(0)
    async with running(make_prober(probe, [A, B], interval=5, clock=lambda: 1.7e9)):
        await trio.sleep(100)
    for key in "ab":
        gaps = [b - a for a, b in itertools.pairwise(times(probe, key))]
        assert gaps == pytest.approx([5] * 19, abs=1e-5)


async def test_a_clock_that_stands_still_is_not_followed_when_read_twice(
    autojump_clock,
):
    wall_clock = WallClock(lambda: 1.7e9)
    await trio.sleep(100)
    assert not wall_clock.follow()
    assert not wall_clock.follow()


async def test_a_slow_machine_moves_no_runs_on_a_mock_clock(autojump_clock):
    def clock() -> float:
        # Beside a mock clock, the system's all but stands still.
        return 1.7e9 + (0.12 if trio.current_time() > 9.9 else 0)

    probe = slow(0)
    prober = make_prober(probe, [A], interval=1, clock=clock)
    async with running(prober):
        await trio.sleep(20)
    gaps = [b - a for a, b in itertools.pairwise(times(probe, "a"))]
    assert gaps == pytest.approx([1] * 19, abs=1e-5)


@pytest.mark.parametrize("step", [-7_200, 0.3, 7_200])
async def test_a_clock_that_was_set_is_followed_at_once(autojump_clock, step):
    clock = Clock()
    wall_clock = WallClock(clock)
    await trio.sleep(1)
    clock.ahead = step
    assert wall_clock.follow() == pytest.approx(step)
    await trio.sleep(1)
    assert wall_clock.follow() == 0


async def test_a_reading_of_the_clock_that_took_long_is_not_followed(
    autojump_clock,
):
    def clock() -> float:
        shows = trio.current_time()
        if stop:
            autojump_clock.jump(8)
        return shows

    stop = False
    wall_clock = WallClock(clock)
    await trio.sleep(1)
    stop = True
    assert not wall_clock.follow()
    stop = False
    await trio.sleep(1)
    assert not wall_clock.follow()
    assert wall_clock.ahead == 0


@pytest.mark.parametrize(
    ("shows", "error", "message"),
    [
        (None, TypeError, "clock must return seconds, got None"),
        (True, TypeError, "clock must return seconds, got True"),
        (math.nan, ValueError, "clock must return seconds since 1970, got nan"),
        (1.7e18, ValueError, "clock must return seconds since 1970, got 1.7e"),
    ],
)
@pytest.mark.parametrize("since", [0, 2])
async def test_an_invalid_clock_ends_the_prober(
    autojump_clock, shows, error, message, since
):
    def clock() -> float:
        return shows if trio.current_time() >= since else trio.current_time()

    results, _receive = trio.open_memory_channel[ProbeResult](100)
    with pytest.raises(error, match=message):
        await make_prober(well, clock=clock).run(results)
    assert trio.current_time() == pytest.approx(since, abs=0.2)


async def test_exceptions_of_the_clock_are_raised_bare(autojump_clock):
    def clock() -> float:
        if trio.current_time() > 2:
            raise LookupError("no clock")
        return trio.current_time()

    results, _receive = trio.open_memory_channel[ProbeResult](100)
    with pytest.raises(LookupError, match="no clock"):
        await make_prober(well, clock=clock).run(results)


# Intervals and timeouts of each target's own


async def test_each_target_may_have_an_interval_and_a_timeout_of_its_own(autojump_clock):
    probe = hanging()
    targets = [timed("a", 1, 0.25), timed("b", 7, 3)]
    async with running(make_timed(probe, targets)) as run:
        await trio.sleep(70)
        received = run.received()
    assert times(probe, "a") == [k + offset_of("a") for k in range(70)]
    assert times(probe, "b") == [(k + offset_of("b")) * 7 for k in range(10)]
    assert len(received) >= 79
    assert {metrics["timeouts"] for _, metrics in received} == {1}


async def test_one_time_may_be_a_function_and_the_other_a_number(autojump_clock):
    probe = slow(0)
    async with running(make_timed(probe, [timed("a", 2)], timeout=1)):
        await trio.sleep(10)
    assert len(times(probe, "a")) == 5


@pytest.mark.parametrize("step_time", [0, 1])
async def test_each_result_comes_at_the_deadline_of_its_own_target(
    autojump_clock, monkeypatch, step_time
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", step_time)
    timeouts = {"a": 0.3, "b": 12, "c": 0.3, "d": 2.5}

    async def stubborn(endpoint: Endpoint) -> None:
        began[endpoint.key] = trio.current_time()
        with trio.CancelScope(shield=True):
            await trio.sleep(20)

    began: dict[str, float] = {}
    targets = [timed(key, 30, timeout) for key, timeout in timeouts.items()]
    async with running(make_timed(stubborn, targets)) as run:
        lasted = {}
        for _ in targets:
            key = (await run.results.receive()).target
            lasted[key] = trio.current_time() - began[key]
    assert lasted == pytest.approx(timeouts, rel=0.02)


async def test_a_new_interval_takes_effect_when_targets_is_called(autojump_clock):
    probe = slow(0)
    interval = 1.0
    prober = make_prober(probe, [A], interval=lambda _: interval)
    async with running(prober):
        await trio.sleep(9.5)
        interval = 5
        await trio.sleep(20)
        interval = 1
        await trio.sleep(10)
        assert prober.statistics().runs_missed == 0
    offset = offset_of("a")
    slow_grid = [(k + offset) * 5 for k in range(3, 6)]
    assert times(probe, "a")[:13] == [*[k + offset for k in range(10)], *slow_grid]
    assert times(probe, "a")[13:] == [k + offset for k in range(30, 40)]


async def test_as_many_runs_overlap_as_the_newest_timeout_has_intervals(autojump_clock):
    timeout = 3.0
    running_then = []
    prober = make_prober(hanging(), [A], timeout=lambda _: timeout)
    async with running(prober):
        for each in (3.0, 1.0, 6.0):
            timeout = each
            await trio.sleep(20)
            running_then.append(prober.statistics().running)
    assert running_then == [3, 1, 6]


async def test_a_run_that_waits_begins_when_its_target_gets_more_time(autojump_clock):
    timeout = 1.0

    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(50)

    prober = make_prober(stubborn, [A], timeout=lambda _: timeout)
    async with running(prober):
        await trio.sleep(9.5)
        assert prober.statistics().running == 1
        timeout = 3.0
        await trio.sleep(2)
        assert prober.statistics().running == 3
        timeout = 2.0
        await trio.sleep(2)
        assert prober.statistics().running == 3


@pytest.mark.parametrize(
    ("interval", "timeout", "error", "message"),
    [
        (None, 1, TypeError, "interval of 'a' must be a number, got None"),
        (True, 1, TypeError, "interval of 'a' must be a number, got True"),
        (0, 1, ValueError, "interval of 'a' must be finite and > 0, got 0"),
        (1e-7, 1, ValueError, "interval of 'a' must be at least a microsecond"),
        (1, "1", TypeError, "timeout of 'a' must be a number, got '1'"),
        (1, math.inf, ValueError, "timeout of 'a' must be finite and > 0, got inf"),
        (1e-5, 1.7e308, ValueError, "timeout of 'a' divided by interval"),
    ],
)
async def test_invalid_times_are_an_error_that_names_the_target(
    autojump_clock, interval, timeout, error, message
):
    prober = make_prober(
        well,
        interval=lambda _: interval if trio.current_time() else 1,
        timeout=lambda _: timeout if trio.current_time() else 1,
    )
    results, _receive = trio.open_memory_channel[ProbeResult](100)
    with pytest.raises(error, match=message):
        await prober.run(results)
    assert trio.current_time() == 1


async def test_exceptions_of_a_function_of_an_endpoint_are_raised_bare(autojump_clock):
    results, _receive = trio.open_memory_channel[ProbeResult](100)
    with pytest.raises(KeyError, match="interval"):
        await make_prober(well, interval=by_label("interval")).run(results)


async def test_ctrl_c_can_end_a_function_of_an_endpoint_and_the_clock(autojump_clock):
    def seconds(endpoint: Endpoint) -> float:
        protected.append(trio.lowlevel.currently_ki_protected())
        return 1

    def clock() -> float:
        protected.append(trio.lowlevel.currently_ki_protected())
        return trio.current_time()

    protected = []
    async with running(make_prober(well, interval=seconds, timeout=seconds, clock=clock)):
        await trio.sleep(1.5)
    assert len(protected) > 6
    assert not any(protected)


# The list


@pytest.mark.parametrize(
    ("intervals", "asked_at"),
    [([3], [0, 3, 6, 9, 12, 15]), ([3_600], [0, 10]), ([3_600, 4], [0, 4, 8, 12, 16])],
)
async def test_targets_is_called_at_the_shortest_interval_or_every_ten_seconds(
    autojump_clock, intervals, asked_at
):
    def targets() -> list[Endpoint]:
        asked.append(trio.current_time())
        return [timed(str(interval), interval) for interval in intervals]

    asked = []
    async with running(make_timed(well, targets)):
        await trio.sleep(17.5)
    assert asked == asked_at


async def test_after_an_empty_list_targets_is_called_at_the_known_interval(
    autojump_clock,
):
    def targets() -> list[Endpoint]:
        return [A] if trio.current_time() > 2.5 else []

    probe = slow(0)
    async with running(make_prober(probe, targets)):
        await trio.sleep(3.999)
    assert times(probe, "a") == [3 + offset_of("a")]


async def test_after_a_late_call_targets_is_not_called_again_at_once(
    autojump_clock,
):
    def targets() -> list[Endpoint]:
        asked.append(trio.current_time())
        return []

    asked = []
    async with running(make_prober(well, targets)):
        await trio.sleep(1.5)
        autojump_clock.jump(7.25)
        await trio.sleep(1.5)
    assert asked == [0, 1, 8.75, 9.75]


async def test_of_many_hourly_targets_that_come_and_go_few_are_kept(autojump_clock):
    numbers = itertools.count()

    def targets() -> list[Endpoint]:
        return [Endpoint(f"{next(numbers)}") for _ in range(500)]

    prober = make_prober(well, targets, interval=3_600)
    async with running(prober):
        await trio.sleep(300)
        assert len(prober._state.session.schedule._heap) < 3_000


async def test_many_targets_are_scheduled_and_old_entries_freed_in_steps(monkeypatch):
    monkeypatch.setattr(_pacing, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(_pacing, "_STEP_TIME", 100)  # targets, or entries
    monkeypatch.setattr(_schedule, "_FREED_BATCH", 1)
    schedule = Schedule(WallClock(trio.current_time), Wakeups())
    targets = {key: Target(Endpoint(key), 0.5, 60) for key in map(str, range(2_000))}
    rounds = []
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(schedule._rebuild, targets, 0)
            turns = 0
            while nursery.child_tasks:
                turns += 1
                await trio.lowlevel.checkpoint()
        rounds.append(turns)
    scheduled, scheduled_and_freed = rounds
    assert 10 <= scheduled <= 40
    assert scheduled_and_freed >= scheduled + 10


# Stalls


async def test_a_stall_affects_targets_of_whose_interval_it_is_a_large_part(autojump_clock):
    probe = slow(0)
    targets = [
        timed(f"{key} {interval}", interval, 50) for key in KEYS for interval in (5, 60)
    ]
    prober = make_timed(probe, targets)
    async with running(prober):
        await trio.sleep_until(119.5)
        autojump_clock.jump(3)
        await trio.sleep_until(180)
    missed = 0
    for target in targets:
        interval = int(target.labels["interval"])
        due = [(k + offset_of(target.key)) * interval for k in range(180 // interval)]
        in_stall = sum(119.5 < time < 122.5 for time in due)
        lost = in_stall if interval == 5 else 0
        assert len(times(probe, target.key)) == len(due) - lost
        missed += lost
    assert prober.statistics().runs_missed == missed > 5


async def test_a_stall_makes_runs_with_a_shorter_timeout_inconclusive(autojump_clock):
    targets = [timed("a", 20, 1), timed("b", 20, 4)]
    async with running(make_timed(hanging(), targets)) as run:
        for key in "ab":
            await trio.sleep_until(20 * offset_of(key) + (20 if key == "b" else 0) + 0.5)
            run.received()
            autojump_clock.jump(2)
            await trio.sleep(5)
            (metrics,) = [metrics for target, metrics in run.received() if target == key]
            assert (metrics["inconclusive"], metrics["timeouts"]) == (
                (1, 0) if key == "a" else (0, 1)
            )


def test_the_newest_stall_above_a_length_is_found_even_if_shorter_ones_followed():
    stalls = Stalls()
    stalls.add(5, 10)
    stalls.add(2, 20)
    assert [stalls.newest_above(length) for length in (1, 3, 6)] == [20, 10, -math.inf]
    stalls.add(5, 30)
    assert [stalls.newest_above(length) for length in (1, 3, 6)] == [30, 30, -math.inf]


# A keeper's prober


async def test_a_prober_of_a_keeper_takes_targets_name_and_clock_from_it(autojump_clock):
    clock = Clock()
    listed = [A]
    keeper = StatsKeeper("http", "homepage", lambda: listed, clock=clock)
    probe = slow(0)
    prober = Prober(probe, keeper, interval=1, timeout=0.5)
    assert (prober.keeper, prober.name, prober.clock) == (keeper, "homepage", clock)
    async with running(prober):
        await trio.sleep_until(1.9)
        listed.append(B)
        await trio.sleep_until(3)
    assert times(probe, "a") == [k + offset_of("a") for k in range(3)]
    assert times(probe, "b") == [2 + offset_of("b")]


def test_arguments_override_what_a_prober_takes_from_its_keeper():
    keeper = StatsKeeper("http", "homepage", list)
    prober = Prober(well, keeper, interval=1, timeout=1, name="other", clock=time.time)
    assert (prober.name, prober.clock) == ("other", time.time)


def test_a_prober_without_a_keeper_has_no_name_and_the_system_clock():
    prober = Prober(well, [A], interval=1, timeout=1)
    assert (prober.keeper, prober.name, prober.clock) == (None, "", time.time)
    assert list(prober.targets()) == [A]
