"""Distributions of explicit bounds."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import cast, final

import attrs

from ._arguments import plain_count, plain_finite, quote
from ._plain_values import PlainValue
from ._text import format_short


def validate_bounds(bounds: Iterable[float]) -> tuple[float, ...]:
    """Return `bounds` as floats.

    Raises:
      TypeError: if a bound is not a number.
      ValueError: if there are no bounds, or they are not finite or don't increase strictly.
    """
    floats = tuple(plain_finite(bound) for bound in bounds)
    if not floats:
        raise ValueError("a distribution must have at least one bound, got none")
    for lower, upper in pairwise(floats):
        if lower >= upper:
            raise ValueError(
                f"bounds must increase strictly, got {upper!r} after {lower!r}"
            )
    return floats


def validate_bucket_counts(counts: Iterable[int]) -> tuple[int, ...]:
    """Return `counts` as ints.

    Raises:
      TypeError: if a count is not an integer.
      ValueError: if a count is negative, or beyond the largest float.
    """
    numbers = tuple(plain_count(count) for count in counts)
    for number in numbers:
        if isinstance(number, float):
            raise TypeError(f"expected an integer, got {number!r}")
    return cast("tuple[int, ...]", numbers)


@final
@attrs.frozen
class Distribution(PlainValue):
    """How many samples fell into each bucket: a histogram.

    Buckets are `(lower, upper]`, as in Prometheus and OpenTelemetry. (In cloudprober, they
    are `[lower, upper)`: a sample that equals a bound falls one bucket higher.)

    Args:
      bounds: the upper bound of each bucket except the last, which has none.
      bucket_counts: the number of samples in each bucket. There is one more bucket than
        bounds.
      sum: the sum of all samples.

    Raises:
      TypeError: if a bound or the sum is not a number, or a count is not an integer.
      ValueError: if there are no bounds, or they are not finite or don't increase strictly;
        if there is not one more count than there are bounds; if a count is negative; if the
        sum is not finite.
    """

    bounds: tuple[float, ...] = attrs.field(converter=validate_bounds)

    bucket_counts: tuple[int, ...] = attrs.field(converter=validate_bucket_counts)

    sum: float = attrs.field(converter=plain_finite)

    def __attrs_post_init__(self) -> None:
        if len(self.bucket_counts) != len(self.bounds) + 1:
            raise ValueError(
                f"{len(self.bounds)} bounds need {len(self.bounds) + 1} bucket counts, "
                f"got {len(self.bucket_counts)}"
            )

    @property
    def count(self) -> int:
        """The number of all samples."""
        return sum(self.bucket_counts)

    @classmethod
    def of(cls, samples: Iterable[float], bounds: Iterable[float]) -> Distribution:
        """Return the distribution of `samples`.

        Raises:
          TypeError: if a sample or a bound is not a number.
          ValueError: if a sample or the sum is not finite, or the bounds are invalid.
        """
        bounds = validate_bounds(bounds)
        counts = [0] * (len(bounds) + 1)
        total = 0.0
        for sample in samples:
            number = plain_finite(sample)
            total += number
            counts[bisect_left(bounds, number)] += 1
        return cls(bounds, tuple(counts), total)

    def quantile(self, q: float) -> float:
        """Return an estimate of the `q`-quantile of the samples.

        The estimate is that of Prometheus' `histogram_quantile` for classic histograms: the
        samples of a bucket are assumed to be spread evenly over it, and the first bucket to
        begin at 0. The result is

        - NaN if there are no samples;
        - the highest bound if the quantile falls into the last bucket, which has none;
        - the lowest bound if the quantile falls into the first bucket, and that bound is
          <= 0.

        Empty buckets are skipped: for a `q` of 0, the result is the lower bound of the
        first bucket with samples. (Prometheus uses the first bucket, empty or not.)

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
        # The share of the samples that lie in each bucket or below. These are compared with
        # `q`, as the rank `q * count` may be rounded up, past the end of a bucket.
        shares = [number / count for number in accumulate(self.bucket_counts)]
        bucket = bisect_left(shares, q) if q > 0 else bisect_right(shares, 0)
        if bucket == len(self.bounds):
            return self.bounds[-1]
        upper = self.bounds[bucket]
        if bucket == 0:
            if upper <= 0:
                return upper
            lower = below = 0.0
        else:
            lower, below = self.bounds[bucket - 1], shares[bucket - 1]
        within = (q - below) / (shares[bucket] - below)
        # With floats, this could overflow or exceed the bound.
        start = Fraction(lower)
        return float(start + (Fraction(upper) - start) * Fraction(within))

    def subtract(self, earlier: Distribution) -> Distribution:
        """Return the samples observed since `earlier`, a state of the same distribution.

        If a bucket's count is lower now, the totals were reset in between, and the whole
        distribution is returned, as Prometheus' `rate` does.

        Raises:
          ValueError: if the bounds differ, or the difference of the sums is not finite.
        """
        if self.bounds != earlier.bounds:
            raise ValueError(
                f"the bounds must be equal, got {self.bounds!r} and, earlier, "
                f"{earlier.bounds!r}"
            )
        counts = [
            now - before
            for now, before in zip(self.bucket_counts, earlier.bucket_counts, strict=True)
        ]
        if min(counts) < 0:
            return self
        return Distribution(self.bounds, tuple(counts), self.sum - earlier.sum)

    def __str__(self) -> str:
        counts = ",".join(map(str, self.bucket_counts))
        return (
            f"dist:sum:{format_short(self.sum)}|count:{self.count}"
            f"|lb:-Inf,{_bounds_text(self.bounds)}|bc:{counts}"
        )


