"""Plots of a target's history, as SVG.

The page's policy forbids style attributes: shapes have the presentation attributes of SVG,
and classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from ._history import DEGRADED, DOWN, IDLE, INCONCLUSIVE, MISSING, NONE, OUTCOMES, UP

# Columns of a small plot; each shows the worst of some intervals.
COLUMNS = 60

# The top and the bottom of the bar of each outcome, in percent of the height, from the top:
# colour is not the only difference.
_BARS = {
    IDLE: (88, 100),
    UP: (60, 100),
    INCONCLUSIVE: (15, 45),
    DEGRADED: (30, 100),
    DOWN: (0, 100),
}


def columns(length: int, until: int) -> list[slice]:
    """Return which intervals of a window each column of a small plot shows.

    A column keeps its intervals when a pass is added, so that plots move steadily.

    Args:
      length: the number of intervals.
      until: the number of the newest pass.
    """
    size = -(-length // COLUMNS)
    newest = until % size + 1
    bounds = [length, *range(length - newest, 0, -size), 0]
    return [slice(begin, end) for end, begin in pairwise(bounds) if begin < end][::-1]


def strip(outcomes: Sequence[int], step: int, height: int) -> str:
    """Return bars, one for each outcome; without the `svg` element.

    Args:
      outcomes: what they show.
      step: the width of a bar.
      height: the height of all.
    """
    paths: dict[int, str] = {}
    x = 0
    for outcome, equal in groupby(outcomes):
        width = len([*equal]) * step
        if outcome != MISSING:
            top, bottom = (round(part * height / 100) for part in _BARS[outcome])
            bar = f"M{x} {top}h{width}V{bottom}h-{width}z"
            paths[outcome] = paths.get(outcome, "") + bar
        x += width
    return "".join(
        f'<path class="{OUTCOMES[outcome]}" d="{path}"/>' for outcome, path in paths.items()
    )


def gaps(step: int, height: int) -> str:
    """Return lines that separate the bars of a small plot, in the colour of the ground."""
    path = "".join(f"M{x * step} 0v{height}" for x in range(1, COLUMNS))
    return f'<path class="gap" d="{path}"/>'


def line(values: Sequence[float], step: int, height: int, top: float) -> str:
    """Return the path of a line in steps, with gaps where there is no value.

    Args:
      values: each is shown as a step.
      step: the width of a step.
      height: the height of the plot.
      top: the value at its upper edge; > 0.
    """
    return "".join(
        f"M{x} {level}h{width}" if begins else f"V{level}h{width}"
        for x, width, level, begins, _ in _levels(values, step, height, top)
    )


def area(values: Sequence[float], step: int, height: int, top: float) -> str:
    """Return the path of the area below such a line."""
    return "".join(
        (f"M{x} {height}V{level}h{width}" if begins else f"V{level}h{width}")
        + (f"V{height}z" if ends else "")
        for x, width, level, begins, ends in _levels(values, step, height, top)
    )


def _levels(
    values: Sequence[float], step: int, height: int, top: float
) -> Iterator[tuple[int, int, int, bool, bool]]:
    """Yield each run of equal values: its place, width and level, and if it is an end."""
    scale = (height - 2) / top
    levels = [
        -1 if value == NONE else height - 1 - round(value * scale) for value in values
    ]
    runs = [(level, len([*equal]) * step) for level, equal in groupby(levels)]
    x = 0
    for (before, _), (level, width), (after, _) in zip(
        [(-1, 0), *runs], runs, [*runs[1:], (-1, 0)], strict=False
    ):
        if level >= 0:
            yield x, width, level, before < 0, after < 0
        x += width
