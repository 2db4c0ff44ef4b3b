"""The values of metrics, and how each is written in a line of text.

The kinds of value are told apart in one order: number, string, Gauge, Map, Distribution.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import TypeAlias, assert_never, cast, final

import attrs

from ._arguments import MAX_NUMBER, is_number, plain_number, plain_str, quote
from ._plain_values import PlainValue
from ._text import (
    escape,
    escape_name,
    format_number,
    format_short,
    format_string,
    parse_integer,
    parse_number,
    unescape,
)


def _count(value: float) -> int | float:
    number = plain_number(value)
    if not 0 <= number <= MAX_NUMBER:  # NaN compares false
        raise ValueError(f"expected a finite number >= 0, got {quote(value)}")
    return number


def _finite(value: float) -> float:
    number = plain_number(value)
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"expected a finite number, got {quote(value)}")
    return float(number)


def validate_bounds(bounds: Iterable[float]) -> tuple[float, ...]:
    """Return `bounds` as floats.

    Raises:
      TypeError: if a bound is not a number.
      ValueError: if there are no bounds, or they are not finite or don't increase strictly.
    """
    floats = tuple(_finite(bound) for bound in bounds)
    if not floats:
        raise ValueError("a distribution must have at least one bound, got none")
    for lower, upper in pairwise(floats):
        if lower >= upper:
            raise ValueError(
                f"bounds must increase strictly, got {upper!r} after {lower!r}"
            )
    return floats


def _not_nan(value: float) -> int | float:
    number = plain_number(value)
    if not (abs(number) <= MAX_NUMBER or abs(number) == math.inf):
        raise ValueError(
            f"a number can be neither NaN nor beyond the largest float, got {quote(value)}"
        )
    return number


@final
@attrs.frozen
class Gauge(PlainValue):
    """A number that goes up and down: a new value replaces the last one.

    Args:
      value: what was measured.

    Raises:
      TypeError: if `value` is not a number.
      ValueError: if `value` is NaN, or beyond the largest float. Infinity is allowed.
    """

    value: int | float = attrs.field(converter=_not_nan)

    def __str__(self) -> str:
        return format_number(self.value)


def _map_values(values: Mapping[str, int | float]) -> Mapping[str, int | float]:
    return MappingProxyType(
        {plain_str(key): _count(number) for key, number in dict(values).items()}
    )


@final
@attrs.frozen
class Map(PlainValue):
    """Counts by key: counts of equal keys add up.

    `Map("code", {"200": 1})` counts one response of status 200.

    Args:
      name: what the keys are; in a monitoring system, the name of their label.
      values: the count of each key; a read-only copy.

    Raises:
      TypeError: if the name or a key is not a string, or a count is not a number.
      ValueError: if a count is negative, NaN or infinite.
    """

    name: str = attrs.field(converter=plain_str)

    values: Mapping[str, int | float] = attrs.field(converter=_map_values, hash=False)

    def __str__(self) -> str:
        pairs = (
            f",{escape(key, ',:')}:{format_number(self.values[key])}"
            for key in sorted(self.values)
        )
        return f"map:{escape_name(self.name, ',:')}{''.join(pairs)}"


def _bucket_counts(counts: Iterable[int]) -> tuple[int, ...]:
    numbers = tuple(_count(count) for count in counts)
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

    bucket_counts: tuple[int, ...] = attrs.field(converter=_bucket_counts)

    sum: float = attrs.field(converter=_finite)

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
            number = _finite(sample)
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


Value: TypeAlias = int | float | str | Gauge | Map | Distribution
"""The value of a metric: docs/how-to/probes.md says how each kind accumulates."""


def plain_value(value: Value) -> Value:
    """Return `value`; a number as exactly an int or a float, a string as exactly a str.

    Raises:
      TypeError: if `value` is not a value of a metric.
      ValueError: if `value` is NaN, or an integer beyond the largest float.
    """
    if is_number(value):
        return _not_nan(cast("float", value))
    match value:
        case str():
            return plain_str(value)
        case Gauge() | Map() | Distribution():
            return value
        case _:
            raise TypeError(
                f"expected a number, string, Gauge, Map or Distribution, got {quote(value)}"
            )


# The keeper's totals are valid. A second check would cost more than the rest of an export.


def unchecked_map(name: str, values: dict[str, int | float]) -> Map:
    """Return a `Map` of valid arguments. It owns `values`, without a copy."""
    unchecked = Map.__new__(Map)
    object.__setattr__(unchecked, "name", name)
    object.__setattr__(unchecked, "values", MappingProxyType(values))
    return unchecked


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


# Text


def format_value(value: Value) -> str:
    """Return the text of `value` as cloudprober writes it, but with floats in full."""
    match value:
        case int() | float():
            return format_number(value)
        case str():
            return format_string(value)
        case Gauge() | Map() | Distribution():
            return str(value)
        case _:
            assert_never(value)


@lru_cache
def _bounds_text(bounds: tuple[float, ...]) -> str:
    # All targets share the bounds of a metric.
    return ",".join(format_short(bound + 0.0) for bound in bounds)  # -0.0 equals 0.0


_DISTRIBUTION = re.compile(r"dist:sum:([^|]*)\|count:([0-9]+)\|lb:-Inf,([^|]*)\|bc:([^|]*)")


def parse_value(text: str) -> Value:
    """Read a value back that cloudprober or this library wrote.

    The text of a `Gauge` is that of its number, so a Gauge comes back as a number.

    Raises:
      ValueError: if `text` is not the text of a value; the message quotes the error.
    """
    if len(text) > 1 and text[0] == text[-1] == '"':
        return unescape(text[1:-1])
    if text.startswith("map:"):
        return _parse_map(text)
    if text.startswith("dist:"):
        return _parse_distribution(text)
    return parse_number(text)


def _parse_map(text: str) -> Map:
    name, *pairs = text.removeprefix("map:").split(",")
    values: dict[str, int | float] = {}
    for pair in pairs:
        key, _, number = pair.partition(":")
        key = unescape(key)
        if key in values:
            raise ValueError(f"key {quote(key)} appears twice in {quote(text)}")
        try:
            values[key] = _count(parse_number(number))
        except ValueError as error:
            raise ValueError(f"{error}, in {quote(pair)} of {quote(text)}") from None
    return Map(unescape(name), values)


def _parse_distribution(text: str) -> Distribution:
    match = _DISTRIBUTION.fullmatch(text)
    if match is None:
        raise ValueError(f"not dist:sum:…|count:…|lb:-Inf,…|bc:…: {quote(text)}")
    total, count, bounds, counts = match.groups()
    try:
        distribution = Distribution(
            map(parse_number, bounds.split(",")),
            map(parse_integer, counts.split(",")),
            parse_number(total),
        )
    except ValueError as error:
        raise ValueError(f"{error}, in {quote(text)}") from None
    if distribution.count != parse_integer(count):
        raise ValueError(
            f"count is {quote(count)}, but the buckets hold {distribution.count}, "
            f"in {quote(text)}"
        )
    return distribution
