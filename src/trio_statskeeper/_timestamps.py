"""Timestamps that increase, though clocks may be set back."""

from __future__ import annotations

import math

# Some receivers round to milliseconds, and reject a second sample of the same instant.
_LEAST_STEP = 0.001


def later_timestamp(now: float, last: float) -> float:
    """Return `now`, or the least timestamp that is later than `last` by a millisecond."""
    # The sum may be rounded down.
    return max(now, math.nextafter(last + _LEAST_STEP, math.inf))
