"""The totals of each target as a row, and a consistent cut through all rows.

The totals of a target are a *row*, a flat list: its schema, its start timestamp, three
notes (epoch, saved row, newest change), then the numbers of each metric side by side. The
*schema* says how each metric aggregates, and where in the row its numbers are. Targets with
the same metrics share a schema, so a target costs little more than its numbers.

A row in place never changes, except for its notes. Folding a result copies the row (one
step, and the cheapest in Python), adds to the copy, and puts the copy in place if all went
well. So a result is accepted as a whole or not at all, and an older row keeps the totals as
they were.

That is what a *cut* needs: all totals at one instant, without a pause to copy them.
`begin_cut` only increments an epoch. From then on, the first result for a target saves its
old row in the new one, and `take` returns the row of each target, once, as it was at the
cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from weakref import WeakValueDictionary

import attrs

from ._aggregation import Aggregation, Sum
from ._row import Row
from ._values import Value

# [schema, start timestamp, epoch, saved row, change, number, number, ...], where
# - epoch is that of the newest cut for which the target was touched or taken;
# - the saved row is the row at that cut, until it is taken;
# - change is the epoch at the time of the newest change.
START, EPOCH, SAVED, CHANGE, FIRST_NUMBER = 1, 2, 3, 4, 5


def _columns(schema: Schema) -> dict[str, tuple[Aggregation, int]]:
    columns: dict[str, tuple[Aggregation, int]] = {}
    at = FIRST_NUMBER
    for name, aggregation in schema.aggregations.items():
        columns[name] = aggregation, at
        at += len(aggregation.zero)
    return columns


@attrs.frozen(eq=False)
class Schema:
    """Which metrics a row holds, how each aggregates, and where its numbers are."""

    aggregations: Mapping[str, Aggregation]
    columns: dict[str, tuple[Aggregation, int]] = attrs.field(
        init=False, default=attrs.Factory(_columns, takes_self=True)
    )


@attrs.define(eq=False)
class Schemas:
    """The schemas in use, for targets to share."""

    empty: Schema = attrs.field(init=False, factory=lambda: Schema({}))
    # Weak: a schema that no row uses is dropped.
    _by_aggregations: WeakValueDictionary[tuple[tuple[str, Aggregation], ...], Schema] = (
        attrs.field(init=False, factory=WeakValueDictionary[Any, Schema])
    )

    def __len__(self) -> int:
        return len(self._by_aggregations)

    def get(self, aggregations: dict[str, Aggregation]) -> Schema:
        """Return the schema of these metrics."""
        key = tuple(aggregations.items())
        schema = self._by_aggregations.get(key)
        if schema is None:
            schema = self._by_aggregations[key] = Schema(aggregations)
        return schema


def start_timestamp(row: Row) -> float:
    """Return when the totals of `row` were zero."""
    start: float = row[START]
    return start


def metrics(row: Row, stale: float) -> dict[str, Value]:
    """Return the totals of `row`, without gauges and strings not updated since `stale`."""
    schema: Schema = row[0]
    totals: dict[str, Value] = {}
    for name, (aggregation, at) in schema.columns.items():
        if type(aggregation) is Sum:
            totals[name] = row[at]
        elif (total := aggregation.total(row, at, stale)) is not None:
            totals[name] = total
    return totals


@attrs.define(eq=False)
class Rows:
    """The rows of all targets, and the newest cut."""

    by_key: dict[str, Row] = attrs.field(init=False, factory=dict[str, Row])
    epoch: int = attrs.field(init=False, default=0)
    """The number of cuts so far."""
    cutting: bool = attrs.field(init=False, default=False)
    """Whether the rows of the newest cut are kept."""
    exported: int = attrs.field(init=False, default=0)
    """The newest cut that was exported completely."""

    def begin_cut(self) -> None:
        """Keep the totals of all targets as they are now, for `take`."""
        self.epoch += 1
        self.cutting = True

    def take(self, key: str) -> Row | None:
        """Return the row of a target as it was at the cut.

        None if the target had no totals then, or its row was taken already.
        """
        row = self.by_key.get(key)
        if row is None:
            return None
        saved: Row | None = row[SAVED]
        row[SAVED] = None
        if row[EPOCH] == self.epoch:
            return saved
        row[EPOCH] = self.epoch
        return row

    def end_cut(self) -> None:
        """Stop keeping rows for `take`."""
        self.cutting = False

    def changed_since_export(self, row: Row) -> bool:
        """Return whether a target changed since its last export.

        While a cut is being exported, changes after the cut do not count.
        """
        then: Row | None = row
        if self.cutting and row[EPOCH] == self.epoch:
            then = row[SAVED]
        return then is not None and cast("int", then[CHANGE]) >= self.exported
