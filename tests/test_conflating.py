"""The queue of an output that lags: the newest export of each series."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import EventMetrics
from trio_statskeeper._conflating import ConflatingQueue


def export(target: str, total: int, interval: float = 10) -> EventMetrics:
    return EventMetrics(total, 0, {"dst": target}, {"total": total}, 1, interval)


def of_pass(
    number: int, target: str, *, ends: bool = False, probe: str = ""
) -> EventMetrics:
    labels = {"probe": probe, "dst": target}
    return EventMetrics(number, 0, labels, {"total": number}, ends_pass=ends)


def ends(queue: ConflatingQueue) -> list[tuple[str, float, bool]]:
    return [(e.labels["dst"], e.timestamp, e.ends_pass) for e in queue.first(100)]


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


async def test_no_pass_ends_once_parts_of_two_are_mixed(autojump_clock):
    queue = ConflatingQueue()
    queue.put(of_pass(1, "a", ends=True, probe="other"))
    for export in (of_pass(1, "b"), of_pass(1, "c"), of_pass(1, "d", ends=True)):
        queue.put(export)
    queue.put(of_pass(2, "b"))
    assert ends(queue) == [
        ("a", 1, True),
        ("b", 2, False),
        ("c", 1, False),
        ("d", 1, False),
    ]
    queue.put(of_pass(2, "c"))
    queue.put(of_pass(2, "d", ends=True))
    assert ends(queue) == [
        ("a", 1, True),
        ("b", 2, False),
        ("c", 2, False),
        ("d", 2, False),
    ]


async def test_passes_end_again_once_the_queue_was_empty(autojump_clock):
    queue = ConflatingQueue()
    for number in 1, 2:
        queue.put(of_pass(number, "a"))
        queue.put(of_pass(number, "b", ends=True))
    queue.done(queue.first(2))
    queue.put(of_pass(3, "a"))
    queue.put(of_pass(3, "b", ends=True))
    assert ends(queue) == [("a", 3, False), ("b", 3, True)]


async def test_an_end_that_was_taken_is_not_put_back(autojump_clock):
    queue = ConflatingQueue()
    queue.put(of_pass(1, "a", ends=True))
    queue.put(of_pass(1, "b", probe="other"))
    queue.done(queue.first(1))
    queue.put(of_pass(2, "c"))
    queue.put(of_pass(3, "c"))
    assert ends(queue) == [("b", 1, False), ("c", 3, False)]


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
