"""The stats keeper: its options, and what it offers.

`_keeper_run` explains what happens while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import final

import attrs
import trio

from ._aggregation import AggregationRules
from ._arguments import (
    integer,
    is_callable,
    non_negative,
    quote,
    string,
    validate_number,
)
from ._clocks import RunningTime, Timestamps
from ._distribution import validate_bounds
from ._endpoint import Endpoint, targets_function
from ._event_metrics import (
    EventMetrics,
    validate_export_interval,
    validate_latency_unit,
)
from ._exponential_option import Exponential
from ._exports import ExportBuilder
from ._keeper_run import KeeperRun
from ._keeper_statistics import KeeperStatistics
from ._labels import Label, validate_labels
from ._passes import Passes
from ._results import ProbeResult
from ._ticks import Grid, MissedTicks
from ._totals import Totals

# The keeper's labels, and Prometheus' label of the buckets of a histogram.
_RESERVED_LABELS = ("ptype", "probe", "dst", "le")

# What `expire_after=None` means.
_INTERVALS_UNTIL_EXPIRY = 10


def _expiry(_: object, attribute: attrs.Attribute[float], value: float | None) -> None:
    if value is not None and not validate_number(attribute, value) > 0:
        raise ValueError(
            f"{attribute.name} must be > 0 (math.inf: never) or None, got {value!r}"
        )


def _validate_distributions(
    distributions: Mapping[str, Iterable[float] | Exponential],
) -> Mapping[str, tuple[float, ...] | Exponential]:
    if not isinstance(distributions, Mapping):
        raise TypeError(f"distributions must be a mapping, got {quote(distributions)}")
    valid: dict[str, tuple[float, ...] | Exponential] = {}
    for name, bounds in distributions.items():
        if isinstance(bounds, Exponential):
            valid[name] = bounds
            continue
        if not isinstance(bounds, Iterable):
            raise TypeError(
                f"distributions[{name!r}] must be Exponential() or a sequence of bounds, "
                f"got {quote(bounds)}"
            )
        try:
            valid[name] = validate_bounds(bounds)
        except (TypeError, ValueError) as error:
            raise type(error)(f"distributions[{name!r}]: {error}") from None
    return MappingProxyType(valid)


def _validate_additional_labels(labels: Mapping[str, Label]) -> Mapping[str, Label]:
    return validate_labels(labels, _RESERVED_LABELS)


def _make_passes(keeper: StatsKeeper) -> Passes:
    probe = f"{keeper.ptype}/{keeper.name}"
    expire_after = keeper.expire_after
    if expire_after is None:
        expire_after = _INTERVALS_UNTIL_EXPIRY * keeper.export_interval
    rules = AggregationRules(
        distributions=keeper.distributions,
        label_names=frozenset((*_RESERVED_LABELS, *keeper.additional_labels)),
        max_map_keys=keeper.max_map_keys,
        max_metrics=keeper.max_metrics,
        latency_unit=keeper.latency_unit,
    )
    totals = Totals(
        rules=rules,
        export_interval=keeper.export_interval,
        expire_after=expire_after,
        max_unlisted=keeper.max_unlisted,
    )
    exports = ExportBuilder(
        ptype=keeper.ptype,
        probe=keeper.name,
        additional_labels=keeper.additional_labels,
        latency_unit=keeper.latency_unit,
        export_interval=keeper.export_interval,
    )
    timestamps = Timestamps(keeper.clock, probe)
    return Passes(probe, keeper.targets, exports, totals, RunningTime(), timestamps)


@final
@attrs.define(eq=False, on_setattr=attrs.setters.frozen)
class StatsKeeper:
    """Keep cumulative metrics of targets, and export consistent snapshots of them.

    The keeper reads the results of probe runs from a memory channel and adds them up for
    each target. Every `export_interval`, it sends the totals of all listed targets, as they
    are at that instant, to another channel:

        keeper = StatsKeeper(ptype="http", name="homepage", targets=endpoints)
        nursery.start_soon(keeper.run, results, exports)

    Args:
      ptype: the type of the probe: the label `ptype`.
      name: the name of the probe: the label `probe`.
      targets: the targets to export: a sequence, or a function that returns them. The
        function is called when `run` starts, at each tick and for the last pass. A delisted
        target is exported again whenever it has changed since its last export, until it
        expires.
      export_interval: seconds between exports.
      latency_unit: seconds per unit of the metric `latency` and of metrics whose names end
        in `-latency` or `_latency`. The keeper passes the unit on to the outputs, and
        scales nothing itself. Leave it 1 where a `Prober` measures: its latencies are in
        seconds.
      distributions: which metrics are distributions: numbers of these are samples. By
        metric name, either `Exponential()`, whose buckets follow from the samples, or the
        bounds of the buckets; those of latencies are in units of `latency_unit`. By
        default, the metric `latency` is an exponential distribution. With `{}`, latencies
        add up.
      additional_labels: labels, by name, that follow ptype, probe and dst. A value is a
        string, a template (`@target.name@`, `@target.port@` or `@target.label.KEY@`), or a
        function of the endpoint, which is called at each export.
      expire_after: seconds until the totals of an unlisted target are dropped, and a gauge
        or string that is not updated is omitted. None: ten export intervals; `math.inf`:
        never. Targets don't age while `targets` is not called because a consumer hangs.
      max_unlisted: how many targets that were never listed are tracked.
      max_map_keys: how many keys a `Map` of a target may have.
      max_metrics: how many metrics a target may have.
      flush_timeout: seconds that `run`, when cancelled, may spend on a last export. Its
        receiver must run outside of the cancelled scope. 0 disables the last export.
      clock: returns the Unix time in seconds, which is used for timestamps only. Timestamps
        increase from pass to pass by at least a millisecond, even if the clock is set back.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if a number is out of range, the bounds of a distribution don't increase,
        the name of a label is invalid or reserved, or the template of a label is unknown.
    """

    ptype: str = attrs.field(validator=string)

    name: str = attrs.field(validator=string)

    targets: Callable[[], Iterable[Endpoint]] = attrs.field(converter=targets_function)

    export_interval: float = attrs.field(
        default=10.0, kw_only=True, converter=validate_export_interval
    )

    latency_unit: float = attrs.field(
        default=1.0, kw_only=True, converter=validate_latency_unit
    )

    distributions: Mapping[str, tuple[float, ...] | Exponential] = attrs.field(
        factory=lambda: {"latency": Exponential()},
        kw_only=True,
        converter=_validate_distributions,
    )

    additional_labels: Mapping[str, Label] = attrs.field(
        factory=dict[str, Label], kw_only=True, converter=_validate_additional_labels
    )

    expire_after: float | None = attrs.field(default=None, kw_only=True, validator=_expiry)

    max_unlisted: int = attrs.field(default=10_000, kw_only=True, validator=integer(0))

    max_map_keys: int = attrs.field(default=1_000, kw_only=True, validator=integer(0))

    max_metrics: int = attrs.field(default=200, kw_only=True, validator=integer(0))

    flush_timeout: float = attrs.field(default=0.0, kw_only=True, validator=non_negative)

    clock: Callable[[], float] = attrs.field(
        default=time.time, kw_only=True, validator=is_callable
    )

    _passes: Passes = attrs.field(
        init=False, repr=False, default=attrs.Factory(_make_passes, takes_self=True)
    )
    _missed_ticks: MissedTicks = attrs.field(init=False, repr=False, factory=MissedTicks)

    @trio.lowlevel.enable_ki_protection
    async def run(  # noqa: ASYNC128  # it passes `started` on
        self,
        results: trio.MemoryReceiveChannel[ProbeResult],
        exports: trio.MemorySendChannel[EventMetrics],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep statistics until `results` ends, or until cancelled.

        Ticks lie at start + k * `export_interval`. Ticks that come while an earlier pass
        waits for its consumer are skipped and counted. When `results` ends, a last pass is
        made. `run` may be called again, with new channels: counting goes on.

        Args:
          results: the results of probe runs. Closed on return.
          exports: where the totals are sent. Closed on return.
          task_status: for `nursery.start`; `started()` is called when the start is fixed.

        Raises:
          trio.BusyResourceError: if it is already running. No channel is closed then.
          trio.BrokenResourceError: if all receivers of `exports` are closed.
          BaseException: what `targets`, the function of a label, or `clock` raised. No
            exception is wrapped in a group.
        """
        await self.run_and_flush(results, exports, task_status.started, self.flush_timeout)

    @trio.lowlevel.enable_ki_protection
    async def run_and_flush(
        self,
        results: trio.MemoryReceiveChannel[ProbeResult],
        exports: trio.MemorySendChannel[EventMetrics],
        started: Callable[[], None],
        flush_timeout: float,
    ) -> None:
        """Do what `run` does, with another `flush_timeout`."""
        running_time = self._passes.time
        if running_time.started is not None:
            raise trio.BusyResourceError("this keeper is already running")
        start = running_time.start()
        try:
            grid = Grid(start, self.export_interval, trio.lowlevel.current_clock())
            run = KeeperRun(results, exports, self._passes, self._missed_ticks, grid)
            await run.run(started, flush_timeout)
        finally:
            running_time.stop()
            self._passes.totals.rejections.report(self._passes.probe)

    def statistics(self) -> KeeperStatistics:
        """Return what the keeper has done so far. Any thread may call this."""
        passes = self._passes
        totals = passes.totals
        return KeeperStatistics(
            results_accepted=totals.results_accepted,
            results_rejected=totals.rejections.counts,
            passes=passes.completed,
            exports_sent=passes.exports_sent,
            ticks_missed=self._missed_ticks.count(),
            duplicate_targets=totals.listed.duplicate_targets,
            targets_expired=totals.unlisted.expired,
            targets_tracked=len(totals.rows.by_key),
            clock_behind=passes.timestamps.behind,
        )

    def snapshot(self, keys: Iterable[str] | None = None) -> tuple[EventMetrics, ...]:
        """Return the totals of the listed targets as they are now, in their order.

        A snapshot has no checkpoint, so it is consistent, but takes long for many targets.
        Call it only in the thread of the keeper's Trio loop.

        Its timestamp is the clock's, or the keeper's newest timestamp if that is later. A
        snapshot does not change the timestamps of passes.

        Args:
          keys: the `Endpoint.key` of each target to return, instead of all. Keys that are
            not listed, or have no totals, are skipped. Each target is returned once.

        Raises:
          TypeError: if `keys` is a string.
          BaseException: what the function of a label, or `clock`, raised.
        """
        if isinstance(keys, str):
            raise TypeError(f"keys must be an iterable of strings, got {quote(keys)}")
        passes = self._passes
        listed, rows = passes.totals.listed.by_key, passes.totals.rows.by_key
        timestamp = passes.timestamps.now()
        stale = passes.stale_at()
        built = (
            passes.exports.build(listed[key], rows[key], timestamp, stale)
            for key in (listed if keys is None else dict.fromkeys(keys))
            if key in listed and key in rows
        )
        exports = [export for export in built if export]
        if exports:
            exports[-1] = attrs.evolve(exports[-1], ends_pass=True)
        return tuple(exports)
