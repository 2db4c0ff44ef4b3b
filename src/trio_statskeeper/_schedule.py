"""When targets are due: on the grid of the wall clock, each at its own offset.

A target with an interval of 5 seconds is due each time the wall clock shows a multiple of 5
seconds plus the target's offset, which is a hash of its key. So it is due at the same times
after a restart, and on each machine whose clock is right.

Trio's clock measures and waits. `WallClock` knows how far it is from the wall clock, and
when that was set. Then, each target is due next at its offset by the new time. A slot is
not used twice in a row, and two runs have at least half an interval between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from heapq import heappop, heappush, heapreplace
from itertools import count

import attrs
import trio

from ._arguments import quote
from ._targets import Target
from ._wakeups import Wakeups

# Seconds that the clock may differ before it is followed.
_TOLERANCE = 0.05

# By less than this, a clock is slewed rather than set. That costs no runs: slots that it
# passes over are used.
_SHORTEST_STEP = 0.2

# Seconds between two looks at the clock.
_LOOK_INTERVAL = 0.05

# A clock that shows less than this share of the time that has passed stands still. Time is
# slewed by a tenth at most (chrony: "maxslewrate").
_STANDS_STILL = 0.9

# Far beyond seconds since 1970, but not beyond milliseconds.
_MAX_TIME = 1e12

# Entries of the heap, with their targets, that are freed at once.
_FREED_BATCH = 100

# Entries of the heap that may be void, besides one for each target.
_MAX_VOID = 1_000


def offset_of(key: str) -> float:
    """Return where in an interval a target's runs are due, from 0 to 1: its key's hash."""
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


@attrs.define(eq=False)
class WallClock:
    """How far the wall clock is ahead of Trio's."""

    clock: Callable[[], float]
    ahead: float = attrs.field(init=False)
    """Seconds; follows the clock when that differs by more than `_TOLERANCE`."""
    _looked_at: float = attrs.field(init=False)
    """When it was read, by Trio's clock."""
    _ran_at: float = attrs.field(init=False)
    """When it was last read and did not stand still."""
    _showed: float = attrs.field(init=False)
    """What it showed then."""

    def __attrs_post_init__(self) -> None:
        self._showed = self._read()
        self._looked_at = self._ran_at = trio.current_time()
        self.ahead = self._showed - self._looked_at

    def follow(self) -> float:
        """Follow the clock if it was set, and return by how many seconds; else 0.0.

        A clock that stands still is not followed: that is what a real one does on a mock
        clock of Trio's, which jumps. A moment in which the computer is slow does not make
        it run: it has to make up for all the time for which it stood still.
        """
        before = trio.current_time()
        if before - self._looked_at < _LOOK_INTERVAL:
            return 0.0
        shows = self._read()
        now = trio.current_time()
        if now - before > _TOLERANCE / 2:
            return 0.0  # the program was stopped just here
        self._looked_at = now
        if 0 <= shows - self._showed < (before - self._ran_at) * _STANDS_STILL:
            return 0.0
        self._ran_at, self._showed = now, shows
        step = shows - now - self.ahead
        if abs(step) <= _TOLERANCE:
            return 0.0
        self.ahead += step
        return step

    @trio.lowlevel.disable_ki_protection
    def _read(self) -> float:
        shows = self.clock()
        if isinstance(shows, bool) or not isinstance(shows, int | float):
            raise TypeError(f"clock must return seconds, got {quote(shows)}")
        if not abs(shows) <= _MAX_TIME:
            raise ValueError(f"clock must return seconds since 1970, got {quote(shows)}")
        return float(shows)


@attrs.define(eq=False)
class Schedule:
    """The targets, by the times at which they are due next, on Trio's clock."""

    clock: WallClock
    wakeups: Wakeups
    # Each target has one valid entry: that with its `due`. Others, of targets that are
    # delisted or whose interval has changed, are void.
    _heap: list[tuple[float, int, Target]] = attrs.field(
        init=False, factory=list[tuple[float, int, Target]]
    )
    # So that no two entries are equal: targets can't be compared.
    _numbers: Iterator[int] = attrs.field(init=False, factory=lambda: count(0))

    def add(self, target: Target) -> None:
        """Schedule the next run of a target: a new one, or one with a new interval."""
        self._choose_slot(target, trio.current_time())
        heappush(self._heap, (target.due, next(self._numbers), target))

    def remove(self, target: Target) -> None:
        """Schedule no more runs of a target."""
        target.due = -math.inf

    def next_due(self) -> float:
        """Return when to `take` a target."""
        return self._heap[0][0] if self._heap else math.inf

    def take(self, now: float) -> tuple[Target, int] | None:
        """Return the next target, and how many of its runs are to be skipped.

        Its newest run that is due is that of `last_due`. Those before are skipped. None if
        the target is delisted, or due at another time.
        """
        due, _, target = self._heap[0]
        if due != target.due:
            heappop(self._heap)
            return None
        skipped = int((now - due) / target.interval)
        target.last_slot = target.slot + skipped
        target.last_due = self._due(target, target.last_slot) if skipped else due
        target.slot = target.last_slot + 1
        target.due = self._due(target, target.slot)
        heapreplace(self._heap, (target.due, next(self._numbers), target))
        return target, skipped

    async def tidy(self, targets: Mapping[str, Target]) -> None:  # noqa: ASYNC910  # as below
        """Drop void entries if there are too many."""
        if len(self._heap) > 2 * len(targets) + _MAX_VOID:
            await self._rebuild(targets)

    async def follow_clock(  # noqa: ASYNC910  # as below
        self, targets: Mapping[str, Target]
    ) -> None:
        """If the clock was set, schedule each target by the new time."""
        if step := self.clock.follow():
            passed_over = step if 0 < step < _SHORTEST_STEP else 0.0
            await self._rebuild(targets, trio.current_time() - passed_over)

    async def _rebuild(  # noqa: ASYNC910  # its caller has waited, and will again
        self, targets: Mapping[str, Target], not_before: float | None = None
    ) -> None:
        """Put all targets into a new heap; with `not_before`, choose their slots again."""
        heap = list[tuple[float, int, Target]]()
        for target in list(targets.values()):
            if self.wakeups.is_step_over():
                await self.wakeups.let_others_run()
            if not_before is not None:
                self._choose_slot(target, not_before)
            heappush(heap, (target.due, next(self._numbers), target))
        old, self._heap = self._heap, heap
        while old:  # freeing many objects at once stalls the loop
            if self.wakeups.is_step_over():
                await self.wakeups.let_others_run()
            del old[-_FREED_BATCH:]

    def _choose_slot(self, target: Target, not_before: float) -> None:
        """Let a target be due in its first slot from that time."""
        not_before = max(not_before, target.last_due + target.interval / 2)
        slots = (not_before + self.clock.ahead) / target.interval
        target.slot = math.floor(slots - target.offset)
        while (
            target.slot == target.last_slot or self._due(target, target.slot) < not_before
        ):
            target.slot += 1
        target.due = self._due(target, target.slot)

    def _due(self, target: Target, slot: int) -> float:
        return (slot + target.offset) * target.interval - self.clock.ahead
