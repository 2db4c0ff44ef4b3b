"""The README's blocks are tested, all of them: here, and in tests/integration."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def lines_of_code(program: str) -> int:
    return sum(bool(line.strip()) for line in program.splitlines())


def test_the_readme_has_two_commands_and_two_programs_one_with_its_output():
    languages = re.findall(r"^```(\w+)$", README, re.MULTILINE)
    assert languages == ["sh", "sh", "python", "text", "python"]


def test_ci_runs_the_command_that_the_readme_gives_for_the_tests():
    _, tests = blocks("sh")
    assert tests.strip() in (ROOT / ".ci/run").read_text()


def test_the_monitoring_program_has_at_most_20_lines_and_its_test_15():
    program, _ = blocks("python")
    assert lines_of_code(program) <= 20
    [test] = blocks("python", (ROOT / "docs/testing.md").read_text())
    assert lines_of_code(test) <= 15
