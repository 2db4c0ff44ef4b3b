"""The probe loop.

Theory of operation
===================

`Prober.run` goes through the targets once per interval, in the order of their places within
it, and starts a task for each run that is due. At the beginning of each interval it asks
for the targets: those that are new get a place, those that are gone are cancelled, the
others are not touched.

A run's task (`_run`) waits until the run may begin, has the probe measured, and sends the
result. What it waits for, before and after, is no part of the latency. While a target has
a run that could not begin yet, no other is started: what comes due meanwhile is counted as
missed, so that nothing piles up.
"""

from __future__ import annotations

import logging
import math
import sys
from bisect import insort
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from hashlib import blake2b
from inspect import iscoroutinefunction
from operator import attrgetter
from typing import Any, TypeAlias, TypeVarTuple, cast, final

import attrs
import trio

from ._checks import above_zero, is_callable, whole
from ._endpoint import Endpoint, checked_endpoint, endpoints_of
from ._nursery import leaf_exceptions, open_flat_nursery
from ._totals import PlainResult, ProbeResult
from ._values import Map, Value, quote

Probe: TypeAlias = Callable[[Endpoint], Awaitable[Mapping[str, Value] | None]]
"""Probes an endpoint once: returns, perhaps further metrics, when the endpoint is well, and
raises when it is not."""

Ts = TypeVarTuple("Ts")

_logger = logging.getLogger("trio_statskeeper")

_NO_ERROR = Map("error", {})

# The metrics of every run, which a probe can't return.
_OWN_METRICS = frozenset(("total", "success", "failure", "timeouts", "latency", "error"))

# Targets that are gone through, and runs that are started, between two checkpoints: each
# some tenths of a millisecond.
_STEP = 100
_STARTING_STEP = 25

# The share of the timeout by which a run may begin late without being called so.
_LATENESS = 0.1


@final
@attrs.frozen
class ProberStatistics:
    """What a `Prober` has done since it was made."""

    results_sent: int
    """Runs whose result was sent."""

    runs_late: int
    """Runs that began late by more than a tenth of the timeout: they waited for an earlier
    run of their target or for `max_concurrent`, or something held up the loop."""

    runs_missed: int
    """Runs that were left out: the one before could not even begin, or the loop stood
    still for an interval or more."""

    duplicates: int
    """Targets with the key of an earlier one, summed over all calls of `targets`."""

    targets: int
    """Targets that are probed now."""

    running: int
    """Probes that are running now."""


class _Gone(Exception):
    """The target of a run is not listed any more."""


@attrs.define(eq=False)
class _Run:
    """A run, from its start until its result is sent.

    What it waits for seldom takes time. So it has no cancel scope around all, but one where
    it does wait, and the probe has one for its timeout anyway: a scope takes a seventh of
    the prober's time for a run (row 9 of the benchmarks).
    """

    gone: bool = False
    scope: trio.CancelScope | None = None
    """Where it waits, or waited last."""

    def end(self) -> None:
        """Have it end without a result, for its target is gone."""
        self.gone = True
        assert self.scope is not None  # it waits: else it were not others' turn
        self.scope.cancel()

    async def wait(
        self,
        now: Callable[[*Ts], None],
        later: Callable[[*Ts], Awaitable[None]],
        *args: *Ts,
    ) -> None:
        """Call `now`, or await `later` where that would block; raise `_Gone` if ended."""
        try:
            now(*args)
        except trio.WouldBlock:
            pass
        else:
            return  # noqa: ASYNC910  # a turn of the scheduler takes as long as a scope
        if self.gone:
            raise _Gone
        with trio.CancelScope() as self.scope:
            await later(*args)
        if self.scope.cancelled_caught:
            raise _Gone


@attrs.define(eq=False)
class _Target:
    """A target, and its runs in progress."""

    endpoint: Endpoint
    place: float
    """Seconds from the beginning of an interval."""
    slots: trio.Semaphore
    """For the runs that may overlap."""
    interval: int = -1
    """The number of the interval in which it was listed last."""
    waiting: bool = False
    """Whether a run of it has not begun yet."""
    runs: set[_Run] = attrs.field(factory=set[_Run])
    """Those in progress."""
    logged: set[type[BaseException]] = attrs.field(factory=set[type[BaseException]])
    """The classes of exceptions that were logged."""


