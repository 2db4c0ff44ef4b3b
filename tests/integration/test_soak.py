"""The soak runs, and reports what went wrong; here on little work, for seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LITTLE = ("--results", "5000", "--targets", "200", "--export-interval", "0.75")
PROGRESS = re.compile(
    r"\d+ s, export \d+: ([\d,]+) results, [\d,]+ a second; [\d,]+ MiB, [\d,]+ blocks; "
    r"[\d,]+ targets tracked, ([\d,]+) expired"
)

pytest.importorskip("opentelemetry.proto", reason="the soak's collector reads OTLP")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the soak needs Linux")

# The soak, with a keeper and outputs that have each of the faults that it is to find.
BROKEN = """
import soak
from trio_statskeeper._expiry import UnlistedTargets
from trio_statskeeper.otlp._request import Request
from trio_statskeeper._totals import Totals
from trio_statskeeper._sinks import AppendedFile
from trio_statskeeper.prometheus._page import Page

leaked, lost = [], []
whole = Totals.fold, Page.put, Request.add, AppendedFile.append

def fold(self, result, *args):
    leaked.append(bytes(4_000))
    if result.target == "target-153.example.com" and not lost:
        return lost.append(result)
    return whole[0](self, result, *args)

def put(self, export):
    if export.labels.get("dst") != "target-150.example.com":
        whole[1](self, export)

def add(self, export, *args):
    if export.labels.get("dst") == "target-151.example.com":
        self.exports.append(export)
    else:
        yield from whole[2](self, export, *args)

def append(self, text):
    lines = text.splitlines(keepends=True)
    whole[3](self, "".join(line for line in lines if "target-152." not in line))

Totals.fold, Page.put, Request.add, AppendedFile.append = fold, put, add, append
UnlistedTargets.expire_due = lambda *_: iter(())
soak.main()
"""


def start(*args):
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=BENCHMARKS,
        env={**os.environ, "BENCHMARKS_QUICK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def started():
    """Both soaks, which mostly wait while the other tests run."""
    with (
        start("soak.py", *LITTLE) as whole,
        start("-c", BROKEN, *LITTLE) as broken,
    ):
        yield whole, broken
        whole.kill()
        broken.kill()


@pytest.fixture(scope="module")
def ended(started):
    """The status and the output of each."""
    outputs = [soak.communicate(timeout=120) for soak in started]
    return [
        (soak.returncode, *output) for soak, output in zip(started, outputs, strict=True)
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--results", "0"], "argument --results: '0' is not a positive integer"),
        (["--results", "99999"], "argument --results: 99999 is less than one for each"),
        (["--targets", "99"], "argument --targets: 99 is less than 100"),
        (["--export-interval", "x"], "argument --export-interval: 'x' is not a number"),
        (["--export-interval", "inf"], "argument --export-interval: 'inf' is not finite"),
    ],
)
def test_invalid_arguments_are_refused(args, message):
    with start("soak.py", *args) as soak:
        output, errors = soak.communicate(timeout=60)
    assert (soak.returncode, output) == (2, "")
    assert message in errors


def test_help_describes_each_option_and_its_default():
    with start("soak.py", "--help") as soak:
        output, _ = soak.communicate(timeout=60)
    assert soak.returncode == 0
    for text in ("--results", "10000000", "--targets", "100000", "--export-interval"):
        assert text in output


def test_a_soak_that_finds_nothing_ends_with_ok(ended):
    status, output, errors = ended[0]
    assert (status, errors) == (0, "")
    assert output.splitlines()[-1] == "ok"


def test_progress_is_reported_at_each_export(ended):
    _, output, _ = ended[0]
    progress = list(filter(None, map(PROGRESS.fullmatch, output.splitlines())))
    assert len(progress) >= 11
    for figure in 1, 2:
        figures = [int(match[figure].replace(",", "")) for match in progress]
        assert figures == sorted(figures)
        assert figures[-1] > figures[0]


@pytest.mark.parametrize(
    "told",
    [
        "results_accepted: 4999, not 5000",
        r"targets_expired: 0, not \d+",
        "targets_tracked: .*",
        "totals wrong in the keeper: those of 1 targets, target-153.example.com.*",
        "totals wrong in Prometheus: .*target-150.example.com.*",
        "totals wrong in the collector: .*target-151.example.com.*",
        "totals wrong in the file: .*target-152.example.com.*",
        "memory grows: rss .*",
    ],
)
def test_each_fault_is_reported(ended, told):
    status, output, errors = ended[1]
    assert status == 1
    assert "ok" not in output.splitlines()
    assert re.search(f"^{told}$", errors, re.MULTILINE), errors
