"""The keeper as its rules describe it, plain and slow: it adds everything up each time.

Nothing here is steps or tasks. `Model.settle` brings it to where nothing more can happen
until the clock, the consumer or a producer moves.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import trio

from trio_statskeeper import (
    Distribution,
    Exponential,
    ExponentialDistribution,
    Gauge,
    Map,
    Value,
)

LARGEST = sys.float_info.max

# What an export tells, for comparison: 1 and 1.0 differ, and so does another order.
Seen: TypeAlias = tuple[float, float, list[tuple[str, str]], list[tuple[str, str]], bool]


def seen(
    timestamp: float,
    start: float,
    labels: Mapping[str, str],
    metrics: Mapping[str, Value],
    ends_pass: bool,
) -> Seen:
    shown = [(name, repr(value)) for name, value in metrics.items()]
    # A start may be later by as little as floats allow, to be told from the one before.
    return round(timestamp, 3), round(start, 3), list(labels.items()), shown, ends_pass


# What values come to, all together


class Refused(Exception):
    """The last of the values can't be added, for this reason."""


def added(values: Iterable[Any]) -> float:
    total = 0
    for value in values:
        if not isinstance(value, int | float):
            raise Refused("kind")
        if value < 0:
            raise Refused("negative")
        if not value <= LARGEST:
            raise Refused("not-finite")
        total += value
        if total > LARGEST:
            raise Refused("overflow")
    return total


def observed(bounds: Sequence[float], values: Iterable[Any]) -> Distribution:
    counts = [0] * (len(bounds) + 1)
    total = 0.0
    for value in values:
        if isinstance(value, Distribution):
            if list(value.bounds) != list(bounds):
                raise Refused("bounds")
            total += value.sum
            counts = [a + b for a, b in zip(counts, value.bucket_counts, strict=True)]
        elif isinstance(value, int | float):
            if not -LARGEST <= value <= LARGEST:
                raise Refused("not-finite")
            total += value
            counts[sum(bound < value for bound in bounds)] += 1
        else:
            raise Refused("kind")
        if not -LARGEST <= total <= LARGEST or sum(counts) > LARGEST:
            raise Refused("overflow")
    return Distribution(bounds, counts, total)


def observed_exponentially(max_buckets: int, values: Iterable[Any]) -> Value:
    total = ExponentialDistribution.of([])
    for value in values:
        if isinstance(value, int | float):
            if not -LARGEST <= value <= LARGEST:
                raise Refused("not-finite")
            value = ExponentialDistribution.of([value])  # noqa: PLW2901
        elif not isinstance(value, ExponentialDistribution):
            raise Refused("kind")
        try:
            total = total.merge(value, max_buckets)
        except ValueError:
            raise Refused("overflow") from None
    return total


def counted(names_taken: Iterable[str], max_keys: int, values: Sequence[Any]) -> Map:
    name = values[0].name
    if name in names_taken:
        raise Refused("map-name")
    counts: dict[str, float] = {}
    for value in values:
        if not isinstance(value, Map):
            raise Refused("kind")
        if value.name != name:
            raise Refused("map-name")
        for key, count in value.values.items():
            counts[key] = counts.get(key, 0) + count
            if counts[key] > LARGEST:
                raise Refused("overflow")
        if len(counts) > max_keys:
            raise Refused("map-keys")
    return Map(name, {key: counts[key] for key in sorted(counts)})


def newest(values: Sequence[Any]) -> Value:
    if type(values[-1]) is not type(values[0]):
        raise Refused("kind")
    return values[-1]


@attrs.define
class Held:
    """What is held of one target."""

    start: float
    last_listed: float
    """By the time that counts for expiry; if it never was, when its first result came."""
    place: int | None
    """Where it was last listed; None: it never was."""
    exported: int = -1
    """How many of the results are in the newest export."""
    results: list[tuple[float, Mapping[str, Value]]] = attrs.field(factory=list)
    """Each with its running time."""

    def values(self) -> dict[str, list[Value]]:
        values: dict[str, list[Value]] = {}
        for _, deltas in self.results:
            for name, value in deltas.items():
                values.setdefault(name, []).append(value)
        return values

    def renewed(self, name: str) -> float:
        return max(time for time, deltas in self.results if name in deltas)


