"""examples/fleet.py, as a user runs it, in front of a real Prometheus."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, pairwise

import programs
import pytest
from loopback import serving
from programs import EXAMPLES, assert_refused
from prometheus_client.parser import text_string_to_metric_families
from real_servers import TIMEOUT, free_port, get

MEMBERS = range(4)
SUCCESSES = "probe_success_total"
STARTED = r"^prober (\d+) \(pid (\d+)\) probes (\d+) of (\d+) targets; metrics at (.+)$"
STOPPED = r"^prober \d+ has stopped probing; it ends in .+ s$"
ENDED = r"^prober (\d+) ended with status (.+); restarting$"


@pytest.fixture
def owner(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("fleet_prober").owner


# The share of each


def owners(owner, members):
    return {
        key: owner(key, members) for key in (f"https://{n}.example/" for n in range(1000))
    }


@pytest.mark.parametrize("members", [["a", "b", "c", "d"], MEMBERS])
def test_shares_are_roughly_even(owner, members):
    shares = Counter(owners(owner, members).values())
    assert shares.keys() == set(members)
    assert min(shares.values()) > 150
    assert max(shares.values()) < 350


def test_another_prober_takes_its_share_and_nothing_else_moves(owner):
    before, after = owners(owner, range(4)), owners(owner, range(5))
    moved = {key for key in before if after[key] != before[key]}
    assert {after[key] for key in moved} == {4}
    assert 100 < len(moved) < 300


def test_when_a_prober_leaves_only_its_own_share_moves(owner):
    before, after = owners(owner, "abcd"), owners(owner, "acd")
    assert {before[key] for key in before if after[key] != before[key]} == {"b"}
    assert {after[key] for key in before if before[key] == "b"} == set("acd")


def test_the_order_of_members_does_not_matter(owner):
    assert owners(owner, "abcd") == owners(owner, "dbca")


# The fleet, and what it probes


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.server.may_answer(self.path):
            self.send_response(204)
            self.end_headers()
        # Else the connection is closed without a word.

    def log_message(self, *_: object) -> None:
        pass


class Targets(ThreadingHTTPServer):
    """Targets that count what they answer, and can be told to hang up instead."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answered = Counter()
        self.refused = Counter()
        self._left = defaultdict(lambda: math.inf)
        self._lock = threading.Lock()
        self.owners = {}  # by URL; three are each member's
        for url in map(self.url, count()):
            member = owner(url, MEMBERS)
            if list(self.owners.values()).count(member) < 3:
                self.owners[url] = member
            if len(self.owners) == 3 * len(MEMBERS):
                break

    def url(self, number):
        return f"http://127.0.0.1:{self.server_port}/{number}"

    def may_answer(self, path):
        url = self.url(path.removeprefix("/"))
        with self._lock:
            if self._left[url] > 0:
                self._left[url] -= 1
                self.answered[url] += 1
                return True
            self.refused[url] += 1
            return False

    def answer(self, number, urls=None):
        """Let each of these answer as many more requests; return what all have answered."""
        with self._lock:
            self._left.update(dict.fromkeys(urls or self.owners, number))
            self.refused.clear()
            return dict(self.answered)


@pytest.fixture
def targets(owner):
    with serving(Targets(owner)) as server:
        yield server


class Fleet:
    """A fleet of four, each process of which is gone at the end."""

    def __init__(self, folder, *args):
        self._log = folder / "stderr"
        # Where no outgoing connection takes a port while a prober is started again.
        self.port = next(filter(are_free, random.sample(range(20_000, 30_000), 1_000)))
        command = [sys.executable, EXAMPLES / "fleet.py", "--port", str(self.port), *args]
        with self._log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0
            )

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        # That ends the probers, too.
        self.process.kill()
        try:
            self.wait_until_all_are_gone()
        except subprocess.TimeoutExpired:
            for pid in self.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise

    @property
    def instances(self):
        return [f"127.0.0.1:{self.port + member}" for member in MEMBERS]

    @property
    def pids(self):
        """Those of all probers, in the order in which they were started."""
        return [int(pid) for _, pid, *_ in self.said(STARTED)]

    def said(self, pattern):
        """Return the groups of each line of standard error that matches."""
        return re.findall(pattern, self._log.read_text(), re.MULTILINE)

    def wait_for(self, pattern, lines):
        """Wait until as many lines match, and return their groups."""
        self.wait_until(lambda: len(self.said(pattern)) >= lines)
        return self.said(pattern)

    def wait_until(self, condition):
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def wait_until_all_are_gone(self):
        """Return the status and the output, which ends when no process can write to it."""
        output, _ = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, output

    def wait_for_successes(self, by_target):
        self.wait_until(lambda: self.successes() == by_target)

    def successes(self):
        """Return what the probers serve now: by target, from all of them."""
        pages = (get(self.port + member, "/metrics")[1].decode() for member in MEMBERS)
        return {
            sample.labels["dst"]: sample.value
            for page in pages
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == SUCCESSES
        }


