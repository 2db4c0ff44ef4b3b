"""Ticks lie on a grid, and missed ticks are counted: rule 6."""

from __future__ import annotations

import math

import pytest
import trio
from helpers import make_keeper, one, running
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper.testing import receive_exports


@pytest.mark.parametrize("interval", [0.1, 1 / 3, 0.7])
async def test_ticks_neither_drift_nor_repeat_nor_hang(autojump_clock, interval):
    await trio.sleep(12_345.678)
    start = trio.current_time()
    keeper = make_keeper(export_interval=interval)
    ticks = 10_000
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        timestamps = [(await run.exports.receive()).timestamp for _ in range(ticks)]
    assert timestamps == [start + k * interval for k in range(1, ticks + 1)]
    assert keeper.statistics().ticks_missed == 0


async def test_ticks_missed_because_of_a_slow_consumer_are_skipped_and_counted(
    autojump_clock,
):
    keeper = make_keeper()
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        await trio.sleep(1 + 3.5)
        exports = await receive_exports(run.exports, 3)
    assert [export.timestamp for export in exports] == [1, 5, 6]
    assert keeper.statistics().ticks_missed == 3


@pytest.mark.parametrize("interval", [1, 0.1, 1 / 3, 0.7])
async def test_a_tick_is_counted_as_missed_when_it_is_missed(mock_clock, interval):
    keeper = make_keeper(export_interval=interval)
    missed = []
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        await wait_all_tasks_blocked()
        for tick in range(1, 1_000):
            mock_clock.jump(interval * (tick + 0.5) - trio.current_time())
            await wait_all_tasks_blocked()
            missed.append(keeper.statistics().ticks_missed)
    assert missed == list(range(999))
    assert keeper.statistics().ticks_missed == 998  # also though the pass was cancelled


async def test_a_tick_at_the_instant_at_which_a_pass_ends_is_not_missed(
    autojump_clock,
):
    interval = 0.1
    await trio.sleep(12_345.678)
    start = trio.current_time()
    # Because of rounding, the tick seems past.
    tick = next(
        k
        for k in range(2, 1_000)
        if math.ceil((start + k * interval - start) / interval) > k
    )
    keeper = make_keeper(export_interval=interval)
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        await trio.sleep_until(start + tick * interval)
        timestamps = [(await run.exports.receive()).timestamp for _ in range(2)]
    assert timestamps == [start + interval, start + tick * interval]
    assert keeper.statistics().ticks_missed == tick - 2
