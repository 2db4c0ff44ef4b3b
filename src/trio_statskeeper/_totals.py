"""The totals of one target, and of all: plain, synchronous, free of Trio.

The totals of a target are a *row*, a flat list: its schema, its start timestamp, three
notes (epoch, saved row, newest change), then the numbers of each metric side by side. The
*schema* says where each metric's numbers stand and of what *kind* they are; targets with
the same metrics share one, so that a target costs little more than its numbers.

A row is never changed once it is in place, but for those notes. Folding a result copies
the row (one step, and the cheapest that Python has), adds to the copy, and puts the copy in
place if all went well: so a result is folded in whole or not at all, and whoever holds an
older row holds the totals as they were.

That is what a *cut* needs: all totals as they stand at one instant, without a pause to copy
them. `begin_cut` only counts up an epoch. From then on the first result that touches a
target leaves its old row in the new one, and `take` hands out, for each target once, the
row as it was at the cut.

A target that left the list is *leaving* while it has counted something since its last
export. Each pass exports those that were leaving at its cut, and only others may expire.
A result that comes for a target after it left the list is *late*. It makes its target leave
once more, at the next cut.

What takes long for many targets (`gather_late`; `relist`: the new list of targets, those
that left it, those that expire) is done in steps, between which the caller may let others
run.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import chain, islice
from operator import add
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, cast, final
from weakref import WeakValueDictionary

import attrs

from ._arguments import MAX_NUMBER, is_number, plain_number, plain_str, quote
from ._endpoint import Endpoint, checked_endpoint
from ._exceptions import forget_tracebacks
from ._results import ProbeResult, Reason, Result
from ._values import Distribution, Gauge, Map, Value, unchecked_distribution, unchecked_map

# [schema, start timestamp, epoch, saved row, change, number, number, ...], where the epoch
# is that of the newest cut for which the target was touched or taken, the saved row is the
# one that stood at that cut, until it is taken, and the change is the epoch that was the
# newest when the row last changed.
Row: TypeAlias = list[Any]
_START, _EPOCH, _SAVED, _CHANGE, _FIRST_NUMBER = 1, 2, 3, 4, 5

# More can't be merged; there is room for as many single ones as can ever come.
_MOST_SAMPLES = int(MAX_NUMBER) - 2**64

# Steps of `relist`, each some tenths of a millisecond: endpoints that are gone through,
# targets whose rows are dropped.
_STEP = 500
_EXPIRY_STEP = 100


def _copied(deltas: object) -> dict[str, Value]:
    if not isinstance(deltas, Mapping):
        raise TypeError(f"metrics() must return a mapping, got {quote(deltas)}")
    return dict(cast("Mapping[str, Value]", deltas))


class _Rejected(Exception):
    """A result can't be folded in."""

    def __init__(self, reason: Reason, explanation: str) -> None:
        super().__init__(explanation)
        self.reason: Reason = reason

    def of_metric(self, name: object) -> _Rejected:
        return _Rejected(self.reason, f"metric {quote(name)}: {self}")


class _NewKeys(Exception):
    """A map has keys that the schema has no place for yet."""

    def __init__(self, counts: _Counts, value: Map) -> None:
        super().__init__()
        self.counts = counts
        self.value = value


def _number(value: object) -> int | float:
    if not is_number(value):
        raise _Rejected("kind", f"expected a number, got {quote(value)}")
    return plain_number(cast("float", value))


def _sum(total: float, number: float) -> int | float:
    """Return the sum of two counts, which is never below `total`."""
    added = total + number
    if added > MAX_NUMBER:
        raise _Rejected("overflow", "the total would exceed the largest float")
    # An integer beyond 2**53 may be rounded down as it becomes a float.
    return added if added >= total else math.nextafter(added, math.inf)


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise _Rejected("type", "a metric's name must be a string")
    return plain_str(name)


