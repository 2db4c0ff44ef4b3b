"""Exponential distributions, whose buckets follow from the samples.

https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

import attrs

from ._arguments import (
    MAX_NUMBER,
    plain_finite,
    plain_number,
    quote,
    validate_positive,
)
from ._classic_buckets import between_bounds, between_samples
from ._distribution import Distribution, validate_bucket_counts
from ._exponential_buckets import ExponentialBuckets, Range
from ._exponential_mapping import (
    MAX_SCALE,
    MIN_SCALE,
    bucket_start,
    highest_index,
    lowest_index,
)
from ._exponential_option import DEFAULT_MAX_BUCKETS, validate_max_buckets
from ._plain_values import PlainValue

# Merging takes 0.3 µs for each bucket. OpenTelemetry's SDKs have 160.
_MAX_BUCKETS = 2_000


def _integer(value: int) -> int:
    number = plain_number(value)
    if isinstance(number, float):
        raise TypeError(f"expected an integer, got {quote(value)}")
    return number


def _counts(counts: Iterable[int]) -> tuple[int, ...]:
    counts = tuple(counts)
    if len(counts) > _MAX_BUCKETS:
        raise ValueError(
            f"there may be {_MAX_BUCKETS:,} buckets of each sign, got {len(counts):,}"
        )
    numbers = validate_bucket_counts(counts)
    if numbers and max(numbers) >= 2**64:
        raise ValueError(f"a count must be < 2**64, got {quote(max(numbers))}")
    return numbers


def _zero_count(count: int) -> int:
    return _counts((count,))[0]


def _factor(value: float) -> float:
    return validate_positive("factor", value)


@final
@attrs.frozen
class ExponentialDistribution(PlainValue):
    """How many samples fell into each of many buckets, whose bounds need not be chosen.

    The bucket of index i holds the samples above factor * base**i, up to
    factor * base**(i + 1), where base is 2**(2**-scale). Negative samples have buckets of
    their own, and are counted there as if they were positive.

    Equal distributions are equal values: empty buckets at either end are removed. Without
    any bucket, the offsets are 0, the scale is the finest, 20, and the factor is 1.

    Args:
      scale: how fine the buckets are, from -10 to 20: there are 2**scale from one power of
        two to the next.
      positive_offset: the index of the first bucket of positive samples.
      positive_counts: the number of samples in each bucket from that one on.
      negative_offset: the index of the first bucket of negative samples.
      negative_counts: the number of samples in each bucket from that one on.
      zero_count: the number of samples that are 0.
      sum: the sum of all samples.
      min: the least sample; None if it is not known, or there are no samples.
      max: the greatest sample; None if it is not known, or there are no samples.
      factor: what all bounds are multiplied by. In exports, it is 1, but
        1 / `latency_unit` for latencies, whose bounds are powers of the base in seconds.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if the scale is out of range; if there are more than 2,000 buckets of one
        sign, or a bucket lies outside of the range of floats; if a count is negative or
        >= 2**64; if the sum, `min` or `max` is not finite; if only one of `min` and `max`
        is known, `min` is above `max`, they are given without samples, or lie outside of
        the buckets; if the factor is not finite and > 0.
    """

    scale: int = attrs.field(converter=_integer)

    positive_offset: int = attrs.field(default=0, kw_only=True, converter=_integer)

    positive_counts: tuple[int, ...] = attrs.field(
        default=(), kw_only=True, converter=_counts
    )

    negative_offset: int = attrs.field(default=0, kw_only=True, converter=_integer)

    negative_counts: tuple[int, ...] = attrs.field(
        default=(), kw_only=True, converter=_counts
    )

    zero_count: int = attrs.field(default=0, kw_only=True, converter=_zero_count)

    sum: float = attrs.field(default=0.0, kw_only=True, converter=plain_finite)

    min: float | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(plain_finite)
    )

    max: float | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(plain_finite)
    )

    factor: float = attrs.field(default=1.0, kw_only=True, converter=_factor)

    def __attrs_post_init__(self) -> None:
        if not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise ValueError(
                f"scale must be from {MIN_SCALE} to {MAX_SCALE}, got {quote(self.scale)}"
            )
        _trim(self, "positive")
        _trim(self, "negative")
        if not _has_buckets(self):
            object.__setattr__(self, "scale", MAX_SCALE)
            object.__setattr__(self, "factor", 1.0)
        if self.min is None and self.max is None:
            return
        if self.min is None or self.max is None:
            raise ValueError(
                f"min and max must both be known, or neither, got {self.min!r} and "
                f"{self.max!r}"
            )
        if self.min > self.max:
            raise ValueError(f"min must be <= max, got {self.min!r} and {self.max!r}")
        if not self.count:
            raise ValueError(
                f"without samples, min and max must be None, got {self.min!r} and "
                f"{self.max!r}"
            )
        if not buckets_of(self).may_have_extremes(self.min, self.max):
            raise ValueError(
                f"min and max must lie in the outermost buckets, got {self.min!r} and "
                f"{self.max!r}"
            )

    @property
    def count(self) -> int:
        """The number of all samples."""
        return sum(self.positive_counts) + self.zero_count + sum(self.negative_counts)

    @classmethod
    def of(
        cls, samples: Iterable[float], max_buckets: int = DEFAULT_MAX_BUCKETS
    ) -> ExponentialDistribution:
        """Return the distribution of `samples`.

        Its scale is the finest at which at most `max_buckets` buckets are needed for the
        positive samples, and for the negative ones.

        Args:
          samples: finite numbers.
          max_buckets: as in `Exponential`.

        Raises:
          TypeError: if a sample is not a number, or `max_buckets` not an integer.
          ValueError: if a sample or the sum is not finite, or `max_buckets` is not from 2
            to 1,000.
        """
        max_buckets = validate_max_buckets(max_buckets)
        buckets = ExponentialBuckets()
        total = 0.0
        lowest, highest = math.inf, -math.inf
        for sample in samples:
            number = plain_finite(sample)
            total += number
            lowest, highest = min(lowest, number), max(highest, number)
            buckets.add(number, max_buckets)
        if lowest > highest:
            return cls(MAX_SCALE)
        return _of_buckets(buckets, total, lowest, highest)

    def quantile(self, q: float) -> float:
        """Return an estimate of the `q`-quantile of the samples.

        The estimate is that of Prometheus' `histogram_quantile` for native histograms: the
        samples of a bucket are assumed to be spread evenly over it, on a logarithmic scale.
        It is NaN if there are no samples. Unlike Prometheus', it is never below `min` or
        above `max`, if they are known, and these are the estimates for a `q` of 0 and 1.

        Args:
          q: from 0 to 1: 0.5 for the median.

        Raises:
          ValueError: if `q` is NaN, < 0 or > 1. (Prometheus returns NaN, -Inf or +Inf.)
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile must be from 0 to 1, got {quote(q)}")
        if self.count == 0:
            return math.nan
        if q == 0 and self.min is not None:
            return self.min
        if q == 1 and self.max is not None:
            return self.max
        estimate = buckets_of(self).quantile(q)
        lowest = -MAX_NUMBER if self.min is None else self.min
        highest = MAX_NUMBER if self.max is None else self.max
        return min(max(estimate, lowest), highest)

    def subtract(self, earlier: ExponentialDistribution) -> ExponentialDistribution:
        """Return the samples observed since `earlier`, a state of the same distribution.

        Their least and greatest are not known. If a count is lower now, the scale finer,
        `min` higher or `max` lower, the totals were reset in between, and the whole
        distribution is returned, as Prometheus' `rate` does.

        Raises:
          ValueError: if the factors differ, or the difference of the sums is not finite.
        """
        _common_factor(self, earlier)
        if self.scale > earlier.scale or not earlier.count:
            return self
        if _extremes(self, earlier) not in {(None, None), (self.min, self.max)}:
            return self
        before = buckets_of(earlier)
        before.coarsen(earlier.scale - self.scale)
        since = buckets_of(self)
        if not since.subtract(before):
            return self
        return _of_buckets(since, self.sum - earlier.sum, None, None)

    def merge(
        self, other: ExponentialDistribution, max_buckets: int = DEFAULT_MAX_BUCKETS
    ) -> ExponentialDistribution:
        """Return the distribution of the samples of both.

        Its scale is the coarser one, or coarser still if more than `max_buckets` buckets
        would be needed for the positive samples, or for the negative ones.

        Args:
          other: the distribution of further samples.
          max_buckets: as in `Exponential`.

        Raises:
          TypeError: if `max_buckets` is not an integer.
          ValueError: if the factors differ, the sum is not finite, a count is >= 2**64, or
            `max_buckets` is not from 2 to 1,000.
        """
        max_buckets = validate_max_buckets(max_buckets)
        buckets = buckets_of(self)
        buckets.factor = _common_factor(self, other)
        buckets.merge(buckets_of(other), max_buckets)
        lowest, highest = _extremes(self, other)
        return _of_buckets(buckets, self.sum + other.sum, lowest, highest)

    def classic(
        self, buckets_per_power: int = 1, *, covering: tuple[float, float] | None = None
    ) -> Distribution:
        """Return a distribution of fewer buckets, whose bounds are powers of two, and 0.

        It suits monitoring systems that know no exponential distributions. Counts are those
        of the buckets, except that a negative sample that equals a bound falls one bucket
        higher. At a coarse scale, there are fewer bounds.

        Bounds begin and end where the samples do, so as more arrive, there may be more
        bounds. Sums over several distributions need the same bounds in all of them: give
        `covering`. Then all samples up to the first bound are in the first bucket, negative
        ones and zeros, too, and all above the second bound in the last bucket. At a coarse
        scale, a bound within a bucket counts all samples of that bucket, so as more samples
        arrive, and the scale becomes coarser, the count up to a bound never falls.

        Args:
          buckets_per_power: the number of buckets from one power of two to the next: 1, 2,
            4, 8 or 16.
          covering: two powers of two, times `factor`. Every bound from the first to the
            second is present, and no other.

        Raises:
          TypeError: if `buckets_per_power` is not an integer, or one of `covering` not a
            number.
          ValueError: if `buckets_per_power` is another number, or `covering` are not two
            such powers, the first of them less than the second.
        """
        buckets = buckets_of(self)
        if covering is None:
            return between_samples(buckets, self.sum, buckets_per_power)
        return between_bounds(buckets, self.sum, buckets_per_power, covering)

    def __str__(self) -> str:
        return str(self.classic())


