"""Whatever is interrupted, and at whatever step: nothing is lost, torn or left open."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpcore2
import pytest
import trio
from every_step import Interruption, interrupt_everywhere, perform
from fake_collector import ENDPOINT, Answer, Collector
from helpers import Result, make_keeper

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    Map,
    Prober,
    ProbeResult,
    StatsKeeper,
    Value,
    _conflating,
    _expiry,
    _exported_targets,
    _fan_out,
    _keeper_run,
    _listing,
    _pacing,
    _runs,
    _sending,
    fan_out,
    lines,
    open_keeper,
    open_outputs,
)
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter, _delivery
from trio_statskeeper.prometheus import PrometheusExporter


@pytest.fixture(autouse=True)
def no_log(monkeypatch):
    """A thousand plays would say a thousand times what is amiss in each."""
    monkeypatch.setattr(logging.getLogger("trio_statskeeper"), "disabled", True)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Have what is done in steps for many targets be done so for a few."""
    monkeypatch.setattr(_keeper_run, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(_keeper_run, "_FOLDING_TIME", 2)
    monkeypatch.setattr(_sending, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(_sending, "_TIME_PER_STEP", 2)
    monkeypatch.setattr(_sending, "_TIME_PER_TURN", 2)
    monkeypatch.setattr(_sending, "_SENDERS", 2)
    monkeypatch.setattr(_conflating, "_CHECKED_BATCH", 1)
    monkeypatch.setattr(lines, "_KEPT_BATCH", 2)
    monkeypatch.setattr(_listing, "_REMOVED_BATCH", 1)
    monkeypatch.setattr(_runs, "_GIVEN_UP_BATCH", 1)
    monkeypatch.setattr(_expiry, "_BATCH", 1)
    monkeypatch.setattr(_expiry, "_EXPIRY_BATCH", 1)
    monkeypatch.setattr(_exported_targets, "_BATCH", 1)
    monkeypatch.setattr(_delivery, "_REMOVED_BATCH", 1)
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)


def channel(buffer: float = 0) -> tuple[trio.MemorySendChannel, trio.MemoryReceiveChannel]:
    return trio.open_memory_channel[Any](buffer)


def is_open(end: trio.MemorySendChannel | trio.MemoryReceiveChannel) -> bool:
    statistics = end.statistics()
    if isinstance(end, trio.MemorySendChannel):
        return statistics.open_send_channels > 0
    return statistics.open_receive_channels > 0


def export(target: str, total: int, interval: float = 10) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, interval)


# The keeper


@attrs.frozen
class Numbered:
    """A result that can be told from all others, and notes when it is folded in."""

    target: str
    number: int
    folded: dict[str, list[int]]

    def metrics(self) -> Mapping[str, Value]:
        self.folded[self.target].append(self.number)
        return total([self.number])


def total(numbers: list[int]) -> dict[str, Value]:
    return {
        "total": len(numbers),
        "numbers": sum(2**number for number in numbers),
        "code": Map("code", Counter(str(number % 3) for number in numbers)),
    }


def by_target(exports: list[EventMetrics]) -> list[tuple[str, dict[str, Value]]]:
    return [(export.labels["dst"], dict(export.metrics)) for export in exports]


ENDINGS = {
    "cancelled": {trio.Cancelled},
    "flushed": {trio.Cancelled},
    "end of input": {trio.Cancelled, type(None)},
    "consumer gone": {trio.Cancelled, trio.BrokenResourceError},
    "once": {trio.Cancelled, type(None)},
}


