"""Draw how costs grow with the number of targets, and of producers.

`python benchmarks/curves.py FILE.svg` writes the picture, and prints what it shows.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import trio
from folds import Ours
from matplotlib.figure import Figure
from memory import bytes_per_target
from passes import know_targets
from producers import discarded, through_keeper
from standard import Result, make_endpoints, make_keeper, make_work, size

TARGETS = size((10, 100, 1_000, 10_000, 100_000, 1_000_000), (10, 100))
PRODUCERS = size((1, 10, 100, 1_000, 10_000), (1, 10))
RESULTS = size(100_000, 1_000)

ROUNDS = 3
# A pass over so many takes long: one round has to do.
LONG = 1_000_000

Curve = list[float]


def median_of(measure: Callable[[], float], rounds: int) -> float:
    def once() -> float:
        gc.collect()
        return measure()

    return median(once() for _ in range(rounds))


def fold_us(targets: int) -> float:
    endpoints = make_endpoints(targets)
    ours = Ours(max_targets=targets)
    ours.fold([Result(endpoint.key, 0.0) for endpoint in endpoints])
    results = [Result(*pair) for pair in make_work(endpoints, RESULTS)]
    return median_of(lambda: ours.fold(results), ROUNDS) / RESULTS * 1e6


def pass_us(targets: int) -> float:
    known = know_targets(targets)
    rounds = 1 if targets == LONG else ROUNDS
    seconds = median_of(lambda: trio.run(known.time_pass, 0), rounds)
    return seconds / targets * 1e6


def bytes_of(targets: int) -> float:
    return bytes_per_target(targets)[0]


def keeper_us(producers: int) -> float:
    endpoints = make_endpoints(producers)
    work = make_work(endpoints, RESULTS)
    keeper = make_keeper(endpoints)
    seconds = median_of(lambda: trio.run(through_keeper, keeper, work, producers), ROUNDS)
    return seconds / RESULTS * 1e6


def async_for_us(producers: int) -> float:
    work = make_work(make_endpoints(producers), RESULTS)
    seconds = median_of(lambda: trio.run(discarded, work, producers), ROUNDS)
    return seconds / RESULTS * 1e6


def measure(name: str, cost: Callable[[int], float], numbers: Iterable[int]) -> Curve:
    curve: Curve = []
    for number in numbers:
        curve.append(cost(number))
        print(f"{name}, {number:,}: {curve[-1]:.2f}", flush=True)
    return curve


def draw(
    axes: Any, title: str, unit: str, numbers: tuple[int, ...], curves: dict[str, Curve]
) -> None:
    for (name, curve), colour in zip(curves.items(), ("C0", "0.6"), strict=False):
        axes.plot(numbers, curve, marker="o", markersize=4, color=colour, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlabel("targets" if numbers is TARGETS else "producers")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)


def main(path: Path) -> None:
    gc.disable()
    # As text, not as outlines, and the same whenever it is drawn.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "performance"})
    figure: Any = Figure(figsize=(8, 6), layout="constrained")
    (folds, passes), (memory, producers) = figure.subplots(2, 2)
    panels = (
        (folds, "folding in a result", "µs", fold_us),
        (passes, "a pass, per target", "µs", pass_us),
        (memory, "memory per target", "bytes", bytes_of),
    )
    for axes, title, unit, cost in panels:
        draw(axes, title, unit, TARGETS, {"keeper": measure(title, cost, TARGETS)})
    title = "a result, sent and folded in"
    curves = {
        "keeper": measure(title, keeper_us, PRODUCERS),
        "async for": measure("a result, sent and discarded", async_for_us, PRODUCERS),
    }
    draw(producers, title, "µs", PRODUCERS, curves)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
