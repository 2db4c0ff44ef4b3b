"""What there is to scrape."""

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
    """What is known of the keeper that exports come from, told by ptype and probe."""

    timestamp: float = -math.inf
    """That of its newest pass."""
    arrived: float = -math.inf
    """When its newest export came, in seconds of Trio's clock."""
    arrived_at: float = 0.0
    """The same in Unix time."""
    _began: deque[float] = attrs.field(init=False, factory=partial(deque[float], maxlen=3))
    """When its newest passes began to come."""

    def note(self, export: EventMetrics, now: float) -> None:
        if export.timestamp > self.timestamp:
            self.timestamp = export.timestamp
            self._began.append(now)
        self.arrived = now
        self.arrived_at = time.time()

    def has_left_out(self, arrived: float) -> bool:
        """Return whether two whole passes came without a target that `arrived` then."""
        return len(self._began) == 3 and arrived < self._began[0]


@attrs.define(eq=False)
class _Target:
    """A target as it was rendered last."""

    metrics: list[tuple[Family, Value]]
    labels: dict[str, str]
    """As Prometheus has them."""
    exported_labels: Mapping[str, str]
    """As the export has them."""
    start_timestamp: float
    keeper: _Keeper
    arrived: float
    """When it came, in seconds of Trio's clock."""
    lifetime: float
    """Seconds after which it is gone unless it comes again, or passes take long."""
    stale_at: float
    """When it is gone unless it comes again, in seconds of Trio's clock."""

    @property
    def families(self) -> list[Family]:
        return [family for family, _ in self.metrics]


@attrs.define(eq=False)
class Page:
    """What there is to scrape."""

    _prefix: str
    _created: bool
    _help: Mapping[str, str] = attrs.field(factory=dict[str, str])
    _targets: SegmentedDict[_Target] = attrs.field(
        init=False, factory=SegmentedDict[_Target]
    )
    # By family, for a page must have its samples together, and whether they are those that
    # tell when it was created: in this format, these are a family of their own.
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
    # The newest exports that are to be rendered, by their labels, and when they came.
    waiting: OrderedDict[Series, tuple[EventMetrics, float]] = attrs.field(
        init=False, factory=OrderedDict[Series, tuple[EventMetrics, float]]
    )
    # Targets that are to be looked at, whether they are gone: the rest of a segment.
    _looked_at: Iterator[tuple[Series, _Target]] = attrs.field(init=False, default=iter(()))
    _segment: int = attrs.field(init=False, default=0)

    def use(self, clock: trio.abc.Clock) -> None:
        """Take the time from `clock`; what came by another one is gone."""
        if clock is not self._clock:
            self._clock = clock
            self._targets = SegmentedDict()
            self._blocks = {}
            self.waiting.clear()
            self._families = Families(self._prefix, self._help)

    @property
    def _now(self) -> float:
        # The statistics of keepers and probers are never gone.
        return 0.0 if self._clock is None else self._clock.current_time()

    def put(self, export: EventMetrics) -> None:
        """Have `export` rendered; until then, what was rendered of its target stays."""
        now = self._now
        self._keeper_of(export).note(export, now)
        self.waiting[frozenset(export.labels.items())] = export, now

    def _keeper_of(self, export: EventMetrics) -> _Keeper:
        key = export.labels.get("ptype", ""), export.labels.get("probe", "")
        if key not in self.keepers:
            self.keepers[key] = _Keeper()
        return self.keepers[key]

    async def render(self, step: Step) -> None:  # noqa: ASYNC910  # few take no turn
        """Render what waits."""
        while self.waiting:
            self.render_first()
            await step.pause_if_over()

    def render_first(self) -> None:
        """Render the export that waits longest, in place of the target's last one."""
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
                    f"labels {quote(dict(export.labels))}: they become those of "
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
        """Look at two targets for each that is rendered: at all, again and again."""
        for _ in range(2):
            looked_at = next(self._looked_at, None)
            if looked_at is None:
                self._looked_at = iter(self._targets.segment(self._segment))
                self._segment += 1
            else:
                self._drop_if_stale(*looked_at, now)

    async def drop_stale(self, step: Step) -> None:  # noqa: ASYNC910  # few take no turn
        """Drop the targets that are gone."""
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
            # It has come again, though it is not rendered yet.
            target.arrived = waiting[1]
            target.stale_at = stale_at(*waiting)
        if target.stale_at <= now and not keeper.has_left_out(target.arrived):
            # In a busy loop, passes may take longer than intervals, up to twice as long.
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
        """Yield the text of a scrape, as it was at the first step; the steps are short.

        A target's metrics are of one export, whatever comes meanwhile.
        """
        now = self._now
        families = [
            (key, blocks.snapshot())
            for key, blocks in self._blocks.items()
            if key[0].used_until > now  # what is just gone may have another's name
        ]
        for key, segments in families:
            yield [heading(*key)]
            for segment in segments:
                yield segment.values()

    def metrics(self) -> Iterable[Metric]:
        """Return the same for `prometheus_client`; from any thread."""
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
                    # OpenMetrics wants those of each key together.
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
