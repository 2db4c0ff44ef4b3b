"""The README's first command, on what a newcomer has: the files of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trio_statskeeper import EventMetrics

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    "CI" not in os.environ, reason="installs from the network: only with CI set"
)
def test_one_command_installs_and_starts_the_main_example(tmp_path):
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("examples", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    command = re.search(
        r"^```sh\n(.*)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE
    )[1]
    completed = subprocess.run(
        ["bash", "-c", f"{command} --for 3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert len({EventMetrics.parse(line).labels["dst"] for line in lines}) == 3
