"""The README's blocks and links are tested, all of them: here, and in tests/integration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "pyproject.toml"]
REPOSITORY = (
    r"https://(?:github|raw\.githubusercontent)\.com/trio-statskeeper/trio-statskeeper"
)


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def lines_of_code(program: str) -> int:
    return sum(bool(line.strip()) for line in program.splitlines())


def test_the_readme_has_two_commands_and_two_programs_one_with_its_output():
    languages = re.findall(r"^```(\w+)$", README, re.MULTILINE)
    assert languages == ["sh", "sh", "python", "text", "python"]


def test_the_program_with_a_nursery_is_that_of_the_guide():
    guide = (ROOT / "docs/how-to/own-nursery.md").read_text()
    assert blocks("python")[1:] == blocks("python", guide)


def test_the_readme_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


def test_ci_runs_the_command_that_the_readme_gives_for_the_tests():
    _, tests = blocks("sh")
    assert tests.strip() in (ROOT / ".ci/run").read_text()


def test_the_monitoring_program_has_at_most_20_lines_and_its_test_15():
    program, _ = blocks("python")
    assert lines_of_code(program) <= 20
    [test] = blocks("python", (ROOT / "docs/testing.md").read_text())
    assert lines_of_code(test) <= 15


def test_links_of_the_readme_work_on_a_package_index_too():
    text = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert [target for target in targets if not target.startswith("https://")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_the_repository_lead_to_files(page):
    paths = re.findall(REPOSITORY + r"/(?:blob/|tree/)?main/([\w./-]*)", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []
