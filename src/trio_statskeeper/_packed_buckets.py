"""Exponential buckets as integers, which a row holds, and copies, at little cost.

One integer holds the buckets of one sign, in fields that lie side by side:

- the lowest 31 bits: the index that place 0 would have, plus 2**30;
- place 0: the count of samples that are 0 (for positive samples only);
- place 1: the count of the first bucket, which is not empty; and so on.

Counting a sample in a bucket means to add the unit of its place. The integer is immutable,
so rows share it until then. A `Layout` says how wide the fields are. Layouts are few, and
all targets share them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache

import attrs

from ._exponential_buckets import ExponentialBuckets, Range
from ._exponential_mapping import bucket_index, index_factor

_FIRST_BITS = 31
FIRST_MASK = (1 << _FIRST_BITS) - 1

# The indexes of all scales are from -2**30 to 2**30 - 1.
BIAS = 2**30

# No sample has a place within such buckets.
EMPTY = FIRST_MASK

# The logarithms of floats, times what a scale requires, are off by less, even at the finest
# scale. What is as close to a boundary needs `bucket_index`.
LOG_ERROR = 1e-5

# The bits of a field. With 12, which struct can't read, buckets of 100,000 latencies take a
# quarter less than with 16.
_WIDTHS = {8: "B", 12: "H", 16: "H", 32: "I", 64: "Q"}

SMALLEST_WIDTH = min(_WIDTHS)

_LOW_NIBBLES = bytes(byte & 15 for byte in range(256))


@cache
def _shifts(width: int, places: int) -> tuple[int, ...]:
    return tuple(range(_FIRST_BITS, _FIRST_BITS + width * places, width))


@cache
def _units(width: int, places: int) -> tuple[int, ...]:
    return tuple(1 << shift for shift in _shifts(width, places))


@attrs.frozen(eq=False)
class Layout:
    """How buckets are packed."""

    scale: int
    width: int
    places: int
    """The number of places at most, that of the zeros included."""
    factor: float
    """What the bounds of all buckets are multiplied by."""
    log_factor: float
    """What the natural logarithm of a sample is to be multiplied by for its index."""
    log_bias: float
    """What is to be added then, for `BIAS` and the factor, and `LOG_ERROR`."""
    mask: int
    """The highest count that a field can hold."""
    shifts: tuple[int, ...]
    """The lowest bit of each place."""
    units: tuple[int, ...]
    """What to add for a sample in each place."""

    def place(self, packed: int, size: float) -> int:
        """Return the place of a sample, which is out of range if there is none yet.

        Args:
          packed: the buckets of the sample's sign.
          size: the sample without its sign.
        """
        if size == 0:
            return 0
        index = bucket_index(size, self.scale, self.factor)
        place = index + BIAS - (packed & FIRST_MASK)
        return place if place > 0 else self.places

    def has_room(self, packed: int, place: int) -> bool:
        """Return whether the count in this place can grow by 1."""
        return packed >> self.shifts[place] & self.mask < self.mask

    def unpack(self, packed: int) -> tuple[tuple[int, tuple[int, ...]], int]:
        """Return the index of the first bucket and the counts; and the count of zeros."""
        if packed == EMPTY:
            return (0, ()), 0
        fields = _fields(packed >> _FIRST_BITS, self.width)
        if len(fields) == 1:
            return (0, ()), fields[0]
        return ((packed & FIRST_MASK) - BIAS + 1, fields[1:]), fields[0]


@cache
def layout_of(scale: int, width: int, max_buckets: int, factor: float) -> Layout:
    """Return the layout that all targets share."""
    places = max_buckets + 1
    return Layout(
        scale=scale,
        width=width,
        places=places,
        factor=factor,
        log_factor=index_factor(scale),
        log_bias=BIAS - math.ldexp(math.log2(factor), scale) + LOG_ERROR,
        mask=(1 << width) - 1,
        shifts=_shifts(width, places),
        units=_units(width, places),
    )


def unpack(layout: Layout, positive: int, negative: int) -> ExponentialBuckets:
    """Return the buckets of two packed integers, to be changed."""
    (offset, counts), zero_count = layout.unpack(positive)
    (below, negative_counts), _ = layout.unpack(negative)
    return ExponentialBuckets(
        layout.scale,
        layout.factor,
        Range(offset, [*counts]),
        Range(below, [*negative_counts]),
        zero_count,
    )


def pack(buckets: ExponentialBuckets, max_buckets: int) -> tuple[Layout, int, int]:
    """Return buckets of at most `max_buckets` as integers, and their layout.

    Raises:
      OverflowError: if a count is >= 2**64.
    """
    positive, negative = buckets.positive, buckets.negative
    highest = max((*positive.counts, *negative.counts, buckets.zero_count))
    for width in _WIDTHS:
        if highest < 1 << width:
            layout = layout_of(buckets.scale, width, max_buckets, buckets.factor)
            return (
                layout,
                _packed(positive.offset, (buckets.zero_count, *positive.counts), width),
                _packed(negative.offset, (0, *negative.counts), width),
            )
    raise OverflowError(f"a count must be < 2**64, got {highest}")


def _packed(offset: int, fields: Sequence[int], width: int) -> int:
    if fields == (0,):
        return EMPTY  # the same for all targets
    first = EMPTY if len(fields) == 1 else offset - 1 + BIAS
    digits = width // 4
    text = "".join(f"{field:0{digits}x}" for field in reversed(fields))
    return (int(text, 16) << _FIRST_BITS) + first


def _fields(fields: int, width: int) -> tuple[int, ...]:
    count = -(-fields.bit_length() // width)
    code = _WIDTHS[width]
    if width != 12:
        return struct.unpack(
            f"<{count}{code}", fields.to_bytes(count * width // 8, "little")
        )
    # Two fields take three bytes, to be read as two times two.
    pairs = (count + 1) // 2
    even = fields.to_bytes(3 * pairs, "little")
    odd = (fields >> width).to_bytes(3 * pairs, "little")
    wider = bytearray(4 * pairs)
    wider[0::4], wider[1::4] = even[0::3], even[1::3].translate(_LOW_NIBBLES)
    wider[2::4], wider[3::4] = odd[0::3], odd[1::3].translate(_LOW_NIBBLES)
    return struct.unpack_from(f"<{count}{code}", wider)
