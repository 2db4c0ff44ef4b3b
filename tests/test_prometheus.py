"""The Prometheus output: what a scrape shows."""

from __future__ import annotations

import io
import logging
import math
import re
import sys
from collections import Counter
from types import SimpleNamespace

import prometheus_client
import pytest
import trio
from helpers import make_keeper, one, running
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_fd_to_metric_families
from scraping import (
    IN_TEXT,
    LABELS,
    Client,
    collected,
    export,
    feed,
    page,
    parsed,
    read_answers,
    request,
    samples,
    scrape,
    server_of,
)
from strategies import texts, values
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_statskeeper import (
    Distribution,
    EventMetrics,
    ExponentialDistribution,
    Gauge,
    Map,
    Prober,
    _pacing,
)
from trio_statskeeper._http import _server
from trio_statskeeper.prometheus import PrometheusExporter, _cut, _exporter, _page

LATENCY = "Distribution of latency over all probe runs, in seconds."


# What is shown


async def test_before_the_first_export_the_page_is_empty():
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


async def test_an_exponential_distribution_has_classic_buckets():
    exporter = PrometheusExporter(buckets_per_power=2)
    size = ExponentialDistribution.of([0, 1, 1.2, 1.9])
    await feed(exporter, export({"size": size}))
    assert await samples(exporter) == [
        f'probe_size_bucket{{{IN_TEXT},le="0.0"}} 1',
        f'probe_size_bucket{{{IN_TEXT},le="{2**-0.5}"}} 1',
        f'probe_size_bucket{{{IN_TEXT},le="1.0"}} 2',
        f'probe_size_bucket{{{IN_TEXT},le="{2**0.5}"}} 3',
        f'probe_size_bucket{{{IN_TEXT},le="2.0"}} 4',
        f'probe_size_bucket{{{IN_TEXT},le="+Inf"}} 4',
        f"probe_size_sum{{{IN_TEXT}}} 4.1",
        f"probe_size_count{{{IN_TEXT}}} 4",
    ]


async def test_buckets_of_latencies_can_be_summed_over_targets():
    exporter = PrometheusExporter()
    far = [1e-12, 1e12]
    for name, latencies in ("a", [0.003]), ("b", [12.0]), ("c", [-0.2, 0]), ("d", far):
        metrics = {"latency": ExponentialDistribution.of(latencies, max_buckets=2)}
        await feed(exporter, export(metrics, dst=name))
    sums: Counter[str] = Counter()
    for line in await samples(exporter):
        if found := re.search(r'le="(.*)"} (\d+)', line):
            sums[found[1]] += int(found[2])
    bounds = [repr(2.0**n) for n in range(-14, 7)]
    assert list(sums) == [*bounds, "+Inf"]
    # The buckets of "d" end at 1 and at 2**64, so all bounds above 1 count both.
    for le, count in sums.items():
        reached = [bound <= float(le) for bound in (0.003, 2, 12)]
        assert count == 3 + sum(reached)


async def test_the_samples_of_all_targets_are_together_under_one_heading():
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


async def test_instead_of_timestamps_a_gauge_says_when_each_keepers_newest_export_arrived(
    monkeypatch,
):
    # With timestamps, a dead keeper would look alive. So it would with its own clock, which
    # runs ahead of a wall clock that was set back.
    now = 1000.0
    monkeypatch.setattr(_cut, "time", SimpleNamespace(time=lambda: now))
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


async def test_numbers_of_custom_classes_are_written_as_numbers():
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


async def test_metrics_that_clash_are_logged_and_the_rest_is_shown(caplog):
    exporter = PrometheusExporter()
    await feed(exporter, export({"a-b": 1, "a_b": 2, "total": 3}))
    assert await samples(exporter) == [
        f"probe_a_b_total{{{IN_TEXT}}} 1",
        f"probe_total{{{IN_TEXT}}} 3",
    ]
    assert caplog.messages == [
        "not exported: 'a_b', a counter: its name probe_a_b belongs to 'a-b', a counter"
    ]


async def test_text_that_utf_8_cannot_encode_is_escaped():
    exporter = PrometheusExporter()
    await feed(exporter, export({"v": "\ud83d", "m": Map("c", {"\udc00": 1})}))
    assert await samples(exporter) == [
        f'probe_v_info{{{IN_TEXT},v="\\\\ud83d"}} 1',
        f'probe_m_total{{{IN_TEXT},c="\\\\udc00"}} 1',
    ]


async def test_of_two_targets_with_equal_labels_in_prometheus_the_first_is_shown(caplog):
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


# Newer exports and stale targets


async def test_a_newer_export_replaces_the_older_one_of_its_target():
    exporter = PrometheusExporter()
    await feed(exporter, export({"total": 1}), export({"total": 1}, dst="b"))
    await feed(exporter, export({"total": 2}))
    assert [line[-1] for line in await samples(exporter)] == ["2", "1"]


async def test_metrics_that_the_newest_export_lacks_are_not_shown():
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


async def test_a_target_without_exports_for_three_intervals_is_stale(autojump_clock):
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


async def test_a_map_without_keys_has_no_samples(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, export({"code": Map("code", {"200": 1})}))
    assert len(await samples(exporter)) == 1
    await feed(exporter, export({"code": Map("code", {})}))
    assert await samples(exporter) == []


async def test_a_target_that_is_exported_again_stays(autojump_clock):
    exporter = PrometheusExporter()
    for _ in range(10):
        await feed(exporter, export(interval=10))
        await trio.sleep(25)
    assert len(await samples(exporter)) == 1


