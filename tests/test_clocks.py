"""Timestamps increase, whatever the clock does: rule 14."""

from __future__ import annotations

import itertools
import logging

import pytest
import trio
from helpers import make_keeper, one, running

from trio_statskeeper import Endpoint, StatsKeeper


async def test_timestamps_increase_by_a_millisecond_while_the_clock_is_behind(
    autojump_clock,
):
    times = iter([90, 100, 50, 200, 150, 200.0001, 200.5])
    keeper = make_keeper(clock=lambda: next(times))
    async with running(keeper) as run:
        run.send(one("a"))  # at 100, after the start at 90
        await trio.sleep(5.5)
        exports = run.received()
    timestamps = [export.timestamp for export in exports]
    assert timestamps == pytest.approx([100, 200, 200.001, 200.002, 200.5], abs=1e-6)
    steps = [after - before for before, after in itertools.pairwise(timestamps)]
    assert min(steps) >= 0.001
    assert {export.start_timestamp for export in exports} == {100}


@pytest.mark.parametrize("reading", [-1e9, 1e-300, 1.7e9, 1e300])
async def test_timestamps_increase_while_the_clock_stands_still(autojump_clock, reading):
    keeper = make_keeper(clock=lambda: reading)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(100.5)
        timestamps = [export.timestamp for export in run.received()]
    assert all(before < after for before, after in itertools.pairwise(timestamps))


async def test_a_clock_set_back_and_its_recovery_are_logged_once(autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    keeper = make_keeper(clock=lambda: trio.current_time() - behind)
    behind = -7200.0
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        assert keeper.statistics().clock_behind == 0
        behind = -4.0
        await trio.sleep(2)
        assert keeper.statistics().clock_behind == pytest.approx(7201.001 - 7)
        behind = -7200.0
        await trio.sleep(2)
        assert keeper.statistics().clock_behind == 0
    behind_by, recovered = caplog.records
    assert behind_by.module == recovered.module == "_clocks"
    assert behind_by.getMessage() == (
        "http/homepage: clock is 7195.000 s behind the newest timestamp; until it has "
        "caught up, timestamps increase by 1 ms per pass"
    )
    assert recovered.getMessage() == ("http/homepage: clock recovered")


async def test_a_snapshot_does_not_change_the_timestamps_of_passes(autojump_clock):
    keeper = make_keeper(clock=lambda: trio.current_time() + ahead)
    ahead = 100
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        ahead = 1_000
        assert [export.timestamp for export in keeper.snapshot()] == [1_001.5]
        ahead = 0
        assert [export.timestamp for export in keeper.snapshot()] == [101]
        ahead = 100
        await trio.sleep(1)
        assert [export.timestamp for export in run.received()] == [101, 102]


async def test_by_default_timestamps_are_unix_time(autojump_clock):
    keeper = StatsKeeper("http", "homepage", lambda: [Endpoint("a")], export_interval=1)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.timestamp >= export.start_timestamp > 1_700_000_000
