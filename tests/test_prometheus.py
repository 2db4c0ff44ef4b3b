"""The Prometheus output: what a scrape shows."""

from __future__ import annotations

import errno
import io
import logging
import math
import re
import socket
import sys
from contextlib import suppress
from types import SimpleNamespace

import httpx2
import prometheus_client
import pytest
import trio
from h2.connection import H2Connection
from h2.settings import SettingCodes
from helpers import channel_of, make_keeper, one, running, serve
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_fd_to_metric_families
from prometheus_client.parser import text_string_to_metric_families
from strategies import texts, values
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_statskeeper import Distribution, EventMetrics, Gauge, Map, Prober, _pacing
from trio_statskeeper.prometheus import PrometheusExporter, _exporter, _page, _server

LABELS = {"ptype": "http", "probe": "homepage", "dst": "a"}
LATENCY = "Distribution of latency over all probe runs, in seconds."
IN_TEXT = 'ptype="http",probe="homepage",dst="a"'


def export(metrics=None, at=5.0, start=2.0, interval=10.0, unit=1.0, **labels):
    metrics = {"total": 1} if metrics is None else metrics
    return EventMetrics(at, start, LABELS | labels, metrics, unit, interval)


async def scrape(exporter, path="/metrics", method="GET"):
    """Ask the exporter as an ASGI server does; return status, headers and body."""
    events = []

    async def send(event):
        await trio.lowlevel.checkpoint()
        events.append(event)

    scope = {"type": "http", "path": path, "method": method}
    await _server.Server(exporter._scrape).answer(scope, trio.sleep_forever, send)
    start, *body = events
    assert [event.get("more_body", False) for event in body] == [
        *[True] * (len(body) - 1),
        False,
    ]
    text = b"".join(event.get("body", b"") for event in body).decode()
    return start["status"], dict(start["headers"]), text


async def page(exporter):
    """Return the lines of a scrape, but not those that tell of the keeper."""
    _, _, text = await scrape(exporter)
    return [line for line in text.splitlines() if "last_export" not in line]


async def samples(exporter):
    return [line for line in await page(exporter) if not line.startswith("#")]


async def feed(exporter, *exports):
    await exporter.run(channel_of(*exports))


def collected(exporter):
    """Return what a registry of `prometheus_client` makes of it."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(exporter)
    return prometheus_client.generate_latest(registry).decode()


def parsed(text):
    """Return all that prometheus_client reads from a scrape, in no order."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.name not in found
        in_family = {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for sample in family.samples
        }
        assert len(in_family) == len(family.samples)
        found[family.name] = (family.type, family.documentation, in_family)
    return found


# What is shown


async def test_before_any_export_there_is_nothing_to_show():
    assert await page(PrometheusExporter()) == []


@pytest.mark.parametrize(
    ("metric", "value", "lines"),
    [
        ("total", 3, ["probe_total{} 3"]),
        ("success", 2.5, ["probe_success_total{} 2.5"]),
        ("big", 2**63 + 1, ["probe_big_total{} 9223372036854775809"]),
        ("yes", True, ["probe_yes_total{} 1"]),
        ("temperature", Gauge(-3), ["probe_temperature{} -3"]),
        ("up", Gauge(math.inf), ["probe_up{} +Inf"]),
        ("down", Gauge(-math.inf), ["probe_down{} -Inf"]),
        ("tiny", Gauge(1e-300), ["probe_tiny{} 1e-300"]),
        ("version", "1.2", ['probe_version_info{,version="1.2"} 1']),
        (
            "resp-code",
            Map("code", {"200": 44, "404": 1.5}),
            [
                'probe_resp_code_total{,code="200"} 44',
                'probe_resp_code_total{,code="404"} 1.5',
            ],
        ),
        (
            "latency",
            Distribution([0.001, 1], [1, 2, 4], 8.5),
            [
                'probe_latency_seconds_bucket{,le="0.001"} 1',
                'probe_latency_seconds_bucket{,le="1.0"} 3',
                'probe_latency_seconds_bucket{,le="+Inf"} 7',
                "probe_latency_seconds_sum{} 8.5",
                "probe_latency_seconds_count{} 7",
            ],
        ),
    ],
)
async def test_each_kind_of_metric_has_its_samples(metric, value, lines):
    exporter = PrometheusExporter()
    await feed(exporter, export({metric: value}))
    assert await samples(exporter) == [line.replace("{", "{" + IN_TEXT) for line in lines]


async def test_latencies_are_shown_in_seconds():
    exporter = PrometheusExporter()
    latency = Distribution([1, 3], [1, 0, 0], 0.7)
    await feed(exporter, export({"latency": latency, "a-latency": 3}, unit=0.001))
    assert await samples(exporter) == [
        f'probe_latency_seconds_bucket{{{IN_TEXT},le="0.001"}} 1',
        f'probe_latency_seconds_bucket{{{IN_TEXT},le="0.003"}} 1',
        f'probe_latency_seconds_bucket{{{IN_TEXT},le="+Inf"}} 1',
        f"probe_latency_seconds_sum{{{IN_TEXT}}} 0.0007",
        f"probe_latency_seconds_count{{{IN_TEXT}}} 1",
        f"probe_a_latency_seconds_total{{{IN_TEXT}}} 0.003",
    ]


