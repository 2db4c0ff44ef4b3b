"""Feed a keeper with all outputs for minutes; check that neither results nor memory leak.

Targets come and go: at each export one in a hundred is replaced, and the old ones expire.
Results come in as many shares as there are to be exports, however fast the machine is. At
the end, the totals, and what each output told last, must be what the producers counted, and
memory must be what it was when all had warmed up. The last line is `ok`; else it is told
what was wrong, and the exit status is 1. It needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from urllib.request import urlopen

import attrs
import httpx2
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from standard import BOUNDS, BUFFER, PRODUCERS, size

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    Gauge,
    Map,
    ProbeResult,
    StatsKeeper,
    Value,
    fan_out,
)
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

SHARES = size(20, 12)

# One in so many targets is replaced at each tick.
REPLACED = 100

# In export intervals. Halfway between two ticks: there is no doubt at which of them.
EXPIRE_AFTER = 1.5

# In export intervals, too.
SCRAPE_EVERY = 1.7

# Producers pause each time when they have sent so many results, in all for about this part
# of an interval.
AT_ONCE = 50
PAUSING = 0.7

# One in so many targets has a gauge.
WITH_GAUGE = 10

CODES = ("200", "404", "503")

# Latencies are multiples of 1/1024 s, so that their sums are exact. Each has its bucket.
LATENCIES = 700
BUCKETS = [sum(n / 1024 > bound for bound in BOUNDS) for n in range(LATENCIES)]

# What is counted of each target, side by side.
TOTAL, LATENCY, GAUGE, CODE, BUCKET = 0, 1, 2, 3, 3 + len(CODES)
COLUMNS = BUCKET + len(BOUNDS) + 1

# Export intervals after which a target that has not come is gone from the outputs.
GONE_AFTER = 3

# Seconds that the last totals may take on their way to the collector.
DELIVERY = 300.0

# How much more memory the last quarter of the exports may take than the second: by this
# factor, or by what comes and goes however few targets there are. Of what the process
# takes, the C library gives not all back, as texts of all lengths come and go.
GROWTH = {"rss": 1.05, "blocks": 1.02}
COMES_AND_GOES = {"rss": 4 * 2**20, "blocks": 20_000}

STATM = Path("/proc/self/statm")


@attrs.frozen
class Result:
    target: str
    latency: float
    code: str
    load: float | None

    def metrics(self) -> dict[str, Value]:
        metrics: dict[str, Value] = {
            "total": 1,
            "success": int(self.code == CODES[0]),
            "latency": self.latency,
            "resp-code": Map("code", {self.code: 1}),
        }
        if self.load is not None:
            metrics["load"] = Gauge(self.load)
        return metrics


def make_endpoint(number: int) -> Endpoint:
    return Endpoint(f"target-{number}.example.com")


@attrs.define(eq=False)
class Fleet:
    """The targets, and what was counted of each when its results were made.

    A new target takes the place of an old one, also where that was counted.
    """

    size: int
    replacing: bool = False
    calls: list[float] = attrs.field(factory=list[float])
    """When the targets were asked for: at the start, and at each tick."""
    gone: list[tuple[float, int]] = attrs.field(factory=list[tuple[float, int]])
    """At each tick: until when the old ones were listed, and how many had results."""
    endpoints: list[Endpoint] = attrs.field(init=False)
    _next: int = attrs.field(init=False)
    _counts: array[int] = attrs.field(init=False)
    _called: trio.Event = attrs.field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.endpoints = [make_endpoint(number) for number in range(self.size)]
        self._next = self.size
        self._counts = array("q", [0]) * (COLUMNS * self.size)

    def targets(self) -> list[Endpoint]:
        if self.replacing:
            with_results = sum(self._replace() for _ in range(self.size // REPLACED))
            self.gone.append((self.calls[-1], with_results))
        self.calls.append(trio.current_time())
        self._called.set()
        self._called = trio.Event()
        return self.endpoints

    def _replace(self) -> bool:
        """Replace the oldest target; return whether it had results."""
        place = self._next % self.size
        self.endpoints[place] = make_endpoint(self._next)
        self._next += 1
        at = place * COLUMNS
        had_results = self._counts[at + TOTAL] > 0
        self._counts[at : at + COLUMNS] = array("q", [0]) * COLUMNS
        return had_results

    async def tick(self, number: int) -> None:
        """Wait for a tick; the start is number 0."""
        while len(self.calls) <= number:
            await self._called.wait()

    def result(self, place: int, dice: random.Random) -> Result:
        """Make a result, and count it."""
        latency = int(dice.random() * LATENCIES)
        code = latency % 7 if latency % 7 < len(CODES) else 0
        at = place * COLUMNS
        counts = self._counts
        counts[at + TOTAL] += 1
        counts[at + LATENCY] += latency
        counts[at + CODE + code] += 1
        counts[at + BUCKET + BUCKETS[latency]] += 1
        load = None
        if place % WITH_GAUGE == 0:
            load = counts[at + GAUGE] = latency
        return Result(self.endpoints[place].key, latency / 1024, CODES[code], load)

    def totals(self) -> dict[str, int]:
        """Return the number of results of each target that has any."""
        totals = self._counts[TOTAL::COLUMNS]
        return {
            endpoint.key: total
            for endpoint, total in zip(self.endpoints, totals, strict=True)
            if total
        }

    def metrics(self, place: int) -> dict[str, Value]:
        """Return all that was counted of a target."""
        counts = self._counts[place * COLUMNS : (place + 1) * COLUMNS].tolist()
        codes = dict(zip(CODES, counts[CODE:BUCKET], strict=True))
        metrics: dict[str, Value] = {
            "total": counts[TOTAL],
            "success": codes[CODES[0]],
            "latency": Distribution(BOUNDS, counts[BUCKET:], counts[LATENCY] / 1024),
            "resp-code": Map("code", {code: n for code, n in codes.items() if n}),
        }
        if place % WITH_GAUGE == 0:
            metrics["load"] = Gauge(counts[GAUGE])
        return metrics


@attrs.frozen
class Memory:
    """What this process takes, and how many blocks Python has allocated in it."""

    rss: int
    blocks: int

    @classmethod
    def now(cls) -> Memory:
        gc.collect()
        pages = int(STATM.read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), sys.getallocatedblocks())

    @classmethod
    def typical(cls, of: Sequence[Memory]) -> Memory:
        return cls(
            *(int(median(each)) for each in zip(*map(attrs.astuple, of), strict=True))
        )

    def __str__(self) -> str:
        return f"{self.rss / 2**20:,.0f} MiB, {self.blocks:,} blocks"


# Collector and scraper, in a process of their own


class OtherSide(BaseHTTPRequestHandler):
    """Takes what comes by OTLP, scrapes when it is told to, and tells what it got."""

    protocol_version = "HTTP/1.1"

    got: ClassVar[dict[str, Any]] = {
        "data_points": 0,
        "collected": {},
        "scrapes": 0,
        "scraped": {},
    }

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportMetricsServiceRequest.FromString(gzip.decompress(body))
        for metric in chain.from_iterable(
            part.scope_metrics[0].metrics for part in request.resource_metrics
        ):
            kind = metric.WhichOneof("data")
            assert kind is not None
            data_points = getattr(metric, kind).data_points
            self.got["data_points"] += len(data_points)
            if metric.name == "probe_total":
                for data_point in data_points:
                    [dst] = [of.value for of in data_point.attributes if of.key == "dst"]
                    self.got["collected"][dst.string_value] = data_point.as_int
        self.answer(b"")

    def do_GET(self) -> None:
        answer = b""
        if self.path == "/got":
            answer = json.dumps(self.got).encode()
        else:
            self.got["scraped"] = scrape(self.path.removeprefix("/scrape/"))
            self.got["scrapes"] += 1
        self.answer(answer)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def scrape(port: str) -> dict[str, int]:
    """Return the number of results by target."""
    total = re.compile(rb'probe_total\{.*dst="([^"]+)".*\} ([0-9]+)\n')
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:  # ours
        matches = map(total.fullmatch, response)
        return {match[1].decode(): int(match[2]) for match in matches if match}


def other_side() -> None:
    """Tell the port, and serve until stdin ends, as it does however the soak ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), OtherSide)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


