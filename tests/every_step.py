"""Interrupt a play at every step: one step later each time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

import attrs
import outcome
import pytest
import trio
from trio._core import _run
from trio.testing import MockClock

How: TypeAlias = Literal["cancel", "deadline", "crash"]
"""Its scope is cancelled, or the scope's deadline passes, or a task beside it raises."""

# Seconds after which a play hangs.
_TOO_LONG = 60

_watched: ContextVar[bool] = ContextVar("watched")


class _CrashError(Exception):
    """What the task beside it raises."""


@attrs.define(eq=False)
class Interruption(trio.abc.Instrument):
    """What is watched in a play, and interrupted at one of its moments.

    Tasks that it starts are watched, too. A moment is before or after a step of a task.
    Before it, what the task has waited for is there and can't be taken back; after it, the
    task waits.
    """

    at: float
    """The moment; 0 is before it begins."""
    how: How = "cancel"
    struck: bool = False
    moments: list[str] = attrs.field(factory=list)
    """Which there were."""
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _crash: trio.Event = attrs.field(init=False, factory=trio.Event)
    _tasks: set[trio.lowlevel.Task] = attrs.field(init=False, factory=set)

    async def watch(
        self, run: Callable[..., Awaitable[object]], *args: Any
    ) -> BaseException | None:
        """Await `run(*args)`, and return what it raised."""
        ended: outcome.Outcome[object] | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._crash_when_told)
                if self.at == 0:
                    self._strike()
                token = _watched.set(True)
                ended = await outcome.acapture(run, *args)
                _watched.reset(token)
                assert not self._tasks, f"left behind: {self._tasks}"
                nursery.cancel_scope.cancel()
        except* _CrashError:
            pass
        return ended.error if isinstance(ended, outcome.Error) else None

    def end(self) -> None:
        """Cancel it, interrupted or not."""
        self._scope.cancel()

    async def _crash_when_told(self) -> None:
        await self._crash.wait()
        raise _CrashError

    def _strike(self) -> None:
        self.struck = True
        match self.how:
            case "cancel":
                self._scope.cancel()
            case "deadline":
                self._scope.deadline = -math.inf
            case "crash":
                self._crash.set()

    # What Trio calls

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if _watched in task.context:
            self._tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._tasks.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._moment("before", task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._moment("after", task)

    def _moment(self, side: str, task: trio.lowlevel.Task) -> None:
        if _watched in task.context:
            self.moments.append(f"{side} {task.name}")
            if len(self.moments) == self.at:
                self._strike()


Play: TypeAlias = Callable[[Interruption], Awaitable[None]]


@contextmanager
def deterministic_scheduling() -> Iterator[None]:
    """Have all that Trio leaves to chance be the same in each run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "_r", random.Random(1))  # noqa: S311  # that is the point
        patch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        yield


def perform(play: Play, interruption: Interruption, *, mock_clock: bool = True) -> None:
    """Run `play`, the same way each time until it is interrupted."""
    clock = MockClock(autojump_threshold=0) if mock_clock else None
    with deterministic_scheduling():
        trio.run(_whole, play, interruption, clock=clock, instruments=[interruption])


async def _whole(play: Play, interruption: Interruption) -> None:
    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    tasks_before = tasks()
    with trio.fail_after(_TOO_LONG):
        await play(interruption)
    assert tasks() == tasks_before


def interrupt_everywhere(
    play: Play, how: How = "cancel", *, mock_clock: bool = True
) -> int:
    """Interrupt `play` one moment later each time, until it ends before; return when."""
    for at in itertools.count():
        interruption = Interruption(at, how)
        try:
            perform(play, interruption, mock_clock=mock_clock)
        except BaseException as error:
            moments = interruption.moments
            where = moments[at - 1] if 0 < at <= len(moments) else "before the first"
            error.add_note(f"interrupted ({how}) at moment {at}: {where}")
            raise
        if not interruption.struck:
            return at
    raise AssertionError  # never reached
