"""The targets of a prober, their runs in progress, and what is counted of them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import attrs
import trio

from ._endpoint import Endpoint
from ._health import Health

Ts = TypeVarTuple("Ts")


class Delisted(Exception):
    """The target of a run is not listed any more."""


@attrs.define(eq=False)
class Counts:
    """What a prober has done since it was made."""

    results_sent: int = 0
    runs_late: int = 0
    runs_missed: int = 0
    duplicate_targets: int = 0


@attrs.define(eq=False)
class Slots:
    """As many as runs of a target may overlap, which may change; only one run waits."""

    number: int
    taken: int = 0
    _changed: trio.Event | None = None

    def acquire_nowait(self) -> None:
        if self.taken >= self.number:
            raise trio.WouldBlock
        self.taken += 1

    async def acquire(self) -> None:
        """Wait until another run ends; there is one."""
        while True:
            self._changed = trio.Event()
            await self._changed.wait()
            if self.taken < self.number:
                self.taken += 1
                return

    def release(self) -> None:
        self.taken -= 1
        self._wake()

    def resize(self, number: int) -> None:
        self.number = number
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


@attrs.define(eq=False)
class Run:
    """A run, from its start until its result is sent.

    What it waits for seldom takes time. So it has no cancel scope around all, but one where
    it does wait, and the probe has one for its timeout anyway: a scope takes a seventh of
    the prober's time for a run (row 9 of the benchmarks).
    """

    target: Target
    delisted: bool = False
    scope: trio.CancelScope | None = None
    """Where it waits, or waited last."""
    began: float = math.inf
    deadline: float = math.inf
    timeout: float = math.inf
    sent: trio.Semaphore | None = None
    """If it is stuck: released when the result was sent on its behalf."""

    def end(self) -> None:
        """Have it end without a result, for its target is delisted."""
        self.delisted = True
        assert self.scope is not None  # it waits: else it were not others' turn
        self.scope.cancel()

    async def wait(
        self,
        now: Callable[[*Ts], None],
        later: Callable[[*Ts], Awaitable[None]],
        *args: *Ts,
    ) -> None:
        """Call `now`, or await `later` if that would block; raise `Delisted` if ended."""
        try:
            now(*args)
        except trio.WouldBlock:
            pass
        else:
            return  # noqa: ASYNC910  # a turn of the scheduler takes as long as a scope
        if self.delisted:
            raise Delisted
        with trio.CancelScope() as self.scope:
            await later(*args)
        if self.scope.cancelled_caught:
            raise Delisted


@attrs.define(eq=False)
class Target:
    """A target, when it is due, and its runs in progress."""

    endpoint: Endpoint
    offset: float
    """The share of the interval at which its runs are due, from 0 to 1."""
    interval: float = math.inf
    timeout: float = math.inf
    slots: Slots = attrs.field(factory=lambda: Slots(1))
    """For the runs that may overlap."""
    listing: int = -1
    """The number of the list that it was in last."""

    slot: int = 0
    """The number of the interval, counted from 1970, of its next run."""
    due: float = -math.inf
    """When that is due, by Trio's clock."""
    last_slot: int | None = None
    """That of the run before."""
    last_due: float = -math.inf
    """When that was due."""

    waiting: bool = False
    """Whether a run of it has not begun yet."""
    missed: bool = False
    """Whether its newest run was missed because of a stall: the next one is not."""
    runs: set[Run] = attrs.field(factory=set[Run])
    """Those in progress."""
    health: Health | None = None
    """None while it has never failed."""