class _OtherKind(Protocol):
    """How the values of a metric accumulate in a row, unless they just add up."""

    @property
    def zero(self) -> tuple[Any, ...]:
        """The numbers of a metric to which nothing was added yet."""
        ...

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        """Add `value` to the numbers that stand in `row` from `at` on."""
        ...

    def total(self, row: Row, at: int, stale: float) -> Value | None:
        """Return what was added so far; None for what was not renewed since `stale`."""
        ...


@final
@attrs.frozen
class _Sum:
    """Numbers that add up; the row holds their sum, which is the total as it stands."""

    zero = (0,)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        number = _number(value)
        if number < 0:
            raise _Rejected("negative", f"a counter can't go down by {quote(value)}")
        if not number <= MAX_NUMBER:
            raise _Rejected("not-finite", f"a counter can't grow by {quote(value)}")
        row[at] = _sum(row[at], number)


@attrs.frozen
class _Histogram:
    """Distributions; the row holds their sum, then each bucket's count."""

    bounds: tuple[float, ...]

    @property
    def zero(self) -> tuple[Any, ...]:
        return (0.0,) + (0,) * (len(self.bounds) + 1)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        if type(value) is not Distribution:
            raise _Rejected("kind", f"expected a distribution, got {quote(value)}")
        if value.bounds != self.bounds:
            raise _Rejected(
                "bounds",
                f"expected the bounds {quote(self.bounds)}, got {quote(value.bounds)}",
            )
        total = row[at] + value.sum
        if not -MAX_NUMBER <= total <= MAX_NUMBER:
            raise _Rejected("overflow", "the sum would exceed the largest float")
        row[at] = total
        buckets = slice(at + 1, at + 1 + len(value.bucket_counts))
        row[buckets] = map(add, row[buckets], value.bucket_counts)
        if sum(row[buckets]) > _MOST_SAMPLES:
            raise _Rejected("overflow", "the count would exceed the largest float")

    def total(self, row: Row, at: int, stale: float) -> Value:
        counts = tuple(row[at + 1 : at + 2 + len(self.bounds)])
        return unchecked_distribution(self.bounds, counts, row[at])


@attrs.frozen
class _Samples(_Histogram):
    """Distributions, and numbers that are samples."""

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        if type(value) is Distribution:
            _Histogram.add(self, row, at, value, now)
            return
        sample = value if type(value) is float or type(value) is int else _number(value)
        try:
            total = row[at] + sample
        except OverflowError:  # an integer that no float can hold
            total = math.inf
        if not -MAX_NUMBER <= total <= MAX_NUMBER:
            if not -MAX_NUMBER <= sample <= MAX_NUMBER:
                raise _Rejected("not-finite", f"a sample can't be {quote(value)}")
            raise _Rejected("overflow", "the sum would exceed the largest float")
        row[at] = total
        row[at + 1 + bisect_left(self.bounds, sample)] += 1


def _places(counts: _Counts) -> dict[str, int]:
    return {key: place for place, key in enumerate(counts.keys)}


@attrs.frozen
class _Counts:
    """Counts by key; the row holds them in the order of their sorted keys."""

    name: str
    keys: tuple[str, ...] = ()
    places: dict[str, int] = attrs.field(
        init=False, eq=False, default=attrs.Factory(_places, takes_self=True)
    )

    @property
    def zero(self) -> tuple[Any, ...]:
        return (0,) * len(self.keys)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        if type(value) is not Map:
            raise _Rejected("kind", f"expected a map, got {quote(value)}")
        if value.name != self.name:
            raise _Rejected(
                "map-name",
                f"expected a map of {quote(self.name)}, got one of {quote(value.name)}",
            )
        places = self.places
        if not places.keys() >= value.values.keys():
            raise _NewKeys(self, value)
        for key, number in value.values.items():
            place = at + places[key]
            before = row[place]
            total = before + number
            # Without a call where all is well, as in `Totals._add`.
            row[place] = total if before <= total <= MAX_NUMBER else _sum(before, number)

    def with_keys_of(self, value: Map, max_keys: int) -> _Counts:
        """Return this kind with the keys of `value` added, if that is not too many."""
        keys = self.keys
        if len(value.values) <= max_keys:
            keys = tuple(sorted(self.places.keys() | value.values.keys()))
        if len(keys) > max_keys or len(value.values) > max_keys:
            raise _Rejected("map-keys", f"the map would exceed {max_keys} keys")
        return _Counts(self.name, keys)

    def total(self, row: Row, at: int, stale: float) -> Value:
        counts = row[at : at + len(self.keys)]
        return unchecked_map(self.name, dict(zip(self.keys, counts, strict=True)))


