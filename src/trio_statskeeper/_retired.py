"""Objects that are no longer needed, to be freed in small steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from time import perf_counter

import attrs

# Seconds for which objects are freed at a time. Most are in use elsewhere, too, and take
# next to no time.
_FREEING_TIME = 0.00002

# Objects between two looks at the clock.
_BATCH = 8


@attrs.define(eq=False)
class Retired:
    """Objects that are no longer needed.

    Freeing many at once stalls the loop. So they are kept here, and some are freed after
    each step of other work.
    """

    _waiting: deque[Collection[object]] = attrs.field(
        init=False, factory=deque[Collection[object]]
    )
    _being_freed: list[object] = attrs.field(init=False, factory=list[object])

    def __len__(self) -> int:
        return len(self._being_freed) + sum(map(len, self._waiting))

    def add(self, collections: Iterable[Collection[object]]) -> None:
        """Keep these objects; the caller should drop the collections."""
        self._waiting.extend(collections)

    def free_some(self) -> None:
        """Free more objects than are added, on average, until the next call."""
        ends = perf_counter() + _FREEING_TIME
        while self._being_freed or self._waiting:
            if not self._being_freed:
                self._being_freed = [*self._waiting.popleft()]
            del self._being_freed[-_BATCH:]
            if perf_counter() >= ends:
                break
