"""The probe loop.

Theory of operation
===================

`Prober.run` goes through the targets once per interval, in the order of their offsets
within it, and starts a task for each run that is due. At the beginning of each interval it
asks for the targets: new ones get an offset, delisted ones are cancelled, the others are
not touched.

A run's task (`_run`) waits until the run may begin, has the probe measured, and sends the
result. What it waits for, before and after, is not part of the latency. While a target has
a run that could not begin yet, no other is started: what comes due meanwhile is counted as
missed, so that nothing piles up.

One more task (`_watch`) looks after runs that are still going on after their deadline. It
gives a probe a few turns to end upon its cancellation. A run that does not is stuck: its
result is sent on its behalf, and what its probe returns or raises later is ignored. So
each run has at most one result, from the task that takes it out of `in_flight`. A stuck run
keeps the slot of its target until it really ends, but not its part of `max_concurrent`,
which others need.

Both tasks measure how late they wake up, and so notice when the loop stood still (see
`Wakeups`). Runs that came due meanwhile are missed, and runs that were in flight for longer
than their timeout are inconclusive.

User code can be interrupted by Ctrl-C at any point. The prober's own code can't, as Trio's
nurseries and channels are not safe against it: there, Trio raises KeyboardInterrupt in the
main task instead.
"""

from __future__ import annotations

import math
import sys
from bisect import insort
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from inspect import iscoroutinefunction
from itertools import takewhile
from operator import attrgetter
from time import perf_counter
from typing import Any, TypeAlias, TypeVarTuple, cast, final

import attrs
import trio

from ._checks import above_zero, is_callable, whole
from ._endpoint import Endpoint, checked_endpoint, endpoints_of
from ._exceptions import forget_tracebacks, leaf_exceptions
from ._health import TIMEOUT, Health, HealthLog, cause_of, describe, is_inconclusive
from ._nursery import open_flat_nursery
from ._plain_values import PlainValue
from ._probe_errors import ReasonedError, validate_metrics
from ._results import ProbeResult, Result
from ._schedule import MIN_STALL, Wakeups, offset_of
from ._values import Map, Value, plain_str, quote

Probe: TypeAlias = Callable[[Endpoint], Awaitable[Mapping[str, Value] | None]]
"""Probes an endpoint once: returns, perhaps further metrics, when the endpoint is healthy,
and raises when it is not."""

Ts = TypeVarTuple("Ts")

_SUCCEEDED: Mapping[str, Value] = {
    "total": 1,
    "success": 1,
    "failure": 0,
    "timeouts": 0,
    "inconclusive": 0,
    "error": Map("error", {}),
}
_FAILED = {**_SUCCEEDED, "success": 0, "failure": 1}
_TIMED_OUT = {**_FAILED, "timeouts": 1, "error": Map("error", {TIMEOUT: 1})}
_INCONCLUSIVE = {**_SUCCEEDED, "total": 0, "success": 0, "inconclusive": 1}

# Seconds of going through the targets, which are many, between two checkpoints. In a busy
# loop, a step that is counted in targets would take more turns than an interval has.
_STEP_TIME = 0.0005

# Runs that are ended, or given up, between two checkpoints.
_STARTING_STEP = 25

# The share of the timeout by which a run may begin late without being called so.
_LATENESS = 0.1

# What a probe has to end after its timeout, before it is called stuck: a share of the
# timeout, in which to end a process, say, and then turns of the scheduler, of which each
# nursery in it needs two.
_GRACE = 0.01
_GRACE_TURNS = 10

# The watch wakes up this often: each tenth of the timeout, but not more often than that.
_PULSE = 0.1
_MIN_PULSE = 0.01

# Delisted targets of which it is remembered how they failed.
_MAX_DELISTED = 1_000


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


class _Delisted(Exception):
    """The target of a run is not listed any more."""


