"""Metrics have one name each, whether Prometheus scrapes them or a receiver gets them."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import trio
from helpers import serve
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_statskeeper import Distribution, EventMetrics, Gauge, Map
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

HISTOGRAM = Distribution.of([0.5], [0.1, 1])

# Names that differ from the exporters' own, and words that have a meaning in names.
WORDS = [
    "total",
    "seconds",
    "latency",
    "ratio",
    "info",
    "bucket",
    "sum",
    "count",
    "created",
]
NAMES = st.text() | st.lists(
    st.sampled_from([*WORDS, "x", "9", "", "é", "ошибки"]), min_size=1, max_size=4
).flatmap(lambda words: st.sampled_from("-_.: /").map(lambda by: by.join(words)))
VALUES = st.one_of(
    st.integers(1, 1_000),
    st.integers(1, 1_000).map(Gauge),
    st.integers(1, 1_000).map(lambda number: Map("code", {"200": number})),
    st.sampled_from([HISTOGRAM, "x"]),
)
EXPORTS = st.lists(
    st.tuples(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, st.just("x"))),
    min_size=50,
    max_size=50,
)

PAIRS: list[dict[str, Any]] = [
    {"total-errors": 1, "errors": 2},
    {"resp--code": Map("code", {"200": 1}), "resp-code": Map("code", {"200": 2})},
    {"latency": HISTOGRAM, "total-latency": 3},
    {"total-latency": 3, "latency": HISTOGRAM},
    {"ошибки": 1, "успех": 2, "total": 3},
    {"x-seconds-latency": Gauge(1), "seconds_latency": 2},
    {"_x": Gauge(1), "x_": Gauge(2), "9x": "y"},
]

numbers = count()


async def send(exporter, exports):
    sender, receiver = trio.open_memory_channel[EventMetrics](len(exports))
    with sender:
        for export in exports:
            sender.send_nowait(export)
    await exporter.run(receiver)


def shown(samples):
    """Return the names, and those of the labels, of each of our series, and its value."""
    not_ours = ("scope_", "service_", "instance", "job")
    return {
        (
            labels["dst"],
            labels["__name__"],
            *sorted(name for name in labels if not name.startswith(not_ours)),
            value,
        )
        for labels, value in samples
    }


def make_exports(exports):
    now, batch = time.time(), str(next(numbers))
    return [
        EventMetrics(now, now, {**labels, "dst": str(number), "batch": batch}, metrics)
        for number, (metrics, labels) in enumerate(exports)
    ]


async def test_names_that_receivers_would_change_are_changed_by_the_exporter(
    victoria_metrics, start_prometheus, nursery
):
    exports = make_exports((pair, {"_zone": "x", "9": "y"}) for pair in PAIRS)
    exporter = PrometheusExporter(0)
    await send(exporter, exports)
    address, port = await serve(nursery, exporter)
    in_thread = trio.to_thread.run_sync
    prometheus = await in_thread(start_prometheus, f"{address}:{port}")
    await in_thread(prometheus.wait_for, "probe_total", bool)
    selector = f'{{batch="{exports[0].labels["batch"]}"}}'
    scraped = await in_thread(prometheus.query, selector)
    await send(OTLPExporter(victoria_metrics.endpoint), exports)
    received = await in_thread(victoria_metrics.wait_for, selector, len(scraped))
    assert shown(received) == shown(scraped)
    assert len(received) == len(scraped)


@settings(max_examples=10, deadline=None)
@given(EXPORTS)
def test_any_names_are_the_same_both_ways(victoria_metrics, exports):
    exports = make_exports(exports)
    exporter = PrometheusExporter()
    trio.run(send, exporter, exports)
    scraped = [
        ({"__name__": sample.name, **sample.labels}, sample.value)
        for metric in exporter.collect()
        for sample in metric.samples
        if sample.name.startswith("probe_")
    ]
    trio.run(send, OTLPExporter(victoria_metrics.endpoint, timeout=60), exports)
    selector = f'{{batch="{exports[0].labels["batch"]}"}}'
    received = victoria_metrics.wait_for(selector, len(scraped))
    assert shown(received) == shown(scraped)
    assert len(received) == len(scraped)
