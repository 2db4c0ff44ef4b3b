"""How samples add up to distributions: see `_aggregation`."""

from __future__ import annotations

import math
from bisect import bisect_left
from math import floor, log
from operator import add
from typing import Any, final

import attrs

from ._arguments import MAX_NUMBER, quote
from ._distribution import Distribution, unchecked_distribution
from ._exponential import ExponentialDistribution, buckets_of
from ._exponential_buckets import ExponentialBuckets
from ._exponential_mapping import MAX_SCALE
from ._packed_buckets import (
    EMPTY,
    FIRST_MASK,
    LOG_ERROR,
    SMALLEST_WIDTH,
    Layout,
    layout_of,
    pack,
    unpack,
)
from ._row import Rejected, Row, accept_number
from ._unchecked_exponential import unchecked_exponential_distribution
from ._values import Value

# A constant, as negating takes time for each sample.
_MIN_NUMBER = -MAX_NUMBER

# A sample that is as close to a boundary, on either side, needs `bucket_index`.
_NEAR = 2 * LOG_ERROR


@final
@attrs.frozen
class Histogram:
    """Merges distributions. The row holds their sum, then the count of each bucket."""

    bounds: tuple[float, ...]
    takes_samples: bool
    """Whether a number is accepted, as one sample."""

    @property
    def zero(self) -> tuple[Any, ...]:
        return (0.0,) + (0,) * (len(self.bounds) + 1)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        if type(value) is Distribution:
            self._merge(row, at, value)
            return
        if not self.takes_samples:
            raise Rejected("kind", f"expected a Distribution, got {quote(value)}")
        sample = value
        if type(sample) is not float and type(sample) is not int:
            sample = accept_number(
                value, "a number or a Distribution (see the keeper's distributions=)"
            )
        total = row[at] + sample
        if not _MIN_NUMBER <= total <= MAX_NUMBER:
            raise _rejected(sample)
        row[at] = total
        row[at + 1 + bisect_left(self.bounds, sample)] += 1

    def _merge(self, row: Row, at: int, value: Distribution) -> None:
        if value.bounds != self.bounds:
            raise Rejected(
                "bounds",
                f"expected the bounds {quote(self.bounds)}, got {quote(value.bounds)}",
            )
        total = row[at] + value.sum
        if not _MIN_NUMBER <= total <= MAX_NUMBER:
            raise _rejected(value.sum)
        row[at] = total
        buckets = slice(at + 1, at + 1 + len(value.bucket_counts))
        row[buckets] = map(add, row[buckets], value.bucket_counts)

    def total(self, row: Row, at: int, stale: float) -> Value:
        counts = tuple(row[at + 1 : at + 2 + len(self.bounds)])
        return unchecked_distribution(self.bounds, counts, row[at])


# The numbers of an exponential histogram. Where the extremes are not known, they are
# beyond all samples.
_SUM, _MIN, _MAX, _LAYOUT, _POSITIVE, _NEGATIVE = range(6)


def _largest(histogram: ExponentialHistogram) -> float:
    # Divided by a factor < 1, a sample may be too large for a float.
    limit = MAX_NUMBER * min(1.0, histogram.factor)
    return limit if histogram.takes_samples else 0.0