@lru_cache
def _bounds_text(bounds: tuple[float, ...]) -> str:
    # All targets share the bounds of a metric.
    return ",".join(format_short(bound + 0.0) for bound in bounds)  # -0.0 equals 0.0


# The keeper's totals are valid: see `unchecked_map`.
# The setters of the slots, which a frozen class hides: they take half the time of
# object.__setattr__ (row 6 of the benchmarks).
_set_bounds, _set_bucket_counts, _set_sum = (
    vars(Distribution)[slot].__set__ for slot in ("bounds", "bucket_counts", "sum")
)


def unchecked_distribution(
    bounds: tuple[float, ...], bucket_counts: tuple[int, ...], total: float
) -> Distribution:
    """Return a `Distribution` of valid arguments."""
    unchecked = Distribution.__new__(Distribution)
    _set_bounds(unchecked, bounds)
    _set_bucket_counts(unchecked, bucket_counts)
    _set_sum(unchecked, total)
    return unchecked


def exponential_bounds(
    base: float, scale_factor: float, num_buckets: int
) -> tuple[float, ...]:
    """Return bounds that grow exponentially: 0, then `scale_factor * base**i`.

    As in cloudprober, there are `num_buckets` + 1 bounds, so that each of the `num_buckets`
    growing buckets lies between two bounds.

    Raises:
      ValueError: if `base` is not finite and >= 1.01, `scale_factor` is not finite and > 0,
        or `num_buckets` is < 1; or if floats can't hold the bounds or tell them apart.
    """
    if not 1.01 <= base < math.inf:
        raise ValueError(f"base must be finite and >= 1.01, got {base!r}")
    if not 0 < scale_factor < math.inf:
        raise ValueError(f"scale_factor must be finite and > 0, got {scale_factor!r}")
    if num_buckets < 1:
        raise ValueError(f"num_buckets must be >= 1, got {num_buckets!r}")
    try:
        grown = [scale_factor * float(base) ** i for i in range(num_buckets)]
    except OverflowError:
        raise ValueError(
            f"{num_buckets} buckets of base {base!r} grow beyond the largest float"
        ) from None
    return validate_bounds((0.0, *grown))
