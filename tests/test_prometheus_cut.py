"""The Prometheus output: a scrape shows one pass of each keeper (rule 3)."""

from __future__ import annotations

import itertools
import weakref

import attrs
import pytest
import trio
from helpers import make_keeper, one
from scraping import collected, export, feed, parsed, samples

from trio_statskeeper import Endpoint, EventMetrics, ProbeResult, _pacing
from trio_statskeeper.prometheus import PrometheusExporter, _cut, _exporter


def of_pass(number: int, dst: str, *, ends: bool = False, **labels: str) -> EventMetrics:
    each = export({"total": number}, at=number, dst=dst, **labels)
    return attrs.evolve(each, ends_pass=ends)


async def shown(exporter: PrometheusExporter, label: str = "dst") -> dict[str, int]:
    return {
        line.split(f'{label}="')[1][0]: int(line.split()[-1])
        for line in await samples(exporter)
    }


async def test_the_totals_of_a_scrape_add_up_to_what_was_accepted_at_one_tick(
    autojump_clock, nursery, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)  # passes and scrapes take many turns
    keys = [str(number) for number in range(40)]
    at_ticks = {0}

    def targets():  # called at each tick
        at_ticks.add(keeper.statistics().results_accepted)
        return [Endpoint(key) for key in keys]

    async def send_results():
        for tick in range(1, 100):
            await trio.sleep_until(tick - 0.001)
            for key in keys * 3:
                await results_send.send(one(key))

    keeper = make_keeper(targets)
    exporter = PrometheusExporter()
    results_send, results = trio.open_memory_channel[ProbeResult](0)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    nursery.start_soon(keeper.run, results, exports_send)
    nursery.start_soon(exporter.run, exports)
    nursery.start_soon(send_results)
    sums = set()
    for tick in range(1, 100):
        await trio.sleep_until(tick)
        for _ in range(tick * 2):
            await trio.lowlevel.checkpoint()
        in_registry = [line for line in collected(exporter).splitlines() if "dst=" in line]
        for lines in in_registry, await samples(exporter):
            assert len(lines) in {0, 40}
            sums.add(sum(round(float(line.split()[-1])) for line in lines))
    assert sums <= at_ticks
    assert len(sums) > 90


async def test_a_pass_is_shown_once_its_end_has_come(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, of_pass(1, "a"), of_pass(1, "b"))
    assert await shown(exporter) == {}
    await feed(exporter, of_pass(1, "c", ends=True), of_pass(2, "a"))
    assert await shown(exporter) == {"a": 1, "b": 1, "c": 1}
    await feed(exporter, of_pass(2, "c", ends=True))
    assert await shown(exporter) == {"a": 2, "b": 1, "c": 2}


async def test_each_keeper_has_passes_of_its_own(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, of_pass(1, "a", probe="x", ends=True), of_pass(1, "b", probe="y"))
    await feed(exporter, of_pass(2, "a", probe="x"), of_pass(1, "c", probe="y", ends=True))
    assert await shown(exporter) == {"a": 1, "b": 1, "c": 1}


