"""The probe loop.

Theory of operation
===================

`Prober.run` asks for the targets, at the start and then regularly. `Listing` tells which of
them are new, and schedules these, and which are delisted, and cancels their runs. The
others are not touched. In between, `Prober.run` starts a task for each run that is due
(`Runs`), in the order of `Schedule`. While a target has a run that could not begin yet, no
other is started: what comes due meanwhile is counted as missed, so that nothing piles up.

All tasks measure how late they wake up, and so notice when the loop stood still (see
`Wakeups`). Runs that came due meanwhile are missed, and runs that were in flight for longer
than their timeout are inconclusive.

User code can be interrupted by Ctrl-C at any point. The prober's own code can't, as Trio's
nurseries and channels are not safe against it: there, Trio raises KeyboardInterrupt in the
main task instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, cast, final

import attrs
import trio

from ._arguments import integer, is_callable, quote, string
from ._endpoint import Endpoint, endpoints_of, targets_function
from ._health import HealthLog
from ._keeper import StatsKeeper
from ._listing import Listing, PastTargets, Seconds, validate_seconds, validate_times
from ._nursery import open_flat_nursery
from ._plain_values import PlainValue
from ._results import ProbeResult
from ._runs import Probe, Runs
from ._schedule import Schedule, WallClock
from ._targets import Counts
from ._wakeups import Wakeups

# The targets are asked for at least this often.
_MAX_LISTING_INTERVAL = 10.0

# Runs that are started between two checkpoints, if they are short. Their results fit into
# the buffer of a usual channel; if they had to wait for room, each would take half as long
# again (row 9 of the benchmarks).
_STARTED_BATCH = 50

# The clock is looked at this often, at least: each tenth of the shortest interval, within
# these bounds.
_PULSE = 0.1
_MIN_PULSE = 0.05
_MAX_PULSE = 1.0


@final
@attrs.frozen
class ProberStatistics(PlainValue):
    """What a `Prober` has done since it was made."""

    results_sent: int
    """Runs whose result was sent."""

    runs_late: int
    """Runs that began late by more than a tenth of the timeout: they waited for an earlier
    run of their target or for `max_concurrent`, or something held up the loop."""

    runs_missed: int
    """Runs that were left out: the one before could not even begin, or the loop stood
    still when they were due."""

    runs_stuck: int
    """Runs that are stuck now: their probes ignore that their time is up."""

    duplicate_targets: int
    """Targets with the key of an earlier one, summed over all calls of `targets`."""

    targets: int
    """Targets that are probed now."""

    running: int
    """Probes that are running now, stuck ones included."""

    loop_lag: float
    """Seconds that the prober's newest wake-up came late: how busy the loop is."""


def _is_async(probe: object) -> bool:
    while isinstance(probe, partial):
        probe = cast("partial[object]", probe).func
    return iscoroutinefunction(probe) or iscoroutinefunction(type(probe).__call__)


def _async(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value) or not _is_async(value):
        raise TypeError(
            f"{attribute.name} must be an async function of an endpoint, "
            f"got {quote(value)}; for further arguments use functools.partial, not a lambda"
        )


def _seconds(_: object, attribute: attrs.Attribute[Any], value: Seconds) -> None:
    if not callable(value):
        validate_seconds(attribute.name, value)


def _keeper_or_function(
    targets: Callable[[], Iterable[Endpoint]] | Sequence[Endpoint] | StatsKeeper,
) -> Callable[[], Iterable[Endpoint]] | StatsKeeper:
    return targets if isinstance(targets, StatsKeeper) else targets_function(targets)


def _default_name(prober: Prober) -> str:
    return prober.keeper.name if prober.keeper else ""


def _default_clock(prober: Prober) -> Callable[[], float]:
    return prober.keeper.clock if prober.keeper else time.time


@attrs.frozen(eq=False)
class _Session:
    """What a prober has while it runs."""

    wakeups: Wakeups
    schedule: Schedule
    listing: Listing
    runs: Runs


@attrs.define(eq=False)
class _State:
    """What changes as a prober runs."""

    busy: bool = False
    counts: Counts = attrs.field(factory=Counts)
    past: PastTargets = attrs.field(factory=PastTargets)
    session: _Session | None = None
    """Of the newest run."""


