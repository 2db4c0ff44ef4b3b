"""Row 8: how much a scrape delays probes.

Ten clients ask an echo server on loopback, which takes 1 ms to answer, again and again. In
the same loop, a keeper of 1,000 targets exports every second to Prometheus and OTLP; every
second, somebody scrapes. Echo server, scraper and collector are processes of their own.

To hand that many bytes to a scraper takes the machine's cores away from the clients and
their server, whoever does it. How much that is, the detail tells: between two scrapes, the
scraper gets as many bytes from another process.

The detail also has the longest step of Trio's scheduler during scrapes of many targets,
with the garbage collector off: what a scrape itself can hold up the loop for.
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import quantiles
from urllib.request import urlopen

import trio
from standard import (
    Result,
    fold_in,
    make_endpoints,
    make_keeper,
    make_work,
    report,
    size,
)

from trio_statskeeper import EventMetrics, ProbeResult, StatsKeeper, fan_out
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

ROUNDS = size(4, 1)
SCRAPES_EACH = size(5, 2)
CLIENTS = 10
TARGETS = make_endpoints(1_000)

# Targets of which the steps of a scrape are timed.
MANY = size((10_000, 100_000), (1_000,))

# When something began and ended, by a clock that all processes share.
Span = tuple[float, float]


async def echo() -> None:
    """Tell the port, and echo each byte after a millisecond."""

    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # the clients are cancelled at the end
            async for data in stream:
                await trio.sleep(0.001)
                await stream.send_all(data)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(answer, [listener])


def collect() -> None:
    """Tell the port; take whatever is posted, and give as many bytes as are asked for."""

    class Collector(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            body = bytes(int(self.path.removeprefix("/")))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    print(server.server_port, flush=True)
    server.serve_forever()


def get(url: str) -> tuple[Span, int]:
    """Return when it was asked for and had come, and its length."""
    start = time.perf_counter()
    with urlopen(url) as response:  # noqa: S310  # our own servers
        length = len(response.read())
    return (start, time.perf_counter()), length


def scrape(url: str, elsewhere: str) -> None:
    """Scrape every second, and get as much from elsewhere in between; tell when."""
    for number in range(ROUNDS * SCRAPES_EACH + 1):
        ours, length = get(url)
        time.sleep(0.5)
        other, _ = get(f"{elsewhere}/{length}")
        time.sleep(0.5)
        if number:  # the first one warms up
            print(json.dumps([ours, other, length]), flush=True)


async def ask(port: int, spans: list[Span]) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        while True:
            start = time.perf_counter()
            await stream.send_all(b"x")
            await stream.receive_some(1)
            spans.append((start, time.perf_counter()))


async def feed(results: trio.MemorySendChannel[ProbeResult]) -> None:
    while True:
        for target in TARGETS:
            await results.send(Result(target.key, 0.0123))
            await trio.sleep(1 / len(TARGETS))


async def measure(
    echo_port: int, collector_port: int
) -> tuple[list[Span], list[Span], list[Span]]:
    """Return the spans of the clients' requests, of the scrapes, and of those elsewhere."""
    collector = f"http://127.0.0.1:{collector_port}"
    results_send, results = trio.open_memory_channel[ProbeResult](100)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    keeper = make_keeper(TARGETS, export_interval=1)
    prometheus = PrometheusExporter(0, statistics_of=[keeper])
    otlp = OTLPExporter(collector, statistics_of=[keeper])
    spans: list[Span] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, results, exports_send)
        await nursery.start(fan_out, exports, prometheus.run, otlp.run)
        nursery.start_soon(feed, results_send)
        for _ in range(CLIENTS):
            nursery.start_soon(ask, echo_port, spans)
        assert prometheus.address is not None
        host, port = prometheus.address
        await trio.sleep(2.5)  # until all targets have been exported
        gc.collect()
        gc.freeze()  # as docs/performance.md advises, lest it is the collector that is seen
        url = f"http://{host}:{port}/metrics"
        scraped = await trio.run_process(
            [sys.executable, __file__, "scrape", url, collector], capture_stdout=True
        )
        nursery.cancel_scope.cancel()
    scrapes = [json.loads(line) for line in scraped.stdout.splitlines()]
    assert all(size > 1_000_000 for _, _, size in scrapes)
    totals = [export.metrics["total"] for export in keeper.snapshot()]
    assert len(totals) == len(TARGETS)
    assert sum(total for total in totals if isinstance(total, int)) == (
        keeper.statistics().results_accepted
    )
    return spans, [ours for ours, _, _ in scrapes], [other for _, other, _ in scrapes]


