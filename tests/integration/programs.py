"""Runs the examples as a user does: each a process of its own, on real sockets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from trio_statskeeper import EventMetrics
from trio_statskeeper.lines import from_json

EXAMPLES = Path(__file__).parents[2] / "examples"

TIMEOUT = 60  # seconds; nothing takes that long, even on a slow machine


@contextmanager
def start(program: str, *args: str, **env: str):
    """Start a program, which is killed after TIMEOUT, and at the end of the block."""
    with subprocess.Popen(
        [sys.executable, EXAMPLES / program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    ) as process:
        timer = Timer(TIMEOUT, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def run(program: str, *args: str, **env: str) -> tuple[int, str, str]:
    """Run a program to its end; return its status, output and errors."""
    with start(program, *args, **env) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, output, errors


def assert_harmless(errors: str) -> None:
    """Check that standard error has the progress and failing targets, nothing else."""
    page, progress, *rest = errors.splitlines()
    assert re.fullmatch(r"The status page is at http://127\.0\.0\.1:\d+/status\.", page)
    assert re.fullmatch(
        r"Probing every .* s, exporting every .* s\. Press Ctrl-C to stop\.", progress
    )
    assert_only_failures(rest)


def assert_only_failures(lines: list[str]) -> None:
    for line in lines:
        assert re.match(
            r".+: (probe failed: \w+|recovered after \d+)|prober.*: \d+ more lines", line
        )


def exports_by_target(output: str) -> dict[str, list[EventMetrics]]:
    exports = defaultdict(list)
    for line in output.splitlines():
        export = EventMetrics.parse(line)
        exports[export.labels["dst"]].append(export)
    return dict(exports)


def probe_once(program: str, *args: str, **env: str) -> tuple[int, dict[str, EventMetrics]]:
    """Run `program` with `--once`; return its status, and each target's export."""
    # A timeout so long that only servers that never answer run into it.
    options = ("--once", "--json", "--timeout", "30")
    status, output, errors = run(program, *options, *args, **env)
    assert_only_failures(errors.splitlines())
    exports = [from_json(line) for line in output.splitlines()]
    by_target = {export.labels["dst"]: export for export in exports}
    assert len(by_target) == len(exports)
    return status, by_target


def last_exports(
    program: str, *args: str, targets: int, signum: int = signal.SIGINT
) -> dict[str, EventMetrics]:
    """Run `program` until it has exported that many targets; return its last exports."""
    exported = set()
    with start(program, "--interval", "0.1", "--export-interval", "0.25", *args) as process:
        while len(exported) < targets:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            exported |= exports_by_target(line).keys()
        process.send_signal(signum)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert_harmless(errors)
    exports = exports_by_target(output)
    assert exports.keys() >= exported
    return {target: of_target[-1] for target, of_target in exports.items()}


def assert_refused(program: str, args: list[str], message: str) -> None:
    """Check that bad arguments end `program` with one line and status 2."""
    status, output, errors = run(program, *args)
    assert (status, output) == (2, "")
    assert errors.startswith(f"{program}: {message}")
    assert errors.count("\n") == 1
