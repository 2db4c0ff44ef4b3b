"""How long a status page takes, and for how long it holds up the loop.

    python benchmarks/status.py

The longest steps are of Trio's scheduler, in time of the thread, with the garbage collector
off: what the page itself can hold up the loop for.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterator
from random import Random

import trio

from trio_statskeeper import EventMetrics, ExponentialDistribution, Value
from trio_statskeeper.status import StatusPage

PASSES = 6
ADDRESSES = (
    "/status",
    "/status?filter=5",
    "/status?target=target-5",
    "/status.json",
    "/status.json?target=target-5",
)


class Steps(trio.abc.Instrument):
    """How long the longest step took, in seconds."""

    longest = 0.0
    _began = float("inf")

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)


def exports(targets: int) -> Iterator[EventMetrics]:
    """Yield some passes over targets, of which each tenth fails at times."""
    dice = Random(1)
    samples = [dice.lognormvariate(-4, 0.5) for _ in range(1_000)]
    before = ExponentialDistribution.of(samples)
    latencies = [before.merge(ExponentialDistribution.of(samples[:n])) for n in range(9)]
    for number in range(1, PASSES + 1):
        for target in range(targets):
            fails = target % 10 == 0 and number % 2
            metrics: dict[str, Value] = {
                "total": 5 * number,
                "success": 5 * number - (number + 1) // 2 * bool(fails),
                "latency": latencies[number],
            }
            labels = {"ptype": "http", "probe": "bench", "dst": f"target-{target}"}
            ends_pass = target == targets - 1
            yield EventMetrics(10.0 * number, 0, labels, metrics, ends_pass=ends_pass)


async def ask(port: int, address: str) -> int:
    """Return the size of an answer."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        head = f"GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        return sum([len(chunk) async for chunk in stream])


async def measure(targets: int) -> None:
    passes = [*exports(targets)]
    page = StatusPage(0)
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        _, port = await nursery.start(page.run, receive)
        gc.collect()
        gc.disable()
        began = time.process_time()
        for export in passes:
            await send.send(export)
        each = (time.process_time() - began) / len(passes)
        print(f"{targets:,} targets: {each * 1e6:.0f} µs an export")
        for address in ADDRESSES:
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            began = time.perf_counter()
            length = await ask(port, address)
            took = time.perf_counter() - began
            trio.lowlevel.remove_instrument(steps)
            print(
                f"  {address}: {took * 1e3:.0f} ms, {length / 1000:,.0f} kB, "
                f"longest step {steps.longest * 1e3:.2f} ms"
            )
        gc.enable()
        nursery.cancel_scope.cancel()


async def memory(targets: int) -> None:
    page = StatusPage()
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        await nursery.start(page.run, receive)
        tracemalloc.start()
        for export in exports(targets):
            await send.send(export)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] / targets
        tracemalloc.stop()
        print(f"{size / 1000:.1f} kB a target, without its latencies")
        nursery.cancel_scope.cancel()


for number in (1_000, 10_000):
    trio.run(measure, number)
trio.run(memory, 1_000)
