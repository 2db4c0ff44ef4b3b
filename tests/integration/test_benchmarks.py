"""The benchmarks run, check totals, and report what got worse. No figure is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS = ["1", "2", "3", "4", "5", "6", "7a", "7b", "8", "9", "17", "18"]

pytest.importorskip("opentelemetry.sdk", reason="the benchmarks' peer")


def run(*args):
    return subprocess.run(
        [sys.executable, BENCHMARKS, "--quick", *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The stored result of all rows, and what was printed."""
    path = tmp_path_factory.mktemp("benchmarks") / "result.json"
    done = run("--save", path)
    assert done.returncode == 0, done.stderr
    return path, done


def with_rounds(path, row, factor):
    """Store a result of which one row took `factor` times as long; return its path."""
    stored = json.loads(path.read_text())
    for of_row in stored["rows"]:
        if of_row["row"] == row:
            of_row["rounds"] = [value * factor for value in of_row["rounds"]]
            of_row["value"] *= factor
    doctored = path.with_name("doctored.json")
    doctored.write_text(json.dumps(stored))
    return doctored


def test_all_rows_are_measured_and_stored(result):
    path, done = result
    stored = json.loads(path.read_text())
    assert [row["row"] for row in stored["rows"]] == ROWS
    for row in stored["rows"]:
        assert row.keys() == {
            *("row", "what", "how", "reach", "unit", "value", "rounds", "detail")
        }
        assert row["what"] in done.stdout
        assert row["how"] in done.stdout
        assert min(row["rounds"]) <= row["value"] <= max(row["rounds"])
    assert {"cpu", "cores", "python", "trio", "prometheus-client"} <= stored[
        "machine"
    ].keys()


def test_a_row_that_got_worse_is_reported_in_words_and_by_the_exit_status(result):
    faster = with_rounds(result[0], "5", 0.5)
    done = run("--rows", "5", "--compare", faster)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].split()[-1] == "worse"


@pytest.mark.parametrize(("factor", "verdict"), [(1, "same"), (2, "better")])
def test_nothing_got_worse(result, factor, verdict):
    done = run("--rows", "5", "--compare", with_rounds(result[0], "5", factor))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[-1] == verdict


@pytest.mark.parametrize(
    ("args", "message"),
    [(["--rows", "0,1"], "no such rows: 0"), (["--compare", "absent"], "absent")],
)
def test_invalid_arguments_are_refused(args, message):
    done = run(*args)
    assert done.returncode == 2
    assert message in done.stderr


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "performance.svg"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "curves.py", picture],
        env={**os.environ, "BENCHMARKS_QUICK": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "producers" in picture.read_text()