# The soak


@attrs.define(eq=False)
class Soak:
    results: int
    fleet: Fleet
    export_interval: float
    other_side: httpx2.AsyncClient
    lines: Path
    """The file for lines."""

    sent: int = 0
    given: int = 0
    """Exports that the outputs were given."""
    last_pass: float = 0.0
    """Seconds from the first export of the newest pass until Prometheus had scraped all."""
    with_gauges: tuple[EventMetrics, ...] = ()
    """What the keeper had of targets with a gauge when the last result had come."""
    memory: list[Memory] = attrs.field(factory=list[Memory])
    keeper: StatsKeeper = attrs.field(init=False)
    _prometheus: PrometheusExporter = attrs.field(init=False)
    _shown: trio.MemorySendChannel[EventMetrics] = attrs.field(init=False)
    _port: int = attrs.field(init=False)
    _pass_began: float = attrs.field(init=False, default=0.0)
    _scraping: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    def __attrs_post_init__(self) -> None:
        self.keeper = StatsKeeper(
            "tcp",
            "soak",
            self.fleet.targets,
            export_interval=self.export_interval,
            distributions={"latency": BOUNDS},
            expire_after=EXPIRE_AFTER * self.export_interval,
        )
        self._prometheus = PrometheusExporter(0, statistics_of=[self.keeper])

    async def run(self) -> dict[str, Any]:
        """Return what the other side got."""
        async with trio.open_nursery() as around:
            # It is scraped once more after the end of the exports, so they never end here.
            self._shown, exports = trio.open_memory_channel[EventMetrics](0)
            _, self._port = await around.start(self._prometheus.run, exports)
            around.start_soon(self._watch)
            around.start_soon(self._scrape_now_and_then)
            await self._keep()
            got: dict[str, Any] = json.loads(await self._ask("/got"))
            around.cancel_scope.cancel()
        return got

    async def _keep(self) -> None:
        """Run keeper and outputs until all results have gone through."""
        results_send, results = trio.open_memory_channel[ProbeResult](BUFFER)
        exports_send, exports = trio.open_memory_channel[EventMetrics](0)
        to_outputs, for_outputs = trio.open_memory_channel[EventMetrics](0)
        otlp = OTLPExporter(
            str(self.other_side.base_url), timeout=DELIVERY, statistics_of=[self.keeper]
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keeper.run, results, exports_send)
            nursery.start_soon(self._count_given, exports, to_outputs)
            to_file = partial(write_lines, path=self.lines)
            nursery.start_soon(
                fan_out, for_outputs, self._run_prometheus, otlp.run, to_file
            )
            with results_send:
                await self._send_one_of_each(results_send)
                async with trio.open_nursery() as producers:
                    for number in range(PRODUCERS):
                        producers.start_soon(self._produce, number, results_send)
                await self._until_all_is_folded()
                with_gauge = self.fleet.endpoints[::WITH_GAUGE]
                self.with_gauges = self.keeper.snapshot(each.key for each in with_gauge)

    async def _send_one_of_each(self, results: trio.MemorySendChannel[ProbeResult]) -> None:
        """See to it that whoever is replaced has totals, which expire."""
        dice = random.Random(PRODUCERS)
        for place in range(self.fleet.size):
            await results.send(self.fleet.result(place, dice))
            self.sent += 1
        await self._until_all_is_folded()
        self.fleet.replacing = True

    async def _until_all_is_folded(self) -> None:
        # Few are left in the buffer now, so that this asks a few times only. What the
        # keeper has lost never comes.
        with trio.move_on_after(self.export_interval):
            while self.keeper.statistics().results_accepted < self.sent:  # noqa: ASYNC110
                await trio.lowlevel.checkpoint()

    async def _produce(
        self, number: int, results: trio.MemorySendChannel[ProbeResult]
    ) -> None:
        fleet = self.fleet
        dice = random.Random(number)
        rest = self.results - fleet.size
        for share in range(SHARES):
            await fleet.tick(share)
            part = share * PRODUCERS + number
            begin, end = (rest * n // (SHARES * PRODUCERS) for n in (part, part + 1))
            pauses = math.ceil((end - begin) / AT_ONCE)
            for sent in range(end - begin):
                if sent % AT_ONCE == 0:
                    pause = PAUSING * self.export_interval / pauses
                    await trio.sleep(pause * 2 * dice.random())
                place = int(dice.random() * fleet.size)
                await results.send(fleet.result(place, dice))
                self.sent += 1

    async def _count_given(
        self,
        exports: trio.MemoryReceiveChannel[EventMetrics],
        outputs: trio.MemorySendChannel[EventMetrics],
    ) -> None:
        timestamp = 0.0
        with exports, outputs:
            async for export in exports:
                if export.timestamp != timestamp:
                    timestamp = export.timestamp
                    self._pass_began = trio.current_time()
                await outputs.send(export)
                self.given += 1

    async def _run_prometheus(
        self, exports: trio.MemoryReceiveChannel[EventMetrics]
    ) -> None:
        async for export in exports:
            await self._shown.send(export)
        await self._scrape()
        self.last_pass = trio.current_time() - self._pass_began

    async def _scrape_now_and_then(self) -> None:
        while True:
            await trio.sleep(SCRAPE_EVERY * self.export_interval)
            if self.sent == self.results:
                return
            await self._scrape()

    async def _scrape(self) -> None:
        async with self._scraping:
            await self._ask(f"/scrape/{self._port}")

    async def _ask(self, path: str) -> bytes:
        response = await self.other_side.get(path)
        return response.raise_for_status().content

    async def _watch(self) -> None:
        """At each tick, empty the file, measure memory, and tell how far all is."""
        start = last = trio.current_time()
        sent = 0
        while True:
            await self.fleet.tick(len(self.memory) + 1)
            os.truncate(self.lines, 0)
            self.memory.append(Memory.now())
            now = trio.current_time()
            statistics = self.keeper.statistics()
            print(
                f"{now - start:.0f} s, export {len(self.memory)}: {self.sent:,} results, "
                f"{(self.sent - sent) / (now - last):,.0f} a second; {self.memory[-1]}; "
                f"{statistics.targets_tracked:,} targets tracked, "
                f"{statistics.targets_expired:,} expired",
                flush=True,
            )
            sent, last = self.sent, now

    def problems(self, got: Mapping[str, Any]) -> Iterator[str]:
        """Tell what is wrong."""
        counted = self.fleet.totals()
        yield from self._wrong_statistics(len(counted))
        yield from self._wrong_totals()
        yield from self._growth()
        if self.last_pass >= GONE_AFTER * self.export_interval:
            yield (
                f"the last pass took {self.last_pass:.1f} s, in which its first targets "
                "are gone from the outputs: give a longer --export-interval"
            )
            return
        for output, told in (
            ("Prometheus", got["scraped"]),
            ("the collector", got["collected"]),
            ("the file", totals_in(self.lines)),
        ):
            wrong = [key for key, total in counted.items() if told.get(key) != total]
            yield from some(wrong, f"totals wrong in {output}")

    def _wrong_statistics(self, listed: int) -> Iterator[str]:
        fleet = self.fleet
        expire_after = EXPIRE_AFTER * self.export_interval
        expired = sum(
            n for since, n in fleet.gone if fleet.calls[-1] - since >= expire_after
        )
        expected: dict[str, Any] = {
            "results_accepted": self.results,
            "results_rejected": {},
            "passes": len(fleet.calls) - 1,  # one for each call but the first
            "exports_sent": self.given,
            "duplicate_targets": 0,
            "targets_expired": expired,
            "targets_tracked": listed + sum(n for _, n in fleet.gone) - expired,
        }
        statistics = self.keeper.statistics()
        for name, value in expected.items():
            is_now = getattr(statistics, name)
            if is_now != value:
                yield f"{name}: {is_now}, not {value}"
        if expired == 0:
            yield "no target expired"

    def _growth(self) -> Iterator[str]:
        second, last = quarters(self.memory)
        missed = self.keeper.statistics().ticks_missed
        for name, comes_and_goes in COMES_AND_GOES.items():
            before, after = getattr(second, name), getattr(last, name)
            if after > max(before * GROWTH[name], before + comes_and_goes):
                yield f"memory grows: {name} from {before:,} to {after:,}" + (
                    f", or outputs lag, as {missed} ticks were missed: give a longer "
                    "--export-interval"
                    if missed
                    else ""
                )

    def _wrong_totals(self) -> Iterator[str]:
        fleet = self.fleet
        held = {export.labels["dst"]: export.metrics for export in self.keeper.snapshot()}
        places = {endpoint.key: place for place, endpoint in enumerate(fleet.endpoints)}
        wrong = [key for key in fleet.totals() if key not in held]
        for key, metrics in held.items():
            expected = {**fleet.metrics(places[key]), "load": None}
            if {**metrics, "load": None} != expected:
                wrong.append(key)
        yield from some(wrong, "totals wrong in the keeper")
        # Gauges that were not renewed for too long are left out.
        gauges = {
            export.labels["dst"]: export.metrics["load"]
            for export in self.with_gauges
            if "load" in export.metrics
        }
        if not gauges:
            yield "no gauge was exported"
        wrong = [
            key
            for key, gauge in gauges.items()
            if gauge != fleet.metrics(places[key])["load"]
        ]
        yield from some(wrong, "gauges wrong in the keeper")


def totals_in(lines: Path) -> dict[str, Value]:
    with lines.open() as file:
        exports = map(EventMetrics.parse, file)
        return {export.labels["dst"]: export.metrics["total"] for export in exports}


def some(keys: Sequence[str], what: str) -> Iterator[str]:
    if keys:
        yield f"{what}: those of {len(keys):,} targets, {keys[0]} for instance"


def quarters(memory: Sequence[Memory]) -> tuple[Memory, Memory]:
    """Return what is typical of the second quarter, and of the last."""
    quarter = len(memory) // 4
    return Memory.typical(memory[quarter : 2 * quarter]), Memory.typical(memory[-quarter:])


def above_zero(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not finite and > 0")
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/soak.py", description=__doc__)
    parser.add_argument(
        "--results",
        type=above_zero,
        default=10_000_000,
        help="how many results are sent, at least one for each target (default: 10000000)",
        metavar="N",
    )
    parser.add_argument(
        "--targets",
        type=above_zero,
        default=100_000,
        help=f"how many targets are listed, at least {REPLACED} (default: 100000)",
        metavar="N",
    )
    parser.add_argument(
        "--export-interval",
        type=seconds,
        default=90.0,
        help="between two exports; one must take less than thrice that (default: 90)",
        metavar="SECONDS",
    )
    args = parser.parse_args()
    if args.targets < REPLACED:
        parser.error(f"argument --targets: {args.targets} is less than {REPLACED}")
    if args.results < args.targets:
        parser.error(f"argument --results: {args.results} is less than one for each target")
    if not STATM.exists():
        parser.error(f"there is no {STATM}: this needs Linux")
    return args


async def soak(args: argparse.Namespace, port: int, lines: Path) -> list[str]:
    """Return what is wrong."""
    start = trio.current_time()
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        timeout=None,  # a scrape takes its time
    ) as client:
        running = Soak(
            args.results, Fleet(args.targets), args.export_interval, client, lines
        )
        got = await running.run()
    took = trio.current_time() - start
    second, last = quarters(running.memory)
    print(
        f"{took:.0f} s ({time.process_time():.0f} of CPU), {args.results / took:,.0f} "
        f"results a second; the last pass: {running.last_pass:.1f} s; "
        f"{got['data_points']:,} data points collected; {got['scrapes']} scrapes",
        f"memory, second quarter: {second}",
        f"memory, last quarter: {last}",
        running.keeper.statistics(),
        sep="\n",
        flush=True,
    )
    return list(running.problems(got))


def main() -> None:
    args = parse_args()
    os.environ["no_proxy"] = "*"  # nothing on loopback needs a proxy
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, __file__, "other-side"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        lines = Path(folder, "lines")
        lines.touch()
        assert process.stdout is not None
        problems = trio.run(soak, args, int(process.stdout.readline()), lines)
    if problems:
        sys.exit("\n".join(problems))
    print("ok")


if __name__ == "__main__":
    if sys.argv[1:] == ["other-side"]:
        other_side()
    else:
        main()
