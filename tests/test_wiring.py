"""open_outputs and open_keeper: however a block ends, what was accepted gets through."""

from __future__ import annotations

import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NoReturn
from weakref import ref

import attrs
import httpcore2
import pytest
import trio
from fake_collector import ENDPOINT, Answer, Collector
from helpers import make_keeper, one, totals
from trio.testing import MockClock

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    Prober,
    ProbeResult,
    StatsKeeper,
    _pacing,
    fan_out,
    open_keeper,
    open_outputs,
)
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter


@attrs.define(eq=False)
class Recorder:
    """An output that keeps what it receives."""

    exports: list[EventMetrics] = attrs.field(factory=list)
    returned_at: float | None = None

    async def run(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        with exports:
            async for export in exports:
                self.exports.append(export)
        self.returned_at = trio.current_time()

    @property
    def totals(self) -> dict[str, Any]:
        return totals(self.exports)


async def stuck(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
    await trio.sleep_forever()


async def run_on_mock_clock(main: Callable[[], Awaitable[None]]) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    try:
        await main()
    finally:
        assert trio.lowlevel.current_statistics().tasks_living == tasks


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in Trio's main task, which is the one to get a Ctrl-C."""
    trio.run(run_on_mock_clock, main, clock=MockClock(autojump_threshold=0))


# The ways to end


async def returns() -> None:
    await trio.lowlevel.checkpoint()


THE_ERROR = ValueError("the block's own")
THE_GROUP = ExceptionGroup("the block's own", [THE_ERROR])


async def raises() -> NoReturn:
    raise THE_ERROR


async def raises_a_group() -> NoReturn:
    raise THE_GROUP


async def raises_cancelled_and_more() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises)
        nursery.start_soon(trio.sleep_forever)


async def exits() -> NoReturn:
    raise SystemExit(3)


async def presses_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


async def sleeps() -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("end", "raised"),
    [
        (returns, None),
        (raises, ValueError),
        (raises_a_group, ExceptionGroup),
        (raises_cancelled_and_more, ExceptionGroup),
        (exits, SystemExit),
        (presses_ctrl_c, KeyboardInterrupt),
        (sleeps, None),  # until a deadline outside passes
    ],
)
def test_however_the_block_ends_the_last_totals_are_exported_first(end, raised):
    async def main() -> None:
        with trio.move_on_after(1.75 if end is sleeps else 100) as scope:
            async with (
                open_outputs(recorder.run, stuck, grace=3) as exports,
                open_keeper(make_keeper("ab"), exports) as results,
            ):
                await results.send(one("a"))
                await trio.sleep(1.5)
                await results.send(one("a"))
                await results.send(one("b"))
                await end()
        assert scope.cancelled_caught == (end is sleeps)
        assert trio.current_time() == 3 + (1.75 if end is sleeps else 1.5)

    recorder = Recorder()
    if raised is None:
        run(main)
    else:
        with pytest.raises(raised) as caught:
            run(main)
        assert type(caught.value) is raised
        assert caught.value in (THE_ERROR, THE_GROUP) or end not in (raises, raises_a_group)
    assert recorder.totals == {"a": 2, "b": 1}


