"""The samples that Prometheus has of a value."""

from __future__ import annotations

from itertools import accumulate
from typing import TypeAlias, assert_never

from trio_statskeeper._distribution import Distribution
from trio_statskeeper._exponential import ExponentialDistribution
from trio_statskeeper._naming import Family
from trio_statskeeper._values import Gauge, Map, Value

Sample: TypeAlias = tuple[str, str | None, float]
"""What the sample's name adds to its family's name; the value of the family's label, if the
sample has that label; the number."""


Classic: TypeAlias = int | float | str | Gauge | Map | Distribution
"""A value that has samples: all but an exponential distribution."""

# All targets have these classic bounds of latencies, so that sums over them are right.
_SECONDS = 2**-14, 2**6  # from 61 µs to a minute


def classic(family: Family, value: Value, buckets_per_power: int) -> Classic:
    """Return `value`, or the classic buckets of an exponential distribution.

    Args:
      family: the family of the value.
      value: the value.
      buckets_per_power: how many buckets there are per power of two.
    """
    if not isinstance(value, ExponentialDistribution):
        return value
    covering = _SECONDS if family.in_seconds else None
    return value.classic(buckets_per_power, covering=covering)


def samples(value: Classic) -> list[Sample]:
    """Return the samples of `value`."""
    match value:
        case int() | float():
            return [("_total", None, value)]
        case str():
            return [("_info", value, 1)]
        case Gauge():
            return [("", None, value.value)]
        case Map():
            return [("_total", key, n) for key, n in value.values.items()]
        case Distribution():
            bounds = (*map(repr, value.bounds), "+Inf")
            counts = accumulate(value.bucket_counts)
            return [
                *(("_bucket", le, count) for le, count in zip(bounds, counts, strict=True)),
                ("_sum", None, value.sum),
                ("_count", None, value.count),
            ]
        case _:
            assert_never(value)


def created_samples(value: Value, start: float) -> list[Sample]:
    """Return the samples that say when `value`, a counter or histogram, began at zero."""
    keys = value.values if isinstance(value, Map) else (None,)
    return [("_created", key, start) for key in keys]
