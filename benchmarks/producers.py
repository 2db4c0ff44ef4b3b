"""Rows 1 and 2: what a result costs, from the producers to the totals.

`python benchmarks/producers.py 1` measures the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import process_time

import trio
from standard import (
    BUFFER,
    PRODUCERS,
    ROUNDS,
    Result,
    Work,
    alternate,
    check_totals,
    fold_in,
    make_endpoints,
    make_keeper,
    make_work,
    metrics_by_target,
    report_ratio,
    size,
)
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import EventMetrics, ProbeResult, StatsKeeper

FEW = 100
MANY = size(100_000, 1_000)
RESULTS = size(100_000, 1_000)

HOW = (
    f"{PRODUCERS} tasks make and send {RESULTS:,} results through a channel with a buffer "
    f"of {BUFFER}; CPU time from their start until the last result is "
)


async def produce(results: trio.MemorySendChannel[ProbeResult], share: Work) -> None:
    for target, latency in share:
        await results.send(Result(target, latency))


async def time_producers(
    results: trio.MemorySendChannel[ProbeResult],
    work: Work,
    finished: Callable[[], bool],
    producers: int = PRODUCERS,
) -> float:
    """Return the seconds until all results were sent and dealt with."""
    shares = [work[number::producers] for number in range(producers)]
    await wait_all_tasks_blocked()  # the keeper has gone through its list of targets
    start = process_time()
    async with trio.open_nursery() as nursery:
        for share in shares:
            nursery.start_soon(produce, results, share)
    # Few are left in the buffer now, so that this asks a few times only.
    while not finished():  # noqa: ASYNC110
        await trio.lowlevel.checkpoint()
    return process_time() - start


async def through_keeper(
    keeper: StatsKeeper, work: Work, producers: int = PRODUCERS
) -> float:
    results_send, results = trio.open_memory_channel[ProbeResult](BUFFER)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    folded = keeper.statistics().results_accepted + len(work)
    with exports:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run, results, exports_send)
            seconds = await time_producers(
                results_send,
                work,
                lambda: keeper.statistics().results_accepted == folded,
                producers,
            )
            nursery.cancel_scope.cancel()  # no last pass
    return seconds


async def discarded(work: Work, producers: int = PRODUCERS) -> float:
    results_send, results = trio.open_memory_channel[ProbeResult](BUFFER)

    async def discard() -> None:
        async for _ in results:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(discard)
        seconds = await time_producers(
            results_send,
            work,
            lambda: results.statistics().current_buffer_used == 0,
            producers,
        )
        nursery.cancel_scope.cancel()
    return seconds


def against_async_for() -> None:
    endpoints = make_endpoints(FEW)
    work = make_work(endpoints, RESULTS)
    keeper = make_keeper(endpoints)
    seconds = alternate(
        lambda: trio.run(through_keeper, keeper, work), lambda: trio.run(discarded, work)
    )
    check_totals(metrics_by_target(keeper.snapshot()), work, times=ROUNDS + 1)
    report_ratio(
        "1",
        f"producers → keeper, {FEW} targets ÷ the same producers → `async for`",
        f"{HOW}folded in, or discarded.",
        reach=0.55,
        seconds=seconds,
        runs=RESULTS,
    )


def knowing(targets: int) -> tuple[StatsKeeper, Work]:
    """Return a keeper that has totals of so many targets, and the work that it did."""
    endpoints = make_endpoints(targets)
    keeper = make_keeper(endpoints)
    work = make_work(endpoints, RESULTS)
    fold_in(keeper, work)
    return keeper, work


def many_against_few() -> None:
    many, work_of_many = knowing(MANY)
    few, work_of_few = knowing(FEW)
    seconds = alternate(
        lambda: trio.run(through_keeper, many, work_of_many),
        lambda: trio.run(through_keeper, few, work_of_few),
    )
    for keeper, work in (many, work_of_many), (few, work_of_few):
        check_totals(metrics_by_target(keeper.snapshot()), work, times=ROUNDS + 2)
    report_ratio(
        "2",
        f"producers → keeper, {MANY:,} known targets ÷ {FEW}",
        f"{HOW}folded in. Targets come in random order; there is no pass meanwhile.",
        reach=1.4,
        seconds=seconds,
        runs=RESULTS,
    )


if __name__ == "__main__":
    {"1": against_async_for, "2": many_against_few}[sys.argv[1]]()
