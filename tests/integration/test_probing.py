"""A prober with real sockets, threads and signals."""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from trio_statskeeper import Endpoint, Map, Prober, ProbeResult
from trio_statskeeper._schedule import offset_of

INTERVAL = 2

# Writes, once a second line is read, when each probe was called, and what came of it.
PROGRAM = f"""
import json, math, sys, time, trio
from trio_statskeeper import Endpoint, Prober

calls = []
kinds = ("healthy", "hanging")
targets = [Endpoint(f"{{kind}} {{i}}") for kind in kinds for i in range(30)]

async def probe(endpoint):
    calls.append((endpoint.key, time.time()))
    await trio.sleep(0.001 if endpoint.key.startswith("healthy") else math.inf)

async def read(results):
    async for result in results:
        received.append((result.target, result.metrics()))

async def main():
    send, results = trio.open_memory_channel(math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, results)
        await nursery.start(prober.run, send)
        await trio.to_thread.run_sync(sys.stdin.readline)
        print("started", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        await trio.sleep({INTERVAL})
        nursery.cancel_scope.cancel()

received = []
prober = Prober(probe, lambda: targets, interval={INTERVAL}, timeout=1)
trio.run(main)
counts = ("total", "timeouts", "inconclusive")
print(json.dumps({{
    "calls": calls,
    "results": [(key, *[metrics[name] for name in counts]) for key, metrics in received],
    "missed": prober.statistics().runs_missed,
}}))
"""


def test_a_program_that_is_stopped_misses_its_runs_and_blames_no_target():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "started\n"
        time.sleep(INTERVAL)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3 * INTERVAL)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate("\n")
    said = json.loads(output)
    late = [(at - INTERVAL * offset_of(key)) % INTERVAL for key, at in said["calls"]]
    assert max(late) < INTERVAL / 2  # none was made up for
    assert said["missed"] >= 2 * 60
    healthy = [counts for key, *counts in said["results"] if key.startswith("healthy")]
    assert all(timeouts == 0 for _, timeouts, _ in healthy)
    hanging = [counts for key, *counts in said["results"] if key.startswith("hanging")]
    assert [0, 0, 1] in hanging
    assert {tuple(counts) for counts in hanging} <= {(1, 1, 0), (0, 0, 1)}


# Uses up all file descriptors, probes, and writes what came of it.
WITHOUT_FILES = """
import json, math, os, resource, trio
from trio_statskeeper import Endpoint, Prober

async def probe(endpoint):
    await trio.open_tcp_stream(endpoint.name, 1)

async def main():
    send, results = trio.open_memory_channel(math.inf)
    targets = [Endpoint("127.0.0.1"), Endpoint("localhost")]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    files = []
    try:
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        await Prober(probe, targets, interval=1, timeout=10).run_once(send)
    print(json.dumps([
        [metrics["total"], metrics["inconclusive"], dict(metrics["error"].values)]
        async for metrics in (result.metrics() async for result in results)
    ]))

trio.run(main)
"""


def test_a_program_without_file_descriptors_blames_no_target():
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_FILES],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert json.loads(process.stdout) == [[0, 1, {"OSError-EMFILE": 1}]] * 2


@asynccontextmanager
async def running(
    probe: Callable[[Endpoint], Awaitable[None]], *keys: str
) -> AsyncIterator[tuple[Prober, trio.MemoryReceiveChannel[ProbeResult]]]:
    prober = Prober(
        probe, lambda: [Endpoint(key) for key in keys], interval=0.1, timeout=0.05
    )
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    async with trio.open_nursery() as nursery:
        await nursery.start(prober.run, send)
        yield prober, results
        nursery.cancel_scope.cancel()


async def test_a_probe_stuck_in_a_thread_is_a_timeout_while_it_is_stuck(caplog):
    answered = threading.Event()

    async def probe(endpoint: Endpoint) -> None:
        await trio.to_thread.run_sync(answered.wait, limiter=limiter)

    limiter = trio.CapacityLimiter(1)
    try:
        async with running(probe, "a") as (prober, results):
            metrics = (await results.receive()).metrics()
            assert metrics["timeouts"] == 1
            assert prober.statistics().runs_stuck == 1
            answered.set()
            while prober.statistics().runs_stuck:
                await trio.sleep(0.01)
    finally:
        answered.set()
    assert caplog.records[0].getMessage().startswith("a: probe failed: stuck")


async def test_the_key_of_a_refused_connection_says_so_though_trio_hides_it(caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    async def probe(endpoint: Endpoint) -> None:
        await trio.open_tcp_stream("localhost", port)

    async with running(probe, "a") as (_, results):
        async for result in results:
            metrics = result.metrics()
            if not metrics["timeouts"]:
                break
    assert metrics["error"] == Map("error", {"ConnectionRefusedError": 1})
    lines = [record.getMessage() for record in caplog.records]
    assert any(
        line.startswith("a: probe failed: ConnectionRefusedError(") for line in lines
    )
