"""What an OTLP exporter does with the exports: wait, send, retry, split, give up.

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
from trio_statskeeper._log import logger
from trio_statskeeper._naming import Families
from trio_statskeeper._nursery import open_flat_nursery
from trio_statskeeper._pacing import Step
from trio_statskeeper._receiving import receive_batch
from trio_statskeeper._self_metrics import HELP, PREFIX, Observed, self_metrics

from ._http import Client, Problem
from ._request import Request

# Exports that are received in one step, and sent ones that are removed in one.
_BATCH = 200
_REMOVED_BATCH = 200

# Seconds for which further exports are waited for after the first: a pass comes in batches.
_GATHERING = 0.05

# Seconds between two requests with the keepers' own statistics.
_STATISTICS_INTERVAL = 10.0

# Bytes after which a request takes no further export, and the most exports that it has.
# Servers take a megabyte, if not more. What is too large for one is halved, but not
# further than to the smallest; if the connection was just cut off, which may have other
# causes, not further than to the guessed.
_REQUEST_SIZE = 1_000_000
_REQUEST_EXPORTS = 1_000
_SMALLEST_SIZE = 10_000
_GUESSED_SIZE = 50_000

# Seconds after which a size that was halved is doubled, if it still goes well.
_GROWTH_INTERVAL = 600.0

# Suspects of a keeper that are remembered.
_MAX_SUSPECTS = 1_000

# Problems that are logged of one keeper, or of the collector itself, until it recovers.
_PROBLEMS_LOGGED = 10

# Seconds until the first retry, doubled for each further one, and at most.
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 30.0

# Seconds that a collector may ask for by Retry-After.
_LONGEST_RETRY_AFTER = 300.0

# What a problem is about, if neither a keeper nor the statistics: the collector itself.
_COLLECTOR = None
_STATISTICS = "statistics"


@attrs.define(eq=False, repr=False)
class Delivery:
    """A run of an exporter."""

    name: str
    """What the log calls the collector."""
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
    # Whether the first that waits was sent in vain, and seconds until the next retry.
    _retrying: bool = attrs.field(init=False, default=False)
    _delay: float = attrs.field(init=False, default=_FIRST_DELAY)
    _statistics_due: float = attrs.field(init=False, default=math.inf)
    # Bytes that a request may have, and when there may be more.
    _size: int = attrs.field(init=False, factory=lambda: _REQUEST_SIZE)
    _growth_due: float = attrs.field(init=False, default=math.inf)
    # By keeper, when each suspect was last refused and would be stale.
    _suspects: dict[str, dict[str, float]] = attrs.field(
        init=False, factory=dict[str, dict[str, float]]
    )
    # What was logged since the last success, by what it is about.
    _problems: dict[str | None, set[str]] = attrs.field(
        init=False, factory=dict[str | None, set[str]]
    )
    _overwritten: set[str] = attrs.field(init=False, factory=set[str])
    # Targets whose last totals were refused.
    _refused: int = attrs.field(init=False, default=0)

    @trio.lowlevel.enable_ki_protection
    async def until_the_end(self) -> None:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._send)
            with suppress(trio.EndOfChannel):
                while True:
                    for export in await receive_batch(self.exports, _BATCH):
                        self._waiting.put(export)
            self._waiting.end()
            self._ended.set()
            nursery.cancel_scope.deadline = trio.current_time() + self.timeout

    def report_undelivered(self) -> None:
        targets = len(self._waiting) + self._refused
        if targets:
            message = f"the totals of {targets} targets were not delivered"
            self._log(logging.WARNING, _COLLECTOR, message)

    @trio.lowlevel.enable_ki_protection
    async def _send(self) -> None:
        if self.statistics:
            self._statistics_due = trio.current_time() + _STATISTICS_INTERVAL
        async with self.client:
            await self._gather()
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
        """Wait until there is something to send; return False if that is never."""
        idle = not len(self._waiting)
        with trio.move_on_at(math.inf if self._retrying else self._statistics_due):
            await self._waiting.wait()
            if idle:
                await self._gather()
        return len(self._waiting) > 0 or not self._ended.is_set()

    async def _gather(self) -> None:
        """Wait for what belongs to the same pass as the first."""
        with trio.move_on_after(_GATHERING):
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
            self._delay = _FIRST_DELAY  # there is not much time left

    def _first_of_one_keeper(self) -> list[EventMetrics]:
        """Return those at the head of the queue that may share a request."""
        exports = self._waiting.first(_REQUEST_EXPORTS)
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
            # If there are too many for the splits, others are singled out each time.
            random.shuffle(chosen)
        return chosen

    async def _deliver(self, exports: list[EventMetrics]) -> Problem | None:
        """Send exports of one keeper; return the problem if they should be retried."""
        # A stack: one half is settled before the other is tried, down to a single target.
        parts = [exports] if exports else []
        # A single bad target among many is found with half of these.
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
                    self._halve(request, _GUESSED_SIZE)
                targets = len(self._waiting)
                then = f"retrying, with the newest totals of {targets} targets"
                self._report(_COLLECTOR, problem, then)
                return problem
            else:
                if problem.kind == "too large":
                    self._halve(request, _SMALLEST_SIZE)
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
                self._recovered(_COLLECTOR)
                self._recovered(_STATISTICS)
            elif problem.kind in ("retried", "cut off"):
                self._report(_COLLECTOR, problem, "retrying")
            else:
                self._report(_STATISTICS, problem, "not retried")
            del exports[: len(request.exports)]

    async def _build(self, exports: Iterable[EventMetrics], families: Families) -> Request:
        """Return a request with the first of `exports`."""
        request = Request(self.resource_attributes)
        step = Step()
        for export in exports:
            for _ in request.add(export, families, trio.current_time()):
                await step.pause_if_over()
            if request.size >= self._size:
                break
        await trio.lowlevel.checkpoint()
        for label in sorted(request.overwritten - self._overwritten):
            self._overwritten.add(label)
            self._log(
                logging.WARNING,
                _COLLECTOR,
                f"data points have an attribute {label!r}, which receivers based on "
                "Prometheus overwrite",
            )
        return request

    async def _done(self, exports: list[EventMetrics]) -> int:
        """Remove exports from what waits; return how many of them still waited."""
        removed = 0
        for at in range(0, len(exports), _REMOVED_BATCH):
            before = len(self._waiting)
            self._waiting.done(exports[at : at + _REMOVED_BATCH])
            removed += before - len(self._waiting)
            # If it were cancelled in between, the rest would be sent twice.
            await trio.lowlevel.cancel_shielded_checkpoint()
        return removed  # noqa: ASYNC910  # there is at least one

    def _halve(self, refused: Request, smallest: int) -> None:
        """Remember that requests should have half the size of this one."""
        if len(refused.exports) > 1 and refused.size > smallest:
            self._size = min(self._size, max(refused.size // 2, smallest))
            self._growth_due = trio.current_time() + _GROWTH_INTERVAL
            size = f"requests have {self._size} bytes at most now"
            self._log(logging.INFO, _COLLECTOR, size)

    def _accepted(self, exports: list[EventMetrics], remark: Problem | None) -> None:
        now = trio.current_time()
        if now >= self._growth_due:
            self._size = min(2 * self._size, _REQUEST_SIZE)
            self._growth_due = now + _GROWTH_INTERVAL
        keeper = _name(exports[0])
        self._recovered(_COLLECTOR)
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
            self._report(keeper, remark, "not retried")
        elif keeper not in self._suspects:
            self._recovered(keeper)

    def _refuse(self, exports: list[EventMetrics], problem: Problem) -> None:
        keeper = _name(exports[0])
        self._recovered(_COLLECTOR)
        if problem.kind == "other":
            self._report(keeper, problem, "not retried")
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
        self._log_once(keeper, refused, message)

    def _report(self, about: str | None, problem: Problem, then: str) -> None:
        # It is chance which error a cut off connection is.
        once = problem.kind if problem.kind == "cut off" else problem.what
        self._log_once(about, once, f"{problem.what}{problem.detail}; {then}")

    def _log_once(self, about: str | None, once: str, message: str) -> None:
        """Log a problem, unless it was since what it is about has recovered."""
        logged = self._problems.setdefault(about, set())
        if once in logged or len(logged) > _PROBLEMS_LOGGED:
            return
        logged.add(once)
        if len(logged) > _PROBLEMS_LOGGED:
            message = "further problems are not logged until it recovers"
        self._log(logging.WARNING, about, message)

    def _recovered(self, about: str | None) -> None:
        if self._problems.pop(about, None):
            self._log(logging.INFO, about, "recovered")

    def _log(self, level: int, about: str | None, message: str) -> None:
        subject = f"{about}: " if about else ""
        logger.log(level, "collector %s: %s%s", self.name, subject, message)


def _keeper(export: EventMetrics) -> tuple[str, str]:
    return export.labels.get("ptype", ""), export.labels.get("probe", "")


def _name(export: EventMetrics) -> str:
    """Return what the log calls an export's keeper."""
    return "/".join(filter(None, _keeper(export)))


def _target(export: EventMetrics) -> str:
    return export.labels.get("dst", "")
