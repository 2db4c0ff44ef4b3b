"""The queue of an output that lags: the queue export of each series."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import EventMetrics
from trio_statskeeper._conflating import ConflatingQueue


def export(target: str, total: int, interval: float = 10) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, interval)


def waiting(queue: ConflatingQueue) -> list[tuple[str, int]]:
    found = [(e.labels["dst"], e.metrics["total"]) for e in queue.first(100)]
    assert len(queue) == len(found)
    return found


async def test_a_newer_export_replaces_the_older_one_in_its_place(autojump_clock):
    queue = ConflatingQueue()
    for each in (export("a", 1), export("b", 1), export("a", 2)):
        queue.put(each)
    assert waiting(queue) == [("a", 2), ("b", 1)]
    assert [e.labels["dst"] for e in queue.first(1)] == ["a"]


async def test_an_export_that_is_done_is_removed(autojump_clock):
    queue = ConflatingQueue()
    queue.put(export("a", 1))
    queue.put(export("b", 1))
    queue.done(queue.first(1))
    assert waiting(queue) == [("b", 1)]


async def test_an_export_that_replaced_one_in_flight_moves_to_the_end(autojump_clock):
    queue = ConflatingQueue()
    queue.put(export("a", 1))
    queue.put(export("b", 1))
    under_way = queue.first(1)
    queue.put(export("a", 2))
    queue.done(under_way)
    assert waiting(queue) == [("b", 1), ("a", 2)]


async def test_an_export_in_flight_may_be_dropped_before_it_is_done(
    autojump_clock,
):
    queue = ConflatingQueue()
    queue.put(export("stale", 1))
    under_way = queue.first(1)
    await trio.sleep(30.5)
    queue.put(export("a", 1))
    queue.put(export("a", 2))
    assert len(queue) == 1
    queue.done(under_way)
    assert waiting(queue) == [("a", 2)]


async def test_a_target_is_stale_after_three_of_its_own_intervals(autojump_clock):
    queue = ConflatingQueue()
    queue.put(export("short", 1, interval=1))
    await trio.sleep(2.5)
    queue.put(export("a", 1))
    assert waiting(queue) == [("short", 1), ("a", 1)]
    await trio.sleep(1)
    queue.put(export("a", 2))
    assert waiting(queue) == [("a", 2)]


async def test_stale_exports_are_dropped_whatever_the_intervals_of_others(autojump_clock):
    queue = ConflatingQueue()
    queue.put(export("long", 1, interval=1000))
    for number in range(5):
        queue.put(export(f"stale {number}", 1))
    await trio.sleep(30.5)
    for total in range(4):
        queue.put(export("a", total))
    assert len(queue) == 2


async def test_waiting_drops_stale_exports(
    autojump_clock,
):
    queue = ConflatingQueue()
    for number in range(2000):
        queue.put(export(f"stale {number}", 1))
    await trio.sleep(30.5)
    queue.put(export("a", 1))
    await queue.wait()
    assert len(queue) == 1
    assert waiting(queue) == [("a", 1)]


async def test_stale_exports_do_not_end_the_waiting(autojump_clock):
    queue = ConflatingQueue()
    queue.put(export("newer", 1))
    for number in range(10):
        queue.put(export(f"stale {number}", 1))
    await trio.sleep(30.5)
    queue.put(export("newer", 2))
    queue.done(queue.first(1))
    assert len(queue) > 0
    with trio.move_on_after(1) as waited:
        await queue.wait()
    assert waited.cancelled_caught


async def test_waiting_ends_when_an_export_arrives_or_the_queue_ends(nursery):
    queue = ConflatingQueue()
    ended = []

    async def wait() -> None:
        await queue.wait()
        ended.append(len(queue))

    for come in (lambda: queue.put(export("a", 1)), queue.end):
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not ended
        come()
        await wait_all_tasks_blocked()
        queue.done(queue.first(1))
        assert ended
        ended.clear()


async def test_waiting_ends_at_once_if_the_queue_has_an_export():
    queue = ConflatingQueue()
    queue.put(export("a", 1))
    await queue.wait()
    queue.done(queue.first(1))
    queue.end()
    await queue.wait()
    assert queue.ended
    assert queue.first(1) == []