async def test_no_part_of_a_pass_is_shown_while_the_rest_waits_to_be_rendered(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(_exporter, "_RENDERING_TIMEOUT", 0)
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    exporter = PrometheusExporter()
    page = exporter._page
    page.use(trio.lowlevel.current_clock())
    for dst in "abc":
        page.put(of_pass(1, dst, ends=dst == "c"))
    while page.waiting:
        page.render_first()
    for number in 2, 3:  # of which the third takes the place of a part of the second
        for dst in "abc":
            page.put(of_pass(number, dst, ends=dst == "c"))
        page.render_first()
    assert await shown(exporter) == {"a": 1, "b": 1, "c": 1}
    while page.waiting:
        page.render_first()
    assert sum(parsed(collected(exporter))["probe"][2].values()) == 9
    assert await shown(exporter) == {"a": 3, "b": 3, "c": 3}


async def test_a_pass_that_took_the_place_of_another_is_shown_once_it_is_complete(
    autojump_clock,
):
    exporter = PrometheusExporter()
    page = exporter._page
    page.use(trio.lowlevel.current_clock())
    for number in 1, 2:
        for dst in "ab":
            page.put(of_pass(number, dst, ends=dst == "b"))
    page.put(of_pass(3, "a"))
    while page.waiting:
        page.render_first()
    assert parsed(collected(exporter)).keys() <= {
        "statskeeper_last_export_timestamp_seconds"
    }
    page.put(of_pass(3, "b", ends=True))
    page.render_first()
    assert await shown(exporter) == {"a": 3, "b": 3}


async def test_without_an_end_for_three_intervals_what_came_is_shown(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, of_pass(1, "a", ends=True))
    await trio.sleep(29)
    await feed(exporter, of_pass(2, "a"))
    await trio.sleep(20)  # a pass that begins late has as much time
    await feed(exporter, of_pass(3, "a"))
    await trio.sleep(9)
    assert await shown(exporter) == {"a": 1}
    await trio.sleep(1)
    assert await shown(exporter) == {"a": 3}
    for number in range(3, 90):  # and in a registry
        await trio.sleep(1)
        await feed(exporter, of_pass(number, "a"))
    (total,) = parsed(collected(exporter))["probe"][2].values()
    assert 60 <= total < 90


async def test_a_family_that_no_target_of_the_newest_pass_has_is_not_shown(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, of_pass(1, "a"), of_pass(1, "b", ends=True))
    await feed(exporter, export({"x": 1}, at=2, dst="a"))
    assert [line.split("{")[0] for line in await samples(exporter)] == [
        "probe_total",
        "probe_x_total",
    ]
    await feed(exporter, export({"x": 1}, at=2, dst="b"))
    assert {line.split("{")[0] for line in await samples(exporter)} == {"probe_x_total"}


@pytest.fixture
def alive(monkeypatch):
    """The targets that are in memory."""
    alive = weakref.WeakSet[_cut.Target]()
    render = _cut.Target.render

    def render_and_note(target, exposition):
        alive.add(target)
        render(target, exposition)

    monkeypatch.setattr(_cut.Target, "render", render_and_note)
    return alive


@pytest.mark.parametrize("steps", [1, 3, 7, None])
async def test_what_is_not_shown_any_more_is_freed_in_small_steps(
    autojump_clock, alive, steps
):
    exporter = PrometheusExporter()
    page = exporter._page
    page.use(trio.lowlevel.current_clock())
    most_freed = 0
    scrapes = []
    for number in range(1, 6):
        for index in range(1_000):
            page.put(of_pass(number, str(index), ends=index == 999))
        scrapes.append(page.scrape(exporter._text, frozenset()))
        next(scrapes[-1], None)
        while page.waiting:
            before = len(alive)
            page.render_first()
            if len(page.waiting) == 200 and number > 1:
                # The client of the scrape before goes away, or has it all.
                for _ in itertools.islice(scrapes[0], steps):
                    pass
                del scrapes[0]
            most_freed = max(most_freed, before - len(alive))
    assert most_freed <= 300  # of 1,000
    assert len(alive) < 3_000


@pytest.mark.parametrize("targets", [1, 300])
@pytest.mark.parametrize("end", ["each export", "the last export"])
async def test_memory_does_not_grow_with_passes_and_scrapes(
    autojump_clock, alive, targets, end
):
    exporter = PrometheusExporter()
    for number in range(1, 50):
        for index in range(targets):
            ends = end == "each export" or index == targets - 1
            await feed(exporter, of_pass(number, str(index), ends=ends))
        for _ in range(4):
            await samples(exporter)
    assert len(alive) <= 3 * targets
    assert len(exporter._page._retired) <= 5_000


async def test_a_keeper_that_is_gone_for_a_day_is_forgotten(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, export(probe="x"))
    await trio.sleep(60)
    await feed(exporter, export(probe="y"))
    await trio.sleep(86_390)
    assert {key[1] for key in exporter._page.keepers} == {"x", "y"}
    await samples(exporter)
    assert {key[1] for key in exporter._page.keepers} == {"y"}
