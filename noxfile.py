"""Every check of this project. `nox` runs them all; `nox -l` lists them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
# A missing interpreter is skipped in one line, and with CI set it is an error; it is never
# looked for on the network.
nox.options.download_python = "never"

# Python compiles what is imported, which is the smaller part of what is installed.
os.environ["PIP_NO_COMPILE"] = "1"

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15"]

# Where branches are covered: since 3.14, Python helps, and it takes little time.
COVERED = "3.14"

PYPROJECT = nox.project.load_toml("pyproject.toml")

# Tests of one file may share a server. The files run in the order of their names, which has
# none that takes long at the end.
PYTEST = ("pytest", "--dist=loadfile", "--no-loadscope-reorder")
UNIT_TESTS = (*PYTEST, "--numprocesses=2", "--ignore=tests/integration")
# The tests with real servers mostly wait.
ALL_TESTS = (*PYTEST, "--numprocesses=4")


def show_pyenv_versions() -> None:
    """Make all of pyenv's interpreters available, not only the one that is chosen."""
    if shutil.which("pyenv") and "PYENV_VERSION" not in os.environ:
        listed = subprocess.run(
            ["pyenv", "versions", "--bare"], capture_output=True, text=True, check=True
        ).stdout.split()
        os.environ["PYENV_VERSION"] = ":".join(
            version for version in listed if re.fullmatch(r"3\.\d+\.\d+", version)
        )


def get_missing_pythons() -> None:
    """In CI, unpack the interpreters that are missing; `.ci/get-python` says how."""
    for version in PYTHONS:
        if "CI" in os.environ and not shutil.which(f"python{version}"):
            directory = Path(".nox", f"python{version}").resolve()
            if not directory.exists():
                subprocess.run([".ci/get-python", version, directory], check=True)
            os.environ["PATH"] += f"{os.pathsep}{directory / 'usr/bin'}"


get_missing_pythons()
show_pyenv_versions()


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and what is easily done wrong with Trio."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    flake8 = ("flake8", "--startable-in-context-manager=run,fan_out,write_lines")
    session.run(*flake8, "--select=ASYNC", "src")
    # Checkpoints on every path matter in a library, not in tests and programs. Tests poll
    # (110), have nurseries for one task (112), and functions that await nothing (124).
    # What is not enabled takes no time, unlike what is not selected.
    session.run(
        *flake8,
        "--select=ASYNC1,ASYNC2",
        "--enable=ASYNC1,ASYNC2",
        "--disable=ASYNC110,ASYNC112,ASYNC124",
        "tests",
        "examples",
        "benchmarks",
        "dashboards",
        "noxfile.py",
    )


