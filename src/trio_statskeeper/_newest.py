"""What an output that lags behind still has to get: the newest export of each series."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import TypeAlias

import attrs
import trio

from ._event_metrics import EventMetrics
from ._values import MAX_NUMBER

Series: TypeAlias = frozenset[tuple[str, str]]

# Export intervals after which a series that has not come is gone.
_GONE_AFTER = 3

# Series that are dropped between two checkpoints.
_STEP = 500


def when_gone(export: EventMetrics, now: float) -> float:
    """Return when `export`, which came now, is gone if nothing follows."""
    gone_at = now + min(_GONE_AFTER * export.export_interval, MAX_NUMBER)
    return max(now, gone_at)  # an interval of others' making may be NaN


def _series(export: EventMetrics) -> Series:
    return frozenset(export.labels.items())


@attrs.define(eq=False)
class Newest:
    """Exports that wait; a newer one takes the place of the older of its series.

    Totals are cumulative, so an export that is replaced is no loss. It is replaced where it
    stands in the queue: each series gets its turn, even if passes come faster than they are
    taken.

    What waits is bounded: a series that has not come for three of its export intervals,
    while others came, is dropped.
    """

    _waiting: OrderedDict[Series, EventMetrics] = attrs.field(
        init=False, factory=OrderedDict[Series, EventMetrics]
    )
    # When each will be gone, in the order in which that was looked at.
    _gone_at: OrderedDict[Series, float] = attrs.field(
        init=False, factory=OrderedDict[Series, float]
    )
    _last_put: float = attrs.field(init=False, default=-math.inf)
    _arrival: trio.Event = attrs.field(init=False, factory=trio.Event)
    ended: bool = attrs.field(init=False, default=False)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, export: EventMetrics) -> None:
        self._last_put = trio.current_time()
        series = _series(export)
        self._waiting[series] = export
        self._gone_at[series] = when_gone(export, self._last_put)
        # Two for each that comes: all are looked at, again and again.
        for looked_at in list(islice(self._gone_at, 2)):
            self._gone_at.move_to_end(looked_at)
            self._drop_if_gone(looked_at)
        self._arrival.set()

    def _drop_if_gone(self, series: Series) -> bool:
        if self._gone_at[series] >= self._last_put:
            return False
        del self._waiting[series], self._gone_at[series]
        return True

    def first(self, count: int) -> list[EventMetrics]:
        """Return those of the first `count` that are not gone; they go on waiting."""
        return [
            export
            for series, export in islice(self._waiting.items(), count)
            if self._gone_at[series] >= self._last_put
        ]

    def head(self) -> EventMetrics | None:
        """Return the first, if one waits and is not gone; it goes on waiting."""
        return next(iter(self.first(1)), None)

    def done(self, exports: Iterable[EventMetrics]) -> None:
        """Remove `exports`; what replaced one of them waits at the end of the queue."""
        for export in exports:
            series = _series(export)
            if self._waiting.get(series) is export:
                del self._waiting[series], self._gone_at[series]
            elif series in self._waiting:
                self._waiting.move_to_end(series)

    def end(self) -> None:
        """Say that no more exports come."""
        self.ended = True
        self._arrival.set()

    async def wait(self) -> None:
        """Wait until an export waits that is not gone, or no more come."""
        if not self._waiting and not self.ended:
            self._arrival = trio.Event()
        await self._arrival.wait()
        dropped = 0
        while self._waiting and self._drop_if_gone(next(iter(self._waiting))):
            dropped += 1
            if dropped % _STEP == 0:
                await trio.lowlevel.checkpoint()
