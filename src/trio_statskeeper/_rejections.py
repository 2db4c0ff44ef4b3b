"""Which results were rejected, and the log of them."""

from __future__ import annotations

from collections import Counter

import attrs

from ._arguments import quote
from ._exceptions import forget_tracebacks
from ._log import logger
from ._results import Reason


@attrs.define(eq=False)
class Rejections:
    """Counts of rejected results, by reason."""

    counts: Counter[str] = attrs.field(init=False, factory=Counter[str])
    _unreported: Counter[str] = attrs.field(init=False, factory=Counter[str])
    _newest: str = attrs.field(init=False, default="")

    def add(self, reason: Reason, explanation: str) -> None:
        """Count a rejected result."""
        self.counts[reason] += 1
        self._unreported[reason] += 1
        self._newest = explanation

    def add_error(self, error: Exception, subject: str = "") -> None:
        """Count a result that raised `error`."""
        self.add("error", f"{subject}{quote(error)}")
        forget_tracebacks(error)  # a constant may be raised many times

    def report(self, probe: str) -> None:
        """Log in one line how many results were rejected since the last report."""
        if self._unreported:
            logger.warning(
                "%s: %d results rejected since the last export (%s); the newest: %s",
                probe,
                self._unreported.total(),
                ", ".join(f"{name}: {count}" for name, count in self._unreported.items()),
                self._newest,
            )
            self._unreported.clear()
