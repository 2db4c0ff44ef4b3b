"""What happened between two exports of a target: differences of totals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import nlargest

import attrs

from trio_statskeeper._distribution import Distribution
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._exponential import ExponentialDistribution
from trio_statskeeper._values import Map, Value

from ._history import DEGRADED, DOWN, IDLE, INCONCLUSIVE, NONE, UP, Point

# Kinds of errors that are kept; a prober counts no more than 30, and further ones together.
_MAX_ERRORS = 31


@attrs.frozen
class ErrorCount:
    """How often an error occurred."""

    kind: str
    in_interval: int
    """In the newest interval."""
    in_total: int


@attrs.frozen
class Totals:
    """The totals of a target that its status is made of."""

    total: int = 0
    success: int = 0
    inconclusive: int = 0
    errors: Mapping[str, float] = attrs.field(factory=dict[str, float])
    latency: Distribution | ExponentialDistribution | None = None

    @classmethod
    def of(cls, export: EventMetrics) -> Totals:
        """Return the totals of an export; what it lacks is 0."""
        metrics = export.metrics
        latency, errors = metrics.get("latency"), metrics.get("error")
        if not isinstance(latency, Distribution | ExponentialDistribution):
            latency = None
        return cls(
            _count(metrics.get("total")),
            _count(metrics.get("success")),
            _count(metrics.get("inconclusive")),
            errors.values if isinstance(errors, Map) else {},
            latency,
        )

    def is_after(self, earlier: Totals) -> bool:
        """Return whether these may be newer totals, rather than those after a reset."""
        return (
            self.total >= earlier.total
            and self.success >= earlier.success
            and self.inconclusive >= earlier.inconclusive
        )

    def errors_since(self, earlier: Totals) -> tuple[ErrorCount, ...]:
        """Return the most frequent errors, those of the interval first."""
        if not self.errors:
            return ()
        counts = (
            ErrorCount(kind, int(max(count - earlier.errors.get(kind, 0), 0)), int(count))
            for kind, count in self.errors.items()
            if count
        )
        return tuple(
            nlargest(_MAX_ERRORS, counts, lambda each: (each.in_interval, each.in_total))
        )


@attrs.frozen
class Interval:
    """What happened in an interval."""

    total: int
    success: int
    inconclusive: int
    point: Point

    @classmethod
    def between(cls, earlier: Totals, now: Totals, latency_unit: float) -> Interval:
        total = now.total - earlier.total
        success = min(now.success - earlier.success, total)
        inconclusive = now.inconclusive - earlier.inconclusive
        if total:
            outcome = UP if success == total else DEGRADED if success else DOWN
        else:
            outcome = INCONCLUSIVE if inconclusive else IDLE
        p50, p99 = _quantiles(earlier.latency, now.latency, latency_unit)
        point = Point(outcome, success / total if total else NONE, p50, p99)
        return cls(total, success, inconclusive, point)


def _count(value: Value | None) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _quantiles(
    earlier: Distribution | ExponentialDistribution | None,
    now: Distribution | ExponentialDistribution | None,
    latency_unit: float,
) -> tuple[float, float]:
    """Return the median and the 99th percentile of the interval, in seconds."""
    if now is None or now is earlier:
        return NONE, NONE
    try:
        match now, earlier:
            case (Distribution(), Distribution()) | (
                ExponentialDistribution(),
                ExponentialDistribution(),
            ):
                now = now.subtract(earlier)  # type: ignore[arg-type]
            case _:
                pass
    except ValueError:  # other bounds: it is a new distribution
        pass
    p50, p99 = now.quantile(0.5), now.quantile(0.99)
    return (NONE, NONE) if math.isnan(p50) else (p50 * latency_unit, p99 * latency_unit)