@final
@attrs.frozen
class ExponentialHistogram:
    """Merges exponential distributions.

    The row holds the sum, the extremes, and the buckets of `_packed_buckets`: their layout,
    those of the positive samples, those of the negative ones.
    """

    max_buckets: int
    takes_samples: bool
    """Whether a number is accepted, as one sample."""
    factor: float = 1.0
    """What the bounds of all buckets are multiplied by."""
    largest: float = attrs.field(
        init=False, eq=False, default=attrs.Factory(_largest, takes_self=True)
    )
    """The largest sample that needs no check; 0.0 if none is accepted."""

    @property
    def zero(self) -> tuple[Any, ...]:
        layout = layout_of(MAX_SCALE, SMALLEST_WIDTH, self.max_buckets, self.factor)
        return 0.0, math.inf, -math.inf, layout, EMPTY, EMPTY

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        # The usual case, a sample that falls into a bucket there is, in one piece, as each
        # call takes time (row 18 of the benchmarks). 1 to 4 are _MIN, _MAX, _LAYOUT and
        # _POSITIVE: looking these up takes 0.03 µs.
        if (
            (type(value) is float or type(value) is int)
            and 0 < value <= self.largest
            and (total := row[at] + value) <= MAX_NUMBER
        ):
            layout, packed = row[at + 3], row[at + 4]
            exact = log(value) * layout.log_factor + layout.log_bias - (packed & FIRST_MASK)
            place = floor(exact)
            if (
                0 < place < layout.places
                and exact - place > _NEAR
                and packed >> layout.shifts[place] & layout.mask < layout.mask
            ):
                row[at] = total
                if not row[at + 1] <= value <= row[at + 2]:
                    row[at + 1] = min(row[at + 1], float(value))
                    row[at + 2] = max(row[at + 2], float(value))
                row[at + 4] = packed + layout.units[place]
                return
        if type(value) is ExponentialDistribution:
            self._merge(row, at, value)
        elif self.takes_samples:
            expected = (
                "a number or an ExponentialDistribution (see the keeper's distributions=)"
            )
            self._add_sample(row, at, accept_number(value, expected))
        else:
            raise Rejected(
                "kind", f"expected an ExponentialDistribution, got {quote(value)}"
            )

    def _add_sample(self, row: Row, at: int, number: float) -> None:
        if not _MIN_NUMBER <= number <= MAX_NUMBER:
            raise _rejected(number)
        sample = float(number)
        self._add_to_sum(row, at, sample, sample, sample)
        layout: Layout = row[at + _LAYOUT]
        side = at + (_NEGATIVE if sample < 0 else _POSITIVE)
        packed: int = row[side]
        place = layout.place(packed, abs(sample))
        if place < layout.places and layout.has_room(packed, place):
            row[side] = packed + layout.units[place]
            return
        buckets = unpack(layout, row[at + _POSITIVE], row[at + _NEGATIVE])
        buckets.add(sample, self.max_buckets)
        self._pack(row, at, buckets)

    def _merge(self, row: Row, at: int, value: ExponentialDistribution) -> None:
        if value.count == 0:
            low, high = math.inf, -math.inf
        else:
            low = -math.inf if value.min is None else value.min
            high = math.inf if value.max is None else value.max
        self._add_to_sum(row, at, value.sum, low, high)
        buckets = unpack(row[at + _LAYOUT], row[at + _POSITIVE], row[at + _NEGATIVE])
        buckets.merge(buckets_of(value), self.max_buckets)
        self._pack(row, at, buckets)

    def _add_to_sum(
        self, row: Row, at: int, number: float, low: float, high: float
    ) -> None:
        total = row[at + _SUM] + number
        if not _MIN_NUMBER <= total <= MAX_NUMBER:
            raise _rejected(number)
        row[at + _SUM] = total
        row[at + _MIN] = min(row[at + _MIN], low)
        row[at + _MAX] = max(row[at + _MAX], high)

    def _pack(self, row: Row, at: int, buckets: ExponentialBuckets) -> None:
        try:
            packed = pack(buckets, self.max_buckets)
        except OverflowError as error:
            raise Rejected("overflow", str(error)) from None
        row[at + _LAYOUT : at + _NEGATIVE + 1] = packed

    def total(self, row: Row, at: int, stale: float) -> Value:
        total, low, high, layout, packed, packed_negative = row[at : at + _NEGATIVE + 1]
        # They are in the wrong order if there are no samples.
        known = -math.inf < low <= high < math.inf
        positive, zero_count = layout.unpack(packed)
        negative, _ = layout.unpack(packed_negative)
        return unchecked_exponential_distribution(
            layout.scale,
            positive,
            negative,
            zero_count,
            total,
            factor=layout.factor,
            lowest=low if known else None,
            highest=high if known else None,
        )


def _rejected(sample: float) -> Rejected:
    """Return why the sum can't hold this sample, or sum of samples."""
    if not _MIN_NUMBER <= sample <= MAX_NUMBER:
        return Rejected("not-finite", f"a sample must be finite, got {quote(sample)}")
    return Rejected("overflow", "the sum would exceed the largest float")
