"""Waiting, and noticing when the loop stood still meanwhile."""

from __future__ import annotations

import math

import attrs
import trio

from ._pacing import Step

MIN_STALL = 0.25
"""Seconds by which wake-ups come late in a loop that is busy, but does not stand still."""

# A wake-up that comes this many seconds late was held up, however late others are.
_HELD_UP = 1.0

# What is left of the usual lateness after a wake-up that was in time.
_DECAY = 0.9


@attrs.define(eq=False)
class Stalls:
    """When stalls ended. Of each length, the newest one that was longer can be found."""

    newest: float = -math.inf
    """The end of the newest stall."""
    # Length and end of those after which none was longer: by age, and by length.
    _stalls: list[tuple[float, float]] = attrs.field(factory=list[tuple[float, float]])

    def add(self, length: float, end: float) -> None:
        while self._stalls and self._stalls[-1][0] <= length:
            self._stalls.pop()
        self._stalls.append((length, end))
        self.newest = end

    def newest_above(self, length: float) -> float:
        """Return the end of the newest stall that was longer than `length` seconds."""
        for each, end in reversed(self._stalls):
            if each > length:
                return end
        return -math.inf


@attrs.define(eq=False)
class Wakeups:
    """Wakes the tasks of a prober, and notices when the loop stood still meanwhile.

    The loop stands still while the program is stopped or suspended, or when a task blocks.
    Runs that came due then are not made up for: they would start all at once, and measure
    each other. For a target, a wake-up is called a stall if it is late by more than a tenth
    of the interval, or the timeout, so that at most a tenth of the targets start at once.
    If a loop is busy, though, or if its turns are always long, being late is nothing
    special: such a loop must not lose its runs.
    """

    shortest_timeout: float = math.inf
    """Of all targets."""
    lag: float = 0.0
    """How late the newest wake-up came, in seconds."""
    _stalls: Stalls = attrs.field(factory=Stalls)
    """Beyond what is usual."""
    _standstills: Stalls = attrs.field(factory=Stalls)
    """Beyond the shortest timeout, usual or not."""
    _usual: float = 0.0
    """How late wake-ups come of late: the maximum, which decays."""
    _step: Step = attrs.field(factory=Step)
    """That of the task that was woken last."""

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
        if self.lag > max(MIN_STALL, min(2 * self._usual, _HELD_UP)):
            self._stalls.add(self.lag, now)
        if self.lag > self.shortest_timeout:
            self._standstills.add(self.lag, now)
        self._usual = max(self.lag, self._usual * _DECAY)
        self._step.begin_next()

    def is_step_over(self) -> bool:
        """Return whether the task that was woken last should let others run."""
        return self._step.is_over

    async def let_others_run(self) -> None:
        await self.sleep_until(-math.inf)

    def is_missed(self, due: float, interval: float, timeout: float) -> bool:
        """Return whether a run that was due then, and has not begun, fell into a stall."""
        if due >= self._stalls.newest:
            return False
        return due < self._stalls.newest_above(min(interval / 10, timeout))

    def is_inconclusive(self, began: float, timeout: float) -> bool:
        """Return whether the loop stood still for the timeout of a run that began then."""
        return began < self._standstills.newest_above(timeout)
