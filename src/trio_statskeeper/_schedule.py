"""When runs are due, and whether the loop was awake then."""

from __future__ import annotations

import math
from hashlib import blake2b

import attrs
import trio

MIN_STALL = 0.25
"""Seconds by which wake-ups come late in a loop that is busy, but does not stand still."""

# A wake-up that comes this many seconds late was held up, however late others are.
_HELD_UP = 1.0

# What is left of the usual lateness after a wake-up that was in time.
_DECAY = 0.9


def offset_of(key: str) -> float:
    """Return where in an interval a target's runs are due, from 0 to 1: its key's hash."""
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


@attrs.define(eq=False)
class Wakeups:
    """Wakes the tasks of a prober, and notices when the loop stood still meanwhile.

    The loop stands still while the program is stopped or suspended, or when a task blocks.
    Runs that came due then are not made up for: they would start all at once, and measure
    each other. A wake-up that is late by more than a tenth of the interval, or the timeout,
    is called a stall, so that at most a tenth of the targets start at once. If a loop is
    busy, though, or if its turns are always long, being late is nothing special: such a
    loop must not lose its runs.
    """

    interval: float = math.inf
    timeout: float = math.inf
    lag: float = 0.0
    """How late the newest wake-up came, in seconds."""
    missed_before: float = -math.inf
    """The end of the newest stall. Runs that were due before, and have not begun, are
    missed."""
    inconclusive_before: float = -math.inf
    """The end of the newest stall that was longer than the timeout. Runs that began before,
    and have not ended, say nothing about their targets."""
    _usual: float = 0.0
    """How late wake-ups come of late: the maximum, which decays."""

    async def sleep_until(self, time: float) -> None:
        """Sleep until `time`; if that is past, let other tasks run."""
        now = trio.current_time()
        if time > now:
            await trio.sleep_until(time)
            self.woke(time)
        else:
            await trio.lowlevel.checkpoint()
            self.woke(now)

    def woke(self, expected: float) -> None:
        """Note that a task runs now which was to run at `expected`."""
        now = trio.current_time()
        self.lag = now - expected
        usual = max(MIN_STALL, min(2 * self._usual, _HELD_UP))
        if self.lag > max(usual, min(self.interval / 10, self.timeout)):
            self.missed_before = now
        if self.lag > self.timeout:
            self.inconclusive_before = now
        self._usual = max(self.lag, self._usual * _DECAY)
