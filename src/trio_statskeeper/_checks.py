"""Checks of what constructors are given, which name the argument.

Most are attrs validators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ._values import MAX_NUMBER, is_number, plain_number, quote


def number(attribute: attrs.Attribute[float], value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{attribute.name} must be a number, got {quote(value)}")
    return value


def finite_float(name: str, value: float) -> float:
    """Return the argument `name` as a float, if it is a finite number."""
    if isinstance(value, bool) or not is_number(value):
        raise TypeError(f"{name} must be a number, got {quote(value)}")
    number = plain_number(value)
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"{name} must be finite, got {quote(value)}")
    return float(number)


def positive_float(name: str, value: float) -> float:
    """Return the argument `name` as a float, if it is finite and above 0."""
    number = finite_float(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {quote(value)}")
    return number


def above_zero(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < number(attribute, value) <= MAX_NUMBER:
        raise ValueError(f"{attribute.name} must be finite and above 0, got {quote(value)}")


def zero_or_more(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= number(attribute, value) <= MAX_NUMBER:
        raise ValueError(
            f"{attribute.name} must be finite and 0 or more, got {quote(value)}"
        )


def whole(least: int) -> Callable[[object, attrs.Attribute[Any], int], None]:
    """Return a validator of whole numbers of `least` or more."""

    def check(_: object, attribute: attrs.Attribute[Any], value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{attribute.name} must be a whole number, got {quote(value)}")
        if value < least:
            raise ValueError(
                f"{attribute.name} must be {least} or more, got {quote(value)}"
            )

    return check


def is_callable(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        raise TypeError(
            f"{attribute.name} must be a function without arguments, got {quote(value)}"
        )
