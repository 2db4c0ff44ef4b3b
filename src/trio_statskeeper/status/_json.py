"""The status as JSON, for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

from trio_statskeeper._http._body import Blocks

from ._history import NONE, OUTCOMES
from ._intervals import Interval
from ._overview import since
from ._selection import Row, Selection
from ._state import STATES

# That of the format: names are never removed or changed without a new number.
_VERSION = 1

# Intervals that are written in a step.
_BATCH = 100


def overview_json(selection: Selection, now: float) -> Blocks:
    """Yield the targets that were selected, the worst first, in short steps.

    Args:
      selection: the targets.
      now: seconds of Trio's clock.
    """
    yield [f'{{"version": {_VERSION}, "keepers": ['.encode()]
    yield from _joined(_keepers(selection, now))
    yield [f'], "not_kept": {selection.not_kept}, "targets": ['.encode()]
    rows = (row for group in selection.groups for row in group.take_rows())
    yield from _joined(_target(row) for row in rows)
    yield [b"]}\n"]


def detail_json(row: Row) -> Blocks:
    """Yield a target with its history, in short steps."""
    cut, target = row.cut, row.target
    window = target.history.window(target.number, cut.number)
    yield [
        f'{{"version": {_VERSION}, "target": {_dumps(_target(row))}, "history": '.encode()
    ]
    step = {"until": cut.timestamp, "step_seconds": cut.export_interval}
    yield [_dumps(step)[:-1].encode()]
    columns = {
        "outcome": (OUTCOMES[outcome] for outcome in window.outcomes),
        "success_ratio": map(_rounded, window.success),
        "p50_seconds": map(_rounded, window.p50),
        "p99_seconds": map(_rounded, window.p99),
    }
    for name, column in columns.items():
        yield [f', "{name}": ['.encode()]
        separator = ""
        while values := [*islice(column, _BATCH)]:
            yield [f"{separator}{_dumps(values)[1:-1]}".encode()]
            separator = ", "
        yield [b"]"]
    yield [b"}}\n"]


def missing_json() -> Blocks:
    """Yield what says that a target is not known."""
    yield [f'{{"version": {_VERSION}, "error": "no such target"}}\n'.encode()]


def _joined(items: Iterable[object]) -> Blocks:
    separator = b"\n"
    for item in items:
        yield [separator, _dumps(item).encode()]
        separator = b",\n"


def _keepers(selection: Selection, now: float) -> Iterable[object]:
    for group in selection.groups:
        cut = group.cut
        yield {
            "ptype": cut.ptype,
            "probe": cut.probe,
            "timestamp": cut.timestamp,
            "export_interval": cut.export_interval,
            "silent": cut.is_silent(now),
            "targets": {state: group.counts[state] for state in STATES},
        }


def _target(row: Row) -> dict[str, Any]:
    target, totals = row.target, row.target.totals
    return {
        "id": target.target_id,
        "target": target.name,
        "probe": row.cut.probe,
        "ptype": row.cut.ptype,
        "labels": dict(target.labels),
        "state": row.state,
        "since": since(row),
        "timestamp": target.timestamp,
        "start_timestamp": target.start_timestamp,
        "interval": _interval(target.interval),
        "totals": {
            "total": totals.total,
            "success": totals.success,
            "inconclusive": totals.inconclusive,
        },
        "errors": [
            {"kind": error.kind, "interval": error.in_interval, "total": error.in_total}
            for error in target.errors
        ],
        "bad_intervals": target.bad_intervals,
    }


def _interval(interval: Interval) -> dict[str, Any]:
    point = interval.point
    return {
        "total": interval.total,
        "success": interval.success,
        "inconclusive": interval.inconclusive,
        "outcome": OUTCOMES[point.outcome],
        "success_ratio": _rounded(point.success),
        "p50_seconds": _rounded(point.p50),
        "p99_seconds": _rounded(point.p99),
    }


def _rounded(number: float) -> float | None:
    """Return a number without digits that arrays of 32 bits do not hold."""
    if number == NONE or math.isinf(number):
        return None
    return float(f"{number:.6g}")


def _dumps(value: object) -> str:
    return json.dumps(value, allow_nan=False)
