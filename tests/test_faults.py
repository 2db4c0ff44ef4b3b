"""Keepers and probers when functions, results or consumers fail: docs/failures.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import attrs
import pytest
import trio
from helpers import Result, all_from, make_keeper, one, totals
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import Endpoint, EventMetrics, Map, Prober, ProbeResult
from trio_statskeeper.testing import Hang, ScriptedProbe

A, B = Endpoint("a"), Endpoint("b")

# Of each kind, including those that the keeper's own channels raise.
ERRORS = [
    OSError,
    SystemExit,
    partial(BaseExceptionGroup, "two", [OSError(), KeyboardInterrupt()]),
    trio.WouldBlock,
    trio.EndOfChannel,
    trio.ClosedResourceError,
    trio.BrokenResourceError,
]


def raising(error):
    def fault(*_):
        raise error

    return fault


def returning(rubbish):
    return lambda *_: rubbish


class Breaking:
    """A function that fails from its `nth` call on, until it is mended."""

    def __init__(self, works, nth, fault):
        self.works = works
        self.calls_left = nth
        self.fault = fault

    def __call__(self, *args):
        self.calls_left -= 1
        return self.works(*args) if self.calls_left > 0 else self.fault()

    def mend(self):
        self.calls_left = math.inf


def mend(keeper):
    for function in (keeper.targets, keeper.clock, *keeper.additional_labels.values()):
        if isinstance(function, Breaking):
            function.mend()


class Run:
    """A run of a keeper: what it is sent, and how it ends."""

    def __init__(self, keeper, exports_buffer=math.inf):
        self.keeper = keeper
        self.results, self._results = trio.open_memory_channel[ProbeResult](math.inf)
        self._exports, self.exports = trio.open_memory_channel[EventMetrics](exports_buffer)
        # A keeper that does not end fails its test instead of hanging.
        self.scope = trio.CancelScope(deadline=trio.current_time() + 100)
        self.sent = Counter()
        self.raised = None
        self.ended_at = None

    def send(self, *keys):
        for key in keys:
            self.results.send_nowait(one(key))
            self.sent[key] += 1

    async def keep(self):
        with self.scope:
            try:
                await self.keeper.run(self._results, self._exports)
            except trio.Cancelled as cancelled:
                self.raised = cancelled
                raise
            except BaseException as error:  # noqa: BLE001  # whatever left it
                self.raised = error
            finally:
                self.ended_at = trio.current_time()

    def received(self):
        return all_from(self.exports)


def is_same(raised, error):
    """Return whether `error` was raised; Trio splits groups, which makes new ones."""
    if isinstance(error, BaseExceptionGroup):
        return type(raised) is type(error) and raised.exceptions == error.exceptions
    return raised is error


async def assert_nothing_is_lost(run):
    """Assert that everything is closed and counted, and that another run counts on."""
    assert run.results.statistics().open_receive_channels == 0
    assert run.exports.statistics().open_send_channels == 0
    assert run.keeper.statistics().results_accepted == run.sent.total()
    mend(run.keeper)
    another = Run(run.keeper)
    another.send("a", "b")
    another.results.close()
    await another.keep()
    assert another.raised is None
    assert totals(another.received()) == run.sent + another.sent


@attrs.frozen
class Call:
    """Which call of which function fails, and when."""

    option: str
    works: Callable
    nth: int
    at: float = 0


async def run_until_it_breaks(call, fault):
    """Run a keeper with a function that breaks, while results are in the buffer."""
    late = ["a", "b", "b"]

    def break_with_results_in_the_buffer():
        while late:
            run.send(late.pop())
        return fault()

    run = Run(keeper_with(call, break_with_results_in_the_buffer))
    run.send("a", "b")
    await run.keep()
    return run


def keeper_with(call, fault, **options):
    option, function = call.option, Breaking(call.works, call.nth, fault)
    if option == "label":
        option, function = "additional_labels", {"x": function}
    return make_keeper(**({"targets": "ab", option: function} | options))


def zone(endpoint):
    return "x"


CALLS = {
    "targets at the start": Call("targets", lambda: [A, B], 1, 0),
    "targets at the first tick": Call("targets", lambda: [A, B], 2, 1),
    "targets at a later tick": Call("targets", lambda: [A, B], 4, 3),
    "clock at the start": Call("clock", trio.current_time, 1, 0),
    "clock at a first result": Call("clock", trio.current_time, 3, 0),
    "clock at the first tick": Call("clock", trio.current_time, 4, 1),
    "clock at a later tick": Call("clock", trio.current_time, 5, 2),
    "label at the first tick": Call("label", zone, 1, 1),
    "label within a later pass": Call("label", zone, 4, 2),
}


@pytest.mark.parametrize("make_error", ERRORS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_run_raises_what_a_function_raised_and_loses_no_result(
    autojump_clock, call, make_error
):
    error = make_error()
    run = await run_until_it_breaks(call, raising(error))
    assert is_same(run.raised, error)
    assert run.ended_at == call.at
    await assert_nothing_is_lost(run)


@pytest.mark.parametrize(
    "call", [call for call in CALLS.values() if call.option != "label" and call.at > 0]
)
async def test_a_tick_at_which_a_function_fails_exports_nothing(autojump_clock, call):
    run = await run_until_it_breaks(call, raising(LookupError()))
    assert {export.timestamp for export in run.received()} == set(range(1, call.at))


def endpoints_that_end_badly():
    yield A
    raise LookupError("no more targets")


RUBBISH = {
    "targets": [
        (returning(None), TypeError, "targets must return Endpoints, got None"),
        (returning(7), TypeError, "targets must return Endpoints, got 7"),
        (returning([A, "b"]), TypeError, "targets must be Endpoints, got 'b'"),
        (returning([A, None]), TypeError, "targets must be Endpoints, got None"),
        (endpoints_that_end_badly, LookupError, "no more targets"),
    ],
    "clock": [
        (returning(math.nan), ValueError, "clock must return finite seconds, got nan"),
        (returning(math.inf), ValueError, "clock must return finite seconds, got inf"),
        (returning(-math.inf), ValueError, "clock must return finite seconds, got -inf"),
        (returning(10**400), ValueError, "clock must return finite seconds, got 1000"),
        (returning(10**5000), ValueError, "clock must return finite seconds, got <int "),
        (returning(None), TypeError, "clock must return seconds, got None"),
        (returning("12:00"), TypeError, "clock must return seconds, got '12:00'"),
        (returning(1j), TypeError, "clock must return seconds, got 1j"),
    ],
    "label": [
        (returning(None), TypeError, "label 'x' must return a string, got None for "),
        (returning(7), TypeError, "label 'x' must return a string, got 7 for "),
        (returning(b"x"), TypeError, "label 'x' must return a string, got b'x' for "),
    ],
}


@pytest.mark.parametrize(
    ("call", "rubbish"),
    [
        pytest.param(call, rubbish, id=f"{name} {number}")
        for name, call in CALLS.items()
        for number, rubbish in enumerate(RUBBISH[call.option])
    ],
)
async def test_an_invalid_return_value_is_an_error_of_run_and_loses_no_result(
    autojump_clock, call, rubbish
):
    fault, error, message = rubbish
    run = await run_until_it_breaks(call, fault)
    assert type(run.raised) is error
    assert message in str(run.raised)
    assert run.ended_at == call.at
    await assert_nothing_is_lost(run)


async def test_a_failure_of_targets_while_a_pass_waits_is_noticed_after_the_pass(
    autojump_clock,
):
    error = LookupError("no targets")
    run = Run(make_keeper(Breaking(lambda: [A, B], 3, raising(error))), exports_buffer=0)
    run.send("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.keep)
        await trio.sleep(2.5)  # the pass of second 1 waits
        run.send("a")
        received = [await run.exports.receive(), await run.exports.receive()]
    assert totals(received) == {"a": 1, "b": 1}
    assert run.raised is error
    assert run.ended_at == 3
    await assert_nothing_is_lost(run)


@pytest.mark.parametrize("make_error", ERRORS)
async def test_a_clock_that_fails_only_once_ends_the_run(autojump_clock, make_error):
    error = make_error()

    def fail_once():
        mend(run.keeper)
        raise error

    run = Run(keeper_with(CALLS["clock at a first result"], fail_once))
    run.send("a", "b", "a")
    await run.keep()
    assert is_same(run.raised, error)
    assert run.ended_at == 0
    await assert_nothing_is_lost(run)


async def test_a_clock_that_fails_at_a_first_result_ends_a_waiting_pass(
    autojump_clock,
):
    error = LookupError("no time")
    keeper = make_keeper("abc", clock=Breaking(trio.current_time, 5, raising(error)))
    run = Run(keeper, exports_buffer=0)
    run.send("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.keep)
        await trio.sleep(1.5)
        run.send("a", "c", "b")
    assert run.raised is error
    assert run.ended_at == 1.5
    assert run.received() == []
    await assert_nothing_is_lost(run)


async def test_exports_before_a_failing_label_are_received(autojump_clock):
    run = await run_until_it_breaks(Call("label", zone, 4), raising(LookupError()))
    assert [(e.timestamp, e.labels["dst"], e.metrics["total"]) for e in run.received()] == [
        (1, "a", 1),
        (1, "b", 1),
        (2, "a", 1),
    ]


async def test_the_error_of_a_label_is_raised_after_the_exports_before_it_are_received(
    autojump_clock,
):
    error = LookupError("no zone")
    keeper = keeper_with(Call("label", zone, 3), raising(error), targets="abcd")
    run = Run(keeper, exports_buffer=0)
    run.send("a", "b", "c", "d")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.keep)
        await trio.sleep(5.5)
        assert run.raised is None
        assert totals(run.received()) == {"a": 1, "b": 1}
    assert run.raised is error
    assert run.ended_at == 5.5
    assert keeper.statistics().exports_sent == 2


@pytest.mark.parametrize("call", [Call("clock", int, 4), Call("label", zone, 2)])
@pytest.mark.parametrize("make_error", ERRORS)
async def test_an_exception_in_the_last_pass_is_raised_and_loses_only_exports(
    autojump_clock, call, make_error
):
    error = make_error()
    run = Run(keeper_with(call, raising(error)))
    run.send("a", "b")
    run.results.close()
    await run.keep()
    assert is_same(run.raised, error)
    await assert_nothing_is_lost(run)


@pytest.mark.parametrize("call", [Call("clock", int, 4), Call("label", zone, 2)])
@pytest.mark.parametrize("make_error", ERRORS)
async def test_an_exception_in_the_flush_replaces_the_cancellation(
    autojump_clock, call, make_error
):
    error = make_error()
    run = Run(keeper_with(call, raising(error), flush_timeout=5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.keep)
        await trio.sleep(0.5)
        run.send("a", "b")
        await wait_all_tasks_blocked()
        run.scope.cancel()
    assert is_same(run.raised, error)
    assert run.ended_at == 0.5
    await assert_nothing_is_lost(run)


@pytest.mark.parametrize(
    ("call", "fault", "error"),
    [
        (call, *fault)
        for call in (Call("clock", int, 4), Call("label", zone, 2))
        for fault in (
            (raising(LookupError()), LookupError),
            *(rubbish[:2] for rubbish in RUBBISH[call.option]),
        )
    ],
)
async def test_a_failing_snapshot_raises_and_changes_nothing(
    autojump_clock, call, fault, error
):
    run = Run(keeper_with(call, fault))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.keep)
        run.send("a", "b")
        await trio.sleep(0.5)
        with pytest.raises(error):
            run.keeper.snapshot()
        mend(run.keeper)
        assert totals(run.keeper.snapshot()) == {"a": 1, "b": 1}
        await trio.sleep(1)
        assert totals(run.received()) == {"a": 1, "b": 1}
        run.results.close()
    assert run.raised is None
    await assert_nothing_is_lost(run)


@attrs.frozen
class Exiting(Result):
    """A result that ends the program instead of returning its metrics."""

    def metrics(self):
        raise SystemExit


async def test_a_result_that_raises_system_exit_loses_no_other(autojump_clock):
    run = Run(make_keeper("ab"))
    run.send("a", "b")
    run.results.send_nowait(Exiting("a", {}))
    run.send("a", "b", "b")
    await run.keep()
    assert type(run.raised) is SystemExit
    await assert_nothing_is_lost(run)


# Consumers of exports


async def take(run, count):
    for _ in range(count):
        await run.exports.receive()
    await wait_all_tasks_blocked()


async def before_the_first_pass(run):
    await trio.sleep(0.5)


async def within_a_pass(run):
    await take(run, 2)


async def after_a_pass(run):
    await take(run, 3)
    await trio.sleep(0.5)


async def within_a_later_pass(run):
    await take(run, 4)


async def before_the_last_pass(run):
    await after_a_pass(run)
    run.results.close()


async def within_the_last_pass(run):
    await after_a_pass(run)
    run.results.close()
    await take(run, 1)


async def within_the_flush(run):
    await after_a_pass(run)
    run.scope.cancel()
    await take(run, 1)


def run_for_a_consumer(**options):
    run = Run(make_keeper("abc", **options), exports_buffer=0)
    run.send("a", "b", "c")
    return run


@pytest.mark.parametrize(
    ("phase", "late", "raised", "at"),
    [
        (before_the_first_pass, "ab", trio.BrokenResourceError, 1),
        (within_a_pass, "ab", trio.BrokenResourceError, 1),
        (after_a_pass, "ab", trio.BrokenResourceError, 2),
        (within_a_later_pass, "ab", trio.BrokenResourceError, 2),
        (before_the_last_pass, "", trio.BrokenResourceError, 1.5),
        (within_the_last_pass, "", trio.BrokenResourceError, 1.5),
        (within_the_flush, "", trio.Cancelled, 1.5),
    ],
)
async def test_a_consumer_that_closes_its_channel_loses_only_exports(
    autojump_clock, phase, late, raised, at
):
    run = run_for_a_consumer(flush_timeout=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.keep)
        await phase(run)
        run.send(*late)
        run.exports.close()
    assert type(run.raised) is raised
    assert run.ended_at == at
    await assert_nothing_is_lost(run)


async def fail(run, phase):
    """Consume, and close the channel with an exception."""
    with run.exports:
        await phase(run)
        raise LookupError


@pytest.mark.parametrize(
    ("phase", "raised"),
    [
        (before_the_first_pass, trio.Cancelled),
        (within_a_pass, trio.BrokenResourceError),
        (after_a_pass, trio.Cancelled),
        (within_a_later_pass, trio.BrokenResourceError),
        (within_the_last_pass, trio.BrokenResourceError),
    ],
)
async def test_a_consumer_that_raises_cancels_the_keeper_and_loses_only_exports(
    autojump_clock, phase, raised
):
    run = run_for_a_consumer()
    with pytest.RaisesGroup(LookupError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.keep)
            nursery.start_soon(fail, run, phase)
    assert type(run.raised) is raised
    await assert_nothing_is_lost(run)


async def test_the_exception_of_a_consumer_is_in_a_group_with_that_of_the_keeper(
    autojump_clock,
):
    run = run_for_a_consumer()
    with pytest.RaisesGroup(LookupError, trio.BrokenResourceError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.keeper.run, run._results, run._exports)
            nursery.start_soon(fail, run, within_a_pass)


async def test_the_flush_waits_for_a_consumer_that_raised_but_left_its_channel_open(
    autojump_clock,
):
    run = run_for_a_consumer(flush_timeout=5)

    async def consume():
        await within_a_pass(run)
        raise LookupError

    with pytest.RaisesGroup(LookupError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.keep)
            nursery.start_soon(consume)
    assert type(run.raised) is trio.Cancelled
    assert run.ended_at == 6
    await assert_nothing_is_lost(run)


# Probers


async def well(endpoint):
    await trio.lowlevel.checkpoint()


async def raised_by(prober, results, *, within=10):
    """Run `prober`, and return what it raised, or None if it has not ended in time."""
    with trio.move_on_after(within):
        try:
            await prober.run(results)
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever left it
            return error
    return None


async def assert_it_is_over_and_can_run_again(prober, results):
    if isinstance(prober.targets, Breaking):
        prober.targets.mend()
    assert results.statistics().open_send_channels == 0
    assert prober.statistics().running == prober.statistics().targets == 0
    before = prober.statistics().results_sent
    send, receive = trio.open_memory_channel[ProbeResult](math.inf)
    with receive:
        assert await raised_by(prober, send, within=0.99) is None
    assert prober.statistics().results_sent == before + 2


@pytest.mark.parametrize("make_error", ERRORS)
@pytest.mark.parametrize(("nth", "at"), [(1, 0), (2, 1), (4, 3)])
async def test_a_prober_raises_what_targets_raised(autojump_clock, nth, at, make_error):
    error = make_error()
    targets = Breaking(lambda: [A, B], nth, raising(error))
    prober = Prober(well, targets, interval=1, timeout=0.5, clock=trio.current_time)
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    assert is_same(await raised_by(prober, send), error)
    assert trio.current_time() == at
    assert results.statistics().current_buffer_used == 2 * at
    await assert_it_is_over_and_can_run_again(prober, results)


@pytest.mark.parametrize("rubbish", RUBBISH["targets"])
@pytest.mark.parametrize(("nth", "at"), [(1, 0), (2, 1), (4, 3)])
async def test_invalid_targets_are_an_error_of_a_prober(autojump_clock, nth, at, rubbish):
    fault, error, message = rubbish
    targets = Breaking(lambda: [A, B], nth, fault)
    prober = Prober(well, targets, interval=1, timeout=0.5, clock=trio.current_time)
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    raised = await raised_by(prober, send)
    assert type(raised) is error
    assert message in str(raised)
    assert trio.current_time() == at
    await assert_it_is_over_and_can_run_again(prober, results)


async def test_a_failure_of_targets_cancels_running_probes(autojump_clock):
    probe = ScriptedProbe([Hang()])
    targets = Breaking(lambda: [A, B], 2, raising(LookupError()))
    prober = Prober(probe, targets, interval=1, timeout=5, clock=trio.current_time)
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    assert type(await raised_by(prober, send)) is LookupError
    assert trio.current_time() == 1
    assert len(probe.calls) == 2
    assert results.statistics().current_buffer_used == 0


class BaseError(BaseException):
    """Not an `Exception`, like the cancellations of other frameworks."""


def grouped(error):
    return BaseExceptionGroup("two", [OSError(), error])


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseError])
async def test_a_base_exception_of_a_probe_is_raised_bare(autojump_clock, kind, groups):
    bare = error = kind()
    for _ in range(groups):
        error = grouped(error)
    calls = 0

    async def probe(endpoint):
        nonlocal calls
        calls += 1
        await trio.lowlevel.checkpoint()
        if calls == 4:
            raise error

    prober = Prober(probe, lambda: [A, B], interval=1, timeout=0.5, clock=trio.current_time)
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    assert await raised_by(prober, send) is bare
    assert results.statistics().current_buffer_used == 3
    await assert_it_is_over_and_can_run_again(prober, results)


@pytest.mark.parametrize(
    "make_error",
    [
        trio.WouldBlock,
        trio.EndOfChannel,
        trio.ClosedResourceError,
        trio.BrokenResourceError,
        trio.TooSlowError,
        StopIteration,
        StopAsyncIteration,
    ],
)
async def test_an_exception_that_trio_or_python_uses_is_a_failure_like_any_other(
    autojump_clock, make_error
):
    async def probe(endpoint):
        await trio.lowlevel.checkpoint()
        raise make_error

    prober = Prober(probe, lambda: [A], interval=1, timeout=0.5, clock=trio.current_time)
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    assert await raised_by(prober, send, within=2.99) is None
    # Python does not let a coroutine raise StopIteration.
    name = "RuntimeError" if make_error is StopIteration else make_error.__name__
    for _ in range(3):
        metrics = results.receive_nowait().metrics()
        assert (metrics["failure"], metrics["error"]) == (1, Map("error", {name: 1}))


async def test_a_probe_that_swallows_its_cancellation_does_not_keep_the_prober_running(
    autojump_clock,
):
    async def probe(endpoint):
        with pytest.raises(trio.Cancelled):
            await trio.sleep_forever()
        return {"size": 5}

    prober = Prober(probe, lambda: [A, B], interval=1, timeout=5, clock=trio.current_time)
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    with trio.move_on_after(1.5), pytest.raises(trio.Cancelled):
        await prober.run(send)
    assert trio.current_time() == 1.5
    assert results.statistics().current_buffer_used == 0
    assert prober.statistics().running == 0


@pytest.mark.parametrize(
    ("rubbish", "reason"),
    [
        (None, "type"),
        ([1], "type"),
        (-1, "negative"),
        (math.nan, "not-finite"),
        (Map("dst", {"x": 1}), "map-name"),
    ],
)
async def test_a_run_with_a_value_that_cannot_be_added_is_rejected_and_no_other(
    autojump_clock, rubbish, reason
):
    async def probe(endpoint):
        await trio.lowlevel.checkpoint()
        return {"size": rubbish if endpoint == B else 5}

    prober = Prober(probe, lambda: [A, B], interval=1, timeout=0.5, clock=trio.current_time)
    run = Run(make_keeper("ab"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.keep)
        nursery.start_soon(prober.run, run.results)
        await trio.sleep(3.99)
        nursery.cancel_scope.cancel()
    (kept,) = run.keeper.snapshot()
    assert kept.labels["dst"] == "a"
    assert (kept.metrics["total"], kept.metrics["size"]) == (4, 20)
    assert run.keeper.statistics().results_rejected == {reason: 4}
