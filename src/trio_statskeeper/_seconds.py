"""Values in seconds, as monitoring systems expect them."""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import lru_cache
from typing import assert_never

from ._arguments import plain_number
from ._distribution import Distribution, unchecked_distribution, validate_bounds
from ._exponential import ExponentialDistribution
from ._exponential_mapping import lowest_index
from ._values import Gauge, Map, Value


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
        case ExponentialDistribution():
            return _exponential_in_seconds(value, unit)
        case _:
            assert_never(value)


@lru_cache
def _bounds_in_seconds(bounds: tuple[float, ...], unit: float) -> tuple[float, ...]:
    return validate_bounds(_product(bound, unit) for bound in bounds)


def _exponential_in_seconds(
    value: ExponentialDistribution, unit: float
) -> ExponentialDistribution:
    # Unless it is an integer, each bucket moves by up to half its width.
    shift = round(math.ldexp(math.log2(unit), value.scale))
    least = lowest_index(value.scale)
    positive = _shifted(value.positive_offset + shift, value.positive_counts, least)
    negative = _shifted(value.negative_offset + shift, value.negative_counts, least)
    return ExponentialDistribution(
        value.scale,
        positive_offset=positive[0],
        positive_counts=positive[1],
        negative_offset=negative[0],
        negative_counts=negative[1],
        zero_count=value.zero_count,
        sum=_product(value.sum, unit),
        min=None if value.min is None else _product(value.min, unit),
        max=None if value.max is None else _product(value.max, unit),
    )


def _shifted(
    offset: int, counts: tuple[int, ...], least: int
) -> tuple[int, tuple[int, ...]]:
    """Return the buckets from `least` on; those below it are added to the first."""
    below = least - offset
    if below <= 0:
        return offset, counts
    return least, (sum(counts[: below + 1]), *counts[below + 1 :])


# Multiplies any two floats exactly, whatever the context of the program is.
_EXACTLY = Context(prec=1_000, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


def _product(number: float, unit: float) -> float:
    # As decimals, 3 * 0.1 is 0.3, not 0.30000000000000004.
    decimals = (Decimal(repr(plain_number(factor))) for factor in (number, unit))
    product = float(_EXACTLY.multiply(*decimals))
    if not math.isfinite(product) and not (number and math.isinf(number)):
        raise ValueError("in seconds, it is too large for a float")
    return product
