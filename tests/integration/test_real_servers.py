"""The real servers that other tests use start, answer, stop, and start again."""

from __future__ import annotations

import gzip
import json
import math
import socket
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import real_servers
from loopback import serving
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from real_servers import EndedError, Point

METRICS = """\
# HELP probe_total Probes made.
# TYPE probe_total counter
probe_total{dst="a"} 3
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(METRICS.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def target():
    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"127.0.0.1:{server.server_port}"


def test_prometheus_scrapes_and_keeps_its_samples_over_a_restart(start_prometheus, target):
    prometheus = start_prometheus(target, scrape_interval="200ms")
    count = "count_over_time(probe_total[1h])"
    prometheus.wait_for(count, lambda found: found and found[0].value > 2)
    labels = {"__name__": "probe_total", "dst": "a", "instance": target, "job": "tests"}
    assert prometheus.query("probe_total") == [(labels, 3)]
    [(found, samples)] = prometheus.series("probe_total[1h]")
    assert found == labels
    assert len(samples) > 2
    assert {value for _, value in samples} == {3}
    assert samples == sorted(samples)

    port = prometheus.port
    prometheus.stop()
    with pytest.raises(ConnectionRefusedError):
        prometheus.query("up")
    prometheus.start()
    assert prometheus.port == port
    assert prometheus.query(count)[0].value >= len(samples)


def test_a_failed_query_shows_the_error_or_the_last_result(
    start_prometheus,
):
    prometheus = start_prometheus()
    with pytest.raises(AssertionError, match="parse error"):
        prometheus.query("sum(")
    with pytest.raises(AssertionError, match=r"0 s are over; last vector\(7\) was\n.*7\.0"):
        prometheus.wait_for("vector(7)", lambda found: found[0].value == 8, timeout=0)


def test_waiting_fails_if_prometheus_has_died(start_prometheus):
    prometheus = start_prometheus()
    prometheus.kill()
    with pytest.raises(ConnectionRefusedError):
        prometheus.wait_for("up", bool)
    prometheus.start()


def test_promtool_accepts_good_metrics_and_refuses_bad_ones(check_metrics):
    assert check_metrics(METRICS) == (0, "")
    status, output = check_metrics(METRICS.replace("probe_total", "probe"))
    assert status != 0
    assert "_total" in output


def request_of(**value):
    request = ExportMetricsServiceRequest()
    of_resource = request.resource_metrics.add()
    of_resource.resource.attributes.add(key="service.name").value.string_value = "tests"
    of_resource.scope_metrics.add().metrics.add(**value)
    return request


def post(receiver, body, **headers):
    with closing(HTTPConnection("127.0.0.1", receiver.port, timeout=60)) as connection:
        headers = {"Content-Type": "application/x-protobuf", **headers}
        connection.request("POST", "/v1/metrics", body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def test_the_otlp_receiver_decodes_requests(start_otlp_receiver):
    receiver = start_otlp_receiver()
    assert receiver.endpoint == f"http://127.0.0.1:{receiver.port}/v1/metrics"
    times = {"start_time_unix_nano": 2**62, "time_unix_nano": 2**62 + 1}
    read_times = {"startTimeUnixNano": 2**62, "timeUnixNano": 2**62 + 1}
    cumulative = "AGGREGATION_TEMPORALITY_CUMULATIVE"
    counter = {
        "data_points": [{"as_int": 2**53 + 1, **times}, {"as_double": 0.5}],
        "aggregation_temporality": AGGREGATION_TEMPORALITY_CUMULATIVE,
        "is_monotonic": True,
    }
    histogram = {
        "data_points": [
            {
                "attributes": [{"key": "dst", "value": {"string_value": "é"}}],
                "count": 3,
                "sum": 1.5,
                "bucket_counts": [1, 2, 0],
                "explicit_bounds": [0.1, 1],
                **times,
            }
        ],
        "aggregation_temporality": AGGREGATION_TEMPORALITY_CUMULATIVE,
    }
    infinite = {
        "as_double": math.inf,
        "attributes": [{"key": "n", "value": {"int_value": 1}}],
    }
    for request in (
        request_of(name="probes", sum=counter),
        request_of(name="latency", unit="s", histogram=histogram),
        request_of(name="free", gauge={"data_points": [infinite]}),
    ):
        assert post(receiver, request.SerializeToString()) == (200, b"")
    resource = {"service.name": "tests"}
    receiver.wait_for("free", bool)
    assert receiver.points("probes") == [
        Point(
            "sum", cumulative, True, "", {}, resource, {"asInt": 2**53 + 1, **read_times}
        ),
        Point("sum", cumulative, True, "", {}, resource, {"asDouble": 0.5}),
    ]
    data = {"count": 3, "sum": 1.5, "bucketCounts": [1, 2, 0], "explicitBounds": [0.1, 1]}
    assert receiver.points("latency") == [
        Point(
            "histogram",
            cumulative,
            False,
            "s",
            {"dst": "é"},
            resource,
            {**data, **read_times},
        )
    ]
    assert receiver.points("free") == [
        Point("gauge", None, False, "", {"n": 1}, resource, {"asDouble": "Infinity"})
    ]


def counted(number):
    return request_of(
        name="n", sum={"data_points": [{"as_int": number}]}
    ).SerializeToString()


def numbers(receiver):
    return [point.data["asInt"] for point in receiver.points("n")]


def test_the_otlp_receiver_restarts_on_its_port_and_keeps_its_requests(start_otlp_receiver):
    receiver = start_otlp_receiver()
    port = receiver.port
    assert post(receiver, counted(1)) == (200, b"")
    receiver.stop()
    assert numbers(receiver) == [1]
    with pytest.raises(ConnectionRefusedError):
        post(receiver, counted(2))
    receiver.start()
    assert receiver.port == port
    assert post(receiver, counted(3)) == (200, b"")
    receiver.wait_for("n", lambda points: len(points) == 2)
    receiver.kill()
    receiver.start()
    assert numbers(receiver) == [1, 3]
    assert len(receiver.requests) == 2
    assert json.dumps(receiver.requests[1]).count('"asInt": "3"') == 1


def test_requests_answered_before_the_otlp_receiver_is_stopped_are_never_lost(
    start_otlp_receiver,
):
    receiver = start_otlp_receiver()
    for number in range(4):
        assert post(receiver, counted(number)) == (200, b"")
        receiver.stop()
        assert numbers(receiver) == list(range(number + 1))
        receiver.start()


def test_the_otlp_receiver_is_not_started_on_a_port_in_use(start_otlp_receiver):
    first = start_otlp_receiver()
    with pytest.raises(OSError, match="in use"):
        start_otlp_receiver(first.port)
    second = start_otlp_receiver()
    assert post(second, counted(1)) == (200, b"")
    assert numbers(first) == []


def test_a_server_starts_on_another_port_when_the_first_is_taken_in_between(
    start_otlp_receiver, monkeypatch
):
    free = real_servers.free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [free, taken.getsockname()[1]]
        monkeypatch.setattr(real_servers, "free_port", ports.pop)
        receiver = start_otlp_receiver()
    assert receiver.port == free


def test_a_request_that_cannot_be_decoded_ends_the_otlp_receiver(start_otlp_receiver):
    receiver = start_otlp_receiver()
    headers = {"Content-Encoding": "gzip"}
    assert post(receiver, gzip.compress(counted(1)), **headers) == (200, b"")
    with pytest.raises(EndedError):
        receiver.wait_for("n", bool)
    with pytest.raises(EndedError):
        receiver.stop()
