"""What the rows share: the standard work, rounds that alternate, and how a row is told.

Where nothing waits, CPU time is measured: it is what wall time would be on a machine that
has nothing else to do.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, Literal, TypeVar

import attrs
import trio

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    ProbeResult,
    StatsKeeper,
    Value,
    exponential_bounds,
)

T = TypeVar("T")

# What a result adds: a target's key and a latency.
Work = list[tuple[str, float]]

PRODUCERS = 100
BUFFER = 100
BOUNDS = exponential_bounds(base=2, scale_factor=0.001, num_buckets=10)

# Set by `python benchmarks --quick`, for tests: everything runs, on little work.
QUICK = "BENCHMARKS_QUICK" in os.environ


def size(full: T, quick: T) -> T:
    return quick if QUICK else full


ROUNDS = size(7, 2)


@attrs.frozen
class Result:
    """What a user's class of results looks like."""

    target: str
    latency: float

    def metrics(self) -> dict[str, Value]:
        return {"total": 1, "success": 1, "latency": self.latency}


def make_endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(f"target-{number}.example.com") for number in range(count)]


def make_work(endpoints: list[Endpoint], count: int) -> Work:
    """Return that many results' worth of work, evenly spread over targets in random order.

    Latencies are multiples of 1/1024 s, so that their sums are exact.
    """
    dice = random.Random(1)
    keys = [endpoint.key for endpoint in endpoints]
    dice.shuffle(keys)
    return [
        (keys[number % len(keys)], dice.randrange(1, 700) / 1024) for number in range(count)
    ]


def make_keeper(endpoints: list[Endpoint], export_interval: float = 3600) -> StatsKeeper:
    """Return a keeper; by default none of its ticks comes as long as the benchmark runs."""
    return StatsKeeper(
        "tcp",
        "benchmark",
        lambda: endpoints,
        export_interval=export_interval,
        distributions={"latency": BOUNDS},
    )


def fold_in(keeper: StatsKeeper, work: Work) -> None:
    """Have `keeper` fold this work in without a pass, as one does that is cancelled."""

    async def run_cancelled() -> None:
        results_send, results = trio.open_memory_channel[ProbeResult](math.inf)
        exports_send, exports = trio.open_memory_channel[EventMetrics](0)
        for target, latency in work:
            results_send.send_nowait(Result(target, latency))
        with exports, trio.CancelScope() as scope:
            scope.cancel()
            await keeper.run(results, exports_send)

    trio.run(run_cancelled)


def metrics_by_target(exports: Iterable[EventMetrics]) -> dict[str, Mapping[str, Value]]:
    return {export.labels["dst"]: export.metrics for export in exports}


def check_totals(totals: Mapping[str, Mapping[str, Value]], work: Work, times: int) -> None:
    """Check that `totals` are what this work, so many times, adds up to."""
    latencies = defaultdict[str, list[float]](list)
    for target, latency in work:
        latencies[target].append(latency)
    expected = {
        target: {
            "total": len(samples) * times,
            "success": len(samples) * times,
            "latency": Distribution.of(samples * times, BOUNDS),
        }
        for target, samples in latencies.items()
    }
    assert totals == expected, "the totals are wrong"


def alternate(
    ours: Callable[[], float], peer: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Measure both in turn; return what each round gave. A first one warms up."""
    rounds: list[list[float]] = []
    for _ in range(ROUNDS + 1):
        pair: list[float] = []
        for measure in ours, peer:
            gc.collect()
            pair.append(measure())
        rounds.append(pair)
    return [our for our, _ in rounds[1:]], [other for _, other in rounds[1:]]


def report(  # noqa: PLR0913  # a row has that many parts
    row: str,
    what: str,
    how: str,
    *,
    reach: float,
    rounds: list[float],
    detail: Mapping[str, Any],
    unit: Literal["ratio", "bytes", "ms", "turns"] = "ratio",
    value: float | None = None,
) -> None:
    """Print a row as JSON, for `python benchmarks`. Its value is the median by default."""
    told = {
        "row": row,
        "what": what,
        "how": how,
        "reach": reach,
        "unit": unit,
        "value": median(rounds) if value is None else value,
        "rounds": rounds,
        "detail": detail,
    }
    print(json.dumps(told), flush=True)


def report_ratio(  # noqa: PLR0913  # as above
    row: str,
    what: str,
    how: str,
    *,
    reach: float,
    seconds: tuple[list[float], list[float]],
    runs: int,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Print a row that compares what `runs` of ours and of the peer's take."""
    ours, peer = seconds
    report(
        row,
        what,
        how,
        reach=reach,
        rounds=[our / other for our, other in zip(ours, peer, strict=True)],
        detail={
            "ours_us": microseconds(ours, runs),
            "peer_us": microseconds(peer, runs),
            **(detail or {}),
        },
    )


def microseconds(rounds: list[float], runs: int) -> float:
    """Return the median time of one run."""
    return round(median(rounds) / runs * 1e6, 3)
