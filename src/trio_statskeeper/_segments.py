"""A dict with snapshots in constant time, which may change during iteration."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from typing import Generic, TypeAlias, TypeVar

import attrs

from ._conflating import Series

V = TypeVar("V")

# Keys of a segment. Copying it takes some microseconds.
_SEGMENT_SIZE = 250

_MIN_HASH, _MAX_HASH = -sys.maxsize - 1, sys.maxsize

# The lowest hash of its keys, its owner, and its part of the dict.
_Segment: TypeAlias = tuple[int, object, dict[Series, V]]


@attrs.frozen(eq=False)
class Snapshot(Generic[V]):
    """The segments of a dict at one instant."""

    _segments: list[_Segment[V]]

    def __iter__(self) -> Iterator[Mapping[Series, V]]:
        return (segment for _, _, segment in self._segments)


@attrs.define(eq=False)
class SegmentedDict(Generic[V]):
    """Values by series, in segments that are copied when they change after a snapshot.

    Copying a dict of 100,000 values takes milliseconds, and a dict must not change while it
    is iterated in steps. Instead, each segment has the keys of a range of hashes, and is
    split when it is full.
    """

    # This list is replaced, never changed: it may be that of a snapshot.
    _segments: list[_Segment[V]] = attrs.field(init=False)
    # Replaced at each snapshot: segments of earlier owners may be part of a snapshot.
    _owner: object = attrs.field(init=False, factory=object)
    _len: int = attrs.field(init=False, default=0)
    # The rest of a segment for `next_items`, and the number of the next one.
    _cycle: Iterator[tuple[Series, V]] = attrs.field(init=False, default=iter(()))
    _cycled: int = attrs.field(init=False, default=0)
    # Segments of snapshots that were replaced by copies.
    _replaced: list[Collection[V]] = attrs.field(init=False, factory=list[Collection[V]])

    def __attrs_post_init__(self) -> None:
        self._segments = [(_MIN_HASH, self._owner, {})]

    def __len__(self) -> int:
        return self._len

    def get(self, series: Series) -> V | None:
        return self._segments[self._index(series)][2].get(series)

    def set(self, series: Series, value: V) -> None:
        index = self._index(series)
        segment = self._own(index)
        before = len(segment)
        segment[series] = value
        self._len += len(segment) - before
        if len(segment) > _SEGMENT_SIZE:
            self._split(index)

    def remove(self, series: Series) -> V:
        value = self._own(self._index(series)).pop(series)
        self._len -= 1
        return value

    def snapshot(self) -> Snapshot[V]:
        """Return the segments as they are now; in constant time."""
        self._owner = object()
        return Snapshot(self._segments)

    def take_replaced(self) -> list[Collection[V]]:
        """Return the values of the snapshots' segments that were replaced by copies.

        Each is returned once.
        """
        replaced, self._replaced = self._replaced, []
        return replaced

    def items(self) -> Iterator[list[tuple[Series, V]]]:
        """Yield the items of each segment, some of them as they were at the first step."""
        return ([*segment.items()] for _, _, segment in self._segments)

    def next_items(self, count: int) -> Iterator[tuple[Series, V]]:
        """Yield at most `count` items, further ones at each call, in a cycle.

        Some may have been replaced or removed since.
        """
        for _ in range(count):
            item = next(self._cycle, None)
            if item is None:
                self._cycle = iter(self.segment(self._cycled))
                self._cycled += 1
            else:
                yield item

    def segment(self, number: int) -> list[tuple[Series, V]]:
        """Return the items of a segment; numbers wrap around after the last."""
        return [*self._segments[number % len(self._segments)][2].items()]

    def _index(self, series: Series) -> int:
        return bisect_left(self._segments, (hash(series) + 1,)) - 1

    def _own(self, index: int) -> dict[Series, V]:
        """Return a segment that may be changed, a copy if necessary."""
        start, owner, segment = self._segments[index]
        if owner is not self._owner:
            self._replaced.append(segment.values())
            segment = segment.copy()
            self._replace(index, (start, self._owner, segment))
        return segment

    def _split(self, index: int) -> None:
        start, owner, segment = self._segments[index]
        following = self._segments[index + 1 : index + 2]
        end = following[0][0] if following else _MAX_HASH + 1
        middle = (start + end) // 2
        if middle > start:  # else all keys have the same hash
            low = {key: segment[key] for key in segment if hash(key) < middle}
            high = {key: segment[key] for key in segment if hash(key) >= middle}
            self._replace(index, (start, owner, low), (middle, owner, high))

    def _replace(self, index: int, *segments: _Segment[V]) -> None:
        self._segments = [*self._segments[:index], *segments, *self._segments[index + 1 :]]