def _trim(distribution: ExponentialDistribution, sign: str) -> None:
    """Remove empty buckets at either end."""
    scale, factor = distribution.scale, distribution.factor
    offset: int = getattr(distribution, f"{sign}_offset")
    counts: tuple[int, ...] = getattr(distribution, f"{sign}_counts")
    used = [place for place, count in enumerate(counts) if count]
    if used:
        first, last = offset + used[0], offset + used[-1]
        lowest, highest = lowest_index(scale), highest_index(scale)
        if first < lowest or last > highest:
            raise ValueError(
                f"the buckets of scale {scale} have indexes from {lowest} to {highest}, "
                f"got {quote(first)} to {quote(last)}"
            )
        if factor * bucket_start(first, scale) > MAX_NUMBER:
            raise ValueError(
                f"with the factor {factor!r}, the bucket of index {first} is too high for "
                "floats"
            )
        offset, counts = first, counts[used[0] : used[-1] + 1]
    else:
        offset, counts = 0, ()
    object.__setattr__(distribution, f"{sign}_offset", offset)
    object.__setattr__(distribution, f"{sign}_counts", counts)


def _has_buckets(distribution: ExponentialDistribution) -> bool:
    return bool(distribution.positive_counts or distribution.negative_counts)


def _common_factor(one: ExponentialDistribution, other: ExponentialDistribution) -> float:
    if not _has_buckets(one):
        return other.factor
    if _has_buckets(other) and one.factor != other.factor:
        raise ValueError(
            f"the factors must be equal, got {one.factor!r} and {other.factor!r}"
        )
    return one.factor


