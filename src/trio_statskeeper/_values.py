"""The values of metrics, and how each is written in a line of text.

The kinds of value are told apart in one order: number, string, Gauge, Map, Distribution,
ExponentialDistribution.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias, assert_never, cast, final

import attrs

from ._arguments import (
    MAX_NUMBER,
    is_number,
    plain_count,
    plain_number,
    plain_str,
    quote,
)
from ._distribution import Distribution
from ._exponential import ExponentialDistribution
from ._plain_values import PlainValue
from ._text import (
    escape,
    escape_name,
    format_number,
    format_string,
    parse_integer,
    parse_number,
    unescape,
)


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
        {plain_str(key): plain_count(number) for key, number in dict(values).items()}
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


Value: TypeAlias = int | float | str | Gauge | Map | Distribution | ExponentialDistribution
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
        case Gauge() | Map() | Distribution() | ExponentialDistribution():
            return value
        case _:
            raise TypeError(
                "expected a number, string, Gauge, Map, Distribution or "
                f"ExponentialDistribution, got {quote(value)}"
            )


# The keeper's totals are valid. A second check would cost more than the rest of an export.


def unchecked_map(name: str, values: dict[str, int | float]) -> Map:
    """Return a `Map` of valid arguments. It owns `values`, without a copy."""
    unchecked = Map.__new__(Map)
    object.__setattr__(unchecked, "name", name)
    object.__setattr__(unchecked, "values", MappingProxyType(values))
    return unchecked


# Text


def format_value(value: Value) -> str:
    """Return the text of `value` as cloudprober writes it, but with floats in full."""
    match value:
        case int() | float():
            return format_number(value)
        case str():
            return format_string(value)
        case Gauge() | Map() | Distribution() | ExponentialDistribution():
            return str(value)
        case _:
            assert_never(value)


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
            values[key] = plain_count(parse_number(number))
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