@attrs.define(eq=False)
class Keeping:
    """A keeper amid producers, a slow consumer and targets that come and go."""

    ending: str
    keeper: StatsKeeper = attrs.field(init=False)
    listed: list[str] = attrs.field(init=False, factory=lambda: ["abc", "ca", "dcbae"])
    d_is_listed: trio.Event = attrs.field(init=False, factory=trio.Event)
    readings: int = attrs.field(init=False, default=0)
    numbers: itertools.count = attrs.field(init=False, factory=itertools.count)
    sent: dict[str, list[int]] = attrs.field(init=False, factory=lambda: defaultdict(list))
    refused: int = attrs.field(init=False, default=0)
    folded: dict[str, list[int]] = attrs.field(
        init=False, factory=lambda: defaultdict(list)
    )
    cuts: dict[float, dict[str, dict]] = attrs.field(init=False, factory=dict)
    received: list[EventMetrics] = attrs.field(init=False, factory=list)

    GONE = 2.4
    END = 3.3

    def __attrs_post_init__(self) -> None:
        self.keeper = make_keeper(
            self.targets,
            clock=self.clock,
            expire_after=math.inf,
            max_unlisted=0,
            flush_timeout=2 if self.ending == "flushed" else 0,
        )

    def clock(self) -> float:
        """Return another time whenever it is asked, for each pass to have its own."""
        self.readings += 1
        return self.readings

    def targets(self) -> list[Endpoint]:
        leaving: list[str] = []
        if trio.current_time() > 0 and len(self.listed) > 1:
            before = self.listed.pop(0)
            leaving = [key for key in before if key not in self.listed[0]]
        # If this is not the start, a pass follows at the next reading of the clock.
        self.cuts[self.readings + 1] = self.cut(leaving)
        if "d" in self.listed[0]:
            self.d_is_listed.set()
        return [Endpoint(key) for key in self.listed[0]]

    def cut(self, leaving: Sequence[str] = ()) -> dict[str, dict]:
        """Return what is folded in now, of the listed targets and these."""
        keys = (*self.listed[0], *leaving)
        return {key: total(self.folded[key]) for key in keys if self.folded[key]}

    # Around the keeper

    async def produce(
        self,
        results: trio.MemorySendChannel[ProbeResult],
        how: Callable[[trio.MemorySendChannel[ProbeResult]], Awaitable[None]],
    ) -> None:
        with results, suppress(trio.BrokenResourceError):
            await how(results)

    async def in_turn(self, results: trio.MemorySendChannel[ProbeResult]) -> None:
        while self.goes_on():
            await trio.sleep(0.41)
            await self.send(results, "ac")
            await results.send(Result("a", {"total": -1}))
            self.refused += 1

    async def at_once(self, results: trio.MemorySendChannel[ProbeResult]) -> None:
        while self.goes_on():
            await self.send(results, "bxabc")  # x is never listed
            await trio.sleep(0.73)

    async def when_listed(self, results: trio.MemorySendChannel[ProbeResult]) -> None:
        await self.d_is_listed.wait()
        await self.send(results, "dd")  # while the list is still gone through

    def goes_on(self) -> bool:
        return self.ending != "end of input" or trio.current_time() < self.END

    async def send(
        self, results: trio.MemorySendChannel[ProbeResult], targets: str
    ) -> None:
        for target in targets:
            result = Numbered(target, next(self.numbers), self.folded)
            await results.send(result)
            self.sent[target].append(result.number)

    async def consume(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        with exports:
            async for each in exports:
                self.received.append(each)
                await trio.sleep(0.23)
                if self.ending == "consumer gone" and trio.current_time() > self.GONE:
                    break

    async def end(self, interruption: Interruption) -> None:
        if self.ending in ("cancelled", "flushed"):
            await trio.sleep_until(self.END)
            interruption.end()

    async def play(self, interruption: Interruption) -> None:
        results_send, results = channel(2)
        exports_send, exports = channel()
        async with trio.open_nursery() as others:
            for how in (self.in_turn, self.at_once, self.when_listed):
                others.start_soon(self.produce, results_send.clone(), how)
            results_send.close()
            others.start_soon(self.consume, exports)
            others.start_soon(self.end, interruption)
            raised = await interruption.watch(self.keeper.run, results, exports_send)
            assert not is_open(results)
            assert not is_open(exports_send)
            self.d_is_listed.set()
        assert type(raised) in ENDINGS[self.ending]
        self.check_that_nothing_is_lost()
        self.check_the_passes(raised)
        await self.check_that_it_counts_on()

    # What should have become of it

    def check_that_nothing_is_lost(self) -> None:
        assert self.numbers_of(self.folded) == self.numbers_of(self.sent)
        statistics = self.keeper.statistics()
        refused = {"unlisted": len(self.sent["x"]), "negative": self.refused}
        assert +Counter(refused) == Counter(statistics.results_rejected)
        sent = sum(map(len, self.sent.values())) + self.refused
        assert (
            statistics.results_accepted + sum(statistics.results_rejected.values()) == sent
        )
        assert by_target(self.keeper.snapshot()) == [*self.cut().items()]

    @staticmethod
    def numbers_of(by_target: dict[str, list[int]]) -> dict[str, list[int]]:
        return {key: sorted(numbers) for key, numbers in by_target.items() if numbers}

    def check_the_passes(self, raised: BaseException | None) -> None:
        assert self.keeper.statistics().exports_sent == len(self.received)
        passes = [
            (timestamp, by_target(list(exports)))
            for timestamp, exports in itertools.groupby(
                self.received, key=lambda export: export.timestamp
            )
        ]
        assert passes == sorted(passes, key=lambda each: each[0])
        last = [*self.cuts[max(self.cuts)].items()]
        if last and (raised is None or self.ending == "flushed"):
            _, exports = passes.pop()
            assert exports == last
        for timestamp, exports in passes:
            cut = [*self.cuts[timestamp].items()]
            if timestamp == passes[-1][0] and raised is not None:
                del cut[len(exports) :]  # it may be the one that was interrupted
            assert exports == cut

    async def check_that_it_counts_on(self) -> None:
        self.listed = ["edcba"]
        results_send, results = channel(math.inf)
        exports_send, exports = channel(math.inf)
        with results_send:
            await self.send(results_send, "abcdeab")
        await self.keeper.run(results, exports_send)
        assert by_target([each async for each in exports]) == [*self.cut().items()]


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("cancelled", "cancel"),
        ("cancelled", "deadline"),
        ("cancelled", "crash"),
        ("flushed", "cancel"),
        ("end of input", "cancel"),
        ("consumer gone", "cancel"),
    ],
)
def test_a_keeper_loses_nothing_and_its_passes_are_consistent(ending, how):
    async def play(interruption: Interruption) -> None:
        await Keeping(ending).play(interruption)

    assert interrupt_everywhere(play, how) > 120


