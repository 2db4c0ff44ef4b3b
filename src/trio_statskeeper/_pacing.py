"""Long work in short steps, so that other tasks run in between."""

from __future__ import annotations

from time import perf_counter

import attrs
import trio

# Seconds of work between two checkpoints. A loop that is held up for a millisecond still
# probes precisely. Shorter steps need more turns of the scheduler, which are rare in a busy
# loop.
_STEP_TIME = 0.0007


@attrs.define(eq=False)
class Step:
    """A step of work, from now until the next checkpoint.

        step = Step()
        for item in items:
            work_on(item)
            await step.pause_if_over()

    Work is paced by time rather than by a count, because counts fit one machine.
    """

    _ends: float = attrs.field(init=False, factory=lambda: perf_counter() + _STEP_TIME)

    @property
    def is_over(self) -> bool:
        return perf_counter() >= self._ends

    @property
    def is_half_over(self) -> bool:
        return perf_counter() >= self._ends - _STEP_TIME / 2

    async def pause_if_over(self) -> None:  # noqa: ASYNC910  # short work has no checkpoint
        """Let other tasks run if the step is over, and begin the next one."""
        if self.is_over:
            await self.pause()

    async def pause(self) -> None:
        """Let other tasks run, and begin the next step."""
        await trio.lowlevel.checkpoint()
        self.begin_next()

    def begin_next(self) -> None:
        """Begin the next step, after a checkpoint of the caller's own."""
        self._ends = perf_counter() + _STEP_TIME