@attrs.define
class Run:
    """A run in progress."""

    start: float
    tick: int = 1
    """The one that is waited for."""
    open: bool = True
    """Whether more results may come."""
    cancelled: bool = False
    ends_at: float = math.inf
    to_send: deque[Seen] | None = None
    """Of a pass in progress: what was not sent yet."""
    cut: list[tuple[Held, int]] = attrs.field(factory=list)
    """Whose results that pass has, and how many."""
    last: bool = False
    """Whether that pass is the last."""
    failure: type | None = None
    """What `targets` raised when it was called for the last pass."""


@attrs.define
class Model:
    """A keeper, its exports channel, and the clocks."""

    interval: float
    expire_after: float
    max_unlisted: int
    max_map_keys: int
    max_metrics: int
    flush_timeout: float
    distributions: Mapping[str, Sequence[float] | Exponential]
    labels: Mapping[str, str]
    """The additional ones; `{key}` and `{place}` stand for the target's."""

    wanted: list[str]
    """The keys of what `targets` returns."""
    first_place: int = 0
    """The place of the first of them."""
    targets_fail: bool = False
    """Whether its next call raises an OSError."""
    now: float = 0.0
    """Trio's clock."""
    ahead: float = 1_700_000_000.0
    """How far the wall clock is ahead of it."""
    running: float = 0.0
    """The running time: seconds of Trio's clock while a run was in progress."""

    results_accepted: int = 0
    results_rejected: Counter[str] = attrs.field(factory=Counter)
    passes: int = 0
    exports_sent: int = 0
    ticks_missed: int = 0
    duplicate_targets: int = 0
    targets_expired: int = 0

    held: dict[str, Held] = attrs.field(factory=dict)
    listed: dict[str, int] = attrs.field(factory=dict)
    """The place of each."""
    late: dict[str, int] = attrs.field(factory=dict)
    """Those that had results after they left the list, since the newest pass began."""
    leaving: dict[str, int] = attrs.field(factory=dict)
    """Those that left the list, but are still to be exported, and their places."""
    asked_at: float = 0.0
    """The running time at which the list was asked for."""
    listed_at: float = 0.0
    """That in the time that counts for expiry."""
    timestamp: float = 0.0
    pass_timestamp: float = -math.inf
    clock_behind: float = 0.0
    times_asked: int = 0

    run: Run | None = None
    ways_out: list[type | None] = attrs.field(factory=list)
    """What each run that is over raised."""
    buffer: deque[Seen] = attrs.field(factory=deque)
    capacity: float = 0
    listening: bool = False
    """Whether the consumer is there."""

    def statistics(self) -> dict[str, Any]:
        return {
            "results_accepted": self.results_accepted,
            "results_rejected": +self.results_rejected,
            "passes": self.passes,
            "exports_sent": self.exports_sent,
            "ticks_missed": self.ticks_missed,
            "duplicate_targets": self.duplicate_targets,
            "targets_expired": self.targets_expired,
            "targets_tracked": len(self.held),
            "clock_behind": round(self.clock_behind, 3),
        }

    # Totals

    def fold(self, target: Any, deltas: Any, counted_now: Mapping[str, int]) -> None:
        """Fold a result in, or reject it.

        Where several reasons apply, any may be counted: that is looked up in `counted_now`.
        """
        if not isinstance(target, str) or not isinstance(deltas, Mapping):
            self.results_rejected["error"] += 1
            return
        held = self.held.get(target)
        if held is not None and held.place is not None and target not in self.listed:
            if self.was_exported(target):
                self.drop_if_due(target)
            held = self.held.get(target)
        reasons = set(self.faults(held.values() if held else {}, deltas))
        if held is None and target not in self.listed and not self.has_room():
            reasons.add("unlisted")
        if reasons:
            told = [r for r in reasons if self.results_rejected[r] < counted_now.get(r, 0)]
            self.results_rejected[min(told or reasons)] += 1
            return
        if held is None:
            place = self.listed.get(target)
            since = self.expiry_time() if place is None else self.listed_at
            self.timestamp = self.stamp()
            held = self.held[target] = Held(self.timestamp, since, place)
        held.results.append((self.running, dict(deltas)))
        if held.place is not None and target not in self.listed:
            self.late[target] = held.place
        self.results_accepted += 1

    def has_room(self) -> bool:
        never_listed = [held for held in self.held.values() if held.place is None]
        return len(never_listed) < self.max_unlisted

    def faults(
        self, before: Mapping[str, Sequence[Value]], deltas: Mapping[str, Any]
    ) -> Iterable[str]:
        if len({*before, *deltas}) > self.max_metrics:
            yield "metrics"
        for name, value in deltas.items():
            if not isinstance(name, str) or not isinstance(value, Value):
                yield "type"
            try:
                self.total(name, [*before.get(name, ()), value])
            except Refused as refused:
                yield refused.args[0]

    def total(self, name: str, values: Sequence[Any]) -> Value:  # noqa: PLR0911
        if name in self.distributions:
            bounds = self.distributions[name]
            if isinstance(bounds, Exponential):
                return observed_exponentially(bounds.max_buckets, values)
            return observed(bounds, values)
        match values[0]:
            case int() | float():
                return added(values)
            case Distribution(bounds=bounds):
                if not all(isinstance(value, Distribution) for value in values):
                    raise Refused("kind")
                return observed(bounds, values)
            case ExponentialDistribution():
                if not all(isinstance(value, ExponentialDistribution) for value in values):
                    raise Refused("kind")
                return observed_exponentially(160, values)
            case Map():
                taken = ("ptype", "probe", "dst", "le", *self.labels)
                return counted(taken, self.max_map_keys, values)
            case Gauge() | str():
                return newest(values)
        raise Refused("type")

    def exports(self, keys: Iterable[str], timestamp: float) -> deque[Seen]:
        """Return what is to be exported of those among `keys` now."""
        exports: deque[Seen] = deque()
        places = self.leaving | self.listed
        for key in keys:
            if key not in places or key not in self.held:
                continue
            held = self.held[key]
            totals = {name: self.total(name, v) for name, v in held.values().items()}
            metrics = {
                name: total
                for name, total in totals.items()
                if not isinstance(total, Gauge | str)
                or self.running - held.renewed(name) < self.expire_after
            }
            labels = {"ptype": "http", "probe": "homepage", "dst": key}
            for name, label in self.labels.items():
                labels[name] = label.format(key=key, place=places[key])
            if metrics:
                exports.append(seen(timestamp, held.start, labels, metrics, False))
        if exports:
            exports.append((*exports.pop()[:-1], True))
        return exports

    def snapshot(self, keys: Iterable[str] | None) -> list[Seen]:
        keys = self.listed if keys is None else dict.fromkeys(keys)
        listed = (key for key in keys if key in self.listed)
        return list(self.exports(listed, self.stamp()))

    def stamp(self) -> float:
        """Return what the clock tells, or the newest timestamp if that is later."""
        self.clock_behind = max(0.0, self.timestamp - (self.now + self.ahead))
        return max(self.timestamp, self.now + self.ahead)

    # Listing

    def ask(self, *, for_last_pass: bool = False) -> bool:
        """Ask for the targets; return whether that went well."""
        self.times_asked += 1
        new = {key: place for key, place in self.late.items() if key not in self.leaving}
        self.leaving, self.late = new | self.leaving, {}
        if self.targets_fail:
            self.targets_fail = False
            return False
        before, self.listed = self.listed, {}
        for place, key in enumerate(self.wanted, self.first_place):
            if key in self.listed:
                self.duplicate_targets += 1
            else:
                self.listed[key] = place
        left = {
            key: place
            for key, place in before.items()
            if (held := self.held.get(key)) is not None
            and (for_last_pass or len(held.results) > held.exported)
        }
        left |= self.leaving
        self.leaving = {key: left[key] for key in left if key not in self.listed}
        time = self.expiry_time()
        for key, held in list(self.held.items()):
            is_delisted = held.place is not None and key not in self.listed
            if is_delisted and not self.was_exported(key):
                if time - held.last_listed >= self.expire_after:
                    held.last_listed = time
                continue
            returns = key not in before and key not in left
            if key not in self.listed or (held.place is not None and returns):
                self.drop_if_due(key)
            if key in self.listed:
                held.place = self.listed[key]
                held.last_listed = time
        self.asked_at, self.listed_at = self.running, time
        return True

    def expiry_time(self) -> float:
        return self.listed_at + min(self.running - self.asked_at, self.interval)

    def was_exported(self, key: str) -> bool:
        """Return whether nothing of one that is not listed remains to be exported."""
        held = self.held[key]
        return key not in self.leaving and len(held.results) <= held.exported

    def drop_if_due(self, key: str) -> None:
        if self.expiry_time() - self.held[key].last_listed >= self.expire_after:
            del self.held[key]
            self.targets_expired += 1

    # Running

    def begin(self, capacity: float) -> None:
        """Begin a run, on new channels."""
        self.buffer.clear()
        self.capacity = capacity
        self.listening = True
        self.run = Run(self.now)
        self.timestamp = self.stamp()
        if not self.ask():
            self.end(OSError)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        if self.run is not None:
            self.running += seconds
            if self.run.to_send is not None and not self.run.last:
                self.miss_ticks(self.run)

    def miss_ticks(self, run: Run) -> None:
        """Count the ticks that are past since the one whose pass is in progress."""
        while run.start + (run.tick + 1) * self.interval < self.now:
            run.tick += 1
            self.ticks_missed += 1

    def close_results(self) -> None:
        self.run.open = False

    def cancel(self) -> None:
        if self.flush_timeout == 0:
            self.end(trio.Cancelled)
            return
        self.run.open = False
        self.run.cancelled = True
        self.run.ends_at = self.now + self.flush_timeout
        self.begin_last_pass()

    def leave(self) -> None:
        """Let the consumer go."""
        self.listening = False
        self.buffer.clear()

    def receive(self) -> Seen | None:
        if self.buffer:
            return self.buffer.popleft()
        if self.run is not None and self.run.to_send:
            self.exports_sent += 1
            return self.run.to_send.popleft()
        return None

    def settle(self) -> None:
        while self.run is not None and self.goes_on(self.run):
            pass

    def goes_on(self, run: Run) -> bool:
        if run.to_send is None:
            if not run.open:
                self.begin_last_pass()
            elif self.now >= run.start + run.tick * self.interval:
                if self.ask():
                    self.miss_ticks(run)
                    self.begin_pass()
                else:
                    self.end(OSError)
            else:
                return False
        elif not run.to_send:
            self.end_pass()
        elif not self.listening:
            self.miss_the_consumer()
        elif len(self.buffer) < self.capacity:
            self.buffer.append(run.to_send.popleft())
            self.exports_sent += 1
        elif self.now >= run.ends_at:
            self.end(trio.Cancelled)
        else:
            return False
        return True

    def begin_last_pass(self) -> None:
        # A flush that follows on a last pass asks again: what that raised is forgotten.
        self.run.failure = None if self.ask(for_last_pass=True) else OSError
        self.begin_pass()

    def begin_pass(self) -> None:
        if not self.listening:
            self.miss_the_consumer()
            return
        self.run.last = not self.run.open
        keys = [*self.listed, *self.leaving]
        self.pass_timestamp = max(self.stamp(), self.pass_timestamp + 0.001)
        self.timestamp = self.pass_timestamp
        self.run.to_send = self.exports(keys, self.timestamp)
        included = [self.held[key] for key in keys if key in self.held]
        self.run.cut = [(held, len(held.results)) for held in included]

    def end_pass(self) -> None:
        run = self.run
        self.passes += 1
        run.to_send = None
        self.leaving = {}
        for held, results in run.cut:
            held.exported = results
        if run.last:
            self.end(run.failure or (trio.Cancelled if run.cancelled else None))
        elif run.open:
            run.tick += 1

    def miss_the_consumer(self) -> None:
        self.end(trio.Cancelled if self.run.cancelled else trio.BrokenResourceError)

    def end(self, raised: type | None) -> None:
        self.run = None
        self.ways_out.append(raised)
