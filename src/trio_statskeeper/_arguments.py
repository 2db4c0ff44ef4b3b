"""The door: plain numbers and strings, validators, and error messages that quote."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

V = TypeVar("V")

# The largest float. Larger integers can be neither exported nor added to a float.
MAX_NUMBER = sys.float_info.max


class _ShortRepr(reprlib.Repr):
    def repr_instance(self, x: object, level: int) -> str:
        # Not `reprlib`'s own: it differs between versions of Python if a repr raises.
        text = repr(x)
        if len(text) <= self.maxother:
            return text
        half = (self.maxother - 3) // 2
        return f"{text[:half]}...{text[-half:]}"

    # `reprlib` looks for a method named after the type. A map may have any number of keys,
    # and writing them all would take too long.

    def repr_Map(self, x: object, level: int) -> str:  # noqa: N802
        return "a Map"

    def repr_Distribution(self, x: object, level: int) -> str:  # noqa: N802
        return "a Distribution"

    def repr_ExponentialDistribution(self, x: object, level: int) -> str:  # noqa: N802
        return "an ExponentialDistribution"


_short_repr = _ShortRepr()
_short_repr.maxstring = _short_repr.maxother = 80


def quote(value: object) -> str:
    """Return a short repr of any value, for an error message."""
    try:
        return plain_str(_short_repr.repr(value))
    except Exception:  # noqa: BLE001  # a broken repr must not hide the error itself
        return f"<{type(value).__name__} without a repr>"


# Plain numbers and strings: subclasses run code of their own, and hold more memory.


def is_number(value: object) -> bool:
    """Return whether `value` is a real number: Python's, NumPy's or alike."""
    # Decimals are excluded: they don't mix with floats.
    return isinstance(value, int | float | Real) or _is_numpy_bool(value)


def _is_numpy_bool(value: object) -> bool:
    # NumPy registers all its scalars with `numbers` except this one.
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ in {"bool", "bool_"}


def plain_number(value: float) -> int | float:
    """Return `value` as exactly an int or a float, whatever kind of number it is.

    Raises:
      TypeError: if `value` is not a number.
    """
    # int(value) and float(value) would run a subclass's own code.
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if not is_number(value):
        raise TypeError(f"expected a number, got {quote(value)}")
    if isinstance(value, Integral) or not isinstance(value, Real):
        return int.__pos__(int(value))
    return float(value)


def plain_count(value: float) -> int | float:
    """Return `value` as `plain_number` does.

    Raises:
      TypeError: if `value` is not a number.
      ValueError: if `value` is not finite and >= 0.
    """
    number = plain_number(value)
    if not 0 <= number <= MAX_NUMBER:  # NaN compares false
        raise ValueError(f"expected a finite number >= 0, got {quote(value)}")
    return number


def plain_finite(value: float) -> float:
    """Return `value` as exactly a float.

    Raises:
      TypeError: if `value` is not a number.
      ValueError: if `value` is not finite.
    """
    number = plain_number(value)
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"expected a finite number, got {quote(value)}")
    return float(number)


def plain_str(value: str) -> str:
    """Return `value` as exactly a str, whatever subclass it is of.

    Raises:
      TypeError: if `value` is not a string.
    """
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"expected a string, got {quote(value)}")


# Functions for converters, which name the argument


def validate_finite(name: str, value: float) -> float:
    """Return the argument `name` as a float.

    Raises:
      TypeError: if `value` is not a number.
      ValueError: if `value` is not finite.
    """
    if isinstance(value, bool) or not is_number(value):
        raise TypeError(f"{name} must be a number, got {quote(value)}")
    number = plain_number(value)
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"{name} must be finite, got {quote(value)}")
    return float(number)


def validate_positive(name: str, value: float) -> float:
    """Return the argument `name` as a float.

    Raises:
      TypeError: if `value` is not a number.
      ValueError: if `value` is not finite and > 0.
    """
    number = validate_finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be > 0, got {quote(value)}")
    return number


# Validators of attrs fields


def validate_number(attribute: attrs.Attribute[float], value: object) -> float:
    """Return `value` if it is an int or a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{attribute.name} must be a number, got {quote(value)}")
    return value


def positive(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    """Validate a finite number > 0."""
    if not 0 < validate_number(attribute, value) <= MAX_NUMBER:
        raise ValueError(f"{attribute.name} must be finite and > 0, got {quote(value)}")


def non_negative(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    """Validate a finite number >= 0."""
    if not 0 <= validate_number(attribute, value) <= MAX_NUMBER:
        raise ValueError(f"{attribute.name} must be finite and >= 0, got {quote(value)}")


def integer(minimum: int) -> Callable[[object, attrs.Attribute[Any], int], None]:
    """Return a validator of integers >= `minimum`."""

    def validate(_: object, attribute: attrs.Attribute[Any], value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{attribute.name} must be an integer, got {quote(value)}")
        if value < minimum:
            raise ValueError(f"{attribute.name} must be >= {minimum}, got {quote(value)}")

    return validate


def string(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a string, got {quote(value)}")


def is_callable(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate a function."""
    if not callable(value):
        raise TypeError(
            f"{attribute.name} must be a function without arguments, got {quote(value)}"
        )


def validate_items(
    what: str, mapping: Mapping[str, V], validate: Callable[[V], V]
) -> Mapping[str, V]:
    """Return a read-only copy of a mapping whose names are strings.

    Args:
      what: what an item of it is, for the error.
      mapping: the mapping.
      validate: returns a value, or raises a TypeError or a ValueError.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{what}s must be a mapping, got {quote(mapping)}")
    items: dict[str, V] = {}
    for name, value in mapping.items():
        try:
            items[plain_str(name)] = validate(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{what} {quote(name)}: {error}") from None
    return MappingProxyType(items)