@attrs.frozen
class _Newest:
    """Gauges or strings, of which the newest counts; the row holds it and its time."""

    type: type[Gauge | str]

    zero = (None, 0.0)

    def add(self, row: Row, at: int, value: Value, now: float) -> None:
        if type(value) is self.type:
            row[at] = value
        elif self.type is str and isinstance(value, str):
            row[at] = plain_str(value)
        else:
            raise _Rejected("kind", f"expected a {self.type.__name__}, got {quote(value)}")
        row[at + 1] = now

    def total(self, row: Row, at: int, stale: float) -> Value | None:
        newest: Value = row[at]
        return newest if row[at + 1] > stale else None


_Kind: TypeAlias = _Sum | _OtherKind


def _columns(schema: _Schema) -> dict[str, tuple[_Kind, int]]:
    columns: dict[str, tuple[_Kind, int]] = {}
    at = _FIRST_NUMBER
    for name, kind in schema.kinds.items():
        columns[name] = kind, at
        at += len(kind.zero)
    return columns


@attrs.frozen(eq=False)
class _Schema:
    """Which metrics a row holds, of which kind, and where."""

    kinds: Mapping[str, _Kind]
    columns: dict[str, tuple[_Kind, int]] = attrs.field(
        init=False, default=attrs.Factory(_columns, takes_self=True)
    )


def start_timestamp(row: Row) -> float:
    """Return when the totals of `row` began at zero."""
    start: float = row[_START]
    return start


def metrics(row: Row, stale: float) -> dict[str, Value]:
    """Return the totals of `row`, without the gauges not renewed since `stale`."""
    schema: _Schema = row[0]
    totals: dict[str, Value] = {}
    for name, (kind, at) in schema.columns.items():
        if type(kind) is _Sum:
            totals[name] = row[at]
        elif (total := kind.total(row, at, stale)) is not None:
            totals[name] = total
    return totals


