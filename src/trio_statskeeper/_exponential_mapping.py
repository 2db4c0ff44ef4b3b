"""Which exponential bucket a number falls into, and where the buckets begin.

At scale s, the bucket of index i holds the numbers above base**i, up to base**(i + 1),
where base is 2**(2**-s). So each bucket of a scale consists of two of the next finer scale,
and there are 2**s buckets from one power of two to the next:

    https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram

A distribution may multiply all these bounds by a factor.

Indexes are those of OpenTelemetry's SDKs, which use a logarithm. So a number next to a
boundary may be counted one bucket off, as the specification allows, but not a power of two.
Subnormal numbers fall into the bucket of the smallest normal one.
"""

from __future__ import annotations

import math
import sys

from ._arguments import MAX_NUMBER

MIN_SCALE, MAX_SCALE = -10, 20

SMALLEST_NORMAL = sys.float_info.min


def bucket_index(number: float, scale: int, factor: float = 1.0) -> int:
    """Return the index of the bucket of `number`, which is finite and > 0.

    What is too large or too small once divided by `factor` is in the last or first bucket.
    """
    number = min(number / factor, MAX_NUMBER)
    if number <= SMALLEST_NORMAL:
        return lowest_index(scale)
    fraction, exponent = math.frexp(number)
    # A power of two, of which the fraction is 0.5, is the upper end of its bucket.
    exponent -= 2 if fraction == 0.5 else 1
    if scale <= 0:
        return exponent >> -scale
    if fraction == 0.5:
        return (exponent + 1 << scale) - 1
    # Rounded up, the logarithm of the largest floats is that of 2**1024.
    return min(math.floor(math.log(number) * index_factor(scale)), highest_index(scale))


def index_factor(scale: int) -> float:
    """Return what a natural logarithm is to be multiplied by for the index."""
    return math.ldexp(1 / math.log(2), scale)


def lowest_index(scale: int) -> int:
    """Return the index of the smallest normal number, 2**-1022."""
    return (-1022 << scale) - 1 if scale > 0 else -1023 >> -scale


def highest_index(scale: int) -> int:
    """Return the index of the largest float, which is next to 2**1024."""
    return (1024 << scale) - 1 if scale > 0 else 1023 >> -scale


def bucket_start(index: float, scale: int) -> float:
    """Return the number where the bucket of `index` begins, exactly if a power of two.

    The end of the highest bucket, 2**1024, is infinity. An index with a fraction is a point
    within a bucket, on a logarithmic scale.
    """
    power = math.ldexp(index, -scale)
    whole = math.floor(power)
    return math.inf if whole >= 1024 else math.ldexp(2 ** (power - whole), whole)