@attrs.define(eq=False)
class _Run:
    """A run, from its start until its result is sent.

    What it waits for seldom takes time. So it has no cancel scope around all, but one where
    it does wait, and the probe has one for its timeout anyway: a scope takes a seventh of
    the prober's time for a run (row 9 of the benchmarks).
    """

    target: _Target
    delisted: bool = False
    scope: trio.CancelScope | None = None
    """Where it waits, or waited last."""
    began: float = math.inf
    deadline: float = math.inf
    sent: trio.Semaphore | None = None
    """If it is stuck: released when the result was sent on its behalf."""

    def end(self) -> None:
        """Have it end without a result, for its target is delisted."""
        self.delisted = True
        assert self.scope is not None  # it waits: else it were not others' turn
        self.scope.cancel()

    async def wait(
        self,
        now: Callable[[*Ts], None],
        later: Callable[[*Ts], Awaitable[None]],
        *args: *Ts,
    ) -> None:
        """Call `now`, or await `later` if that would block; raise `_Delisted` if ended."""
        try:
            now(*args)
        except trio.WouldBlock:
            pass
        else:
            return  # noqa: ASYNC910  # a turn of the scheduler takes as long as a scope
        if self.delisted:
            raise _Delisted
        with trio.CancelScope() as self.scope:
            await later(*args)
        if self.scope.cancelled_caught:
            raise _Delisted


@attrs.define(eq=False)
class _Target:
    """A target, and its runs in progress."""

    endpoint: Endpoint
    offset: float
    """Seconds from the beginning of an interval to its runs."""
    slots: trio.Semaphore
    """For the runs that may overlap."""
    interval: int = -1
    """The number of the interval in which it was listed last."""
    waiting: bool = False
    """Whether a run of it has not begun yet."""
    missed: bool = False
    """Whether its newest run was missed because of a stall: the next one is not."""
    runs: set[_Run] = attrs.field(factory=set[_Run])
    """Those in progress."""
    health: Health | None = None
    """None while it has never failed."""


@attrs.define(eq=False)
class _Progress:
    """What changes as a prober runs."""

    busy: bool = False
    results_sent: int = 0
    runs_late: int = 0
    runs_missed: int = 0
    duplicate_targets: int = 0
    # Runs whose probe is running, and whose result was not sent on their behalf. They are
    # in the order in which they began, which is nearly that of their deadlines.
    in_flight: dict[_Run, None] = attrs.field(factory=dict[_Run, None])
    # Set when a run begins while the watch waits for one, and when that was.
    wanted: trio.Event | None = None
    wanted_at: float = -math.inf
    runs_stuck: int = 0
    targets: dict[str, _Target] = attrs.field(factory=dict[str, _Target])
    # The same, by offset.
    order: list[_Target] = attrs.field(factory=list[_Target])
    # Targets that are delisted, but whose cancelled runs are not over.
    leaving: dict[str, _Target] = attrs.field(factory=dict[str, _Target])
    # The health of delisted targets, so that one which comes and goes is not news.
    delisted: OrderedDict[str, Health] = attrs.field(factory=OrderedDict[str, Health])
    log: HealthLog = attrs.field(factory=HealthLog)
    wakeups: Wakeups = attrs.field(factory=Wakeups)

    def remember_health(self, target: _Target) -> None:
        """Keep the health of a target that is delisted."""
        if target.health is not None:
            self.delisted[target.endpoint.key] = target.health
            if len(self.delisted) > _MAX_DELISTED:
                self.delisted.popitem(last=False)


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


