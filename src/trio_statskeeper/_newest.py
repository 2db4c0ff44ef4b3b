"""What an output that lags behind still has to get: the newest export of each series."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import TypeAlias

import attrs
import trio

from ._event_metrics import EventMetrics

Series: TypeAlias = frozenset[tuple[str, str]]

# Export intervals after which a series that has not come is gone.
GONE_AFTER = 3


def _series(export: EventMetrics) -> Series:
    return frozenset(export.labels.items())


@attrs.define(eq=False)
class Newest:
    """Exports that wait; a newer one takes the place of the older of its series.

    Totals are cumulative, so an export that is replaced is no loss. It is replaced where it
    stands in the queue: each series gets its turn, even if passes come faster than they are
    taken.

    What waits is bounded: a series that has not come for three of its export intervals is
    dropped when others come.
    """

    _waiting: OrderedDict[Series, EventMetrics] = attrs.field(
        init=False, factory=OrderedDict[Series, EventMetrics]
    )
    # When each will be gone, in the order in which they last came.
    _gone_at: OrderedDict[Series, float] = attrs.field(
        init=False, factory=OrderedDict[Series, float]
    )
    _arrival: trio.Event = attrs.field(init=False, factory=trio.Event)
    ended: bool = attrs.field(init=False, default=False)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, export: EventMetrics) -> None:
        now = trio.current_time()
        series = _series(export)
        self._waiting[series] = export
        self._gone_at[series] = now + GONE_AFTER * export.export_interval
        self._gone_at.move_to_end(series)
        # As up to two go for each that comes, those that are gone get ever fewer.
        for oldest in list(islice(self._gone_at, 2)):
            if oldest == series or self._gone_at[oldest] > now:
                break
            del self._waiting[oldest], self._gone_at[oldest]
        self._arrival.set()

    def first(self, count: int) -> list[EventMetrics]:
        """Return up to `count` of the exports that wait; they go on waiting."""
        return list(islice(self._waiting.values(), count))

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
        """Wait until an export waits, or no more come."""
        if not self._waiting and not self.ended:
            self._arrival = trio.Event()
        await self._arrival.wait()
