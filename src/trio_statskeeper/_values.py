"""The values of metrics, and how each is written in a line of text."""

from __future__ import annotations

import math
import re
import reprlib
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from numbers import Integral, Real
from types import MappingProxyType
from typing import TypeAlias, cast, final

import attrs

from ._plain_values import PlainValue

# Beyond the largest float a count can be neither exported nor added to a float.
MAX_NUMBER = sys.float_info.max


class _Shortened(reprlib.Repr):
    def repr_instance(self, x: object, level: int) -> str:
        # A map may have any number of keys: to write them all would take too long.
        if isinstance(x, Map | Distribution):
            return f"a {type(x).__name__}"
        return super().repr_instance(x, level)


# Not by the attribute, which a metaclass may have of its own.
_type_name = vars(type)["__name__"].__get__
_shortened = _Shortened()
_shortened.maxstring = _shortened.maxother = 80


def quote(value: object) -> str:
    """Return a short repr for an error message, of what may have come from anywhere."""
    try:
        return plain_str(_shortened.repr(value))
    except Exception:  # noqa: BLE001  # whatever its repr does, it is not what went wrong
        return f"<{_type_name(type(value))} without a repr>"


def is_number(value: object) -> bool:
    """Return whether `value` is a real number, of Python or as NumPy's scalars are."""
    # Decimals are not: they don't mix with floats.
    return isinstance(value, int | float | Real) or _is_numpy_bool(value)


def _is_numpy_bool(value: object) -> bool:
    # NumPy registers all its scalars with `numbers` but this one.
    kind = type(value)
    return kind.__module__ == "numpy" and _type_name(kind) in {"bool", "bool_"}


def plain_number(value: float) -> int | float:
    """Return `value` as exactly an int or a float, whatever kind of number it is."""
    # Not int(value) and float(value): those would run a subclass's own code.
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if not is_number(value):
        raise TypeError(f"expected a number, got {quote(value)}")
    if isinstance(value, Integral) or not isinstance(value, Real):
        return int.__pos__(int(value))
    try:
        return float(value)
    except OverflowError:
        return int.__pos__(math.trunc(value))  # for the caller to find it too large


