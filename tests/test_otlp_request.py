"""OTLP requests: how metrics are encoded."""

from __future__ import annotations

import math

import attrs
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from strategies import texts, values

from trio_statskeeper import (
    Distribution,
    EventMetrics,
    ExponentialDistribution,
    Gauge,
    Map,
)
from trio_statskeeper._naming import Families, valid_text
from trio_statskeeper._unchecked_exponential import without_factor
from trio_statskeeper.otlp._request import Request

CUMULATIVE = "AGGREGATION_TEMPORALITY_CUMULATIVE"


def export(metrics, *, timestamp=20.5, start=10.25, labels=None, unit=1.0):
    labels = {"dst": "a"} if labels is None else labels
    return EventMetrics(timestamp, start, labels, metrics, unit)


def request_of(*exports, resource=None):
    request = Request({} if resource is None else resource)
    families = Families("probe_")
    for each in exports:
        for _ in request.add(each, families, now=0):
            pass
    assert request.exports == list(exports)
    return request


def parsed(request):
    return ExportMetricsServiceRequest.FromString(request.serialize())


def metrics_of(*exports):
    """Return the metrics of a request as they are on the wire, by name."""
    message = parsed(request_of(*exports))
    [of_resource] = message.resource_metrics
    [of_scope] = of_resource.scope_metrics
    metrics = {metric.name: metric for metric in of_scope.metrics}
    assert len(metrics) == len(of_scope.metrics)
    return metrics


def attributes_of(message):
    return {each.key: each.value.string_value for each in message.attributes}


def text(name, value):
    return {"key": name, "value": {"stringValue": value}}


def test_a_request_has_the_resource_the_scope_and_every_kind_of_metric():
    request = request_of(
        export(
            {
                "total": 3,
                "busy-time": 1.5,
                "resp-code": Map("code", {"200": 2, "404": 1}),
                "latency": Distribution([0.5, 1], [1, 0, 2], 4.25),
                "queue": Gauge(-7),
                "version": "v1 beta",
            },
            labels={"ptype": "http", "dst": "a"},
        ),
        resource={"service.name": "tests", "site": "é"},
    )
    labels = [text("ptype", "http"), text("dst", "a")]
    end = {"timeUnixNano": "20500000000"}
    times = {"startTimeUnixNano": "10250000000", **end}
    summed = {"aggregationTemporality": CUMULATIVE, "isMonotonic": True}
    message = MessageToDict(parsed(request))
    [of_resource] = message["resourceMetrics"]
    assert of_resource["resource"] == {
        "attributes": [text("service.name", "tests"), text("site", "é")]
    }
    [of_scope] = of_resource["scopeMetrics"]
    assert of_scope["scope"]["name"] == "trio_statskeeper"
    assert of_scope["scope"]["version"]
    assert of_scope["metrics"] == [
        {
            "name": "probe_total",
            "description": "Sum of total over all probe runs.",
            "sum": {
                **summed,
                "dataPoints": [{"attributes": labels, "asInt": "3", **times}],
            },
        },
        {
            "name": "probe_busy_time",
            "description": "Sum of busy-time over all probe runs.",
            "sum": {
                **summed,
                "dataPoints": [{"attributes": labels, "asDouble": 1.5, **times}],
            },
        },
        {
            "name": "probe_resp_code",
            "description": "Sum of resp-code over all probe runs.",
            "sum": {
                **summed,
                "dataPoints": [
                    {"attributes": [*labels, text("code", key)], "asInt": count, **times}
                    for key, count in (("200", "2"), ("404", "1"))
                ],
            },
        },
        {
            "name": "probe_latency",
            "description": "Distribution of latency over all probe runs, in seconds.",
            "unit": "s",
            "histogram": {
                "aggregationTemporality": CUMULATIVE,
                "dataPoints": [
                    {
                        "attributes": labels,
                        "count": "3",
                        "sum": 4.25,
                        "bucketCounts": ["1", "0", "2"],
                        "explicitBounds": [0.5, 1.0],
                        **times,
                    }
                ],
            },
        },
        {
            "name": "probe_queue",
            "description": "Newest queue.",
            "gauge": {"dataPoints": [{"attributes": labels, "asInt": "-7", **end}]},
        },
        {
            "name": "probe_version_info",
            "description": "Newest version.",
            "gauge": {
                "dataPoints": [
                    {
                        "attributes": [*labels, text("version", "v1 beta")],
                        "asInt": "1",
                        **end,
                    }
                ]
            },
        },
    ]


