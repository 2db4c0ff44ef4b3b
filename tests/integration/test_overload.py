"""An overloaded loop: exports still get through, and targets do not affect each other."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trio
import trio.testing
from helpers import Result
from loopback import serving
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from trio_statskeeper import Endpoint, EventMetrics, Prober, StatsKeeper, fan_out
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

# Seconds that other tasks take in each turn of the scheduler.
BUSY = 0.01

# Accepts connections at all addresses of loopback, and closes them.
ACCEPT = """
import socket
listener = socket.create_server(("", 0), backlog=4096)
print(listener.getsockname()[1], flush=True)
while True:
    listener.accept()[0].close()
"""


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP requests, and counts the data points of each target."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        request = ExportMetricsServiceRequest.FromString(body)
        self.server.targets.update(
            attribute.value.string_value
            for of_resource in request.resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if metric.name == "probe_total"
            for point in metric.sum.data_points
            for attribute in point.attributes
            if attribute.key == "dst"
        )
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector():
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Collector)) as server:
        server.targets = Counter()
        yield server


def known_targets(page: str) -> set[str]:
    """Return the targets in a scraped page."""
    return {
        line.partition('dst="')[2].partition('"')[0]
        for line in page.splitlines()
        if line.startswith("probe_total{")
    }


def scrape(port: int) -> set[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return known_targets(answer.read().decode())


async def test_a_pass_takes_few_turns_of_a_busy_loop_though_no_channel_has_a_buffer(
    collector, tmp_path
):
    endpoints = [Endpoint(f"{number}.example") for number in range(2_000)]
    keys = {endpoint.key for endpoint in endpoints}
    keeper = StatsKeeper("tcp", "busy", lambda: endpoints, export_interval=3600)
    prometheus = PrometheusExporter()
    otlp = OTLPExporter(f"http://127.0.0.1:{collector.server_port}")
    log = tmp_path / "metrics.log"
    results_send, results = trio.open_memory_channel[Result](len(endpoints))
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    turns = turns_of_the_pass = 0

    async def be_busy() -> None:
        nonlocal turns
        while True:
            time.sleep(BUSY)  # noqa: ASYNC251  # that is what a busy loop is
            await trio.lowlevel.checkpoint()
            turns += 1

    async def keep() -> None:
        nonlocal turns_of_the_pass
        await keeper.run(results, exports_send)
        turns_of_the_pass = turns

    async with trio.open_nursery() as others:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            nursery.start_soon(
                fan_out,
                exports,
                prometheus.run,
                otlp.run,
                partial(write_lines, path=log),
            )
            for key in keys:
                await results_send.send(Result(key, {"total": 1}))
            await trio.testing.wait_all_tasks_blocked()
            others.start_soon(be_busy)
            results_send.close()  # then a last pass is made
        others.cancel_scope.cancel()
    [total] = [metric for metric in prometheus.collect() if metric.name == "probe"]
    assert {sample.labels["dst"] for sample in total.samples} == keys
    assert collector.targets.keys() == keys
    assert len(log.read_text().splitlines()) == len(keys)
    # With a turn for each export it would be 2,000. On an idle machine, the pass takes 60
    # turns, and OTLP has sent everything after 150.
    assert turns_of_the_pass < 200
    assert turns < 600


@contextmanager
def accepting():
    """Run a server, in a process of its own, that accepts connections; yield its port."""
    command = [sys.executable, "-c", ACCEPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


async def test_each_scrape_has_all_targets_of_a_loop_asked_for_10_000_probes_a_second():
    prometheus = PrometheusExporter(0)
    results_send, results = trio.open_memory_channel(100)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)

    async def probe(endpoint: Endpoint) -> None:
        stream = await trio.open_tcp_stream(endpoint.name, endpoint.port)
        await stream.aclose()

    with accepting() as port:
        endpoints = [
            Endpoint(f"127.0.{number // 100}.{number % 100 + 1}", port)
            for number in range(2_000)
        ]
        keys = {endpoint.key for endpoint in endpoints}
        prober = Prober(
            probe, lambda: endpoints, interval=0.2, timeout=0.2, max_concurrent=500
        )
        keeper = StatsKeeper(
            "tcp", "overload", endpoints, export_interval=2, distributions={}
        )
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(results_send.send, Result(key, {"total": 1}))
            _, served_at = await nursery.start(prometheus.run, exports)
            nursery.start_soon(keeper.run, results, exports_send)
            nursery.start_soon(prober.run, results_send)
            ask = partial(
                trio.to_thread.run_sync, scrape, served_at, abandon_on_cancel=True
            )
            with trio.fail_after(240):
                while await ask() != keys:
                    await trio.sleep(0.2)
                passes = keeper.statistics().passes
                while keeper.statistics().passes < passes + 2:
                    await trio.sleep(0.2)
                    assert await ask() == keys
            nursery.cancel_scope.cancel()
    assert prober.statistics().results_sent > 0
    assert prober.statistics().runs_missed > 0  # it was overloaded


async def test_names_that_never_resolve_hold_up_no_output_and_no_address(
    collector, tmp_path, monkeypatch
):
    resolve = socket.getaddrinfo
    released = threading.Event()

    def hang_on_dead_names(host, *args, **kwargs):
        # Trio asks first, in the loop's own thread, whether it is an address.
        is_lookup = not any(flags & socket.AI_NUMERICHOST for flags in args[4:5])
        if "dead" in str(host) and is_lookup:
            released.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return resolve(host, *args, **kwargs)

    async def probe(endpoint: Endpoint) -> None:
        stream = await trio.open_tcp_stream(endpoint.name, endpoint.port)
        await stream.aclose()

    monkeypatch.setattr(socket, "getaddrinfo", hang_on_dead_names)
    log = tmp_path / "metrics.log"
    results_send, results = trio.open_memory_channel(100)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    with accepting() as port:
        dead = [Endpoint(f"dead-{number}.example", port) for number in range(200)]
        endpoints = [*dead, Endpoint("127.0.0.1", port)]
        prober = Prober(probe, lambda: endpoints, interval=0.5, timeout=0.4)
        keeper = StatsKeeper("tcp", "dead", lambda: endpoints, export_interval=1)
        otlp = OTLPExporter(f"http://localhost:{collector.server_port}")
        keys = {endpoint.key for endpoint in endpoints}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.run, results, exports_send)
                nursery.start_soon(
                    fan_out, exports, otlp.run, partial(write_lines, path=log)
                )
                nursery.start_soon(prober.run, results_send)
                with trio.fail_after(60):
                    while not (collector.targets.keys() >= keys and log.exists()):
                        await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
        finally:
            released.set()
    written = [EventMetrics.parse(line) for line in log.read_text().splitlines()]
    healthy = [export for export in written if export.labels["dst"] == f"127.0.0.1:{port}"]
    assert healthy[-1].metrics["success"] > 0
    assert healthy[-1].metrics["failure"] == 0
