"""Ctrl-C ends whatever runs, at whatever line, and loses nothing that was accepted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx2
import pytest
import trio
from every_line import CtrlC, press_at_every_line
from fake_collector import ENDPOINT, Collector
from helpers import Result, channel_of, make_keeper

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    Prober,
    ProbeResult,
    StatsKeeper,
    fan_out,
)
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter


def is_open(end: trio.MemorySendChannel | trio.MemoryReceiveChannel) -> bool:
    statistics = end.statistics()
    if isinstance(end, trio.MemorySendChannel):
        return statistics.open_send_channels > 0
    return statistics.open_receive_channels > 0


def export(target: str, total: int) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, 10)


async def produce(
    channel: trio.MemorySendChannel[Any], items: list[Any], sent: list[Any], pause: float
) -> None:
    """Send `items`, three at a time."""
    with channel:
        for number, item in enumerate(items):
            try:
                await channel.send(item)
            except trio.BrokenResourceError:
                return
            sent.append(item)
            if number % 3 == 2:
                await trio.sleep(pause)


async def consume(channel: trio.MemoryReceiveChannel[Any], received: list[Any]) -> None:
    with channel:
        async for item in channel:
            received.append(item)  # noqa: PERF401  # it is looked at when interrupted


@attrs.define(eq=False)
class Probing:
    """A prober of targets that come and go."""

    prober: Prober = attrs.field(init=False)
    listed: list[str] = attrs.field(init=False, factory=lambda: ["ab", "bc", "b"])
    received: list[ProbeResult] = attrs.field(init=False, factory=list)
    results: trio.MemorySendChannel[ProbeResult] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.prober = Prober(self.probe, self.targets, interval=1, timeout=0.6)

    def targets(self) -> list[Endpoint]:
        listed = self.listed.pop(0) if len(self.listed) > 1 else self.listed[0]
        return [Endpoint(key) for key in listed]

    async def probe(self, endpoint: Endpoint) -> None:
        await trio.sleep({"a": 0.9, "b": 0, "c": 0.1}[endpoint.key])
        if endpoint.key == "c":
            raise OSError

    async def run(self, ctrl_c: CtrlC) -> None:
        self.results, results_receive = trio.open_memory_channel[ProbeResult](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, results_receive, self.received)
            with trio.move_on_after(2.7):
                await ctrl_c.watch(self.prober.run, self.results)

    def check(self) -> None:
        statistics = self.prober.statistics()
        assert statistics.results_sent == len(self.received)
        assert statistics.running == statistics.targets == 0
        assert not is_open(self.results)


@attrs.define(eq=False)
class Keeping:
    """A keeper, until its results end."""

    keeper: StatsKeeper = attrs.field(init=False, factory=lambda: make_keeper("abc"))
    sent: list[Result] = attrs.field(init=False, factory=list)
    received: list[EventMetrics] = attrs.field(init=False, factory=list)
    channels: tuple[Any, Any] = attrs.field(init=False)

    async def run(self, ctrl_c: CtrlC) -> None:
        results_send, results = trio.open_memory_channel[ProbeResult](1)
        exports, exports_receive = trio.open_memory_channel[EventMetrics](0)
        self.channels = results, exports
        items = [Result(target, {"total": 1}) for target in "abcaabbcc"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce, results_send, items, self.sent, 0.4)
            nursery.start_soon(consume, exports_receive, self.received)
            await ctrl_c.watch(self.keeper.run, results, exports)

    def check(self) -> None:
        statistics = self.keeper.statistics()
        assert statistics.folded == len(self.sent)
        assert statistics.exports_sent == len(self.received)
        assert not any(map(is_open, self.channels))


def exports_of(targets: str, rounds: int) -> list[EventMetrics]:
    return [export(target, number + 1) for number in range(rounds) for target in targets]


@attrs.define(eq=False)
class Outputting:
    """An output, until its exports end."""

    output: Callable[..., Any]
    expected: Callable[[list[EventMetrics]], bool]
    pause: float = 0.4
    sent: list[EventMetrics] = attrs.field(init=False, factory=list)
    exports: trio.MemoryReceiveChannel[EventMetrics] = attrs.field(init=False)

    async def run(self, ctrl_c: CtrlC) -> None:
        send, self.exports = trio.open_memory_channel[EventMetrics](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce, send, exports_of("ab", 2), self.sent, self.pause)
            await ctrl_c.watch(self.output, self.exports)

    def check(self) -> None:
        assert not is_open(self.exports)
        assert self.expected(self.sent)


def totals_of(exports: list[EventMetrics]) -> dict[str, Any]:
    """Return the newest total by target."""
    return {each.labels["dst"]: each.metrics["total"] for each in exports}


@attrs.define(eq=False)
class FanningOut:
    """A `fan_out` to two outputs, until its exports end."""

    sent: list[EventMetrics] = attrs.field(init=False, factory=list)
    channels: list[Any] = attrs.field(init=False, factory=list)

    async def run(self, ctrl_c: CtrlC) -> None:
        send, exports = trio.open_memory_channel[EventMetrics](0)
        self.channels = [exports]
        outputs = [PrometheusExporter().run, PrometheusExporter().run]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce, send, exports_of("abc", 3), self.sent, 0.4)
            await ctrl_c.watch(fan_out, exports, *outputs)

    def check(self) -> None:
        assert not any(map(is_open, self.channels))


def showing() -> Outputting:
    exporter = PrometheusExporter()

    def expected(sent: list[EventMetrics]) -> bool:
        shown = {
            sample.labels["dst"]: sample.value
            for metric in exporter.collect()
            for sample in metric.samples
            if sample.name == "probe_total"
        }
        return shown == totals_of(sent)

    return Outputting(exporter.run, expected)


def writing(path: Path) -> Outputting:
    path.unlink(missing_ok=True)

    def expected(sent: list[EventMetrics]) -> bool:
        text = path.read_text() if path.exists() else ""
        return text == "".join(f"{each}\n" for each in sent)

    return Outputting(partial(write_lines, path=path), expected, pause=0)


def posting() -> Outputting:
    exporter = OTLPExporter(ENDPOINT)
    return Outputting(exporter.run, lambda _: not exporter._progress.busy)


def open_sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(entry.readlink()).startswith("socket:")
    return found


REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@attrs.define(eq=False)
class Serving:
    """A server that is asked twice over one connection."""

    exporter: PrometheusExporter = attrs.field(init=False, factory=PrometheusExporter)
    port: int | None = attrs.field(init=False, default=None)
    answers: int = attrs.field(init=False, default=0)
    sockets_before: int = attrs.field(init=False, factory=open_sockets)

    async def run(self, ctrl_c: CtrlC) -> None:
        began = trio.Event()
        send, exports = trio.open_memory_channel[EventMetrics](1)
        with send:
            send.send_nowait(export("a", 1))
        await self.exporter.run(exports)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ask_twice, began, nursery.cancel_scope)
            task_status = Started(self, began)
            serve = partial(self.exporter.serve, 0, task_status=task_status)
            await ctrl_c.watch(serve)

    async def ask_twice(self, began: trio.Event, scope: trio.CancelScope) -> None:
        await began.wait()
        with suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                for _ in range(2):
                    await stream.send_all(REQUEST)
                    answer = b""
                    while not answer.endswith(b"\r\n0\r\n\r\n"):
                        chunk = await stream.receive_some()
                        if not chunk:
                            return
                        answer += chunk
                    self.answers += 1
        if self.answers == 2:
            scope.cancel()

    def check(self) -> None:
        assert open_sockets() == self.sockets_before


@attrs.frozen
class Started:
    serving: Serving
    began: trio.Event

    def started(self, address: tuple[str, int]) -> None:
        self.serving.port = address[1]
        self.began.set()


@pytest.mark.parametrize(
    "make", [Probing, Keeping, FanningOut, showing, posting], ids=lambda make: make.__name__
)
def test_ctrl_c_ends_it_at_every_line(make, monkeypatch):
    connected = partial(httpx2.AsyncClient, transport=httpx2.ASGITransport(Collector()))
    monkeypatch.setattr(httpx2, "AsyncClient", connected)
    assert press_at_every_line(make) > 50


def test_ctrl_c_ends_lines_at_every_line(tmp_path):
    make = partial(writing, tmp_path / "metrics.log")
    assert press_at_every_line(make, mock_clock=False) > 30


def test_ctrl_c_ends_a_server_at_every_line():
    assert press_at_every_line(Serving, mock_clock=False) > 100


def ctrl_c_in_a_probe(went_on: list[str]) -> Callable[..., Any]:
    async def probe(_: Endpoint) -> None:
        signal.raise_signal(signal.SIGINT)
        went_on.append("probe")

    return Prober(probe, lambda: [Endpoint("a")], interval=1, timeout=1).run


def ctrl_c_in_targets(went_on: list[str]) -> Callable[..., Any]:
    def targets() -> list[Endpoint]:
        signal.raise_signal(signal.SIGINT)
        went_on.append("targets")
        return []

    return partial(make_keeper(targets).run, channel_of())


@pytest.mark.parametrize("make", [ctrl_c_in_a_probe, ctrl_c_in_targets])
def test_ctrl_c_ends_a_function_of_the_users_that_may_be_endless(make):
    async def main() -> None:
        send, receive = trio.open_memory_channel[Any](0)
        with receive:
            await run(send)

    went_on: list[str] = []
    run = make(went_on)
    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert not went_on
