"""A keeper does what a plain model does, whatever happens in whatever order."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any
from unittest import mock

import attrs
import pytest
import trio
import trio.testing
from helpers import Result, make_keeper
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from model import LARGEST, Model, Seen, seen

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    Exponential,
    ExponentialDistribution,
    Gauge,
    Map,
    ProbeResult,
    Value,
    _keeper_run,
    _pacing,
    _sending,
)


class Stepwise:
    """A Trio run that goes on only within `settle`, and whose clock only `jump` moves."""

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self.nursery: trio.Nursery
        self._soon: deque[Callable[[], object]] = deque()
        self._settled = self._leaving = self._over = False
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._soon.append,
            done_callback=self._done,
            clock=self.clock,
        )
        self.settle()

    def settle(self) -> None:
        """Let the tasks run until all of them wait."""
        self._settled = False
        while not self._settled:
            self._soon.popleft()()

    def close(self) -> None:
        self._leaving = True
        if not self._over:
            self.settle()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            while not self._leaving:
                await trio.testing.wait_all_tasks_blocked()
                self._settled = True
                # Between two calls of `settle` this task is runnable: if all waited, Trio
                # would wait for input in a thread.
                await trio.lowlevel.checkpoint()
            self.nursery.cancel_scope.cancel()

    def _done(self, outcome: Any) -> None:
        self._settled = self._over = True
        outcome.unwrap()


# What happens. Numbers are such that floats add up exactly.

KEYS = st.sampled_from("abcd")
LISTS = st.lists(KEYS, max_size=5)
BOUNDS = (1.0, 2.0)
SECONDS = st.sampled_from([0, 0.25, 0.5, 0.75, 1, 1.25, 2, 3.5])
CAPACITIES = st.sampled_from([0, 1, 2, math.inf])

GOOD: Mapping[str, list[Value]] = {
    "total": [0, 1, 2, True],
    "time": [1, 0.5, 2.25],
    "latency": [-1, 0.5, 1, 1.5, 2.0, 3, Distribution(BOUNDS, (1, 0, 2), 8.5)],
    "size": [Distribution((10,), (1, 0), 5), Distribution((10,), (0, 3), 40)],
    "delay": [0, -0.25, 0.5, 0.75, 6, 1024.0, ExponentialDistribution.of([-1, 0, 3])],
    "first-byte": [ExponentialDistribution.of([5]), ExponentialDistribution.of([0, 2, 9])],
    "code": [Map("code", {"200": 1}), Map("code", {"500": 0.5, "404": 2}), Map("code", {})],
    "queue": [Gauge(3), Gauge(-0.5), Gauge(math.inf)],
    "version": ["v1", "v2"],
}
# Each of them is wrong for some metrics of some targets, and right for others.
ODD = [
    None,
    [1],
    -1,
    -math.inf,
    math.inf,
    math.nan,
    LARGEST,
    int(LARGEST),
    Map("class", {"2xx": 1}),
    Map("code", {"200": LARGEST}),
    Map("code", {"1": 1, "2": 1}),
    Map("code", {"1": 1, "2": 1, "3": 1, "4": 1}),
    Map("dst", {"x": 1}),
    Map("place", {"x": 1}),
    Distribution((11,), (1, 0), 5),
    Distribution((10,), (1, 0), LARGEST),
    ExponentialDistribution.of([LARGEST]),
    ExponentialDistribution(0, zero_count=2**63),
    *[value for values in GOOD.values() for value in values],
]


@attrs.frozen
class Raising:
    """A result whose metrics can't be had."""

    target: str
    values: None = None

    def metrics(self) -> Mapping[str, Value]:
        raise OSError("no metrics")


# Composites, as Hypothesis shows all values of other strategies.
@st.composite
def draw_good_metric(draw: st.DrawFn) -> tuple[str, Value]:
    name = draw(st.sampled_from([*GOOD]))
    return name, draw(st.sampled_from(GOOD[name]))


@st.composite
def draw_odd_metric(draw: st.DrawFn) -> tuple[Any, Any]:
    return draw(st.sampled_from([*GOOD, "new", 5])), draw(st.sampled_from(ODD))