async def test_results_end_before_exports_and_exports_before_outputs(autojump_clock):
    happened: list[str] = []

    class Log(Recorder):
        async def run(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
            await super().run(exports)
            happened.append(f"output has returned with {self.totals}")

    def targets() -> list[Endpoint]:
        happened.append("targets listed")
        with pytest.raises(trio.ClosedResourceError):
            if ended:
                results.send_nowait(one("a"))
            else:
                raise trio.ClosedResourceError
        return [Endpoint("a")]

    ended = False
    keeper = make_keeper(targets)
    with pytest.raises(ValueError, match="own"):
        async with (
            open_outputs(Log().run) as exports,
            open_keeper(keeper, exports) as results,
        ):
            await results.send(one("a"))
            ended = True
            raise THE_ERROR
    assert happened == ["targets listed"] * 2 + ["output has returned with {'a': 1}"]


async def test_without_targets_the_end_takes_no_time(autojump_clock):
    recorder = Recorder()
    async with (
        open_outputs(recorder.run) as exports,
        open_keeper(make_keeper(()), exports) as results,
    ):
        pass
    assert trio.current_time() == recorder.returned_at == 0
    assert recorder.exports == []
    for channel in results, exports:
        with pytest.raises(trio.ClosedResourceError):
            channel.send_nowait(None)


async def test_several_keepers_share_the_outputs(autojump_clock):
    recorder = Recorder()
    async with open_outputs(recorder.run) as exports:
        async with (
            open_keeper(make_keeper("a"), exports) as first,
            open_keeper(make_keeper("b"), exports) as second,
        ):
            await first.send(one("a"))
            await second.send(one("b"))
        async with open_keeper(make_keeper("c"), exports) as third:
            await third.send(one("c"))
    assert recorder.totals == {"a": 1, "b": 1, "c": 1}


async def test_the_block_may_consist_of_a_prober(autojump_clock):
    async def probe(endpoint: Endpoint) -> None:
        await trio.lowlevel.checkpoint()

    recorder = Recorder()
    endpoints = [Endpoint("a"), Endpoint("b")]
    prober = Prober(probe, lambda: endpoints, interval=1, timeout=0.5)
    keeper = StatsKeeper("tcp", "x", lambda: endpoints, clock=trio.current_time)
    with trio.move_on_after(2.999):
        async with (
            open_outputs(recorder.run) as exports,
            open_keeper(keeper, exports) as results,
        ):
            await prober.run(results)
    assert sum(recorder.totals.values()) == prober.statistics().results_sent == 6


# Grace


async def test_an_output_that_is_stuck_is_cancelled_after_the_grace_and_named(
    autojump_clock, caplog
):
    async with open_outputs(stuck, Recorder().run) as exports:
        for target in "abc":
            await exports.send(EventMetrics(0, 0, {"dst": target}, {"total": 1}))
    assert trio.current_time() == 5
    (message,) = caplog.messages
    assert message == (
        "test_wiring.stuck: was cancelled before it returned; "
        "3 exports that it had not taken are dropped"
    )


async def test_an_output_that_is_slow_has_the_grace_to_take_all(autojump_clock, caplog):
    taken: list[EventMetrics] = []

    async def slow(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        async for export in exports:
            await trio.sleep(1.5)
            taken.append(export)

    with trio.CancelScope() as scope:
        async with open_outputs(slow) as exports:
            for target in "abc":
                await exports.send(EventMetrics(0, 0, {"dst": target}, {"total": 1}))
            scope.cancel()
            await trio.sleep_forever()
    assert len(taken) == 3
    assert caplog.messages == []


async def test_an_output_that_took_all_but_did_not_return_is_named_too(
    autojump_clock, caplog
):
    async def lingering(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        async for _ in exports:
            pass
        await trio.sleep_forever()

    async with open_outputs(lingering, grace=1) as exports:
        await exports.send(EventMetrics(0, 0, {"dst": "a"}, {"total": 1}))
    (message,) = caplog.messages
    assert "lingering: was cancelled before it returned; 0 exports" in message


async def test_without_a_grace_an_output_is_named_even_if_exports_had_not_reached_it(
    autojump_clock, caplog, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    async with open_outputs(stuck, grace=0) as exports:
        for target in range(50):
            await exports.send(EventMetrics(0, 0, {"dst": str(target)}, {"total": 1}))
    (message,) = caplog.messages
    assert message.startswith("test_wiring.stuck: was cancelled before it returned; ")


async def test_a_keeper_whose_exports_nobody_receives_is_cancelled_after_the_grace(
    autojump_clock, caplog
):
    send, _ = trio.open_memory_channel[EventMetrics](0)
    keeper = make_keeper("a", flush_timeout=100)  # this has no effect
    async with open_keeper(keeper, send, grace=2) as results:
        await results.send(one("a"))
    assert trio.current_time() == 2
    assert caplog.messages == [
        "http/homepage: was cancelled before its last export was received"
    ]


@pytest.mark.parametrize("grace", [0, 3])
def test_a_second_ctrl_c_ends_it_at_once(grace):
    async def main() -> None:
        async with (
            open_outputs(recorder.run, impatient, grace=100) as exports,
            open_keeper(make_keeper("a"), exports) as results,
        ):
            await results.send(one("a"))
            await trio.sleep(1)
            signal.raise_signal(signal.SIGINT)

    @trio.lowlevel.enable_ki_protection
    async def impatient(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        async for _ in exports:
            pass
        await trio.sleep(grace)
        signal.raise_signal(signal.SIGINT)
        try:
            await trio.sleep_forever()
        finally:
            ended_at.append(trio.current_time())

    ended_at: list[float] = []
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert ended_at == [1 + grace]
    assert recorder.totals == {"a": 1}


def test_ctrl_c_while_a_cancelled_block_ends_ends_it_at_once():
    async def main() -> None:
        with trio.move_on_after(1):
            try:
                async with open_outputs(stuck, grace=100):
                    trio.lowlevel.spawn_system_task(press_ctrl_c_after, 2)
                    await trio.sleep_forever()
            finally:
                ended_at.append(trio.current_time())

    ended_at: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert ended_at == [2]


async def press_ctrl_c_after(seconds: float) -> None:
    await trio.sleep(seconds)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("between", [AsyncExitStack, trio.open_nursery])
def test_a_second_ctrl_c_while_the_keeper_ends_ends_the_outputs_at_once_too(
    caplog, between
):
    async def main() -> None:
        send, _ = trio.open_memory_channel[EventMetrics](0)
        try:
            async with (
                open_outputs(stuck, grace=100),
                between(),
                open_keeper(make_keeper("a"), send, grace=100) as results,
            ):
                await results.send(one("a"))
                trio.lowlevel.spawn_system_task(press_ctrl_c_after, 1)
                raise THE_ERROR
        finally:
            ended_at.append(trio.current_time())

    ended_at: list[float] = []
    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
        run(main)
    assert ended_at == [1]
    assert [record.levelname for record in caplog.records] == [
        "WARNING",
        "ERROR",
        "WARNING",
    ]
    assert "was raised, too: ValueError" in caplog.messages[1]


# What starts wrong


async def test_a_port_that_is_taken_raises_before_the_block_begins():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        recorder = Recorder()
        with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{port}"):
            async with open_outputs(recorder.run, PrometheusExporter(port).run):
                pytest.fail("the block has begun")


async def test_a_file_that_cannot_be_opened_raises_before_the_block_begins(tmp_path):
    with pytest.raises(IsADirectoryError):
        async with open_outputs(partial(write_lines, path=tmp_path)):
            pytest.fail("the block has begun")


async def test_targets_that_raise_at_the_start_do_so_before_the_block_begins():
    send, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.raises(ZeroDivisionError):
        async with open_keeper(make_keeper(lambda: 1 / 0), send):
            pytest.fail("the block has begun")
    send.close()
    with pytest.raises(trio.EndOfChannel):  # for no clone is left open
        receive.receive_nowait()


async def test_a_keeper_that_runs_already_is_refused(autojump_clock):
    send, receive = trio.open_memory_channel[EventMetrics](0)
    keeper = make_keeper("a")
    async with open_keeper(keeper, send):
        with pytest.raises(trio.BusyResourceError):
            async with open_keeper(keeper, send):
                pytest.fail("the block has begun")
    send.close()
    with pytest.raises(trio.EndOfChannel):
        receive.receive_nowait()


async def test_it_can_be_cancelled_while_outputs_start(autojump_clock):
    async def starts_late(  # noqa: ASYNC114, ASYNC128
        exports: object, *, task_status: trio.TaskStatus[None]
    ) -> NoReturn:
        await trio.sleep(1)
        pytest.fail("it goes on")

    with trio.move_on_after(0.5) as scope:
        async with open_outputs(starts_late):
            pytest.fail("the block has begun")
    assert scope.cancelled_caught


def test_ctrl_c_while_outputs_start_is_raised_bare():
    async def starts_late(  # noqa: ASYNC114, ASYNC128
        exports: object, *, task_status: trio.TaskStatus[None]
    ) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        trio.lowlevel.spawn_system_task(press_ctrl_c_after, 1)
        async with open_outputs(starts_late, stuck):
            pytest.fail("the block has begun")

    with pytest.raises(KeyboardInterrupt):
        run(main)


async def test_the_block_does_not_begin_if_it_is_cancelled_at_once(autojump_clock, caplog):
    send, _ = trio.open_memory_channel[EventMetrics](0)
    for opened in open_outputs(stuck), open_keeper(make_keeper("a"), send):
        with trio.CancelScope() as scope:
            scope.cancel()
            async with opened:
                pytest.fail("the block has begun")
        assert scope.cancelled_caught
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("outputs", "grace", "error", "message"),
    [
        ((), 5, ValueError, "open_outputs needs at least one output, got none"),
        ((stuck, 5), 5, TypeError, "an output must be an async function .* got 5"),
        ((stuck,), -1, ValueError, "grace must be finite and >= 0, got -1"),
        ((stuck,), None, TypeError, "grace must be a number, got None"),
    ],
)
def test_invalid_arguments_are_refused_at_the_call(outputs, grace, error, message):
    with pytest.raises(error, match=message):
        open_outputs(*outputs, grace=grace)


# What goes wrong later


@pytest.mark.parametrize("others", [1, 0])
async def test_an_output_with_a_bug_ends_the_block_and_the_others_get_the_last_totals(
    autojump_clock, caplog, others
):
    async def bug(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        with exports:
            async for _ in exports:
                raise THE_ERROR

    recorder = Recorder()
    with pytest.raises(ValueError, match="own") as caught:
        async with (
            open_outputs(bug, *[recorder.run] * others) as exports,
            open_keeper(make_keeper("ab"), exports) as results,
        ):
            await results.send(one("a"))
            await trio.sleep(1)
            await results.send(one("b"))
            await trio.sleep_forever()
    assert caught.value is THE_ERROR
    assert caught.value.__context__ is None
    assert trio.current_time() == 1
    assert recorder.totals == ({"a": 1, "b": 1} if others else {})
    assert caplog.messages == []


async def fail_upon_cancellation() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise RuntimeError("cleanup")


async def test_an_error_of_a_cancelled_nursery_in_the_block_hides_no_bug_of_an_output(
    autojump_clock, caplog
):
    async def bug(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        await trio.sleep(1)
        raise THE_ERROR

    with pytest.raises(ValueError, match="own") as caught:
        async with (
            open_outputs(bug) as exports,
            open_keeper(make_keeper("a"), exports),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(fail_upon_cancellation)
            await trio.sleep_forever()
    assert caught.value is THE_ERROR
    (message,) = caplog.messages
    assert "RuntimeError('cleanup')" in message


async def test_the_group_of_an_outputs_nursery_has_no_cancelled(autojump_clock):
    async def output(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_upon_cancellation)
            await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="cleanup")):
        async with open_outputs(output):
            pass
    assert trio.current_time() == 5


async def test_a_raised_exception_is_freed_with_its_last_reference(autojump_clock):
    class BugError(Exception):
        """One that can be referred to weakly."""

    async def bug(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        await exports.receive()
        raise BugError

    async def block() -> None:
        async with (
            open_outputs(bug) as exports,
            open_keeper(make_keeper("a"), exports) as results,
        ):
            await results.send(one("a"))
            await trio.sleep_forever()

    gc.disable()
    try:
        try:
            await block()
        except BugError as error:
            raised = ref(error)
        assert raised() is None
    finally:
        gc.enable()


async def send_on(results: trio.MemorySendChannel[ProbeResult]) -> None:
    with trio.CancelScope(shield=True):
        while True:
            await results.send(one("a"))
            await trio.sleep(0.4)


@pytest.mark.parametrize("in_nursery", [False, True])
async def test_an_exception_of_targets_is_raised_even_if_senders_see_a_broken_channel(
    autojump_clock, caplog, in_nursery
):
    def targets() -> list[Endpoint]:
        if trio.current_time():
            raise THE_ERROR
        return [Endpoint("a")]

    recorder = Recorder()
    with pytest.raises(ValueError, match="own"):
        async with (
            open_outputs(recorder.run) as exports,
            open_keeper(make_keeper(targets), exports) as results,
        ):
            if in_nursery:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_on, results)
                    nursery.start_soon(trio.sleep_forever)
            await send_on(results)
    assert trio.current_time() == pytest.approx(1.2)
    assert caplog.messages == []


async def test_the_exception_of_the_block_is_raised_and_later_ones_are_logged(
    autojump_clock, caplog
):
    async def bug(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        async for _ in exports:
            pass
        raise RuntimeError("too late")

    with pytest.raises(ValueError, match="own"):
        async with open_outputs(bug):
            raise THE_ERROR
    (message,) = caplog.messages
    assert message.endswith("was raised, too: RuntimeError('too late')")


async def test_an_exception_of_the_keeper_replaces_the_cancellation_of_the_block(
    autojump_clock,
):
    def targets() -> list[Endpoint]:
        if trio.current_time():
            raise THE_ERROR
        return [Endpoint("a")]

    recorder = Recorder()
    with pytest.raises(ValueError, match="own") as caught:
        with trio.move_on_after(0.5):
            async with (
                open_outputs(recorder.run) as exports,
                open_keeper(make_keeper(targets), exports) as results,
            ):
                await results.send(one("a"))
                await trio.sleep_forever()
    assert caught.value.__context__ is None
    assert recorder.totals == {"a": 1}


async def test_outputs_that_have_all_returned_end_the_block(autojump_clock, caplog):
    async def returning(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.raises(trio.BrokenResourceError):
        async with (
            open_outputs(returning) as exports,
            open_keeper(make_keeper("a"), exports) as results,
        ):
            await results.send(one("a"))
            await trio.sleep_forever()
    assert trio.current_time() == 1
    (message,) = caplog.messages
    assert "returning: returned before it had all exports" in message


# Clones that stay open


async def test_a_clone_of_the_results_that_stays_open_delays_nothing(autojump_clock):
    recorder = Recorder()
    async with open_outputs(recorder.run) as exports:
        async with open_keeper(make_keeper("a"), exports) as results:
            clone = results.clone()
            for _ in range(100):
                clone.send_nowait(one("a"))
        with pytest.raises(trio.BrokenResourceError):
            clone.send_nowait(one("a"))
    assert trio.current_time() == 0
    assert recorder.totals == {"a": 100}


async def test_a_clone_of_the_exports_that_stays_open_delays_nothing(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    recorder = Recorder()
    async with open_outputs(recorder.run) as exports:
        clone = exports.clone()
        for target in range(200):
            clone.send_nowait(EventMetrics(0, 0, {"dst": str(target)}, {"total": 1}))
    with pytest.raises(trio.BrokenResourceError):
        clone.send_nowait(None)
    assert trio.current_time() == 0
    assert len(recorder.totals) == 200


# The library's own outputs


async def test_without_these_functions_a_nursery_ends_with_the_results():
    prometheus = PrometheusExporter(0)
    results, results_receive = trio.open_memory_channel[ProbeResult](1)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    recorder = Recorder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_keeper("a").run, results_receive, exports_send)
        await nursery.start(fan_out, exports, prometheus.run, recorder.run)
        assert prometheus.address is not None
        async with results:
            await results.send(one("a"))
    assert recorder.totals == {"a": 1}


async def test_prometheus_listens_while_the_block_runs(caplog):
    prometheus = PrometheusExporter(0)
    async with open_outputs(prometheus.run) as exports:
        address = prometheus.address
        async with await trio.open_tcp_stream(*address):
            await exports.send(EventMetrics(0, 0, {"dst": "a"}, {"total": 1}))
    assert prometheus.address is None
    with pytest.raises(OSError):
        await trio.open_tcp_stream(*address)
    assert {"a"} == {
        sample.labels["dst"]
        for metric in prometheus.collect()
        for sample in metric.samples
        if sample.name == "probe_total"
    }
    assert caplog.messages == []


@pytest.fixture
def collector(monkeypatch):
    collector = Collector()
    monkeypatch.setattr(httpcore2, "AsyncConnectionPool", collector.connect)
    return collector


async def test_a_collector_gets_the_last_totals_even_if_all_is_cancelled(
    autojump_clock, collector
):
    collector.script = [Answer(after=0.5), Answer(503), Answer()]
    with trio.move_on_after(1.25):
        async with (
            open_outputs(OTLPExporter(ENDPOINT).run, stuck) as exports,
            open_keeper(make_keeper("a"), exports) as results,
        ):
            for _ in range(2):
                await results.send(one("a"))
                await trio.sleep(1)
    assert collector.totals[-1] == {"a": 2}


async def test_a_collector_that_does_not_answer_in_time_is_named(
    autojump_clock, collector, caplog
):
    caplog.set_level(logging.WARNING)
    collector.script = [Answer(after=1000)]
    async with (
        open_outputs(OTLPExporter(ENDPOINT).run) as exports,
        open_keeper(make_keeper("a"), exports) as results,
    ):
        await results.send(one("a"))
    assert trio.current_time() == 5
    assert "the totals of 1 targets were not delivered" in caplog.messages[0]
    assert "OTLPExporter.run: was cancelled before it returned" in caplog.messages[1]
