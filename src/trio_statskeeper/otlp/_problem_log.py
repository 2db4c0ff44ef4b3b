"""The log of a delivery: each problem once, until a recovery."""

from __future__ import annotations

import logging

import attrs

from trio_statskeeper._log import logger

from ._problem import Problem

# Problems of one subject that are logged until it recovers.
_MAX_LOGGED = 10


@attrs.define(eq=False)
class ProblemLog:
    """Logs problems and recoveries.

    The subject of each is a keeper, the statistics, or, if it is None, the collector.
    """

    _collector: str
    # What was logged of each subject since its last success.
    _logged: dict[str | None, set[str]] = attrs.field(
        init=False, factory=dict[str | None, set[str]]
    )

    def report(self, subject: str | None, problem: Problem, then: str) -> None:
        """Log a problem and what happens then."""
        # How a cut off connection shows is chance.
        once = problem.kind if problem.kind == "cut off" else problem.what
        self.warn_once(subject, once, f"{problem.what}{problem.detail}; {then}")

    def warn_once(self, subject: str | None, once: str, message: str) -> None:
        """Log a problem, unless `once` was logged since the subject's last recovery."""
        logged = self._logged.setdefault(subject, set())
        if once in logged or len(logged) > _MAX_LOGGED:
            return
        logged.add(once)
        if len(logged) > _MAX_LOGGED:
            message = "further problems are not logged until it recovers"
        self.log(logging.WARNING, subject, message)

    def recovered(self, subject: str | None) -> None:
        """Log the recovery of a subject that had problems."""
        if self._logged.pop(subject, None):
            self.log(logging.INFO, subject, "recovered")

    def log(self, level: int, subject: str | None, message: str) -> None:
        prefix = f"{subject}: " if subject else ""
        logger.log(level, "collector %s: %s%s", self._collector, prefix, message)