def test_a_play_has_the_same_moments_each_time():
    first, second = Interruption(math.inf), Interruption(math.inf)
    for interruption in (first, second):
        perform(Keeping("end of input").play, interruption)
    assert first.moments == second.moments


# The prober


@attrs.define(eq=False)
class Probing:
    """A prober of targets that come and go, and a slow consumer of results."""

    ending: str
    prober: Prober = attrs.field(init=False)
    listed: list[str] = attrs.field(init=False, factory=lambda: ["abc", "bcd", "ad"])
    received: list[ProbeResult] = attrs.field(init=False, factory=list)
    left: int = attrs.field(init=False, default=0)

    GONE = 1.6
    END = 2.7

    def __attrs_post_init__(self) -> None:
        self.prober = Prober(
            self.probe,
            self.targets,
            interval=1,
            timeout=0.4,
            max_concurrent=2,
            clock=trio.current_time,
        )

    def targets(self) -> list[Endpoint]:
        listed = self.listed.pop(0) if len(self.listed) > 1 else self.listed[0]
        return [Endpoint(key) for key in listed]

    async def probe(self, endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=endpoint.key == "c"):  # which gets stuck
            await trio.sleep({"a": 0.1, "b": 0.3, "c": 0.6, "d": 0.05}[endpoint.key])
        if endpoint.key == "d":
            raise OSError("no route")

    async def consume(self, results: trio.MemoryReceiveChannel[ProbeResult]) -> None:
        with results:
            async for result in results:
                self.received.append(result)
                await trio.sleep(0.35)
                if self.ending == "consumer gone" and trio.current_time() > self.GONE:
                    break
            self.left = results.statistics().current_buffer_used

    async def end(self, interruption: Interruption) -> None:
        await trio.sleep_until(self.END)
        interruption.end()

    async def play(self, interruption: Interruption) -> None:
        results_send, results = channel(1)
        async with trio.open_nursery() as others:
            others.start_soon(self.consume, results)
            others.start_soon(self.end, interruption)
            run = self.prober.run_once if self.ending == "once" else self.prober.run
            raised = await interruption.watch(run, results_send)
            assert not is_open(results_send)
            assert self.prober.statistics().running == 0
        assert type(raised) in ENDINGS[self.ending]
        assert self.prober.statistics().results_sent == len(self.received) + self.left
        await self.check_that_it_probes_on()

    async def check_that_it_probes_on(self) -> None:
        self.listed = ["ab"]
        sent_before = self.prober.statistics().results_sent
        results_send, results = channel(math.inf)
        await self.prober.run_once(results_send)
        received = [(each.target, each.metrics()["success"]) async for each in results]
        assert sorted(received) == [("a", 1), ("b", 1)]
        assert self.prober.statistics().results_sent == sent_before + 2
        assert self.prober.statistics().running == 0


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("cancelled", "cancel"),
        ("cancelled", "crash"),
        ("consumer gone", "cancel"),
        ("once", "cancel"),
        ("once", "crash"),
    ],
)
def test_a_prober_counts_what_it_sent_and_leaves_no_probe_behind(ending, how):
    async def play(interruption: Interruption) -> None:
        await Probing(ending).play(interruption)

    assert interrupt_everywhere(play, how) > 50


