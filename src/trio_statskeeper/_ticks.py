"""The ticks of a keeper: when they come, and which are missed."""

from __future__ import annotations

import math

import attrs
import trio


@attrs.frozen
class Grid:
    """The ticks of one run: start + k * interval."""

    start: float
    interval: float
    clock: trio.abc.Clock
    """Trio's clock. Other threads can read it, too."""

    def at(self, tick: int) -> float:
        """Return when a tick comes, by Trio's clock."""
        return self.start + tick * self.interval

    def next_after(self, last: int) -> int:
        """Return the first tick after `last` that is not past."""
        now = self.clock.current_time()
        tick = max(last + 1, math.ceil((now - self.start) / self.interval))
        if tick > last + 1 and self.at(tick - 1) >= now:
            tick -= 1  # the division was rounded up
        return tick


@attrs.frozen
class _TickPass:
    """A pass in progress that began at a tick."""

    grid: Grid
    tick: int
    missed_before: int

    def missed(self) -> int:
        return self.missed_before + self.grid.next_after(self.tick) - (self.tick + 1)


@attrs.define(eq=False)
class MissedTicks:
    """How many ticks were missed. Each is counted when it is missed."""

    _before: int = attrs.field(init=False, default=0)
    """Until the pass in progress began."""
    _pass: _TickPass | None = attrs.field(init=False, default=None)

    def count(self) -> int:
        """Return the number of missed ticks. Any thread may call this."""
        tick_pass = self._pass
        return self._before if tick_pass is None else tick_pass.missed()

    def begin_pass(self, grid: Grid, tick: int) -> None:
        """Note that a pass began at `tick`."""
        self._pass = _TickPass(grid, tick, self._before)

    def next_tick(self, grid: Grid, last: int) -> int:
        """Count the ticks after `last` that are past, and return the next one."""
        tick = grid.next_after(last)
        self._before += tick - (last + 1)
        self._pass = None
        return tick