good_metrics, odd_metrics = draw_good_metric(), draw_odd_metric()
good_results = st.builds(
    Result,
    KEYS,
    # With a latency, by which it is told whether all was exported.
    st.lists(good_metrics, max_size=4).map(lambda drawn: {"latency": 1.5, **dict(drawn)}),
)
odd_results = st.builds(
    Result,
    KEYS,
    st.tuples(
        st.lists(good_metrics, max_size=3), odd_metrics, st.lists(good_metrics, max_size=2)
    ).map(lambda parts: dict([*parts[0], parts[1], *parts[2]])),
)
no_results = st.builds(Raising, KEYS) | st.builds(
    Result, KEYS | st.just(7), st.none() | st.just(["total"])
)
results = st.one_of([good_results] * 5 + [odd_results] * 5 + [no_results, st.none()])
# Each can be rejected for one reason alone.
bursts = st.lists(
    st.builds(Result, KEYS, good_metrics.map(lambda metric: dict([metric]))), max_size=6
)
options = st.fixed_dictionaries(
    {
        "expire_after": st.sampled_from([0.5, 1, 2, 2.25, 3, math.inf]),
        "max_unlisted": st.integers(0, 2),
        "max_map_keys": st.just(3),
        "max_metrics": st.sampled_from([4, 200]),
        "flush_timeout": st.sampled_from([0, 0.75, 2.5]),
        "distributions": st.just({"latency": BOUNDS, "delay": Exponential(3)}),
    }
)
# The two channels' buffers, what is sent at once, and when it is cancelled, if at once.
runs = st.tuples(CAPACITIES, CAPACITIES, bursts, st.none() | st.none() | st.integers(0, 5))

LABELS = {"env": "test", "place": "{place}", "shout": "{key}!"}


def shown(export: EventMetrics) -> Seen:
    assert (export.latency_unit, export.export_interval) == (1, 1)
    return seen(
        export.timestamp,
        export.start_timestamp,
        export.labels,
        export.metrics,
        export.ends_pass,
    )


def counts(export: EventMetrics) -> dict[Any, float]:
    """Return what never goes down."""
    counts: dict[Any, float] = {}
    for name, value in export.metrics.items():
        match value:
            case int() | float():
                counts[name] = value
            case Map():
                counts |= {(name, key): count for key, count in value.values.items()}
            case Distribution():
                counts |= {(name, i): n for i, n in enumerate(value.bucket_counts)}
            case ExponentialDistribution():
                # Their buckets become coarser.
                counts |= {(name, "all"): value.count, (name, 0): value.zero_count}
    return counts


NONE = Distribution.of([], BOUNDS)


def samples(latency: Any) -> int:
    return latency.count if isinstance(latency, Distribution) else 1


in_progress = precondition(lambda self: self.model.run is not None)
open_to_results = precondition(
    lambda self: self.model.run is not None and self.model.run.open
)


