"""A real Prometheus scrapes a running program that probes real servers on loopback."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import accumulate, cycle, pairwise
from pathlib import Path

import pytest
from loopback import serving
from probing_program import REPORTED_BOUNDS
from real_servers import TIMEOUT, Server, get

from trio_statskeeper import Distribution, EventMetrics, Gauge, Map, Value
from trio_statskeeper.lines import from_json, to_json

PROGRAM = Path(__file__).with_name("probing_program.py")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        report = next(self.server.reports)
        self.server.reported.append(report)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(to_json(EventMetrics(0, 0, {}, report)).encode())

    def log_message(self, *_: object) -> None:
        pass


class Target(HTTPServer):
    """Answers each probe with metrics, in turn, and remembers what it has answered."""

    def __init__(self, name: str, reports: tuple[Mapping[str, Value], ...], note: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.labels = {"url": f"http://127.0.0.1:{self.server_port}/", "note": note}
        self.report(*reports)
        self.reported: list[Mapping[str, Value]] = []

    def report(self, *reports: Mapping[str, Value]) -> None:
        self.reports = cycle(reports or ({},))


@contextmanager
def answering(name, *reports, note=""):
    """Run a server; what it has answered by the end, it has answered in full."""
    with serving(Target(name, reports, note)) as target:
        yield target


class Program(Server):
    """The program: its name, which is new in each test, is in all that it exports."""

    def __init__(self, port: int, folder: Path, options: tuple[str, ...]):
        super().__init__(port)
        self.interval = 0.05
        self._folder = folder
        self._options = options
        self.probe()

    def _command(self):
        args = [str(self.port), self._folder.name, str(self.interval), *self._options]
        return [sys.executable, PROGRAM, *args], self._folder

    def _is_ready(self):
        return get(self.port, "/metrics", timeout=1)[0] == 200

    def probe(self, *targets: Target) -> None:
        """Have it probe these, and no others."""
        listed = {target.name: target.labels for target in targets}
        # It may read the list at any time, and must find the whole of it.
        unfinished = self._folder / "unfinished.json"
        unfinished.write_text(json.dumps(listed))
        unfinished.replace(self._folder / "targets.json")

    @contextmanager
    def standing_still(self):
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def select(self, metric: str, **labels: str) -> str:
        """Return the PromQL that selects these series of the program."""
        labels = {"probe": self._folder.name} | labels
        pairs = (f"{name}={json.dumps(value)}" for name, value in labels.items())
        return f"{metric}{{{','.join(pairs)}}}"

    def exports(self, ptype: str) -> list[EventMetrics]:
        """Return what a keeper has exported so far."""
        # The last line may be in the middle of being written.
        lines = (self._folder / "exports.jsonl").read_text().split("\n")[:-1]
        exports = map(from_json, lines)
        return [export for export in exports if export.labels["ptype"] == ptype]

    def page(self) -> str:
        return get(self.port, "/metrics")[1].decode()

    def wait_for_page(self, *parts: str) -> str:
        """Return what it serves as soon as these are in it."""
        return self._wait_for(
            "page", self.page, lambda page: all(part in page for part in parts), TIMEOUT
        )

    def wait_for_export(self, ptype: str, **metrics: Value) -> EventMetrics:
        """Return a keeper's newest export as soon as it has these metrics, among others."""
        return self._wait_for(
            "exports",
            lambda: self.exports(ptype),
            lambda exports: exports and metrics.items() <= exports[-1].metrics.items(),
            TIMEOUT,
        )[-1]


@pytest.fixture
def start_program(port, tmp_path):
    """Start a program on the port that Prometheus scrapes."""
    with ExitStack() as programs:

        def start(*options):
            return programs.enter_context(Program(port, tmp_path, options))

        yield start


# Conditions for `wait_for`, which may find nothing: a scrape that fails ends all series
# until the next.


def more_than(number):
    return lambda found: found and found[0].value > number


def exactly(number):
    return lambda found: found and found[0].value == number


