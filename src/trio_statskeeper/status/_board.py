"""All targets: their states as exports arrive, and as of the newest pass of each keeper."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import attrs
import trio

from trio_statskeeper._conflating import (
    ConflatingQueue,
    KeeperKey,
    Series,
    arrival_of,
    keeper_of,
)
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._retired import Retired
from trio_statskeeper._segments import SegmentedDict

from ._state import DROPPED_AFTER, STALE_AFTER, TargetState, first_state, next_state

# Targets that are kept; further ones are only counted.
_MAX_TARGETS = 20_000


@attrs.frozen(eq=False)
class Cut:
    """The targets of a keeper as of one pass."""

    ptype: str
    probe: str
    number: int
    """The number of the pass."""
    timestamp: float
    """Unix seconds of the pass; NaN before the first one has ended."""
    export_interval: float
    not_kept: int
    """How many further targets the pass had."""
    shown_at: float
    """When the pass had ended, in seconds of Trio's clock."""
    segments: Iterable[Mapping[Series, TargetState]]

    def state_of(self, target: TargetState, now: float) -> str | None:
        """Return one of the STATES; None if the target is to be dropped.

        Args:
          target: one of the targets.
          now: seconds of Trio's clock.
        """
        age = self.number - target.number
        if age >= DROPPED_AFTER:
            return None
        is_stale = age >= STALE_AFTER or self.is_silent(now)
        return "stale" if is_stale else target.state

    def is_silent(self, now: float) -> bool:
        """Return whether the keeper has not exported for three intervals."""
        return now >= self.shown_at + STALE_AFTER * self.export_interval

    def time(self, now: float) -> float:
        """Return the keeper's time in Unix seconds."""
        return self.timestamp + now - self.shown_at


@attrs.define(eq=False)
class Keeper:
    """The keeper of some exports, identified by their ptype and probe."""

    _key: KeeperKey
    _length: int
    _retired: Retired
    cut: Cut | None = attrs.field(init=False, default=None)
    """What pages show."""
    drop_at: float = attrs.field(init=False, default=math.inf)
    """When the keeper is dropped without a newer export, in seconds of Trio's clock."""
    # Of its newest pass, and of the one before.
    _number: int = attrs.field(init=False, default=0)
    _last_number: int = attrs.field(init=False, default=0)
    _timestamp: float = attrs.field(init=False, default=-math.inf)
    _targets: SegmentedDict[TargetState] = attrs.field(
        init=False, factory=SegmentedDict[TargetState]
    )
    # How many targets of its newest pass there was no room for.
    _not_kept: int = attrs.field(init=False, default=0)
    # When the first export arrived that the cut lacks.
    _cut_lacks: float = attrs.field(init=False, default=math.inf)

    def __len__(self) -> int:
        return len(self._targets)

    def add(self, series: Series, export: EventMetrics, now: float, room: int) -> None:
        """Add an export; if it ends a pass, show that pass.

        Args:
          series: its labels.
          export: the export.
          now: seconds of Trio's clock.
          room: how many targets may be added.
        """
        interval = export.export_interval
        if export.timestamp > self._timestamp:
            # Passes that the keeper left out leave gaps.
            elapsed = min((export.timestamp - self._timestamp) / interval, self._length)
            self._last_number = self._number
            self._number += max(round(elapsed), 1)
            self._timestamp = export.timestamp
            self._not_kept = 0
        last = self._targets.get(series)
        if last is not None:
            if export.timestamp >= last.timestamp:
                self._targets.set(series, next_state(last, export, self._number))
        elif room:
            self._targets.set(series, first_state(export, self._number, self._length))
        else:
            self._not_kept += 1
        self.drop_at = now + max(self._length, DROPPED_AFTER) * interval
        self._cut_lacks = min(self._cut_lacks, now)
        if export.ends_pass:
            self._show(self._number, interval, now)
        elif now >= self._cut_lacks + STALE_AFTER * interval:
            # It may never end. Then it is better to show new totals than one pass.
            self._show(self._last_number, interval, now)
        self._drop_some()

    def end_pass(self, interval: float, now: float) -> None:
        """Show the newest pass, which has ended, unless it is shown already."""
        if self.cut is None or self.cut.number < self._number:
            self._show(self._number, interval, now)

    def _show(self, number: int, interval: float, now: float) -> None:
        self._cut_lacks = math.inf
        self._retired.add(self._targets.take_replaced())
        self.cut = Cut(
            *self._key,
            number,
            self._timestamp,
            interval,
            self._not_kept,
            now,
            self._targets.snapshot(),
        )

    def retire(self) -> None:
        """Have all targets freed in small steps."""
        self._retired.add(self._targets.take_replaced())
        self._retired.add(segment.values() for segment in self._targets.snapshot())

    def _drop_some(self) -> None:
        """Check two targets, in a cycle; drop those that have not come for long."""
        for series, target in self._targets.next_items(2):
            is_old = self._number - target.number >= DROPPED_AFTER
            if is_old and self._targets.get(series) is target:
                self._targets.remove(series)