async def test_the_samples_of_all_targets_stand_together_under_one_heading():
    exporter = PrometheusExporter()
    metrics = {"total": 1, "latency": Distribution([1], [1, 0], 1), "v": "x", "m": Map("c", {"k": 1}), "g": Gauge(1)}  # fmt: skip  # noqa: E501
    await feed(exporter, *(export(metrics, dst=dst) for dst in "ab"))
    lines = await page(exporter)
    assert [line if line.startswith("#") else line.partition("{")[0] for line in lines] == [
        "# HELP probe_total Sum of total over all probe runs.",
        "# TYPE probe_total counter",
        *["probe_total"] * 2,
        f"# HELP probe_latency_seconds {LATENCY}",
        "# TYPE probe_latency_seconds histogram",
        *[
            "probe_latency_seconds_bucket",
            "probe_latency_seconds_bucket",
            "probe_latency_seconds_sum",
            "probe_latency_seconds_count",
        ]
        * 2,
        "# HELP probe_v_info Newest v.",
        "# TYPE probe_v_info gauge",
        *["probe_v_info"] * 2,
        "# HELP probe_m_total Sum of m over all probe runs.",
        "# TYPE probe_m_total counter",
        *["probe_m_total"] * 2,
        "# HELP probe_g Newest g.",
        "# TYPE probe_g gauge",
        *["probe_g"] * 2,
    ]


async def test_there_are_no_timestamps_but_a_gauge_of_when_each_keepers_newest_export_came(
    monkeypatch,
):
    # With timestamps, a dead keeper would look alive. So it would with its own clock, which
    # runs ahead of a wall clock that was set back.
    now = 1000.0
    monkeypatch.setattr(_page, "time", SimpleNamespace(time=lambda: now))
    exporter = PrometheusExporter()
    await feed(exporter, export(at=8200, dst="a"), export(at=8201, probe="other"))
    now = 1007.5
    last = EventMetrics(sys.float_info.max, 0, {}, {"x": 1})
    await feed(exporter, export(at=8210, dst="b"), last)
    _, _, text = await scrape(exporter)
    name = "statskeeper_last_export_timestamp_seconds"
    assert [line for line in text.splitlines() if "last_export" in line] == [
        f"# HELP {name} When the newest export of a keeper arrived, in Unix seconds.",
        f"# TYPE {name} gauge",
        f'{name}{{ptype="http",probe="homepage"}} 1007.5',
        f'{name}{{ptype="http",probe="other"}} 1000.0',
        f'{name}{{ptype="",probe=""}} 1007.5',
    ]


async def test_labels_and_help_texts_are_escaped():
    exporter = PrometheusExporter()
    value = 'é"\\\n,{}\r'
    await feed(exporter, export({f"x{value}": Map(f"c{value}", {value: 1})}, dst=value))
    escaped = 'é\\"\\\\\\n,{}\r'
    labels = f'ptype="http",probe="homepage",dst="{escaped}",c="{escaped}"'
    name = "probe_x_total"
    _, _, text = await scrape(exporter)
    assert text.split("\n")[:3] == [
        f'# HELP {name} Sum of xé"\\\\\\n,{{}}\r over all probe runs.',
        f"# TYPE {name} counter",
        f"{name}{{{labels}}} 1",
    ]


async def test_numbers_of_ones_own_classes_are_written_as_numbers():
    class Odd(float):
        def __repr__(self):
            return "odd"

    exporter = PrometheusExporter()
    await feed(exporter, export({"x": Odd(1.5)}))
    assert await samples(exporter) == [f"probe_x_total{{{IN_TEXT}}} 1.5"]


async def test_a_target_without_labels_is_shown():
    exporter = PrometheusExporter()
    metrics = {"total": 1, "m": Map("c", {"k": 2})}
    await feed(exporter, EventMetrics(5, 0, {}, metrics))
    assert await samples(exporter) == ["probe_total{} 1", 'probe_m_total{c="k"} 2']


async def test_what_clashes_is_logged_and_the_rest_is_shown(caplog):
    exporter = PrometheusExporter()
    await feed(exporter, export({"a-b": 1, "a_b": 2, "total": 3}))
    assert await samples(exporter) == [
        f"probe_a_b_total{{{IN_TEXT}}} 1",
        f"probe_total{{{IN_TEXT}}} 3",
    ]
    assert caplog.messages == [
        "not exported: 'a_b', a counter: its name probe_a_b belongs to 'a-b', a counter"
    ]


async def test_a_text_that_is_not_utf_8_is_shown_escaped():
    exporter = PrometheusExporter()
    await feed(exporter, export({"v": "\ud83d", "m": Map("c", {"\udc00": 1})}))
    assert await samples(exporter) == [
        f'probe_v_info{{{IN_TEXT},v="\\\\ud83d"}} 1',
        f'probe_m_total{{{IN_TEXT},c="\\\\udc00"}} 1',
    ]


async def test_of_two_targets_whose_labels_become_equal_the_first_is_shown(caplog):
    exporter = PrometheusExporter()
    for labels in {"a-b": "1"}, {"a_b": "1"}, {"zone": ""}, {}, {"a-b": "1"}:
        await feed(
            exporter, EventMetrics(5, 0, {"dst": "x"} | labels, {"total": len(labels)})
        )
    assert await samples(exporter) == [
        'probe_total{dst="x",a_b="1"} 1',
        'probe_total{dst="x",zone=""} 1',
    ]
    first, second = caplog.messages
    assert first.endswith(
        "{'a_b': '1', 'dst': 'x'}: in Prometheus, they equal {'a-b': '1', 'dst': 'x'}"
    )
    assert second.endswith(
        "labels {'dst': 'x'}: in Prometheus, they equal {'dst': 'x', 'zone': ''}"
    )


