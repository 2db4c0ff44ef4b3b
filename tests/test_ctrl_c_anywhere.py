"""Ctrl-C ends whatever runs, at whatever line, and loses nothing that was accepted."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import httpcore2
import pytest
import trio
from every_line import CtrlC, press_at_every_line
from fake_collector import ENDPOINT, Answer, Collector
from helpers import Result, channel_of, make_keeper

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    Prober,
    ProbeResult,
    StatsKeeper,
    _outage,
    fan_out,
    open_keeper,
    open_outputs,
)
from trio_statskeeper._pacing import Step
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter
from trio_statskeeper.status import StatusPage


def is_open(end: trio.MemorySendChannel | trio.MemoryReceiveChannel) -> bool:
    statistics = end.statistics()
    if isinstance(end, trio.MemorySendChannel):
        return statistics.open_send_channels > 0
    return statistics.open_receive_channels > 0


def export(target: str, total: int) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, 10)


# What is sent at once.
BATCH = 3


async def produce(
    channel: trio.MemorySendChannel[Any],
    items: list[Any],
    sent: list[Any],
    pause: float,
    may_end: Callable[[], bool] = lambda: True,
) -> None:
    """Send `items` in batches, and close the channel when that is allowed."""
    with channel:
        for number, item in enumerate(items):
            try:
                await channel.send(item)
            except trio.BrokenResourceError:
                return
            sent.append(item)
            if number % BATCH == BATCH - 1:
                await trio.sleep(pause)
        while not may_end():
            await trio.sleep(0.01)


async def consume(channel: trio.MemoryReceiveChannel[Any], received: list[Any]) -> None:
    with channel:
        async for item in channel:
            received.append(item)  # noqa: PERF401  # it is looked at when interrupted


@attrs.define(eq=False)
class Probing:
    """A prober of targets that come and go, one of which gets stuck."""

    prober: Prober = attrs.field(init=False)
    listed: list[str] = attrs.field(init=False, factory=lambda: ["abd", "bcd", "b"])
    received: list[ProbeResult] = attrs.field(init=False, factory=list)
    results: trio.MemorySendChannel[ProbeResult] = attrs.field(init=False)
    once: bool = False

    def __attrs_post_init__(self) -> None:
        self.prober = Prober(
            self.probe, self.targets, interval=1, timeout=0.6, clock=trio.current_time
        )

    def targets(self) -> list[Endpoint]:
        listed = self.listed.pop(0) if len(self.listed) > 1 else self.listed[0]
        return [Endpoint(key) for key in listed]

    async def probe(self, endpoint: Endpoint) -> None:
        seconds = {"a": 0.9, "b": 0, "c": 0.1, "d": 1.2}[endpoint.key]
        with trio.CancelScope(shield=endpoint.key == "d"):
            await trio.sleep(seconds)
        if endpoint.key == "c":
            raise OSError

    async def run(self, ctrl_c: CtrlC) -> None:
        self.results, results_receive = trio.open_memory_channel[ProbeResult](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, results_receive, self.received)
            with trio.move_on_after(2.7):
                run = self.prober.run_once if self.once else self.prober.run
                await ctrl_c.watch(run, self.results)

    def check(self) -> None:
        statistics = self.prober.statistics()
        assert statistics.results_sent == len(self.received)
        assert statistics.running == statistics.runs_stuck == statistics.targets == 0
        assert not is_open(self.results)


def probing_once() -> Probing:
    return Probing(once=True)


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
        assert statistics.results_accepted == len(self.sent)
        assert statistics.exports_sent == len(self.received)
        assert not any(map(is_open, self.channels))


def exports_of(targets: str, rounds: int) -> list[EventMetrics]:
    return [export(target, number + 1) for number in range(rounds) for target in targets]


Totals: TypeAlias = dict[str, float]
"""The newest total by target."""

Exports: TypeAlias = list[EventMetrics]


def everything(sent: Exports) -> Exports:
    return sent


def all_but_the_last_batch(sent: Exports) -> Exports:
    return sent[: (len(sent) - 1) // BATCH * BATCH]


@attrs.define(eq=False)
class Outputting:
    """One or more outputs, until their exports end."""

    output: Callable[..., Any]
    put_out: list[Callable[[], Totals]]
    """What each output has put out."""
    never_lost: Callable[[Exports], Exports]
    """Returns the part of what was sent that each puts out even if it is interrupted."""
    pause: float = 0.4
    may_end: Callable[[], bool] = lambda: True
    """Whether enough has happened for the exports to end."""
    sent: Exports = attrs.field(init=False, factory=list)
    exports: trio.MemoryReceiveChannel[EventMetrics] = attrs.field(init=False)
    ctrl_c: CtrlC = attrs.field(init=False)

    async def run(self, ctrl_c: CtrlC) -> None:
        self.ctrl_c = ctrl_c
        send, self.exports = trio.open_memory_channel[EventMetrics](0)
        async with trio.open_nursery() as nursery:
            items = exports_of("abc", 3)
            nursery.start_soon(produce, send, items, self.sent, self.pause, self.may_end)
            await ctrl_c.watch(self.output, self.exports)

    def check(self) -> None:
        assert not is_open(self.exports)
        newest = totals_of(self.sent)
        kept = totals_of(self.never_lost(self.sent) if self.ctrl_c.struck else self.sent)
        for put_out in self.put_out:
            totals = put_out()
            assert kept.keys() <= totals.keys() <= newest.keys()
            for target, total in totals.items():
                assert kept.get(target, 1) <= total <= newest[target]


def totals_of(exports: Exports) -> Totals:
    return {each.labels["dst"]: each.metrics["total"] for each in exports}


def shown_by(exporter: PrometheusExporter) -> Totals:
    trio.run(exporter._page.render, Step())  # as a scrape does first
    return {
        sample.labels["dst"]: sample.value
        for metric in exporter.collect()
        for sample in metric.samples
        if sample.name == "probe_total"
    }


def showing() -> Outputting:
    exporter = PrometheusExporter()
    return Outputting(exporter.run, [partial(shown_by, exporter)], everything)


def known_by(page: StatusPage) -> Totals:
    async def add_what_waits() -> None:
        while page._board.waiting:
            page._board.add_first()

    trio.run(add_what_waits)  # as an answer does first
    return {
        target.name: target.totals.total
        for cut in page._board.cuts()
        for segment in cut.segments
        for target in segment.values()
    }


def showing_status() -> Outputting:
    page = StatusPage()
    return Outputting(page.run, [partial(known_by, page)], everything)


def fanning_out() -> Outputting:
    exporters = [PrometheusExporter(), PrometheusExporter()]

    async def output(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        await fan_out(exports, *(exporter.run for exporter in exporters))

    put_out = [partial(shown_by, exporter) for exporter in exporters]
    return Outputting(output, put_out, all_but_the_last_batch)


def written_to(path: Path) -> Totals:
    text = path.read_text() if path.exists() else ""
    return totals_of([EventMetrics.parse(line) for line in text.splitlines()])


def writing(path: Path) -> Outputting:
    path.unlink(missing_ok=True)
    output = partial(write_lines, path=path)
    return Outputting(output, [partial(written_to, path)], everything, pause=0)


@attrs.define(eq=False)
class FullDisk:
    """A disk that has room only at the third attempt, in place of `os.write`."""

    path: Path
    write: Callable[[int, Any], int]
    failures: int = attrs.field(init=False)
    gave_up: bool = attrs.field(init=False)
    """Whether even the last attempt, which follows Ctrl-C, has failed."""
    recovered: bool = attrs.field(init=False)
    play: Outputting = attrs.field(init=False)

    def make(self) -> Outputting:
        self.failures = 0
        self.gave_up = self.recovered = False
        self.play = writing(self.path)
        self.play.may_end = lambda: self.recovered
        self.play.never_lost = lambda sent: [] if self.gave_up else sent
        return self.play

    def __call__(self, descriptor: int, data: Any) -> int:
        if self.failures < 2:
            self.failures += 1
            self.gave_up = self.play.ctrl_c.struck
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.gave_up = False
        self.recovered = True
        return self.write(descriptor, data)


def totals_at(collector: Collector) -> Totals:
    newest: Totals = {}
    for totals in collector.totals:
        assert all(newest.get(target, 0) <= total for target, total in totals.items())
        newest.update(totals)
    return newest


def posting(monkeypatch: pytest.MonkeyPatch) -> Outputting:
    """Return an exporter whose collector has no time at first."""

    def totals() -> Totals:
        assert not exporter._progress.busy
        own = [
            each.values("statskeeper_results_accepted", "probe")
            for each in collector.received
        ]
        assert any(own) or play.ctrl_c.struck
        return totals_at(collector)

    def never_lost(sent: Exports) -> Exports:
        return []  # what waits when it is interrupted is lost

    collector = Collector()
    collector.script = [Answer(503), Answer(after=0.1)]
    monkeypatch.setattr(httpcore2, "AsyncConnectionPool", collector.connect)
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    exporter = OTLPExporter(ENDPOINT, statistics_of=[make_keeper("a")])
    play = Outputting(exporter.run, [totals], never_lost)
    return play


@attrs.define(eq=False)
class Wired:
    """A keeper and two outputs around a block that ends by itself if it is not struck."""

    keeper: StatsKeeper = attrs.field(init=False, factory=lambda: make_keeper("abc"))
    sent: list[Result] = attrs.field(init=False, factory=list)
    received: list[list[EventMetrics]] = attrs.field(init=False, factory=lambda: [[], []])
    channels: list[Any] = attrs.field(init=False, factory=list)
    block_ended_before: bool = attrs.field(init=False, default=False)
    """Whether the block ended by itself: a later Ctrl-C ends all at once."""

    async def block(self) -> None:
        outputs = [partial(consume, received=received) for received in self.received]
        items = [Result(target, {"total": 1}) for target in "abcab"]
        async with open_outputs(*outputs) as exports:
            self.channels.append(exports)
            async with open_keeper(self.keeper, exports) as results:
                self.channels.append(results)
                await produce(results, items, self.sent, 0.4)
                self.block_ended_before = True

    async def run(self, ctrl_c: CtrlC) -> None:
        await ctrl_c.watch(self.block)

    def check(self) -> None:
        assert not any(map(is_open, self.channels))
        assert self.keeper.statistics().results_accepted == len(self.sent)
        if not self.block_ended_before:
            accepted = Counter(result.target for result in self.sent)
            for received in self.received:
                assert Counter(totals_of(received)) == accepted


def open_sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(entry.readlink()).startswith("socket:")
    return found


REQUEST = (
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic bmFtZTp4\r\n\r\n"
)
# Of "x", by little work.
USERS = {"name": "$scrypt$ln=1,r=1,p=1$c2FsdHNhbHQ$/ThUYnSuTXdlI3tIwV7lwQ"}


@attrs.define(eq=False)
class Serving:
    """A server that is asked twice over one connection, with a password."""

    exporter: PrometheusExporter = attrs.field(
        init=False, factory=partial(PrometheusExporter, 0, users=USERS)
    )
    port: int | None = attrs.field(init=False, default=None)
    answers: int = attrs.field(init=False, default=0)
    sockets_before: int = attrs.field(init=False, factory=open_sockets)

    async def run(self, ctrl_c: CtrlC) -> None:
        began = trio.Event()
        send, exports = trio.open_memory_channel[EventMetrics](1)
        send.send_nowait(export("a", 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ask_twice, began, send)
            task_status = Started(self, began)
            await ctrl_c.watch(partial(self.exporter.run, exports, task_status=task_status))
            began.set()

    async def ask_twice(
        self, began: trio.Event, exports: trio.MemorySendChannel[EventMetrics]
    ) -> None:
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
        exports.close()

    def check(self) -> None:
        assert self.exporter.address is None
        assert open_sockets() == self.sockets_before


@attrs.frozen
class Started:
    serving: Serving
    began: trio.Event

    def started(self, address: tuple[str, int]) -> None:
        self.serving.port = address[1]
        self.began.set()


@pytest.mark.parametrize(
    "make",
    [Probing, probing_once, Keeping, Wired, fanning_out, showing, showing_status],
    ids=lambda make: make.__name__,
)
def test_ctrl_c_ends_it_at_every_line(make):
    assert press_at_every_line(make) > 50


def test_ctrl_c_ends_otlp_at_every_line(monkeypatch):
    assert press_at_every_line(partial(posting, monkeypatch)) > 100


def test_ctrl_c_ends_lines_at_every_line(tmp_path):
    make = partial(writing, tmp_path / "metrics.log")
    assert press_at_every_line(make, mock_clock=False) > 30


def test_ctrl_c_ends_an_outage_of_lines_at_every_line(tmp_path, monkeypatch):
    disk = FullDisk(tmp_path / "metrics.log", os.write)
    monkeypatch.setattr(os, "write", disk)
    monkeypatch.setattr(_outage, "_FIRST_DELAY", 0.01)
    assert press_at_every_line(disk.make, mock_clock=False) > 50


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


def ctrl_c_in_an_output(went_on: list[str]) -> Callable[..., Any]:
    async def output(exports: trio.MemoryReceiveChannel[Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        went_on.append("output")

    async def run(_: object) -> None:
        async with open_outputs(output):
            await trio.sleep_forever()

    return run


@pytest.mark.parametrize(
    "make", [ctrl_c_in_a_probe, ctrl_c_in_targets, ctrl_c_in_an_output]
)
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
