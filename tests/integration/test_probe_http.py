"""examples/probe_http.py, as a user runs it: a process of its own, on real sockets."""

from __future__ import annotations

import gzip
import re
import signal
import socket
import threading
from functools import partial
from itertools import pairwise
from urllib.request import urlopen

import programs
import pytest
from loopback import HttpServer, answer, serving
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from programs import TIMEOUT, assert_harmless, assert_refused, exports_by_target, probe_once

from trio_statskeeper import Map
from trio_statskeeper.lines import from_json

start = partial(programs.start, "probe_http.py")
run = partial(programs.run, "probe_http.py")
FAST = ("--interval", "0.1", "--timeout", "0.5", "--export-interval", "0.25")


def test_without_urls_it_probes_a_healthy_a_flaky_and_a_closed_one():
    status, output, errors = run(*FAST, "--for", "1.5")
    assert status == 0
    assert_harmless(errors)
    exports = exports_by_target(output)
    flaky = exports.pop(next(url for url in exports if url.endswith("/flaky")))
    healthy, closed = exports.values()
    assert min(len(healthy), len(flaky), len(closed)) > 1
    for earlier, later in pairwise(healthy):
        assert later.metrics["total"] >= earlier.metrics["total"]
    last = healthy[-1].metrics
    assert last["total"] == last["success"] == last["latency"].count > 2
    assert last["resp-code"] == Map("code", {"200": last["total"]})
    assert last["timeouts"] == last["failure"] == 0
    assert flaky[-1].metrics["resp-code"].values.keys() <= {"200", "503"}
    assert flaky[-1].metrics["error"].values.keys() <= {"status-503", "timeout"}
    last = closed[-1].metrics
    assert last["total"] > 2
    assert last["success"] == 0
    assert last["error"] == Map("error", {"ConnectionRefusedError": last["total"]})


@pytest.fixture
def url():
    """A server that answers 204, except that a path `/hangs` gets no answer."""
    released = threading.Event()

    def handle(request):
        if request.path == "/hangs":
            released.wait(TIMEOUT)
        answer(request, 204)

    with serving(HttpServer(handle)) as server:
        yield server.url
        released.set()


def test_with_urls_it_probes_them(url):
    urls = [f"{url}a%20b?c=d", f"{url}hangs"]
    status, output, errors = run(*FAST, "--for", "2", *urls)
    assert status == 0
    assert_harmless(errors)
    exports = exports_by_target(output)
    assert list(exports) == [f"{url}a%20b", f"{url}hangs"]
    healthy, hangs = (of_target[-1].metrics for of_target in exports.values())
    assert healthy["success"] == healthy["total"] == healthy["resp-code"].values["204"] > 2
    assert hangs["timeouts"] == hangs["total"] > 0
    assert hangs["error"] == Map("error", {"timeout": hangs["total"]})


def test_once_it_probes_each_target_once_and_its_status_is_0_if_none_failed(url):
    status, exports = probe_once("probe_http.py", url, f"{url}a")
    assert status == 0
    for export in exports.values():
        assert export.metrics["total"] == export.metrics["success"] == 1


def test_once_its_status_is_1_if_a_target_failed(url):
    closed = "http://127.0.0.1:1/"
    status, exports = probe_once("probe_http.py", url, closed)
    assert status == 1
    assert exports[url].metrics["success"] == 1
    assert exports[closed].metrics["failure"] == 1


def test_with_json_it_prints_each_export_as_an_object():
    status, output, errors = run(*FAST, "--for", "1.5", "--json")
    assert status == 0
    assert_harmless(errors)
    exports = [from_json(line) for line in output.splitlines()]
    assert len({export.labels["dst"] for export in exports}) == 3
    # Lines have no fractions of a second.
    assert all(export.timestamp % 1 and export.start_timestamp for export in exports)


