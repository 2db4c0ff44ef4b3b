"""Exponential distributions of parts that are known to be valid."""

from __future__ import annotations

from ._exponential import ExponentialDistribution, buckets_of

# The setters of the slots: see `unchecked_distribution`.
_set_scale, _set_positive_offset, _set_positive_counts = (
    vars(ExponentialDistribution)[slot].__set__
    for slot in ("scale", "positive_offset", "positive_counts")
)
_set_negative_offset, _set_negative_counts, _set_zero_count = (
    vars(ExponentialDistribution)[slot].__set__
    for slot in ("negative_offset", "negative_counts", "zero_count")
)
_set_sum, _set_min, _set_max, _set_factor = (
    vars(ExponentialDistribution)[slot].__set__ for slot in ("sum", "min", "max", "factor")
)


def unchecked_exponential_distribution(  # noqa: PLR0913
    scale: int,
    positive: tuple[int, tuple[int, ...]],
    negative: tuple[int, tuple[int, ...]],
    zero_count: int,
    total: float,
    *,
    lowest: float | None,
    highest: float | None,
    factor: float,
) -> ExponentialDistribution:
    """Return an `ExponentialDistribution` of valid arguments, without empty ends.

    The samples of each sign are the offset and the counts. Without any, the scale must be
    the finest.
    """
    unchecked = ExponentialDistribution.__new__(ExponentialDistribution)
    _set_scale(unchecked, scale)
    _set_positive_offset(unchecked, positive[0])
    _set_positive_counts(unchecked, positive[1])
    _set_negative_offset(unchecked, negative[0])
    _set_negative_counts(unchecked, negative[1])
    _set_zero_count(unchecked, zero_count)
    _set_sum(unchecked, total)
    _set_min(unchecked, lowest)
    _set_max(unchecked, highest)
    _set_factor(unchecked, factor if positive[1] or negative[1] else 1.0)
    return unchecked


def without_factor(distribution: ExponentialDistribution) -> ExponentialDistribution:
    """Return the samples by buckets of the factor 1: see `ExponentialBuckets.convert`."""
    if distribution.factor == 1:
        return distribution
    buckets = buckets_of(distribution)
    buckets.convert(1.0)
    positive, negative = buckets.positive, buckets.negative
    return unchecked_exponential_distribution(
        buckets.scale,
        (positive.offset, tuple(positive.counts)),
        (negative.offset, tuple(negative.counts)),
        buckets.zero_count,
        distribution.sum,
        lowest=distribution.min,
        highest=distribution.max,
        factor=buckets.factor,
    )
