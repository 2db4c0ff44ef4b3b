"""What a scrape shows of each keeper: one pass, as a whole.

Exports are rendered one by one as they arrive, while scrapes go on showing the pass before.
When the last export of a pass is rendered, its keeper's *cut* is replaced, in one step.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import attrs

from trio_statskeeper._conflating import KeeperKey, Series, stale_at
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._naming import Family
from trio_statskeeper._retired import Retired
from trio_statskeeper._segments import SegmentedDict
from trio_statskeeper._values import Value

from ._exposition import Exposition, Part


@attrs.define(eq=False)
class Target:
    """A target's newest export."""

    keeper: KeeperKey
    families: tuple[Family, ...]
    values: tuple[Value, ...]
    """One of each family."""
    labels: dict[str, str]
    """As Prometheus allows them."""
    exported_labels: Mapping[str, str]
    """As the export has them."""
    start_timestamp: float
    arrived: float
    """When the export arrived, in seconds of Trio's clock."""
    stale_at: float
    """When the target becomes stale without a newer export, in seconds of Trio's clock."""
    lifetime: float = attrs.field(init=False)
    """Seconds from the arrival until it is stale, unless passes take longer."""
    exposition: Exposition
    """The format in which it was rendered last."""
    blocks: tuple[bytes, ...] = attrs.field(init=False)
    """Its samples in this format: a block for each part of its families."""

    def __attrs_post_init__(self) -> None:
        self.lifetime = self.stale_at - self.arrived
        self.render(self.exposition)

    def render(self, exposition: Exposition) -> None:
        """Render the samples in `exposition`."""
        metrics = zip(self.families, self.values, strict=True)
        blocks = exposition.blocks(metrics, self.labels, self.start_timestamp)
        self.blocks = tuple(blocks)
        self.exposition = exposition


@attrs.frozen(eq=False)
class Cut:
    """Targets of a keeper at one instant."""

    families: tuple[Family, ...] = ()
    """All families that its targets have."""
    segments: Iterable[Mapping[Series, Target]] = ()

    def columns(
        self, exposition: Exposition
    ) -> Iterator[dict[Part, tuple[bytes, ...]] | None]:
        """Yield the blocks of some targets after others, by part; and None in between.

        What was last rendered in another format is rendered again.
        """
        for segment in self.segments:
            by_families: dict[tuple[Family, ...], list[Sequence[bytes]]] = {}
            for target in segment.values():
                is_rendered = target.exposition is exposition
                if not is_rendered:
                    target.render(exposition)
                by_families.setdefault(target.families, []).append(target.blocks)
                if not is_rendered:
                    yield None
            yield _transposed(by_families, exposition)


def _transposed(
    by_families: Mapping[tuple[Family, ...], list[Sequence[bytes]]], exposition: Exposition
) -> dict[Part, tuple[bytes, ...]]:
    # A third of the time of looking up the block of each target and part. Tuples of bytes,
    # unlike lists, are of no concern to the garbage collector.
    columns: dict[Part, tuple[bytes, ...]] = {}
    for families, blocks in by_families.items():
        parts = (part for family in families for part in exposition.parts(family))
        for part, column in zip(parts, zip(*blocks, strict=True), strict=True):
            columns[part] = columns.get(part, ()) + column
    return columns


@attrs.define(eq=False)
class Keeper:
    """The keeper of some exports, identified by their ptype and probe."""

    _retired: Retired
    arrived: float
    """When its newest export arrived, in seconds of Trio's clock."""
    arrived_at: float = attrs.field(init=False, default=0.0)
    """The same instant in Unix seconds."""
    _timestamp: float = attrs.field(init=False, default=-math.inf)
    # When the first exports of its newest passes arrived.
    _began: deque[float] = attrs.field(init=False, factory=partial(deque[float], maxlen=3))

    cut: Cut = attrs.field(init=False, factory=Cut)
    """What scrapes show."""
    # When the first export arrived that it lacks, and the seconds after which it is late.
    _cut_lacks: float = attrs.field(init=False, default=math.inf)
    _lifetime: float = attrs.field(init=False, default=0.0)
    # Whether targets were added or removed since.
    _changed: bool = attrs.field(init=False, default=False)
    # The targets of the next cut, and how many have each family.
    _targets: SegmentedDict[Target] = attrs.field(init=False, factory=SegmentedDict[Target])
    _families: Counter[Family] = attrs.field(init=False, factory=Counter[Family])
    # How many exports have arrived, but are not rendered.
    _waiting: int = attrs.field(init=False, default=0)
    # Whether the newest export ended its pass.
    _ended: bool = attrs.field(init=False, default=False)
    # Whether an export of a newer pass took the place of one that was waiting, so that no
    # pass is complete until all exports are rendered.
    _mixed: bool = attrs.field(init=False, default=False)

    def note_arrival(self, export: EventMetrics, now: float, *, replaces: bool) -> None:
        """Note that an export waits to be rendered, perhaps in the place of another one."""
        if export.timestamp > self._timestamp:
            self._timestamp = export.timestamp
            self._began.append(now)
        self.arrived = now
        self.arrived_at = time.time()
        self._cut_lacks = min(self._cut_lacks, now)
        self._lifetime = stale_at(export, 0)
        self._ended = export.ends_pass
        if replaces:
            self._mixed = True
        else:
            self._waiting += 1

    @property
    def is_empty(self) -> bool:
        """Whether it has no targets."""
        return not self._targets

    def has_skipped(self, arrived: float) -> bool:
        """Return whether two passes were complete without a target that `arrived` then."""
        return len(self._began) == 3 and arrived < self._began[0]

    def add(self, series: Series, target: Target) -> None:
        """Add a target to the next cut, or replace it."""
        last = self._targets.get(series)
        if last is not None and last.families == target.families:
            target.families = last.families  # rather than an equal tuple for each target
        else:
            if last is not None:
                self._families.subtract(last.families)
            self._families.update(target.families)
        self._targets.set(series, target)
        self._changed = True

    def remove(self, series: Series) -> None:
        """Remove a target from the next cut."""
        self._families.subtract(self._targets.remove(series).families)
        self._changed = True

    def note_rendered(self, export: EventMetrics, now: float) -> None:
        """Note that an export was rendered; if it ends a pass, show that pass."""
        self._waiting -= 1
        ends_pass = export.ends_pass and not self._mixed
        if ends_pass or self._is_complete or self._is_late(now):
            self._replace_cut(now)
        if not self._waiting:
            self._mixed = False

    def update_cut(self, now: float) -> None:
        """Show what was rendered if it is a whole pass, or if none becomes whole."""
        if self._is_complete or self._is_late(now):
            self._replace_cut(now)

    @property
    def _is_complete(self) -> bool:
        """Whether all exports of the newest pass are rendered."""
        return self._ended and not self._waiting

    def _is_late(self, now: float) -> bool:
        """Return whether a pass has not become whole for three export intervals.

        It may never do so: its keeper may be gone, or exports may arrive faster than they
        can be rendered. Then it is better to show new totals than a cut.
        """
        return now >= self._cut_lacks + self._lifetime

    def _replace_cut(self, now: float) -> None:
        self._cut_lacks = now if self._waiting else math.inf
        if self._changed:
            self._changed = False
            self._families = +self._families  # without those that no target has any more
            self._retired.add(self._targets.take_replaced())
            self.cut = Cut(tuple(self._families), self._targets.snapshot())
