"""Timestamps that increase, though clocks may be set back."""

from __future__ import annotations

import math

# Receivers that keep milliseconds, and take each instant once, are to take all.
_LEAST_STEP = 0.001


def later_timestamp(now: float, last: float) -> float:
    """Return `now` if it is later than `last` by a millisecond, else what just is."""
    if now > last and now >= last + _LEAST_STEP:
        return now
    # As floats have it: never less than a millisecond, however the sum was rounded.
    return math.nextafter(last + _LEAST_STEP, math.inf)
