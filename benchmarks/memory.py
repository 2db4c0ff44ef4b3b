"""Row 5: memory per target."""

from __future__ import annotations

import gc
import tracemalloc

from standard import (
    check_totals,
    fold_in,
    make_endpoints,
    make_keeper,
    make_work,
    metrics_by_target,
    report,
    size,
)

TARGETS = size(100_000, 1_000)


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def bytes_per_target(targets: int) -> tuple[float, float]:
    """Return what a target takes in the keeper, and its endpoint before."""
    tracemalloc.start()
    nothing = traced()
    endpoints = make_endpoints(targets)
    of_endpoints = traced()
    tracemalloc.stop()
    work = make_work(endpoints, targets)
    tracemalloc.start()
    nothing_kept = traced()
    keeper = make_keeper(endpoints)
    fold_in(keeper, work)
    of_keeper = traced()
    tracemalloc.stop()
    check_totals(metrics_by_target(keeper.snapshot()), work, times=1)
    return (of_keeper - nothing_kept) / targets, (of_endpoints - nothing) / targets


def main() -> None:
    of_keeper, of_endpoint = bytes_per_target(TARGETS)
    report(
        "5",
        f"memory per target, {TARGETS:,} targets",
        "what tracemalloc says that a keeper takes which has listed the targets and has "
        "totals of each; the endpoints, which are the user's, are not counted in.",
        reach=450,
        unit="bytes",
        rounds=[round(of_keeper, 1)],
        detail={"endpoint_bytes": round(of_endpoint, 1)},
    )


if __name__ == "__main__":
    main()
