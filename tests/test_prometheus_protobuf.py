"""The Prometheus output in protobuf: what the text has, and native histograms."""

from __future__ import annotations

import logging
import math
from collections import Counter
from itertools import accumulate

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from scraping import answers, export, feed, request, scrape
from strategies import texts, values

from trio_statskeeper import Distribution, EventMetrics, ExponentialDistribution, Gauge, Map
from trio_statskeeper._exponential_mapping import bucket_index
from trio_statskeeper.prometheus import PrometheusExporter
from trio_statskeeper.prometheus._client_model import MetricFamily

ACCEPT = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
    "encoding=delimited"
)


async def families(exporter):
    """Return the families of a scrape in protobuf, except those about keepers."""
    asked = request("/metrics", "GET", f"Accept: {ACCEPT}")
    [(_, headers, body)] = await answers(exporter, asked)
    assert headers[b"content-type"].startswith(b"application/vnd.google.protobuf; proto=")
    return [family for family in read(body) if not family.name.startswith("statskeeper_")]


def read(body):
    while body:
        size = shift = 0
        more = True
        while more:
            size |= (body[0] & 0x7F) << shift
            shift += 7
            more = body[0] >= 0x80
            body = body[1:]
        yield MetricFamily.FromString(body[:size])
        body = body[size:]


def samples_of(family):
    for metric in family.metric:
        labels = {label.name: label.value for label in metric.label}
        if metric.HasField("counter"):
            found = [("", {}, metric.counter.value)]
        elif metric.HasField("gauge"):
            found = [("", {}, metric.gauge.value)]
        else:
            histogram = metric.histogram
            found = [
                ("_bucket", {"le": str(bucket.upper_bound)}, bucket.cumulative_count)
                for bucket in histogram.bucket
            ]
            found += [
                ("_bucket", {"le": "+Inf"}, histogram.sample_count),
                ("_count", {}, histogram.sample_count),
                ("_sum", {}, histogram.sample_sum),
            ]
        for suffix, further, value in found:
            yield (family.name + suffix, frozenset({**labels, **further}.items())), value


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
    st.sampled_from([1, 4]),
)
def test_any_exports_have_the_same_samples_in_protobuf_as_in_text(exports, per_power):
    logging.getLogger("trio_statskeeper").setLevel(logging.CRITICAL)

    async def main():
        exporter = PrometheusExporter(buckets_per_power=per_power)
        await feed(exporter, *exports)
        _, _, text = await scrape(exporter)
        in_protobuf = await families(exporter)
        in_text = {}
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("statskeeper_"):
                for sample in family.samples:
                    key = sample.name, frozenset(sample.labels.items())
                    # Its fields hold counts of 64 bits.
                    counts = sample.name.endswith(("_bucket", "_count"))
                    most = float(2**64 - 1) if counts else math.inf
                    in_text[key] = min(float(sample.value), most)
        assert in_text == {
            key: float(value) for family in in_protobuf for key, value in samples_of(family)
        }
        assert len({family.name for family in in_protobuf}) == len(in_protobuf)

    try:
        trio.run(main)
    finally:
        logging.getLogger("trio_statskeeper").setLevel(logging.NOTSET)


async def test_families_have_names_types_and_help_texts():
    exporter = PrometheusExporter()
    metrics = {
        "total": 1,
        "m": Map("code", {"200": 2}),
        "g": Gauge(3),
        "v": "1.2",
        "latency": Distribution([1], [0, 1], 2),
    }
    await feed(exporter, export(metrics))
    assert [(each.name, each.type, each.help) for each in await families(exporter)] == [
        ("probe_total", 0, "Sum of total over all probe runs."),
        ("probe_m_total", 0, "Sum of m over all probe runs."),
        ("probe_g", 1, "Newest g."),
        ("probe_v_info", 1, "Newest v."),
        (
            "probe_latency_seconds",
            4,
            "Distribution of latency over all probe runs, in seconds.",
        ),
    ]


@pytest.mark.parametrize("start", [0, 1519084040.25, 253402300799])
async def test_counters_and_histograms_say_when_they_began(start):
    exporter = PrometheusExporter()
    distribution = Distribution([1], [0, 1], 2)
    await feed(
        exporter, export({"total": 1, "d": distribution, "g": Gauge(1)}, start=start)
    )
    total, histogram, gauge = (family.metric[0] for family in await families(exporter))
    for message in total.counter, histogram.histogram:
        created = message.created_timestamp
        assert created.seconds + created.nanos / 1e9 == start
    assert not gauge.HasField("counter")


