"""How the values of a metric add up: one aggregation per kind of value.

An aggregation keeps the numbers of a metric side by side in a row, which is a flat list,
from the index `at` on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias, assert_never, cast, final

import attrs

from ._arguments import MAX_NUMBER, is_number, plain_number, plain_str, quote
from ._distribution import Distribution
from ._exponential import ExponentialDistribution
from ._exponential_option import Exponential
from ._histograms import ExponentialHistogram, Histogram
from ._row import Rejected, Row, accept_number
from ._seconds import factor_in_unit, is_in_latency_unit
from ._values import Gauge, Map, Value, unchecked_map


class NewKeys(Exception):
    """A map has keys for which the row has no place yet."""

    def __init__(self, aggregation: SumByKey, value: Map) -> None:
        super().__init__()
        self.aggregation = aggregation
        self.value = value


@final
@attrs.frozen
class Sum:
    """Adds numbers. The row holds their sum, which is the total."""

    zero = (0,)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        number = accept_number(value)
        if number < 0:
            raise Rejected("negative", f"a counter can't decrease, got {quote(value)}")
        if not number <= MAX_NUMBER:
            raise Rejected("not-finite", f"a counter must be finite, got {quote(value)}")
        row[at] = _sum(row[at], number)


@final
@attrs.frozen
class LastValue:
    """Keeps the newest gauge or string. The row holds it and the time of its update."""

    type: type[Gauge | str]

    zero = (None, 0.0)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        if type(value) is self.type:
            row[at] = value
        elif self.type is str and isinstance(value, str):
            row[at] = plain_str(value)
        else:
            raise Rejected("kind", f"expected a {self.type.__name__}, got {quote(value)}")
        row[at + 1] = now

    def total(self, row: Row, at: int, stale: float) -> Value | None:
        newest: Value = row[at]
        return newest if row[at + 1] > stale else None


def _places(aggregation: SumByKey) -> dict[str, int]:
    return {key: place for place, key in enumerate(aggregation.keys)}


@final
@attrs.frozen
class SumByKey:
    """Adds maps key by key. The row holds the counts in the order of their sorted keys."""

    name: str
    keys: tuple[str, ...] = ()
    places: dict[str, int] = attrs.field(
        init=False, eq=False, default=attrs.Factory(_places, takes_self=True)
    )

    @property
    def zero(self) -> tuple[Any, ...]:
        return (0,) * len(self.keys)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        if type(value) is not Map:
            raise Rejected("kind", f"expected a map, got {quote(value)}")
        if value.name != self.name:
            raise Rejected(
                "map-name",
                f"expected a map named {quote(self.name)}, got {quote(value.name)}",
            )
        places = self.places
        if not places.keys() >= value.values.keys():
            raise NewKeys(self, value)
        for key, number in value.values.items():
            place = at + places[key]
            before = row[place]
            total = before + number
            # No call in the usual case, as in `Totals._add`.
            row[place] = total if before <= total <= MAX_NUMBER else _sum(before, number)

    def with_keys_of(self, value: Map, max_keys: int) -> SumByKey:
        """Return this aggregation with the keys of `value` added, if it has room."""
        keys = self.keys
        if len(value.values) <= max_keys:
            keys = tuple(sorted(self.places.keys() | value.values.keys()))
        if len(keys) > max_keys or len(value.values) > max_keys:
            raise Rejected("map-keys", f"the map would exceed {max_keys} keys")
        return SumByKey(self.name, keys)

    def total(self, row: Row, at: int, stale: float) -> Value:
        counts = row[at : at + len(self.keys)]
        return unchecked_map(self.name, dict(zip(self.keys, counts, strict=True)))


Aggregation: TypeAlias = Sum | LastValue | SumByKey | Histogram | ExponentialHistogram
"""Each has:

- `zero`: the numbers of a metric before its first value;
- `add(row, at, value, now)`: adds `value` to the numbers in `row`;
- `total(row, at, stale)`: returns the total, or None if it was not updated since `stale`.
  `Sum` has no `total`: the number in the row is the total.
"""


@attrs.frozen
class AggregationRules:
    """The options of a keeper on which the aggregation of a new metric depends."""

    distributions: Mapping[str, tuple[float, ...] | Exponential]
    """By metric name, the bounds or the option `Exponential`: numbers are samples."""
    label_names: frozenset[str]
    """A map must not have the name of a label."""
    max_map_keys: int
    max_metrics: int
    latency_unit: float

    def aggregation_of(self, name: str, value: Value, metrics_before: int) -> Aggregation:
        """Return the aggregation of a new metric, according to its first value."""
        if metrics_before >= self.max_metrics:
            limit = f"the target would exceed {self.max_metrics} metrics"
            raise Rejected("metrics", limit)
        bounds = self.distributions.get(name)
        if isinstance(bounds, Exponential):
            return self._exponential(name, bounds, takes_samples=True)
        if bounds is not None:
            return Histogram(bounds, takes_samples=True)
        first = plain_number(cast("float", value)) if is_number(value) else value
        if not isinstance(first, Value):
            raise Rejected("type", f"{quote(value)} is not a value of a metric")
        return self._aggregation_of_kind(name, first)

    def _aggregation_of_kind(self, name: str, first: Value) -> Aggregation:
        match first:
            case int() | float():
                return Sum()
            case str():
                return LastValue(str)
            case Gauge():
                return LastValue(Gauge)
            case Map():
                if first.name in self.label_names:
                    raise Rejected(
                        "map-name", f"a map can't be named {first.name!r}: that is a label"
                    )
                return SumByKey(first.name).with_keys_of(first, self.max_map_keys)
            case Distribution():
                return Histogram(first.bounds, takes_samples=False)
            case ExponentialDistribution():
                return self._exponential(name, Exponential(), takes_samples=False)
            case _:
                assert_never(first)

    def _exponential(
        self, name: str, option: Exponential, *, takes_samples: bool
    ) -> ExponentialHistogram:
        factor = factor_in_unit(self.latency_unit) if is_in_latency_unit(name) else 1.0
        return ExponentialHistogram(option.max_buckets, takes_samples, factor)


def _sum(total: float, number: float) -> int | float:
    """Return the sum of two counts, which is never below `total`."""
    added = total + number
    if added > MAX_NUMBER:
        raise Rejected("overflow", "the total would exceed the largest float")
    # An integer beyond 2**53 may be rounded down when it becomes a float.
    return added if added >= total else math.nextafter(added, math.inf)
