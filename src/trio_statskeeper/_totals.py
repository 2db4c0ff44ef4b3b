"""The totals of all targets: plain, synchronous, free of Trio.

`Totals` folds results into the rows (`_rows`) by the aggregations of their metrics
(`_aggregation`). Which targets are listed, and which have expired, is kept in
`_exported_targets` and `_expiry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

import attrs

from ._aggregation import AggregationRules, NewKeys, Sum
from ._arguments import MAX_NUMBER, plain_str, quote
from ._expiry import UnlistedTargets
from ._exported_targets import ExportedTargets
from ._rejections import Rejections
from ._results import ProbeResult, unchecked_result
from ._row import Rejected, Row
from ._rows import CHANGE, EPOCH, SAVED, START, Rows, Schemas
from ._values import Value


@attrs.define(eq=False)
class Totals:
    """The totals of all targets."""

    rules: AggregationRules
    export_interval: float
    expire_after: float
    max_unlisted: int

    results_accepted: int = attrs.field(init=False, default=0)
    rejections: Rejections = attrs.field(init=False, factory=Rejections)
    rows: Rows = attrs.field(init=False, factory=Rows)
    unlisted: UnlistedTargets = attrs.field(init=False)
    listed: ExportedTargets = attrs.field(init=False)
    schemas: Schemas = attrs.field(init=False, factory=Schemas)

    def __attrs_post_init__(self) -> None:
        self.unlisted = UnlistedTargets(self.rows, self.export_interval, self.expire_after)
        self.listed = ExportedTargets(self.rows, self.unlisted)

    def fold(  # noqa: C901  # in one piece, as each call takes time (row 3)
        self, result: ProbeResult, now: float, timestamp: Callable[[], float]
    ) -> ProbeResult | None:
        """Fold `result` in, or reject it, and return None.

        While a new list is being gone through, it may be unknown whether the target will be
        listed. Then return a result to fold after the next step.

        Args:
          result: what a probe run adds.
          now: the running time in seconds.
          timestamp: returns the start timestamp for the totals of a new target.
        """
        try:
            deltas = result.metrics()
            # Dicts need no copy, nor does the read-only copy in a `Result`.
            kind = type(deltas)
            if kind is not dict and kind is not MappingProxyType:
                deltas = _copy_unless_dict(deltas)
            key = result.target
            if type(key) is not str:
                key = plain_str(key)
        except Exception as error:  # noqa: BLE001  # the user's code
            self.rejections.add_error(error)
            return None

        unlisted = self.unlisted
        delisted = key in unlisted.delisted
        if delisted and unlisted.is_due(key, unlisted.time(now)):
            unlisted.expire(key)
            delisted = False
        rows = self.rows
        old = rows.by_key.get(key)
        if old is None and not self._has_room_for(key):
            if self.listed.is_changing:
                return self._postpone(key, deltas)
            never_listed = f"never listed, as {self.max_unlisted} others"
            self.rejections.add("unlisted", f"target {quote(key)}: {never_listed}")
            return None

        row = self._new_row() if old is None else old.copy()
        try:
            self._add(row, deltas, now)
        except Rejected as rejection:
            self.rejections.add(rejection.reason, f"target {quote(key)}: {rejection}")
            return None
        except Exception as error:  # noqa: BLE001  # values may be of the user's classes
            self.rejections.add_error(error, f"target {quote(key)}: ")
            return None

        if old is None:
            row[START] = timestamp()
            if key not in self.listed.by_key:
                unlisted.add_never_listed(key, now)
        elif rows.cutting and old[EPOCH] != rows.epoch:
            row[EPOCH] = rows.epoch
            row[SAVED] = old
            old[SAVED] = None  # of a cut that was given up
        row[CHANGE] = rows.epoch
        rows.by_key[key] = row
        if delisted:
            unlisted.note_late(key)
        self.results_accepted += 1
        return None

    def _has_room_for(self, key: str) -> bool:
        return (
            key in self.listed.by_key or len(self.unlisted.never_listed) < self.max_unlisted
        )

    def _postpone(self, key: str, deltas: Mapping[str, Value]) -> ProbeResult | None:
        try:
            # A copy: `metrics()` is called only once, and the user may change its result.
            return unchecked_result(key, dict(deltas))
        except Exception as error:  # noqa: BLE001  # a dict of the user's class
            self.rejections.add_error(error, f"target {quote(key)}: ")
            return None

    def _new_row(self) -> Row:
        epoch = self.rows.epoch
        return [self.schemas.empty, 0.0, epoch, None, epoch]

    def _add(self, row: Row, deltas: Mapping[str, Value], now: float) -> None:
        columns = row[0].columns
        new: list[tuple[str, Value]] | None = None
        name: object = None
        try:
            for name, value in deltas.items():
                try:
                    aggregation, at = columns[name]
                except KeyError:
                    new = [] if new is None else new
                    new.append((_validate_name(name), value))
                    continue
                # Most metrics are sums: without a call, each takes 0.15 µs less, a tenth of
                # a fold (row 3 of the benchmarks). `Sum.add` handles all other cases.
                if (
                    type(aggregation) is Sum
                    and (
                        type(value) is int
                        or (type(value) is float and type(row[at]) is float)
                    )
                    and value >= 0
                    and (total := row[at] + value) <= MAX_NUMBER
                ):
                    row[at] = total
                    continue
                try:
                    aggregation.add(row, at, value, now)
                except NewKeys as new_keys:
                    self._add_keys(row, name, at, new_keys)
                    columns = row[0].columns
                    aggregation, at = columns[name]
                    aggregation.add(row, at, value, now)
        except Rejected as rejection:
            raise rejection.of_metric(name) from None
        if new is not None:
            self._add_new(row, new, now)

    def _add_new(self, row: Row, new: list[tuple[str, Value]], now: float) -> None:
        aggregations = dict(row[0].aggregations)
        for name, value in new:
            try:
                aggregation = self.rules.aggregation_of(name, value, len(aggregations))
                aggregations[name] = aggregation
                at = len(row)
                row.extend(aggregation.zero)
                aggregation.add(row, at, value, now)
            except Rejected as rejection:
                raise rejection.of_metric(name) from None
        # Last, when nothing can be rejected, and once: building a schema takes long.
        row[0] = self.schemas.get(aggregations)

    def _add_keys(self, row: Row, name: str, at: int, new: NewKeys) -> None:
        old = new.aggregation.keys
        wider = new.aggregation.with_keys_of(new.value, self.rules.max_map_keys)
        counts = dict(zip(old, row[at : at + len(old)], strict=True))
        row[at : at + len(old)] = [counts.get(key, 0) for key in wider.keys]
        row[0] = self.schemas.get({**row[0].aggregations, name: wider})


def _copy_unless_dict(deltas: object) -> Mapping[str, Value]:
    if not isinstance(deltas, Mapping):
        raise TypeError(f"metrics() must return a mapping, got {quote(deltas)}")
    mapping = cast("Mapping[str, Value]", deltas)
    return mapping if isinstance(mapping, dict) else dict(mapping)


def _validate_name(name: object) -> str:
    if not isinstance(name, str):
        raise Rejected("type", "a metric's name must be a string")
    return plain_str(name)