@nox.session
def typing(session: nox.Session) -> None:
    """Check types, as two type checkers see them, and that the public ones are complete."""
    groups = nox.project.dependency_groups(
        PYPROJECT, "typing", "tests", "benchmarks", "dashboards"
    )
    session.install("-e", ".[examples]", "nox", *groups)
    checked = [
        "src",
        "tests/type_tests.py",
        "examples",
        "benchmarks",
        "dashboards",
        "noxfile.py",
    ]
    # The second program imports the first, by this name.
    pages = {"monitor": "README.md", "own_nursery": "docs/how-to/own-nursery.md"}
    for name, page in pages.items():
        text = Path(page).read_text()
        program, *_ = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        path = Path(session.create_tmp(), f"{name}.py")
        path.write_text(program)
        checked.append(str(path))
    session.run("mypy", *checked)
    session.run("pyright", *checked)
    session.run("pyright", "--verifytypes", "trio_statskeeper", "--ignoreexternal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the unit tests, on the oldest and the newest Python all tests.

    On one Python, check that the unit tests take every branch.
    """
    groups = nox.project.dependency_groups(PYPROJECT, "tests", "benchmarks", "dashboards")
    session.install(".[examples]", "coverage>=7.10", *groups)
    if session.python == COVERED and not session.posargs:
        session.run("coverage", "erase")
        session.run("coverage", "run", "-m", *UNIT_TESTS)
        session.run("coverage", "combine", "--quiet")
        session.run("coverage", "report")
    elif session.python in (PYTHONS[0], PYTHONS[-1]):
        session.run(*ALL_TESTS, *session.posargs)
    else:
        session.run(*UNIT_TESTS, *session.posargs)


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
    session.run(*UNIT_TESTS, *session.posargs)


@nox.session(default=False)
def corners(session: nox.Session) -> None:
    """Run the tests in random order in Python's development mode, and always collecting."""
    groups = nox.project.dependency_groups(PYPROJECT, "tests", "benchmarks", "dashboards")
    session.install(".[examples]", "pytest-randomly", *groups)
    pytest = (*ALL_TESTS, *session.posargs)
    session.run(*pytest, env={"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"})
    session.run(*pytest, "-p", "always_collecting", env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Feed a keeper ten million results with all outputs attached; half an hour."""
    session.install(".[otlp,prometheus]")
    session.run("python", "benchmarks/soak.py", *session.posargs)


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Measure the keeper and its peers on the same work; about five minutes."""
    groups = nox.project.dependency_groups(PYPROJECT, "benchmarks")
    session.install(".[otlp,prometheus]", *groups)
    session.run("python", "benchmarks", *session.posargs)


# The share of the mutants that the tests must kill.
KILLED = 0.95

# What mutmut says of a mutant that no test noticed.
SURVIVED = {"survived", "no tests"}


def lift_decorators(source: str) -> str:
    """Apply decorators after their functions: mutmut leaves out what is decorated."""
    lines = source.splitlines(keepends=True)
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for function in sorted(functions, key=lambda function: -function.lineno):
        decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
        if decorators and decorators != ["classmethod"]:
            name = decorated = function.name
            for decorator in reversed(decorators):
                decorated = f"{decorator}({decorated})"
            indent = " " * function.col_offset
            # Trio takes note of code, and mutmut's wrappers share theirs.
            own_code = f"{indent}{name}.__code__ = {name}.__code__.replace()\n"
            assert function.end_lineno
            lines.insert(function.end_lineno, f"{own_code}{indent}{name} = {decorated}\n")
            del lines[function.decorator_list[0].lineno - 1 : function.lineno - 1]
    return "".join(lines)


@nox.session(default=False, python=PYTHONS[0])
def mutation(session: nox.Session) -> None:
    """Break the core in small ways, and check that the tests notice; takes hours.

    It prints what survives. `nox -s mutation -- 'trio_statskeeper._totals*'` tries some
    mutants only. Run it in the foreground: a shell lets background programs ignore Ctrl-C,
    and the tests of KeyboardInterrupt would hang.
    """
    groups = nox.project.dependency_groups(PYPROJECT, "tests", "mutation")
    session.install(".[prometheus]", *groups)
    copy = Path(session.create_tmp(), "mutation").resolve()
    shutil.rmtree(copy, ignore_errors=True)
    for directory in ("src", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(directory, copy / directory, ignore=ignored)
    shutil.copy("pyproject.toml", copy)
    for module in PYPROJECT["tool"]["mutmut"]["only_mutate"]:
        path = copy / module
        path.write_text(lift_decorators(path.read_text()))
    with session.chdir(copy):
        # The order of the tests of a mutant is that of a set.
        session.run("mutmut", "run", *session.posargs, env={"PYTHONHASHSEED": "0"})
        results = session.run("mutmut", "results", "--all=true", silent=True)
        fates = dict(re.findall(r"^ +(\S+): (.+)$", str(results), re.MULTILINE))
        if not session.posargs and "not checked" in fates.values():
            session.error("mutmut was interrupted")
        fates = {name: fate for name, fate in fates.items() if fate != "not checked"}
        survivors = [mutant for mutant, fate in fates.items() if fate in SURVIVED]
        for mutant in survivors:
            session.run("mutmut", "show", mutant)
    modules = Counter(mutant.split(".")[1] for mutant in fates)
    survived = Counter(mutant.split(".")[1] for mutant in survivors)
    for module, count in modules.items():
        session.log(f"{module}: {count} mutants, {survived[module]} survived")
    share = 1 - len(survivors) / len(fates)
    session.log(f"all: {len(fates)} mutants, {len(survivors)} survived, {share:.1%} killed")
    if share < KILLED:
        session.error(f"less than {KILLED:.0%} of the mutants were killed")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site in build/docs; a warning is an error."""
    groups = nox.project.dependency_groups(PYPROJECT, "docs")
    session.install("-e", ".[otlp,prometheus,status]", *groups)
    shutil.rmtree("build/docs", ignore_errors=True)
    sphinx = ("sphinx-build", "--quiet", "--fail-on-warning", "--keep-going")
    session.run(*sphinx, "--doctree-dir", session.create_tmp(), "docs", "build/docs")


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist, and check them."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "package"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", silent=True)
    built = [str(path) for path in Path("dist").iterdir()]
    session.run("twine", "check", "--strict", *built)
    session.run("check-wheel-contents", *(path for path in built if path.endswith(".whl")))
