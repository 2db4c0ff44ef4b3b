"""The programs of README and docs run as they stand; CI runs the README's commands."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TESTING = (ROOT / "docs/testing.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_every_code_block_is_of_a_language_that_is_tested():
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"sh", "python", "text"}


@pytest.mark.parametrize("block", blocks("python"))
def test_the_programs_run(block, monkeypatch, capsys):
    clock = trio.testing.MockClock(autojump_threshold=0)
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=clock))
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    # What the README says that it prints follows the program.
    shown = README.split(block)[1].split("```text\n")[1].split("```")[0]
    assert without_times(printed) == without_times(shown)


def test_the_program_and_its_test_in_the_page_on_testing_run_together():
    program = "".join(blocks("python", TESTING))
    assert "assert " in program
    exec(compile(program, "docs/testing.md", "exec"), {"__name__": "__main__"})


def without_times(text: str) -> str:
    return re.sub(r"^\d{10} ", "TIME ", text, flags=re.MULTILINE)


def test_ci_runs_the_command_that_the_readme_gives_for_the_tests():
    _, tests = blocks("sh")
    assert tests.strip() in (ROOT / ".ci/run").read_text()