async def test_labels_are_free_again_when_their_target_is_stale(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, EventMetrics(5, 0, {"a-b": "1"}, {"total": 1}, 1, 10))
    await trio.sleep(30.5)
    await feed(exporter, EventMetrics(6, 0, {"a_b": "1"}, {"total": 2}, 1, 10))
    assert await samples(exporter) == ['probe_total{a_b="1"} 2']


async def test_created_samples_are_shown_on_request():
    exporter = PrometheusExporter(created=True)
    metrics = {
        "total": 1,
        "latency": Distribution([1], [1, 0], 1),
        "m": Map("c", {"k": 1, "l": 2}),
        "g": Gauge(1),
        "v": "x",
    }
    await feed(exporter, export(metrics, start=2.5, dst="a"))
    lines = [line for line in await page(exporter) if "_created" in line]
    assert lines == [
        "# HELP probe_created Sum of total over all probe runs.",
        "# TYPE probe_created gauge",
        f"probe_created{{{IN_TEXT}}} 2.5",
        f"# HELP probe_latency_seconds_created {LATENCY}",
        "# TYPE probe_latency_seconds_created gauge",
        f"probe_latency_seconds_created{{{IN_TEXT}}} 2.5",
        "# HELP probe_m_created Sum of m over all probe runs.",
        "# TYPE probe_m_created gauge",
        f'probe_m_created{{{IN_TEXT},c="k"}} 2.5',
        f'probe_m_created{{{IN_TEXT},c="l"}} 2.5',
    ]


async def test_the_statistics_of_keepers_and_probers_are_shown_as_they_are_now():
    keeper = make_keeper()
    prober = Prober(trio.sleep_until, list, interval=1, timeout=1, name="homepage")
    exporter = PrometheusExporter(statistics_of=[keeper, prober])
    lines = await samples(exporter)
    assert 'statskeeper_results_accepted_total{ptype="http",probe="homepage"} 0' in lines
    labels = 'ptype="http",probe="homepage",reason="negative"'
    assert f"statskeeper_results_rejected_total{{{labels}}} 0" in lines
    assert 'statskeeper_targets_tracked{ptype="http",probe="homepage"} 0' in lines
    assert 'statskeeper_prober_running{probe="homepage"} 0' in lines
    async with running(keeper) as run:
        run.send(one("a"))
        await wait_all_tasks_blocked()
        lines = await samples(exporter)
    assert 'statskeeper_results_accepted_total{ptype="http",probe="homepage"} 1' in lines


async def test_the_statistics_of_a_prober_are_shown_beside_those_of_its_keeper():
    keeper = make_keeper()
    prober = Prober(trio.sleep_until, keeper, interval=1, timeout=1)
    lines = await samples(PrometheusExporter(statistics_of=[keeper, prober]))
    assert 'statskeeper_targets_tracked{ptype="http",probe="homepage"} 0' in lines
    assert 'statskeeper_prober_running{ptype="http",probe="homepage"} 0' in lines


async def test_without_created_the_statistics_have_none_and_with_it_they_have():
    keeper = make_keeper()
    line = "# TYPE statskeeper_results_accepted_created gauge"
    assert line not in await page(PrometheusExporter(statistics_of=[keeper]))
    assert line in await page(PrometheusExporter(statistics_of=[keeper], created=True))


def test_wrong_statistics_are_refused():
    with pytest.raises(TypeError, match="must be keepers and probers, got None"):
        PrometheusExporter(statistics_of=[None])


# What comes and goes


async def test_the_newest_export_of_a_target_takes_the_place_of_the_one_before():
    exporter = PrometheusExporter()
    await feed(exporter, export({"total": 1}), export({"total": 1}, dst="b"))
    await feed(exporter, export({"total": 2}))
    assert [line[-1] for line in await samples(exporter)] == ["2", "1"]


async def test_metrics_that_an_export_does_not_have_any_more_are_gone():
    exporter = PrometheusExporter()
    await feed(
        exporter, export({"g": Gauge(1), "total": 1}), export({"g": Gauge(1)}, dst="b")
    )
    await feed(exporter, export({"total": 2}))
    assert await samples(exporter) == [
        'probe_g{ptype="http",probe="homepage",dst="b"} 1',
        f"probe_total{{{IN_TEXT}}} 2",
    ]


async def test_a_family_without_samples_has_no_heading():
    exporter = PrometheusExporter(created=True)
    await feed(exporter, export({"x": 1}), export({"total": 2}))
    assert not [line for line in await page(exporter) if "probe_x" in line]


async def test_labels_in_another_order_are_the_same_target():
    exporter = PrometheusExporter()
    backwards = dict(reversed(LABELS.items()))
    await feed(exporter, export(), EventMetrics(5, 0, backwards, {"total": 2}))
    assert [line[-1] for line in await samples(exporter)] == ["2"]


async def test_a_target_that_has_not_come_for_three_intervals_is_stale(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, export(interval=10), export(interval=100, dst="b"))
    await trio.sleep(29.5)
    assert len(await samples(exporter)) == 2
    await trio.sleep(1)
    assert await samples(exporter) == [
        'probe_total{ptype="http",probe="homepage",dst="b"} 1'
    ]
    await trio.sleep(270)
    assert await page(exporter) == []


