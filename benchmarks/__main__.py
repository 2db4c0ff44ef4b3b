"""Measure the keeper and its peers on the same work, and tell the ratios."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Each row is measured in a process of its own.
PROGRAMS = {
    "1": "producers.py",
    "2": "producers.py",
    "3": "folds.py",
    "4": "folds.py",
    "5": "memory.py",
    "6": "passes.py",
    "7": "steps.py",
    "8": "scrape.py",
    "9": "prober.py",
    "17": "turns.py",
    "18": "folds.py",
}
PACKAGES = ("trio", "attrs", "prometheus-client", "opentelemetry-sdk", "trio-statskeeper")

# What is worse by less than this is not worth a word, however quiet the machine is.
SIGNIFICANT = 1.05

Row = dict[str, Any]

say = partial(print, file=sys.stderr, flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__)
    parser.add_argument(
        "--rows",
        help="measure only these, with commas between (1 to 9, 17, 18)",
        metavar="ROWS",
    )
    parser.add_argument(
        "--save", type=Path, help="write the result to FILE", metavar="FILE"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        help="tell what is worse than in FILE, by more than the noise of both; "
        "exit with status 1 if anything is",
        metavar="FILE",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only try it out, on too little work for figures",
    )
    args = parser.parse_args()
    args.rows = set(args.rows.split(",")) if args.rows else PROGRAMS.keys()
    if not args.rows <= PROGRAMS.keys():
        parser.error(f"no such rows: {','.join(sorted(args.rows - PROGRAMS.keys()))}")
    args.stored = None
    if args.compare:
        try:
            args.stored = json.loads(args.compare.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"can't read {args.compare}: {error}")
        if args.stored["quick"] != args.quick:
            parser.error("a quick run can only be compared with another")
    return args


def machine() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(": ")[2]
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def measure(rows: set[str], *, quick: bool) -> list[Row]:
    env = {**os.environ, **({"BENCHMARKS_QUICK": "1"} if quick else {})}
    measured: list[Row] = []
    for row in sorted(rows, key=int):
        program = Path(__file__).with_name(PROGRAMS[row])
        say(f"measuring row {row} ({program.name})")
        done = subprocess.run(
            [sys.executable, program, row],
            stdout=subprocess.PIPE,
            env=env,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{program.name} failed")
        measured += map(json.loads, done.stdout.splitlines())
    return measured


def figure(value: float, unit: str) -> str:
    return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.3f}{unit_sign(unit)}"


def unit_sign(unit: str) -> str:
    return "" if unit == "ratio" else f" {unit}"


def print_table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    for line in (head, *lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_rows(rows: list[Row]) -> None:
    lines = [
        (
            row["row"],
            row["what"],
            figure(row["value"], row["unit"]),
            f"{min(row['rounds']):.3f} to {max(row['rounds']):.3f}",
            f"≤ {row['reach']:g}",
            "yes" if row["value"] <= row["reach"] else "no",
        )
        for row in rows
    ]
    print_table(("row", "what", "value", "spread", "reach", "reached"), lines)
    for row in rows:
        print(f"\n{row['row']}: {row['how']}")
        for name, value in row["detail"].items():
            print(f"   {name}: {value}")


def verdict(old: Row, new: Row) -> str:
    """Say whether a row got worse beyond the noise of both runs; less is better."""
    if (
        min(new["rounds"]) > max(old["rounds"])
        and new["value"] > old["value"] * SIGNIFICANT
    ):
        return "worse"
    if (
        max(new["rounds"]) < min(old["rounds"])
        and new["value"] * SIGNIFICANT < old["value"]
    ):
        return "better"
    return "same"


def print_comparison(stored: dict[str, Any], result: dict[str, Any]) -> bool:
    """Print what changed; return whether anything got worse."""
    print()
    for name, now in result["machine"].items():
        then = stored["machine"].get(name)
        if then != now:
            print(f"{name} was {then}, is {now}")
    old_rows = {row["row"]: row for row in stored["rows"]}
    pairs = [
        (old_rows[row["row"]], row) for row in result["rows"] if row["row"] in old_rows
    ]
    verdicts = [verdict(old, new) for old, new in pairs]
    lines = [
        (
            new["row"],
            new["what"],
            figure(old["value"], old["unit"]),
            figure(new["value"], new["unit"]),
            said,
        )
        for (old, new), said in zip(pairs, verdicts, strict=True)
    ]
    print_table(("row", "what", "old", "new", "it is"), lines)
    return "worse" in verdicts


def main() -> None:
    args = parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "quick": args.quick,
        "rows": measure(args.rows, quick=args.quick),
    }
    print(
        ", ".join(f"{name} {value}" for name, value in result["machine"].items()),
        end="\n\n",
    )
    print_rows(result["rows"])
    if args.save:
        args.save.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if args.stored and print_comparison(args.stored, result):
        sys.exit(1)


if __name__ == "__main__":
    main()
