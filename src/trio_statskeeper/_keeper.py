"""The stats keeper.

Theory of operation
===================

While `StatsKeeper.run` runs, two tasks share the totals (`_totals.Totals`):

- `_fold_results` waits for a result, then folds in what else is waiting, for less than a
  millisecond, before it lets others run again.
- `_export_at_ticks` sleeps until the next tick. Then, in one step and so at one instant, it
  asks for the targets, takes the timestamp and begins a cut. The rest of the pass takes its
  time: it goes through the list of targets, and sends the totals as they were at the cut,
  many targets per turn of the scheduler (`send_all`), however long the consumer takes. The
  other task folds on meanwhile.

Neither needs a lock: the totals change only between two checkpoints.

The end comes in one of three ways:

- The results end: the first task notes that in an event and returns. The second finishes
  a pass in progress, asks for the targets again, makes a last pass and returns.
- `run` is cancelled: both tasks are. What is left in the buffer is folded in and
  `results` closed, in one step, so that no sender can come between. With
  `flush_timeout`, a last pass follows under a shield.
- A task raises, for instance because all receivers of the exports channel are closed: the
  other task is cancelled, and the buffer folded in as above.

The two tasks run in a nursery, which wraps what they raise in a group;
`open_flat_nursery` unwraps it.

KeyboardInterrupt can't strike where results are folded in (it waits for a checkpoint),
lest a result be lost between its receipt and the totals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Context, Decimal
from time import perf_counter
from types import MappingProxyType
from typing import Any, final

import attrs
import trio

from ._arguments import (
    MAX_NUMBER,
    integer,
    is_callable,
    non_negative,
    plain_number,
    plain_str,
    quote,
    validate_number,
)
from ._endpoint import (
    Endpoint,
    Label,
    checked_labels,
    compiled_labels,
    endpoints_of,
    targets_function,
)
from ._event_metrics import (
    EventMetrics,
    unchecked_event_metrics,
    validate_export_interval,
    validate_latency_unit,
)
from ._log import logger
from ._nursery import open_flat_nursery
from ._plain_values import PlainValue, read_only
from ._results import ProbeResult
from ._sending import send_all
from ._timestamps import later_timestamp
from ._totals import Row, Totals, metrics, start_timestamp
from ._values import validate_bounds

# The keeper's own, and the one that Prometheus gives to the buckets of a histogram.
_RESERVED_LABELS = ("ptype", "probe", "dst", "le")

# Seconds: they suit what takes from less than a millisecond up to a minute.
_LATENCY_BOUNDS = (
    *("0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1"),
    *("0.25", "0.5", "1", "2.5", "5", "10", "30", "60"),
)

# Seconds of folding between two checkpoints. A loop that is stepped on for a millisecond
# still probes precisely.
_FOLDING_STEP = 0.0005

# None is a bad result, which counts as rejected.
_NO_RESULT: Any = object()

# Seconds that the clock may be behind the newest timestamp without a word in the log.
# Passes less than a millisecond apart are ahead of the clock, too.
_CLOCK_TOLERANCE = 0.1


def _counts(counts: Mapping[str, int]) -> Mapping[str, int]:
    return read_only(counts)


@final
@attrs.frozen
class KeeperStatistics(PlainValue):
    """What a `StatsKeeper` has done since it was made."""

    results_accepted: int
    """Results that were added to the totals."""

    results_rejected: Mapping[str, int] = attrs.field(converter=_counts, hash=False)
    """Results that could not be added, by reason:

    - `error`: `target` or `metrics()` raised, or is not as `ProbeResult` says
    - `type`: something that is not a value of a metric
    - `kind`: a metric changed the kind of its values
    - `bounds`: a distribution of other bounds than before
    - `negative`, `not-finite`: a counter went down; a NaN or infinite number
    - `overflow`: the total would exceed the largest float
    - `map-name`: a map of another name than before, or of a label's name
    - `map-keys`: a map would exceed `max_map_keys`
    - `metrics`: the target would exceed `max_metrics`
    - `unlisted`: there are `max_unlisted` targets that were never listed
    """

    passes: int
    """Passes that were completed, a last one included."""

    exports_sent: int
    """EventMetrics that were sent."""

    ticks_missed: int
    """Ticks that were skipped because the pass before takes or took too long. Each is
    counted when it is missed, so this rises while an output is stuck."""

    duplicate_targets: int
    """Targets with the key of an earlier one, summed over all calls of `targets`."""

    targets_expired: int
    """Targets whose totals were dropped as they had not been listed for `expire_after`."""

    targets_tracked: int
    """Targets of which there are totals now."""

    clock_behind: float
    """Seconds that `clock` was behind the newest timestamp when it was last read, or 0.0.
    Above 0 while timestamps are ahead of the clock, mostly because it was set back."""


def _expiry(_: object, attribute: attrs.Attribute[float], value: float | None) -> None:
    if value is not None and not validate_number(attribute, value) > 0:
        raise ValueError(
            f"{attribute.name} must be above 0 (math.inf: never) or None, got {value!r}"
        )


def _distributions(
    distributions: Mapping[str, Iterable[float]],
) -> Mapping[str, tuple[float, ...]]:
    if not isinstance(distributions, Mapping):
        raise TypeError(f"distributions must be a mapping, got {quote(distributions)}")
    checked: dict[str, tuple[float, ...]] = {}
    for name, bounds in distributions.items():
        try:
            checked[name] = validate_bounds(bounds)
        except (TypeError, ValueError) as error:
            raise type(error)(f"distributions[{name!r}]: {error}") from None
    return MappingProxyType(checked)


def _default_distributions(keeper: StatsKeeper) -> Mapping[str, tuple[float, ...]]:
    # In decimals, for round bounds in other units, too; whatever the program's context is.
    divide = Context(prec=28).divide
    unit = Decimal(repr(keeper.latency_unit))
    return {"latency": tuple(float(divide(Decimal(b), unit)) for b in _LATENCY_BOUNDS)}


def _additional_labels(labels: Mapping[str, Label]) -> Mapping[str, Label]:
    return checked_labels(labels, _RESERVED_LABELS)


@attrs.frozen
class _Grid:
    """When the ticks of a run come."""

    start: float
    interval: float
    clock: trio.abc.Clock
    """Trio's, so that other threads can read it, too."""

    def at(self, tick: int) -> float:
        return self.start + tick * self.interval

    def next_after(self, last: int) -> int:
        """Return the first tick after `last` that is not yet past."""
        now = self.clock.current_time()
        tick = max(last + 1, math.ceil((now - self.start) / self.interval))
        if tick > last + 1 and self.at(tick - 1) >= now:
            tick -= 1  # the division was rounded up
        return tick


