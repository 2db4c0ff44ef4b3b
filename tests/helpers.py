"""Results and running keepers, for tests."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from trio_statskeeper import Endpoint, EventMetrics, ProbeResult, StatsKeeper, Value
from trio_statskeeper.prometheus import PrometheusExporter


@attrs.frozen
class Result:
    """A probe result of a user's class, which checks nothing."""

    target: str
    values: Mapping[str, Value]

    def metrics(self) -> Mapping[str, Value]:
        return self.values


def one(target: str) -> Result:
    """Return a result that adds 1 to the target's `total`."""
    return Result(target, {"total": 1})


def make_keeper(
    targets: Iterable[str] | Callable[[], Iterable[Endpoint]] = ("a",), **options: Any
) -> StatsKeeper:
    """Return a keeper whose ticks and timestamps follow the mock clock."""
    if not callable(targets):
        endpoints = [Endpoint(target) for target in targets]
        targets = lambda: endpoints  # noqa: E731
    defaults = {"export_interval": 1, "clock": trio.current_time}
    return StatsKeeper("http", "homepage", targets, **(defaults | options))


def channel_of(*items: Any) -> trio.MemoryReceiveChannel[Any]:
    """Return a channel that holds `items`, and then ends."""
    send, receive = trio.open_memory_channel[Any](len(items))
    for item in items:
        send.send_nowait(item)
    send.close()
    return receive


def all_from(exports: trio.MemoryReceiveChannel[EventMetrics]) -> list[EventMetrics]:
    """Return the exports in the channel's buffer."""
    received: list[EventMetrics] = []
    try:
        while True:
            received.append(exports.receive_nowait())
    except (trio.WouldBlock, trio.EndOfChannel):
        return received


async def serve(nursery: trio.Nursery, exporter: PrometheusExporter) -> tuple[str, int]:
    """Serve the page of an exporter that has a port; return its address."""
    _, exports = trio.open_memory_channel[EventMetrics](0)  # which never ends
    address: tuple[str, int] = await nursery.start(exporter.run, exports)
    return address


@attrs.frozen
class Run:
    """A running keeper, and the other ends of its channels."""

    results: trio.MemorySendChannel[ProbeResult]
    exports: trio.MemoryReceiveChannel[EventMetrics]
    nursery: trio.Nursery

    def send(self, *results: ProbeResult) -> None:
        for result in results:
            self.results.send_nowait(result)

    def received(self) -> list[EventMetrics]:
        """Return the exports since the last call."""
        return all_from(self.exports)


@asynccontextmanager
async def running(
    keeper: StatsKeeper, *, buffer: float = math.inf, exports_buffer: float = math.inf
) -> AsyncIterator[Run]:
    """Run `keeper` in the background, and cancel it when the block ends."""
    results_send, results_receive = trio.open_memory_channel[ProbeResult](buffer)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](exports_buffer)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run, results_receive, exports_send)
        yield Run(results_send, exports_receive, nursery)
        nursery.cancel_scope.cancel()


def totals(exports: Iterable[EventMetrics], metric: str = "total") -> dict[str, Value]:
    """Return the value of one metric by target."""
    return {
        export.labels["dst"]: export.metrics[metric]
        for export in exports
        if metric in export.metrics
    }
