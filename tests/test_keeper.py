"""The keeper: its options, no aliasing, runs, statistics and snapshots: rules 2 and 13.

Ticks come at 1, 2, 3 ... seconds; the tests act half-way between.
"""

from __future__ import annotations

import logging
import math

import attrs
import pytest
import trio
from helpers import Result, make_keeper, one, running, totals
from strategies import LARGEST

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    Exponential,
    ExponentialDistribution,
    Gauge,
    Map,
    StatsKeeper,
)

NAN = math.nan
INF = math.inf


# Options


@pytest.mark.parametrize("interval", [0, -1, NAN, INF])
def test_the_interval_is_finite_and_positive(interval):
    with pytest.raises(ValueError, match=f"export_interval must be .* got {interval!r}"):
        make_keeper(export_interval=interval)


@pytest.mark.parametrize("interval", ["10", None, True])
def test_the_interval_is_a_number(interval):
    with pytest.raises(
        TypeError, match=f"export_interval must be a number, got {interval!r}"
    ):
        make_keeper(export_interval=interval)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((), "at least one bound"),
        ((1, 3, 2), "must increase strictly, got 2.0 after 3.0"),
        ((1, 1), "must increase strictly, got 1.0 after 1.0"),
        ((1, NAN), "finite number, got nan"),
        ((1, INF), "finite number, got inf"),
    ],
)
def test_the_bounds_of_distributions_increase(bounds, message):
    with pytest.raises(ValueError, match=rf"distributions\['latency'\]: .*{message}"):
        make_keeper(distributions={"latency": bounds})


def test_the_bounds_of_distributions_are_numbers():
    with pytest.raises(TypeError, match=r"distributions\['latency'\]: .* got '1'"):
        make_keeper(distributions={"latency": "123"})


@pytest.mark.parametrize("bounds", [1, Exponential, None])
def test_a_distribution_is_exponential_or_has_bounds(bounds):
    with pytest.raises(TypeError) as caught:
        make_keeper(distributions={"size": bounds})
    assert str(caught.value) == (
        "distributions['size'] must be Exponential() or a sequence of bounds, "
        f"got {bounds!r}"
    )


async def test_buckets_of_metrics_in_the_latency_unit_are_those_of_seconds(autojump_clock):
    other = ExponentialDistribution.of([3])
    async with running(
        make_keeper(
            latency_unit=0.001,
            distributions=dict.fromkeys(["latency", "size", "a-latency"], Exponential()),
        )
    ) as run:
        run.send(
            Result(
                "a", {"latency": 250, "size": 250, "a-latency": other, "b_latency": other}
            )
        )
        await trio.sleep(1.5)
        (export,) = run.received()
    factors = {name: value.factor for name, value in export.metrics.items()}
    assert factors == {"latency": 1000, "size": 1, "a-latency": 1000, "b_latency": 1000}
    assert export.metrics["latency"].classic() == Distribution([125, 250], [0, 1, 0], 250)


async def test_latencies_are_a_distribution_by_default(autojump_clock):
    for options, expected in (
        ({}, ExponentialDistribution.of([0.25, 0.75])),
        ({"distributions": {"latency": [0.5]}}, Distribution([0.5], [1, 1], 1)),
        (
            {"distributions": {"latency": Exponential(2)}},
            ExponentialDistribution.of([0.25, 0.75], 2),
        ),
        ({"distributions": {}}, 1.0),
        ({"distributions": {"size": [1]}}, 1.0),
    ):
        async with running(make_keeper(**options)) as run:
            run.send(Result("a", {"latency": 0.25}), Result("a", {"latency": 0.75}))
            await trio.sleep(1.5)
            (export,) = run.received()
        assert export.metrics == {"latency": expected}


async def test_targets_may_be_a_sequence(autojump_clock):
    listed = [Endpoint("a"), Endpoint("b")]
    keeper = StatsKeeper("http", "homepage", listed, clock=trio.current_time)
    listed.clear()
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(10.5)
        assert totals(run.received()) == {"a": 1, "b": 1}
    assert list(keeper.targets()) == [Endpoint("a"), Endpoint("b")]


