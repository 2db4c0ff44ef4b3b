"""Values in seconds, as monitoring systems expect them."""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import lru_cache
from typing import assert_never

from ._arguments import plain_number
from ._values import (
    Distribution,
    Gauge,
    Map,
    Value,
    unchecked_distribution,
    validate_bounds,
)


def in_seconds(value: Value, unit: float) -> Value:
    """Return `value` in seconds, where `unit` is the seconds of its own unit.

    Raises:
      ValueError: if floats can't hold it, or two of its bounds become equal.
    """
    match value:
        case int() | float():
            return _product(value, unit)
        case str():
            return value
        case Gauge():
            return Gauge(_product(value.value, unit))
        case Map():
            return Map(value.name, {k: _product(n, unit) for k, n in value.values.items()})
        case Distribution():
            bounds = _bounds_in_seconds(value.bounds, unit)
            total = _product(value.sum, unit)
            return unchecked_distribution(bounds, value.bucket_counts, total)
        case _:
            assert_never(value)


@lru_cache
def _bounds_in_seconds(bounds: tuple[float, ...], unit: float) -> tuple[float, ...]:
    return validate_bounds(_product(bound, unit) for bound in bounds)


# Multiplies any two floats exactly, whatever the context of the program is.
_EXACTLY = Context(prec=1_000, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


def _product(number: float, unit: float) -> float:
    # As decimals, 3 * 0.1 is 0.3, not 0.30000000000000004.
    decimals = (Decimal(repr(plain_number(factor))) for factor in (number, unit))
    product = float(_EXACTLY.multiply(*decimals))
    if not math.isfinite(product) and not (number and math.isinf(number)):
        raise ValueError("in seconds, it is too large for a float")
    return product
