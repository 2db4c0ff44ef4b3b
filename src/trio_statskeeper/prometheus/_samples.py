"""The samples that Prometheus has of a value."""

from __future__ import annotations

from itertools import accumulate
from typing import TypeAlias, assert_never

from trio_statskeeper._distribution import Distribution
from trio_statskeeper._exponential import ExponentialDistribution
from trio_statskeeper._values import Gauge, Map, Value

Sample: TypeAlias = tuple[str, str | None, float]
"""What the sample's name adds to its family's name; the value of the family's label, if the
sample has that label; the number."""


def samples(value: Value, buckets_per_power: int = 1) -> list[Sample]:
    """Return the samples of `value`.

    Args:
      value: the value of a metric.
      buckets_per_power: buckets of an exponential distribution per power of two.
    """
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
        case ExponentialDistribution():
            return samples(value.classic(buckets_per_power))
        case _:
            assert_never(value)


def created_samples(value: Value, start: float) -> list[Sample]:
    """Return the samples that say when `value`, a counter or histogram, began at zero."""
    keys = value.values if isinstance(value, Map) else (None,)
    return [("_created", key, start) for key in keys]
