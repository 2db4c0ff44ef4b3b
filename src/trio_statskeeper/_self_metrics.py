"""The statistics of keepers and probers, as exports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast, get_args
from weakref import WeakKeyDictionary

import attrs

from ._arguments import quote
from ._clocks import later_timestamp
from ._event_metrics import EventMetrics
from ._keeper import StatsKeeper
from ._keeper_statistics import KeeperStatistics
from ._prober import Prober
from ._results import Reason
from ._values import Gauge, Map, Value

Observed: TypeAlias = StatsKeeper | Prober

PREFIX = "statskeeper_"

HELP = {
    "results_accepted": "Results of probe runs that were added to the totals",
    "results_rejected": "Results of probe runs that could not be added to the totals",
    "passes": "Exports of all targets that were completed",
    "exports_sent": "Exports of single targets that were sent",
    "ticks_missed": "Ticks skipped because the previous pass was still in progress",
    "duplicate_targets": "Targets whose key appeared before in the same list",
    "targets_expired": "Targets dropped after they were delisted",
    "targets_tracked": "Targets that have totals",
    "clock_behind_seconds": "Seconds that the clock is behind the newest timestamp",
    "prober_results_sent": "Probe runs whose result was sent",
    "prober_runs_late": "Probe runs that began late by more than a tenth of the timeout",
    "prober_runs_missed": "Probe runs that were skipped",
    "prober_runs_stuck": "Probe runs that are still running after their timeout",
    "prober_duplicate_targets": "Targets whose key appeared before in the same list",
    "prober_targets": "Targets that are probed now",
    "prober_running": "Probes that are running now",
    "prober_loop_lag_seconds": "Seconds that the newest wake-up of the prober came late",
}

_GAUGES = frozenset(
    (
        "targets_tracked",
        "clock_behind_seconds",
        "prober_runs_stuck",
        "prober_targets",
        "prober_running",
        "prober_loop_lag_seconds",
    )
)

# Fields whose metrics have the unit in their names.
_IN_SECONDS = frozenset(("clock_behind", "loop_lag"))

# When this was imported: no keeper or prober has counted anything before.
_NOTHING_COUNTED_AT = time.time()

_newest_timestamps = WeakKeyDictionary[Observed, float]()


def validate_observed(of: Iterable[Observed]) -> tuple[Observed, ...]:
    """Return keepers and probers whose statistics can be exported together.

    Raises:
      TypeError: if an item is neither a keeper nor a prober.
      ValueError: if two of them have the same labels.
    """
    checked = tuple(of)
    seen = set[object]()
    for each in checked:
        if not isinstance(each, StatsKeeper | Prober):
            raise TypeError(f"statistics_of must be keepers and probers, got {quote(each)}")
        identity = (type(each), *_labels(each).values())
        if identity in seen:
            raise ValueError(
                f"the statistics of two {type(each).__name__}s called {each.name!r} "
                "can't be told apart; give them names"
            )
        seen.add(identity)
    return checked


def self_metrics(of: Observed) -> EventMetrics:
    """Return the statistics of a keeper or prober, by the names in `HELP`.

    The timestamps of one keeper or prober strictly increase, whatever the clock does.
    """
    statistics = of.statistics()
    prefix = "" if isinstance(statistics, KeeperStatistics) else "prober_"
    metrics: dict[str, Value] = {}
    for field, value in attrs.asdict(statistics, recurse=False).items():
        name = prefix + field + ("_seconds" if field in _IN_SECONDS else "")
        if name in _GAUGES:
            metrics[name] = Gauge(value)
        elif isinstance(value, Mapping):
            # With zeros: a rate or an alert needs the sample before the first increase.
            counts = cast("Mapping[str, int]", value)
            metrics[name] = Map("reason", {**dict.fromkeys(get_args(Reason), 0), **counts})
        else:
            metrics[name] = value
    timestamp = later_timestamp(
        time.time(), _newest_timestamps.get(of, _NOTHING_COUNTED_AT)
    )
    _newest_timestamps[of] = timestamp
    return EventMetrics(timestamp, _NOTHING_COUNTED_AT, _labels(of), metrics)


def _labels(of: Observed) -> dict[str, str]:
    keeper = of.keeper if isinstance(of, Prober) else of
    ptype = {} if keeper is None else {"ptype": keeper.ptype}
    return {**ptype, "probe": of.name}