class AnyInterleaving(RuleBasedStateMachine):
    """A keeper and the model, to both of which the same happens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        for module in _keeper_run, _pacing, _sending:
            # No step is over because a machine was slow: the same happens each time.
            stopped = mock.patch.object(module, "perf_counter", return_value=0.0)
            self.patches.enter_context(stopped)
        self.trio = Stepwise()

    @initialize(
        options=options,
        wanted=st.permutations("abcd"),
        run=runs,
        scheduling=st.random_module(),
    )
    def make(self, options, wanted, run, scheduling):
        self.model = Model(interval=1, labels=LABELS, wanted=wanted, **options)
        self.keeper = make_keeper(
            self.targets,
            additional_labels={
                "env": "test",
                "place": "@target.label.place@",
                "shout": self.shout,
            },
            clock=lambda: trio.current_time() + self.model.ahead,
            **options,
        )
        self.targets_fail = False
        self.times_asked = 0
        self.ways_out: list[type | None] = []
        self.accepted: list[ProbeResult] = []
        self.accepted_in_all = 0
        # Results that come while the keeper calls `targets` next (0), or computes its
        # so manieth label from now.
        self.surprise: tuple[int, list[ProbeResult]] | None = None
        # By target, how many latencies were accepted, accepted of one that is or was
        # listed, exported.
        self.accepted_samples = Counter[str]()
        self.owed_samples = Counter[str]()
        self.exported_samples = Counter[str]()
        self.exports_lost = False
        self.newest: dict[str, EventMetrics] = {}
        self.timestamp = 0.0
        self.start(*run)

    def teardown(self) -> None:
        if hasattr(self, "exports"):
            self.exports.close()  # so that no flush waits for it
        self.trio.close()
        self.patches.close()

    # What the keeper calls

    def targets(self) -> list[Endpoint]:
        self.times_asked += 1
        if self.targets_fail:
            self.targets_fail = False
            raise OSError("no targets")
        if self.surprise is not None and self.surprise[0] == 0:
            # What comes of others depends on how far the list was gone through.
            self.spring([r for r in self.surprise[1] if r.target in self.model.wanted])
        return [
            Endpoint(key, labels={"place": str(place)})
            for place, key in enumerate(self.model.wanted, self.model.first_place)
        ]

    def shout(self, endpoint: Endpoint) -> str:
        if self.surprise is not None:
            calls, batch = self.surprise
            if calls == 1:
                self.spring(batch)
            elif calls > 1:
                self.surprise = calls - 1, batch
        return f"{endpoint.key}!"

    def spring(self, batch: list[ProbeResult]) -> None:
        run = self.model.run
        if run is None or not run.open or not self.model.listening:
            return
        # At the very instant of a tick, it may fall on either side of it.
        if (trio.current_time() - run.start) % 1 != 0:
            self.surprise = None
            self.trio.nursery.start_soon(self.produce, batch)

    # Its surroundings

    async def run(
        self,
        results: trio.MemoryReceiveChannel[ProbeResult],
        exports: trio.MemorySendChannel[EventMetrics],
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            try:
                await self.keeper.run(results, exports)
            except trio.Cancelled:
                self.ways_out.append(trio.Cancelled)
                raise
            except Exception as error:  # noqa: BLE001  # compared with the model's
                self.ways_out.append(type(error))
            else:
                self.ways_out.append(None)
            finally:
                assert results.statistics().open_receive_channels == 0
                assert exports.statistics().open_send_channels == 0

    async def produce(self, batch: list[ProbeResult]) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for result in batch:
                await self.results.send(result)
                self.accepted.append(result)

    async def cancel_after(self, steps: int) -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        self.scope.cancel()

    def start(
        self,
        buffer: float,
        exports_buffer: float,
        backlog: list[ProbeResult],
        cancel_after: int | None,
    ) -> None:
        self.results, results = trio.open_memory_channel[ProbeResult](buffer)
        exports, self.exports = trio.open_memory_channel[EventMetrics](exports_buffer)
        self.scope = trio.CancelScope()
        # What was left in the last run's channel is never received.
        self.exports_lost |= len(self.model.buffer) > 0
        self.model.begin(exports_buffer)
        self.trio.nursery.start_soon(self.run, results, exports, self.scope)
        if cancel_after is not None and self.model.run is not None:
            self.cancel(backlog, cancel_after)
        else:
            self.trio.nursery.start_soon(self.produce, backlog)
        self.settle()

    def wait(self, seconds: float) -> None:
        self.trio.clock.jump(seconds)
        self.model.advance(seconds)
        self.settle()

    def settle(self) -> None:
        self.trio.settle()
        self.model.settle()
        self.fold_accepted()
        if self.model.capacity == math.inf:
            while self.receive_one():
                pass

    def fold_accepted(self) -> None:
        rejected = self.keeper.statistics().results_rejected
        for result in self.accepted:
            target, values = getattr(result, "target", 7), getattr(result, "values", None)
            folded = self.model.results_accepted
            self.model.fold(target, values, rejected)
            if self.model.results_accepted > folded:
                count = samples(values.get("latency", NONE))
                self.accepted_samples[target] += count
                if self.model.held[target].place is not None:
                    self.owed_samples[target] += count
        self.accepted_in_all += len(self.accepted)
        self.accepted.clear()

    def receive_one(self) -> bool:
        if not self.model.listening:
            return False
        expected = self.model.receive()
        if expected is None:
            nothing = trio.EndOfChannel if self.model.run is None else trio.WouldBlock
            with pytest.raises(nothing):
                self.exports.receive_nowait()
            return False
        export = self.exports.receive_nowait()
        assert shown(export) == expected
        self.check_order(export)
        self.trio.settle()
        self.model.settle()
        self.fold_accepted()
        return True

    def check_order(self, export: EventMetrics) -> None:
        assert export.start_timestamp <= export.timestamp
        assert self.timestamp <= export.timestamp
        self.timestamp = export.timestamp
        target = export.labels["dst"]
        before = self.newest.get(target)
        self.newest[target] = export
        self.exported_samples[target] += samples(export.metrics.get("latency", NONE))
        if before is None or before.start_timestamp < export.start_timestamp:
            return
        self.exported_samples[target] -= samples(before.metrics.get("latency", NONE))
        assert before.start_timestamp == export.start_timestamp
        now = counts(export)
        assert all(now.get(part, -1) >= count for part, count in counts(before).items())

    # What happens to it

    @rule(batch=st.lists(results, min_size=1, max_size=4), seconds=SECONDS)
    @open_to_results
    def results_come_one_by_one(self, batch, seconds):
        for result in batch:
            self.trio.nursery.start_soon(self.produce, [result])
            self.settle()
        self.wait(seconds)

    @rule(batch=bursts, seconds=SECONDS)
    @open_to_results
    def results_come_at_once(self, batch, seconds):
        self.trio.nursery.start_soon(self.produce, batch)
        self.settle()
        self.wait(seconds)

    @rule(calls=st.integers(0, 3), batch=bursts)
    def results_will_come_as_the_keeper_asks(self, calls, batch):
        self.surprise = calls, batch

    @rule(seconds=SECONDS)
    def time_passes(self, seconds):
        self.wait(seconds)

    @rule(seconds=SECONDS, run=runs)
    @precondition(lambda self: self.model.run is None)
    def it_is_run_again(self, seconds, run):
        self.wait(seconds)
        self.start(*run)

    @rule(seconds=st.sampled_from([-20, -1.5, 1.5, 20]))
    def the_wall_clock_steps(self, seconds):
        self.model.ahead += seconds

    @rule(wanted=LISTS)
    def the_list_changes(self, wanted):
        self.model.wanted = wanted

    @rule()
    def the_labels_of_all_targets_change(self):
        self.model.first_place += 1

    @rule(exports=st.integers(1, 5))
    def the_consumer_takes_some(self, exports):
        for _ in range(exports):
            self.receive_one()

    @rule(keys=st.none() | LISTS)
    def a_snapshot_is_taken(self, keys):
        expected = self.model.snapshot(keys)
        assert [shown(export) for export in self.keeper.snapshot(keys)] == expected
        self.settle()

    # In one rule, so that runs do not end before much has happened.
    @rule(
        how=st.sampled_from(["cancelled", "results", "consumer", "targets"]),
        batch=bursts,
        steps=st.integers(0, 5),
    )
    @in_progress
    def it_comes_to_an_end(self, how, batch, steps):
        run = self.model.run
        if how == "cancelled" and not run.cancelled:
            self.cancel(batch, steps)
        elif how == "results" and run.open:
            self.results.close()
            self.model.close_results()
        elif how == "consumer":
            self.exports_lost |= len(self.model.buffer) > 0
            self.exports.close()
            self.model.leave()
        elif how == "targets":
            self.targets_fail = self.model.targets_fail = True
        self.settle()

    def cancel(self, batch, steps):
        self.trio.nursery.start_soon(self.produce, batch)
        self.trio.nursery.start_soon(self.cancel_after, steps)
        self.trio.settle()
        self.fold_accepted()
        self.model.cancel()

    # What always holds

    @invariant()
    def it_counted_as_the_model_did(self):
        statistics = self.keeper.statistics()
        rounded = {"clock_behind": round(statistics.clock_behind, 3)}
        assert attrs.asdict(statistics) | rounded == self.model.statistics()
        assert self.times_asked == self.model.times_asked
        assert self.accepted_in_all == statistics.results_accepted + sum(
            statistics.results_rejected.values()
        )

    @invariant()
    def what_it_accepted_of_targets_once_listed_it_has_exported_at_a_clean_end(self):
        at_a_clean_end = self.model.run is None and self.ways_out[-1:] == [None]
        if at_a_clean_end and not self.model.buffer and not self.exports_lost:
            assert self.owed_samples <= self.exported_samples <= self.accepted_samples

    @invariant()
    def its_runs_ended_as_the_model_did(self):
        assert self.ways_out == self.model.ways_out


AnyInterleaving.TestCase.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None
)
TestAnyInterleaving = AnyInterleaving.TestCase