def is_there(prometheus, expr):
    """Return the value of the one series that `expr` finds."""
    [sample] = prometheus.wait_for(expr, bool)
    return sample.value


def by(label, samples):
    return {sample.labels.get(label, ""): sample.value for sample in samples}


def test_counters_equal_what_the_server_has_answered(prometheus, start_program):
    program = start_program()
    success = program.select("probe_success_total", dst="a")
    with answering("a") as target:
        program.probe(target)
        prometheus.wait_for("up == 1", bool)
        prometheus.wait_for(f"rate({success}[1m]) > 0", bool)
        while_it_runs = is_there(prometheus, success)
        assert 0 < while_it_runs <= len(target.reported)
    answered = len(target.reported)
    prometheus.wait_for(success, exactly(answered))
    # Nobody is there any more.
    error = program.select("probe_error_total", dst="a")
    prometheus.wait_for(f"sum({error})", more_than(3))
    for counter in (
        success,
        program.select("probe_resp_code_total", code="200"),
        program.select("probe_latency_seconds_count", ptype="http"),
        program.select("statskeeper_results_accepted_total", ptype="reported"),
    ):
        prometheus.wait_for(counter, exactly(answered))


def test_the_metrics_of_a_target_in_a_scrape_are_consistent(prometheus, start_program):
    program = start_program()
    with answering("a") as target:
        program.probe(target)
        success = program.select("probe_success_total")
        prometheus.wait_for(f"count_over_time({success}[5m])", more_than(3))
    failure = program.select("probe_failure_total")
    prometheus.wait_for(failure, more_than(3))
    scrapes = dict[float, dict[str, float]]()
    selected = program.select("", ptype="http", dst="a")
    for labels, samples in prometheus.series(f"{selected}[5m]"):
        for at, value in samples:
            name = labels["__name__"] + labels.get("le", "") + labels.get("error", "")
            scrapes.setdefault(at, {})[name] = value
    assert len(scrapes) > 3
    for scrape in scrapes.values():
        assert scrape["probe_total"] == (
            scrape["probe_success_total"] + scrape["probe_failure_total"]
        )
        assert scrape["probe_failure_total"] == sum(
            value for name, value in scrape.items() if name.startswith("probe_error_total")
        )
        assert scrape["probe_success_total"] == scrape["probe_resp_code_total"]
        assert scrape["probe_success_total"] == scrape["probe_latency_seconds_count"]
        assert scrape["probe_success_total"] == scrape["probe_latency_seconds_bucket+Inf"]


def test_a_histogram_is_the_keepers_distribution_in_seconds(prometheus, start_program):
    program = start_program()
    count = program.select("probe_latency_seconds_count", ptype="reported")
    # All sums of these are exact.
    samples = [{"latency": sample} for sample in (0.5, 1, 1.5, 3, 4, 5, 7, 32)]
    with answering("a", *samples) as target:
        program.probe(target)
        prometheus.wait_for(count, more_than(20))
    reported = [report["latency"] for report in target.reported]
    prometheus.wait_for(count, exactly(len(reported)))
    expected = Distribution.of(reported, REPORTED_BOUNDS)
    program.wait_for_export("reported", latency=expected)

    bucket = program.select("probe_latency_seconds_bucket", ptype="reported")
    buckets = by("le", prometheus.wait_for(bucket, bool))
    bounds = [bound / 1000 for bound in REPORTED_BOUNDS] + [math.inf]
    assert {float(le): value for le, value in buckets.items()} == dict(
        zip(bounds, accumulate(expected.bucket_counts), strict=True)
    )
    total = program.select("probe_latency_seconds_sum", ptype="reported")
    assert is_there(prometheus, total) == expected.sum / 1000
    for q in (0.05, 0.5, 0.75, 0.99):
        quantile = is_there(prometheus, f"histogram_quantile({q}, {bucket})")
        assert quantile == pytest.approx(expected.quantile(q) / 1000)