@pytest.mark.parametrize("start", [-0.5, 253402300800, 1e300])
async def test_a_start_that_protobuf_can_not_hold_is_not_sent(start):
    exporter = PrometheusExporter()
    await feed(exporter, export({"total": 1}, start=start))
    (family,) = await families(exporter)
    assert not family.metric[0].counter.HasField("created_timestamp")


async def native(value):
    """Return the native histogram of an exponential distribution, with its buckets."""
    exporter = PrometheusExporter()
    await feed(exporter, export({"d": value}))
    (family,) = await families(exporter)
    histogram = family.metric[0].histogram
    buckets = {}
    for sign in "positive", "negative":
        index = 0
        counts = accumulate(getattr(histogram, f"{sign}_delta"))
        for span in getattr(histogram, f"{sign}_span"):
            index += span.offset
            for _ in range(span.length):
                buckets[sign, index] = next(counts)
                index += 1
        assert not [*counts]
    return histogram, {key: count for key, count in buckets.items() if count}


@given(st.lists(st.floats(1e-300, 1e300) | st.floats(0.5, 2), min_size=1, max_size=9))
def test_exponential_distributions_become_native_histograms(samples):
    async def main():
        both = [*samples, *(-2 * sample for sample in samples), 0]
        distribution = ExponentialDistribution.of(both)
        histogram, buckets = await native(distribution)
        # Coarser buckets have no place in a native histogram, and finer ones are merged.
        assert histogram.schema == min(distribution.scale, 8)
        coarser = distribution.scale - histogram.schema
        assert buckets == Counter(
            (sign, (bucket_index(factor * sample, distribution.scale) >> coarser) + 1)
            for sample in samples
            for sign, factor in [("positive", 1), ("negative", 2)]
        )
        assert histogram.HasField("zero_threshold")
        assert histogram.zero_threshold == 0
        assert histogram.zero_count == 1
        assert histogram.sample_count == len(both)

    trio.run(main)


async def test_a_native_histogram_without_samples_has_an_empty_span():
    histogram, buckets = await native(ExponentialDistribution(0))
    assert buckets == {}
    assert [(span.offset, span.length) for span in histogram.positive_span] == [(0, 0)]


async def test_buckets_that_are_too_coarse_are_sent_as_classic_buckets_only():
    distribution = ExponentialDistribution.of([1e-300, 1e300], max_buckets=2)
    assert distribution.scale < -4
    histogram, buckets = await native(distribution)
    assert not histogram.HasField("schema")
    assert (len(histogram.positive_span), buckets) == (0, {})
    assert [bucket.cumulative_count for bucket in histogram.bucket][-1] >= 1


async def test_counts_that_are_too_large_for_a_field_are_sent_as_classic_buckets_only():
    largest = ExponentialDistribution(0, positive_counts=(2**63 - 2, 1))
    histogram, buckets = await native(largest)
    assert buckets == {("positive", 1): 2**63 - 2, ("positive", 2): 1}
    assert histogram.sample_count == sum(buckets.values())
    histogram, buckets = await native(largest.merge(largest))
    assert not histogram.HasField("schema")
    assert buckets == {}
    assert histogram.sample_count == histogram.bucket[-1].cumulative_count == 2**64 - 2
    beyond = ExponentialDistribution(0, positive_counts=(2**64 - 1, 1))
    histogram, _ = await native(beyond)
    assert histogram.sample_count == histogram.bucket[-1].cumulative_count == 2**64 - 1


@pytest.mark.parametrize("per_power", [0, 3, -1, 32])
def test_buckets_per_power_is_a_power_of_two(per_power):
    with pytest.raises(ValueError, match="buckets_per_power must be 1, 2, 4, 8 or 16"):
        PrometheusExporter(buckets_per_power=per_power)


@pytest.mark.parametrize("per_power", [1.0, True, "1"])
def test_buckets_per_power_is_an_integer(per_power):
    with pytest.raises(TypeError, match="buckets_per_power must be an integer, got "):
        PrometheusExporter(buckets_per_power=per_power)


async def test_scrapers_of_both_formats_get_theirs(autojump_clock):
    exporter = PrometheusExporter()
    await feed(exporter, export({"total": 1}))
    for total in 1, 2, 3:
        await feed(exporter, export({"total": total}, at=5 + total))
        (family,) = await families(exporter)
        assert family.metric[0].counter.value == total
        _, headers, text = await scrape(exporter, "/metrics", "GET", "Accept: text/plain")
        assert headers[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
        assert f'probe_total{{ptype="http",probe="homepage",dst="a"}} {total}\n' in text
