"""The time during which a file can't be written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import trio

from ._conflating import ConflatingQueue
from ._event_metrics import EventMetrics
from ._log import logger

# Seconds from a failure to the next attempt: doubled after each attempt, up to the longest.
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 30.0


@attrs.define(eq=False)
class Outage:
    """An outage: what is kept during it, when to retry, and what was lost."""

    name: str
    """The file's."""
    kept: ConflatingQueue = attrs.field(init=False, factory=ConflatingQueue)
    retry_at: float = attrs.field(init=False, default=0.0)
    _delay: float = attrs.field(init=False, factory=lambda: _FIRST_DELAY)
    _received: int = attrs.field(init=False, default=0)
    _written: int = attrs.field(init=False, default=0)
    _logged: set[str] = attrs.field(init=False, factory=set[str])

    def __attrs_post_init__(self) -> None:
        # If all that is kept turns out to be stale, there is nothing to wait for.
        self.kept.end()

    def keep(self, exports: Iterable[EventMetrics]) -> None:
        """Keep the newest export of each target for the next attempt."""
        for export in exports:
            self.kept.put(export)
            self._received += 1

    def written(self, exports: Sequence[EventMetrics]) -> None:
        """Note that exports were written, and need not be kept."""
        self.kept.done(exports)
        self._written += len(exports)

    def postpone(self, cause: OSError) -> None:
        """Set the time of the next attempt; log the cause, once for each."""
        self.retry_at = trio.current_time() + self._delay
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        why = cause.strerror or repr(cause)
        if why not in self._logged:
            self._logged.add(why)
            logger.warning("%s: %s; retrying", self.name, why)

    def log_recovery(self) -> None:
        lost = self._received - self._written
        if lost:
            logger.warning("%s: recovered; %d exports were lost", self.name, lost)
        else:
            logger.info("%s: recovered", self.name)

    def log_end(self) -> None:
        lost = self._received - self._written
        logger.warning("%s: not recovered; %d exports were lost", self.name, lost)
