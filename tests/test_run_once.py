"""A prober that probes each target once."""

from __future__ import annotations

import itertools
import math

import pytest
import trio
import trio.testing
from probing import A, B, hanging, make_prober, running, slow, well

from trio_statskeeper import Endpoint, Map, Prober, ProbeResult, StatsKeeper, _pacing
from trio_statskeeper._runs import _TIMED_OUT

TARGETS = [Endpoint(str(i)) for i in range(50)]


async def run_once(prober: Prober) -> list[tuple[str, dict]]:
    """Have each target probed once; return target and metrics of what was sent."""
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    await prober.run_once(send)
    return [(result.target, dict(result.metrics())) async for result in results]


async def test_each_target_is_probed_once_without_delay_and_then_the_channel_is_closed(
    autojump_clock,
):
    await trio.sleep(12_345.678)
    start = trio.current_time()
    probe = slow(0.25)
    prober = make_prober(probe, TARGETS, interval=3_600)
    received = await run_once(prober)
    keys = [target.key for target in TARGETS]
    assert sorted(probe.calls) == sorted((start, key) for key in keys)
    assert sorted(key for key, _ in received) == sorted(keys)
    assert received[0][1] == {
        "total": 1,
        "success": 1,
        "failure": 0,
        "timeouts": 0,
        "inconclusive": 0,
        "latency": pytest.approx(0.25),
        "error": Map("error", {}),
    }
    assert trio.current_time() == pytest.approx(start + 0.25)
    statistics = prober.statistics()
    assert statistics.results_sent == len(TARGETS)
    assert statistics.targets == statistics.running == 0


async def test_no_more_probes_run_at_once_than_allowed_and_none_is_called_late(
    autojump_clock,
):
    prober = make_prober(slow(0.4), TARGETS, max_concurrent=5)
    received = await run_once(prober)
    assert trio.current_time() == pytest.approx(0.4 * 10)
    assert {metrics["success"] for _, metrics in received} == {1}
    assert prober.statistics().runs_late == prober.statistics().runs_missed == 0


async def test_of_two_targets_with_the_same_key_the_first_is_probed(autojump_clock):
    prober = make_prober(well, [A, B, Endpoint("a")])
    assert len(await run_once(prober)) == 2
    assert prober.statistics().duplicate_targets == 1


async def test_without_targets_it_returns_and_closes_the_channel(autojump_clock):
    assert await run_once(make_prober(well, [])) == []


async def test_a_run_that_hangs_is_cancelled_at_its_timeout(autojump_clock):
    prober = make_prober(hanging(), [A, B], timeout=lambda each: 1 if each == A else 3)
    assert await run_once(prober) == [("a", _TIMED_OUT), ("b", _TIMED_OUT)]
    assert trio.current_time() == 3


async def test_the_result_of_a_stuck_run_is_sent_at_its_deadline_and_its_end_awaited(
    autojump_clock,
):
    async def stubborn(endpoint: Endpoint) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)

    send, results = trio.open_memory_channel[ProbeResult](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_prober(stubborn).run_once, send)
        result = await results.receive()
        assert trio.current_time() == pytest.approx(0.5, abs=0.02)
        assert result.metrics() == _TIMED_OUT
        with pytest.raises(trio.EndOfChannel):
            await results.receive()
    assert trio.current_time() == 10


async def test_a_run_is_inconclusive_if_the_loop_stands_still(autojump_clock):
    async def probe(endpoint: Endpoint) -> None:
        autojump_clock.jump(5)
        await trio.lowlevel.checkpoint()

    ((_, metrics),) = await run_once(make_prober(probe))
    assert (metrics["inconclusive"], metrics["total"]) == (1, 0)


async def test_many_targets_are_started_in_steps(autojump_clock, monkeypatch):
    monkeypatch.setattr(_pacing, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(_pacing, "_STEP_TIME", 25)  # targets
    prober = make_prober(hanging(), [Endpoint(str(i)) for i in range(1_000)])
    send, _results = trio.open_memory_channel[ProbeResult](math.inf)
    running_then = [0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prober.run_once, send)
        while running_then[-1] < 1_000:
            await trio.lowlevel.checkpoint()
            running_then.append(prober.statistics().running)
        nursery.cancel_scope.cancel()
    steps = [after - before for before, after in itertools.pairwise(running_then)]
    assert max(steps) <= 2 * 25


async def test_it_may_run_again_and_run_may_follow(autojump_clock):
    prober = make_prober(well, [A, B])
    assert len(await run_once(prober)) == 2
    assert len(await run_once(prober)) == 2
    async with running(prober) as run:
        await trio.sleep(2)
        assert len(run.received()) == 4


async def test_it_is_refused_while_the_prober_runs_and_closes_nothing(autojump_clock):
    prober = make_prober(well)
    send, _results = trio.open_memory_channel[ProbeResult](1)
    async with running(prober):
        with pytest.raises(trio.BusyResourceError, match="already running"):
            await prober.run_once(send)
    assert send.statistics().open_send_channels == 1


async def test_the_prober_does_not_run_beside_it(autojump_clock):
    prober = make_prober(hanging())
    send, results = trio.open_memory_channel[ProbeResult](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prober.run_once, send.clone())
        await trio.sleep(0.1)
        with pytest.raises(trio.BusyResourceError, match="already running"):
            await prober.run(send)
        assert (await results.receive()).metrics() == _TIMED_OUT


async def test_when_cancelled_it_closes_its_channel_and_raises_a_bare_cancelled(
    autojump_clock,
):
    send, results = trio.open_memory_channel[ProbeResult](1)
    with trio.move_on_after(0.25), pytest.raises(trio.Cancelled):
        await make_prober(hanging()).run_once(send)
    with pytest.raises(trio.EndOfChannel):
        results.receive_nowait()


async def test_when_all_receivers_are_closed_it_raises_a_bare_error(autojump_clock):
    send, results = trio.open_memory_channel[ProbeResult](1)
    results.close()
    with pytest.raises(trio.BrokenResourceError):
        await make_prober(slow(), TARGETS).run_once(send)


async def test_exceptions_of_targets_are_raised_bare(autojump_clock):
    def targets() -> list[Endpoint]:
        raise LookupError("no targets")

    with pytest.raises(LookupError, match="no targets"):
        await run_once(make_prober(well, targets))


async def test_a_keeper_has_all_results_once_it_ends(autojump_clock):
    keeper = StatsKeeper("tcp", "x", [A, B].copy, export_interval=100)
    send, results = trio.open_memory_channel[ProbeResult](0)
    exports, received = trio.open_memory_channel(math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, results, exports)
        nursery.start_soon(Prober(slow(), keeper, interval=60, timeout=1).run_once, send)
    totals = {each.labels["dst"]: each.metrics["total"] async for each in received}
    assert totals == {"a": 1, "b": 1}
