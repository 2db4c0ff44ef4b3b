"""Which exports are sent when: batches, retries, halved requests, suspects.

Theory of operation
===================

Two tasks share a `ConflatingQueue`, which keeps the newest export of each series. One task
receives exports and puts them into the queue. The other sends what waits there, one request
at a time, and removes it when the collector has accepted it. Until then, newer exports
replace older ones, and stale ones are dropped: totals are cumulative, so the last one sent
is right. Each attempt builds its request from what is newest at that moment.

A request has exports of one keeper, because some receivers refuse a whole request for one
bad data point. A request that is refused as bad or as too large is halved, and its halves
again, within limits. Targets that are refused alone, or in a request that may not be halved
any more, become suspects: they are sent in separate requests until they are accepted. The
statistics of keepers and probers have separate requests, too.

When the exports end, a time limit applies to what still waits.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress

import attrs
import trio

from trio_statskeeper._arguments import quote
from trio_statskeeper._conflating import ConflatingQueue, stale_at
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._naming import Families
from trio_statskeeper._nursery import open_flat_nursery
from trio_statskeeper._pacing import Step
from trio_statskeeper._receiving import receive_batch
from trio_statskeeper._self_metrics import HELP, PREFIX, Observed, self_metrics

from ._http import Client
from ._problem import Problem
from ._problem_log import ProblemLog
from ._request import Request

# Exports that are received between two checkpoints, and sent ones that are removed.
_RECEIVED_BATCH = 200
_REMOVED_BATCH = 200

# Seconds for which a request waits for further exports: a pass arrives in batches.
_LINGER = 0.05

# Seconds between two requests with the statistics of keepers and probers.
_STATISTICS_INTERVAL = 10.0

# The most exports of a request, and its bytes, after which no further export is added.
# Servers accept a megabyte at least.
_MAX_REQUEST_EXPORTS = 1_000
_MAX_REQUEST_SIZE = 1_000_000

# Bytes to which the size of requests is halved at most: if a request was refused as too
# large, and if its connection was cut off, which may have other causes.
_MIN_SIZE_REFUSED = 10_000
_MIN_SIZE_CUT_OFF = 50_000

# Seconds after which a size that was halved is doubled, if requests are accepted.
_GROWTH_INTERVAL = 600.0

# Suspects of a keeper that are remembered.
_MAX_SUSPECTS = 1_000

# Seconds until the first retry: doubled for each further one, up to the longest.
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 30.0

# The most seconds for which a collector can delay a retry by Retry-After.
_LONGEST_RETRY_AFTER = 300.0

# Subjects of problems, beside keepers.
_COLLECTOR = None
_STATISTICS = "statistics"


@attrs.define(eq=False, repr=False)
class Delivery:
    """A run of an exporter."""

    name: str
    """The collector's name in the log."""
    client: Client
    exports: trio.MemoryReceiveChannel[EventMetrics]
    resource_attributes: Mapping[str, str]
    statistics: tuple[Observed, ...]
    timeout: float
    """Seconds for what waits when the exports have ended."""

    _waiting: ConflatingQueue = attrs.field(init=False, factory=ConflatingQueue)
    _ended: trio.Event = attrs.field(init=False, factory=trio.Event)
    _families: Families = attrs.field(init=False, factory=lambda: Families("probe_"))
    _self_families: Families = attrs.field(
        init=False, factory=lambda: Families(PREFIX, HELP)
    )
    # Whether the last attempt failed, and seconds until the next retry.
    _retrying: bool = attrs.field(init=False, default=False)
    _delay: float = attrs.field(init=False, default=_FIRST_DELAY)
    _statistics_due: float = attrs.field(init=False, default=math.inf)
    # Bytes that a request may have, and when the limit is raised.
    _size_limit: int = attrs.field(init=False, factory=lambda: _MAX_REQUEST_SIZE)
    _growth_due: float = attrs.field(init=False, default=math.inf)
    # By keeper, when each suspect becomes stale after its last refusal.
    _suspects: dict[str, dict[str, float]] = attrs.field(
        init=False, factory=dict[str, dict[str, float]]
    )
    _log: ProblemLog = attrs.field(
        init=False,
        default=attrs.Factory(lambda self: ProblemLog(self.name), takes_self=True),
    )
    _overwritten: set[str] = attrs.field(init=False, factory=set[str])
    # Targets whose last totals were refused when no more exports came.
    _refused: int = attrs.field(init=False, default=0)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Send exports until they end and are sent, or their time is up."""
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._send)
            with suppress(trio.EndOfChannel):
                while True:
                    for export in await receive_batch(self.exports, _RECEIVED_BATCH):
                        self._waiting.put(export)
            self._waiting.end()
            self._ended.set()
            nursery.cancel_scope.deadline = trio.current_time() + self.timeout

    def report_undelivered(self) -> None:
        """Log how many targets have totals that were not delivered."""
        targets = len(self._waiting) + self._refused
        if targets:
            message = f"the totals of {targets} targets were not delivered"
            self._log.log(logging.WARNING, _COLLECTOR, message)

    @trio.lowlevel.enable_ki_protection
    async def _send(self) -> None:
        if self.statistics:
            self._statistics_due = trio.current_time() + _STATISTICS_INTERVAL
        async with self.client:
            await self._linger()
            while await self._wait():
                if trio.current_time() >= self._statistics_due and not self._retrying:
                    await self._send_statistics()
                problem = await self._deliver(self._first_of_one_keeper())
                self._retrying = problem is not None
                if problem is None:
                    self._delay = _FIRST_DELAY
                else:
                    await self._pause(problem.retry_after)
            await self._send_statistics()

    async def _wait(self) -> bool:
        """Wait until there may be something to send; return False after the end."""
        idle = not len(self._waiting)
        with trio.move_on_at(math.inf if self._retrying else self._statistics_due):
            await self._waiting.wait()
            if idle:
                await self._linger()
        return len(self._waiting) > 0 or not self._ended.is_set()

    async def _linger(self) -> None:
        """Wait for more exports of the same pass."""
        with trio.move_on_after(_LINGER):
            await self._ended.wait()

    async def _pause(self, retry_after: float | None) -> None:
        """Wait before a retry."""
        if retry_after is not None:
            await trio.sleep(min(max(retry_after, _FIRST_DELAY), _LONGEST_RETRY_AFTER))
            return
        jittered = self._delay * random.uniform(0.8, 1.2)  # noqa: S311  # no secret
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        if self._ended.is_set():
            await trio.sleep(jittered)
            return
        with trio.move_on_after(jittered):
            await self._ended.wait()
            self._delay = _FIRST_DELAY  # little time is left

    def _first_of_one_keeper(self) -> list[EventMetrics]:
        """Return the first exports in the queue that may share a request."""
        exports = self._waiting.first(_MAX_REQUEST_EXPORTS)
        if not exports:
            return []
        keeper = _keeper(exports[0])
        suspects = self._suspects.get(_name(exports[0]), {})
        suspect = _target(exports[0]) in suspects
        chosen = [
            export
            for export in exports
            if _keeper(export) == keeper and (_target(export) in suspects) == suspect
        ]
        if suspect:
            # If there are more than can be found by splitting, each attempt finds others.
            random.shuffle(chosen)
        return chosen

    async def _deliver(self, exports: list[EventMetrics]) -> Problem | None:
        """Send exports of one keeper; return the problem if they should be retried."""
        # A stack: a half, and its halves, are sent before the other half.
        parts = [exports] if exports else []
        # Half as many find a single bad target.
        splits = 2 * len(exports).bit_length()
        while parts:
            part = parts.pop()
            request = await self._build(part, self._families)
            sent = request.exports
            if len(sent) < len(part):
                parts.append(part[len(sent) :])
            problem = await self.client.post(request.serialize()) if request.size else None
            if problem is None or problem.kind == "remark":
                if request.size:
                    self._accepted(sent, problem)
                await self._done(sent)
            elif problem.kind in ("retried", "cut off"):
                if problem.kind == "cut off" and self._retrying:
                    self._halve(request, _MIN_SIZE_CUT_OFF)
                targets = len(self._waiting)
                then = f"retrying, with the newest totals of {targets} targets"
                self._log.report(_COLLECTOR, problem, then)
                return problem
            else:
                if problem.kind == "too large":
                    self._halve(request, _MIN_SIZE_REFUSED)
                if problem.kind != "other" and len(sent) > 1 and splits > 0:
                    splits -= 1
                    half = len(sent) // 2
                    parts += [sent[half:], sent[:half]]
                    continue
                self._refuse(sent, problem)
                removed = await self._done(sent)
                if self._ended.is_set():
                    self._refused += removed
        return None  # noqa: ASYNC910  # there was nothing to send

    async def _send_statistics(self) -> None:  # noqa: ASYNC910  # likewise
        self._statistics_due = trio.current_time() + _STATISTICS_INTERVAL
        exports = [self_metrics(each) for each in self.statistics]
        while exports:
            request = await self._build(exports, self._self_families)
            problem = await self.client.post(request.serialize())
            if problem is None:
                self._log.recovered(_COLLECTOR)
                self._log.recovered(_STATISTICS)
            elif problem.kind in ("retried", "cut off"):
                self._log.report(_COLLECTOR, problem, "retrying")
            else:
                self._log.report(_STATISTICS, problem, "not retried")
            del exports[: len(request.exports)]

    async def _build(self, exports: Iterable[EventMetrics], families: Families) -> Request:
        """Return a request with the first of `exports`."""
        request = Request(self.resource_attributes)
        step = Step()
        for export in exports:
            for _ in request.add(export, families, trio.current_time()):
                await step.pause_if_over()
            if request.size >= self._size_limit:
                break
        await trio.lowlevel.checkpoint()
        for label in sorted(request.overwritten - self._overwritten):
            self._overwritten.add(label)
            self._log.log(
                logging.WARNING,
                _COLLECTOR,
                f"data points have an attribute {label!r}, which receivers based on "
                "Prometheus overwrite",
            )
        return request

    async def _done(self, exports: list[EventMetrics]) -> int:
        """Remove exports from the queue; return how many were still in it."""
        removed = 0
        for at in range(0, len(exports), _REMOVED_BATCH):
            before = len(self._waiting)
            self._waiting.done(exports[at : at + _REMOVED_BATCH])
            removed += before - len(self._waiting)
            # If this could be cancelled here, the rest might be sent twice.
            await trio.lowlevel.cancel_shielded_checkpoint()
        return removed  # noqa: ASYNC910  # there is at least one

    def _halve(self, refused: Request, smallest: int) -> None:
        """Limit requests to half the size of this one."""
        if len(refused.exports) > 1 and refused.size > smallest:
            self._size_limit = min(self._size_limit, max(refused.size // 2, smallest))
            self._growth_due = trio.current_time() + _GROWTH_INTERVAL
            size = f"requests have {self._size_limit} bytes at most now"
            self._log.log(logging.INFO, _COLLECTOR, size)

    def _accepted(self, exports: list[EventMetrics], remark: Problem | None) -> None:
        now = trio.current_time()
        if now >= self._growth_due:
            self._size_limit = min(2 * self._size_limit, _MAX_REQUEST_SIZE)
            self._growth_due = now + _GROWTH_INTERVAL
        keeper = _name(exports[0])
        self._log.recovered(_COLLECTOR)
        if suspects := self._suspects.pop(keeper, None):
            accepted = {_target(export) for export in exports}
            left = {
                target: stale_at
                for target, stale_at in suspects.items()
                if target not in accepted and stale_at >= now
            }
            if left:
                self._suspects[keeper] = left
        if remark is not None:
            self._log.report(keeper, remark, "not retried")
        elif keeper not in self._suspects:
            self._log.recovered(keeper)

    def _refuse(self, exports: list[EventMetrics], problem: Problem) -> None:
        keeper = _name(exports[0])
        self._log.recovered(_COLLECTOR)
        if problem.kind == "other":
            self._log.report(keeper, problem, "not retried")
            return
        suspects = self._suspects.setdefault(keeper, {})
        now = trio.current_time()
        for export in exports:
            suspects[_target(export)] = stale_at(export, now)
        for oldest in list(suspects)[:-_MAX_SUSPECTS]:
            del suspects[oldest]
        targets = quote(_target(exports[0]))
        if len(exports) > 1:
            targets += f" and {len(exports) - 1} more"
        refused = f"refused the totals of {targets}"
        message = f"{refused}: {problem.what}{problem.detail}"
        self._log.warn_once(keeper, refused, message)


def _keeper(export: EventMetrics) -> tuple[str, str]:
    return export.labels.get("ptype", ""), export.labels.get("probe", "")


def _name(export: EventMetrics) -> str:
    """Return what the log calls an export's keeper."""
    return "/".join(filter(None, _keeper(export)))


def _target(export: EventMetrics) -> str:
    return export.labels.get("dst", "")
