"""A target's past: what each export interval was like, in compact arrays."""

from __future__ import annotations

from array import array
from typing import Final, TypeAlias, TypeVar

import attrs

# What happened in an interval, so that the worst of several is the greatest.
MISSING: Final = 0
"""There was no export."""
IDLE: Final = 1
"""No run ended."""
UP: Final = 2
"""All runs succeeded."""
INCONCLUSIVE: Final = 3
"""Runs neither succeeded nor failed."""
DEGRADED: Final = 4
"""Some runs failed."""
DOWN: Final = 5
"""All runs failed."""

OUTCOMES: Final = ("missing", "idle", "up", "inconclusive", "degraded", "down")

# In the arrays, where there is no number.
NONE: Final = -1.0

# Pages are made in steps, and show the history until one pass. As many passes may be added
# meanwhile before the first slots that the page shows are overwritten.
_SPARE_SLOTS = 4

# Seconds; more than 32 bits can hold is infinite.
_MAX_SECONDS = 1e30

_Floats: TypeAlias = "array[float]"
_Ring = TypeVar("_Ring", bytearray, "array[float]")


@attrs.frozen
class Point:
    """An interval of a target."""

    outcome: int
    success: float = NONE
    """The share of the conclusive runs that succeeded."""
    p50: float = NONE
    """The median latency in seconds."""
    p99: float = NONE


_MISSING = Point(MISSING)


@attrs.frozen(eq=False)
class Window:
    """The newest intervals until some pass, the oldest first."""

    outcomes: bytearray
    success: _Floats
    p50: _Floats
    p99: _Floats


def _nothing(slots: int) -> _Floats:
    return array("f", [NONE]) * slots


@attrs.define(eq=False)
class History:
    """The newest intervals of a target: a ring, in which each pass has a slot.

    Args:
      length: how many intervals are kept: 13 bytes each.
    """

    _length: int
    _slots: int = attrs.field(init=False)
    # The first pass that was added, and the pass after the last.
    _first: int = attrs.field(init=False)
    _end: int = attrs.field(init=False)
    _outcomes: bytearray = attrs.field(init=False)
    _success: _Floats = attrs.field(init=False)
    _p50: _Floats = attrs.field(init=False)
    _p99: _Floats = attrs.field(init=False)
    bad_intervals: int = attrs.field(init=False, default=0)
    """In how many of the newest intervals runs failed."""

    def __attrs_post_init__(self) -> None:
        self._slots = self._length + _SPARE_SLOTS
        self._first = self._end = -self._length
        self._outcomes = bytearray(self._slots)
        self._success = _nothing(self._slots)
        self._p50 = _nothing(self._slots)
        self._p99 = _nothing(self._slots)

    def add(self, number: int, point: Point) -> None:
        """Add the interval that ends with a pass; those that were left out are missing.

        Args:
          number: the number of the pass, >= 0; not less than any before.
          point: the interval. It replaces one of the same pass.
        """
        if number - self._end >= self._length:
            # Nothing that was known before is shown any more.
            self._first = self._end = number
            self.bad_intervals = 0
        for missing in range(self._end, number):
            self._set(missing, _MISSING)
        self._set(number, point)
        self._end = number + 1

    def _set(self, number: int, point: Point) -> None:
        slot = number % self._slots
        # It replaces another interval, or the oldest one is no longer shown.
        replaced = number if number < self._end else number - self._length
        if replaced >= self._first:
            self.bad_intervals -= self._outcomes[replaced % self._slots] >= DEGRADED
        self.bad_intervals += point.outcome >= DEGRADED
        self._outcomes[slot] = point.outcome
        self._success[slot] = point.success
        self._p50[slot] = _stored(point.p50)
        self._p99[slot] = _stored(point.p99)

    def window(self, last: int, until: int) -> Window:
        """Return the intervals until the pass `until`, of which `last` is the last known.

        What has come since is left out, and so is what is no longer known.
        """
        oldest = until - self._length + 1
        begin = min(max(oldest, self._first, self._end - self._slots), until + 1)
        end = max(min(last, until) + 1, begin)
        before, after = begin - oldest, until + 1 - end
        return Window(
            bytearray(before) + self._part(self._outcomes, begin, end) + bytearray(after),
            _nothing(before) + self._part(self._success, begin, end) + _nothing(after),
            _nothing(before) + self._part(self._p50, begin, end) + _nothing(after),
            _nothing(before) + self._part(self._p99, begin, end) + _nothing(after),
        )

    def _part(self, ring: _Ring, begin: int, end: int) -> _Ring:
        if begin == end:
            return ring[:0]
        first, last = begin % self._slots, (end - 1) % self._slots
        return ring[first : last + 1] if first <= last else ring[first:] + ring[: last + 1]


def _stored(seconds: float) -> float:
    return NONE if seconds == NONE else min(max(seconds, 0.0), _MAX_SECONDS)
