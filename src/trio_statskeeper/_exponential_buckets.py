"""Exponential buckets that are being filled.

The scale is the finest at which the samples of each sign lie within a number of buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs

from ._arguments import integer, quote
from ._exponential_mapping import MAX_SCALE, bucket_index

# OpenTelemetry's default. For samples of up to 1,000 times the least, there are 16 buckets
# from one power of two to the next, each 4.4 % wide.
DEFAULT_MAX_BUCKETS = 160

# With more, counting a sample outside of the buckets there are would take too long.
_MAX_MAX_BUCKETS = 1_000


def _max_buckets(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    integer(2)(instance, attribute, value)
    if value > _MAX_MAX_BUCKETS:
        raise ValueError(f"max_buckets must be <= {_MAX_MAX_BUCKETS}, got {quote(value)}")


@final
@attrs.frozen
class Exponential:
    """Ask for an exponential distribution: `distributions={"latency": Exponential()}`.

    Args:
      max_buckets: how many buckets the positive samples of a target may take, and how many
        the negative ones: from 2 to 1,000. With twice as many, quantiles are twice as
        precise.

    Raises:
      TypeError: if `max_buckets` is not an integer.
      ValueError: if `max_buckets` is not from 2 to 1,000.
    """

    max_buckets: int = attrs.field(default=DEFAULT_MAX_BUCKETS, validator=_max_buckets)


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


@attrs.define
class ExponentialBuckets:
    """The buckets of a distribution."""

    scale: int = MAX_SCALE
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
        index = bucket_index(size, self.scale)
        # Not just once: next to a power of two, a bucket of scale 0 may be another than the
        # one that consists of the finer buckets.
        while halvings := buckets.halvings(index, index, max_buckets):
            self.coarsen(halvings)
            index = bucket_index(size, self.scale)
        buckets.add(index, (1,))

    def merge(self, other: ExponentialBuckets, max_buckets: int) -> None:
        """Add the counts of `other`, which may become coarser, too."""
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

    def pairs_with(
        self, other: ExponentialBuckets
    ) -> tuple[tuple[Range, Range], tuple[Range, Range]]:
        return (self.positive, other.positive), (self.negative, other.negative)

    def coarsen(self, halvings: int) -> None:
        """Lower the scale by `halvings`."""
        self.scale -= halvings
        self.positive.coarsen(halvings)
        self.negative.coarsen(halvings)
