"""Exponential buckets that are being filled.

The scale is the finest at which the samples of each sign lie within a number of buckets.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

import attrs

from ._exponential_mapping import (
    MAX_SCALE,
    bucket_index,
    bucket_start,
    highest_index,
    lowest_index,
)


@attrs.define
class Range:
    """The counts of the samples of one sign, from the bucket of index `offset` on.

    The first and the last bucket are not empty.
    """

    offset: int = 0
    counts: list[int] = attrs.field(factory=list[int])

    @property
    def last(self) -> int:
        """The index of the last bucket."""
        return self.offset + len(self.counts) - 1

    def halvings(self, first: int, last: int, max_buckets: int) -> int:
        """Return how often the scale must be halved for these buckets to fit in, too."""
        if self.counts:
            first = min(first, self.offset)
            last = max(last, self.last)
        halvings = 0
        while (last >> halvings) - (first >> halvings) >= max_buckets:
            halvings += 1
        return halvings

    def add(self, first: int, counts: Sequence[int]) -> None:
        """Add counts to the buckets from index `first` on, which must not be far off."""
        if not counts:
            return
        if not self.counts:
            self.offset = first
        missing = self.offset - first
        if missing > 0:
            self.counts[:0] = [0] * missing
            self.offset = first
        start = first - self.offset
        missing = start + len(counts) - len(self.counts)
        self.counts += [0] * missing
        for place, count in enumerate(counts, start):
            self.counts[place] += count

    def coarsen(self, halvings: int) -> None:
        """Merge buckets, as at a scale that is lower by `halvings`."""
        merged = 1 << halvings
        start = -(self.offset % merged)
        self.counts = [
            sum(self.counts[max(0, place) : place + merged])
            for place in range(start, len(self.counts), merged)
        ]
        self.offset >>= halvings

    def move(self, places: int, lowest: int, highest: int) -> None:
        """Raise all indexes by `places`, but not beyond `lowest` and `highest`."""
        counts, self.counts = self.counts, []
        for index, count in enumerate(counts, self.offset + places):
            self.add(max(lowest, min(index, highest)), (count,))


@attrs.define
class ExponentialBuckets:
    """The buckets of a distribution."""

    scale: int = MAX_SCALE
    factor: float = 1.0
    """What all bounds are multiplied by."""
    positive: Range = attrs.field(factory=Range)
    negative: Range = attrs.field(factory=Range)
    zero_count: int = 0

    def add(self, sample: float, max_buckets: int) -> None:
        """Count a sample."""
        if sample == 0:
            self.zero_count += 1
            return
        buckets = self.positive if sample > 0 else self.negative
        size = abs(sample)
        index = bucket_index(size, self.scale, self.factor)
        # Not just once: next to a power of two, the bucket at scale 0 may differ from the
        # bucket that its finer buckets merge into.
        while halvings := buckets.halvings(index, index, max_buckets):
            self.coarsen(halvings)
            index = bucket_index(size, self.scale, self.factor)
        buckets.add(index, (1,))

    def merge(self, other: ExponentialBuckets, max_buckets: int) -> None:
        """Add the counts of `other`, which may become coarser, too.

        Another factor than ours becomes ours: see `convert`.
        """
        other.convert(self.factor)
        self.coarsen(max(0, self.scale - other.scale))
        other.coarsen(max(0, other.scale - self.scale))
        pairs = self.pairs_with(other)
        halvings = 0
        for ours, theirs in pairs:
            further = theirs if theirs.counts else ours
            needed = ours.halvings(further.offset, further.last, max_buckets)
            halvings = max(halvings, needed)
        self.coarsen(halvings)
        other.coarsen(halvings)
        for ours, theirs in pairs:
            ours.add(theirs.offset, theirs.counts)
        self.zero_count += other.zero_count

    def subtract(self, earlier: ExponentialBuckets) -> bool:
        """Subtract counts of the same scale, and return whether none is negative then."""
        self.zero_count -= earlier.zero_count
        for ours, theirs in self.pairs_with(earlier):
            if theirs.counts:
                if theirs.offset < ours.offset or theirs.last > ours.last:
                    return False
                ours.add(theirs.offset, [-count for count in theirs.counts])
        counts = *self.positive.counts, *self.negative.counts, self.zero_count
        return min(counts) >= 0

    def quantile(self, q: float) -> float:
        """Return the estimate of `ExponentialDistribution.quantile`, without its limits."""
        in_order = *reversed(self.negative.counts), self.zero_count, *self.positive.counts
        # As in `Distribution.quantile`
        cumulative = [*accumulate(in_order)]
        shares = [number / cumulative[-1] for number in cumulative]
        bucket = bisect_left(shares, q) if q > 0 else bisect_right(shares, 0)
        below = shares[bucket - 1] if bucket else 0.0
        within = (q - below) / (shares[bucket] - below)
        place = bucket - len(self.negative.counts)
        if place > 0:
            index = self.positive.offset + place - 1
            return self.factor * bucket_start(index + within, self.scale)
        if place < 0:
            index = self.negative.offset - place - 1
            return -self.factor * bucket_start(index + 1 - within, self.scale)
        return 0.0

    def pairs_with(
        self, other: ExponentialBuckets
    ) -> tuple[tuple[Range, Range], tuple[Range, Range]]:
        return (self.positive, other.positive), (self.negative, other.negative)

    def coarsen(self, halvings: int) -> None:
        """Lower the scale by `halvings`."""
        if not halvings:
            return
        self.scale -= halvings
        self.positive.coarsen(halvings)
        self.negative.coarsen(halvings)

    def may_have_extremes(self, lowest: float, highest: float) -> bool:
        """Return whether these may be the least and the greatest sample."""
        return self._may_be_outermost(
            highest, self.positive, self.negative
        ) and self._may_be_outermost(-lowest, self.negative, self.positive)

    def _may_be_outermost(self, number: float, above: Range, below: Range) -> bool:
        if above.counts:
            return number >= 0 and self._is_close_to(number, above.last)
        if self.zero_count:
            return number == 0
        return number <= 0 and self._is_close_to(-number, below.offset)

    def _is_close_to(self, size: float, index: int) -> bool:
        # Converted samples are up to half a bucket away from theirs.
        return abs(bucket_index(size, self.scale, self.factor) - index) <= 1

    def convert(self, factor: float) -> None:
        """Change the factor.

        Unless both factors differ by a power of the base, each bucket moves by up to half
        its width.
        """
        if factor == self.factor:
            return
        ratio = math.log2(self.factor) - math.log2(factor)
        places = round(math.ldexp(ratio, self.scale))
        limits = lowest_index(self.scale), highest_index(self.scale)
        self.positive.move(places, *limits)
        self.negative.move(places, *limits)
        self.factor = factor
