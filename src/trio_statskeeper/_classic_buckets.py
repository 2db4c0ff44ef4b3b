"""Classic buckets from exponential ones: fewer, between bounds that are powers of two."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate, pairwise

from ._arguments import quote, validate_positive
from ._distribution import Distribution, unchecked_distribution
from ._exponential_buckets import ExponentialBuckets
from ._exponential_mapping import SMALLEST_NORMAL, bucket_start

# With more, there would be hundreds of series for each target.
_MAX_SCALE = 4


def validate_buckets_per_power(number: int) -> int:
    """Return the argument `buckets_per_power`.

    Raises:
      TypeError: if it is not an integer.
      ValueError: if it is not 1, 2, 4, 8 or 16.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"buckets_per_power must be an integer, got {quote(number)}")
    if number not in {1 << scale for scale in range(_MAX_SCALE + 1)}:
        raise ValueError(f"buckets_per_power must be 1, 2, 4, 8 or 16, got {quote(number)}")
    return number


def between_samples(
    buckets: ExponentialBuckets, total: float, buckets_per_power: int
) -> Distribution:
    """Return a distribution whose bounds begin and end where the samples do.

    Args:
      buckets: they are changed.
      total: the sum of the samples.
      buckets_per_power: the number of buckets from one power of two to the next, at most.
    """
    buckets.coarsen(max(0, buckets.scale - _scale(buckets_per_power)))
    positive, negative = buckets.positive, buckets.negative
    bounds: list[float] = []
    counts: list[int] = []
    if negative.counts:
        ends = _bounds(negative.offset, negative.last + 1, buckets.scale, buckets.factor)
        bounds += [-end for end in reversed(ends)]
        counts += 0, *reversed(negative.counts)
    if buckets.zero_count or not (positive.counts or negative.counts):
        bounds.append(0.0)
        counts.append(buckets.zero_count)
    if positive.counts:
        bounds += _bounds(positive.offset, positive.last + 1, buckets.scale, buckets.factor)
        counts += 0, *positive.counts
    # Near the limits of floats, bounds may become equal or infinite.
    up_to: dict[float, int] = {}
    for bound, count in zip(bounds, counts, strict=True):
        up_to[bound] = up_to.get(bound, 0) + count
    beyond = up_to.pop(math.inf, 0)
    below = up_to.pop(-math.inf, 0)
    lowest, *others = up_to.values()
    return unchecked_distribution(tuple(up_to), (below + lowest, *others, beyond), total)


def between_bounds(
    buckets: ExponentialBuckets,
    total: float,
    buckets_per_power: int,
    covering: tuple[float, float],
) -> Distribution:
    """Return a distribution of all bounds from the first of `covering` to the second.

    A bound that lies within a bucket counts all of its samples. So the count at a bound
    never falls when buckets are merged.
    """
    scale = _scale(buckets_per_power)
    if len(covering) != 2:
        raise ValueError(f"covering must be two powers of two, got {quote(covering)}")
    first, last = (_power(bound, buckets.factor) << scale for bound in covering)
    if first >= last:
        raise ValueError(f"covering must increase, got {quote(covering)}")
    buckets.coarsen(max(0, buckets.scale - scale))
    # The count of all samples below each positive bucket, and at last of all samples
    below = buckets.zero_count + sum(buckets.negative.counts)
    cumulative = [*accumulate(buckets.positive.counts, initial=below)]
    offset, coarser = buckets.positive.offset, scale - buckets.scale
    at_bounds = [
        # Rounded up, the index at this scale
        cumulative[max(0, min(-(-index >> coarser) - offset, len(cumulative) - 1))]
        for index in range(first, last + 1)
    ]
    steps = pairwise((0, *at_bounds, cumulative[-1]))
    counts = tuple(upper - lower for lower, upper in steps)
    return unchecked_distribution(
        _bounds(first, last, scale, buckets.factor), counts, total
    )


def _scale(buckets_per_power: int) -> int:
    return validate_buckets_per_power(buckets_per_power).bit_length() - 1


@lru_cache(typed=True)
def _power(bound: float, factor: float) -> int:
    """Return the exponent of a power of two that is multiplied by `factor`."""
    fraction, exponent = math.frexp(validate_positive("covering", bound) / factor)
    if fraction != 0.5 or bound < SMALLEST_NORMAL:
        of_factor = "" if factor == 1 else f" times {factor!r}"
        raise ValueError(
            f"covering must be two powers of two{of_factor}, got {quote(bound)}"
        )
    return exponent - 1


@lru_cache(maxsize=1_000)
def _bounds(first: int, last: int, scale: int, factor: float) -> tuple[float, ...]:
    """Return where the buckets from index `first` to index `last` begin."""
    return tuple(factor * bucket_start(index, scale) for index in range(first, last + 1))