class LongestStep(trio.abc.Instrument):
    """Times the steps of all tasks: the longest, in all and of the thread itself."""

    def __init__(self) -> None:
        self.wall = self.thread = 0.0
        self.began: tuple[float, float] | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = (time.thread_time(), time.perf_counter())

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        ended = time.perf_counter()
        if self.began is not None:  # else it is the step that has added this instrument
            self.wall = max(self.wall, ended - self.began[1])
            self.thread = max(self.thread, time.thread_time() - self.began[0])


def longest_step(targets: int) -> dict[str, float]:
    """Return the longest step during some scrapes of so many targets, in ms."""
    endpoints = make_endpoints(targets)
    keeper = make_keeper(endpoints)
    fold_in(keeper, make_work(endpoints, targets))
    steps = trio.run(time_scrapes, keeper)
    return {
        "wall_ms": round(1000 * steps.wall, 2),
        "thread_ms": round(1000 * steps.thread, 2),
    }


async def time_scrapes(keeper: StatsKeeper) -> LongestStep:
    prometheus = PrometheusExporter(0, statistics_of=[keeper])
    send, exports = trio.open_memory_channel[EventMetrics](math.inf)
    for export in keeper.snapshot():
        send.send_nowait(export)
    steps = LongestStep()
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(prometheus.run, exports)
        command = [sys.executable, __file__, "get", f"http://{host}:{port}/metrics"]
        await trio.run_process(command)
        gc.collect()
        gc.disable()
        trio.lowlevel.add_instrument(steps)
        for _ in range(ROUNDS):
            await trio.run_process(command)
        trio.lowlevel.remove_instrument(steps)
        gc.enable()
        nursery.cancel_scope.cancel()
    return steps


def main() -> None:
    with ExitStack() as stack:
        ports: list[int] = []
        for role in "echo", "collect":
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, role], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            ports.append(int(process.stdout.readline()))
        spans, scrapes, elsewhere = trio.run(partial(measure, *ports))
    pooled = split(spans, scrapes, elsewhere)
    rounds: list[float] = []
    for first in range(0, len(scrapes), SCRAPES_EACH):
        of_round = slice(first, first + SCRAPES_EACH)
        within, _, without = split(spans, scrapes[of_round], elsewhere[of_round])
        rounds.append(percentile(within, 99) / percentile(without, 99))
    report(
        "8",
        f"p99 of {CLIENTS} clients with a scrape of {len(TARGETS):,} targets ÷ without",
        "requests that overlap a scrape against those that don't, to an echo server on "
        "loopback that takes 1 ms; one scrape and one export to OTLP a second. Server, "
        "scraper and collector are processes of their own. A round is "
        f"{SCRAPES_EACH} scrapes. `elsewhere`, in the detail, are requests that overlap "
        "the transfer of as many bytes from another process.",
        reach=1.5,
        rounds=rounds,
        detail={
            "longest step of a scrape (reach: 1 ms of thread time)": {
                f"{targets:,} targets": longest_step(targets) for targets in MANY
            },
            "scrape_ms": round(1000 * sum(e - s for s, e in scrapes) / len(scrapes), 1),
            **{
                f"{name}_{figure}": round(value, 2)
                for name, latencies in zip(
                    ("with", "elsewhere", "without"), pooled, strict=True
                )
                for figure, value in (
                    ("requests", len(latencies)),
                    ("p50_ms", percentile(latencies, 50)),
                    ("p99_ms", percentile(latencies, 99)),
                    ("worst_ms", max(latencies)),
                )
            },
        },
    )


def split(
    spans: list[Span], scrapes: list[Span], elsewhere: list[Span]
) -> tuple[list[float], list[float], list[float]]:
    """Return, in ms, how long requests took that overlap a scrape, one elsewhere, none."""
    within: list[float] = []
    beside: list[float] = []
    without: list[float] = []

    def overlaps(span: Span, others: list[Span]) -> bool:
        return any(span[0] < end and span[1] > start for start, end in others)

    for span in spans:
        if scrapes[0][0] - 0.5 < span[0] < elsewhere[-1][1] + 0.5:
            if overlaps(span, scrapes):
                latencies = within
            else:
                latencies = beside if overlaps(span, elsewhere) else without
            latencies.append((span[1] - span[0]) * 1000)
    return within, beside, without


def percentile(latencies: list[float], percent: int) -> float:
    return quantiles(latencies, n=100)[percent - 1]


if __name__ == "__main__":
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "echo":
        trio.run(echo)
    elif role == "collect":
        collect()
    elif role == "get":
        get(*sys.argv[2:])
    elif role == "scrape":
        scrape(*sys.argv[2:])
    else:
        main()