@final
@attrs.frozen(eq=False)
class Prober:
    """Run a probe against targets again and again, and send what came of it.

    It runs in the same nursery as the keeper, and feeds it:

        prober = Prober(probe, targets, interval=5, timeout=2)
        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(prober.run, results_send)

    Each result has the metrics `total`, `success`, `failure`, `timeouts` and
    `inconclusive`; `latency` in seconds, if the run succeeded; and `error`, a map by kind
    of error, which is `timeout`, or the class of the exception. For an OSError it is what
    the system said: ConnectionRefusedError, OSError-ENETUNREACH. A target has at most 30
    kinds of errors, and `other` for those beyond. What a probe returns is added to these.

    A run is inconclusive if the loop stood still for longer than its timeout: it counts as
    nothing else then.

    One line is logged when a target begins to fail, with the cause, and one when it has
    recovered; of a prober, at most 20 lines in 10 seconds. Tracebacks are logged at the
    level DEBUG.

    Raises:
      TypeError: if `probe` is not async, `targets` is not callable, or an argument is not a
        number.
      ValueError: if a number is out of range.
    """

    probe: Probe = attrs.field(validator=_async)
    """An async function of an endpoint. It returns None, or a mapping of further metrics,
    if the target is healthy, and raises if it is not. Exceptions, in groups too, end the
    run alone."""

    targets: Callable[[], Iterable[Endpoint]] = attrs.field(validator=is_callable)
    """Returns the targets: what the keeper takes, too. Called at each interval's start."""

    interval: float = attrs.field(kw_only=True, validator=above_zero)
    """Seconds between two runs of a target. Where they lie within the interval depends on
    the target's key alone, so that all do not start at once."""

    timeout: float = attrs.field(kw_only=True, validator=above_zero)
    """Seconds after which a run is cancelled, and counts as a timeout, even if its probe
    ignores that. If that is longer than the interval, runs of a target overlap."""

    max_concurrent: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(whole(1))
    )
    """How many probes may run at once; None: any number. Stuck ones do not count, as they
    would delay other targets."""

    name: str = attrs.field(
        default="", kw_only=True, validator=attrs.validators.instance_of(str)
    )
    """What the prober's own statistics have as their label `probe` when they are exported;
    best that of its keeper."""

    _progress: _Progress = attrs.field(init=False, repr=False, factory=_Progress)

    def __attrs_post_init__(self) -> None:
        if math.isinf(self.timeout / self.interval):
            raise ValueError(
                f"timeout must be a countable number of intervals, got {self.timeout!r} "
                f"and an interval of {self.interval!r}"
            )

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
          task_status: for `nursery.start`, told when the start of the intervals is fixed.

        Raises:
          trio.BusyResourceError: if it is running already; the channel is not closed then.
          trio.BrokenResourceError: if the receiving end of `results` is closed.
          BaseException: what `targets` raised. No exception is wrapped in a group.
        """
        progress = self._progress
        if progress.busy:
            raise trio.BusyResourceError("this prober is already running")
        progress.busy = True
        # Trio's clock may be another one than in the run before.
        progress.log = HealthLog(self.name)
        progress.wakeups = Wakeups(self.interval, self.timeout)
        try:
            with results:
                endpoints = endpoints_of(self.targets)
                task_status.started()
                limit = trio.Semaphore(self.max_concurrent or sys.maxsize)
                async with open_flat_nursery() as runs:
                    runs.start_soon(self._watch, limit, results, runs)
                    await self._start_runs(endpoints, limit, results, runs)
        finally:
            progress.wanted = None
            for target in progress.order:
                progress.remember_health(target)
            progress.log.tell_held_back(at_once=True)
            progress.targets.clear()
            progress.order.clear()
            progress.busy = False

    def statistics(self) -> ProberStatistics:
        """Return what the prober has done so far."""
        progress = self._progress
        return ProberStatistics(
            results_sent=progress.results_sent,
            runs_late=progress.runs_late,
            runs_missed=progress.runs_missed,
            runs_stuck=progress.runs_stuck,
            duplicate_targets=progress.duplicate_targets,
            targets=len(progress.targets),
            running=len(progress.in_flight) + progress.runs_stuck,
            loop_lag=progress.wakeups.lag,
        )

    async def _start_runs(
        self,
        endpoints: list[Endpoint],
        limit: trio.Semaphore,
        results: trio.MemorySendChannel[ProbeResult],
        runs: trio.Nursery,
    ) -> None:
        """Start each run when it is due, forever."""
        progress = self._progress
        wakeups = progress.wakeups
        start = trio.current_time()
        interval = 0
        while True:
            await self._relist(endpoints, interval)
            begin = start + interval * self.interval
            pause_at = perf_counter() + _STEP_TIME
            for target in progress.order:
                due = begin + target.offset
                now = trio.current_time()
                if due > now or perf_counter() >= pause_at:
                    await wakeups.sleep_until(due)
                    now = trio.current_time()
                    pause_at = perf_counter() + _STEP_TIME
                stalled = due < wakeups.missed_before and not target.missed
                if target.waiting or stalled:
                    target.missed = stalled
                    progress.runs_missed += 1
                else:
                    target.waiting = True
                    runs.start_soon(self._run, target, due, now, limit, results)
            interval = await self._next_interval(start, interval)
            asked = trio.current_time()
            endpoints = endpoints_of(self.targets)
            wakeups.woke(asked)  # if that took long, the loop stood still

    async def _next_interval(self, start: float, last: int) -> int:
        """Wait for the interval after `last`; if it is past, go on with the current one."""
        await self._progress.wakeups.sleep_until(start + (last + 1) * self.interval)
        now = math.floor((trio.current_time() - start) / self.interval)
        skipped = max(now - last - 1, 0)
        self._progress.runs_missed += skipped * len(self._progress.order)
        return last + 1 + skipped

    async def _relist(self, endpoints: list[Endpoint], interval: int) -> None:
        """Give new targets an offset, and cancel those that are delisted."""
        now = trio.current_time()
        progress = self._progress
        # A run that was just started is in progress only after a checkpoint.
        await progress.wakeups.sleep_until(now)
        pause_at = perf_counter() + _STEP_TIME
        listed = 0
        for endpoint in endpoints:
            if perf_counter() >= pause_at:
                await progress.wakeups.sleep_until(now)
                pause_at = perf_counter() + _STEP_TIME
            key = checked_endpoint(endpoint).key
            target = progress.targets.get(key)
            if target is None:
                target = progress.targets[key] = self._new_target(endpoint)
                insort(progress.order, target, key=attrgetter("offset"))
            elif target.interval == interval:
                progress.duplicate_targets += 1
                continue
            target.endpoint = endpoint
            target.interval = interval
            listed += 1
        if listed == len(progress.order):
            return
        delisted = [target for target in progress.order if target.interval != interval]
        progress.order[:] = [t for t in progress.order if t.interval == interval]
        while delisted:
            target = delisted.pop()
            key = target.endpoint.key
            del progress.targets[key]
            progress.remember_health(target)
            if target.runs:
                progress.leaving[key] = target
            for run in target.runs:
                run.end()
            if len(delisted) % _STARTING_STEP == 0:
                await progress.wakeups.sleep_until(now)

    def _new_target(self, endpoint: Endpoint) -> _Target:
        key = endpoint.key
        # If it was listed before, and has runs that are still not over, these count.
        target = self._progress.leaving.pop(key, None)
        if target is None:
            overlap = math.ceil(self.timeout / self.interval)
            offset = offset_of(key) * self.interval
            target = _Target(endpoint, offset, trio.Semaphore(max(overlap, 1)))
        target.health = self._progress.delisted.pop(key, target.health)
        return target

    @trio.lowlevel.enable_ki_protection
    async def _run(  # noqa: ASYNC910  # `_Delisted` is raised where it waited
        self,
        target: _Target,
        due: float,
        started: float,
        limit: trio.Semaphore,
        results: trio.MemorySendChannel[ProbeResult],
    ) -> None:
        """Wait until the run may begin, measure the probe, and send the result."""
        progress = self._progress
        run = _Run(target)
        target.runs.add(run)
        try:
            await run.wait(target.slots.acquire_nowait, target.slots.acquire)
            try:
                await run.wait(limit.acquire_nowait, limit.acquire)
                try:
                    deltas = await self._measure(run, due, started)
                finally:
                    if run.sent is None:
                        limit.release()
                if deltas is not None:
                    result = Result(target.endpoint.key, deltas)
                    await run.wait(results.send_nowait, results.send, result)
                    progress.results_sent += 1
                elif run.sent is not None:
                    await run.wait(run.sent.acquire_nowait, run.sent.acquire)
            finally:
                target.slots.release()
        except _Delisted:
            pass
        finally:
            if run.began == math.inf:
                target.waiting = False
            target.runs.discard(run)
            if not target.runs:
                progress.leaving.pop(target.endpoint.key, None)

    async def _measure(
        self, run: _Run, due: float, started: float
    ) -> Mapping[str, Value] | None:
        """Run the probe, and return what the run adds to the metrics.

        That is None if the run is missed, or if the result was sent on its behalf.
        """
        progress = self._progress
        target = run.target
        begin = trio.current_time()
        # What begins a little late ends in time nevertheless: the next run may have to wait
        # for it, and the next, and delays would add up.
        deadline = due + self.timeout
        if begin - due > self.timeout * _LATENESS:
            if begin - started > MIN_STALL and self._is_missed(run, due, started):
                return None  # noqa: ASYNC910  # see `_run`
            progress.runs_late += 1
            begin = trio.current_time()
            deadline = begin + self.timeout
        if run.delisted:
            raise _Delisted
        error: BaseException | None = None
        further: Mapping[str, Value] = {}
        target.waiting = target.missed = False
        run.began = begin
        run.deadline = deadline
        progress.in_flight[run] = None
        if progress.wanted is not None:
            progress.wanted_at = begin
            progress.wanted.set()
            progress.wanted = None
        try:
            with trio.CancelScope(deadline=deadline) as run.scope:
                further = await self._probe(target.endpoint)
        except Exception as raised:  # noqa: BLE001  # whatever it is, the run has failed
            error = raised
        except BaseExceptionGroup as group:
            _raise_exit(group)
            error = group
        finally:
            if run.sent is None:
                del progress.in_flight[run]
            else:
                progress.runs_stuck -= 1
        end = trio.current_time()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if end >= deadline:
                # If the loop stood still, the watch wakes up by the next turn.
                await trio.lowlevel.cancel_shielded_checkpoint()
            return self._result(run, end, error, further)  # noqa: ASYNC910  # see `_run`
        finally:
            if error is not None:
                forget_tracebacks(error)

    def _is_missed(self, run: _Run, due: float, started: float) -> bool:
        """Count a run as missed if the loop has stood still; return whether it has."""
        wakeups = self._progress.wakeups
        if run.scope is None:  # it has waited for nothing but the loop
            wakeups.woke(started)
        missed = due < wakeups.missed_before and not run.target.missed
        run.target.missed = missed
        self._progress.runs_missed += missed
        return missed

    @trio.lowlevel.disable_ki_protection
    async def _probe(self, endpoint: Endpoint) -> Mapping[str, Value]:
        return validate_metrics(await self.probe(endpoint))

    def _result(
        self,
        run: _Run,
        end: float,
        error: BaseException | None,
        further: Mapping[str, Value],
    ) -> Mapping[str, Value] | None:
        """Return what a run that ended adds to the metrics; None if that was sent."""
        if run.delisted:
            raise _Delisted
        if run.sent is not None:
            return None
        # However it ended: a probe may not even have noticed that its time was up.
        if end >= run.deadline:
            return self._time_out(run, TIMEOUT, f"timed out after {self.timeout:g} s")
        if error is not None:
            return self._raised(run.target, error)
        if run.target.health is not None:
            self._progress.log.succeeded(run.target.endpoint.key, run.target.health)
        return {**_SUCCEEDED, "latency": end - run.began, **further}

    def _raised(self, target: _Target, error: BaseException) -> Mapping[str, Value]:
        """Return what a run whose probe raised adds to the metrics."""
        cause = cause_of(error)
        further: Mapping[str, Value] = {}
        if isinstance(cause, ReasonedError):
            try:
                further = validate_metrics(cause.metrics)
                plain_str(cause.reason)
            except Exception as broken:  # noqa: BLE001  # a subclass may be anything
                cause = broken.with_traceback(None)
        health = target.health = target.health or Health()
        key = health.key(cause)
        inconclusive = is_inconclusive(cause)
        log = self._progress.log.inconclusive if inconclusive else self._progress.log.failed
        log(target.endpoint.key, health, key, describe(cause), error)
        counts = _INCONCLUSIVE if inconclusive else _FAILED
        return {**counts, "error": Map("error", {key: 1}), **further}

    def _time_out(self, run: _Run, what: str, cause: str) -> Mapping[str, Value]:
        """Return what a run whose time is up adds to the metrics."""
        if run.began < self._progress.wakeups.inconclusive_before:
            return dict(_INCONCLUSIVE)
        target = run.target
        health = target.health = target.health or Health()
        self._progress.log.failed(target.endpoint.key, health, what, cause)
        return dict(_TIMED_OUT)

    @trio.lowlevel.enable_ki_protection
    async def _watch(
        self,
        limit: trio.Semaphore,
        results: trio.MemorySendChannel[ProbeResult],
        runs: trio.Nursery,
    ) -> None:
        """Send the results of runs that are stuck, forever."""
        progress = self._progress
        pulse = max(self.timeout * _PULSE, _MIN_PULSE)
        grace = self.timeout * _GRACE
        while True:
            progress.log.tell_held_back()
            now = trio.current_time()
            first = next(iter(progress.in_flight), None)
            if first is None:
                progress.wanted = trio.Event()
                await progress.wanted.wait()
                progress.wakeups.woke(progress.wanted_at)
                continue
            # No run that begins while it sleeps has a deadline before the next pulse.
            until = min(max(first.deadline, now) + grace, now + pulse)
            await progress.wakeups.sleep_until(until)
            overdue = self._overdue(trio.current_time() - grace)
            for _ in range(_GRACE_TURNS if overdue else 0):
                await progress.wakeups.sleep_until(until)
            for count, run in enumerate(overdue, 1):
                if run in progress.in_flight:
                    self._give_up(run, results, runs)
                    limit.release()
                if count % _STARTING_STEP == 0:
                    await trio.lowlevel.checkpoint()

    def _overdue(self, since: float) -> list[_Run]:
        """Return the runs in flight whose time was up at `since`."""
        return [*takewhile(lambda run: run.deadline <= since, self._progress.in_flight)]

    def _give_up(
        self,
        run: _Run,
        results: trio.MemorySendChannel[ProbeResult],
        runs: trio.Nursery,
    ) -> None:
        """Call a run stuck, and have its result sent on its behalf."""
        progress = self._progress
        del progress.in_flight[run]
        progress.runs_stuck += 1
        run.sent = trio.Semaphore(0)
        # Not by the key of a timeout: this is news though the target has timed out before.
        cause = f"stuck: it ignores its timeout of {self.timeout:g} s"
        deltas = self._time_out(run, "stuck", cause)
        if not run.delisted:
            result = Result(run.target.endpoint.key, deltas)
            runs.start_soon(self._send_on_behalf, run.sent, result, results)

    @trio.lowlevel.enable_ki_protection
    async def _send_on_behalf(
        self,
        sent: trio.Semaphore,
        result: ProbeResult,
        results: trio.MemorySendChannel[ProbeResult],
    ) -> None:
        await results.send(result)
        self._progress.results_sent += 1
        sent.release()


def _raise_exit(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise what `group` holds that is not an Exception.

    That is a KeyboardInterrupt or the like, else the `Cancelled` of a cancellation from
    outside, whose place nothing that was raised besides may take.
    """
    exits = [leaf for leaf in leaf_exceptions(group) if not isinstance(leaf, Exception)]
    if exits:
        raise min(exits, key=lambda leaf: isinstance(leaf, trio.Cancelled)) from None
