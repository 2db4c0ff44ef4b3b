"""The keeper's clocks: its running time, and timestamps that never decrease."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from ._arguments import MAX_NUMBER, plain_number, quote
from ._log import logger

# Seconds. Some receivers round to milliseconds, and reject a second sample of an instant.
_MIN_STEP = 0.001

# Seconds that the clock may be behind the newest timestamp without a line in the log.
# Passes less than a millisecond apart are ahead of the clock, too.
_CLOCK_TOLERANCE = 0.1


def later_timestamp(now: float, last: float) -> float:
    """Return `now`, or a timestamp one millisecond after `last` if that is later."""
    # The sum may be rounded down.
    return max(now, math.nextafter(last + _MIN_STEP, math.inf))


@attrs.define(eq=False)
class RunningTime:
    """The seconds for which a keeper has run. Time between two runs does not count."""

    started: float | None = attrs.field(init=False, default=None)
    """When the current run started, by Trio's clock."""
    _before: float = attrs.field(init=False, default=0.0)

    def start(self) -> float:
        """Begin a run; return when it started, by Trio's clock."""
        self.started = trio.current_time()
        return self.started

    def stop(self) -> None:
        """End a run."""
        self._before = self.now()
        self.started = None

    def now(self) -> float:
        """Return the running time."""
        if self.started is None:
            return self._before
        return self._before + (trio.current_time() - self.started)


@attrs.define(eq=False)
class Timestamps:
    """Unix times in seconds that never decrease, even if `clock` is set back."""

    clock: Callable[[], float]
    probe: str
    """The probe's name in the log."""
    behind: float = attrs.field(init=False, default=0.0)
    """Seconds that the clock was behind the newest timestamp when it was last read."""
    _was_behind: bool = attrs.field(init=False, default=False)
    """Whether the log's last word is that the clock is behind."""
    _newest: float = attrs.field(init=False, default=0.0)
    _newest_pass: float = attrs.field(init=False, default=-math.inf)

    def now(self) -> float:
        """Return the time, or the newest timestamp if the clock is behind.

        Raises:
          TypeError: if `clock` does not return a number.
          ValueError: if `clock` returns NaN or infinity.
        """
        time_read = self.clock()
        if not isinstance(time_read, int | float):
            raise TypeError(f"clock must return seconds, got {quote(time_read)}")
        time_read = plain_number(time_read)
        if not -MAX_NUMBER <= time_read <= MAX_NUMBER:
            raise ValueError(f"clock must return finite seconds, got {quote(time_read)}")
        self.behind = max(self._newest - time_read, 0.0)
        return max(self._newest, time_read)

    def update(self) -> None:
        """Read the clock, for `start_or_newest` if it can't be read later."""
        self._newest = self.now()

    def start(self, latest_expired: float) -> float:
        """Return the start timestamp of a new target.

        Args:
          latest_expired: the latest start timestamp of the targets that expired.
        """
        self.update()
        return self._start(latest_expired)

    def start_or_newest(self, latest_expired: float) -> float:
        """Do what `start` does. If `clock` raises, use the newest timestamp."""
        with suppress(BaseException):  # even a SystemExit must not cost a result
            self.update()
        return self._start(latest_expired)

    def _start(self, latest_expired: float) -> float:
        # The target may have expired earlier, and the clock may have been set back. A later
        # start shows that the totals were reset.
        if self._newest <= latest_expired:
            self._newest = math.nextafter(self._newest, math.inf)
        return self._newest

    def next_pass(self) -> float:
        """Return the timestamp of a pass. It is later than that of the pass before."""
        self._newest = self._newest_pass = later_timestamp(self.now(), self._newest_pass)
        is_behind = self.behind > _CLOCK_TOLERANCE
        if is_behind != self._was_behind:
            self._was_behind = is_behind
            if is_behind:
                logger.warning(
                    "%s: clock is %.3f s behind the newest timestamp; until it has caught "
                    "up, timestamps increase by 1 ms per pass",
                    self.probe,
                    self.behind,
                )
            else:
                logger.info("%s: clock recovered", self.probe)
        return self._newest
