"""The programs in the pages of docs/, as their readers run them.

test_readme_commands.py runs those of testing.md and own-nursery.md, test_otlp.py that of
opentelemetry.md.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
from loopback import serving
from real_servers import free_port

from trio_statskeeper import EventMetrics

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = {"testing.md", "how-to/own-nursery.md", "opentelemetry.md"}
BELOW = {"tutorial.md", "how-to/clean-end.md", "how-to/several-machines.md"}

# A program that runs until it is stopped is cancelled after some seconds.
RUN_FOR_A_WHILE = """
import runpy, sys, trio
run = trio.run
async def run_for_a_while(main):
    with trio.move_on_after(2):
        await main()
trio.run = lambda main: run(run_for_a_while, main)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def blocks(language: str, page: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def pages_with_a_program() -> list[str]:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    return sorted(page for page in pages - ELSEWHERE - BELOW if blocks("python", page))


class Website(BaseHTTPRequestHandler):
    """Answers 404 where the path says so."""

    def do_GET(self):
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    connections = 0

    def process_request(self, *args) -> None:
        self.connections += 1
        super().process_request(*args)


@pytest.fixture
def website():
    with serving(Server(("", 0), Website)) as server:
        yield server


@pytest.fixture
def on_loopback(website):
    """Have a program probe a website on loopback, often."""
    port = str(website.server_address[1])

    def replaced(program: str) -> str:
        program = re.sub(r"https://\w+\.example", f"http://127.0.0.1:{port}", program)
        program = program.replace('f"{name}.example"', 'f"127.0.0.{ord(name)}"')
        program = re.sub(r"\w+\.example\b", "127.0.0.1", program)
        program = re.sub(r"\b(443|80|8000)\b", port, program)
        return re.sub(r"interval=[\d.]+", "interval=0.2", program)

    return replaced


def shown_as(line: str, printed: str) -> bool:
    """Whether some printed line is like the one that a page shows, but for numbers."""
    shown = re.sub(r"\bdst=\S+", "dst=DST", line)
    pattern = re.sub(r"\d+", r"\\d+", re.escape(shown)).replace("…", ".*")
    pattern = pattern.replace("dst=DST", r"dst=\S+")
    return any(re.fullmatch(pattern, each) for each in printed.splitlines())


def run(program: Path, **env: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", RUN_FOR_A_WHILE, program.name],
        cwd=program.parent,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.mark.parametrize("page", pages_with_a_program())
def test_the_blocks_of_a_page_are_one_program_that_prints_what_it_shows(
    page, on_loopback, tmp_path
):
    program = tmp_path / "program.py"
    program.write_text(on_loopback("\n".join(blocks("python", page))))
    printed = run(program)
    last = EventMetrics.parse(printed.splitlines()[-1])
    assert last.metrics["total"] > 0
    for shown in "".join(blocks("text", page)).splitlines():
        assert shown_as(shown, printed), printed


def test_machines_share_the_targets(on_loopback, tmp_path):
    program = tmp_path / "program.py"
    [text] = blocks("python", "how-to/several-machines.md")
    program.write_text(on_loopback(text))
    shares = []
    for machine in ("probe-1", "probe-2"):
        printed = run(program, MACHINE=machine).splitlines()
        exports = map(EventMetrics.parse, printed)
        shares.append({export.labels["dst"].partition(":")[0] for export in exports})
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == {f"127.0.0.{ord(name)}" for name in "abcd"}


@contextmanager
def running(program: Path):
    with subprocess.Popen(
        [sys.executable, program.name],
        cwd=program.parent,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_ends_the_program_with_its_last_totals_and_status_0(
    website, on_loopback, tmp_path
):
    [text] = blocks("python", "how-to/clean-end.md")
    program = tmp_path / "program.py"
    program.write_text(on_loopback(text))
    log = tmp_path / "metrics.log"
    with running(program) as process:
        # When the second run begins, the first has ended.
        wait_for(lambda: website.connections > 1, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
    # Long before the first tick.
    [line] = log.read_text().splitlines()
    assert EventMetrics.parse(line).metrics["success"] > 0


def test_the_tutorial_gets_to_the_metrics_that_it_asks_prometheus_for(
    on_loopback, tmp_path
):
    once, forever = map(on_loopback, blocks("python", "tutorial.md"))
    (tmp_path / "probe.py").write_text(once)
    printed = run(tmp_path / "probe.py")
    [output] = blocks("text", "tutorial.md")
    for shown in output.splitlines():
        assert shown_as(shown, printed), printed

    port = str(free_port())
    assert "9464" in forever
    assert "TARGETS)" in forever
    forever = forever.replace("9464", port)
    forever = forever.replace("TARGETS)", "TARGETS, export_interval=0.2)")
    (tmp_path / "monitor.py").write_text(forever)
    page = (DOCS / "tutorial.md").read_text()
    asked_for = {name for name in re.findall(r"probe_\w+", page) if name != "probe_once"}

    def scraped() -> str:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            return response.read().decode()
        return ""

    with running(tmp_path / "monitor.py") as process:
        wait_for(
            lambda: (served := scraped()) and all(name in served for name in asked_for),
            process,
        )
