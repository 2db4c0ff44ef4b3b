"""What there is to scrape: the newest export of each target, rendered."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import attrs
import trio
from prometheus_client.metrics_core import Metric

from trio_statskeeper._arguments import quote
from trio_statskeeper._conflating import Series, stale_at
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._naming import Families, Family
from trio_statskeeper._pacing import Step
from trio_statskeeper._segments import SegmentedDict
from trio_statskeeper._values import Map, Value

from ._samples import created_samples, samples
from ._text_format import block, heading, label_pairs, lines


@attrs.define(eq=False)
class _Keeper:
    """The keeper of some exports, identified by their ptype and probe."""

    timestamp: float = -math.inf
    """The timestamp of its newest pass."""
    arrived: float = -math.inf
    """When its newest export arrived, in seconds of Trio's clock."""
    arrived_at: float = 0.0
    """The same instant in Unix seconds."""
    _began: deque[float] = attrs.field(init=False, factory=partial(deque[float], maxlen=3))
    """When the first exports of its newest passes arrived."""

    def note_arrival(self, export: EventMetrics, now: float) -> None:
        if export.timestamp > self.timestamp:
            self.timestamp = export.timestamp
            self._began.append(now)
        self.arrived = now
        self.arrived_at = time.time()

    def has_skipped(self, arrived: float) -> bool:
        """Return whether two passes were complete without a target that `arrived` then."""
        return len(self._began) == 3 and arrived < self._began[0]


@attrs.define(eq=False)
class _Target:
    """A target whose newest export was rendered."""

    metrics: list[tuple[Family, Value]]
    labels: dict[str, str]
    """As Prometheus allows them."""
    exported_labels: Mapping[str, str]
    """As the export has them."""
    start_timestamp: float
    keeper: _Keeper
    arrived: float
    """When its export arrived, in seconds of Trio's clock."""
    lifetime: float
    """Seconds from the arrival until it is stale, unless passes take longer."""
    stale_at: float
    """When it becomes stale without a newer export, in seconds of Trio's clock."""

    @property
    def families(self) -> list[Family]:
        return [family for family, _ in self.metrics]