async def test_a_map_that_has_no_keys_any_more_has_no_samples(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, export({"code": Map("code", {"200": 1})}))
    assert len(await samples(exporter)) == 1
    await feed(exporter, export({"code": Map("code", {})}))
    assert await samples(exporter) == []


async def test_a_target_that_goes_on_coming_stays(autojump_clock):
    exporter = PrometheusExporter()
    for _ in range(10):
        await feed(exporter, export(interval=10))
        await trio.sleep(25)
    assert len(await samples(exporter)) == 1


async def test_a_target_stays_though_passes_take_longer_than_three_intervals(
    autojump_clock,
):
    exporter = PrometheusExporter()

    async def come(target: str, at: float) -> None:
        """Have an export of the pass that began `at` come half an interval later."""
        await feed(exporter, export(interval=1, at=at, dst=target))
        await trio.sleep(0.5)

    for target in "abcd":
        await come(target, at=1)
    for target in "dcb":  # and a, which comes last
        await come(target, at=2)
        assert len(await samples(exporter)) == 4
    for at in 3, 4:  # but then it is left out
        await come("b", at)
    await trio.sleep(1.6)
    assert {line[line.index("dst") + 5] for line in await samples(exporter)} == set("bcd")


async def test_what_is_held_is_bounded_though_nobody_scrapes(autojump_clock):
    exporter = PrometheusExporter()
    for number in range(1_000):
        await feed(exporter, export(interval=1, dst=f"target {number}"), export(interval=1))
        await trio.sleep(1)
    assert len(exporter._page._targets) < 10


async def test_a_name_that_changes_hands_during_a_scrape_is_not_shown_twice(
    mock_clock, nursery, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    exporter = PrometheusExporter()
    await feed(exporter, export({"x-y": 1}), export(interval=100, dst="c"))
    mock_clock.jump(29)

    async def give_the_name_to_another():
        mock_clock.jump(2)
        exporter._page.put(export({"x_y": 2}, dst="b"))
        exporter._page.render_first()

    nursery.start_soon(give_the_name_to_another)  # when the scrape lets others run
    lines = await page(exporter)
    assert [line for line in lines if "x_y" in line] == [
        "# HELP probe_x_y_total Sum of x_y over all probe runs.",
        "# TYPE probe_x_y_total counter",
        'probe_x_y_total{ptype="http",probe="homepage",dst="b"} 2',
    ]


async def test_what_comes_while_a_registry_collects_does_no_harm(monkeypatch):
    exporter = PrometheusExporter()
    await feed(exporter, export(), export(dst="b"))
    coming = [export(dst="c")]
    samples_of = _page.samples

    def as_an_export_comes(value):
        if coming and value == 1:  # those of targets
            exporter._page.put(coming.pop())
            exporter._page.render_first()
        return samples_of(value)

    monkeypatch.setattr(_page, "samples", as_an_export_comes)
    assert collected(exporter).count("probe_total{") == 2
    assert collected(exporter).count("probe_total{") == 3


async def test_in_another_run_of_trio_nothing_old_is_shown(autojump_clock):
    exporter = PrometheusExporter()

    async def feed_and_scrape(dst):
        await feed(exporter, export(dst=dst))
        return await samples(exporter)

    def in_another_thread():
        first = trio.run(feed_and_scrape, "a", clock=MockClock())
        return first, trio.run(feed_and_scrape, "b", clock=MockClock())

    first, second = await trio.to_thread.run_sync(in_another_thread)
    assert 'dst="a"' in first[0]
    assert second == ['probe_total{ptype="http",probe="homepage",dst="b"} 1']


async def test_in_another_run_of_trio_names_are_free_again_and_a_scrape_shows_nothing_old():
    exporter = PrometheusExporter()

    async def feed_it(metrics):
        await feed(exporter, export(metrics))
        return await samples(exporter)

    async def scrape_it():
        return await samples(exporter)

    def in_another_thread():
        trio.run(feed_it, {"x": 1}, clock=MockClock())
        nothing = trio.run(scrape_it, clock=MockClock())
        return nothing, trio.run(feed_it, {"x": Gauge(2)}, clock=MockClock())

    nothing, gauge = await trio.to_thread.run_sync(in_another_thread)
    assert nothing == []
    assert gauge == [f"probe_x{{{IN_TEXT}}} 2"]


async def test_several_keepers_can_feed_one_exporter(nursery):
    exporter = PrometheusExporter()
    for dst in "ab":
        send, receive = trio.open_memory_channel[EventMetrics](1)
        nursery.start_soon(exporter.run, receive)
        send.send_nowait(export(dst=dst))
    await wait_all_tasks_blocked()
    assert len(await samples(exporter)) == 2


async def test_run_closes_the_exports_and_returns_at_their_end():
    send, receive = trio.open_memory_channel[EventMetrics](0)
    send.close()
    await PrometheusExporter().run(receive)
    assert receive.statistics().open_receive_channels == 0


async def test_run_closes_the_exports_when_it_is_cancelled():
    send, receive = trio.open_memory_channel[EventMetrics](0)
    with trio.move_on_after(0):
        await PrometheusExporter().run(receive)
    assert send.statistics().open_receive_channels == 0


async def test_others_have_their_turn_in_a_scrape_of_many_targets(nursery):
    exporter = PrometheusExporter()
    await feed(exporter, *(export(dst=f"{number:01000}") for number in range(5_000)))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(count)
    assert len(await samples(exporter)) == 5_000
    assert turns >= 50


@pytest.mark.parametrize("chunk", [1, 2**16])
async def test_no_step_of_a_scrape_takes_more_than_a_millisecond(
    mock_clock, monkeypatch, chunk
):
    # By a clock that only work moves on: what is called takes so many milliseconds.
    now = began = longest = 0.0

    def takes(ms, function):
        def taking_time(*args):
            nonlocal now
            now += ms / 1000
            return function(*args)

        return taking_time

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task):
            nonlocal began
            began = now

        def after_task_step(self, task):
            nonlocal longest
            longest = max(longest, now - began)

    exporter = PrometheusExporter(statistics_of=[make_keeper()])
    metrics = {f"metric {number}": number for number in range(30)}
    await feed(exporter, *(export(metrics, dst=str(n), probe=str(n)) for n in range(30)))
    mock_clock.jump(25)
    await feed(exporter, *(export(metrics, dst=str(n), probe=str(n)) for n in range(20)))
    mock_clock.jump(25)
    for number in range(20, 60):
        exporter._page.put(export(metrics, dst=str(number), probe=str(number)))
    monkeypatch.setattr(_server, "_CHUNK_SIZE", chunk)
    monkeypatch.setattr(_pacing, "perf_counter", lambda: now)
    monkeypatch.setattr(_exporter, "self_metrics", takes(0.4, _exporter.self_metrics))
    for name in "render_first", "_drop_if_stale":
        monkeypatch.setattr(_page.Page, name, takes(0.05, getattr(_page.Page, name)))
    text = _page.Page.text
    monkeypatch.setattr(_page.Page, "text", lambda page: map(takes(0.05, iter), text(page)))
    body = []
    note = takes(0.05, body.append)

    async def send(event):  # without a checkpoint, as Hypercorn does to a HEAD
        note(event.get("body", b""))

    scope = {"type": "http", "path": "/metrics", "method": "HEAD"}
    trio.lowlevel.add_instrument(steps := Steps())
    await _server.Server(exporter._scrape).answer(scope, trio.sleep_forever, send)
    await trio.lowlevel.checkpoint()
    trio.lowlevel.remove_instrument(steps)
    assert b"".join(body).count(b"probe_metric_29_total{") == 60
    assert now > 0.01
    assert longest <= 0.001