@attrs.define(eq=False)
class Totals:
    """The totals of all targets, and which of these are listed.

    Times are seconds of the keeper's running time. Expiry has a time of its own: a list
    counts for an export interval, and what passes then until the next one does not count.
    """

    distributions: Mapping[str, tuple[float, ...]]
    map_names_taken: frozenset[str]
    export_interval: float
    expire_after: float
    max_unlisted: int
    max_map_keys: int
    max_metrics: int

    results_accepted: int = 0
    results_rejected: Counter[str] = attrs.field(factory=Counter[str])
    unreported: Counter[str] = attrs.field(factory=Counter[str])
    """What was rejected since it was last reported."""
    newest_rejection: str = ""
    duplicate_targets: int = 0
    targets_expired: int = 0
    latest_start_expired: float = -math.inf
    """The latest start timestamp of all targets that expired."""
    listed: dict[str, Endpoint] = attrs.field(factory=dict[str, Endpoint])
    """The targets listed last, by key, in their order."""

    _rows: dict[str, Row] = attrs.field(init=False, factory=dict[str, Row])
    # Targets that are not listed, and since when in time of expiry; the longest first.
    _never_listed: OrderedDict[str, tuple[float, None]] = attrs.field(
        init=False, factory=OrderedDict[str, tuple[float, None]]
    )
    _delisted: OrderedDict[str, tuple[float, Endpoint]] = attrs.field(
        init=False, factory=OrderedDict[str, tuple[float, Endpoint]]
    )
    # Those of `_delisted` that had late results since the newest pass began.
    _late: dict[str, Endpoint] = attrs.field(init=False, factory=dict[str, Endpoint])
    # Those of `_delisted` that are to be exported once more, in reverse order; and what is
    # left of those for which that was done.
    _leaving: dict[str, Endpoint] = attrs.field(init=False, factory=dict[str, Endpoint])
    _left: dict[str, Endpoint] = attrs.field(init=False, factory=dict[str, Endpoint])
    # When the newest list was asked for, and that in time of expiry.
    _asked_at: float = attrs.field(init=False, default=0.0)
    _listed_at: float = attrs.field(init=False, default=0.0)
    # The steps of the list that is being gone through.
    _relisting: Iterator[None] | None = attrs.field(init=False, default=None)

    _epoch: int = attrs.field(init=False, default=0)
    _cutting: bool = attrs.field(init=False, default=False)
    # The newest cut all of which was exported.
    _exported: int = attrs.field(init=False, default=0)

    # Weak, for a schema that no row uses any more must not stay.
    _schemas: WeakValueDictionary[tuple[tuple[str, _Kind], ...], _Schema] = attrs.field(
        init=False, factory=WeakValueDictionary[Any, _Schema]
    )
    _no_metrics: _Schema = attrs.field(init=False, factory=lambda: _Schema({}))

    def __len__(self) -> int:
        return len(self._rows)

    # Folding

    def fold(  # noqa: C901  # in one piece, for each call takes time (row 3)
        self, result: ProbeResult, now: float, timestamp: Callable[[], float]
    ) -> ProbeResult | None:
        """Fold `result` in, or reject it, and return None.

        If neither can be done yet, for only the list that is being gone through will tell
        whether its target is listed, return what is to be folded in after its next step.

        Args:
          result: what a probe run adds.
          now: seconds of running time.
          timestamp: returns the time at which the totals of a new target begin.
        """
        try:
            deltas = result.metrics()
            # Dicts need no copy, nor does what `Result` holds.
            kind = type(deltas)
            if kind is not MappingProxyType and not issubclass(kind, dict):
                deltas = _copied(deltas)
            key = result.target
            if type(key) is not str:
                key = plain_str(key)
        except Exception as error:  # noqa: BLE001  # it is the user's code that ran
            self._reject_for(error)
            return None

        delisted = key in self._delisted
        if delisted and self._is_due(key, self._expiry_time(now)):
            self._expire(key, self._delisted)
            delisted = False
        old = self._rows.get(key)
        if old is None and not self._has_room_for(key):
            if self._relisting is not None:
                return self._postponed(key, deltas)
            never_listed = f"never listed, as {self.max_unlisted} others"
            self._reject("unlisted", f"target {quote(key)}: {never_listed}")
            return None

        row = self._new_row() if old is None else old.copy()
        try:
            self._add(row, deltas, now)
        except _Rejected as rejection:
            self._reject(rejection.reason, f"target {quote(key)}: {rejection}")
            return None
        except Exception as error:  # noqa: BLE001  # values may be of the user's classes
            self._reject_for(error, f"target {quote(key)}: ")
            return None

        if old is None:
            row[_START] = timestamp()
            if key not in self.listed:
                self._never_listed[key] = self._expiry_time(now), None
        elif self._cutting and old[_EPOCH] != self._epoch:
            row[_EPOCH] = self._epoch
            row[_SAVED] = old
            old[_SAVED] = None  # of a cut that was given up
        row[_CHANGE] = self._epoch
        self._rows[key] = row
        if delisted:
            _, self._late[key] = self._delisted[key]
        self.results_accepted += 1
        return None

    def _postponed(self, key: str, deltas: Mapping[str, Value]) -> ProbeResult | None:
        try:
            # `metrics()` of the user's own is called only once, and what it returned may
            # change until then.
            return Result(key, deltas)
        except Exception as error:  # noqa: BLE001  # a dict of the user's own
            self._reject_for(error, f"target {quote(key)}: ")
            return None

    def _new_row(self) -> Row:
        return [self._no_metrics, 0.0, self._epoch, None, self._epoch]

    def _has_room_for(self, key: str) -> bool:
        return key in self.listed or len(self._never_listed) < self.max_unlisted

    def _reject_for(self, error: Exception, subject: str = "") -> None:
        self._reject("error", f"{subject}{quote(error)}")
        forget_tracebacks(error)  # a constant is raised again and again

    def _reject(self, reason: Reason, explanation: str) -> None:
        self.results_rejected[reason] += 1
        self.unreported[reason] += 1
        self.newest_rejection = explanation

    def _add(self, row: Row, deltas: Mapping[str, Value], now: float) -> None:
        columns = row[0].columns
        new: list[tuple[str, Value]] | None = None
        name: object = None
        try:
            for name, value in deltas.items():
                column = columns.get(name)
                if column is None:
                    name = _name(name)  # noqa: PLW2901  # its own hash may change
                    column = columns.get(name)
                    if column is None:
                        new = [] if new is None else new
                        new.append((name, value))
                        continue
                kind, at = column
                # Most metrics are sums: without a call, each takes 0.15 µs less, which is a
                # tenth of a fold (row 3 of the benchmarks). What is odd takes the long way.
                try:
                    if (
                        type(kind) is _Sum
                        and (
                            type(value) is int
                            or (type(value) is float and type(row[at]) is float)
                        )
                        and value >= 0
                        and (total := row[at] + value) <= MAX_NUMBER
                    ):
                        row[at] = total
                        continue
                except OverflowError:  # an integer that no float can hold
                    pass
                try:
                    kind.add(row, at, value, now)
                except _NewKeys as new_keys:
                    self._add_keys(row, name, at, new_keys)
                    columns = row[0].columns
                    kind, at = columns[name]
                    kind.add(row, at, value, now)
        except _Rejected as rejection:
            raise rejection.of_metric(name) from None
        if new is not None:
            self._add_new(row, new, now)

    def _add_new(self, row: Row, new: list[tuple[str, Value]], now: float) -> None:
        kinds = dict(row[0].kinds)
        columns = dict[str, int]()
        for name, value in new:
            try:
                if name not in columns:
                    kinds[name] = self._kind_of(name, value, len(kinds))
                    columns[name] = len(row)
                    row.extend(kinds[name].zero)
                kinds[name].add(row, columns[name], value, now)
            except _Rejected as rejection:
                raise rejection.of_metric(name) from None
        # Only now that nothing can be rejected, and once: a schema takes long to build.
        row[0] = self._schema(kinds)

    def _kind_of(self, name: str, value: Value, metrics_before: int) -> _Kind:
        if metrics_before >= self.max_metrics:
            limit = f"the target would exceed {self.max_metrics} metrics"
            raise _Rejected("metrics", limit)
        if name in self.distributions:
            return _Samples(self.distributions[name])
        if is_number(value):
            return _Sum()
        match value:
            case Distribution():
                return _Histogram(value.bounds)
            case Map():
                if value.name in self.map_names_taken:
                    raise _Rejected(
                        "map-name", f"a map can't be of {value.name!r}: it is a label"
                    )
                return _Counts(value.name).with_keys_of(value, self.max_map_keys)
            case Gauge():
                return _Newest(Gauge)
            case str():
                return _Newest(str)
            case _:
                raise _Rejected("type", f"{quote(value)} is not a value of a metric")

    def _add_keys(self, row: Row, name: str, at: int, new: _NewKeys) -> None:
        old = new.counts.keys
        wider = new.counts.with_keys_of(new.value, self.max_map_keys)
        counts = dict(zip(old, row[at : at + len(old)], strict=True))
        row[at : at + len(old)] = [counts.get(key, 0) for key in wider.keys]
        row[0] = self._schema({**row[0].kinds, name: wider})

    def _schema(self, kinds: dict[str, _Kind]) -> _Schema:
        key = tuple(kinds.items())
        schema = self._schemas.get(key)
        if schema is None:
            schema = self._schemas[key] = _Schema(kinds)
        return schema

    # Cutting

    def begin_cut(self) -> None:
        """Keep the totals of all targets as they are now, for `take` to hand out."""
        self._epoch += 1
        self._cutting = True

    def take(self, key: str) -> Row | None:
        """Return the row of a target as it was at the cut.

        None if it had no totals then, or if they were taken already.
        """
        row = self._rows.get(key)
        if row is None:
            return None
        saved: Row | None = row[_SAVED]
        row[_SAVED] = None
        if row[_EPOCH] == self._epoch:
            return saved
        row[_EPOCH] = self._epoch
        return row

    def end_cut(self) -> None:
        """Keep nothing for `take` any more."""
        self._cutting = False

    def to_export(self) -> Iterator[Endpoint]:
        """Return the targets of a pass: those that are listed, then those leaving."""
        return chain(self.listed.values(), reversed(self._leaving.values()))

    def count_to_export(self) -> int:
        """Return how many targets `to_export` returns."""
        return len(self.listed) + len(self._leaving)

    def note_exported(self) -> None:
        """Note that all of the newest cut was exported."""
        self._exported = self._epoch
        self._left, self._leaving = self._leaving, {}

    def row(self, key: str) -> Row | None:
        """Return the row of a target as it is now, or None if it has no totals."""
        return self._rows.get(key)

    # Listing

    def relist(
        self, endpoints: list[Endpoint], now: float, *, for_last_pass: bool = False
    ) -> None:
        """Begin to go through the new list of targets, which is consumed, step by step.

        Of the targets that leave it, those are exported once more that have counted
        something since their last export; for a last pass, all.
        """
        endpoints.reverse()
        self._add_steps(self._relist_steps(endpoints, now, for_last_pass))

    def gather_late(self) -> None:
        """Begin to gather the targets with late results for the next pass, step by step."""
        late, self._late = self._late, {}
        self._add_steps(self._gather_steps(late))

    def _add_steps(self, steps: Iterator[None]) -> None:
        # A flush that ran out of time may have left some.
        self._relisting = chain(self._relisting or (), steps)

    def relist_step(self) -> bool:
        """Take a step of `gather_late` and `relist`; return whether there are more."""
        steps, self._relisting = self._relisting, None  # an error ends it, too
        for _ in steps or ():
            self._relisting = steps
            return True
        return False

    def _gather_steps(self, late: dict[str, Endpoint]) -> Iterator[None]:
        for count in range(1, len(late) + 1):
            key, endpoint = late.popitem()
            self._leaving[key] = endpoint
            if count % _STEP == 0:
                yield

    def _relist_steps(
        self, endpoints: list[Endpoint], now: float, for_last_pass: bool
    ) -> Iterator[None]:
        time = self._expiry_time(now)
        yield from self._forget_left()
        if (yield from self._is_listed(endpoints)):
            yield from self._drop(endpoints)
        else:
            old, new = self.listed, dict[str, Endpoint]()
            yield from self._fill(new, endpoints)
            # Nothing was changed so far: an error leaves all as it was.
            self.listed = new
            yield from self._take_in(new, time)
            yield from self._delist(old, for_last_pass)
        self._asked_at, self._listed_at = now, time
        yield from self._expire_due(time)

    def _expiry_time(self, now: float) -> float:
        return self._listed_at + min(now - self._asked_at, self.export_interval)

    def _is_listed(self, endpoints: list[Endpoint]) -> Generator[None, None, bool]:
        """Tell whether the list is the one before.

        Mostly it is, and to build it anew takes longer: 0.3 µs more for each target (row 6
        of the benchmarks), and several milliseconds in one step where a large dict grows
        (row 7).
        """
        if len(endpoints) != len(self.listed):
            return False
        listed = iter(self.listed.values())
        for end in range(len(endpoints), 0, -_STEP):
            newest = endpoints[max(end - _STEP, 0) : end]
            newest.reverse()
            if newest != list(islice(listed, _STEP)):
                return False
            yield
        return True

    # Lists are emptied in batches: to free many objects at once stalls the loop.

    def _drop(self, endpoints: list[Endpoint]) -> Iterator[None]:
        while endpoints:
            del endpoints[-_STEP:]
            yield

    def _forget_left(self) -> Iterator[None]:
        for count in range(1, len(self._left) + 1):
            self._left.popitem()
            if count % _STEP == 0:
                yield

    def _fill(self, new: dict[str, Endpoint], endpoints: list[Endpoint]) -> Iterator[None]:
        for count in range(1, len(endpoints) + 1):
            endpoint = checked_endpoint(endpoints.pop())
            if endpoint.key in new:
                self.duplicate_targets += 1
            else:
                new[endpoint.key] = endpoint
            if count % _STEP == 0:
                yield

    def _take_in(self, new: dict[str, Endpoint], time: float) -> Iterator[None]:
        if not self._never_listed and not self._delisted:
            return
        before_this_pass = self._epoch - self._cutting
        for count, key in enumerate(new, 1):
            if key in self._never_listed:
                del self._never_listed[key]
                # Passes that were made meanwhile have not exported it.
                row = self._rows[key]
                row[_CHANGE] = max(row[_CHANGE], before_this_pass)
            elif key in self._delisted:
                if self._is_due(key, time):
                    self._expire(key, self._delisted)
                else:
                    del self._delisted[key]
                    self._leaving.pop(key, None)
                    self._late.pop(key, None)
            if count % _STEP == 0:
                yield

    def _delist(self, old: dict[str, Endpoint], all_leave: bool) -> Iterator[None]:
        for count in range(1, len(old) + 1):
            key, endpoint = old.popitem()
            if key not in self.listed and key in self._rows:
                self._never_listed.pop(key, None)  # if its first result came just now
                self._delisted[key] = self._listed_at, endpoint
                row = self._rows[key]
                if all_leave or self._is_unexported(row):
                    self._leaving[key] = endpoint
                if self._cutting and row[_CHANGE] == self._epoch:
                    self._late[key] = endpoint  # it counted something since the cut, too
            if count % _STEP == 0:
                yield

    def _is_unexported(self, row: Row) -> bool:
        """Return whether a listed target had counted something since its last export.

        If a cut is being exported, it counts what there was then.
        """
        then: Row | None = row
        if self._cutting and row[_EPOCH] == self._epoch:
            then = row[_SAVED]
        return then is not None and cast("int", then[_CHANGE]) >= self._exported

    def _is_due(self, key: str, time: float) -> bool:
        """Return whether the time of a delisted target is up."""
        since, _ = self._delisted[key]
        return time - since >= self.expire_after and self._was_exported(key)

    def _was_exported(self, key: str) -> bool:
        """Return whether nothing of a delisted target remains to be exported."""
        return key not in self._leaving and self._rows[key][_CHANGE] < self._exported

    def _expire_due(self, time: float) -> Iterator[None]:
        count = 0
        for unlisted in (self._never_listed, self._delisted):
            while unlisted:
                key, (since, endpoint) = next(iter(unlisted.items()))
                if time - since < self.expire_after:
                    break
                if endpoint is None or self._was_exported(key):
                    self._expire(key, unlisted)
                else:
                    # It is still to be exported, and its time begins again.
                    self._delisted[key] = time, endpoint
                    self._delisted.move_to_end(key)
                count += 1
                if count % _EXPIRY_STEP == 0:
                    yield

    def _expire(self, key: str, unlisted: OrderedDict[str, tuple[float, Any]]) -> None:
        del unlisted[key]
        start = start_timestamp(self._rows.pop(key))
        self.latest_start_expired = max(self.latest_start_expired, start)
        self.targets_expired += 1