@attrs.frozen
class _TickPass:
    """A pass in progress that a tick began."""

    grid: _Grid
    tick: int
    missed_before: int

    def ticks_missed(self) -> int:
        return self.missed_before + self.grid.next_after(self.tick) - (self.tick + 1)


@attrs.define(eq=False)
class _Progress:
    """What changes as a keeper runs, beside the totals."""

    run_since: float | None = None
    """When the run in progress began, by Trio's clock."""
    ran_before: float = 0.0
    """Seconds that earlier runs took."""
    timestamp: float = 0.0
    """The newest timestamp: the next can't be less."""
    pass_timestamp: float = -math.inf
    """That of the newest pass: the next pass's must be greater."""
    clock_behind: float = 0.0
    clock_was_behind: bool = False
    """Whether it was logged that the clock is behind, and not yet that it has caught up."""
    passes: int = 0
    exports_sent: int = 0
    ticks_missed: int = 0
    """Until the pass in progress began."""
    tick_pass: _TickPass | None = None
    in_hand: Any = _NO_RESULT
    """A result that was received, but not folded in: an exception came between."""


@final
@attrs.frozen(eq=False)
class StatsKeeper:
    """Keep cumulative metrics of targets, and export consistent snapshots of them.

    The keeper reads the results of probe runs from a memory channel, adds them up for each
    target, and every `export_interval` sends the totals of all listed targets, as they
    stand at that instant, to another:

        keeper = StatsKeeper(ptype="http", name="homepage", targets=endpoints)
        nursery.start_soon(keeper.run, results, exports)

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if a number is out of range, the bounds of a distribution don't increase,
        a label's name is invalid or reserved, or a label's template is unknown.
    """

    ptype: str = attrs.field(validator=attrs.validators.instance_of(str))
    """What kind of probe this is: the label `ptype`."""

    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    """The name of the probe: the label `probe`."""

    targets: Callable[[], Iterable[Endpoint]] = attrs.field(converter=targets_function)
    """Returns the targets to export. It may be given as a sequence of them. Called when
    `run` starts, at each tick and for the last pass. A target that left the list is
    exported again whenever it has counted something since its last export, until it
    expires."""

    export_interval: float = attrs.field(
        default=10.0, kw_only=True, converter=validate_export_interval
    )
    """Seconds between exports."""

    latency_unit: float = attrs.field(
        default=1.0, kw_only=True, converter=validate_latency_unit
    )
    """Seconds per unit of the metric `latency` and those whose names end in `-latency` or
    `_latency`. The keeper hands it on to the outputs, and scales nothing itself. Leave it 1
    where a `Prober` measures, for its latencies are in seconds."""

    distributions: Mapping[str, tuple[float, ...]] = attrs.field(
        default=attrs.Factory(_default_distributions, takes_self=True),
        kw_only=True,
        converter=_distributions,
    )
    """Bounds by metric name: plain numbers of these metrics are a distribution's. Bounds of
    latencies are in units of `latency_unit`. By default, the metric `latency` has 16 bounds
    from half a millisecond to a minute, whatever the unit. `{}`: latencies just add up."""

    additional_labels: Mapping[str, Label] = attrs.field(
        factory=dict[str, Label], kw_only=True, converter=_additional_labels
    )
    """Labels, by name, that follow ptype, probe and dst: a string; a template, which is
    `@target.name@`, `@target.port@` or `@target.label.KEY@`; or a function of the
    endpoint, called anew at each export."""

    expire_after: float | None = attrs.field(default=None, kw_only=True, validator=_expiry)
    """Seconds for which the totals of a target that is not listed are kept, and a gauge or
    string that is not renewed is exported. None: ten export intervals; `math.inf`: no
    limit. Time during which `targets` is not called, because a consumer hangs, does not
    count against targets."""

    max_unlisted: int = attrs.field(default=10_000, kw_only=True, validator=integer(0))
    """How many targets that were never listed are kept."""

    max_map_keys: int = attrs.field(default=1_000, kw_only=True, validator=integer(0))
    """How many keys a `Map` of a target may have."""

    max_metrics: int = attrs.field(default=200, kw_only=True, validator=integer(0))
    """How many metrics a target may have."""

    flush_timeout: float = attrs.field(default=0.0, kw_only=True, validator=non_negative)
    """Seconds that `run`, when cancelled, may spend on a last export. Whoever is to receive
    it must stand outside of the cancelled scope. 0: no such export."""

    clock: Callable[[], float] = attrs.field(
        default=time.time, kw_only=True, validator=is_callable
    )
    """Returns the Unix time in seconds, for timestamps alone. These increase from pass to
    pass by at least a millisecond, also while the clock is behind."""

    # Without templates.
    _labels: tuple[tuple[str, Label], ...] = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(
            lambda self: compiled_labels(self.additional_labels), takes_self=True
        ),
    )
    _progress: _Progress = attrs.field(init=False, repr=False, factory=_Progress)
    _totals: Totals = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        totals = Totals(
            distributions=self.distributions,
            map_names_taken=frozenset((*_RESERVED_LABELS, *self.additional_labels)),
            export_interval=self.export_interval,
            expire_after=self._expire_after,
            max_unlisted=self.max_unlisted,
            max_map_keys=self.max_map_keys,
            max_metrics=self.max_metrics,
        )
        object.__setattr__(self, "_totals", totals)

    @trio.lowlevel.enable_ki_protection
    async def run(  # noqa: ASYNC128  # it hands `started` on
        self,
        results: trio.MemoryReceiveChannel[ProbeResult],
        exports: trio.MemorySendChannel[EventMetrics],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep statistics until `results` ends, or until cancelled.

        Ticks lie at start + k * `export_interval`; those that come while an earlier pass
        still waits for its consumer are skipped and counted. When `results` ends, a last
        pass is made. `run` may be called again, with new channels: counting goes on.

        Args:
          results: what the probes report. Closed on return.
          exports: where the totals go. Closed on return.
          task_status: for `nursery.start`, told when the start is fixed.

        Raises:
          trio.BusyResourceError: if it is running already; no channel is closed then.
          trio.BrokenResourceError: if all receivers of `exports` are closed.
          BaseException: what `targets`, a label's function or `clock` raised. No exception
            is wrapped in a group.
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
        progress = self._progress
        if progress.run_since is not None:
            raise trio.BusyResourceError("this keeper is already running")
        progress.run_since = trio.current_time()
        try:
            with exports:
                try:
                    with results:
                        try:
                            progress.timestamp = self._timestamp()  # for `_sweep`
                            self._ask_for_targets()
                            started()
                            await self._keep(results, exports)
                        finally:
                            self._sweep(results)
                except trio.Cancelled:
                    if flush_timeout > 0:
                        with trio.move_on_after(  # noqa: ASYNC912  # a pass has some
                            flush_timeout, shield=True
                        ):
                            try:
                                await self._last_pass(exports)
                            except (trio.BrokenResourceError, trio.ClosedResourceError):
                                if _is_open(exports):
                                    raise  # a label's function raised it
                    raise
        finally:
            progress.ran_before = self._now()
            progress.run_since = None
            self._report_rejections()

    def statistics(self) -> KeeperStatistics:
        """Return what the keeper has done so far. Any thread may ask."""
        tick_pass = self._progress.tick_pass
        return KeeperStatistics(
            results_accepted=self._totals.results_accepted,
            results_rejected=self._totals.results_rejected,
            passes=self._progress.passes,
            exports_sent=self._progress.exports_sent,
            ticks_missed=(
                self._progress.ticks_missed
                if tick_pass is None
                else tick_pass.ticks_missed()
            ),
            duplicate_targets=self._totals.duplicate_targets,
            targets_expired=self._totals.targets_expired,
            targets_tracked=len(self._totals),
            clock_behind=self._progress.clock_behind,
        )

    def snapshot(self, keys: Iterable[str] | None = None) -> tuple[EventMetrics, ...]:
        """Return the totals of the listed targets as they are now, in their order.

        A snapshot does not wait, so it is consistent, but takes long for many targets. Call
        it only in the thread of the Trio loop in which the keeper runs.

        Its timestamp is the clock's, or the keeper's newest if that is later. Timestamps of
        passes do not depend on it.

        Args:
          keys: the `Endpoint.key` of each target to return, instead of all. Keys that are
            not listed, or have no totals, are left out, and each is returned once.

        Raises:
          TypeError: if `keys` is a string.
          BaseException: what a label's function or `clock` raised.
        """
        if isinstance(keys, str):
            raise TypeError(f"keys must be an iterable of strings, got {quote(keys)}")
        listed = self._totals.listed
        timestamp = self._timestamp()
        stale = self._now() - self._expire_after
        exports = (
            self._event_metrics(listed[key], row, timestamp, stale)
            for key in (listed if keys is None else dict.fromkeys(keys))
            if key in listed and (row := self._totals.row(key)) is not None
        )
        return tuple(export for export in exports if export)

    # The two tasks

    async def _keep(
        self,
        results: trio.MemoryReceiveChannel[ProbeResult],
        exports: trio.MemorySendChannel[EventMetrics],
    ) -> None:
        await self._relist()
        ended = trio.Event()
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._fold_results, results, ended)
            nursery.start_soon(self._export_at_ticks, exports, ended)

    @trio.lowlevel.enable_ki_protection
    async def _fold_results(  # noqa: ASYNC910  # the channel ends within a receive()
        self, results: trio.MemoryReceiveChannel[ProbeResult], ended: trio.Event
    ) -> None:
        progress = self._progress
        while True:
            try:
                progress.in_hand = await results.receive()
            except trio.EndOfChannel:
                break
            now = self._now()
            pause_at = perf_counter() + _FOLDING_STEP
            while progress.in_hand is not _NO_RESULT:
                postponed = self._totals.fold(progress.in_hand, now, self._start_timestamp)
                if postponed is not None:
                    progress.in_hand = postponed
                    self._totals.relist_step()
                    await trio.lowlevel.checkpoint()
                    continue
                progress.in_hand = _NO_RESULT
                if perf_counter() < pause_at:
                    try:
                        progress.in_hand = results.receive_nowait()
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
        ended.set()

    @trio.lowlevel.enable_ki_protection
    async def _export_at_ticks(
        self, exports: trio.MemorySendChannel[EventMetrics], ended: trio.Event
    ) -> None:
        progress = self._progress
        assert progress.run_since is not None
        grid = _Grid(
            progress.run_since, self.export_interval, trio.lowlevel.current_clock()
        )
        tick = self._count_missed_ticks(grid, 0)
        while not ended.is_set():
            with trio.move_on_at(grid.at(tick)):
                await ended.wait()
            if not ended.is_set():
                self._ask_for_targets()
                progress.tick_pass = _TickPass(grid, tick, progress.ticks_missed)
                try:
                    await self._pass(exports)
                finally:
                    tick = self._count_missed_ticks(grid, tick)
        await self._last_pass(exports)

    def _count_missed_ticks(self, grid: _Grid, last: int) -> int:
        """Count the ticks after `last` that are past, and return the next one."""
        tick = grid.next_after(last)
        self._progress.ticks_missed += tick - (last + 1)
        self._progress.tick_pass = None
        return tick

    def _ask_for_targets(self, *, for_last_pass: bool = False) -> None:
        self._totals.gather_late()  # first: a last pass is made even if `targets` raises
        endpoints = endpoints_of(self.targets)
        self._totals.relist(endpoints, self._now(), for_last_pass=for_last_pass)

    @trio.lowlevel.enable_ki_protection
    async def _relist(self) -> None:
        while True:
            more = self._totals.relist_step()
            await trio.lowlevel.checkpoint()
            if not more:
                return

    async def _pass(self, exports: trio.MemorySendChannel[EventMetrics]) -> None:
        """Send the totals of all listed targets as they are at the time of the call."""
        if exports.statistics().open_receive_channels == 0:
            raise trio.BrokenResourceError("all receivers of the exports are closed")
        totals = self._totals
        timestamp = self._pass_timestamp()
        stale = self._now() - self._expire_after
        totals.begin_cut()
        try:
            await self._relist()
            await send_all(
                exports,
                self._exports(timestamp, stale),
                totals.count_to_export(),
                self._note_sent,
            )
        finally:
            totals.end_cut()
        totals.note_exported()
        self._progress.passes += 1
        self._report_rejections()

    def _exports(self, timestamp: float, stale: float) -> Iterator[EventMetrics | None]:
        """Take what a pass sends out of the cut; None for a target with nothing to send."""
        totals = self._totals
        for endpoint in totals.to_export():
            row = totals.take(endpoint.key)
            if row is None:
                yield None
            else:
                yield self._event_metrics(endpoint, row, timestamp, stale)

    def _note_sent(self) -> None:
        self._progress.exports_sent += 1

    async def _last_pass(self, exports: trio.MemorySendChannel[EventMetrics]) -> None:
        """Send the totals of all targets that are listed now, or were at the last tick."""
        failure: Exception | None = None
        try:
            self._ask_for_targets(for_last_pass=True)
            await self._relist()
        except Exception as error:  # noqa: BLE001  # raised below
            # At the end of a program, what knew the targets may have ended before.
            failure = error
        try:
            await self._pass(exports)
            if failure is not None:
                raise failure
        finally:
            del failure  # else it would refer to itself, by its traceback

    # The end

    def _sweep(self, results: trio.MemoryReceiveChannel[ProbeResult]) -> None:
        """Fold in what senders have left, with no checkpoint for others to come between."""
        try:
            while self._totals.relist_step():
                pass
        finally:
            self._fold_the_rest(results)

    def _fold_the_rest(self, results: trio.MemoryReceiveChannel[ProbeResult]) -> None:
        progress = self._progress
        now = self._now()
        raised: BaseException | None = None
        while True:
            result, progress.in_hand = progress.in_hand, _NO_RESULT
            if result is _NO_RESULT:
                try:
                    result = results.receive_nowait()
                except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                    break
            try:
                self._totals.fold(result, now, self._start_timestamp_or_newest)
            except BaseException as error:  # noqa: ASYNC103, BLE001  # raised below
                # A SystemExit, say, that a result raised: the others are to count.
                raised = raised or error
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # else it would refer to itself, by its traceback

    # What is exported

    def _event_metrics(
        self, endpoint: Endpoint, row: Row, timestamp: float, stale: float
    ) -> EventMetrics | None:
        totals = metrics(row, stale)
        if not totals:
            return None
        labels = {"ptype": self.ptype, "probe": self.name, "dst": endpoint.key}
        for name, label in self._labels:
            value = label if isinstance(label, str) else label(endpoint)
            if not isinstance(value, str):
                raise TypeError(
                    f"the function of label {name!r} must return a string, "
                    f"got {quote(value)} for {endpoint.key!r}"
                )
            labels[name] = plain_str(value)
        return unchecked_event_metrics(
            timestamp,
            start_timestamp(row),
            labels,
            totals,
            self.latency_unit,
            self.export_interval,
        )

    def _report_rejections(self) -> None:
        unreported = self._totals.unreported
        if unreported:
            logger.warning(
                "%s/%s: %d results rejected since the last export (%s); the newest: %s",
                self.ptype,
                self.name,
                unreported.total(),
                ", ".join(f"{reason}: {count}" for reason, count in unreported.items()),
                self._totals.newest_rejection,
            )
            unreported.clear()

    # Time

    @property
    def _expire_after(self) -> float:
        return 10 * self.export_interval if self.expire_after is None else self.expire_after

    def _now(self) -> float:
        """Return the running time in seconds: what passes between two runs is left out."""
        progress = self._progress
        if progress.run_since is None:
            return progress.ran_before
        return progress.ran_before + (trio.current_time() - progress.run_since)

    def _start_timestamp(self) -> float:
        """Return when the totals of a new target begin."""
        self._progress.timestamp = self._timestamp()
        return self._latest_start_timestamp()

    def _start_timestamp_or_newest(self) -> float:
        """Return the same; if `clock` raises, the newest timestamp: no result is lost."""
        try:
            return self._start_timestamp()
        except BaseException:  # noqa: ASYNC103, BLE001  # even a SystemExit
            return self._latest_start_timestamp()  # noqa: ASYNC104  # is to cost no result

    def _latest_start_timestamp(self) -> float:
        progress = self._progress
        # The clock may have stepped back, and the target may have been here before: what
        # begins at zero again must tell by a later start.
        if progress.timestamp <= self._totals.latest_start_expired:
            progress.timestamp = math.nextafter(progress.timestamp, math.inf)
        return progress.timestamp

    def _pass_timestamp(self) -> float:
        """Return the timestamp of a pass: later than the one before, whatever the clock."""
        progress = self._progress
        timestamp = later_timestamp(self._timestamp(), progress.pass_timestamp)
        progress.timestamp = progress.pass_timestamp = timestamp
        is_behind = progress.clock_behind > _CLOCK_TOLERANCE
        if is_behind != progress.clock_was_behind:
            progress.clock_was_behind = is_behind
            if is_behind:
                logger.warning(
                    "%s/%s: clock is %.3f s behind the newest timestamp; until it has "
                    "caught up, timestamps increase by 1 ms per pass",
                    self.ptype,
                    self.name,
                    progress.clock_behind,
                )
            else:
                logger.info(
                    "%s/%s: clock recovered",
                    self.ptype,
                    self.name,
                )
        return timestamp

    def _timestamp(self) -> float:
        """Return the time, or the newest timestamp if the clock is behind."""
        progress = self._progress
        time_read = self.clock()
        if not isinstance(time_read, int | float):
            raise TypeError(f"clock must return seconds, got {quote(time_read)}")
        time_read = plain_number(time_read)
        if not -MAX_NUMBER <= time_read <= MAX_NUMBER:
            raise ValueError(f"clock must return finite seconds, got {quote(time_read)}")
        progress.clock_behind = max(progress.timestamp - time_read, 0.0)
        return max(progress.timestamp, time_read)


def _is_open(exports: trio.MemorySendChannel[EventMetrics]) -> bool:
    """Return whether both ends are open."""
    try:
        exports.clone().close()
    except trio.ClosedResourceError:
        return False
    return exports.statistics().open_receive_channels > 0