@pytest.fixture
def turns(nursery):
    """Count the turns of the scheduler."""
    turns = []

    async def count() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            turns.append(None)

    nursery.start_soon(count)
    return turns


async def test_all_exports_that_wait_are_taken_in_one_turn(nursery, turns, monkeypatch):
    monkeypatch.setattr(_pacing, "_STEP_TIME", math.inf)
    exporter = PrometheusExporter()
    send, receive = trio.open_memory_channel[EventMetrics](0)
    for number in range(1_000):
        nursery.start_soon(send.send, export(dst=str(number)))
    while send.statistics().tasks_waiting_send < 1_000:
        await trio.lowlevel.checkpoint()
    turns.clear()
    nursery.start_soon(exporter.run, receive)
    while len(exporter._page._targets) < 1_000:
        await trio.lowlevel.checkpoint()
    assert len(turns) < 5


async def test_exports_are_taken_though_there_is_no_time_to_render_them(
    autojump_clock, monkeypatch
):
    exporter = PrometheusExporter()
    await feed(exporter, export({"total": 1}, interval=10))
    page = exporter._page
    await trio.sleep(25)
    page.put(export({"total": 2}, interval=10))
    await trio.sleep(10)
    assert " 1.0" in collected(exporter)  # it has come, so its target is not gone
    monkeypatch.setattr(_exporter, "_RENDERING_TIMEOUT", 0)
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    page.put(export(dst="b"))
    page.put(export({"total": 3}))  # in place of that which waits
    assert await samples(exporter) == [f"probe_total{{{IN_TEXT}}} 3"]
    await trio.sleep(30)
    assert await samples(exporter) == []
    assert not page.waiting


