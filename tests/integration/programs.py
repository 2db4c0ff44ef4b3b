"""Runs the examples as a user does: each a process of its own, on real sockets."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from trio_statskeeper import EventMetrics

EXAMPLES = Path(__file__).parents[2] / "examples"


def start(program: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, EXAMPLES / program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_harmless(errors: str) -> None:
    """Check that standard error tells the progress and the targets that fail, no more."""
    progress, *failures = errors.splitlines()
    assert re.fullmatch(
        r"Probing every .* s, exporting every .* s. Ctrl-C ends it.", progress
    )
    for line in failures:
        assert re.match(r".+: probe failed: \w+|prober: \d+ more lines", line)


def exports_by_target(output: str) -> dict[str, list[EventMetrics]]:
    exports = defaultdict(list)
    for line in output.splitlines():
        export = EventMetrics.parse(line)
        exports[export.labels["dst"]].append(export)
    return dict(exports)


def last_exports(
    program: str, *args: str, targets: int, signum: int = signal.SIGINT
) -> dict[str, EventMetrics]:
    """Run `program` until it has exported that many targets; return its last exports.

    However slow the machine is: it takes the time that it takes.
    """
    exported = set()
    with start(program, "--interval", "0.1", "--export-interval", "0.25", *args) as process:
        while len(exported) < targets:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            exported |= exports_by_target(line).keys()
        process.send_signal(signum)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert_harmless(errors)
    exports = exports_by_target(output)
    assert exports.keys() >= exported
    return {target: of_target[-1] for target, of_target in exports.items()}


def assert_refused(program: str, args: list[str], message: str) -> None:
    """Check that bad arguments end `program` with one line and status 2."""
    with start(program, *args) as process:
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith(f"{program}: {message}")
    assert errors.count("\n") == 1
