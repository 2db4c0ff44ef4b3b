"""Targets that are not listed, until they expire.

A delisted target is *leaving* while it has changed since its last export. Each pass exports
the targets that were leaving at its cut. A delisted target expires only when everything was
exported.

A result that comes for a delisted target is *late*. It makes the target leave once more, at
the next cut.

Expiry has a time of its own: a list is valid for one export interval. Time after that,
until the next list, does not count.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

import attrs

from ._endpoint import Endpoint
from ._row import Row
from ._rows import CHANGE, Rows, start_timestamp

# Targets per step: each step takes some tenths of a millisecond.
_BATCH = 500
_EXPIRY_BATCH = 100


@attrs.define(eq=False)
class UnlistedTargets:
    """The targets with totals that are not listed. Times are seconds of running time."""

    rows: Rows
    export_interval: float
    expire_after: float

    expired: int = attrs.field(init=False, default=0)
    """How many targets expired."""
    latest_start_expired: float = attrs.field(init=False, default=-math.inf)
    """The latest start timestamp of all targets that expired."""
    # By key: since when, in time of expiry, and the last endpoint. The oldest come first.
    never_listed: OrderedDict[str, tuple[float, None]] = attrs.field(
        init=False, factory=OrderedDict[str, tuple[float, None]]
    )
    delisted: OrderedDict[str, tuple[float, Endpoint]] = attrs.field(
        init=False, factory=OrderedDict[str, tuple[float, Endpoint]]
    )
    # The delisted targets to export once more, in reverse order.
    leaving: dict[str, Endpoint] = attrs.field(init=False, factory=dict[str, Endpoint])
    # The delisted targets with late results since the newest pass began.
    _late: dict[str, Endpoint] = attrs.field(init=False, factory=dict[str, Endpoint])
    # Targets that left: the rest of them is freed in steps.
    _left: dict[str, Endpoint] = attrs.field(init=False, factory=dict[str, Endpoint])
    # When the newest list was asked for, in running time and in time of expiry.
    _asked_at: float = attrs.field(init=False, default=0.0)
    _listed_at: float = attrs.field(init=False, default=0.0)

    def time(self, now: float) -> float:
        """Return the time of expiry at the running time `now`."""
        return self._listed_at + min(now - self._asked_at, self.export_interval)

    def note_list(self, now: float, time: float) -> None:
        """Note that a list was asked for at `now`, which is `time` in time of expiry."""
        self._asked_at, self._listed_at = now, time

    def add_never_listed(self, key: str, now: float) -> None:
        """Add a target whose first result came before it was listed."""
        self.never_listed[key] = self.time(now), None

    def add_delisted(self, key: str, endpoint: Endpoint, *, leaves: bool) -> None:
        """Add a target that was delisted.

        Args:
          key: the target's key.
          endpoint: the target.
          leaves: whether it is exported once more even if nothing changed.
        """
        self.never_listed.pop(key, None)  # if its first result has just come
        self.delisted[key] = self._listed_at, endpoint
        row = self.rows.by_key[key]
        if leaves or self.rows.changed_since_export(row):
            self.leaving[key] = endpoint
        if self.rows.cutting and row[CHANGE] == self.rows.epoch:
            self._late[key] = endpoint  # it changed after the cut, too

    def remove_listed(self, key: str, time: float) -> None:
        """Remove a target that is listed now. Its totals go on unless it has expired."""
        if key in self.never_listed:
            del self.never_listed[key]
            # The passes since its first result have not exported it.
            row = self.rows.by_key[key]
            row[CHANGE] = max(row[CHANGE], self.rows.epoch - self.rows.cutting)
        elif key in self.delisted:
            if self.is_due(key, time):
                self.expire(key)
            else:
                del self.delisted[key]
                self.leaving.pop(key, None)
                self._late.pop(key, None)

    # Leaving

    def note_late(self, key: str) -> None:
        """Note that a result came for a delisted target."""
        _, self._late[key] = self.delisted[key]

    def gather_late(self) -> Iterator[None]:
        """Return steps that make the targets with late results until now leave."""
        late, self._late = self._late, {}
        return self._gather(late)

    def _gather(self, late: dict[str, Endpoint]) -> Iterator[None]:
        for count in range(1, len(late) + 1):
            key, endpoint = late.popitem()
            self.leaving[key] = endpoint
            if count % _BATCH == 0:
                yield

    def note_exported(self) -> None:
        """Note that all targets that were leaving have been exported."""
        self._left, self.leaving = self.leaving, {}

    # Dicts are emptied in batches: freeing many objects at once stalls the loop.
    def forget_left(self) -> Iterator[None]:
        """Free the targets that left, in steps."""
        for count in range(1, len(self._left) + 1):
            self._left.popitem()
            if count % _BATCH == 0:
                yield

    # Expiry

    def is_due(self, key: str, time: float) -> bool:
        """Return whether a delisted target expires."""
        since, _ = self.delisted[key]
        return time - since >= self.expire_after and self._was_exported(key)

    def _was_exported(self, key: str) -> bool:
        """Return whether all totals of a delisted target were exported."""
        row: Row = self.rows.by_key[key]
        return key not in self.leaving and row[CHANGE] < self.rows.exported

    def expire(self, key: str) -> None:
        """Drop the totals of a delisted target."""
        del self.delisted[key]
        self._drop(key)

    def expire_due(self, time: float) -> Iterator[None]:
        """Drop the totals of all targets that expire, in steps."""
        count = 0
        for unlisted in (self.never_listed, self.delisted):
            while unlisted:
                key, (since, endpoint) = next(iter(unlisted.items()))
                if time - since < self.expire_after:
                    break
                if endpoint is None or self._was_exported(key):
                    del unlisted[key]
                    self._drop(key)
                else:
                    # It is still to be exported, and its time begins again.
                    self.delisted[key] = time, endpoint
                    self.delisted.move_to_end(key)
                count += 1
                if count % _EXPIRY_BATCH == 0:
                    yield

    def _drop(self, key: str) -> None:
        start = start_timestamp(self.rows.by_key.pop(key))
        self.latest_start_expired = max(self.latest_start_expired, start)
        self.expired += 1