@attrs.define(eq=False)
class Page:
    """What there is to scrape.

    Exports wait in `waiting` until they are rendered, one by one.
    """

    _prefix: str
    _created: bool
    _help: Mapping[str, str] = attrs.field(factory=dict[str, str])
    _targets: SegmentedDict[_Target] = attrs.field(
        init=False, factory=SegmentedDict[_Target]
    )
    # By family, because the samples of a family must be adjacent, and by whether they are
    # its `_created` samples, which are a family of their own in the text format.
    _blocks: dict[tuple[Family, bool], SegmentedDict[bytes]] = attrs.field(
        init=False, factory=dict[tuple[Family, bool], SegmentedDict[bytes]]
    )
    _families: Families = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: Families(self._prefix, self._help), takes_self=True
        ),
    )
    _clock: trio.abc.Clock | None = attrs.field(init=False, default=None)
    # By the labels ptype and probe.
    keepers: dict[tuple[str, str], _Keeper] = attrs.field(
        init=False, factory=dict[tuple[str, str], _Keeper]
    )
    # The newest exports to be rendered, by their labels, and when they arrived.
    waiting: OrderedDict[Series, tuple[EventMetrics, float]] = attrs.field(
        init=False, factory=OrderedDict[Series, tuple[EventMetrics, float]]
    )
    # The rest of a segment whose targets are being checked for staleness.
    _unchecked: Iterator[tuple[Series, _Target]] = attrs.field(init=False, default=iter(()))
    _segment: int = attrs.field(init=False, default=0)

    def use(self, clock: trio.abc.Clock) -> None:
        """Use `clock`; what arrived by another clock is dropped."""
        if clock is not self._clock:
            self._clock = clock
            self._targets = SegmentedDict()
            self._blocks = {}
            self.waiting.clear()
            self._families = Families(self._prefix, self._help)

    @property
    def _now(self) -> float:
        # Pages without a clock, of statistics, never become stale.
        return 0.0 if self._clock is None else self._clock.current_time()

    def put(self, export: EventMetrics) -> None:
        """Add an export to be rendered; its target's last one is shown until then."""
        now = self._now
        self._keeper_of(export).note_arrival(export, now)
        self.waiting[frozenset(export.labels.items())] = export, now

    def _keeper_of(self, export: EventMetrics) -> _Keeper:
        key = export.labels.get("ptype", ""), export.labels.get("probe", "")
        if key not in self.keepers:
            self.keepers[key] = _Keeper()
        return self.keepers[key]

    async def render(self, step: Step) -> None:  # noqa: ASYNC910  # short work has no checkpoint
        """Render all exports that wait."""
        while self.waiting:
            self.render_first()
            await step.pause_if_over()

    def render_first(self) -> None:
        """Render the export that has waited longest; it replaces the target's last one."""
        _, (export, arrived) = self.waiting.popitem(last=False)
        resolved = self._families.resolve(export, arrived)
        labels = resolved.labels
        target = _Target(
            resolved.metrics,
            labels,
            export.labels,
            export.start_timestamp,
            self._keeper_of(export),
            arrived,
            resolved.stale_at - arrived,
            resolved.stale_at,
        )
        series = _series(labels)
        last = self._targets.get(series)
        if last is not None:
            if last.exported_labels != export.labels and last.stale_at > arrived:
                self._families.log_skipped(
                    f"labels {quote(dict(export.labels))}: in Prometheus, they equal "
                    f"{quote(dict(last.exported_labels))}"
                )
                return
            if last.families != target.families:
                self._drop(series)
        pairs = label_pairs(labels)
        self._targets.set(series, target)
        for family, value in resolved.metrics:
            self._set_block(series, family, False, block(family, pairs, value))
            if self._created and family.is_cumulative:
                created = created_samples(value, export.start_timestamp)
                self._set_block(series, family, True, lines(family, pairs, created))
        self._drop_stale_amortized(arrived)

    def _set_block(
        self, series: Series, family: Family, created: bool, rendered: bytes
    ) -> None:
        key = family, created
        if not rendered:  # a map may be empty
            self._discard(series, family, created)
        elif key in self._blocks:
            self._blocks[key].set(series, rendered)
        else:
            self._blocks[key] = SegmentedDict()
            self._blocks[key].set(series, rendered)

    def _drop_stale_amortized(self, now: float) -> None:
        """Check two targets for each one that is rendered, in a cycle."""
        for _ in range(2):
            unchecked = next(self._unchecked, None)
            if unchecked is None:
                self._unchecked = iter(self._targets.segment(self._segment))
                self._segment += 1
            else:
                self._drop_if_stale(*unchecked, now)

    async def drop_stale(self, step: Step) -> None:  # noqa: ASYNC910  # short work has no checkpoint
        """Drop all stale targets."""
        now = self._now
        for segment in self._targets.snapshot():
            for series, target in segment.items():
                self._drop_if_stale(series, target, now)
                await step.pause_if_over()

    def _drop_if_stale(self, series: Series, target: _Target, now: float) -> None:
        if self._is_stale(target, now) and self._targets.get(series) is target:
            self._drop(series)

    def _is_stale(self, target: _Target, now: float) -> bool:
        if target.stale_at > now:
            return False
        keeper = target.keeper
        waiting = self.waiting.get(frozenset(target.exported_labels.items()))
        if waiting is not None:
            # A newer export has arrived, but is not rendered yet.
            target.arrived = waiting[1]
            target.stale_at = stale_at(*waiting)
        if target.stale_at <= now and not keeper.has_skipped(target.arrived):
            # In a busy loop, a pass may take up to twice its interval.
            newest = min(keeper.arrived, target.arrived + target.lifetime)
            target.stale_at = newest + target.lifetime
        if target.stale_at <= now:
            return True
        for family in target.families:
            family.used_until = max(family.used_until, target.stale_at)
        return False

    def _drop(self, series: Series) -> None:
        for family in self._targets.remove(series).families:
            for created in False, True:
                self._discard(series, family, created)

    def _discard(self, series: Series, family: Family, created: bool) -> None:
        blocks = self._blocks.get((family, created))
        if blocks is not None and blocks.get(series) is not None:
            blocks.remove(series)
            if not blocks:
                del self._blocks[family, created]

    def text(self) -> Iterator[Iterable[bytes]]:
        """Yield the text of a scrape in short steps, as of the first step.

        All metrics of a target are of the same export, whatever arrives meanwhile.
        """
        now = self._now
        families = [
            (key, blocks.snapshot())
            for key, blocks in self._blocks.items()
            if key[0].used_until > now  # a stale one may share its name with a newer one
        ]
        for key, segments in families:
            yield [heading(*key)]
            for segment in segments:
                yield segment.values()

    def metrics(self) -> Iterable[Metric]:
        """Return the metrics for `prometheus_client`; can be called from any thread."""
        metrics: dict[Family, Metric] = {}
        targets = self._targets.values()
        now = self._now
        for target in targets:
            if self._is_stale(target, now):
                continue
            for family, value in target.metrics:
                found = samples(value)
                if self._created and family.is_cumulative:
                    found += created_samples(value, target.start_timestamp)
                if isinstance(value, Map):
                    # In OpenMetrics, the samples of each key are adjacent.
                    found.sort(key=lambda sample: sample[1] or "")
                for suffix, text, number in found:
                    if family not in metrics:
                        metrics[family] = Metric(family.name, family.help, family.kind)
                    labels = target.labels
                    if text is not None and family.label is not None:
                        labels = {**labels, family.label: text}
                    metrics[family].add_sample(family.name + suffix, labels, number)
        return metrics.values()


def _series(labels: Mapping[str, str]) -> Series:
    # To Prometheus, a label with an empty value is the same as no label:
    # https://prometheus.io/docs/concepts/data_model/#metric-names-and-labels
    return frozenset(label for label in labels.items() if label[1])