async def test_what_was_taken_before_it_was_cancelled_is_rendered_by_the_next_scrape(
    nursery, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    exporter = PrometheusExporter()
    send, receive = trio.open_memory_channel[EventMetrics](10)
    for dst in "abc":
        send.send_nowait(export(dst=dst))
    with trio.CancelScope() as scope:
        page_put = _page.Page.put

        def put(page, taken):
            page_put(page, taken)
            if taken.labels.get("dst") == "b":
                scope.cancel()

        monkeypatch.setattr(_page.Page, "put", put)
        monkeypatch.setattr(_pacing.Step, "is_half_over", False)
        await exporter.run(receive)
    assert len(exporter._page.waiting) == 2
    assert len(await samples(exporter)) == 3


async def test_a_scrape_is_as_of_one_instant_whatever_comes_meanwhile(monkeypatch):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    monkeypatch.setattr(_server, "_CHUNK_SIZE", 1)
    exporter = PrometheusExporter()

    exporter._page.use(trio.lowlevel.current_clock())

    def taken(value, numbers):
        for number in numbers:
            metrics = {"total": value, "m": Map("c", {"k": value})}
            exporter._page.put(export(metrics, dst=str(number)))
        while exporter._page.waiting:
            exporter._page.render_first()

    taken(0, range(2_000))
    body = []

    async def send(event):
        await trio.lowlevel.checkpoint()
        body.append(event.get("body", b""))
        if len(body) in range(2, 2_000, 50):  # targets come, change and go
            taken(len(body), range(len(body) % 20, 4_000, 100))
            exporter._page._drop(frozenset({**LABELS, "dst": str(len(body))}.items()))

    scope = {"type": "http", "path": "/metrics", "method": "GET"}
    await _server.Server(exporter._scrape).answer(scope, trio.sleep_forever, send)
    shown = parsed(b"".join(body).decode())
    for family in "probe", "probe_m":
        assert [*shown[family][2].values()] == [0] * 2_000
    assert len(exporter._page._targets) > 2_000


# The collector


async def test_a_collector_gives_a_registry_what_a_scrape_shows():
    exporter = PrometheusExporter(statistics_of=[make_keeper()], created=True)
    metrics = {
        "total": 1,
        "latency": Distribution([0.1], [1, 3], 1),
        "m": Map("c", {"k": 1, "l": 2}),
        "g": Gauge(math.inf),
        "v": "x\n",
    }
    await feed(exporter, export(metrics), export({"total": 2}, dst="b"))
    _, _, text = await scrape(exporter)
    assert parsed(collected(exporter)) == parsed(text)
    assert "probe_latency_seconds" in parsed(text)


async def test_a_registry_can_render_it_as_open_metrics():
    exporter = PrometheusExporter(created=True)
    metrics = {
        "total": 1,
        "latency": Distribution([1], [1, 0], 1),
        "m": Map("c", {"k": 1, "l": 2}),
    }
    await feed(exporter, export(metrics))
    registry = prometheus_client.CollectorRegistry()
    registry.register(exporter)
    text = prometheus_client.openmetrics.exposition.generate_latest(registry).decode()
    read = {f.name: f.type for f in text_fd_to_metric_families(io.StringIO(text))}
    assert read["probe"] == read["probe_m"] == "counter"
    assert read["probe_latency_seconds"] == "histogram"
    assert f"probe_total{{{','.join(sorted(IN_TEXT.split(',')))}}} 1.0" in text


async def test_a_collector_leaves_out_what_is_stale(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, export(interval=10), export(interval=100, dst="b"))
    await trio.sleep(30.5)
    assert 'dst="a"' not in collected(exporter)
    assert 'dst="b"' in collected(exporter)


async def test_a_registry_may_collect_in_a_thread_while_exports_come(nursery):
    exporter = PrometheusExporter()
    send, receive = trio.open_memory_channel[EventMetrics](0)
    nursery.start_soon(exporter.run, receive)
    collecting = True

    def collect():
        nonlocal collecting
        try:
            for _ in range(3):
                parsed(collected(exporter))
        finally:
            collecting = False

    async with trio.open_nursery() as collector:
        collector.start_soon(trio.to_thread.run_sync, collect)
        number = 0
        while collecting:
            # Targets come and go, and families with them.
            await send.send(export({f"x{number % 3}": 1}, interval=0.0001, dst=str(number)))
            number += 1


# Serving


async def get(address, path="/metrics", method="GET"):
    async with httpx2.AsyncClient(trust_env=False) as client:
        host, port = address
        host = f"[{host}]" if ":" in host else host
        return await client.request(method, f"http://{host}:{port}{path}")


async def test_it_serves_a_scrape_on_loopback_and_tells_the_address(nursery):
    exporter = PrometheusExporter(0)
    await feed(exporter, export(dst="é"))
    host, port = await serve(nursery, exporter)
    assert host == "127.0.0.1"
    response = await get((host, port))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "server" not in response.headers
    _, _, text = await scrape(exporter)
    assert response.text == text


async def test_a_port_can_be_chosen_and_is_free_again_afterwards(nursery):
    async with trio.open_nursery() as first:
        host, port = await serve(first, PrometheusExporter(0))
        assert (await get((host, port))).status_code == 200
        first.cancel_scope.cancel()
    assert await serve(nursery, PrometheusExporter(port)) == (host, port)
    assert (await get((host, port))).status_code == 200


async def test_on_a_port_of_ones_choice_it_serves_all_addresses_of_the_host(nursery):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    await serve(nursery, PrometheusExporter(port, "localhost"))
    for *_, address in await trio.socket.getaddrinfo("localhost", port, type=1):
        assert (await get(address[:2])).status_code == 200


@pytest.mark.parametrize("host", ["::1", "localhost"])
async def test_another_host_can_be_chosen(nursery, host):
    address = await serve(nursery, PrometheusExporter(0, host))
    assert (await get(address)).status_code == 200


@pytest.fixture
def addresses(monkeypatch):
    """The addresses of any host."""
    addresses = []

    async def found(*_):
        await trio.lowlevel.checkpoint()
        return addresses

    monkeypatch.setattr(_server, "addresses_of", found)
    return addresses


async def test_on_a_free_port_it_serves_the_first_address_of_the_host(nursery, addresses):
    addresses += "127.0.0.2", "127.0.0.1"
    host, port = await serve(nursery, PrometheusExporter(0))
    assert host == "127.0.0.2"
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_on_a_port_that_one_address_has_taken_it_serves_none(addresses):
    addresses += "127.0.0.1", "127.0.0.2"
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=r"can't listen on 127\.0\.0\.1:\d+: Address"):
            await PrometheusExporter(port).run(channel_of())
        with socket.create_server(("127.0.0.1", port)):
            pass


