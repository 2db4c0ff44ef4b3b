"""The runs whose probes are running, and which of them are overdue."""

from __future__ import annotations

import math

import attrs
import trio

from ._targets import Run
from ._wakeups import Wakeups

# What a probe has to end after its timeout before it is overdue, in which to end a process,
# say: a share of the timeout.
_GRACE = 0.01

# Overdue runs are looked for this often: each tenth of the shortest timeout, within these
# bounds.
_PULSE = 0.1
_MIN_PULSE = 0.01
_MAX_PULSE = 1.0


@attrs.define(eq=False)
class InFlight:
    """Runs whose probe is running, and whose result was not sent on their behalf."""

    wakeups: Wakeups
    # By their timeout. So each of the inner dicts is nearly in the order of deadlines.
    _flights: dict[float, dict[Run, None]] = attrs.field(
        init=False, factory=dict[float, dict[Run, None]]
    )
    # Set when a run begins while it is waited for, and when that was.
    _wanted: trio.Event | None = attrs.field(init=False, default=None)
    _wanted_at: float = attrs.field(init=False, default=-math.inf)

    def __len__(self) -> int:
        return sum(map(len, self._flights.values()))

    def __contains__(self, run: Run) -> bool:
        return run in self._flights.get(run.timeout, ())

    def add(self, run: Run) -> None:
        flight = self._flights.get(run.timeout)
        if flight is None:
            flight = self._flights[run.timeout] = {}
        flight[run] = None
        if self._wanted is not None:
            self._wanted_at = run.began
            self._wanted.set()
            self._wanted = None

    def remove(self, run: Run) -> None:
        del self._flights[run.timeout][run]

    async def wait(self) -> float:
        """Wait until a run may be overdue, or another look is due; return what for."""
        until = await self._next_look()
        while until is None:
            self._wanted = trio.Event()
            await self._wanted.wait()
            self.wakeups.woke(self._wanted_at)
            until = await self._next_look()
        await self.wakeups.sleep_until(until)
        return until

    async def _next_look(self) -> float | None:
        """Return when a run may be overdue, at most a pulse from now; None if none runs."""
        now = trio.current_time()
        # No run that begins meanwhile has a deadline before the next pulse.
        pulse = min(max(self.wakeups.shortest_timeout * _PULSE, _MIN_PULSE), _MAX_PULSE)
        until = now + pulse
        for timeout, flight in list(self._flights.items()):
            if self.wakeups.is_step_over():
                await self.wakeups.let_others_run()
            if flight:
                first = next(iter(flight))
                until = min(until, max(first.deadline, now) + timeout * _GRACE)
            else:
                del self._flights[timeout]
        return until if self._flights else None  # noqa: ASYNC910  # `wait` waits

    async def overdue(self) -> list[Run]:
        """Return the runs that should be over."""
        now = trio.current_time()
        overdue = list[Run]()
        for timeout, flight in list(self._flights.items()):
            if self.wakeups.is_step_over():
                await self.wakeups.let_others_run()
            for run in flight:
                if run.deadline > now - timeout * _GRACE:
                    break
                overdue.append(run)
        return overdue  # noqa: ASYNC910  # `Runs.watch` has waited
