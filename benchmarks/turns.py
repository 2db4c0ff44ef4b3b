"""Row 17: how many turns of the scheduler a pass needs, through each output."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import attrs
import httpcore2
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from standard import fold_in, make_endpoints, make_keeper, make_work, report, size

from trio_statskeeper import EventMetrics, ProbeResult, StatsKeeper, fan_out
from trio_statskeeper._receiving import receive_batch
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

TARGETS = size(10_000, 1_000)
BUFFER = 100
ROUNDS = size(3, 2)

Exports = trio.MemoryReceiveChannel[EventMetrics]
Output = Callable[[Exports], Awaitable[object]]


class Turns(trio.abc.Instrument):
    """Counts the turns of Trio's scheduler."""

    count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def drain(exports: Exports) -> None:
    with suppress(trio.EndOfChannel):
        while True:
            await receive_batch(exports, at_most=sys.maxsize)


async def one_pass(
    keeper: StatsKeeper, output: Output, buffer: int, turns: Turns, ended: list[int]
) -> None:
    """Have the results end at once: the keeper makes its last pass, and all end."""
    results_send, results = trio.open_memory_channel[ProbeResult](0)
    exports_send, exports = trio.open_memory_channel[EventMetrics](buffer)
    results_send.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output, exports)
        await keeper.run(results, exports_send)
        ended.append(turns.count)
    ended.append(turns.count)


def turns_per_1000(
    keeper: StatsKeeper, output: Output, buffer: int = 0
) -> tuple[float, float]:
    """Return the turns until the pass has ended, and until the output has returned."""
    sent_before = keeper.statistics().exports_sent
    turns = Turns()
    ended: list[int] = []
    trio.run(one_pass, keeper, output, buffer, turns, ended, instruments=[turns])
    assert keeper.statistics().exports_sent - sent_before == TARGETS
    of_pass, of_output = (round(count * 1_000 / TARGETS, 1) for count in ended)
    return of_pass, of_output


@attrs.define(eq=False)
class Collector:
    """A pool of connections to a collector that answers at once: its turns don't count."""

    points: int = 0
    """Data points of the total that it got."""

    def connect(self, **_options: Any) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        pass

    @asynccontextmanager
    async def stream(
        self, _method: str, _url: object, headers: object, content: bytes
    ) -> AsyncGenerator[httpcore2.Response]:
        message = ExportMetricsServiceRequest.FromString(content)
        self.points += sum(
            len(metric.sum.data_points)
            for of_resource in message.resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if metric.name == "probe_total"
        )
        yield httpcore2.Response(200)


def main() -> None:
    endpoints = make_endpoints(TARGETS)
    keeper = make_keeper(endpoints)
    fold_in(keeper, make_work(endpoints, TARGETS))
    collector = Collector()
    httpcore2.AsyncConnectionPool = collector.connect  # type: ignore[misc, assignment]
    with TemporaryDirectory() as directory:
        lines = partial(write_lines, path=Path(directory, "lines.log"))
        prometheus = PrometheusExporter().run
        otlp = OTLPExporter("http://localhost", compression=None).run

        async def fan_out_to_all(exports: Exports) -> None:
            await fan_out(exports, prometheus, otlp, lines)

        rounds = [
            {
                "a consumer that drains": turns_per_1000(keeper, drain),
                f"the same, buffer of {BUFFER}": turns_per_1000(keeper, drain, BUFFER),
                "Prometheus": turns_per_1000(keeper, prometheus),
                "OTLP": turns_per_1000(keeper, otlp),
                "lines": turns_per_1000(keeper, lines),
                "fan_out to all three": turns_per_1000(keeper, fan_out_to_all),
            }
            for _ in range(ROUNDS)
        ]
    assert collector.points == 2 * ROUNDS * TARGETS  # alone, and through fan_out
    report(
        "17",
        f"turns of the scheduler per 1,000 exports, a pass over {TARGETS:,} targets",
        "from the start of a keeper whose results have ended until its output has taken "
        "all exports, through a channel without a buffer; the worst of all outputs. Where "
        "a turn takes 10 ms, 50 take half a second. The second figures of the detail are "
        "those until the output has rendered, posted or written them all, and returned.",
        reach=50,
        unit="turns",
        rounds=[max(of_pass for of_pass, _ in turns.values()) for turns in rounds],
        detail=rounds[0],
    )


if __name__ == "__main__":
    main()