def _extremes(*parts: ExponentialDistribution) -> tuple[float | None, float | None]:
    """Return the least and the greatest sample of all parts, if all are known."""
    extremes = [(part.min, part.max) for part in parts if part.count]
    lows = [low for low, _ in extremes if low is not None]
    highs = [high for _, high in extremes if high is not None]
    if len(lows) < len(extremes) or not extremes:
        return None, None
    return min(lows), max(highs)


def buckets_of(distribution: ExponentialDistribution) -> ExponentialBuckets:
    return ExponentialBuckets(
        distribution.scale,
        distribution.factor,
        Range(distribution.positive_offset, [*distribution.positive_counts]),
        Range(distribution.negative_offset, [*distribution.negative_counts]),
        distribution.zero_count,
    )


def _of_buckets(
    buckets: ExponentialBuckets, total: float, lowest: float | None, highest: float | None
) -> ExponentialDistribution:
    return ExponentialDistribution(
        buckets.scale,
        positive_offset=buckets.positive.offset,
        positive_counts=tuple(buckets.positive.counts),
        negative_offset=buckets.negative.offset,
        negative_counts=tuple(buckets.negative.counts),
        zero_count=buckets.zero_count,
        sum=total,
        min=lowest,
        max=highest,
        factor=buckets.factor,
    )