@attrs.define(eq=False)
class _Progress:
    """What changes as a prober runs."""

    busy: bool = False
    results_sent: int = 0
    runs_late: int = 0
    runs_missed: int = 0
    duplicates: int = 0
    running: int = 0
    targets: dict[str, _Target] = attrs.field(factory=dict[str, _Target])
    # The same, by place.
    order: list[_Target] = attrs.field(factory=list[_Target])
    # Targets that are gone, but whose cancelled runs are not over.
    leaving: dict[str, _Target] = attrs.field(factory=dict[str, _Target])


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

    Each result has the metrics `total`, `success`, `failure` and `timeouts`; `latency` in
    seconds, if the run succeeded; and `error`, a map by class of exception, where `timeout`
    stands for a timeout. What a probe returns is added to these.

    Raises:
      TypeError: if `probe` is not async, `targets` not callable, or a number none.
      ValueError: if a number is out of range.
    """

    probe: Probe = attrs.field(validator=_async)
    """An async function of an endpoint. It returns None, or a mapping of further metrics,
    if the target is well, and raises if it is not. Exceptions, in groups too, end the run
    alone; the first of each class and target is logged."""

    targets: Callable[[], Iterable[Endpoint]] = attrs.field(validator=is_callable)
    """Returns the targets: what the keeper takes, too. Called at each interval's start."""

    interval: float = attrs.field(kw_only=True, validator=above_zero)
    """Seconds between two runs of a target. Where they lie within the interval depends on
    the target's key alone, so that all do not start at once."""

    timeout: float = attrs.field(kw_only=True, validator=above_zero)
    """Seconds after which a run is cancelled. If that is longer than the interval, runs of
    a target overlap."""

    max_concurrent: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(whole(1))
    )
    """How many probes may run at once; None: any number."""

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
          trio.BrokenResourceError: if nobody listens to `results` any more.
          BaseException: what `targets` raised. No exception is wrapped in a group.
        """
        progress = self._progress
        if progress.busy:
            raise trio.BusyResourceError("this prober is already running")
        progress.busy = True
        try:
            with results:
                start = trio.current_time()
                endpoints = endpoints_of(self.targets)
                task_status.started()
                async with open_flat_nursery() as runs:
                    await self._start_runs(start, endpoints, results, runs)
        finally:
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
            duplicates=progress.duplicates,
            targets=len(progress.targets),
            running=progress.running,
        )

    async def _start_runs(
        self,
        start: float,
        endpoints: list[Endpoint],
        results: trio.MemorySendChannel[ProbeResult],
        runs: trio.Nursery,
    ) -> None:
        """Start each run when it is due, for ever."""
        progress = self._progress
        limit = trio.Semaphore(self.max_concurrent or sys.maxsize)
        interval = 0
        while True:
            await self._relist(endpoints, interval)
            begin = start + interval * self.interval
            for count, target in enumerate(progress.order, 1):
                due = begin + target.place
                if due > trio.current_time():
                    await trio.sleep_until(due)
                elif count % _STARTING_STEP == 0:
                    await trio.lowlevel.checkpoint()
                if target.waiting:
                    progress.runs_missed += 1
                else:
                    target.waiting = True
                    runs.start_soon(self._run, target, due, limit, results)
            interval = await self._next_interval(start, interval)
            endpoints = endpoints_of(self.targets)

    async def _next_interval(self, start: float, last: int) -> int:
        """Wait for the interval after `last`; if it is past, go on with that of now."""
        await trio.sleep_until(start + (last + 1) * self.interval)
        now = math.floor((trio.current_time() - start) / self.interval)
        skipped = max(now - last - 1, 0)
        self._progress.runs_missed += skipped * len(self._progress.order)
        return last + 1 + skipped

    async def _relist(self, endpoints: list[Endpoint], interval: int) -> None:
        """Give new targets a place, and cancel those that are gone."""
        # A run that was just started is in progress only after a checkpoint.
        await trio.lowlevel.checkpoint()
        progress = self._progress
        for count, endpoint in enumerate(endpoints, 1):
            key = checked_endpoint(endpoint).key
            target = progress.targets.get(key)
            if target is None:
                target = progress.targets[key] = self._new_target(endpoint)
                insort(progress.order, target, key=attrgetter("place"))
            elif target.interval == interval:
                progress.duplicates += 1
                continue
            target.endpoint = endpoint
            target.interval = interval
            if count % _STEP == 0:
                await trio.lowlevel.checkpoint()
        gone = [target for target in progress.order if target.interval != interval]
        progress.order[:] = [t for t in progress.order if t.interval == interval]
        while gone:
            target = gone.pop()
            key = target.endpoint.key
            del progress.targets[key]
            if target.runs:
                progress.leaving[key] = target
            for run in target.runs:
                run.end()
            if len(gone) % _STARTING_STEP == 0:
                await trio.lowlevel.checkpoint()

    def _new_target(self, endpoint: Endpoint) -> _Target:
        key = endpoint.key
        # If it was listed before, and has runs that are still not over, these count.
        target = self._progress.leaving.pop(key, None)
        if target is None:
            overlap = math.ceil(self.timeout / self.interval)
            place = _share(key) * self.interval
            target = _Target(endpoint, place, trio.Semaphore(max(overlap, 1)))
        return target

    @trio.lowlevel.enable_ki_protection
    async def _run(  # noqa: ASYNC910  # `_Gone` is raised where it waited
        self,
        target: _Target,
        due: float,
        limit: trio.Semaphore,
        results: trio.MemorySendChannel[ProbeResult],
    ) -> None:
        """Wait until the run may begin, measure the probe, and send the result."""
        progress = self._progress
        run = _Run()
        target.runs.add(run)
        began = False
        try:
            await run.wait(target.slots.acquire_nowait, target.slots.acquire)
            try:
                await run.wait(limit.acquire_nowait, limit.acquire)
                began = True
                target.waiting = False
                progress.running += 1
                try:
                    deltas = await self._measure(target, run, due)
                finally:
                    progress.running -= 1
                    limit.release()
                result = PlainResult(target.endpoint.key, deltas)
                await trio.lowlevel.checkpoint_if_cancelled()
                await run.wait(results.send_nowait, results.send, result)
                progress.results_sent += 1
            finally:
                target.slots.release()
        except _Gone:
            pass
        finally:
            if not began:
                target.waiting = False
            target.runs.discard(run)
            if not target.runs:
                progress.leaving.pop(target.endpoint.key, None)

    async def _measure(self, target: _Target, run: _Run, due: float) -> dict[str, Value]:
        """Run the probe, and return what the run adds to the metrics."""
        if run.gone:
            raise _Gone
        error = None
        further: Mapping[str, Value] = {}
        start = trio.current_time()
        # What begins a little late ends in time nevertheless: the next run may have to wait
        # for it, and the next, and delays would add up.
        if start - due > self.timeout * _LATENESS:
            self._progress.runs_late += 1
            deadline = start + self.timeout
        else:
            deadline = due + self.timeout
        try:
            with trio.CancelScope(deadline=deadline) as run.scope:
                further = _checked(await self._probe(target.endpoint))
        except Exception as raised:  # noqa: BLE001  # whatever it is, the run has failed
            error = self._error(target, raised)
        except BaseExceptionGroup as group:
            cancelled = _but_exceptions(group)
            if cancelled is not None:
                # From outside: what else was raised must not take its place.
                raise cancelled from None
            error = self._error(target, group)
        if run.gone:
            raise _Gone
        end = trio.current_time()
        # However it ended: a probe may not even have noticed that its time was up.
        timed_out = end >= deadline
        if timed_out:
            error, further = "timeout", {}
        deltas: dict[str, Value] = {
            "total": 1,
            "success": int(error is None),
            "failure": int(error is not None),
            "timeouts": int(timed_out),
        }
        if error is None:
            deltas["latency"] = end - start
        deltas["error"] = _NO_ERROR if error is None else Map("error", {error: 1})
        deltas.update(further)
        return deltas  # noqa: ASYNC910  # `_run` has checkpoints

    @trio.lowlevel.disable_ki_protection
    async def _probe(self, endpoint: Endpoint) -> Mapping[str, Value] | None:
        """Await the probe: Ctrl-C can end it even if it loops without a checkpoint."""
        return await self.probe(endpoint)

    def _error(self, target: _Target, raised: BaseException) -> str:
        """Return the name of the exception's class, and log the first of that class."""
        error = next(leaf_exceptions(raised))
        if type(error) not in target.logged:
            target.logged.add(type(error))
            _logger.warning("%s: the probe failed", target.endpoint.key, exc_info=raised)
        return type(error).__name__


def _but_exceptions(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return a KeyboardInterrupt or the like, else a `Cancelled`, else None."""
    exits = [leaf for leaf in leaf_exceptions(group) if not isinstance(leaf, Exception)]
    return min(exits, key=lambda leaf: isinstance(leaf, trio.Cancelled), default=None)


def _share(key: str) -> float:
    """Return where in an interval a target has its place, from 0 to 1: its key's hash."""
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _checked(metrics: Mapping[str, Value] | None) -> Mapping[str, Value]:
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"a probe must return metrics or None, not {quote(metrics)}")
    if taken := _OWN_METRICS & metrics.keys():
        raise ValueError(f"a probe can't return {sorted(taken)}: the prober counts those")
    return dict(metrics)
