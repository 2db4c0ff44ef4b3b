"""Row 9: what the prober adds to the simplest loop that runs a probe for each target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from time import process_time

import trio
from standard import BUFFER, alternate, make_endpoints, report_ratio, size

from trio_statskeeper import Endpoint, Prober, ProbeResult

TARGETS = size(10_000, 500)
RUNS_EACH = size(3, 1)

# So short that the next run is always due: nothing waits, and time is what runs take.
INTERVAL = TARGETS * 10e-6
TIMEOUT = INTERVAL

# Runs that the loop starts between two checkpoints: as many as the prober does.
STEP = 25


async def probe(_: Endpoint) -> None:
    pass


async def run_once(endpoint: Endpoint) -> None:
    with trio.move_on_after(TIMEOUT):
        await probe(endpoint)


async def time_loop(endpoints: Iterable[Endpoint]) -> float:
    start = process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(RUNS_EACH):
            for count, endpoint in enumerate(endpoints, 1):
                nursery.start_soon(run_once, endpoint)
                if count % STEP == 0:
                    await trio.lowlevel.checkpoint()
    return process_time() - start


async def receive(
    results: trio.MemoryReceiveChannel[ProbeResult], count: int
) -> Counter[str]:
    """Take that many results, at each wake-up all that there are, as a keeper does."""
    successes = Counter[str]()
    while count:
        result = await results.receive()
        with suppress(trio.WouldBlock):
            while True:
                successes[result.target] += result.metrics()["success"] == 1
                count -= 1
                if not count:
                    break
                result = results.receive_nowait()
    return successes


async def time_prober(endpoints: list[Endpoint]) -> float:
    prober = Prober(probe, lambda: endpoints, interval=INTERVAL, timeout=TIMEOUT)
    results_send, results = trio.open_memory_channel[ProbeResult](BUFFER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prober.run, results_send)
        received = await receive(results, len(endpoints))  # all targets have a place now
        start = process_time()
        received += await receive(results, RUNS_EACH * len(endpoints))
        seconds = process_time() - start
        nursery.cancel_scope.cancel()
    # A few of the next runs may come before the last of these.
    assert received.keys() == {endpoint.key for endpoint in endpoints}
    assert all(abs(runs - 1 - RUNS_EACH) <= 1 for runs in received.values())
    return seconds


def main() -> None:
    endpoints = make_endpoints(TARGETS)
    seconds = alternate(
        lambda: trio.run(time_prober, endpoints), lambda: trio.run(time_loop, endpoints)
    )
    report_ratio(
        "9",
        f"a run of the Prober, {TARGETS:,} targets ÷ a loop with a task per run",
        "CPU time per run of a probe that does nothing, as fast as they go: the prober's "
        f"interval is {INTERVAL * 1000:g} ms, and its results are received and counted; "
        "the loop starts as many tasks, each with a `move_on_after`, and counts nothing.",
        reach=2,
        seconds=seconds,
        runs=RUNS_EACH * TARGETS,
    )


if __name__ == "__main__":
    main()