@final
@attrs.frozen(eq=False)
class Prober:
    """Run a probe against targets again and again, and send what came of it.

    It runs in the same nursery as the keeper, and feeds it:

        prober = Prober(probe, keeper, interval=5, timeout=2)
        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(prober.run, results_send)

    Each result has the metrics `total`, `success`, `failure`, `timeouts` and
    `inconclusive`; `latency` in seconds, if the run succeeded; and `error`, a map by kind
    of error. That is `timeout`, the reason of a `ProbeFailed` or `Inconclusive`, or the
    class of the exception; for an OSError it is what the system said:
    ConnectionRefusedError, OSError-ENETUNREACH. A target has at most 30 kinds of errors,
    and `other` for those beyond. What a probe returns is added to these, and so are the
    metrics of a `ProbeFailed` or `Inconclusive`.

    A run that is inconclusive counts as nothing else. It is inconclusive if its probe
    raises `Inconclusive`; if this machine has run out of file descriptors, buffers or
    memory (an OSError with EMFILE, ENFILE, ENOBUFS or ENOMEM, also as the cause of what is
    raised); or if the loop stood still for longer than its timeout.

    Each target is due at a fixed time within its interval, a hash of its key, by the wall
    clock: one with an interval of 60 seconds each minute at the same second. So a restart
    does not move it, and two machines agree. If the clock is set, each target is due next
    at its time by the new clock, half an interval after its newest run at the earliest.

    One line is logged when a target begins to fail or to be inconclusive, with the cause,
    and one when it has recovered; of a prober, at most 20 lines in 10 seconds. Tracebacks
    are logged at the level DEBUG.

    Args:
      probe: an async function of an endpoint. It returns None, or a mapping of further
        metrics, if the target is healthy, and raises if it is not. Exceptions, in groups
        too, end the run alone.
      targets: the endpoints to probe: a sequence, a function that returns them, or a
        keeper, whose targets, name and clock are used. The function is called when `run`
        starts, and then once in the shortest interval of all targets, or every 10 seconds
        if that is longer.
      interval: seconds between two runs of a target, at least a microsecond; or a function
        of the endpoint that returns them, which is called whenever the targets are asked
        for. A target with a new interval is due at other times: with one that is new each
        time, such as a random number, it may not be due for long.
      timeout: seconds after which a run is cancelled, and counts as a timeout, even if its
        probe ignores that; or a function like `interval`. If a timeout is longer than the
        interval, runs of a target overlap.
      max_concurrent: how many probes may run at once; None: any number. Stuck ones do not
        count, as they would delay other targets.
      name: what the prober's own statistics have as their label `probe` when they are
        exported. By default the keeper's, if it is given one, or else empty.
      clock: returns the time, in seconds since 1970, that decides when targets are due. By
        default the keeper's, or else `time.time`. Trio's clock measures latencies and
        timeouts. On a mock clock, all is exact with `trio.current_time`.

    Raises:
      TypeError: if `probe` is not async, `targets` is not what it should be, or an argument
        is not a number.
      ValueError: if a number is out of range.
    """

    probe: Probe = attrs.field(validator=_async)

    _targets: Callable[[], Iterable[Endpoint]] | StatsKeeper = attrs.field(
        converter=_keeper_or_function, alias="targets"
    )

    interval: Seconds = attrs.field(kw_only=True, validator=_seconds)

    timeout: Seconds = attrs.field(kw_only=True, validator=_seconds)

    max_concurrent: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(integer(1))
    )

    name: str = attrs.field(
        default=attrs.Factory(_default_name, takes_self=True),
        kw_only=True,
        validator=string,
    )

    clock: Callable[[], float] = attrs.field(
        default=attrs.Factory(_default_clock, takes_self=True),
        kw_only=True,
        validator=is_callable,
    )

    _state: _State = attrs.field(init=False, repr=False, factory=_State)

    def __attrs_post_init__(self) -> None:
        if not (callable(self.interval) or callable(self.timeout)):
            validate_times(self.interval, self.timeout)

    @property
    def keeper(self) -> StatsKeeper | None:
        """The keeper that it was given instead of targets."""
        return self._targets if isinstance(self._targets, StatsKeeper) else None

    @property
    def targets(self) -> Callable[[], Iterable[Endpoint]]:
        """Returns the targets.

        It is called when `run` starts, and then once in the shortest interval of all
        targets, or each 10 seconds if that is longer.
        """
        targets = self._targets
        return targets.targets if isinstance(targets, StatsKeeper) else targets

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        results: trio.MemorySendChannel[ProbeResult],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Probe until cancelled.

        Args:
          results: where the results go. Closed on return.
          task_status: for `nursery.start`, told when the targets were asked for.

        Raises:
          trio.BusyResourceError: if it is running already; the channel is not closed then.
          trio.BrokenResourceError: if the receiving end of `results` is closed.
          TypeError: if `targets`, `interval`, `timeout` or `clock` returned what it must
            not.
          ValueError: like TypeError.
          BaseException: what one of these functions raised. No exception is wrapped in a
            group.
        """
        async with self._session(results) as (endpoints, session):
            task_status.started()
            await self._probe_on(endpoints, session)

    @trio.lowlevel.enable_ki_protection
    async def run_once(self, results: trio.MemorySendChannel[ProbeResult]) -> None:
        """Probe each target once, now, and return when all results are sent.

        No more than `max_concurrent` probes run at once. A probe that ignores its timeout
        has its result sent at the deadline, but is waited for.

        Args:
          results: where the results go. Closed on return.

        Raises: see `run`.
        """
        async with self._session(results) as (endpoints, session):
            await session.listing.update(endpoints)
            for target in session.listing.targets.values():
                if session.wakeups.is_step_over():
                    await session.wakeups.let_others_run()
                session.runs.start(target, None, trio.current_time())

    @asynccontextmanager
    async def _session(
        self, results: trio.MemorySendChannel[ProbeResult]
    ) -> AsyncGenerator[tuple[list[Endpoint], _Session]]:
        """Ask for the targets, and wait for all runs that are started."""
        state = self._state
        if state.busy:
            raise trio.BusyResourceError("this prober is already running")
        state.busy = True
        log = HealthLog(self.name)
        try:
            with results:
                endpoints = endpoints_of(self.targets)
                wall_clock = WallClock(self.clock)
                async with open_flat_nursery() as watching:
                    async with open_flat_nursery() as nursery:
                        session = self._begin(results, wall_clock, nursery, log)
                        watching.start_soon(session.runs.watch)
                        yield endpoints, session
                    watching.cancel_scope.cancel()
        finally:
            if state.session is not None:
                state.session.listing.clear()
            log.tell_held_back(at_once=True)
            state.busy = False

    def _begin(
        self,
        results: trio.MemorySendChannel[ProbeResult],
        wall_clock: WallClock,
        nursery: trio.Nursery,
        log: HealthLog,
    ) -> _Session:
        # Nothing is kept from the run before: Trio's clock may be a different one.
        state = self._state
        wakeups = Wakeups()
        schedule = Schedule(wall_clock, wakeups)
        listing = Listing(
            self.interval, self.timeout, schedule, wakeups, state.counts, state.past
        )
        runs = Runs(
            self.probe,
            trio.Semaphore(self.max_concurrent or sys.maxsize),
            results,
            nursery,
            listing.leaving,
            state.counts,
            wakeups,
            log,
        )
        state.session = _Session(wakeups, schedule, listing, runs)
        return state.session

    def statistics(self) -> ProberStatistics:
        """Return what the prober has done so far."""
        counts, session = self._state.counts, self._state.session
        return ProberStatistics(
            results_sent=counts.results_sent,
            runs_late=counts.runs_late,
            runs_missed=counts.runs_missed,
            runs_stuck=session.runs.stuck if session else 0,
            duplicate_targets=counts.duplicate_targets,
            targets=len(session.listing.targets) if session else 0,
            running=session.runs.running if session else 0,
            loop_lag=session.wakeups.lag if session else 0.0,
        )

    async def _probe_on(self, endpoints: list[Endpoint], session: _Session) -> None:
        """Start each run when it is due, forever."""
        wakeups, schedule, listing = session.wakeups, session.schedule, session.listing
        while True:
            await listing.update(endpoints)
            interval = min(listing.shortest_interval, _MAX_LISTING_INTERVAL)
            pulse = min(max(interval * _PULSE, _MIN_PULSE), _MAX_PULSE)
            list_at = trio.current_time() + interval
            started = 0
            while (due := schedule.next_due()) < list_at or list_at > trio.current_time():
                now = trio.current_time()
                if due > now or started == _STARTED_BATCH or wakeups.is_step_over():
                    await wakeups.sleep_until(min(due, list_at, now + pulse))
                    await schedule.follow_clock(listing.targets)
                    now = trio.current_time()
                    started = 0
                if schedule.next_due() <= now:
                    self._start_next(session, now)
                    started += 1
            asked = trio.current_time()
            endpoints = endpoints_of(self.targets)
            wakeups.woke(asked)  # if that took long, the loop stood still

    def _start_next(self, session: _Session, now: float) -> None:
        """Start the next run that is due, unless it is missed."""
        taken = session.schedule.take(now)
        if taken is None:
            return
        target, skipped = taken
        due = target.last_due
        stalled = not target.missed and session.wakeups.is_missed(
            due, target.interval, target.timeout
        )
        if target.waiting or stalled:
            target.missed = stalled
            skipped += 1
        else:
            session.runs.start(target, due, now)
        self._state.counts.runs_missed += skipped
