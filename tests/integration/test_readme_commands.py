"""The README's main command, its program and variants of it, as a newcomer runs them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest
from loopback import serving
from real_servers import free_port

from trio_statskeeper import EventMetrics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TESTING = (ROOT / "docs/testing.md").read_text()


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


MONITOR, OWN_NURSERY = blocks("python", README)
[SHOWN] = blocks("text", README)


def replaced(program: str, replacements: dict[str, str]) -> str:
    for text, other in replacements.items():
        assert text in program
        program = program.replace(text, other)
    return program


class Website(BaseHTTPRequestHandler):
    """Is healthy, but for one of its names."""

    def do_GET(self):
        host = self.headers["Host"].partition(":")[0]
        self.server.requests[host] += 1
        self.server.cookies |= "Cookie" in self.headers
        self.send_response(503 if host == "127.0.0.3" else 200)
        self.send_header("Set-Cookie", "visited=before")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def website():
    with serving(ThreadingHTTPServer(("", 0), Website)) as server:
        server.requests = Counter()
        server.cookies = False
        yield server


def page_at(port: int) -> str:
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return page.read().decode()
    return ""


def test_the_monitoring_program_counts_all_and_ctrl_c_ends_it_with_the_last_totals(
    tmp_path,
):
    with ExitStack() as stack:
        server = stack.enter_context(website())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        metrics_port = free_port()
        program = replaced(
            MONITOR,
            {
                'f"https://{host}/"': f'f"http://{{host}}:{server.server_port}/"',
                '"a.example", "b.example", "c.example"': (
                    '"127.0.0.1", "127.0.0.2", "127.0.0.3"'
                ),
                # Nothing listens at the second address.
                '"db1.example", "db2.example"': '"127.0.0.1", "127.0.0.2"',
                "5432": str(listener.getsockname()[1]),
                "9464": str(metrics_port),
                "interval=5": "interval=0.2",
                "WEB + DATA,": "WEB + DATA, export_interval=0.5,",
            },
        )
        (tmp_path / "monitor.py").write_text(program)
        running = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "monitor.py"],
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(running.kill)
        deadline = time.monotonic() + 60
        while "probe_failure_total{" not in (page := page_at(metrics_port)):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
        assert errors.rstrip().endswith("KeyboardInterrupt")
    assert 'team="web"' in page
    exports = [
        EventMetrics.parse(line)
        for line in (tmp_path / "metrics.log").read_text().splitlines()
    ]
    last = {export.labels["dst"]: export for export in exports}
    assert Counter(export.labels["team"] for export in last.values()) == {
        "web": 3,
        "data": 2,
    }
    for host, requests in server.requests.items():
        export = last[f"http://{host}:{server.server_port}/"]
        # A run that was in progress at the end counts as nothing.
        assert export.metrics["total"] in (requests, requests - 1)
        counted_as = "failure" if host == "127.0.0.3" else "success"
        assert export.metrics[counted_as] == export.metrics["total"]
    assert not server.cookies
    failing = last[f"http://127.0.0.3:{server.server_port}/"].metrics
    assert failing["error"].values == {"status-503": failing["failure"]}
    data = [export.metrics for export in last.values() if export.labels["team"] == "data"]
    assert data[0]["failure"] == 0 < data[0]["success"]
    assert data[1]["success"] == 0 < data[1]["error"].values["ConnectionRefusedError"]


def test_the_lines_that_the_readme_shows_are_those_of_its_program():
    for line in SHOWN.splitlines():
        assert re.fullmatch(
            r"\d+ labels=ptype=blackbox,probe=services,dst=\S+,team=\w+ total=\d+ "
            r"success=\d+ failure=\d+ timeouts=\d+ inconclusive=\d+ "
            r"error=map:error(,\w+:\d+| latency=dist:sum:\S+\|count:\d+\|…)",
            line,
        )


def test_the_program_with_a_nursery_of_its_own_does_the_same(tmp_path):
    # Nothing listens there.
    hosts = {f"{name}.example": "127.0.0.1" for name in ("a", "b", "c", "db1", "db2")}
    monitor = {"https://{host}/": "http://{host}:1/", "5432": "1", **hosts}
    port = free_port()
    often = {
        "9464": str(port),
        "interval=5": "interval=0.2",
        "WEB + DATA,": "WEB + DATA, export_interval=0.5,",
    }
    (tmp_path / "monitor.py").write_text(replaced(MONITOR, monitor))
    (tmp_path / "own_nursery.py").write_text(replaced(OWN_NURSERY, often))
    with subprocess.Popen(
        [sys.executable, "own_nursery.py"], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as running:
        deadline = time.monotonic() + 60
        while "probe_failure_total{" not in page_at(port) and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
    exports = map(EventMetrics.parse, (tmp_path / "metrics.log").read_text().splitlines())
    teams = {export.labels["dst"]: export.labels["team"] for export in exports}
    assert teams == {"http://127.0.0.1:1/": "web", "127.0.0.1:1": "data"}


def test_the_test_of_the_monitoring_program_passes(tmp_path):
    [test] = blocks("python", TESTING)
    program = replaced(MONITOR, {"9464": str(free_port())})
    (tmp_path / "monitor.py").write_text(program)
    (tmp_path / "test_monitor.py").write_text(test)
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "trio_mode=true", "-W", "error"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stdout
    assert "1 passed" in completed.stdout


@pytest.mark.skipif(
    "CI" not in os.environ, reason="installs from the network: only with CI set"
)
@pytest.mark.skipif(not find_spec("ensurepip"), reason="this Python can't make a venv")
def test_one_command_installs_and_starts_the_main_example(tmp_path):
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("examples", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    command = re.search(r"^```sh\n(.*)\n```$", README, re.MULTILINE)[1]
    # How Python is set for the tests is not to be how pip finds it.
    settings = {"PYTHONDEVMODE", "PYTHONPATH", "PYTHONWARNINGS"}
    completed = subprocess.run(
        ["bash", "-c", f"{command} --for 3"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert len({EventMetrics.parse(line).labels["dst"] for line in lines}) == 3