def plain_str(value: str) -> str:
    """Return `value` as exactly a str, whatever subclass it is of."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"expected a string, got {quote(value)}")


def _count(value: float) -> int | float:
    number = plain_number(value)
    if not 0 <= number <= MAX_NUMBER:  # NaN compares false
        raise ValueError(f"expected a finite number of 0 or more, got {quote(value)}")
    return number


def _finite(value: float) -> float:
    number = plain_number(value)
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"expected a finite number, got {quote(value)}")
    return float(number)


def checked_bounds(bounds: Iterable[float]) -> tuple[float, ...]:
    """Return `bounds` as floats.

    Raises:
      TypeError: if one of them is no number.
      ValueError: if they are empty, not finite or don't increase strictly.
    """
    floats = tuple(_finite(bound) for bound in bounds)
    if not floats:
        raise ValueError("a distribution needs at least one bound, got none")
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
            f"a number can't be NaN, nor beyond the largest float, got {quote(value)}"
        )
    return number


@final
@attrs.frozen
class Gauge(PlainValue):
    """A number that goes up and down: the newest replaces the one before.

    Raises:
      TypeError: if `value` is no number.
      ValueError: if `value` is NaN, or beyond the largest float. Infinity is allowed.
    """

    value: int | float = attrs.field(converter=_not_nan)
    """What was measured."""

    def __str__(self) -> str:
        return format_value(self.value)


def _map_values(values: Mapping[str, int | float]) -> Mapping[str, int | float]:
    return MappingProxyType(
        {plain_str(key): _count(number) for key, number in dict(values).items()}
    )


@final
@attrs.frozen
class Map(PlainValue):
    """Counts by key: those of equal keys add up.

    `Map("code", {"200": 1})` counts one response of status 200.

    Raises:
      TypeError: if the name or a key is no string, or a count no number.
      ValueError: if a count is negative, NaN or infinite.
    """

    name: str = attrs.field(converter=plain_str)
    """What the keys are: the label that tells them apart in a monitoring system."""

    values: Mapping[str, int | float] = attrs.field(converter=_map_values, hash=False)
    """The count of each key; a read-only copy."""

    def __str__(self) -> str:
        pairs = (
            f",{escape(key, ',:')}:{format_value(self.values[key])}"
            for key in sorted(self.values)
        )
        return f"map:{escape_name(self.name, ',:')}{''.join(pairs)}"


def _bucket_counts(counts: Iterable[int]) -> tuple[int, ...]:
    numbers = tuple(_count(count) for count in counts)
    for number in numbers:
        if isinstance(number, float):
            raise TypeError(f"expected a whole number, got {number!r}")
    return cast("tuple[int, ...]", numbers)


@final
@attrs.frozen
class Distribution(PlainValue):
    """How many samples fell into each bucket: a histogram.

    Buckets are `(lower, upper]`, as Prometheus and OpenTelemetry count them. (The
    original, cloudprober, has `[lower, upper)`: a sample that equals a bound falls one
    bucket higher there.)

    Raises:
      TypeError: if a bound, a count or the sum is no number.
      ValueError: if the bounds are empty, not finite or don't increase strictly; if there
        isn't one count more than there are bounds; if a count is negative; if the sum is
        not finite; if the number of samples is beyond the largest float.
    """

    bounds: tuple[float, ...] = attrs.field(converter=checked_bounds)
    """The upper bounds of all buckets but the last, which has none."""

    bucket_counts: tuple[int, ...] = attrs.field(converter=_bucket_counts)
    """The number of samples in each bucket: one more than there are bounds."""

    sum: float = attrs.field(converter=_finite)
    """The sum of all samples."""

    def __attrs_post_init__(self) -> None:
        if len(self.bucket_counts) != len(self.bounds) + 1:
            raise ValueError(
                f"{len(self.bounds)} bounds need {len(self.bounds) + 1} bucket counts, "
                f"got {len(self.bucket_counts)}"
            )
        if self.count > MAX_NUMBER:
            raise ValueError(
                f"the number of samples is beyond the largest float: {quote(self.count)}"
            )

    @property
    def count(self) -> int:
        """The number of all samples."""
        return sum(self.bucket_counts)

    @classmethod
    def of(cls, samples: Iterable[float], bounds: Iterable[float]) -> Distribution:
        """Return the distribution of `samples`.

        Raises:
          TypeError: if a sample or bound is no number.
          ValueError: if a sample or their sum is not finite, or the bounds are not as
            required.
        """
        bounds = checked_bounds(bounds)
        counts = [0] * (len(bounds) + 1)
        total = 0.0
        for sample in samples:
            number = _finite(sample)
            total += number
            counts[bisect_left(bounds, number)] += 1
        return cls(bounds, tuple(counts), total)

    def quantile(self, q: float) -> float:
        """Return an estimate of what the share `q` of the samples does not exceed.

        It is that of Prometheus' `histogram_quantile` for classic histograms: samples are
        taken to lie evenly within their bucket, and those of the first between 0 and its
        bound. It returns

        - NaN if there are no samples;
        - the highest bound if the quantile falls into the last bucket, which has none;
        - the lowest bound if it falls into the first bucket, and that bound is 0 or less.

        Empty buckets hold no quantile: for a `q` of 0 it returns the lower bound of the
        first that holds samples. (Prometheus looks into the first of all.)

        Args:
          q: from 0 to 1: 0.5 for the median.

        Raises:
          ValueError: if `q` is NaN, below 0 or above 1. (Prometheus returns NaN, -Inf and
            +Inf.)
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile must be from 0 to 1, got {quote(q)}")
        count = self.count
        if count == 0:
            return math.nan
        # The share of the samples that lie in each bucket or below. `q` is compared with
        # these: the rank `q * count` may be rounded up, past the end of a bucket.
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
        # In floats, this could overflow, or step over the bound.
        start = Fraction(lower)
        return float(start + (Fraction(upper) - start) * Fraction(within))

    def subtract(self, earlier: Distribution) -> Distribution:
        """Return what was observed since `earlier`, a state of the same distribution.

        If a bucket's count is lower now, the totals began anew in between, and all that
        they hold is returned, as Prometheus' `rate` takes it.

        Raises:
          ValueError: if the bounds differ, or the sums' difference is not finite.
        """
        if self.bounds != earlier.bounds:
            raise ValueError(
                f"the bounds must be equal, got {self.bounds!r} and "
                f"{earlier.bounds!r} earlier"
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
            f"dist:sum:{_short(self.sum)}|count:{self.count}"
            f"|lb:-Inf,{_bounds_text(self.bounds)}|bc:{counts}"
        )


