"""What there is to scrape: the newest export of each target, rendered."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import attrs
import trio
from prometheus_client.metrics_core import Metric

from trio_statskeeper._arguments import quote
from trio_statskeeper._conflating import KeeperKey, Series, keeper_of, stale_at
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._naming import Families, Family
from trio_statskeeper._pacing import Step
from trio_statskeeper._retired import Retired
from trio_statskeeper._segments import SegmentedDict
from trio_statskeeper._values import Map

from ._cut import Keeper, Target
from ._exposition import Exposition, Part
from ._samples import classic, created_samples, samples

# Seconds without an export after which a keeper is forgotten. Until then, scrapes say when
# its newest export arrived.
_FORGOTTEN_AFTER = 86_400


@attrs.define(eq=False)
class Page:
    """What there is to scrape.

    Exports wait in `waiting` until they are rendered, one by one.
    """

    _prefix: str
    # That of the newest scrape, in which exports are rendered as they arrive. Scrapes in
    # another render what they need.
    _exposition: Exposition
    _help: Mapping[str, str] = attrs.field(factory=dict[str, str])
    _targets: SegmentedDict[Target] = attrs.field(init=False, factory=SegmentedDict[Target])
    _families: Families = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: Families(self._prefix, self._help), takes_self=True
        ),
    )
    _clock: trio.abc.Clock | None = attrs.field(init=False, default=None)
    keepers: dict[KeeperKey, Keeper] = attrs.field(
        init=False, factory=dict[KeeperKey, Keeper]
    )
    # The newest exports to be rendered, by their labels, and when they arrived.
    waiting: OrderedDict[Series, tuple[EventMetrics, float]] = attrs.field(
        init=False, factory=OrderedDict[Series, tuple[EventMetrics, float]]
    )
    _retired: Retired = attrs.field(init=False, factory=Retired)

    def use(self, clock: trio.abc.Clock) -> None:
        """Use `clock`; what arrived by another clock is dropped."""
        if clock is not self._clock:
            self._clock = clock
            self._targets = SegmentedDict()
            self.keepers = {}
            self.waiting.clear()
            self._families = Families(self._prefix, self._help)

    @property
    def _now(self) -> float:
        # Pages without a clock, of statistics, never become stale.
        return 0.0 if self._clock is None else self._clock.current_time()

    def put(self, export: EventMetrics) -> None:
        """Add an export to be rendered; its target's last one is shown until then."""
        now = self._now
        series = frozenset(export.labels.items())
        key = keeper_of(export)
        if key not in self.keepers:
            self.keepers[key] = Keeper(self._retired, now)
        self.keepers[key].note_arrival(export, now, replaces=series in self.waiting)
        self.waiting[series] = export, now

    async def render(self, step: Step) -> None:  # noqa: ASYNC910  # short work has no checkpoint
        """Render all exports that wait."""
        while self.waiting:
            self.render_first()
            await step.pause_if_over()

    def render_first(self) -> None:
        """Render the export that has waited longest; it replaces the target's last one."""
        _, (export, arrived) = self.waiting.popitem(last=False)
        self._render(export, arrived)
        self.keepers[keeper_of(export)].note_rendered(export, self._now)
        self._drop_stale_amortized(arrived)
        self._retired.free_some()

    def _render(self, export: EventMetrics, arrived: float) -> None:
        resolved = self._families.resolve(export, arrived)
        target = Target(
            keeper_of(export),
            tuple(family for family, _ in resolved.metrics),
            tuple(value for _, value in resolved.metrics),
            resolved.labels,
            export.labels,
            export.start_timestamp,
            arrived,
            resolved.stale_at,
            self._exposition,
        )
        series = _series(resolved.labels)
        last = self._targets.get(series)
        if last is not None and last.exported_labels != export.labels:
            if last.stale_at > arrived:
                self._families.log_skipped(
                    f"labels {quote(dict(export.labels))}: in Prometheus, they equal "
                    f"{quote(dict(last.exported_labels))}"
                )
                return
            self._drop(series)
        self._targets.set(series, target)
        self.keepers[target.keeper].add(series, target)

    def _drop_stale_amortized(self, now: float) -> None:
        """Check two targets for each one that is rendered, in a cycle."""
        for series, target in self._targets.next_items(2):
            self._drop_if_stale(series, target, now)

    async def drop_stale(self, step: Step) -> None:  # noqa: ASYNC910  # short work has no checkpoint
        """Drop all stale targets, and forget keepers that are gone."""
        now = self._now
        for items in self._targets.items():
            for series, target in items:
                self._drop_if_stale(series, target, now)
                await step.pause_if_over()
        for key, keeper in [*self.keepers.items()]:
            if keeper.is_empty and keeper.arrived < now - _FORGOTTEN_AFTER:
                del self.keepers[key]
            await step.pause_if_over()

    def _drop_if_stale(self, series: Series, target: Target, now: float) -> None:
        if self._is_stale(target, now) and self._targets.get(series) is target:
            self._drop(series)

    def _is_stale(self, target: Target, now: float) -> bool:
        if target.stale_at > now:
            return False
        keeper = self.keepers[target.keeper]
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
        self.keepers[self._targets.remove(series).keeper].remove(series)

    def scrape(
        self, exposition: Exposition, names: AbstractSet[str]
    ) -> Iterator[Sequence[bytes]]:
        """Yield a scrape in short steps: one cut of each keeper.

        Args:
          exposition: the format.
          names: the samples to show, with all others of their families. Empty: all.
        """
        self._exposition = exposition
        now = self._now
        parts: dict[Part, None] = {}
        columns: list[dict[Part, tuple[bytes, ...]]] = []
        of_part = deque[tuple[bytes, ...]]()
        try:
            for keeper in [*self.keepers.values()]:
                keeper.update_cut(now)
                for _ in self._show(keeper, exposition, names, parts, columns):
                    self._retired.free_some()
                    yield ()
            for part in _newest_of_each_name(parts):
                of_part = deque(some.pop(part, ()) for some in columns)
                for blocks in exposition.join(part, of_part):
                    self._retired.free_some()
                    yield blocks
        finally:
            # The client may have gone away.
            self._retired.add(of_part)
            for some in columns:
                self._retired.add(some.values())

    def _show(
        self,
        keeper: Keeper,
        exposition: Exposition,
        names: AbstractSet[str],
        parts: dict[Part, None],
        columns: list[dict[Part, tuple[bytes, ...]]],
    ) -> Iterator[None]:
        """Add parts and columns of a keeper's cut, in the short steps of an iterator."""
        cut, now = keeper.cut, self._now
        try:
            for family in cut.families:
                if family.used_until > now and (not names or names & family.sample_names):
                    parts.update(dict.fromkeys(exposition.parts(family)))
                yield
            for some in cut.columns(exposition):
                if some is not None:
                    columns.append(some)
                yield
        finally:
            if cut is not keeper.cut:  # so nobody else shows it
                self._retired.add(segment.values() for segment in cut.segments)

    def metrics(self, *, created: bool, buckets_per_power: int) -> Iterable[Metric]:
        """Return the metrics for `prometheus_client`; can be called from any thread."""
        metrics: dict[Family, Metric] = {}
        now = self._now
        for keeper in [*self.keepers.values()]:
            for segment in keeper.cut.segments:
                for target in segment.values():
                    if not self._is_stale(target, now):
                        _add_samples(metrics, target, created, buckets_per_power)
        return metrics.values()


def _newest_of_each_name(parts: Iterable[Part]) -> Iterable[Part]:
    # During a scrape, a name may have passed from a stale family to another.
    return {(family.name, created): (family, created) for family, created in parts}.values()


def _add_samples(
    metrics: dict[Family, Metric], target: Target, created: bool, buckets_per_power: int
) -> None:
    for family, value in zip(target.families, target.values, strict=True):
        found = samples(classic(family, value, buckets_per_power))
        if created and family.is_cumulative:
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


def _series(labels: Mapping[str, str]) -> Series:
    # To Prometheus, a label with an empty value is the same as no label:
    # https://prometheus.io/docs/concepts/data_model/#metric-names-and-labels
    return frozenset(label for label in labels.items() if label[1])
