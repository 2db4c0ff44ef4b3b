"""Row 6: what a pass adds to the bare sending of as many objects."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from time import process_time

import attrs
import trio
from standard import (
    Work,
    alternate,
    check_totals,
    fold_in,
    make_endpoints,
    make_keeper,
    make_work,
    metrics_by_target,
    microseconds,
    report_ratio,
    size,
)

from trio_statskeeper import Endpoint, EventMetrics, ProbeResult, StatsKeeper

TARGETS = size(100_000, 1_000)
INTERVAL = 0.01
BUFFER = 100


async def discard(exports: trio.MemoryReceiveChannel[EventMetrics], count: int) -> float:
    """Take as many exports, and return when the last came."""
    for _ in range(count):
        await exports.receive()
    return process_time()


@attrs.define
class KnownTargets:
    """A keeper with totals of all its targets, which notes when it asks for these."""

    keeper: StatsKeeper
    work: Work
    asked_at: list[float]

    async def time_pass(self, buffer: int) -> float:
        """Return the seconds from a tick until the last export was received."""
        results_send, results = trio.open_memory_channel[ProbeResult](0)
        exports_send, exports = trio.open_memory_channel[EventMetrics](buffer)
        self.asked_at.clear()
        with results_send:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keeper.run, results, exports_send)
                end = await discard(exports, len(self.work))
                nursery.cancel_scope.cancel()
        # When the keeper started, and at its ticks: the second may come before the consumer
        # has taken all of the first pass out of the buffer.
        _, tick, *_ = self.asked_at
        return end - tick


def know_targets(count: int) -> KnownTargets:
    endpoints = make_endpoints(count)
    asked_at: list[float] = []

    def targets() -> Iterable[Endpoint]:
        asked_at.append(process_time())
        return endpoints

    work = make_work(endpoints, count)
    keeper = attrs.evolve(make_keeper(endpoints, INTERVAL), targets=targets)
    fold_in(keeper, work)
    return KnownTargets(keeper, work, asked_at)


async def time_sending(prebuilt: Iterable[EventMetrics], count: int, buffer: int) -> float:
    exports_send, exports = trio.open_memory_channel[EventMetrics](buffer)
    start = end = process_time()

    async def note_end() -> None:
        nonlocal end
        end = await discard(exports, count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note_end)
        for export in prebuilt:
            await exports_send.send(export)
    return end - start


def main() -> None:
    known = know_targets(TARGETS)
    prebuilt = known.keeper.snapshot()
    check_totals(metrics_by_target(prebuilt), known.work, times=1)
    gc.disable()

    def rounds(buffer: int) -> tuple[list[float], list[float]]:
        return alternate(
            lambda: trio.run(known.time_pass, buffer),
            lambda: trio.run(time_sending, prebuilt, TARGETS, buffer),
        )

    seconds, buffered = rounds(0), rounds(BUFFER)
    report_ratio(
        "6",
        f"a pass over {TARGETS:,} targets, per target ÷ `send` of prebuilt objects",
        "CPU time from a tick, with the new list of targets, until a consumer that "
        "discards them has received all exports, through a channel without a buffer; the "
        f"collector is off. The detail tells how it is with a buffer of {BUFFER}.",
        reach=1.4,
        seconds=seconds,
        runs=TARGETS,
        detail={
            "ours_us_buffered": microseconds(buffered[0], TARGETS),
            "peer_us_buffered": microseconds(buffered[1], TARGETS),
        },
    )


if __name__ == "__main__":
    main()