def test_an_evolved_keeper_keeps_its_templates():
    labels = {"zone": "@target.label.zone@"}
    keeper = attrs.evolve(make_keeper(additional_labels=labels), name="other")
    assert (keeper.name, keeper.additional_labels) == ("other", labels)
    assert "@target.label.zone@" in repr(keeper)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("latency_unit", 0, ValueError),
        ("latency_unit", "s", TypeError),
        ("expire_after", 0, ValueError),
        ("expire_after", NAN, ValueError),
        ("expire_after", "1", TypeError),
        ("max_unlisted", -1, ValueError),
        ("max_unlisted", 1.5, TypeError),
        ("max_map_keys", -1, ValueError),
        ("max_metrics", -1, ValueError),
        ("flush_timeout", -1, ValueError),
        ("flush_timeout", INF, ValueError),
        ("flush_timeout", None, TypeError),
        ("clock", 12.5, TypeError),
        ("targets", {Endpoint("a")}, TypeError),
        ("ptype", None, TypeError),
        ("distributions", None, TypeError),
        ("additional_labels", [("env", "prod")], TypeError),
    ],
)
def test_an_invalid_option_is_refused_by_name(option, value, error):
    options = {"ptype": "http", "name": "homepage", "targets": list} | {option: value}
    with pytest.raises(error, match=option):
        StatsKeeper(**options)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("latency_unit", 0, "must be > 0, got 0"),
        ("flush_timeout", -1, "must be finite and >= 0, got -1"),
        ("expire_after", 0, "must be > 0 (math.inf: never) or None, got 0"),
        ("distributions", [7], "must be a mapping, got [7]"),
        ("additional_labels", [7], "must be a mapping, got [7]"),
        ("clock", 7, "must be a function without arguments, got 7"),
    ],
)
def test_an_error_quotes_the_invalid_option(option, value, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        make_keeper(**{option: value})
    assert str(caught.value) == f"{option} {message}"


@pytest.mark.parametrize("option", ["export_interval", "latency_unit", "flush_timeout"])
def test_seconds_may_be_the_largest_float(option):
    assert getattr(make_keeper(**{option: LARGEST}), option) == LARGEST


def test_options_are_read_only():
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        make_keeper().export_interval = 5


# Rule 2: no aliasing


async def test_changing_a_sent_object_does_not_change_totals(autojump_clock):
    codes = {"200": 1}
    deltas = {"total": 1, "code": Map("code", codes)}
    bounds = [1, 2]
    distributions = {"latency": bounds}
    labels = {"env": "prod"}
    endpoints = [Endpoint("a"), Endpoint("b")]
    keeper = make_keeper(
        targets=lambda: endpoints, distributions=distributions, additional_labels=labels
    )
    async with running(keeper) as run:
        run.send(Result("a", deltas), one("b"))
        await trio.testing.wait_all_tasks_blocked()
        codes["200"] = deltas["total"] = 1000
        deltas["more"] = 1
        bounds.append(3)
        distributions["total"] = (1,)
        labels["zone"] = "z"
        await trio.sleep(1.5)
        a, b = run.received()
    assert a.metrics == {"total": 1, "code": Map("code", {"200": 1})}
    assert b.metrics == {"total": 1}
    assert list(a.labels) == ["ptype", "probe", "dst", "env"]


async def test_a_result_that_waits_for_the_list_is_copied(autojump_clock, caplog):
    class Changing(Result):
        """A result that its sender changes one turn after it was received."""

        def metrics(self):
            run.nursery.start_soon(self.change)
            return self.values

        async def change(self):
            self.values["total"] = 1_000

    class Breaking(dict):
        """A dict that can't be copied."""

        __iter__ = keys = None

    others = [Endpoint(f"other {i}") for i in range(5_000)]
    lists = iter([[], [*others, Endpoint("late")], [Endpoint("late")]])

    def targets() -> list[Endpoint]:
        listed = next(lists)
        if len(listed) > 1:
            run.send(Result("late", Breaking(total=1)), Changing("late", {"total": 1}))
        return listed

    keeper = make_keeper(targets, max_unlisted=0)
    async with running(keeper) as run:
        await trio.sleep(2.5)
        assert totals(run.received()) == {"late": 1}
    assert keeper.statistics().results_rejected == {"error": 1}
    assert "target 'late': TypeError(" in caplog.text


async def test_changing_the_list_of_targets_does_not_change_a_pass(
    autojump_clock,
):
    endpoints = [Endpoint(f"target {i}") for i in range(2_000)]

    class Emptying(Result):
        """A result that is folded in while the keeper goes through a new list."""

        def metrics(self):
            endpoints.clear()
            return self.values

    def targets() -> list[Endpoint]:
        if trio.current_time() > 0:
            run.send(Emptying("target 1", {"total": 1}))
        return endpoints

    async with running(make_keeper(targets)) as run:
        run.send(one("target 0"), one("target 1999"))
        await trio.sleep(1.5)
        assert endpoints == []
        assert list(totals(run.received())) == ["target 0", "target 1999"]


async def test_an_export_does_not_change_later(autojump_clock):
    keeper = make_keeper(distributions={"latency": (1, 2)})
    deltas = {"total": 1, "latency": 1, "code": Map("code", {"200": 1}), "queue": Gauge(1)}
    async with running(keeper) as run:
        run.send(Result("a", deltas))
        await trio.sleep(1.5)
        (export,) = run.received()
        (snapshot,) = keeper.snapshot()
        written = str(export)
        run.send(Result("a", deltas), Result("a", {"code": Map("code", {"100": 1})}))
        await trio.sleep(1)
        (later,) = run.received()
    assert str(export) == written
    assert snapshot.metrics == export.metrics
    assert later.metrics["total"] == 2


# Rule 13: the object outlives a run


async def test_a_second_run_continues_counting_on_a_new_grid(autojump_clock):
    keeper = make_keeper()
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
    await trio.sleep(0.75)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.timestamp == 1.5 + 0.75 + 1
    assert (export.metrics["total"], export.start_timestamp) == (2, 0)
    assert keeper.statistics().passes == 2


async def test_time_between_runs_does_not_count_towards_expiry(autojump_clock):
    listed = [Endpoint("a")]
    keeper = make_keeper(targets=lambda: listed, expire_after=3)
    async with running(keeper) as run:
        run.send(Result("a", {"queue": Gauge(1)}))
        await trio.sleep(1.5)
        listed.clear()
        await trio.sleep(1)
    await trio.sleep(100)
    listed.append(Endpoint("a"))
    async with running(keeper) as run:
        assert totals(keeper.snapshot(), "queue") == {"a": Gauge(1)}
        await trio.sleep(1.5)
    assert keeper.statistics().targets_expired == 0


async def test_time_of_earlier_runs_counts_towards_expiry(autojump_clock):
    keeper = make_keeper(list, expire_after=3)
    async with running(keeper) as run:
        await trio.sleep(100)
        run.send(one("a"))
        await trio.sleep(1.75)
    async with running(keeper):
        await trio.sleep(1.1)
        assert keeper.statistics().targets_tracked == 1
        await trio.sleep(1)
        assert keeper.statistics().targets_tracked == 0


def test_a_keeper_continues_counting_in_another_trio_run(autojump_clock):
    keeper = make_keeper()

    async def main() -> list[EventMetrics]:
        async with running(keeper) as run:
            run.send(one("a"))
            await trio.sleep(1.5)
            return run.received()

    for expected in (1, 2):
        clock = trio.testing.MockClock(autojump_threshold=0)
        (export,) = trio.run(main, clock=clock)
        assert export.metrics == {"total": expected}


async def test_two_runs_at_once_are_refused_and_close_nothing(autojump_clock):
    keeper = make_keeper()
    results_send, results_receive = trio.open_memory_channel(1)
    exports_send, _ = trio.open_memory_channel(1)
    async with running(keeper) as run:
        with pytest.raises(
            trio.BusyResourceError, match=r"^this keeper is already running$"
        ):
            await keeper.run(results_receive, exports_send)
        results_send.send_nowait(one("a"))
        assert results_receive.receive_nowait() == one("a")
        exports_send.send_nowait("open")
        run.send(one("a"))
        await trio.sleep(1.5)
        assert totals(run.received()) == {"a": 1}


async def test_started_is_called_when_the_start_of_the_grid_is_fixed(autojump_clock):
    keeper = make_keeper()
    await trio.sleep(5)
    async with running(keeper) as run:
        assert trio.current_time() == 5
        run.send(one("a"))
        await trio.sleep(1.5)
        assert [export.timestamp for export in run.received()] == [6]


@pytest.mark.parametrize("function", ["targets", "clock"])
async def test_started_is_not_called_if_a_function_raises_before(autojump_clock, function):
    def fail() -> list[Endpoint]:
        raise OSError

    with pytest.RaisesGroup(OSError):
        async with running(make_keeper(**{function: fail})):
            pytest.fail("started")


async def test_the_list_of_targets_is_validated_after_the_start(autojump_clock):
    started = False
    with pytest.RaisesGroup(TypeError):
        async with running(make_keeper(lambda: ["a"])):
            started = True
            await trio.sleep(1)
    assert started


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("raising_part", ["filter", "handler"])
async def test_a_failing_log_handler_does_not_end_a_run(
    autojump_clock, capsys, monkeypatch, raising_part, is_told
):
    monkeypatch.setattr(logging, "raiseExceptions", is_told)

    def fail(record: logging.LogRecord) -> bool:
        raise OSError("disk full")

    handler = logging.NullHandler()
    handler.handle = fail
    fault = fail if raising_part == "filter" else handler
    logger = logging.getLogger("trio_statskeeper")
    getattr(logger, f"add{raising_part.title()}")(fault)
    keeper = make_keeper()
    try:
        async with running(keeper) as run:
            run.send(Result("a", None), one("a"))
            await trio.sleep(1.5)
            assert totals(run.received()) == {"a": 1}
    finally:
        getattr(logger, f"remove{raising_part.title()}")(fault)
    assert capsys.readouterr().err.endswith("OSError: disk full\n") == is_told


# Exports, statistics and snapshots


async def test_exports_have_the_latency_unit_and_the_interval(autojump_clock):
    keeper = make_keeper(latency_unit=0.001, export_interval=2)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(2.5)
        (export,) = run.received()
    assert (export.latency_unit, export.export_interval) == (0.001, 2)


async def test_statistics_count_what_the_keeper_did(autojump_clock):
    keeper = make_keeper(["a", "b"])
    async with running(keeper) as run:
        run.send(one("a"), one("b"), one("a"), one("x"))
        await trio.sleep(2.5)
    statistics = keeper.statistics()
    assert attrs.asdict(statistics) == {
        "results_accepted": 4,
        "results_rejected": {},
        "passes": 2,
        "exports_sent": 4,
        "ticks_missed": 0,
        "duplicate_targets": 0,
        "targets_expired": 0,
        "targets_tracked": 3,
        "clock_behind": 0,
    }
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        statistics.results_accepted = 0
    with pytest.raises(TypeError):
        statistics.results_rejected["kind"] = 1


async def test_a_snapshot_has_the_listed_targets_as_they_are_now(autojump_clock):
    keeper = make_keeper(["b", "a", "empty"])
    async with running(keeper) as run:
        run.send(one("a"), one("b"), one("never listed"))
        await trio.sleep(1.5)
        run.send(one("a"))
        await trio.sleep(0.1)
        snapshot = keeper.snapshot()
    assert totals(snapshot) == {"b": 1, "a": 2}
    assert list(totals(snapshot)) == ["b", "a"]
    assert [export.timestamp for export in snapshot] == [1.6, 1.6]


async def test_a_snapshot_can_be_of_some_targets(autojump_clock):
    keeper = make_keeper(["a", "b", "c"])
    async with running(keeper) as run:
        run.send(one("a"), one("b"), one("c"), one("never listed"))
        await trio.sleep(0.5)
        keys = ["c", "a", "never listed", "c", "?"]
        assert [export.labels["dst"] for export in keeper.snapshot(keys)] == ["c", "a"]


def test_the_keys_of_a_snapshot_are_not_a_string():
    message = r"^keys must be an iterable of strings, got 'ab'$"
    with pytest.raises(TypeError, match=message):
        make_keeper("ab").snapshot("ab")


async def test_a_snapshot_can_be_taken_before_and_after_a_run(autojump_clock):
    keeper = make_keeper()
    assert keeper.snapshot() == ()
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(0.5)
    assert totals(keeper.snapshot()) == {"a": 1}