def test_latencies_of_the_prober_are_in_seconds(prometheus, start_program):
    program = start_program()
    with answering("a") as target:
        program.probe(target)
        count = program.select("probe_latency_seconds_count", ptype="http")
        prometheus.wait_for(count, more_than(3))
    answered = len(target.reported)
    prometheus.wait_for(count, exactly(answered))
    latency = program.wait_for_export("http", success=answered).metrics["latency"]
    total = program.select("probe_latency_seconds_sum", ptype="http")
    assert is_there(prometheus, total) == latency.sum
    bucket = program.select("probe_latency_seconds_bucket", ptype="http")
    median = is_there(prometheus, f"histogram_quantile(0.5, {bucket})")
    assert median == pytest.approx(latency.quantile(0.5))


ODD_TEXTS = (
    'say "hi"',
    "a,b=c",
    "back\\slash, and at the end: \\",
    "two\nlines",
    r"\n is no new line, \\ no backslash, \" no quote",
    '"} 1\nprobe_total{dst="forged"} 7',
    "# HELP",
    "  spaces  ",
    "\0\x01\t\r\x1b\x7f\x85\u2028\ufeff",
    "é, Ω, 日本, 🎉, e\u0301",
    "",  # to Prometheus, this is to have no such label
)


def test_labels_of_any_characters_are_read_back_unchanged(prometheus, start_program):
    program = start_program()
    name, note = "".join(ODD_TEXTS), "".join(reversed(ODD_TEXTS))
    report = {
        "seen": Map("text", {text: number for number, text in enumerate(ODD_TEXTS, 1)}),
        "version": note,
        'free\\n "bytes"\n': Gauge(1),
    }
    with answering(name, report, note=note) as target:
        program.probe(target)
        seen = program.select("probe_seen_total")
        found = prometheus.wait_for(seen, lambda found: len(found) == len(ODD_TEXTS))
        counts = by("text", found)
        probes = counts[ODD_TEXTS[0]]
        assert counts == {t: probes * number for number, t in enumerate(ODD_TEXTS, 1)}
        assert {(sample.labels["dst"], sample.labels["note"]) for sample in found} == {
            (name, note)
        }
        info = program.select("probe_version_info")
        assert by("version", prometheus.wait_for(info, bool)) == {note: 1}
        assert is_there(prometheus, program.select("probe_free_n_bytes")) == 1
    help_path = "/api/v1/metadata?metric=probe_free_n_bytes"
    [metadata] = json.loads(get(prometheus.port, help_path)[1])["data"].values()
    assert metadata == [{"type": "gauge", "help": 'Newest free\\n "bytes"\n.', "unit": ""}]


def test_gauges_and_strings_are_the_newest(prometheus, start_program):
    program = start_program()
    free = program.select("probe_free")
    info = program.select("probe_version_info")
    with answering("a", {"free": Gauge(1.5), "version": "1"}) as target:
        program.probe(target)
        prometheus.wait_for(free, exactly(1.5))
        assert by("version", prometheus.wait_for(info, bool)) == {"1": 1}
        for value in (-0.1, 2**53 - 1, -math.inf):
            target.report({"free": Gauge(value), "version": "2"})
            prometheus.wait_for(free, exactly(value))
        assert by("version", prometheus.wait_for(info, bool)) == {"2": 1}


def test_a_delisted_target_becomes_stale_and_the_others_stay(prometheus, start_program):
    program = start_program()
    with answering("goes") as goes, answering("stays") as stays:
        program.probe(goes, stays)
        total = program.select("probe_total")
        prometheus.wait_for(total, lambda found: len(found) == 2)
        program.probe(stays)
        # Those without are the keepers' and the prober's own.
        dst = f"count by (dst) ({program.select('')})"
        prometheus.wait_for(dst, lambda found: by("dst", found).keys() == {"", "stays"})
        last = is_there(prometheus, total)
        prometheus.wait_for(total, more_than(last))
        program.probe(goes, stays)
        prometheus.wait_for(total, lambda found: len(found) == 2)


