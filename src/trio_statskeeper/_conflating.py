"""What an output that lags still has to get: the newest export of each series."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import TypeAlias

import attrs
import trio

from ._event_metrics import EventMetrics

Series: TypeAlias = frozenset[tuple[str, str]]

# Export intervals after which a series that has not come is stale.
_STALE_AFTER = 3

# Series that are checked between two checkpoints.
_CHECKED_BATCH = 500


def stale_at(export: EventMetrics, now: float) -> float:
    """Return when `export`, which came now, is stale if nothing follows."""
    return now + _STALE_AFTER * export.export_interval


def _series(export: EventMetrics) -> Series:
    return frozenset(export.labels.items())


Arrival: TypeAlias = tuple[Series, float, float]
"""The series of an export, when it came, and when it is stale."""


def arrival_of(export: EventMetrics) -> Arrival:
    """Return what queues need to know of `export`, which came now."""
    now = trio.current_time()
    return _series(export), now, stale_at(export, now)


@attrs.define(eq=False)
class ConflatingQueue:
    """Exports that wait; a newer one replaces the older one of its series.

    Totals are cumulative, so nothing is lost with an export that is replaced. The newer one
    takes its place in the queue: each series gets its turn, even if passes come faster than
    they are taken.

    What waits is bounded: a series is stale, and dropped, if it has not come for three of
    its export intervals while others came.
    """

    _waiting: OrderedDict[Series, EventMetrics] = attrs.field(
        init=False, factory=OrderedDict[Series, EventMetrics]
    )
    # When each will be stale, in the order in which that was checked.
    _stale_at: OrderedDict[Series, float] = attrs.field(
        init=False, factory=OrderedDict[Series, float]
    )
    _last_put: float = attrs.field(init=False, default=-math.inf)
    _arrival: trio.Event = attrs.field(init=False, factory=trio.Event)
    ended: bool = attrs.field(init=False, default=False)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, export: EventMetrics, arrival: Arrival | None = None) -> None:
        """Add an export; its arrival need not be computed for each of several queues."""
        series, self._last_put, stale_at = arrival or arrival_of(export)
        self._waiting[series] = export
        self._stale_at[series] = stale_at
        # Two for each that comes: all are checked, again and again.
        for checked in list(islice(self._stale_at, 2)):
            self._stale_at.move_to_end(checked)
            self._drop_if_stale(checked)
        self._arrival.set()

    def _drop_if_stale(self, series: Series) -> bool:
        if self._stale_at[series] >= self._last_put:
            return False
        del self._waiting[series], self._stale_at[series]
        return True

    def first(self, count: int) -> list[EventMetrics]:
        """Return the first `count` but those that are stale, which are dropped.

        They go on waiting. If all of them were stale, the list is empty though others wait:
        the length of the queue says whether any does.
        """
        first = list(islice(self._waiting.items(), count))
        return [export for series, export in first if not self._drop_if_stale(series)]

    def done(self, exports: Iterable[EventMetrics]) -> None:
        """Remove `exports`; what replaced one of them waits at the end of the queue."""
        for export in exports:
            series = _series(export)
            if self._waiting.get(series) is export:
                del self._waiting[series], self._stale_at[series]
            elif series in self._waiting:
                self._waiting.move_to_end(series)

    def drop(self, count: int) -> None:
        """Drop the first `count`."""
        for _ in range(min(count, len(self._waiting))):
            series, _ = self._waiting.popitem(last=False)
            del self._stale_at[series]

    def end(self) -> None:
        """Say that no more exports come."""
        self.ended = True
        self._arrival.set()

    async def wait(self) -> None:
        """Wait until an export waits that is not stale, or no more come."""
        await trio.lowlevel.checkpoint()
        while not self.first(_CHECKED_BATCH):
            if self._waiting:
                await trio.lowlevel.checkpoint()  # many were stale
            elif self.ended:
                return
            else:
                self._arrival = trio.Event()
                await self._arrival.wait()
