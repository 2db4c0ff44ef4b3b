"""Newest: what an output that lags behind still has to get."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import EventMetrics
from trio_statskeeper._newest import Newest


def export(target: str, total: int, interval: float = 10) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, interval)


def waiting(newest: Newest) -> list[tuple[str, int]]:
    found = [(e.labels["dst"], e.metrics["total"]) for e in newest.first(100)]
    assert len(newest) == len(found)
    return found


async def test_a_newer_export_takes_the_place_of_the_older_one(autojump_clock):
    newest = Newest()
    for each in (export("a", 1), export("b", 1), export("a", 2)):
        newest.put(each)
    assert waiting(newest) == [("a", 2), ("b", 1)]
    assert [e.labels["dst"] for e in newest.first(1)] == ["a"]


async def test_what_is_done_waits_no_more(autojump_clock):
    newest = Newest()
    newest.put(export("a", 1))
    newest.put(export("b", 1))
    newest.done(newest.first(1))
    assert waiting(newest) == [("b", 1)]


async def test_what_replaced_an_export_under_way_waits_at_the_end(autojump_clock):
    newest = Newest()
    newest.put(export("a", 1))
    newest.put(export("b", 1))
    under_way = newest.first(1)
    newest.put(export("a", 2))
    newest.done(under_way)
    assert waiting(newest) == [("b", 1), ("a", 2)]


async def test_an_export_under_way_that_is_dropped_meanwhile_is_done_without_harm(
    autojump_clock,
):
    newest = Newest()
    newest.put(export("gone", 1))
    under_way = newest.first(1)
    await trio.sleep(30.5)
    newest.put(export("a", 1))
    newest.put(export("a", 2))
    assert len(newest) == 1
    newest.done(under_way)
    assert waiting(newest) == [("a", 2)]


async def test_a_target_is_gone_after_three_of_its_own_intervals(autojump_clock):
    newest = Newest()
    newest.put(export("short", 1, interval=1))
    await trio.sleep(2.5)
    newest.put(export("a", 1))
    assert waiting(newest) == [("short", 1), ("a", 1)]
    await trio.sleep(1)
    newest.put(export("a", 2))
    assert waiting(newest) == [("a", 2)]


async def test_what_is_gone_is_dropped_in_time_whatever_its_interval(autojump_clock):
    newest = Newest()
    newest.put(export("long", 1, interval=1000))
    for number in range(5):
        newest.put(export(f"gone {number}", 1))
    await trio.sleep(30.5)
    for total in range(4):
        newest.put(export("a", total))
    assert len(newest) == 2


async def test_before_the_next_export_is_taken_those_that_are_gone_are_dropped(
    autojump_clock,
):
    newest = Newest()
    for number in range(2000):
        newest.put(export(f"gone {number}", 1))
    await trio.sleep(30.5)
    newest.put(export("a", 1))
    await newest.wait()
    assert len(newest) == 1
    assert waiting(newest) == [("a", 1)]


async def test_an_export_is_waited_for_even_if_what_waits_already_is_stale(autojump_clock):
    newest = Newest()
    newest.put(export("newer", 1))
    for number in range(10):
        newest.put(export(f"stale {number}", 1))
    await trio.sleep(30.5)
    newest.put(export("newer", 2))
    newest.done(newest.first(1))
    assert len(newest) > 0
    with trio.move_on_after(1) as waited:
        await newest.wait()
    assert waited.cancelled_caught


async def test_waiting_ends_when_an_export_comes_or_no_more_come(nursery):
    newest = Newest()
    ended = []

    async def wait() -> None:
        await newest.wait()
        ended.append(len(newest))

    for come in (lambda: newest.put(export("a", 1)), newest.end):
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not ended
        come()
        await wait_all_tasks_blocked()
        newest.done(newest.first(1))
        assert ended
        ended.clear()


async def test_what_waits_already_is_not_waited_for():
    newest = Newest()
    newest.put(export("a", 1))
    await newest.wait()
    newest.done(newest.first(1))
    newest.end()
    await newest.wait()
    assert newest.ended
    assert newest.first(1) == []
