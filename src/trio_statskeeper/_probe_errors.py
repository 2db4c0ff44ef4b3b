"""What a probe raises to say more than that its target failed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ._arguments import plain_str, quote
from ._values import Value

PROBER_METRICS = (
    "total",
    "success",
    "failure",
    "timeouts",
    "inconclusive",
    "latency",
    "error",
)
"""The metrics of each run that the prober itself counts, and a probe can't."""


def validate_metrics(metrics: Mapping[str, Value] | None) -> dict[str, Value]:
    """Return a copy of the metrics that a probe adds to those of its run.

    Raises:
      TypeError: if `metrics` is neither a mapping nor None.
      ValueError: if the prober itself has a metric of such a name.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"a probe's metrics must be a mapping or None, got {quote(metrics)}"
        )
    if taken := [name for name in PROBER_METRICS if name in metrics]:
        raise ValueError(f"a probe can't add the metrics {taken}: the prober counts those")
    return dict(metrics)


def _reason(reason: str) -> str:
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a string, got {quote(reason)}")
    if not reason:
        raise ValueError("reason can't be empty; give a few words, such as 'status-503'")
    return plain_str(reason)


class ReasonedError(Exception):
    """The base of `ProbeFailed` and `Inconclusive`."""

    # In the instance's dict, which copies and pickles of exceptions keep, a read-only
    # mapping would not survive pickling.
    _reason: str
    _metrics: dict[str, Value]

    def __init__(self, reason: str, *, metrics: Mapping[str, Value] | None = None) -> None:
        self._reason = _reason(reason)
        self._metrics = validate_metrics(metrics)
        super().__init__(self._reason)

    @property
    def reason(self) -> str:
        """The key of such runs in the map `error`, and the cause in the log."""
        return self._reason

    @property
    def metrics(self) -> Mapping[str, Value]:
        """What the run adds to the target's totals besides the prober's own metrics."""
        return MappingProxyType(self._metrics)

    def __repr__(self) -> str:
        metrics = f", metrics={self._metrics!r}" if self._metrics else ""
        return f"{type(self).__name__}({self._reason!r}{metrics})"


class ProbeFailed(ReasonedError):
    """The target failed, for a reason that is counted and logged, perhaps with metrics.

        raise ProbeFailed("status-503", metrics={"resp-code": Map("code", {"503": 1})})

    Args:
      reason: the key in the map `error`: keep the number of different reasons small.
        Characters other than letters, digits, `_`, `.` and `-` become `_` there.
      metrics: further metrics of the run, as a probe returns them.

    Raises:
      TypeError: if `reason` is not a string, or `metrics` neither a mapping nor None.
      ValueError: if `reason` is empty, or the prober itself has one of `metrics`.
    """


class Inconclusive(ReasonedError):
    """The run says nothing about the target, because something went wrong on this side.

        raise Inconclusive("no route from here")

    Such a run counts under `inconclusive`, and neither as a success nor as a failure.

    Args:
      reason: see `ProbeFailed`.
      metrics: see `ProbeFailed`.

    Raises:
      TypeError: see `ProbeFailed`.
      ValueError: see `ProbeFailed`.
    """
