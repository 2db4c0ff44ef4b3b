"""Values in seconds, as monitoring systems expect them."""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import lru_cache
from typing import assert_never

from ._arguments import MAX_NUMBER, plain_number
from ._distribution import Distribution, unchecked_distribution, validate_bounds
from ._exponential import ExponentialDistribution
from ._unchecked_exponential import unchecked_exponential_distribution
from ._values import Gauge, Map, Value


def is_in_latency_unit(metric: str) -> bool:
    """Return whether the values of a metric are in the latency unit of its keeper."""
    return metric == "latency" or metric.endswith(("-latency", "_latency"))


@lru_cache
def factor_in_unit(unit: float) -> float:
    """Return the factor by which bounds are powers of two in seconds, 1 / `unit`."""
    factor = float(_EXACTLY.divide(1, Decimal(repr(unit))))
    return factor if factor <= MAX_NUMBER else 1.0


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
    # Exactly 1 if the keeper chose it, for all its exports to have the same buckets
    is_keepers = value.factor == factor_in_unit(unit)
    factor = 1.0 if is_keepers else _product(value.factor, unit)
    if factor == 0:
        raise ValueError("in seconds, its factor is too small for a float")
    return unchecked_exponential_distribution(
        value.scale,
        (value.positive_offset, value.positive_counts),
        (value.negative_offset, value.negative_counts),
        value.zero_count,
        _product(value.sum, unit),
        lowest=None if value.min is None else _product(value.min, unit),
        highest=None if value.max is None else _product(value.max, unit),
        factor=factor,
    )


# Multiplies any two floats exactly, whatever the context of the program is.
_EXACTLY = Context(prec=1_000, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


def _product(number: float, unit: float) -> float:
    # As decimals, 3 * 0.1 is 0.3, not 0.30000000000000004.
    decimals = (Decimal(repr(plain_number(factor))) for factor in (number, unit))
    product = float(_EXACTLY.multiply(*decimals))
    if not math.isfinite(product) and not (number and math.isinf(number)):
        raise ValueError("in seconds, it is too large for a float")
    return product
