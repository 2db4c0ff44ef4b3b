"""Row 7: how long the keeper's steps are, which is how long they hold up the loop."""

from __future__ import annotations

import gc
from array import array
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Literal

import trio
from standard import (
    Result,
    Work,
    check_totals,
    fold_in,
    make_endpoints,
    make_keeper,
    make_work,
    metrics_by_target,
    report,
    size,
)

from trio_statskeeper import Endpoint, EventMetrics, ProbeResult, StatsKeeper

KNOWN = size(100_000, 1_000)
BACKLOG = size(1_000_000, 2_000)
ADDED = size((100_000, 1_000_000), (1_000, 2_000))
ROUNDS = size(3, 2)
PASSES = 2

# Seconds between the results that come while the keeper runs: 5,000 a second.
GAP = 0.001
AT_ONCE = 5

# Its senders have a module of their own.
KEEPER_TASKS = f"{StatsKeeper.__module__.partition('.')[0]}."

Collector = Literal["off", "on", "frozen"]


class Steps(trio.abc.Instrument):
    """Times each step of the keeper's tasks: in all, and what the thread itself took."""

    def __init__(self) -> None:
        self.wall: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self.thread: array[float] = array("d")
        self.began = (0.0, 0.0)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = (thread_time(), perf_counter())

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        ended = perf_counter()
        if task.name.startswith(KEEPER_TASKS):
            self.wall[task.name.removeprefix(KEEPER_TASKS)].append(ended - self.began[1])
            self.thread.append(thread_time() - self.began[0])


def figures(steps: array[float]) -> dict[str, float]:
    """Return the number of steps, and p99.9 and the longest in milliseconds."""
    ordered = sorted(steps)
    p999 = ordered[int(len(ordered) * 0.999)]
    return {
        "steps": len(ordered),
        "p99.9_ms": round(p999 * 1000, 3),
        "worst_ms": round(ordered[-1] * 1000, 3),
    }


def all_steps(steps: Steps) -> array[float]:
    return array("d", [step for of_task in steps.wall.values() for step in of_task])


@contextmanager
def collector(state: Collector) -> Generator[None]:
    gc.collect()
    if state == "off":
        gc.disable()
    elif state == "frozen":
        gc.freeze()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def trickle(results: trio.MemorySendChannel[ProbeResult], work: Work) -> None:
    """Send this work again and again."""
    due = trio.current_time()
    while True:
        for number in range(0, len(work), AT_ONCE):
            for target, latency in work[number : number + AT_ONCE]:
                await results.send(Result(target, latency))
            due += GAP
            await trio.sleep_until(due)


async def discard(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
    async for _ in exports:
        pass


async def work_off(keeper: StatsKeeper, backlog: Work, trickling: Work) -> Steps:
    """Time the steps from a full buffer until it is empty and passes have been made."""
    results_send, results = trio.open_memory_channel[ProbeResult](2 * len(backlog))
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    for target, latency in backlog:
        results_send.send_nowait(Result(target, latency))
    folded = keeper.statistics().results_accepted + len(backlog)
    passes = keeper.statistics().passes + (PASSES if trickling else 0)
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, results, exports_send)
        nursery.start_soon(discard, exports)
        if trickling:
            nursery.start_soon(trickle, results_send, trickling)
        while (now := keeper.statistics()).results_accepted < folded or now.passes < passes:  # noqa: ASYNC110
            await trio.sleep(0.01)
        trio.lowlevel.remove_instrument(steps)  # the sweep at the end is no step of work
        nursery.cancel_scope.cancel()
    assert not keeper.statistics().results_rejected
    return steps


def steady(state: Collector, keeper: StatsKeeper, backlog: Work) -> Steps:
    with collector(state):
        steps = trio.run(work_off, keeper, backlog, backlog)
    totals = [export.metrics["total"] for export in keeper.snapshot()]
    assert sum(total for total in totals if isinstance(total, int)) == (
        keeper.statistics().results_accepted
    )
    return steps


def adding(state: Collector, endpoints: list[Endpoint], first: Work) -> Steps:
    """Time the steps while the first results of targets are folded in."""
    keeper = make_keeper(endpoints, export_interval=GAP)
    nothing: Work = []
    with collector(state):
        steps = trio.run(work_off, keeper, first, nothing)
    assert (
        keeper.statistics().results_accepted
        == keeper.statistics().targets_tracked
        == len(first)
    )
    sample = first[:1_000]
    exports = keeper.snapshot(target for target, _ in sample)
    check_totals(metrics_by_target(exports), sample, times=1)
    return steps


def main() -> None:
    endpoints = make_endpoints(KNOWN)
    keeper = make_keeper(endpoints, export_interval=GAP)
    fold_in(keeper, make_work(endpoints, KNOWN))
    backlog = make_work(endpoints, BACKLOG)
    rounds = [steady("off", keeper, backlog) for _ in range(ROUNDS)]
    by_round = [figures(all_steps(steps)) for steps in rounds]
    detail: dict[str, dict[str, dict[str, float]]] = {
        "off": {
            **{task: figures(steps) for task, steps in rounds[0].wall.items()},
            "thread time": figures(rounds[0].thread),
        }
    }
    others: tuple[Collector, ...] = ("on", "frozen")
    for state in others:
        steps = steady(state, keeper, backlog)
        detail[state] = {"all": figures(all_steps(steps))}
    for count in ADDED:
        endpoints = make_endpoints(count)
        first = make_work(endpoints, count)
        for state in ("off", *others):
            steps = adding(state, endpoints, first)
            detail[f"adding {count:,}, {state}"] = {
                "all": figures(all_steps(steps)),
                "thread time": figures(steps.thread),
            }
    what = f"steps of the keeper's tasks, {KNOWN:,} known targets, collector off"
    how = (
        "wall time of each step, by an instrument of Trio: passes back to back, "
        f"{AT_ONCE / GAP:,.0f} results a second, and a backlog of {BACKLOG:,}. It has in "
        "it what other processes take from this one; thread time, in the detail, has not. "
        "The detail also tells how it is with the collector on, after gc.freeze(), and "
        "while the first results of new targets are a backlog."
    )
    report(
        "7a",
        f"p99.9 of the {what}",
        how,
        reach=1,
        unit="ms",
        rounds=[of_round["p99.9_ms"] for of_round in by_round],
        detail=detail,
    )
    worst = [of_round["worst_ms"] for of_round in by_round]
    report(
        "7b",
        f"worst of the {what}",
        "as 7a; the worst of all rounds.",
        reach=5,
        unit="ms",
        rounds=worst,
        detail={"thread time": [figures(steps.thread)["worst_ms"] for steps in rounds]},
        value=max(worst),
    )


if __name__ == "__main__":
    main()
