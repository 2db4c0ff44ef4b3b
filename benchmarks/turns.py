"""Row 17: how many turns of the scheduler a pass needs, through each output."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import trio
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


async def one_pass(keeper: StatsKeeper, output: Output, buffer: int) -> None:
    """Have the results end at once: the keeper makes its last pass, and all end."""
    results_send, results = trio.open_memory_channel[ProbeResult](0)
    exports_send, exports = trio.open_memory_channel[EventMetrics](buffer)
    results_send.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, results, exports_send)
        nursery.start_soon(output, exports)


def turns_per_1000(keeper: StatsKeeper, output: Output, buffer: int = 0) -> float:
    sent_before = keeper.statistics().exports_sent
    turns = Turns()
    trio.run(one_pass, keeper, output, buffer, instruments=[turns])
    assert keeper.statistics().exports_sent - sent_before == TARGETS
    return round(turns.count * 1_000 / TARGETS, 1)


async def accept_all(_scope: Any, _receive: Any, send: Any) -> None:
    """Be a collector that answers at once: its turns are not the exporter's."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def main() -> None:
    endpoints = make_endpoints(TARGETS)
    keeper = make_keeper(endpoints)
    fold_in(keeper, make_work(endpoints, TARGETS))
    transport = httpx2.ASGITransport(accept_all)
    httpx2.AsyncClient = partial(httpx2.AsyncClient, transport=transport)  # type: ignore[misc, assignment]
    with TemporaryDirectory() as directory:
        lines = partial(write_lines, path=Path(directory, "lines.log"))
        prometheus = PrometheusExporter().run
        otlp = OTLPExporter("http://localhost/v1/metrics").run

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
    report(
        "17",
        f"turns of the scheduler per 1,000 exports, a pass over {TARGETS:,} targets",
        "from the start of a keeper whose results have ended until its output has "
        "returned, through a channel without a buffer; the worst of all outputs. The loop "
        "has nothing else to do. Where a turn takes 10 ms, 50 take half a second.",
        reach=50,
        unit="turns",
        rounds=[max(turns.values()) for turns in rounds],
        detail=rounds[0],
    )


if __name__ == "__main__":
    main()
