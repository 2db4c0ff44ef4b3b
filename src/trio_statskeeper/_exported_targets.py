"""The targets that a keeper exports, and the change from a list to the next.

A list may have many targets. So the keeper goes through a new list in steps, between which
other tasks run: the targets with late results leave, the new list replaces the old one,
targets are delisted, and targets expire.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain, islice

import attrs

from ._endpoint import Endpoint, validate_endpoint
from ._expiry import UnlistedTargets
from ._rows import Rows

# Endpoints per step: each step takes some tenths of a millisecond.
_BATCH = 500


@attrs.define(eq=False)
class ExportedTargets:
    """The targets of the newest list, by key, in their order."""

    rows: Rows
    unlisted: UnlistedTargets

    by_key: dict[str, Endpoint] = attrs.field(init=False, factory=dict[str, Endpoint])
    duplicate_targets: int = attrs.field(init=False, default=0)
    # What remains to be done of the new list.
    _steps: Iterator[None] | None = attrs.field(init=False, default=None)

    def to_export(self) -> Iterator[Endpoint]:
        """Return the targets of a pass: the listed ones, then the leaving ones."""
        return chain(self.by_key.values(), reversed(self.unlisted.leaving.values()))

    def count_to_export(self) -> int:
        """Return how many targets `to_export` returns."""
        return len(self.by_key) + len(self.unlisted.leaving)

    def note_exported(self) -> None:
        """Note that the newest cut was exported completely."""
        self.rows.exported = self.rows.epoch
        self.unlisted.note_exported()

    # The change to a new list

    @property
    def is_changing(self) -> bool:
        """Whether the keeper is going through a new list."""
        return self._steps is not None

    def gather_late(self) -> None:
        """Begin to gather the targets with late results for the next pass."""
        self._add_steps(self.unlisted.gather_late())

    def relist(
        self, endpoints: list[Endpoint], now: float, *, for_last_pass: bool = False
    ) -> None:
        """Begin to go through a new list, which is emptied.

        Delisted targets are exported once more if they have changed since their last
        export; for a last pass, all are.
        """
        self._add_steps(self._relist(endpoints, now, for_last_pass))

    def _add_steps(self, steps: Iterator[None]) -> None:
        # A flush that ran out of time may have left some.
        self._steps = chain(self._steps or (), steps)

    def step(self) -> bool:
        """Take a step of the change; return whether there are more."""
        steps, self._steps = self._steps, None  # an error ends the change, too
        for _ in steps or ():
            self._steps = steps
            return True
        return False

    def _relist(
        self, endpoints: list[Endpoint], now: float, for_last_pass: bool
    ) -> Iterator[None]:
        time = self.unlisted.time(now)
        yield from self.unlisted.forget_left()
        if not (yield from self._equals(endpoints)):
            old, new = self.by_key, dict[str, Endpoint]()
            yield from self._fill(new, endpoints)
            # Nothing has changed so far: an error keeps the old list.
            self.by_key = new
            yield from self._remove_from_unlisted(time)
            yield from self._delist(old, for_last_pass)
        yield from _empty(endpoints)
        self.unlisted.note_list(now, time)
        yield from self.unlisted.expire_due(time)

    def _equals(self, endpoints: list[Endpoint]) -> Generator[None, None, bool]:
        """Return whether the new list equals the old one.

        It mostly does, and building a new dict takes longer: 0.3 µs more per target (row 6
        of the benchmarks), and several milliseconds in one step where a large dict grows
        (row 7).
        """
        if len(endpoints) != len(self.by_key):
            return False
        listed = iter(self.by_key.values())
        for begin in range(0, len(endpoints), _BATCH):
            if endpoints[begin : begin + _BATCH] != list(islice(listed, _BATCH)):
                return False
            yield
        return True

    def _fill(self, new: dict[str, Endpoint], endpoints: list[Endpoint]) -> Iterator[None]:
        for count, endpoint in enumerate(endpoints, 1):
            key = validate_endpoint(endpoint).key
            if key in new:
                self.duplicate_targets += 1
            else:
                new[key] = endpoint
            if count % _BATCH == 0:
                yield

    def _remove_from_unlisted(self, time: float) -> Iterator[None]:
        unlisted = self.unlisted
        if not unlisted.never_listed and not unlisted.delisted:
            return
        for count, key in enumerate(self.by_key, 1):
            unlisted.remove_listed(key, time)
            if count % _BATCH == 0:
                yield

    def _delist(self, old: dict[str, Endpoint], for_last_pass: bool) -> Iterator[None]:
        for count in range(1, len(old) + 1):
            key, endpoint = old.popitem()
            if key not in self.by_key and key in self.rows.by_key:
                self.unlisted.add_delisted(key, endpoint, leaves=for_last_pass)
            if count % _BATCH == 0:
                yield


def _empty(endpoints: list[Endpoint]) -> Iterator[None]:
    # In batches: freeing many objects at once stalls the loop.
    while endpoints:
        del endpoints[-_BATCH:]
        yield
