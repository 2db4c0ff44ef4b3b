"""Exponential distributions, whose buckets follow from the samples.

https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import final

import attrs

from ._arguments import MAX_NUMBER, plain_finite, plain_number, quote
from ._distribution import (
    Distribution,
    unchecked_distribution,
    validate_bucket_counts,
)
from ._exponential_buckets import (
    DEFAULT_MAX_BUCKETS,
    Exponential,
    ExponentialBuckets,
    Range,
)
from ._exponential_mapping import (
    MAX_SCALE,
    MIN_SCALE,
    bucket_index,
    bucket_start,
    highest_index,
    lowest_index,
)
from ._plain_values import PlainValue


def _integer(value: int) -> int:
    number = plain_number(value)
    if isinstance(number, float):
        raise TypeError(f"expected an integer, got {quote(value)}")
    return number


def _counts(counts: Iterable[int]) -> tuple[int, ...]:
    numbers = validate_bucket_counts(counts)
    if numbers and max(numbers) >= 2**64:
        raise ValueError(f"a count must be < 2**64, got {quote(max(numbers))}")
    return numbers


def _zero_count(count: int) -> int:
    return _counts((count,))[0]


@final
@attrs.frozen
class ExponentialDistribution(PlainValue):
    """How many samples fell into each of many buckets, whose bounds need not be chosen.

    The bucket of index i holds the samples above base**i, up to base**(i + 1), where base
    is 2**(2**-scale). Negative samples have buckets of their own, and are counted there as
    if they were positive.

    Equal distributions are equal values: empty buckets at either end are removed. Without
    any bucket, the offsets are 0, and the scale is the finest, 20.

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

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if the scale is out of range; if a bucket lies outside of the range of
        floats; if a count is negative or >= 2**64; if the sum, `min` or `max` is not
        finite; if only one of `min` and `max` is known, `min` is above `max`, or they are
        given without samples.
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

    def __attrs_post_init__(self) -> None:
        if not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise ValueError(
                f"scale must be from {MIN_SCALE} to {MAX_SCALE}, got {quote(self.scale)}"
            )
        positive = _trimmed(self.scale, self.positive_offset, self.positive_counts)
        negative = _trimmed(self.scale, self.negative_offset, self.negative_counts)
        if not positive[1] and not negative[1]:
            object.__setattr__(self, "scale", MAX_SCALE)
        _set_range(self, "positive", *positive)
        _set_range(self, "negative", *negative)
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
        max_buckets = Exponential(max_buckets).max_buckets
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
        above `max`, if they are known, so it is exact for a `q` of 0 or 1.

        Args:
          q: from 0 to 1: 0.5 for the median.

        Raises:
          ValueError: if `q` is NaN, < 0 or > 1. (Prometheus returns NaN, -Inf or +Inf.)
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile must be from 0 to 1, got {quote(q)}")
        count = self.count
        if count == 0:
            return math.nan
        in_order = *reversed(self.negative_counts), self.zero_count, *self.positive_counts
        # As in `Distribution.quantile`
        shares = [number / count for number in accumulate(in_order)]
        bucket = bisect_left(shares, q) if q > 0 else bisect_right(shares, 0)
        below = shares[bucket - 1] if bucket else 0.0
        within = (q - below) / (shares[bucket] - below)
        place = bucket - len(self.negative_counts)
        if place > 0:
            index = self.positive_offset + place - 1
            estimate = bucket_start(index + within, self.scale)
        elif place < 0:
            index = self.negative_offset - place - 1
            estimate = -bucket_start(index + 1 - within, self.scale)
        else:
            estimate = 0.0
        lowest = -MAX_NUMBER if self.min is None else self.min
        highest = MAX_NUMBER if self.max is None else self.max
        return min(max(estimate, lowest), highest)

    def subtract(self, earlier: ExponentialDistribution) -> ExponentialDistribution:
        """Return the samples observed since `earlier`, a state of the same distribution.

        Their least and greatest are not known. If a count is lower now, or the scale finer,
        the totals were reset in between, and the whole distribution is returned, as
        Prometheus' `rate` does.

        Raises:
          ValueError: if the difference of the sums is not finite.
        """
        if self.scale > earlier.scale or not earlier.count:
            return self
        before = buckets_of(earlier)
        before.coarsen(earlier.scale - self.scale)
        since = buckets_of(self)
        since.zero_count -= earlier.zero_count
        for ours, theirs in since.pairs_with(before):
            if theirs.counts:
                if theirs.offset < ours.offset or theirs.last > ours.last:
                    return self
                ours.add(theirs.offset, [-count for count in theirs.counts])
        if min((*since.positive.counts, *since.negative.counts, since.zero_count)) < 0:
            return self
        # An output may subtract thousands a second, and checking each count takes most of
        # the time.
        positive, negative = (
            _trimmed(since.scale, buckets.offset, tuple(buckets.counts))
            for buckets in (since.positive, since.negative)
        )
        return unchecked_exponential_distribution(
            since.scale if positive[1] or negative[1] else MAX_SCALE,
            positive,
            negative,
            since.zero_count,
            plain_finite(self.sum - earlier.sum),
            lowest=None,
            highest=None,
        )

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
          ValueError: if the sum is not finite, a count is >= 2**64, or `max_buckets` is
            not from 2 to 1,000.
        """
        max_buckets = Exponential(max_buckets).max_buckets
        buckets = buckets_of(self)
        buckets.merge(buckets_of(other), max_buckets)
        lowest, highest = _extremes(self, other)
        return _of_buckets(buckets, self.sum + other.sum, lowest, highest)

    def classic(
        self, buckets_per_power: int = 1, *, covering: tuple[float, float] | None = None
    ) -> Distribution:
        """Return a distribution of fewer buckets, whose bounds are powers of two, and 0.

        It suits monitoring systems that know no exponential distributions. Counts are
        exact, except that a negative sample that equals a bound falls one bucket higher. At
        a negative scale, there are fewer buckets.

        Bounds begin and end where the samples do, so as more arrive, there may be more
        bounds. Sums over several distributions need the same bounds in all of them: give
        `covering`.

        Args:
          buckets_per_power: the number of buckets from one power of two to the next: 1, 2,
            4, 8 or another power of two.
          covering: two powers of two. There are all bounds from the first to the second,
            even where there are no samples.

        Raises:
          ValueError: if `buckets_per_power` is not a power of two.
        """
        if buckets_per_power < 1 or buckets_per_power & (buckets_per_power - 1):
            raise ValueError(
                f"buckets_per_power must be a power of two, got {quote(buckets_per_power)}"
            )
        buckets = buckets_of(self)
        buckets.coarsen(max(0, self.scale - (buckets_per_power.bit_length() - 1)))
        scale, positive, negative = buckets.scale, buckets.positive, buckets.negative
        if covering is not None:
            first, last = (bucket_index(number, scale) for number in covering)
            positive.add(first + 1, [0] * (last - first))
        bounds: list[float] = []
        counts: list[int] = []
        if negative.counts:
            ends = _ends(negative.offset, negative.last, scale)
            bounds += [-end for end in reversed(ends)]
            counts += 0, *reversed(negative.counts)
        if self.zero_count or not (positive.counts or negative.counts):
            bounds.append(0.0)
            counts.append(self.zero_count)
        if positive.counts:
            bounds += _ends(positive.offset, positive.last, scale)
            counts += 0, *positive.counts
        # The largest floats have no bound above them.
        if bounds[0] == -math.inf:
            del bounds[0], counts[0]
        if bounds[-1] == math.inf:
            del bounds[-1]
        else:
            counts.append(0)
        return unchecked_distribution(tuple(bounds), tuple(counts), self.sum)

    def __str__(self) -> str:
        return str(self.classic())


@lru_cache(maxsize=1_000)
def _ends(first: int, last: int, scale: int) -> tuple[float, ...]:
    """Return where each of these buckets begins, and where the last one ends."""
    return tuple(bucket_start(index, scale) for index in range(first, last + 2))


def _trimmed(
    scale: int, offset: int, counts: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """Return the offset and the counts without empty buckets at either end."""
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return 0, ()
    first, last = offset + used[0], offset + used[-1]
    lowest, highest = lowest_index(scale), highest_index(scale)
    if first < lowest or last > highest:
        raise ValueError(
            f"the buckets of scale {scale} have indexes from {lowest} to {highest}, got "
            f"{quote(first)} to {quote(last)}"
        )
    return first, counts[used[0] : used[-1] + 1]


def _set_range(
    distribution: ExponentialDistribution, sign: str, offset: int, counts: tuple[int, ...]
) -> None:
    object.__setattr__(distribution, f"{sign}_offset", offset)
    object.__setattr__(distribution, f"{sign}_counts", counts)


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
        Range(distribution.positive_offset, [*distribution.positive_counts]),
        Range(distribution.negative_offset, [*distribution.negative_counts]),
        distribution.zero_count,
    )


# The setters of the slots: see `unchecked_distribution`.
_set_scale, _set_positive_offset, _set_positive_counts = (
    vars(ExponentialDistribution)[slot].__set__
    for slot in ("scale", "positive_offset", "positive_counts")
)
_set_negative_offset, _set_negative_counts, _set_zero_count = (
    vars(ExponentialDistribution)[slot].__set__
    for slot in ("negative_offset", "negative_counts", "zero_count")
)
_set_sum, _set_min, _set_max = (
    vars(ExponentialDistribution)[slot].__set__ for slot in ("sum", "min", "max")
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
) -> ExponentialDistribution:
    """Return an `ExponentialDistribution` of valid arguments, without empty ends.

    The samples of each sign are the offset and the counts.
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
    return unchecked


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
    )
