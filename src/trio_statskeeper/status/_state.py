"""What is known of a target as of one pass."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import attrs

from trio_statskeeper._event_metrics import EventMetrics

from ._history import IDLE, OUTCOMES, History
from ._intervals import ErrorCount, Interval, Totals

# What happened last is shown first: the worst state, then the others.
STATES = ("down", "degraded", "stale", "inconclusive", "up", "idle")

# Export intervals after which a target without exports is stale, and dropped.
STALE_AFTER = 3
DROPPED_AFTER = 10

# Resets that are kept of each target.
_MAX_RESETS = 8

# The first export of a target covers one interval if its totals are not much older.
_MAX_FIRST_INTERVAL = 1.5


@attrs.frozen(eq=False)
class TargetState:
    """A target as of one pass; a newer pass makes a new state."""

    target_id: str
    """Identifies the target in addresses: a hash of its labels."""
    labels: Mapping[str, str]
    history: History
    number: int
    """The pass of its newest export."""
    timestamp: float
    """Unix seconds of its newest export."""
    start_timestamp: float
    """When its totals began, in Unix seconds."""
    state: str
    """The outcome of the newest interval with runs: up, degraded, down or inconclusive; or
    idle, if there was none."""
    since: float
    """Since when it is in that state, in Unix seconds, as far as is known."""
    totals: Totals
    interval: Interval
    """The newest interval with runs."""
    errors: tuple[ErrorCount, ...]
    bad_intervals: int
    """In how many intervals of its history runs failed."""
    resets: tuple[int, ...]
    """The passes before which its totals began again."""

    @property
    def name(self) -> str:
        return self.labels.get("dst", "")


def first_state(export: EventMetrics, number: int, length: int) -> TargetState:
    """Return the state of a target that was not known before.

    Args:
      export: its first export.
      number: the number of the pass.
      length: how many intervals are kept.
    """
    labels = export.labels
    target_id = blake2b(repr(sorted(labels.items())).encode(), digest_size=8).hexdigest()
    now = Totals.of(export)
    age = export.timestamp - export.start_timestamp
    covers_interval = age <= _MAX_FIRST_INTERVAL * export.export_interval
    earlier = Totals() if covers_interval else now
    interval = Interval.between(earlier, now, export.latency_unit)
    history = History(length)
    history.add(number, interval.point)
    return TargetState(
        target_id,
        labels,
        history,
        number,
        export.timestamp,
        export.start_timestamp,
        state=OUTCOMES[interval.point.outcome],
        since=export.timestamp,
        totals=now,
        interval=interval,
        errors=now.errors_since(earlier),
        bad_intervals=history.bad_intervals,
        resets=(),
    )


def next_state(last: TargetState, export: EventMetrics, number: int) -> TargetState:
    """Return the state of a target after another export, and add it to the history."""
    now, earlier, resets = Totals.of(export), last.totals, last.resets
    if export.start_timestamp != last.start_timestamp or not now.is_after(earlier):
        earlier = Totals()
        resets = (*resets, number)[-_MAX_RESETS:]
    interval = Interval.between(earlier, now, export.latency_unit)
    last.history.add(number, interval.point)
    is_idle = interval.point.outcome == IDLE
    state = last.state if is_idle else OUTCOMES[interval.point.outcome]
    return TargetState(
        last.target_id,
        export.labels,
        last.history,
        number,
        export.timestamp,
        export.start_timestamp,
        state=state,
        since=last.since if state == last.state else export.timestamp,
        totals=now,
        interval=last.interval if is_idle else interval,
        errors=now.errors_since(earlier),
        bad_intervals=last.history.bad_intervals,
        resets=resets,
    )