async def test_a_target_stays_even_if_passes_take_longer_than_three_intervals(
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


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("name[]=probe_total", {"probe_total"}),
        ("name[]=probe_d", {"probe_d"}),
        ("name[]=probe_d_bucket&name[]=probe_g", {"probe_d", "probe_g"}),
        ("name%5B%5D=probe_v_info", {"probe_v_info"}),
        (
            "name[]=statskeeper_results_accepted_total",
            {"statskeeper_results_accepted_total"},
        ),
        ("name[]=probe", {"probe_total"}),
        ("name[]=probe_", set()),
        ("name[]=", {"probe_total", "probe_d", "probe_g", "probe_v_info"}),
        ("name=probe_total", {"probe_total", "probe_d", "probe_g", "probe_v_info"}),
    ],
)
async def test_a_scrape_may_ask_for_some_families_by_names_of_their_samples(query, shown):
    exporter = PrometheusExporter(statistics_of=[make_keeper()])
    metrics = {"total": 1, "d": Distribution([1], [0, 1], 2), "g": Gauge(1), "v": "1"}
    await feed(exporter, export(metrics))
    _, _, text = await scrape(exporter, f"/metrics?{query}")
    found = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    if "statskeeper" not in query:
        found = {name for name in found if not name.startswith("statskeeper")}
    assert found == shown


async def test_memory_is_bounded_without_scrapes(autojump_clock):
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


async def test_exports_may_arrive_while_a_registry_collects(monkeypatch):
    exporter = PrometheusExporter()
    await feed(exporter, export(), export(dst="b"))
    coming = [export(dst="c")]
    samples_of = _page.samples

    def as_an_export_comes(value, *args):
        if coming and value == 1:  # those of targets
            exporter._page.put(coming.pop())
            exporter._page.render_first()
        return samples_of(value, *args)

    monkeypatch.setattr(_page, "samples", as_an_export_comes)
    assert collected(exporter).count("probe_total{") == 2
    assert collected(exporter).count("probe_total{") == 3


async def test_in_another_run_of_trio_old_targets_are_dropped(autojump_clock):
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


async def test_other_tasks_run_during_a_scrape_of_many_targets(nursery):
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
    assert turns >= 10


@pytest.mark.parametrize("piece", [1, 2**18])
async def test_no_step_of_a_scrape_takes_more_than_a_millisecond(
    mock_clock, monkeypatch, piece
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
    monkeypatch.setattr(_server, "_PIECE_SIZE", piece)
    monkeypatch.setattr(_pacing, "perf_counter", lambda: now)
    monkeypatch.setattr(_exporter, "self_metrics", takes(0.4, _exporter.self_metrics))
    for name in "render_first", "_drop_if_stale":
        monkeypatch.setattr(_page.Page, name, takes(0.05, getattr(_page.Page, name)))
    scraped = _page.Page.scrape
    monkeypatch.setattr(
        _page.Page, "scrape", lambda *args: map(takes(0.05, iter), scraped(*args))
    )
    body = []
    note = takes(0.05, body.append)

    class Noting(Client):
        async def send_all(self, data):
            note(bytes(data))
            await trio.lowlevel.checkpoint()

    trio.lowlevel.add_instrument(steps := Steps())
    await server_of(exporter).serve_stream(Noting(request()))
    await trio.lowlevel.checkpoint()
    trio.lowlevel.remove_instrument(steps)
    [(_, _, text)] = read_answers(b"".join(body), request())
    assert text.count(b"probe_metric_29_total{") == 60
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


async def test_all_exports_that_wait_are_received_in_one_turn(nursery, turns, monkeypatch):
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


async def test_exports_are_received_even_without_time_to_render_them(
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
    assert await samples(exporter) == [f"probe_total{{{IN_TEXT}}} 1"]
    await trio.sleep(30)
    assert await samples(exporter) == []
    assert not page.waiting


async def test_exports_received_before_a_cancellation_are_rendered_by_the_next_scrape(
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


async def test_a_scrape_is_consistent_whatever_arrives_meanwhile(monkeypatch):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    monkeypatch.setattr(_server, "_PIECE_SIZE", 1)
    exporter = PrometheusExporter()

    exporter._page.use(trio.lowlevel.current_clock())

    def taken(value, numbers):
        for number in numbers:
            metrics = {"total": value, "m": Map("c", {"k": value})}
            exporter._page.put(export(metrics, dst=str(number)))
        while exporter._page.waiting:
            exporter._page.render_first()

    taken(0, range(2_000))

    class Changing(Client):
        async def send_all(self, data):
            await super().send_all(data)
            sent = len(self.sent)
            if sent in range(2, 2_000, 50):  # targets come, change and go
                taken(sent, range(sent % 20, 4_000, 100))
                exporter._page._drop(frozenset({**LABELS, "dst": str(sent)}.items()))

    client = Changing(request())
    await server_of(exporter).serve_stream(client)
    [(_, _, text)] = read_answers(b"".join(client.sent), request())
    shown = parsed(text.decode())
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


async def test_a_registry_can_render_open_metrics():
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


async def test_a_collector_skips_stale_targets(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, export(interval=10), export(interval=100, dst="b"))
    await trio.sleep(30.5)
    assert 'dst="a"' not in collected(exporter)
    assert 'dst="b"' in collected(exporter)


async def test_a_registry_may_collect_in_a_thread_while_exports_arrive(nursery):
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


# Any exports


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
def test_any_exports_give_a_valid_page_equal_to_that_of_a_registry(exports, created):
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