async def test_addresses_of_a_kind_that_the_system_lacks_are_not_served(
    nursery, addresses, monkeypatch
):
    listen = trio.open_tcp_listeners

    async def listen_without_ipv6(port, *, host):
        if ":" in host:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return await listen(port, host=host)

    monkeypatch.setattr(trio, "open_tcp_listeners", listen_without_ipv6)
    addresses += "::1", "127.0.0.1"
    address = await serve(nursery, PrometheusExporter(0))
    assert (await get(address)).status_code == 200
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    addresses.append("::2")
    assert (await serve(nursery, PrometheusExporter(port)))[1] == port
    addresses[:] = ["::1"]
    with pytest.raises(OSError, match=r"can't listen on .*: no IPv6"):
        await PrometheusExporter(0).run(channel_of())


async def test_its_host_is_looked_up_though_other_lookups_hold_all_threads(nursery):
    limiter = trio.to_thread.current_default_thread_limiter()
    while limiter.available_tokens:
        limiter.acquire_on_behalf_of_nowait(object())
    with trio.fail_after(30):
        address = await serve(nursery, PrometheusExporter(0, "localhost"))
    async with await trio.open_tcp_stream("127.0.0.1", address[1]):
        pass


async def test_a_port_that_is_taken_is_a_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=f"can't listen on 127.0.0.1:{port}: Address already"
        ):
            await PrometheusExporter(port).run(channel_of())


@pytest.fixture
async def big_answer(nursery, monkeypatch):
    """A run whose exports can be closed, and a scraper that has read only a little."""
    monkeypatch.setattr(_server, "_UNREAD_TIMEOUT", 1_000)
    send, exports = trio.open_memory_channel(1)
    await send.send(export(text="x" * 10_000_000))
    exporter = PrometheusExporter(0)
    ended = trio.Event()

    async def run(task_status):  # noqa: ASYNC114, ASYNC128  # it hands it on
        await exporter.run(exports, task_status=task_status)
        ended.set()

    address = await nursery.start(run)
    assert address == exporter.address
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.receive_some(1)
        yield send, stream, ended
    assert exporter.address is None


async def test_an_answer_in_progress_is_finished_when_the_exports_end(
    big_answer, monkeypatch
):
    monkeypatch.setattr(_server, "_SHUTDOWN_TIMEOUT", math.inf)
    exports, stream, ended = big_answer
    exports.close()
    await wait_all_tasks_blocked()
    assert not ended.is_set()
    with pytest.raises(OSError):
        await trio.open_tcp_stream(*stream.socket.getpeername())
    received = bytearray()
    async for chunk in stream:
        received += chunk
    assert received.endswith(b"\r\n0\r\n\r\n")
    with trio.fail_after(30):
        await ended.wait()


async def test_an_answer_that_takes_long_is_cut_off_when_the_exports_have_ended(
    big_answer, monkeypatch
):
    monkeypatch.setattr(_server, "_SHUTDOWN_TIMEOUT", 0.01)
    exports, _, ended = big_answer
    exports.close()
    with trio.fail_after(30):
        await ended.wait()


async def test_when_the_exports_end_no_more_connections_are_accepted(nursery):
    send, exports = trio.open_memory_channel(0)
    address = await nursery.start(PrometheusExporter(0).run, exports)
    async with await trio.open_tcp_stream(*address) as idle:
        send.close()
        with suppress(trio.BrokenResourceError):
            assert await idle.receive_some() == b""
        with pytest.raises(OSError):
            await trio.open_tcp_stream(*address)


async def test_two_runs_at_once_on_one_port_are_refused_and_nothing_is_closed(nursery):
    exporter = PrometheusExporter(0)
    await serve(nursery, exporter)
    send, exports = trio.open_memory_channel(0)
    with pytest.raises(trio.BusyResourceError, match="already running; let keepers share"):
        await exporter.run(exports)
    with pytest.raises(trio.WouldBlock):  # as opposed to closed
        exports.receive_nowait()
    send.close()


async def test_without_a_port_several_runs_go_on_at_once_and_none_has_an_address(nursery):
    exporter = PrometheusExporter()
    for dst in "ab":
        send, exports = trio.open_memory_channel(0)
        assert await nursery.start(exporter.run, exports) is None
        await send.send(export(dst=dst))
    await wait_all_tasks_blocked()
    assert exporter.address is None
    _, _, text = await scrape(exporter)
    assert 'dst="a"' in text
    assert 'dst="b"' in text


@pytest.mark.parametrize("host", ["no such host", "a..b", "a" * 64])
async def test_a_host_that_does_not_exist_is_a_clear_error(host):
    with pytest.raises(OSError, match=f"can't listen on {host}:9464: "):
        await PrometheusExporter(9464, host).run(channel_of())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"port": -1}, ValueError, "port must be from 0 to 65535, got -1"),
        ({"port": 65_536}, ValueError, "port must be from 0 to 65535, got 65536"),
        ({"port": "9464"}, TypeError, "port must be an integer or None, got '9464'"),
        ({"port": True}, TypeError, "port must be an integer or None, got True"),
        ({"host": None}, TypeError, "'host' must be <class 'str'>"),
    ],
)
def test_a_port_or_host_that_cannot_be_one_is_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        PrometheusExporter(**options)