def test_a_metric_of_several_targets_is_one_with_several_data_points():
    metrics = metrics_of(*(export({"total": n}, labels={"dst": str(n)}) for n in range(3)))
    points = metrics["probe_total"].sum.data_points
    assert [(attributes_of(p), p.as_int) for p in points] == [
        ({"dst": str(n)}, n) for n in range(3)
    ]


def test_exponential_distributions_are_sent_as_they_are():
    seconds = ExponentialDistribution.of([-0.5, 0, 0.375, 0.375])
    latency = attrs.evolve(seconds, sum=1, min=-2, max=1.5, factor=4)
    [metric] = metrics_of(export({"latency": latency}, unit=0.25)).values()
    assert (metric.name, metric.unit) == ("probe_latency", "s")
    histogram = metric.exponential_histogram
    assert histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    [point] = histogram.data_points
    exported(metric, "latency", seconds)
    assert attributes_of(point) == {"dst": "a"}
    assert point.start_time_unix_nano == 10_250_000_000
    assert point.time_unix_nano == 20_500_000_000


def test_of_one_name_explicit_and_exponential_distributions_are_two_metrics():
    message = parsed(
        request_of(
            export({"size": Distribution([1], [2, 3], 9)}),
            export({"size": ExponentialDistribution.of([5])}, labels={"dst": "b"}),
            export({"size": Distribution([1], [4, 5], 9)}, labels={"dst": "c"}),
        )
    )
    explicit, exponential = message.resource_metrics[0].scope_metrics[0].metrics
    assert explicit.name == exponential.name == "probe_size"
    assert [p.count for p in explicit.histogram.data_points] == [5, 9]
    assert [p.count for p in exponential.exponential_histogram.data_points] == [1]


def test_latencies_are_in_seconds_whatever_their_unit_and_nothing_else_is():
    metrics = metrics_of(export({"latency": 12, "total": 12}, unit=0.001))
    assert metrics["probe_latency"].sum.data_points[0].as_double == 0.012
    assert metrics["probe_latency"].unit == "s"
    assert metrics["probe_total"].sum.data_points[0].as_int == 12
    assert metrics["probe_total"].unit == ""


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (True, "as_int"),
        (2**63 - 1, "as_int"),
        (-(2**63), "as_int"),
        (2**63, "as_double"),
        (-(2**64), "as_double"),
        (0, "as_int"),
        (0.0, "as_double"),
        (math.inf, "as_double"),
    ],
)
def test_integers_are_integers_within_64_bits(value, field):
    [point] = metrics_of(export({"level": Gauge(value)}))["probe_level"].gauge.data_points
    assert point.WhichOneof("value") == field
    assert getattr(point, field) == value


def test_a_start_after_the_timestamp_is_replaced_by_the_timestamp():
    [point] = metrics_of(export({"total": 1}, start=21))["probe_total"].sum.data_points
    assert point.start_time_unix_nano == point.time_unix_nano == 20_500_000_000


def test_a_map_without_keys_has_no_data_points():
    assert request_of(export({"resp-code": Map("code", {})})).size == 0


def test_lone_surrogates_are_escaped_wherever_they_are():
    lone = "\ud800"
    request = request_of(
        export(
            {f"x{lone}": 1, "m": Map("code", {lone: 1}), "v": lone},
            labels={"dst": f"x{lone}"},
        ),
        resource={lone: lone},
    )
    message = str(parsed(request))
    assert message.count(r"\\ud800") == 8


def test_counts_too_large_for_64_bits_are_skipped_and_logged_once(caplog):
    value = Distribution([1], [2**64 - 1, 1], 0)
    metrics = metrics_of(export({"odd": value, "total": 1}), export({"odd": value}))
    assert metrics.keys() == {"probe_total"}
    (message,) = caplog.messages
    assert message == "not exported: 'odd', a histogram: a count is too large for OTLP"


