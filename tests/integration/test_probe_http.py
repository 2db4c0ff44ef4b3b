"""examples/probe_http.py, as a user runs it: a process of its own, on real sockets."""

from __future__ import annotations

import gzip
import re
import signal
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from urllib.request import urlopen

import programs
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from programs import assert_harmless, assert_refused, exports_by_target

from trio_statskeeper import Map
from trio_statskeeper.lines import from_json

start = partial(programs.start, "probe_http.py")
FAST = ("--interval", "0.1", "--timeout", "0.5", "--export-interval", "0.25")


def test_without_urls_it_probes_what_is_well_what_is_flaky_and_what_is_closed():
    with start(*FAST, "--for", "1.5") as program:
        output, errors = program.communicate(timeout=30)
    assert program.returncode == 0
    assert_harmless(errors)
    exports = exports_by_target(output)
    flaky = exports.pop(next(url for url in exports if url.endswith("/flaky")))
    well, closed = exports.values()
    assert min(len(well), len(flaky), len(closed)) > 1
    for earlier, later in pairwise(well):
        assert later.metrics["total"] >= earlier.metrics["total"]
    last = well[-1].metrics
    assert last["total"] == last["success"] == last["latency"].count > 2
    assert last["resp-code"] == Map("code", {"200": last["total"]})
    assert last["timeouts"] == last["failure"] == 0
    assert set(flaky[-1].metrics["resp-code"].values) <= {"200", "503"}
    last = closed[-1].metrics
    assert last["total"] > 2
    assert last["success"] == 0
    assert last["error"] == Map("error", {"ConnectError": last["total"]})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/hangs":
            self.server.released.wait()
        self.send_error(404) if self.path == "/missing" else self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.released.set()
        server.shutdown()
        thread.join()


def test_with_urls_it_probes_those(server):
    urls = [f"{server}/a?b=c,d e", f"{server}/missing", f"{server}/hangs"]
    with start(*FAST, "--for", "2", *urls) as program:
        output, errors = program.communicate(timeout=30)
    assert program.returncode == 0
    assert_harmless(errors)
    exports = exports_by_target(output)
    assert list(exports) == urls
    well, missing, hangs = (exports[url][-1].metrics for url in urls)
    assert well["success"] == well["total"] == well["resp-code"].values["204"] > 2
    assert missing["resp-code"] == Map("code", {"404": missing["total"]})
    assert hangs["timeouts"] == hangs["total"] > 0
    assert hangs["error"] == Map("error", {"timeout": hangs["total"]})


def test_with_json_it_prints_each_export_as_an_object():
    with start(*FAST, "--for", "1.5", "--json") as program:
        output, errors = program.communicate(timeout=30)
    assert program.returncode == 0
    assert_harmless(errors)
    exports = [from_json(line) for line in output.splitlines()]
    assert len({export.labels["dst"] for export in exports}) == 3
    # More than its line would tell.
    assert all(export.timestamp % 1 and export.start_timestamp for export in exports)


def test_with_a_port_it_serves_its_totals_and_statistics_to_prometheus():
    with start(*FAST, "--prometheus", "0") as program:
        first = program.stdout.readline()
        progress = [program.stderr.readline() for _ in range(2)]
        (url,) = re.findall("http://127.0.0.1:[0-9]+/metrics", "".join(progress))
        with urlopen(url) as answer:
            page = answer.read().decode()
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=30)
    assert program.returncode == 0
    (target,) = exports_by_target(first)
    assert f'probe_success_total{{ptype="http",probe="example",dst="{target}"}}' in page
    assert 'statskeeper_results_accepted_total{ptype="http",probe="example"}' in page
    assert "statskeeper_prober_results_sent_total" in page


class Collector(Handler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(
            ExportMetricsServiceRequest.FromString(gzip.decompress(body))
        )
        self.send_response(200)
        self.end_headers()


def test_with_a_url_it_sends_its_totals_and_statistics_to_a_collector():
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        collector.requests = []
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{collector.server_port}"
        with start(*FAST, "--for", "1.5", "--otlp", url) as program:
            output, errors = program.communicate(timeout=30)
        collector.shutdown()
        thread.join()
    assert program.returncode == 0
    assert_harmless(errors)
    names, totals = set(), {}
    for request in collector.requests:
        for of_resource in request.resource_metrics:
            for metric in of_resource.scope_metrics[0].metrics:
                names.add(metric.name)
                if metric.name == "probe_total":
                    for point in metric.sum.data_points:
                        labels = {
                            pair.key: pair.value.string_value for pair in point.attributes
                        }
                        totals[labels["dst"]] = point.as_int
    assert {"probe_success", "probe_latency", "statskeeper_results_accepted"} <= names
    last = {dst: of_dst[-1] for dst, of_dst in exports_by_target(output).items()}
    assert totals == {dst: export.metrics["total"] for dst, export in last.items()}


def test_a_port_that_is_taken_ends_it_with_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start("--prometheus", str(port)) as program:
            _, errors = program.communicate(timeout=30)
    assert program.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}: Address already in use" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_with_a_last_export(signum):
    with start("--interval", "0.1", "--export-interval", "2") as program:
        first = [program.stdout.readline() for _ in range(3)]
        program.send_signal(signum)
        rest, errors = program.communicate(timeout=30)
    assert program.returncode == 0
    assert_harmless(errors)
    before, after = exports_by_target("".join(first)), exports_by_target(rest)
    assert before.keys() == after.keys()
    # There was no tick since: it is the last pass that these lines come from.
    assert [len(exports) for exports in after.values()] == [1, 1, 1]


def test_it_ends_quietly_when_nobody_reads_its_output_any_more():
    with start(*FAST) as program:
        program.stdout.readline()
        program.stdout.close()
        assert program.wait(timeout=30) == 1
        assert_harmless(program.stderr.read())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["example.com"], "argument URL: 'example.com' is not an http:// or https:// URL"),
        (["ftp://x/"], "argument URL: 'ftp://x/' is not an http:// or https:// URL"),
        (["http://"], "argument URL: 'http://' is not an http:// or https:// URL"),
        (["http://x:port/"], "argument URL: 'http://x:port/' is not a URL: Invalid port"),
        (["--interval", "0"], "argument --interval: '0' is not finite and above 0"),
        (["--timeout", "-1"], "argument --timeout: '-1' is not finite and above 0"),
        (["--export-interval", "nan"], "argument --export-interval: 'nan' is not finite"),
        (["--for", "ever"], "argument --for: 'ever' is not a number of seconds"),
        (["--prometheus", "web"], "argument --prometheus: 'web' is not a port from 0 to"),
        (["--otlp", "example.com"], "argument --otlp: endpoint must be "),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_arguments_end_it_with_one_line_and_status_2(args, message):
    assert_refused("probe_http.py", args, message)


def test_help_tells_what_it_does_and_each_option():
    with start("--help") as program:
        output, _ = program.communicate(timeout=30)
    assert program.returncode == 0
    for option in (
        "URL",
        "--interval",
        "--timeout",
        "--export-interval",
        "--for",
        "--json",
        "--prometheus",
        "--otlp",
        "Ctrl-C",
    ):
        assert option in output