async def test_only_metrics_and_the_root_answer():
    exporter = PrometheusExporter()
    root = "trio-statskeeper: metrics are at /metrics\n"
    assert (await scrape(exporter, "/"))[::2] == (200, root)
    for path in "/metrics/", "/x", "", "/METRICS", "//":
        status, headers, text = await scrape(exporter, path)
        assert headers == {b"content-type": b"text/plain; charset=utf-8"}
        assert (status, text) == (404, "Not found: metrics are at /metrics\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("path", ["/", "/metrics"])
async def test_other_methods_than_get_and_head_are_refused(method, path):
    status, headers, _ = await scrape(PrometheusExporter(), path, method)
    assert status == 405
    assert headers[b"allow"] == b"GET, HEAD"


async def test_a_head_request_gets_no_body(nursery):
    exporter = PrometheusExporter(0)
    await feed(exporter, export())
    address = await serve(nursery, exporter)
    response = await get(address, method="HEAD")
    assert (response.status_code, response.content) == (200, b"")


async def test_a_websocket_is_refused():
    events = []

    async def send(event):
        await trio.lowlevel.checkpoint()
        events.append(event)

    scope = {"type": "websocket", "path": "/metrics"}
    await _server.Server(PrometheusExporter()._scrape).answer(
        scope, trio.sleep_forever, send
    )
    assert events == [{"type": "websocket.close"}]


async def test_cancelled_it_raises_a_bare_cancelled_though_connections_are_open():
    raised = None

    async def run(task_status):  # noqa: ASYNC114, ASYNC128  # it hands it on
        nonlocal raised
        try:
            _, exports = trio.open_memory_channel(0)
            await PrometheusExporter(0).run(exports, task_status=task_status)
        except BaseException as error:
            raised = error
            raise

    async with trio.open_nursery() as nursery:
        address = await nursery.start(run)
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.receive_some()
            nursery.cancel_scope.cancel()
    assert type(raised) is trio.Cancelled


@pytest.mark.parametrize("settings", [b"A", b"AAAA"])
async def test_a_request_that_makes_no_sense_ends_its_own_connection_alone(
    nursery, caplog, settings
):
    address = await serve(nursery, PrometheusExporter(0))
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: " + settings + b"\r\n\r\n"
        )
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    assert (await get(address)).status_code == 200
    (message,) = caplog.messages
    assert message.startswith("a scraper's connection failed: ExceptionGroup(")


@pytest.mark.parametrize("then", [b"", b"\xff" * 50], ids=["nothing", "rubbish"])
async def test_a_client_that_begins_with_http_2_and_then_is_silent_is_hung_up_on(
    nursery, monkeypatch, then
):
    monkeypatch.setattr(_server._Config, "read_timeout", 0.1)
    address = await serve(nursery, PrometheusExporter(0))
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + then)
        with trio.fail_after(30):
            while await stream.receive_some():
                pass


async def test_a_client_that_by_http_2_never_lets_an_answer_be_sent_is_hung_up_on(
    nursery, monkeypatch
):
    monkeypatch.setattr(_server, "_ANSWER_TIMEOUT", 0.1)
    monkeypatch.setattr(_server._Config, "keep_alive_timeout", 0.1)
    client = H2Connection()
    client.initiate_connection()
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    head = {":method": "GET", ":scheme": "http", ":authority": "x", ":path": "/metrics"}
    client.send_headers(1, head.items(), end_stream=True)
    exporter = PrometheusExporter(0)
    await feed(exporter, export())
    address = await serve(nursery, exporter)
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(client.data_to_send())
        with trio.fail_after(30):
            while await stream.receive_some():
                pass


async def test_a_keyboard_interrupt_in_an_answer_ends_the_server(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    exporter = PrometheusExporter(0, statistics_of=[make_keeper()])
    monkeypatch.setattr(_exporter, "self_metrics", interrupt)
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            address = await serve(nursery, exporter)
            async with await trio.open_tcp_stream(*address) as stream:
                await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                await trio.sleep_forever()


async def test_it_serves_where_the_system_has_no_user_timeout(nursery, monkeypatch):
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    address = await serve(nursery, PrometheusExporter(0))
    assert (await get(address)).status_code == 200


async def test_a_bug_in_an_answer_is_logged(nursery, caplog, monkeypatch):
    def bug(*_):
        raise RuntimeError("a bug")

    exporter = PrometheusExporter(0, statistics_of=[make_keeper()])
    monkeypatch.setattr(_exporter, "self_metrics", bug)
    address = await serve(nursery, exporter)
    assert (await get(address)).status_code == 500
    assert "a bug" in caplog.text
    assert {record.name for record in caplog.records} == {"trio_statskeeper"}
    caplog.clear()


# Whatever comes


@given(
    st.lists(
        st.builds(
            EventMetrics,
            st.floats(0, 1e12),
            st.floats(0, 1e12),
            st.dictionaries(texts, texts, max_size=4),
            st.dictionaries(texts, values(), max_size=4),
            st.floats(1e-9, 1e9),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_whatever_comes_the_page_can_be_read_and_is_what_a_registry_shows(exports, created):
    logging.getLogger("trio_statskeeper").setLevel(logging.CRITICAL)

    async def main():
        exporter = PrometheusExporter(created=created)
        await feed(exporter, *exports)
        _, _, text = await scrape(exporter)
        assert parsed(text) == parsed(collected(exporter))

    try:
        trio.run(main)
    finally:
        logging.getLogger("trio_statskeeper").setLevel(logging.NOTSET)