def are_free(port):
    try:
        return all(free_port(port + member) for member in MEMBERS)
    except OSError:
        return False


@pytest.fixture
def start_fleet(tmp_path):
    with ExitStack() as fleets:
        yield lambda *args: fleets.enter_context(Fleet(tmp_path, *args))


# In front of a real Prometheus


def by_target(samples):
    return {sample.labels["dst"]: sample.value for sample in samples}


def stop_and_scrape(fleet, prometheus):
    """Wait until all probers have stopped, have exported since, and were scraped since."""
    fleet.process.terminate()
    fleet.wait_for(STOPPED, len(MEMBERS))
    since = f"statskeeper_last_export_timestamp_seconds > {time.time()}"
    prometheus.wait_for(since, lambda found: len(found) == len(MEMBERS))


def test_four_probers_count_in_prometheus_what_their_targets_count(
    start_fleet, targets, start_prometheus
):
    # Runs of a target don't overlap, with a timeout that is not longer than the interval.
    options = ("--interval", "2", "--timeout", "2", "--export-interval", "1")
    fleet = start_fleet(*options, "--linger", "600", *targets.owners)
    prometheus = start_prometheus(*fleet.instances)
    prometheus.wait_for(SUCCESSES, lambda found: len(found) == len(targets.owners))
    answered = targets.answer(0)
    # That a target is asked once more tells that all earlier runs are over.
    fleet.wait_until(lambda: len(targets.refused) == len(targets.owners))

    stop_and_scrape(fleet, prometheus)
    [total] = prometheus.query(f"sum({SUCCESSES})")
    assert total.value == sum(answered.values())
    assert by_target(prometheus.query(f"sum by (dst) ({SUCCESSES})")) == answered
    probed_by = [
        (sample.labels["dst"], sample.labels["instance"])
        for sample in prometheus.query(SUCCESSES)
    ]
    assert sorted(probed_by) == sorted(
        (url, fleet.instances[member]) for url, member in targets.owners.items()
    )


def increase(samples):
    """Add up what a counter that was reset has counted in all."""
    values = [0, *(value for _, value in samples)]
    return sum(b - a if b >= a else b for a, b in pairwise(values))


def test_of_a_killed_prober_exactly_what_it_counted_since_its_last_scrape_is_missing(
    start_fleet, targets, start_prometheus
):
    # All that is answered succeeds, with a timeout that is so long.
    options = ("--interval", "0.1", "--timeout", "20", "--export-interval", "0.5")
    fleet = start_fleet(*options, "--linger", "600", *targets.owners)
    prometheus = start_prometheus(*fleet.instances, scrape_interval="3s")
    victim = 2
    its_targets = {url for url, member in targets.owners.items() if member == victim}

    def wait_for_its_next_scrape():
        of_it = f'timestamp({SUCCESSES}{{instance="{fleet.instances[victim]}"}})'
        found = prometheus.wait_for(f"{of_it} > {time.time()}", bool)
        return found[0].value

    prometheus.wait_for(SUCCESSES, lambda found: len(found) == len(targets.owners))
    counted = targets.answer(0)
    prometheus.wait_for(SUCCESSES, lambda found: by_target(found) == counted)
    # Right after a scrape it counts two more of each of its targets, and is killed long
    # before the next scrape. On a slow machine that may take more than one attempt.
    scraped_at = -math.inf
    while time.time() > scraped_at + 1.5:
        scraped_at = wait_for_its_next_scrape()
        targets.answer(2, its_targets)
        counted = {url: n + 2 * (url in its_targets) for url, n in counted.items()}
        fleet.wait_for_successes(counted)
    [pid] = [int(pid) for member, pid, *_ in fleet.said(STARTED) if member == str(victim)]
    os.kill(pid, signal.SIGKILL)

    assert fleet.wait_for(STARTED, 5)[-1][0] == str(victim)
    assert fleet.said(ENDED) == [(str(victim), str(-signal.SIGKILL))]
    # Prometheus sees that it counts from zero again before it counts further.
    zero = f"{SUCCESSES} == 0"
    prometheus.wait_for(zero, lambda found: by_target(found).keys() == its_targets)
    targets.answer(math.inf)
    fleet.wait_until(lambda: all(targets.answered[url] > counted[url] for url in counted))
    answered = targets.answer(0)
    since = {url: n - counted[url] * (url in its_targets) for url, n in answered.items()}
    fleet.wait_for_successes(since)

    stop_and_scrape(fleet, prometheus)
    resets = by_target(prometheus.query(f"resets({SUCCESSES}[1h])"))
    assert resets == {url: url in its_targets for url in targets.owners}
    missing = {
        series.labels["dst"]: answered[series.labels["dst"]] - increase(series.samples)
        for series in prometheus.series(f"{SUCCESSES}[1h]")
    }
    assert missing == {url: 2 * (url in its_targets) for url in targets.owners}


