"""The runs of a prober: from when one is started until its result is sent.

A run's task waits until the run may begin, has the probe measured, and sends the result.
What it waits for, before and after, is not part of the latency.

One more task (`watch`) looks after runs that are still going on after their deadline. It
gives a probe a few turns to end upon its cancellation. A run that does not is stuck: its
result is sent on its behalf, and what its probe returns or raises later is ignored. So
each run has at most one result, from the task that takes it out of `in_flight`. A stuck
run keeps the slot of its target until it really ends, but not its part of `limit`, which
others need.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import attrs
import trio

from ._arguments import plain_str
from ._endpoint import Endpoint
from ._exceptions import forget_tracebacks, leaf_exceptions
from ._health import TIMEOUT, Health, HealthLog, cause_of, describe, is_inconclusive
from ._in_flight import InFlight
from ._probe_errors import ReasonedError, validate_metrics
from ._results import ProbeResult, unchecked_result
from ._targets import Counts, Delisted, Run, Target
from ._values import Map, Value
from ._wakeups import MIN_STALL, Wakeups

Probe: TypeAlias = Callable[[Endpoint], Awaitable[Mapping[str, Value] | None]]
"""Probes an endpoint once: returns, perhaps further metrics, when the endpoint is healthy,
and raises when it is not."""

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

# Runs that are given up between two checkpoints.
_GIVEN_UP_BATCH = 25

# The share of the timeout by which a run may begin late without being called so.
_MAX_LATENESS = 0.1

# The turns of the scheduler that an overdue probe has to end before it is called stuck, of
# which each nursery in it needs two.
_GRACE_TURNS = 10


@attrs.define(eq=False)
class Runs:
    """Starts runs in a nursery, and watches over them."""

    probe: Probe
    limit: trio.Semaphore
    """How many probes may run at once."""
    results: trio.MemorySendChannel[ProbeResult]
    nursery: trio.Nursery
    leaving: dict[str, Target]
    """Targets that are delisted, but whose cancelled runs are not over."""
    counts: Counts
    wakeups: Wakeups
    log: HealthLog
    in_flight: InFlight = attrs.field(init=False)
    stuck: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.in_flight = InFlight(self.wakeups)

    @property
    def running(self) -> int:
        return len(self.in_flight) + self.stuck

    def start(self, target: Target, due: float | None, now: float) -> None:
        """Start a run of a target that was due then; None: whenever it may begin."""
        target.waiting = True
        self.nursery.start_soon(self._run, target, due, now)

    @trio.lowlevel.enable_ki_protection
    async def _run(  # noqa: ASYNC910  # `Delisted` is raised where it waited
        self, target: Target, due: float | None, started: float
    ) -> None:
        """Wait until the run may begin, measure the probe, and send the result."""
        run = Run(target)
        target.runs.add(run)
        try:
            await run.wait(target.slots.acquire_nowait, target.slots.acquire)
            try:
                await run.wait(self.limit.acquire_nowait, self.limit.acquire)
                try:
                    deltas = await self._measure(run, due, started)
                finally:
                    if run.sent is None:
                        self.limit.release()
                if deltas is not None:
                    result = unchecked_result(target.endpoint.key, deltas)
                    await run.wait(self.results.send_nowait, self.results.send, result)
                    self.counts.results_sent += 1
                elif run.sent is not None:
                    await run.wait(run.sent.acquire_nowait, run.sent.acquire)
            finally:
                target.slots.release()
        except Delisted:
            pass
        finally:
            if run.began == math.inf:
                target.waiting = False
            target.runs.discard(run)
            if not target.runs:
                self.leaving.pop(target.endpoint.key, None)

    async def _measure(
        self, run: Run, due: float | None, started: float
    ) -> Mapping[str, Value] | None:
        """Run the probe, and return what the run adds to the metrics.

        That is None if the run is missed, or if the result was sent on its behalf.
        """
        target = run.target
        timeout = run.timeout = target.timeout
        begin = trio.current_time()
        # What begins a little late ends in time nevertheless: the next run may have to wait
        # for it, and the next, and delays would add up.
        deadline = (begin if due is None else due) + timeout
        if due is not None and begin - due > timeout * _MAX_LATENESS:
            if begin - started > MIN_STALL and self._is_missed(run, due, started):
                return None  # noqa: ASYNC910  # see `_run`
            self.counts.runs_late += 1
            deadline = begin + timeout
        if run.delisted:
            raise Delisted
        error: BaseException | None = None
        further: Mapping[str, Value] = {}
        target.waiting = target.missed = False
        run.began = begin
        run.deadline = deadline
        self.in_flight.add(run)
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
                self.in_flight.remove(run)
            else:
                self.stuck -= 1
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

    def _is_missed(self, run: Run, due: float, started: float) -> bool:
        """Count a run as missed if the loop has stood still; return whether it has."""
        if run.scope is None:  # it has waited for nothing but the loop
            self.wakeups.woke(started)
        target = run.target
        target.missed = not target.missed and self.wakeups.is_missed(
            due, target.interval, target.timeout
        )
        self.counts.runs_missed += target.missed
        return target.missed

    @trio.lowlevel.disable_ki_protection
    async def _probe(self, endpoint: Endpoint) -> Mapping[str, Value]:
        return validate_metrics(await self.probe(endpoint))

    def _result(
        self,
        run: Run,
        end: float,
        error: BaseException | None,
        further: Mapping[str, Value],
    ) -> Mapping[str, Value] | None:
        """Return what a run that ended adds to the metrics; None if that was sent."""
        if run.delisted:
            raise Delisted
        if run.sent is not None:
            return None
        # However it ended: a probe may not even have noticed that its time was up.
        if end >= run.deadline:
            return self._time_out(run, TIMEOUT, f"timed out after {run.timeout:g} s")
        if error is not None:
            return self._raised(run.target, error)
        if run.target.health is not None:
            self.log.succeeded(run.target.endpoint.key, run.target.health)
        return {**_SUCCEEDED, "latency": end - run.began, **further}

    def _raised(self, target: Target, error: BaseException) -> Mapping[str, Value]:
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
        log = self.log.inconclusive if inconclusive else self.log.failed
        log(target.endpoint.key, health, key, describe(cause), error)
        counts = _INCONCLUSIVE if inconclusive else _FAILED
        return {**counts, "error": Map("error", {key: 1}), **further}

    def _time_out(self, run: Run, what: str, cause: str) -> Mapping[str, Value]:
        """Return what a run whose time is up adds to the metrics."""
        target = run.target
        if self.wakeups.is_inconclusive(run.began, run.timeout):
            return dict(_INCONCLUSIVE)
        health = target.health = target.health or Health()
        self.log.failed(target.endpoint.key, health, what, cause)
        return dict(_TIMED_OUT)

    @trio.lowlevel.enable_ki_protection
    async def watch(self) -> None:
        """Send the results of runs that are stuck, forever."""
        while True:
            self.log.tell_held_back()
            until = await self.in_flight.wait()
            overdue = await self.in_flight.overdue()
            for _ in range(_GRACE_TURNS if overdue else 0):
                await self.wakeups.sleep_until(until)
            for count, run in enumerate(overdue, 1):
                if run in self.in_flight:
                    self._give_up(run)
                    self.limit.release()
                if count % _GIVEN_UP_BATCH == 0:
                    await trio.lowlevel.checkpoint()

    def _give_up(self, run: Run) -> None:
        """Call a run stuck, and have its result sent on its behalf."""
        self.in_flight.remove(run)
        self.stuck += 1
        run.sent = trio.Semaphore(0)
        # Not by the key of a timeout: this is news though the target has timed out before.
        cause = f"stuck: it ignores its timeout of {run.timeout:g} s"
        deltas = self._time_out(run, "stuck", cause)
        if not run.delisted:
            result = unchecked_result(run.target.endpoint.key, deltas)
            self.nursery.start_soon(self._send_on_behalf, run.sent, result)

    @trio.lowlevel.enable_ki_protection
    async def _send_on_behalf(self, sent: trio.Semaphore, result: ProbeResult) -> None:
        await self.results.send(result)
        self.counts.results_sent += 1
        sent.release()


def _raise_exit(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise what `group` holds that is not an Exception.

    That is a KeyboardInterrupt or the like, else the `Cancelled` of a cancellation from
    outside, whose place nothing that was raised besides may take.
    """
    exits = [leaf for leaf in leaf_exceptions(group) if not isinstance(leaf, Exception)]
    if exits:
        raise min(exits, key=lambda leaf: isinstance(leaf, trio.Cancelled)) from None