@attrs.define(eq=False)
class Board:
    """All targets.

    Args:
      length: how many intervals of each are kept.
    """

    _length: int
    _keepers: OrderedDict[KeeperKey, Keeper] = attrs.field(
        init=False, factory=OrderedDict[KeeperKey, Keeper]
    )
    _targets: int = attrs.field(init=False, default=0)
    _clock: trio.abc.Clock | None = attrs.field(init=False, default=None)
    _queue: ConflatingQueue = attrs.field(init=False, factory=ConflatingQueue)
    # The newest export of each keeper since the queue was empty.
    _newest: dict[KeeperKey, EventMetrics] = attrs.field(
        init=False, factory=dict[KeeperKey, EventMetrics]
    )
    retired: Retired = attrs.field(init=False, factory=Retired)

    def use(self, clock: trio.abc.Clock) -> None:
        """Use `clock`; what arrived by another clock is dropped."""
        if clock is not self._clock:
            self._clock = clock
            self._keepers.clear()
            self._targets = 0
            self._queue = ConflatingQueue()
            self._newest.clear()

    @property
    def waiting(self) -> int:
        """How many exports have arrived, but are not added."""
        return len(self._queue)

    def put(self, export: EventMetrics) -> None:
        """Have an export added later: exports arrive faster than they can be added."""
        self._newest[keeper_of(export)] = export
        self._queue.put(export)

    def add_first(self) -> None:
        """Add the export that has waited longest, unless it is stale."""
        exports = self._queue.first(1)
        for export in exports:
            self._add(export)
        self._queue.done(exports)
        if self._queue:
            return
        # Exports that took the place of others end no pass, but now all have been added.
        for export in self._newest.values():
            keeper = self._keepers.get(keeper_of(export))
            if keeper is not None and export.ends_pass:
                keeper.end_pass(export.export_interval, trio.current_time())
        self._newest.clear()

    def _add(self, export: EventMetrics) -> None:
        series, key, now, _ = arrival_of(export)
        room = _MAX_TARGETS - self._targets
        keeper = self._keepers.get(key)
        if keeper is None:
            if not room:
                return
            keeper = self._keepers[key] = Keeper(key, self._length, self.retired)
        before = len(keeper)
        keeper.add(series, export, now, room)
        self._targets += len(keeper) - before
        self._drop_one(now)
        self.retired.free_some()

    def _drop_one(self, now: float) -> None:
        """Check a keeper, in a cycle; drop one that has not exported for long."""
        key, keeper = next(iter(self._keepers.items()))
        self._keepers.move_to_end(key)
        if keeper.drop_at <= now:
            del self._keepers[key]
            self._targets -= len(keeper)
            keeper.retire()

    def cuts(self) -> list[Cut]:
        """Return the newest pass of each keeper."""
        return [keeper.cut for keeper in self._keepers.values() if keeper.cut is not None]