Value: TypeAlias = int | float | str | Gauge | Map | Distribution
"""What a metric can be: see the table in the README for how each accumulates."""


def plain_value(value: Value) -> Value:
    """Return `value`; a number as exactly an int or a float, a string as exactly a str.

    Raises:
      TypeError: if it is not a value of a metric.
      ValueError: if it is NaN, or an integer beyond the largest float.
    """
    if isinstance(value, Gauge | Map | Distribution):
        return value
    if isinstance(value, str):
        return plain_str(value)
    if is_number(value):
        return _not_nan(value)
    raise TypeError(
        f"expected a number, string, Gauge, Map or Distribution, got {quote(value)}"
    )


# The keeper's own totals need no second check, which would cost more than all the rest
# of an export.


def unchecked_map(name: str, values: dict[str, int | float]) -> Map:
    """Return a `Map` of valid arguments; `values` becomes its own."""
    unchecked = Map.__new__(Map)
    object.__setattr__(unchecked, "name", name)
    object.__setattr__(unchecked, "values", MappingProxyType(values))
    return unchecked


# The slots' own setters, which a frozen class does not show: half the time of
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

    They are cloudprober's: `num_buckets` + 1 bounds, so that each of the `num_buckets`
    growing buckets lies between two of them.

    Raises:
      ValueError: if `base` is below 1.01, `scale_factor` not finite and above 0,
        `num_buckets` below 1, or if floats can't hold the bounds or tell them apart.
    """
    if not 1.01 <= base < math.inf:
        raise ValueError(f"base must be at least 1.01 and finite, got {base!r}")
    if not 0 < scale_factor < math.inf:
        raise ValueError(f"scale_factor must be above 0 and finite, got {scale_factor!r}")
    if num_buckets < 1:
        raise ValueError(f"num_buckets must be at least 1, got {num_buckets!r}")
    try:
        grown = [scale_factor * float(base) ** i for i in range(num_buckets)]
    except OverflowError:
        raise ValueError(
            f"{num_buckets} buckets of base {base!r} grow beyond the largest float"
        ) from None
    return checked_bounds((0.0, *grown))


# The text of a value is cloudprober's. What would end a name, key or string too early, or
# can't be printed, is escaped as in Python's own literals (\x20, \u2028, \\); ordinary
# text is left as it is, and separators never stand for themselves within it: whoever
# splits a line at spaces, commas and colons need not know of the escaping.

_ESCAPE = re.compile(
    r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))"
)


def escape(text: str, separators: str) -> str:
    """Escape a name or key that must not contain `separators`, nor white space."""
    if _unusual(separators)(text) is None:
        return text
    return _escape(text, " " + separators)


@cache
def _unusual(separators: str) -> Callable[[str], object]:
    """Return a search for characters that may need to be escaped.

    Most texts have none. To look at each character takes longer than the rest of a line.
    """
    return re.compile(rf"[{re.escape(separators)}\\]|[^!-~]").search


@lru_cache(maxsize=1000)
def escape_name(name: str, separators: str) -> str:
    """Escape the name of a label, metric or map, which many targets share."""
    return escape(name, separators)


def _escape(text: str, special: str) -> str:
    return "".join(
        char
        if char.isprintable() and char not in special and char != "\\"
        else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return r"\\"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def unescape(text: str) -> str:
    """Undo `escape`; a backslash that begins no escape stands for itself."""
    return _ESCAPE.sub(
        lambda match: match[1] or chr(int(match[2] or match[3] or match[4], 16)), text
    )


def format_value(value: Value) -> str:
    """Return the text of `value` as cloudprober writes it, but with floats in full."""
    if isinstance(value, str):
        return f'"{_escape(value, chr(34))}"'
    if isinstance(value, float):
        if math.isinf(value):
            return "+Inf" if value > 0 else "-Inf"
        return _format_float(value)
    return str(value)


def _short(number: float) -> str:
    # As cloudprober writes them where only floats can be.
    return _format_float(number).removesuffix(".0")


@lru_cache
def _bounds_text(bounds: tuple[float, ...]) -> str:
    # All targets of a metric have the same bounds.
    return ",".join(_short(bound + 0.0) for bound in bounds)  # -0.0 equals 0.0


def _format_float(number: float) -> str:
    """Return the shortest digits that read back as this float, without an exponent."""
    digits = repr(number)
    if "e" not in digits:
        return digits
    digits = format(Decimal(digits), "f")
    return digits if "." in digits else f"{digits}.0"


# Nothing that is written needs more: Python itself reads and writes no longer integers.
_MAX_NUMBER_LENGTH = 4_300

_NAN = re.compile(r"[+-]?nan", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:[0-9]++((?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+)|(Inf))")
_DISTRIBUTION = re.compile(r"dist:sum:([^|]*)\|count:([0-9]+)\|lb:-Inf,([^|]*)\|bc:([^|]*)")


def parse_value(text: str) -> Value:
    """Read a value back that cloudprober or this library wrote.

    The text of a `Gauge` is that of its number, so it comes back as a number.

    Raises:
      ValueError: if `text` is not the text of a value; the message quotes what is wrong.
    """
    if text.startswith("map:"):
        return _parse_map(text)
    if text.startswith("dist:"):
        return _parse_distribution(text)
    if len(text) > 1 and text[0] == text[-1] == '"':
        return unescape(text[1:-1])
    return parse_number(text)


def parse_number(text: str) -> int | float:
    """Read an int or float back; infinity only where it is spelled out.

    Raises:
      ValueError: if `text` is no number.
    """
    if len(text) > _MAX_NUMBER_LENGTH:
        raise ValueError(f"too long for a number: {quote(text)}")
    match = _NUMBER.fullmatch(text)
    if match is None:
        if _NAN.fullmatch(text):
            raise ValueError(f"a value can't be NaN: {quote(text)}")
        raise ValueError(f"not a number, string, map or distribution: {quote(text)}")
    if match[1] == "":
        return int(text)
    number = float(text)
    if math.isinf(number) and not match[2]:
        raise ValueError(f"beyond the largest float: {quote(text)}")
    return number


def _parse_whole(text: str) -> int:
    number = parse_number(text)
    if isinstance(number, float):
        raise ValueError(f"not a whole number: {quote(text)}")  # noqa: TRY004
    return number


def _parse_map(text: str) -> Map:
    name, *pairs = text.removeprefix("map:").split(",")
    values: dict[str, int | float] = {}
    for pair in pairs:
        key, _, number = pair.partition(":")
        key = unescape(key)
        if key in values:
            raise ValueError(f"key {quote(key)} stands twice in {quote(text)}")
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
            map(_parse_whole, counts.split(",")),
            parse_number(total),
        )
    except ValueError as error:
        raise ValueError(f"{error}, in {quote(text)}") from None
    if distribution.count != _parse_whole(count):
        raise ValueError(
            f"count is {quote(count)}, but the buckets hold {distribution.count}, "
            f"in {quote(text)}"
        )
    return distribution