# Start and end

FAST = ("--interval", "0.1", "--timeout", "10", "--export-interval", "0.2")


def test_without_urls_it_probes_some_of_its_own_until_ctrl_c(start_fleet):
    fleet = start_fleet(*FAST, "--linger", "0.2")
    started = fleet.wait_for(STARTED, 4)
    assert {int(member): metrics for member, _, _, _, metrics in started} == {
        member: f"http://{fleet.instances[member]}/metrics" for member in MEMBERS
    }
    assert {targets for _, _, _, targets, _ in started} == {"12"}
    assert sum(int(share) for _, _, share, _, _ in started) == 12
    fleet.wait_until(lambda: len(fleet.successes()) == 12)
    # As in a terminal, where all processes in the foreground get the signal.
    os.killpg(fleet.process.pid, signal.SIGINT)
    status, _ = fleet.wait_until_all_are_gone()
    assert status == 0
    assert len(fleet.said(STOPPED)) == 4
    assert fleet.said(ENDED) == []


def test_what_to_paste_into_prometheus_is_printed(
    start_fleet, prometheus_programs, tmp_path
):
    fleet = start_fleet("--linger", "600")
    fleet.wait_for(STARTED, 4)
    fleet.process.kill()
    _, output = fleet.wait_until_all_are_gone()
    assert json.dumps(fleet.instances) in output
    config = tmp_path / "prometheus.yml"
    config.write_text(output)
    subprocess.run([prometheus_programs[1], "check", "config", config], check=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(start_fleet, signum):
    fleet = start_fleet(*FAST, "--linger", "600")
    fleet.wait_for(STARTED, 4)
    fleet.process.send_signal(signum)
    fleet.wait_for(STOPPED, 4)
    fleet.process.send_signal(signum)
    status, _ = fleet.wait_until_all_are_gone()
    assert status == 0


def test_a_signal_ends_it_cleanly_also_before_all_probers_have_begun(start_fleet):
    fleet = start_fleet(*FAST, "--linger", "0.2")
    fleet.process.stdout.readline()
    fleet.process.terminate()
    status, _ = fleet.wait_until_all_are_gone()
    assert status == 0


def test_a_prober_is_started_again_however_it_ended(start_fleet):
    fleet = start_fleet(*FAST, "--linger", "600")
    fleet.wait_for(STARTED, 4)
    os.kill(fleet.pids[0], signal.SIGTERM)
    fleet.wait_for(STOPPED, 1)
    os.kill(fleet.pids[0], signal.SIGTERM)
    started = fleet.wait_for(STARTED, 5)
    assert started[-1][0] == started[0][0]
    assert fleet.said(ENDED) == [(started[0][0], "0")]


def test_the_probers_end_with_a_fleet_that_is_killed(start_fleet):
    fleet = start_fleet(*FAST, "--linger", "600")
    fleet.wait_for(STARTED, 4)
    fleet.process.kill()
    fleet.wait_until_all_are_gone()
    assert are_free(fleet.port)


def test_a_port_in_use_ends_it_with_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, output, errors = programs.run(
            "fleet.py", "--probers", "1", "--port", str(port)
        )
    assert (status, output) == (1, "")
    assert errors.startswith(f"can't listen on 127.0.0.1:{port}: Address already in use")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["example.com"], "argument URL: 'example.com' is not an http:// or https:// URL"),
        (["--probers", "0"], "argument --probers: '0' is not a positive integer"),
        (["--probers", "two"], "argument --probers: 'two' is not a positive integer"),
        (["--port", "-1"], "argument --port: '-1' is not a positive integer"),
        (["--port", "65533"], "there are no 4 ports from 65533 on"),
        (["--interval", "0"], "argument --interval: '0' is not finite and > 0"),
        (["--timeout", "x"], "argument --timeout: 'x' is not a number of seconds"),
        (["--export-interval", "nan"], "argument --export-interval: 'nan' is not finite"),
        (["--linger", "inf"], "argument --linger: 'inf' is not finite and > 0"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_arguments_end_it_with_one_line_and_status_2(args, message):
    assert_refused("fleet.py", args, message)


def test_help_describes_it_and_each_option():
    status, output, _ = programs.run("fleet.py", "--help")
    assert status == 0
    options = "--probers --port --interval --timeout --export-interval --linger"
    for text in ("URL", "Prometheus", "Ctrl-C", *options.split()):
        assert text in output
    assert "--member" not in output