# fan_out


async def produce(
    exports: trio.MemorySendChannel[EventMetrics],
    sent: dict[str, int],
    *,
    rounds: int,
    every: float,
) -> None:
    """Send totals that rise from round to round, and note those that were sent."""
    with exports, suppress(trio.BrokenResourceError):
        for number in range(1, rounds + 1):
            for target in "abc":
                await exports.send(export(target, number))
                sent[target] = number
            await trio.sleep(every)


async def take(
    exports: trio.MemoryReceiveChannel[EventMetrics],
    received: dict[str, list[int]],
    *,
    every: float,
    at_most: float = math.inf,
) -> None:
    with exports:
        taken = 0
        async for each in exports:
            received[each.labels["dst"]].append(each.metrics["total"])
            taken += 1
            if taken >= at_most:
                break
            await trio.sleep(every)


async def fan_out_to_one_that_is_slow_and_one_that_returns(
    interruption: Interruption,
) -> None:
    def output(name: str, **options: float) -> Callable[..., Awaitable[None]]:
        async def run(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
            ends.append(exports)
            await take(exports, by_output[name], **options)

        return run

    send, exports = channel()
    sent: dict[str, int] = {}
    by_output = defaultdict(lambda: defaultdict(list))
    ends = [exports]
    slow = output("slow", every=0.25)
    returning = output("returning", every=0.05, at_most=7)
    async with trio.open_nursery() as others:
        others.start_soon(partial(produce, send, sent, rounds=6, every=0.3))
        raised = await interruption.watch(fan_out, exports, slow, returning)
        assert not any(is_open(end) for end in ends)
        assert not any(end.statistics().open_send_channels for end in ends[1:])
    assert type(raised) in (type(None), trio.Cancelled)
    for received in by_output.values():
        for totals in received.values():
            assert totals == sorted(set(totals))
    if raised is None:
        newest = {target: totals[-1] for target, totals in by_output["slow"].items()}
        assert newest == sent


@pytest.mark.parametrize("how", ["cancel", "crash"])
def test_fan_out_closes_all_and_sends_nothing_old(how, monkeypatch):
    monkeypatch.setattr(_fan_out, "_BUFFER_SIZE", 1)
    play = fan_out_to_one_that_is_slow_and_one_that_returns
    assert interrupt_everywhere(play, how) > 100


# The whole chain


GRACE = 1


@attrs.define(eq=False)
class Wired:
    """A prober, a keeper and two outputs, one of which is stuck."""

    prober: Prober = attrs.field(init=False)
    keeper: StatsKeeper = attrs.field(init=False, factory=lambda: make_keeper("ab"))
    received: dict[str, int] = attrs.field(init=False, factory=dict)
    channels: list[Any] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        targets = [Endpoint("a"), Endpoint("b")]
        self.prober = Prober(self.probe, lambda: targets, interval=0.6, timeout=0.5)

    async def probe(self, endpoint: Endpoint) -> None:
        await trio.sleep(0.1)

    async def healthy(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        with exports:
            async for each in exports:
                self.received[each.labels["dst"]] = each.metrics["total"]
                await trio.sleep(0.3)

    async def stuck(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        await trio.sleep_forever()

    async def run(self) -> None:
        async with open_outputs(self.healthy, self.stuck, grace=GRACE) as exports:
            self.channels.append(exports)
            async with open_keeper(self.keeper, exports, grace=GRACE) as results:
                self.channels.append(results)
                with trio.move_on_after(1.35):
                    await self.prober.run(results)

    async def play(self, interruption: Interruption) -> None:
        raised = await interruption.watch(self.run)
        assert type(raised) in (type(None), trio.Cancelled)
        assert raised is None or interruption.struck
        sent = self.prober.statistics().results_sent
        assert self.keeper.statistics().results_accepted == sent
        assert sum(self.received.values()) == sent
        assert not any(map(is_open, self.channels))
        assert trio.current_time() <= 1.35 + GRACE


@pytest.mark.parametrize("how", ["cancel", "deadline", "crash"])
def test_a_healthy_output_has_all_that_was_accepted_whatever_ends_the_block(how):
    async def play(interruption: Interruption) -> None:
        await Wired().play(interruption)

    assert interrupt_everywhere(play, how) > 200


@pytest.mark.parametrize("how", ["cancel", "crash"])
def test_a_block_that_is_interrupted_as_it_begins_loses_nothing(how):
    async def play(interruption: Interruption) -> None:
        wired = Wired()
        accepted = 0

        async def run() -> None:
            nonlocal accepted
            async with open_outputs(wired.healthy) as exports:
                exports.send_nowait(export("a", 1))
                accepted += 1

        await interruption.watch(run)
        assert wired.received.get("a", 0) == accepted

    assert interrupt_everywhere(play, how) > 20


# The outputs


def test_lines_are_whole_and_none_is_lost(tmp_path):
    async def play(interruption: Interruption) -> None:
        path = tmp_path / f"{interruption.at}.log"
        send, exports = channel()
        sent: dict[str, int] = {}
        async with trio.open_nursery() as others:
            others.start_soon(partial(produce, send, sent, rounds=3, every=0))
            raised = await interruption.watch(write_lines, exports, path)
            assert not is_open(exports)
        assert type(raised) in (type(None), trio.Cancelled)
        text = path.read_text() if path.exists() else ""
        found = [EventMetrics.parse(line) for line in text.splitlines()]
        written = [(each.labels["dst"], each.metrics["total"]) for each in found]
        everything = [(target, number) for number in (1, 2, 3) for target in "abc"]
        assert text == "" or text.endswith("\n")
        assert written == everything[: sum(sent.values())]

    # Threads take real time, and a mock clock would not wait for them.
    assert interrupt_everywhere(play, mock_clock=False) > 25


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_the_newest_lines_are_written_after_an_outage(tmp_path, monkeypatch, how):
    os_write = os.write

    def write(file: int, data: bytes) -> int:
        if len(data) > 1 and 0.5 < trio.current_time() < 2:
            os_write(file, data[:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os_write(file, data)

    # Instead of in a thread, which a mock clock would not wait for.
    async def run_sync(function: Callable[[], object], **options: object) -> object:
        await trio.lowlevel.checkpoint()
        return function()

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)

    async def play(interruption: Interruption) -> None:
        path = tmp_path / f"{interruption.at}.log"
        send, exports = channel()
        sent: dict[str, int] = {}
        async with trio.open_nursery() as others:
            others.start_soon(partial(produce, send, sent, rounds=5, every=0.9))
            raised = await interruption.watch(write_lines, exports, path)
            assert not is_open(exports)
        assert type(raised) in (type(None), trio.Cancelled)
        # In an outage, the last attempt tears a line, too.
        whole, text = {}, path.read_text() if path.exists() else ""
        for line in text.splitlines():
            with suppress(ValueError, KeyError):
                read = EventMetrics.parse(line)
                assert whole.get(read.labels["dst"], 0) < read.metrics["total"]
                whole[read.labels["dst"]] = read.metrics["total"]
        if text.endswith("\n") or not text:
            assert whole == sent

    assert interrupt_everywhere(play, how) > 40


def test_prometheus_shows_the_newest_of_what_was_sent():
    async def play(interruption: Interruption) -> None:
        exporter = PrometheusExporter()
        send, exports = channel()
        sent: dict[str, int] = {}
        async with trio.open_nursery() as others:
            others.start_soon(partial(produce, send, sent, rounds=6, every=0.25))
            raised = await interruption.watch(exporter.run, exports)
            assert not is_open(exports)
        assert type(raised) in (type(None), trio.Cancelled)
        assert shown(exporter) == sent

        send, exports = channel(1)
        with send:
            await send.send(export("b", 100))
        await exporter.run(exports)
        assert shown(exporter) == {**sent, "b": 100}

    assert interrupt_everywhere(play) > 30


def shown(exporter: PrometheusExporter) -> dict[str, float]:
    return {
        sample.labels["dst"]: sample.value
        for metric in exporter.collect()
        for sample in metric.samples
        if sample.name == "probe_total"
    }


REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
END_OF_ANSWER = b"\r\n0\r\n\r\n"

# More than a socket takes whose other end does not listen.
LONG_TEXT = "x" * 200_000

# Seconds after which a server does not end.
LONG = 10


def open_sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(entry.readlink()).startswith("socket:")
    return found


@attrs.define(eq=False)
class Serving:
    """A server whose clients ask twice, say half a sentence, and do not listen."""

    nursery: trio.Nursery
    interruption: Interruption
    exporter: PrometheusExporter = attrs.field(
        init=False, factory=partial(PrometheusExporter, 0)
    )
    address: tuple[str, int] | None = attrs.field(init=False, default=None)
    began: trio.Event = attrs.field(init=False, factory=trio.Event)
    over: trio.Event = attrs.field(init=False, factory=trio.Event)
    answers: int = attrs.field(init=False, default=0)

    async def run(self) -> BaseException | None:
        send, exports = channel(2)
        await send.send(export("a", 1))
        await send.send(EventMetrics(1, 0, {"dst": "b"}, {"text": LONG_TEXT}))
        for client in (self.ask_twice, self.say_half_a_sentence, self.listen_to_nothing):
            self.nursery.start_soon(self.until_closed, client)
        run = partial(self.exporter.run, exports, task_status=self)
        raised = await self.interruption.watch(run)
        self.began.set()
        self.over.set()
        return raised

    def started(self, address: tuple[str, int]) -> None:
        """Be told the address, as a task status is."""
        self.address = address
        self.began.set()

    async def until_closed(self, client: Callable[[], Awaitable[None]]) -> None:
        await self.began.wait()
        with suppress(OSError, trio.BrokenResourceError):
            if self.address is not None:
                await client()

    async def ask_twice(self) -> None:
        async with await trio.open_tcp_stream(*self.address) as stream:
            for _ in range(2):
                await stream.send_all(REQUEST)
                answer = b""
                while not answer.endswith(END_OF_ANSWER):
                    chunk = await stream.receive_some()
                    if not chunk:
                        return
                    answer += chunk
                self.answers += 1
        self.interruption.end()

    async def say_half_a_sentence(self) -> None:
        async with await trio.open_tcp_stream(*self.address) as stream:
            await stream.send_all(REQUEST[:20])
            await stream.receive_some()

    async def listen_to_nothing(self) -> None:
        with trio.socket.socket() as socket, trio.fail_after(LONG):
            socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await socket.connect(self.address)
            await socket.send(REQUEST)
            await self.over.wait()


def test_a_prometheus_server_closes_its_port_and_its_connections():
    async def play(interruption: Interruption) -> None:
        sockets_before = open_sockets()
        async with trio.open_nursery() as nursery:
            serving = Serving(nursery, interruption)
            raised = await serving.run()
            assert type(raised) is trio.Cancelled
            if serving.address is not None:
                with pytest.raises(OSError):
                    await trio.open_tcp_stream(*serving.address)
        assert open_sockets() == sockets_before
        assert interruption.struck or serving.answers == 2

    assert interrupt_everywhere(play, mock_clock=False) > 50


class Remembering(Collector):
    """A collector that remembers which totals it has acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.script = [Answer(503), Answer(after=0.3), Answer(), Answer(after=2), Answer()]
        self.acknowledged: list[dict[str, float]] = []

    def acknowledge(self, answer: Answer) -> None:
        if answer.status == 200:
            self.acknowledged.append(self.totals[-1])


def series(requests: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return the totals of each target, one after the other."""
    by_target = defaultdict(list)
    for request in requests:
        for target, number in request.items():
            by_target[target].append(number)
    return by_target


def test_a_collector_gets_no_total_twice_and_none_that_is_older(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)

    async def play(interruption: Interruption) -> None:
        collector = Remembering()
        monkeypatch.setattr(httpcore2, "AsyncConnectionPool", collector.connect)
        exporter = OTLPExporter(ENDPOINT)
        send, exports = channel()
        sent: dict[str, int] = {}
        async with trio.open_nursery() as others:
            others.start_soon(partial(produce, send, sent, rounds=6, every=0.7))
            raised = await interruption.watch(exporter.run, exports)
            assert not is_open(exports)
        assert type(raised) in (type(None), trio.Cancelled)
        if raised is None:
            newest = {
                t: numbers[-1] for t, numbers in series(collector.acknowledged).items()
            }
            assert newest == sent == dict.fromkeys("abc", 6)

        send, exports = channel(1)
        with send:
            await send.send(export("b", 100))
        await exporter.run(exports)
        assert collector.acknowledged[-1] == {"b": 100}
        for numbers in series(collector.acknowledged).values():
            assert numbers == sorted(set(numbers))
        for numbers in series(collector.totals).values():
            assert numbers == sorted(numbers)

    assert interrupt_everywhere(play) > 100