def test_with_a_port_it_serves_its_totals_and_statistics_to_prometheus():
    with start(*FAST, "--prometheus", "0") as program:
        first = program.stdout.readline()
        [page_url] = re.findall(r"http://127.0.0.1:\d+/metrics", program.stderr.readline())
        with urlopen(page_url, timeout=TIMEOUT) as response:
            page = response.read().decode()
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=TIMEOUT)
    assert program.returncode == 0
    [target] = exports_by_target(first)
    assert f'probe_success_total{{ptype="http",probe="example",dst="{target}"}}' in page
    assert 'statskeeper_results_accepted_total{ptype="http",probe="example"}' in page
    assert "statskeeper_prober_results_sent_total" in page


def test_with_a_url_it_sends_its_totals_and_statistics_to_a_collector():
    requests = []

    def collect(request):
        body = request.rfile.read(int(request.headers["Content-Length"]))
        requests.append(ExportMetricsServiceRequest.FromString(gzip.decompress(body)))
        answer(request)

    with serving(HttpServer(collect)) as collector:
        status, output, errors = run(*FAST, "--for", "1.5", "--otlp", collector.url)
    assert status == 0
    assert_harmless(errors)
    names, totals = set(), {}
    for request in requests:
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


def test_a_port_that_is_taken_ends_it_with_one_line_before_it_probes():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, output, errors = run("--prometheus", str(port))
    assert (status, output) == (1, "")
    assert errors.startswith(f"can't listen on 127.0.0.1:{port}: Address already in use")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_with_a_last_export(signum):
    with start("--interval", "0.1", "--export-interval", "2") as program:
        first = [program.stdout.readline() for _ in range(3)]
        program.send_signal(signum)
        rest, errors = program.communicate(timeout=TIMEOUT)
    assert program.returncode == 0
    assert_harmless(errors)
    before, after = exports_by_target("".join(first)), exports_by_target(rest)
    assert before.keys() == after.keys()
    # There was no tick since: it is the last pass that these lines come from.
    assert [len(exports) for exports in after.values()] == [1, 1, 1]


def test_a_second_signal_ends_it_at_once_though_an_output_is_stuck(url):
    # A collector that can be connected to, but never answers, is given 5 seconds.
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        otlp = f"http://127.0.0.1:{stuck.getsockname()[1]}"
        with start(*FAST, "--otlp", otlp, url) as program:
            program.stdout.readline()
            stuck.accept()[0].close()
            program.send_signal(signal.SIGINT)
            program.stdout.read()
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=4) == 0
            assert "Traceback" not in program.stderr.read()


def test_it_ends_quietly_when_its_output_is_closed():
    with start(*FAST) as program:
        program.stdout.readline()
        program.stdout.close()
        assert program.wait(timeout=TIMEOUT) == 1
        assert_harmless(program.stderr.read())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["example.com"], "argument URL: 'example.com' is not an http:// or https:// URL"),
        (["ftp://x/"], "argument URL: 'ftp://x/' is not an http:// or https:// URL"),
        (["http://"], "argument URL: 'http://' is not an http:// or https:// URL"),
        (["http://x:port/"], "argument URL: 'http://x:port/' is not an http:// or "),
        (["--interval", "0"], "argument --interval: '0' is not finite and > 0"),
        (["--timeout", "-1"], "argument --timeout: '-1' is not finite and > 0"),
        (["--export-interval", "nan"], "argument --export-interval: 'nan' is not finite"),
        (["--for", "ever"], "argument --for: 'ever' is not a number of seconds"),
        (["--prometheus", "web"], "argument --prometheus: 'web' is not a port from 0 to"),
        (["--otlp", "example.com"], "argument --otlp: endpoint must be "),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_arguments_end_it_with_one_line_and_status_2(args, message):
    assert_refused("probe_http.py", args, message)


def test_help_describes_it_and_each_option():
    status, output, _ = run("--help")
    assert status == 0
    options = "--interval --timeout --export-interval --for --once --json --lines"
    words = "URL table lines loop_lag Ctrl-C --prometheus --otlp"
    for word in (*options.split(), *words.split()):
        assert word in output
