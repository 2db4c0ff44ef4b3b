"""When a keeper asks for targets, and which it exports: rule 7."""

from __future__ import annotations

import trio
from helpers import make_keeper, one, running, totals

from trio_statskeeper import Endpoint


async def test_targets_are_asked_for_at_the_start_at_each_tick_and_for_the_last_pass(
    autojump_clock,
):
    asked = []

    def targets() -> list[Endpoint]:
        asked.append(trio.current_time())
        return []

    async with running(make_keeper(targets=targets)) as run:
        await trio.sleep(3.5)
        run.results.close()
        await trio.sleep(1)
    assert asked == [0, 1, 2, 3, 3.5]


async def test_exports_follow_the_order_of_the_targets(autojump_clock):
    async with running(make_keeper(["b", "c", "a"])) as run:
        run.send(one("a"), one("b"), one("c"))
        await trio.sleep(1.5)
        assert list(totals(run.received())) == ["b", "c", "a"]


async def test_a_target_without_totals_is_skipped(autojump_clock):
    async with running(make_keeper(["a", "b", "c"])) as run:
        run.send(one("b"))
        await trio.sleep(1.5)
        assert list(totals(run.received())) == ["b"]


async def test_of_two_targets_with_the_same_key_the_first_wins(
    autojump_clock,
):
    keeper = make_keeper(
        targets=lambda: [
            Endpoint("a", labels={"zone": "1"}),
            Endpoint("a", labels={"zone": "2"}),
        ],
        additional_labels={"zone": "@target.label.zone@"},
    )
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.labels["zone"] == "1"
    assert keeper.statistics().duplicate_targets == 2  # at the start, and at the tick


async def test_targets_with_the_same_name_differ_by_their_ports(autojump_clock):
    keeper = make_keeper(targets=lambda: (Endpoint("a", 80), Endpoint("a", 443)))
    async with running(keeper) as run:
        run.send(one("a:80"), one("a:443"), one("a:443"))
        await trio.sleep(1.5)
        assert totals(run.received()) == {"a:80": 1, "a:443": 2}
