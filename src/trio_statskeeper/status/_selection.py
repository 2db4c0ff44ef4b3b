"""Which targets a page shows: those that match, the worst first, by keeper."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import TypeAlias

import attrs

from trio_statskeeper._pacing import Step

from ._board import Cut
from ._state import STATES, TargetState

Match: TypeAlias = Callable[[Cut, TargetState, str], bool]
"""Whether a target, in this state, is to be shown."""

# Targets that are looked at in a step.
_BATCH = 50

# Targets on a page. Of more, only the worst are shown, so that the page stays quick.
_MAX_ROWS = 1000
_WORST_ROWS = 500

_RANKS = {state: rank for rank, state in enumerate(STATES)}


@attrs.frozen
class Row:
    """A target, and its state now."""

    cut: Cut
    target: TargetState
    state: str


@attrs.define(eq=False)
class Group:
    """The targets of a keeper."""

    cut: Cut
    counts: Counter[str] = attrs.field(factory=Counter[str])
    """How many of all targets that match are in each state."""
    rows: deque[Row] = attrs.field(factory=deque[Row])
    """Those to be shown, the worst first."""

    def take_rows(self) -> Iterator[Row]:
        """Yield the rows, which are freed as this goes on: not all at once."""
        while self.rows:
            yield self.rows.popleft()


@attrs.frozen
class Selection:
    """What a page shows."""

    groups: Sequence[Group]
    """That with the worst target comes first."""
    counts: Counter[str]
    """How many of all targets that match are in each state."""
    shown: int
    not_kept: int
    """For how many targets there was no room."""

    @property
    def matching(self) -> int:
        return self.counts.total()


# The worst state first, then the most intervals with failures; else by name, so that
# targets do not move about.
_Key: TypeAlias = tuple[int, int, str, str, int]
_Chunk: TypeAlias = list[tuple[_Key, Row]]


async def select(  # noqa: ASYNC910  # short work has no checkpoint
    step: Step,
    cuts: Sequence[Cut],
    match: Match,
    now: float,
    limit: Callable[[int], int] = int,
) -> Selection:
    """Select the targets that match.

    Args:
      step: the step of work in which this is called.
      cuts: the newest pass of each keeper.
      match: which targets are wanted.
      now: seconds of Trio's clock.
      limit: returns how many are shown, given how many match; all by default.
    """
    groups: list[Group] = []
    counts = Counter[str]()
    chunks: list[_Chunk] = []
    for index, cut in enumerate(cuts):
        group = Group(cut)
        groups.append(group)
        for segment in cut.segments:
            targets = iter(segment.values())
            while batch := [*islice(targets, _BATCH)]:
                chunk = [*_matching(index, cut, batch, match, now)]
                chunk.sort(key=_key)
                chunks.append(chunk)
                for _, row in chunk:
                    group.counts[row.state] += 1
                    counts[row.state] += 1
                await step.pause_if_over()
    shown: dict[int, Group] = {}
    number = 0
    # All are sorted in steps: not at once.
    for key, row in islice(merge(*chunks, key=_key), limit(counts.total())):
        index = key[-1]
        shown.setdefault(index, groups[index]).rows.append(row)
        number += 1
        await step.pause_if_over()
    for chunk in chunks:  # nor are all freed at once
        chunk.clear()
        await step.pause_if_over()
    not_kept = sum(cut.not_kept for cut in cuts)
    return Selection([*shown.values()], counts, number, not_kept)  # noqa: ASYNC910  # see above


def limit(matching: int) -> int:
    """Return how many targets a page shows, given how many match."""
    return matching if matching <= _MAX_ROWS else _WORST_ROWS


def _key(item: tuple[_Key, Row]) -> _Key:
    return item[0]


def _matching(
    index: int, cut: Cut, targets: Sequence[TargetState], match: Match, now: float
) -> Iterator[tuple[_Key, Row]]:
    for target in targets:
        state = cut.state_of(target, now)
        if state is not None and match(cut, target, state):
            key = _RANKS[state], -target.bad_intervals, target.name, target.target_id, index
            yield key, Row(cut, target, state)


def containing(text: str) -> Match:
    """Return a function that finds the targets with each of the words of a text.

    Words are looked for in the state, the labels (as `name=value`) and recent errors.
    """
    words = text.casefold().split()

    def match(_: Cut, target: TargetState, state: str) -> bool:
        if not words:
            return True
        labels = (f"{name}={value}" for name, value in target.labels.items())
        errors = (error.kind for error in target.errors if error.in_interval)
        searched = "\n".join((state, *labels, *errors)).casefold()
        return all(word in searched for word in words)

    return match


def identified(target: str, probe: str | None, ptype: str | None) -> Match:
    """Return a function that finds a target by its id, or targets by their name.

    Args:
      target: the id or the name.
      probe: the name of the keeper; None: any.
      ptype: the type of the keeper; None: any.
    """

    def match(cut: Cut, found: TargetState, _: str) -> bool:
        return (
            target in (found.target_id, found.name)
            and probe in (None, cut.probe)
            and ptype in (None, cut.ptype)
        )

    return match