def test_a_restart_of_the_program_is_one_reset_of_its_counters(prometheus, start_program):
    program = start_program()
    success = program.select("probe_success_total")
    report = {"latency": 1, "seen": Map("text", {"a": 2}), "gigabytes": 0.5}
    with answering("a", report) as before:
        program.probe(before)
        prometheus.wait_for(success, more_than(30))
        program.kill()
        killed = program.exports("http")[-1]
    with answering("a", report) as after:
        program.probe(after)
        # By the next scrape, it must not have counted as far again.
        program.interval = 0.5
        program.start()
        prometheus.wait_for(f"resets({success}[5m])", exactly(1))
        prometheus.wait_for(success, more_than(2))
    prometheus.wait_for(success, exactly(len(after.reported)))
    program.stop()
    prometheus.wait_for("up == 0", bool)
    assert program.exports("http")[-1].start_timestamp > killed.timestamp

    for counter in (
        success,
        program.select("probe_total"),
        program.select("probe_resp_code_total"),
        program.select("probe_seen_total"),
        program.select("probe_gigabytes_total"),
        program.select("probe_latency_seconds_count", ptype="reported"),
        program.select("probe_latency_seconds_sum", ptype="reported"),
        program.select("probe_latency_seconds_bucket", ptype="reported", le="0.001"),
        program.select("statskeeper_results_accepted_total", ptype="http"),
        program.select("statskeeper_prober_results_sent_total"),
    ):
        [(_, samples)] = prometheus.series(f"{counter}[5m]")
        [reset] = [n for n, (a, b) in enumerate(pairwise(samples), 1) if b[1] < a[1]]
        assert is_there(prometheus, f"resets({counter}[5m])") == 1
        counted = samples[reset - 1][1] - samples[0][1] + samples[-1][1]
        # It is extrapolated: at either end by little more than the time between scrapes.
        increase = is_there(prometheus, f"increase({counter}[5m])")
        assert counted <= increase <= counted * (1 + 2.5 / (len(samples) - 1))
        if counter is success:
            assert 30 < samples[reset - 1][1] <= len(before.reported)
            assert samples[-1][1] == len(after.reported)


@pytest.mark.parametrize("options", [(), ("created",)])
def test_promtool_finds_nothing_wrong_with_the_page(start_program, check_metrics, options):
    program = start_program(*options)
    report = {
        "latency": 3,
        "server-latency": 0.5,
        "bytes_total": 10,
        "seen": Map("text", dict.fromkeys(ODD_TEXTS, 1)),
        "version": ODD_TEXTS[0],
        "9 % free": Gauge(0.5),
    }
    with answering("".join(ODD_TEXTS), report, note=ODD_TEXTS[1]) as target:
        program.probe(target)
        page = program.wait_for_page("probe_resp_code_total{", "probe_seen_total{")
    for kind in ("counter", "gauge", "histogram"):
        assert f" {kind}\n" in page
    assert ("probe_latency_seconds_created{" in page) is ("created" in options)
    assert check_metrics(page) == (0, "")


def test_created_is_the_time_since_which_the_totals_count(prometheus, start_program):
    program = start_program("created")
    with answering("a", {"latency": 1}) as target:
        program.probe(target)
        counter = program.select("probe_success_created")
        since = is_there(prometheus, counter)
        assert since == program.wait_for_export("http").start_timestamp
        histogram = program.select("probe_latency_seconds_created", ptype="reported")
        since = is_there(prometheus, histogram)
        assert since == program.wait_for_export("reported").start_timestamp


