"""The queue of an output that lags: the newest export of each series."""

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

# Export intervals without an export after which a series is stale.
_STALE_AFTER = 3

# Series that are checked between two checkpoints.
_CHECKED_BATCH = 500


def stale_at(export: EventMetrics, now: float) -> float:
    """Return when the series of `export`, which arrived now, becomes stale."""
    return now + _STALE_AFTER * export.export_interval


def _series(export: EventMetrics) -> Series:
    return frozenset(export.labels.items())


KeeperKey: TypeAlias = tuple[str, str]
"""The labels ptype and probe, which all exports of a keeper share."""


def keeper_of(export: EventMetrics) -> KeeperKey:
    return export.labels.get("ptype", ""), export.labels.get("probe", "")


def _differ_by_end(one: EventMetrics, other: EventMetrics) -> bool:
    """Return whether two exports of a series differ at most by whether they end a pass."""
    return one.timestamp == other.timestamp and one.metrics == other.metrics


Arrival: TypeAlias = tuple[Series, KeeperKey, float, float]
"""The series of an export, its keeper, when it arrived, and when it becomes stale."""


def arrival_of(export: EventMetrics) -> Arrival:
    """Return what queues need to know of `export`, which arrived now."""
    now = trio.current_time()
    return _series(export), keeper_of(export), now, stale_at(export, now)


@attrs.define(eq=False)
class ConflatingQueue:
    """A queue of exports, in which a newer export replaces the older one of its series.

    Totals are cumulative, so replacing an export loses nothing. The newer export has the
    older one's place in the queue: each series has its turn, even if passes arrive faster
    than exports are removed.

    After a replacement, the queue has parts of two passes. Until it has been emptied, none
    of the keeper's exports ends a pass.

    The queue is bounded: a series is stale, and dropped, after three of its export
    intervals without an export, while others arrived.
    """

    _waiting: OrderedDict[Series, EventMetrics] = attrs.field(
        init=False, factory=OrderedDict[Series, EventMetrics]
    )
    # When each becomes stale, in the order of the last check.
    _stale_at: OrderedDict[Series, float] = attrs.field(
        init=False, factory=OrderedDict[Series, float]
    )
    # Keepers of which an export was replaced since the queue was empty.
    _mixed: set[KeeperKey] = attrs.field(init=False, factory=set[KeeperKey])
    # The series of each other keeper that ended its newest pass.
    _ends: dict[KeeperKey, Series] = attrs.field(
        init=False, factory=dict[KeeperKey, Series]
    )
    _last_put: float = attrs.field(init=False, default=-math.inf)
    _arrival: trio.Event = attrs.field(init=False, factory=trio.Event)
    ended: bool = attrs.field(init=False, default=False)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, export: EventMetrics, arrival: Arrival | None = None) -> None:
        """Add an export; several queues can share the computed `arrival`."""
        series, keeper, self._last_put, stale_at = arrival or arrival_of(export)
        self._waiting[series] = self._without_false_end(series, keeper, export)
        self._stale_at[series] = stale_at
        # Two are checked for each export that is added, in a cycle.
        for checked in list(islice(self._stale_at, 2)):
            self._stale_at.move_to_end(checked)
            self._drop_if_stale(checked)
        self._arrival.set()

    def _without_false_end(
        self, series: Series, keeper: KeeperKey, export: EventMetrics
    ) -> EventMetrics:
        """Return `export`; it ends a pass only if the rest of the pass comes before it."""
        if not self._waiting:
            self._mixed.clear()
            self._ends.clear()
        if series in self._waiting and keeper not in self._mixed:
            self._mixed.add(keeper)
            end = self._ends.get(keeper)
            if end is not None and end in self._waiting:
                self._waiting[end] = attrs.evolve(self._waiting[end], ends_pass=False)
        if export.ends_pass and keeper in self._mixed:
            return attrs.evolve(export, ends_pass=False)
        if export.ends_pass:
            self._ends[keeper] = series
        return export

    def _drop_if_stale(self, series: Series) -> bool:
        if self._stale_at[series] >= self._last_put:
            return False
        del self._waiting[series], self._stale_at[series]
        return True

    def first(self, count: int) -> list[EventMetrics]:
        """Return the first `count` exports without removing them, except stale ones.

        Stale ones are dropped. If all of the first were stale, the list is empty even if
        others wait.
        """
        first = list(islice(self._waiting.items(), count))
        return [export for series, export in first if not self._drop_if_stale(series)]

    def done(self, exports: Iterable[EventMetrics]) -> None:
        """Remove `exports`; what has replaced one of them moves to the end of the queue."""
        for export in exports:
            series = _series(export)
            waiting = self._waiting.get(series)
            if waiting is None:
                continue
            if waiting is export or _differ_by_end(waiting, export):
                del self._waiting[series], self._stale_at[series]
            else:
                self._waiting.move_to_end(series)

    def drop(self, count: int) -> None:
        """Drop the first `count` exports."""
        for _ in range(min(count, len(self._waiting))):
            series, _ = self._waiting.popitem(last=False)
            del self._stale_at[series]

    def end(self) -> None:
        """Note that no more exports are added."""
        self.ended = True
        self._arrival.set()

    async def wait(self) -> None:
        """Wait until the queue has an export that is not stale, or has ended."""
        await trio.lowlevel.checkpoint()
        while not self.first(_CHECKED_BATCH):
            if self._waiting:
                await trio.lowlevel.checkpoint()  # many were stale
            elif self.ended:
                return
            else:
                self._arrival = trio.Event()
                await self._arrival.wait()
