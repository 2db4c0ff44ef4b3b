"""The README's main command and its program, as a newcomer runs them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from trio_statskeeper import EventMetrics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_program_prints_such_lines_as_the_readme_shows():
    program, shown = re.search(
        r"^```python\n(.*?)^```$.*?^```text\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
    ).groups()
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        printed = [running.stdout.readline() for _ in shown.splitlines()]
        running.kill()
    for line, like in zip(printed, shown.splitlines(), strict=True):
        export, example = EventMetrics.parse(line), EventMetrics.parse(like)
        assert export.labels == example.labels
        # Whether anybody listens to these ports here is another matter.
        assert export.metrics.keys() - example.metrics.keys() <= {"latency"}
        assert export.metrics["total"] > 0


def test_the_program_can_be_given_the_outputs_that_the_readme_shows(tmp_path):
    program, outputs = re.findall(
        r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    printing = (
        "        async for event_metrics in exports:\n            print(event_metrics)\n"
    )
    exporting = "        await export(exports, keeper, prober)\n"
    assert printing in program
    assert f"`{exporting.strip()}`" in README
    program = program.replace(printing, exporting).replace(
        "export_interval=2", "export_interval=0.2"
    )
    program = program.replace("import trio\n", f"import trio\n{outputs}", 1).replace(
        "9464", port
    )
    assert port in program
    (tmp_path / "program.py").write_text(program)
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as running:
        try:
            page = ""
            log = tmp_path / "metrics.log"
            while not (
                "probe_success_total" in page
                and "statskeeper_results_accepted" in page
                and log.exists()
                and log.read_text()
            ):
                assert running.poll() is None
                with (
                    suppress(OSError),
                    urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
                ):
                    page = answer.read().decode()
                time.sleep(0.05)
        finally:
            running.kill()
    lines = log.read_text().splitlines()
    assert EventMetrics.parse(lines[0]).metrics["total"] > 0


@pytest.mark.skipif(
    "CI" not in os.environ, reason="installs from the network: only with CI set"
)
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
