"""Every check of this project. `nox` runs them all; `nox -l` lists them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
# A missing interpreter is skipped in one line, and with CI set it is an error; it is never
# looked for on the network.
nox.options.download_python = "never"

PYTHONS = ["3.11", "3.12", "3.13"]

PYPROJECT = nox.project.load_toml("pyproject.toml")


def show_pyenv_versions() -> None:
    """Make all of pyenv's interpreters available, not only the one that is chosen."""
    if shutil.which("pyenv") and "PYENV_VERSION" not in os.environ:
        listed = subprocess.run(
            ["pyenv", "versions", "--bare"], capture_output=True, text=True, check=True
        ).stdout.split()
        os.environ["PYENV_VERSION"] = ":".join(
            version for version in listed if re.fullmatch(r"3\.\d+\.\d+", version)
        )


show_pyenv_versions()


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and what is easily done wrong with Trio."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    flake8 = ("flake8", "--startable-in-context-manager=run")
    session.run(*flake8, "--select=ASYNC", "src")
    # Checkpoints on every path matter in a library, not in tests and programs; and tests
    # have nurseries for one task (112), and functions that await nothing (124).
    session.run(
        *flake8,
        "--select=ASYNC1,ASYNC2",
        "--extend-ignore=ASYNC112,ASYNC124",
        "tests",
        "examples",
        "benchmarks",
        "noxfile.py",
    )


@nox.session
def typing(session: nox.Session) -> None:
    """Check types, as two type checkers see them, and that the public ones are complete."""
    groups = nox.project.dependency_groups(PYPROJECT, "typing", "tests", "benchmarks")
    session.install("-e", ".[examples]", "nox", *groups)
    checked = ("src", "tests/type_tests.py", "examples", "benchmarks", "noxfile.py")
    session.run("mypy", *checked)
    session.run("pyright", *checked)
    session.run("pyright", "--verifytypes", "trio_statskeeper", "--ignoreexternal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests."""
    groups = nox.project.dependency_groups(PYPROJECT, "tests", "benchmarks")
    session.install(".[examples]", *groups)
    # The tests with real servers mostly wait; those of one file may share a server.
    session.run("pytest", "--numprocesses=3", "--dist=loadfile", *session.posargs)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Run the tests without examples, with the oldest dependencies that are allowed."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    oldest = [
        dependency.partition(",")[0].replace(">=", "==")
        for dependency in (*project["dependencies"], *extras["otlp"], *extras["prometheus"])
    ]
    groups = nox.project.dependency_groups(PYPROJECT, "tests")
    session.install(".", *oldest, *groups)
    session.run("pytest", "--ignore=tests/integration", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Check that the tests without real servers take every branch."""
    groups = nox.project.dependency_groups(PYPROJECT, "tests")
    session.install("-e", ".[otlp,prometheus]", "coverage", *groups)
    session.run("coverage", "run", "-m", "pytest", "--ignore=tests/integration", "-q")
    session.run("coverage", "report")


@nox.session
def corners(session: nox.Session) -> None:
    """Run the tests in random order in Python's development mode, and always collecting."""
    groups = nox.project.dependency_groups(PYPROJECT, "tests")
    session.install(".[otlp,prometheus]", "pytest-randomly", *groups)
    pytest = ("pytest", "--ignore=tests/integration", "--numprocesses=2", "--quiet")
    session.run(*pytest, env={"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"})
    session.run(*pytest, "-p", "always_collecting", env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Feed a keeper ten million results with all outputs attached; about ten minutes."""
    session.install(".[otlp,prometheus]")
    session.run("python", "benchmarks/soak.py", *session.posargs)


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Measure the keeper and its peers on the same work; about five minutes."""
    groups = nox.project.dependency_groups(PYPROJECT, "benchmarks")
    session.install(".[otlp,prometheus]", *groups)
    session.run("python", "benchmarks", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist, and check them."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "package"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", silent=True)
    built = [str(path) for path in Path("dist").iterdir()]
    session.run("twine", "check", "--strict", *built)
    session.run("check-wheel-contents", *(path for path in built if path.endswith(".whl")))