def test_as_many_samples_as_64_bits_can_count_are_exported():
    value = Distribution([1], [2**64 - 2, 1], 0)
    [point] = metrics_of(export({"d": value}))["probe_d"].histogram.data_points
    assert point.count == 2**64 - 1


@pytest.mark.parametrize("bad", [-1e-9, 2**64 / 1e9])
def test_a_target_with_invalid_timestamps_is_skipped_and_logged_once(bad, caplog):
    metrics = metrics_of(
        export({"total": 1}, timestamp=bad),
        export({"total": 2}, start=bad),
        export({"total": 3}, timestamp=18446744073, start=0),
    )
    [point] = metrics["probe_total"].sum.data_points
    assert (point.as_int, point.start_time_unix_nano) == (3, 0)
    [logged] = caplog.messages
    assert logged == (
        f"not exported: timestamps that are not between 1970 and 2554: 10.25 and {bad!r}"
    )


def test_the_size_is_about_that_of_what_is_sent():
    request = request_of(
        *(export({"total": n, "m": Map("k", dict.fromkeys("abc", n))}) for n in range(100))
    )
    assert 0.9 < request.size / len(request.serialize()) <= 1


def fits(value):
    is_distribution = isinstance(value, Distribution | ExponentialDistribution)
    return not is_distribution or value.count < 2**64


def exported(metric, name, value):
    """Check that what was exported is `value`."""
    if isinstance(value, Distribution):
        [point] = metric.histogram.data_points
        assert tuple(point.bucket_counts) == value.bucket_counts
        assert (tuple(point.explicit_bounds), point.sum) == (value.bounds, value.sum)
        assert point.count == value.count
    elif isinstance(value, ExponentialDistribution):
        [point] = metric.exponential_histogram.data_points
        positive, negative = point.positive, point.negative
        assert without_factor(value) == ExponentialDistribution(
            point.scale,
            positive_offset=positive.offset,
            positive_counts=positive.bucket_counts,
            negative_offset=negative.offset,
            negative_counts=negative.bucket_counts,
            zero_count=point.zero_count,
            sum=point.sum,
            min=point.min if point.HasField("min") else None,
            max=point.max if point.HasField("max") else None,
        )
        assert point.count == value.count
    elif isinstance(value, Map):
        assert metric.sum.is_monotonic
        points = metric.sum.data_points
        keys = [point.attributes[-1].value.string_value for point in points]
        assert keys == [valid_text(key) for key in value.values]
        assert all(map(is_number, points, value.values.values()))
    elif isinstance(value, str):
        [point] = metric.gauge.data_points
        assert point.attributes[-1].value.string_value == valid_text(value)
        assert point.as_int == 1
    elif isinstance(value, Gauge):
        [point] = metric.gauge.data_points
        assert is_number(point, value.value)
    else:
        [point] = metric.sum.data_points
        assert is_number(point, value)


def is_number(point, value):
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return point.WhichOneof("value") == "as_int" and point.as_int == value
    return point.as_double == float(value)


# Two metrics at most, of names that can't clash: clashes are tested with the families.
@given(values(), values(), st.dictionaries(texts, texts, max_size=3), texts)
def test_any_value_is_exact_or_skipped(first, second, labels, name):
    found = Families("p_").resolve(export({"1": first, "2": second}, labels=labels), 0)
    resolved = [family.otlp_name for family, value in found.metrics if fits(value)]
    families = Families("p_")
    request = Request({name: name})
    for _ in request.add(export({"1": first, "2": second}, labels=labels), families, 0):
        pass
    [of_resource] = parsed(request).resource_metrics
    assert attributes_of(of_resource.resource) == {valid_text(name): valid_text(name)}
    metrics = {m.name: m for m in of_resource.scope_metrics[0].metrics}
    for metric, value in (("1", first), ("2", second)):
        name = f"p_{metric}_info" if isinstance(value, str) else f"p_{metric}"
        if name in resolved and value != Map(getattr(value, "name", ""), {}):
            exported(metrics.pop(name), metric, value)
    assert not metrics