def test_a_rejected_result_can_trigger_an_alert(prometheus, start_program):
    program = start_program()
    folded = program.select("statskeeper_results_accepted_total", ptype="reported")
    rejected = program.select("statskeeper_results_rejected_total", ptype="reported")
    negative = program.select(
        "statskeeper_results_rejected_total", ptype="reported", reason="negative"
    )
    alert = f"increase({negative}[5m]) > 0"
    with answering("a", {"served": 1}) as target:
        program.probe(target)
        prometheus.wait_for(folded, more_than(3))
        assert is_there(prometheus, f"sum({rejected})") == 0
        assert prometheus.query(alert) == []
        target.report({"served": -1}, {"served": 2})
        prometheus.wait_for(alert, bool)
    served = [report["served"] for report in target.reported]
    bad = served.count(-1)
    prometheus.wait_for(negative, exactly(bad))
    prometheus.wait_for(folded, exactly(len(served) - bad))
    assert is_there(prometheus, f"sum({rejected})") == bad
    served_total = program.select("probe_served_total")
    prometheus.wait_for(served_total, exactly(sum(served) + bad))


def test_the_statistics_of_prober_and_keeper_agree(prometheus, start_program):
    program = start_program()
    folded = program.select("statskeeper_results_accepted_total", ptype="http")
    sent = program.select("statskeeper_prober_results_sent_total")
    targets = program.select("statskeeper_prober_targets")
    held = program.select("statskeeper_targets_tracked", ptype="http")
    with answering("a") as a, answering("b") as b:
        program.probe(a, b)
        prometheus.wait_for(folded, more_than(10))
        prometheus.wait_for(targets, exactly(2))
        prometheus.wait_for(held, exactly(2))
        totals = f"sum({program.select('probe_total')})"
        # What was folded in is exported at the next tick.
        assert is_there(prometheus, totals) <= is_there(prometheus, folded)
        program.probe()
        prometheus.wait_for(targets, exactly(0))
        prometheus.wait_for(program.select("statskeeper_prober_running"), exactly(0))
    last = is_there(prometheus, sent)
    prometheus.wait_for(folded, exactly(last))
    assert is_there(prometheus, sent) == last
    # In time, the keeper drops them, too.
    prometheus.wait_for(held, exactly(0))
    expired = program.select("statskeeper_targets_expired_total", ptype="http")
    prometheus.wait_for(expired, exactly(2))


def test_the_last_export_is_that_of_the_keeper(prometheus, start_program):
    program = start_program()
    last = {
        ptype: program.select("statskeeper_last_export_timestamp_seconds", ptype=ptype)
        for ptype in ("http", "reported")
    }

    def wait_for_arrival(ptype):
        """Return when the newest export arrived: at once, and in Unix time."""
        made = program.wait_for_export(ptype).timestamp
        [sample] = prometheus.wait_for(
            last[ptype], lambda found: found and found[0].value >= made
        )
        assert sample.value <= time.time()
        return sample.value

    with answering("a", {"latency": 1}) as target:
        program.probe(target)
        wait_for_arrival("reported")
        first = wait_for_arrival("http")
        prometheus.wait_for(last["http"], more_than(first))
        program.probe()
        # Without targets there are no exports: it stands still, though scrapes go on.
        for series in last.values():
            prometheus.wait_for(
                f"changes({series}[2s]) == 0 and count_over_time({series}[2s]) > 2", bool
            )


def test_ticks_and_runs_missed_while_the_program_is_stopped_are_counted(
    prometheus, start_program
):
    program = start_program()
    ticks = program.select("statskeeper_ticks_missed_total", ptype="http")
    runs = program.select("statskeeper_prober_runs_missed_total")
    with answering("a") as target:
        program.probe(target)
        prometheus.wait_for(program.select("probe_success_total"), more_than(3))
        ticks_before = is_there(prometheus, ticks)
        runs_before = is_there(prometheus, runs)
        with program.standing_still():
            prometheus.wait_for(
                "max_over_time(up[3s]) == 0 and count_over_time(up[3s]) > 4", bool
            )
        # That is at least two seconds: eight ticks, forty runs.
        prometheus.wait_for(ticks, more_than(ticks_before + 5))
        prometheus.wait_for(runs, more_than(runs_before + 30))
