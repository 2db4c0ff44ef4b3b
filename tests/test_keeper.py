"""What a running keeper exports, and when: rules 1, 2, 6 to 9, 13 and 14.

Ticks come at 1, 2, 3 ... seconds; the tests act half-way between.
"""

from __future__ import annotations

import itertools
import logging
import math
import weakref
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from unittest.mock import Mock

import attrs
import pytest
import trio
from helpers import Result, make_keeper, one, running, totals
from strategies import LARGEST
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    Gauge,
    Map,
    StatsKeeper,
    Value,
)
from trio_statskeeper._families import in_seconds
from trio_statskeeper.testing import receive_exports

NAN = math.nan
INF = math.inf


# The constructor


@pytest.mark.parametrize("interval", [0, -1, NAN, INF])
def test_an_interval_that_is_not_finite_and_above_zero_is_refused(interval):
    with pytest.raises(ValueError, match=f"export_interval must be .* got {interval!r}"):
        make_keeper(export_interval=interval)


@pytest.mark.parametrize("interval", ["10", None, True])
def test_an_interval_that_is_no_number_is_refused(interval):
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
def test_bounds_of_distributions_that_make_no_buckets_are_refused(bounds, message):
    with pytest.raises(ValueError, match=rf"distributions\['latency'\]: .*{message}"):
        make_keeper(distributions={"latency": bounds})


def test_bounds_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match=r"distributions\['latency'\]: .* got '1'"):
        make_keeper(distributions={"latency": "123"})


SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


def test_latencies_have_bounds_from_half_a_millisecond_to_a_minute_by_default():
    assert make_keeper().distributions == {"latency": SECONDS}


@pytest.mark.parametrize("unit", [0.001, 1e-6, 1e-9, 0.1, 60, 0.3])
def test_the_default_bounds_of_latencies_are_the_same_times_in_any_unit(unit):
    (bounds,) = make_keeper(latency_unit=unit).distributions.values()
    assert in_seconds(Distribution.of([], bounds), unit).bounds == pytest.approx(SECONDS)


@pytest.mark.parametrize(
    ("unit", "per_second"), [(1e-3, 10**3), (1e-6, 10**6), (1e-9, 10**9)]
)
def test_the_default_bounds_are_round_in_smaller_units_too(unit, per_second):
    bounds = make_keeper(latency_unit=unit).distributions["latency"]
    exact = [Decimal(repr(seconds)) * per_second for seconds in SECONDS]
    assert list(bounds) == exact


async def test_latencies_are_a_distribution_unless_told_otherwise(autojump_clock):
    for options, expected in (
        ({}, Distribution.of([0.25, 0.75], SECONDS)),
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


def test_a_keeper_that_is_evolved_keeps_its_templates():
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
def test_an_option_that_makes_no_sense_is_refused_by_name(option, value, error):
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
def test_what_is_wrong_with_an_option_is_told_and_quoted(option, value, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        make_keeper(**{option: value})
    assert str(caught.value) == f"{option} {message}"


@pytest.mark.parametrize("option", ["export_interval", "latency_unit", "flush_timeout"])
def test_seconds_may_be_as_many_as_a_float_can_hold(option):
    assert getattr(make_keeper(**{option: LARGEST}), option) == LARGEST


def test_the_configuration_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        make_keeper().export_interval = 5


# Rule 1: atomic


async def test_each_kind_of_value_accumulates_in_its_way(autojump_clock):
    keeper = make_keeper(distributions={"latency": (1, 2)})
    first = {
        "total": 1,
        "time": 0.5,
        "ok": True,
        "latency": 1.5,
        "size": Distribution((10,), (1, 0), 5),
        "resp-code": Map("code", {"200": 1}),
        "queue": Gauge(7),
        "version": "v1",
    }
    second = {
        "total": 2,
        "time": 1,
        "ok": True,
        "latency": -3,
        "size": Distribution((10,), (2, 3), 50),
        "resp-code": Map("code", {"404": 2, "200": 1}),
        "queue": Gauge(3),
        "version": "v2",
    }
    async with running(keeper) as run:
        run.send(Result("a", first), Result("a", second))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.metrics == {
        "total": 3,
        "time": 1.5,
        "ok": 2,
        "latency": Distribution((1, 2), (1, 1, 0), -1.5),
        "size": Distribution((10,), (3, 3), 55),
        "resp-code": Map("code", {"200": 2, "404": 2}),
        "queue": Gauge(3),
        "version": "v2",
    }


async def test_a_map_comes_out_with_its_keys_sorted(autojump_clock):
    async with running(make_keeper()) as run:
        run.send(Result("a", {"code": Map("c", {"b": 1, "c": 1})}))
        run.send(Result("a", {"code": Map("c", {"a": 1})}))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert list(export.metrics["code"].values) == ["a", "b", "c"]


async def test_a_distribution_can_be_merged_with_samples_of_the_same_metric(autojump_clock):
    keeper = make_keeper(distributions={"latency": (1, 2)})
    async with running(keeper) as run:
        run.send(Result("a", {"latency": Distribution((1, 2), (0, 2, 0), 3)}))
        run.send(Result("a", {"latency": 5}))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.metrics["latency"] == Distribution((1, 2), (0, 2, 1), 8)


async def test_the_metrics_of_a_result_may_be_any_mapping(autojump_clock):
    async with running(make_keeper()) as run:
        run.send(Result("a", MappingProxyType({"total": 1})), one("a"))
        await trio.sleep(1.5)
        assert totals(run.received()) == {"a": 2}


async def test_a_metric_that_first_appears_later_is_added(autojump_clock):
    async with running(make_keeper(["a", "b"])) as run:
        run.send(one("a"), one("b"), Result("a", {"timeouts": 1}))
        await trio.sleep(1.5)
        a, b = run.received()
    assert a.metrics == {"total": 1, "timeouts": 1}
    assert b.metrics == {"total": 1}


class Raising:
    """A result of which a part raises."""

    def __init__(self, part: str) -> None:
        self.part = part

    @property
    def target(self) -> str:
        if self.part == "target":
            raise OSError("no target")
        return "a"

    def metrics(self) -> Mapping[str, Value]:
        if self.part == "metrics":
            raise OSError("no metrics")
        return RaisingMapping()


class RaisingMapping(Mapping[str, Value]):
    def __getitem__(self, key: str) -> Value:
        raise OSError("no value")

    def __iter__(self):
        return iter(["total"])

    def __len__(self) -> int:
        return 1


class Unclassed:
    """A value that can't even tell its class, as a proxy of what isn't there."""

    @property
    def __class__(self):
        raise RuntimeError("nothing is there")


GOOD = {
    "total": 1,
    "latency": 1.5,
    "size": Distribution((10,), (1, 0), 5),
    "code": Map("code", {"200": 1}),
    "queue": Gauge(7),
    "version": "v1",
    "huge": 1.7e308,
    "huge-code": Map("code", {"200": 1.7e308}),
    "huge-size": Distribution((10,), (1, 0), 1.7e308),
}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Raising("target"), "error"),
        (Raising("metrics"), "error"),
        (Raising("iteration"), "error"),
        (Result("a", ["total"]), "error"),
        (Result("a", ["ok"]), "error"),
        (Result("a", {"total": 1, "new": Mock(spec=int)}), "error"),
        (Result("a", {"total": 1, "version": Mock(spec=str)}), "error"),
        (Result("a", {"total": 1, "new": weakref.proxy(Gauge(1))}), "error"),
        (Result("a", {"total": 1, "new": Unclassed()}), "error"),
        (Result("a", {"total": 1, "queue": Mock(spec=Gauge)}), "kind"),
        (Result(["a"], {"total": 1}), "error"),
        (Result(7, {"total": 1}), "error"),
        (object(), "error"),
        (None, "error"),
        (Result("a", {"total": 1, "new": None}), "type"),
        (Result("a", {"total": 1, "new": [1]}), "type"),
        (Result("a", {"total": 1, 5: 1}), "type"),
        (Result("a", {"total": 1, "new": [10**5000]}), "type"),
        (Result("a", {"total": "1"}), "kind"),
        (Result("a", {"total": Gauge(1)}), "kind"),
        (Result("a", {"total": 1, "latency": "fast"}), "kind"),
        (Result("a", {"total": 1, "latency": Map("code", {})}), "kind"),
        (Result("a", {"total": 1, "code": 1}), "kind"),
        (Result("a", {"total": 1, "size": -5}), "kind"),
        (Result("a", {"total": Distribution((10,), (1, 0), 5)}), "kind"),
        (Result("a", {"total": Decimal(1)}), "kind"),
        (Result("a", {"total": 1, "new": Decimal(1)}), "type"),
        (Result("a", {"total": 1, "queue": 8}), "kind"),
        (Result("a", {"total": 1, "queue": "v1"}), "kind"),
        (Result("a", {"total": 1, "version": Gauge(1)}), "kind"),
        (Result("a", {"total": 1, "size": Distribution((11,), (1, 0), 5)}), "bounds"),
        (Result("a", {"total": 1, "latency": Distribution((1,), (1, 0), 5)}), "bounds"),
        (Result("a", {"queue": Gauge(8), "total": -1}), "negative"),
        (Result("a", {"queue": Gauge(8), "total": -INF}), "negative"),
        (Result("a", {"queue": Gauge(8), "total": NAN}), "not-finite"),
        (Result("a", {"queue": Gauge(8), "total": INF}), "not-finite"),
        (Result("a", {"queue": Gauge(8), "total": 10**400}), "not-finite"),
        (Result("a", {"total": 1, "latency": NAN}), "not-finite"),
        (Result("a", {"total": 1, "latency": -INF}), "not-finite"),
        (Result("a", {"total": 1, "huge": 10**308}), "overflow"),
        (Result("a", {"total": 1, "huge-code": Map("code", {"200": 1e308})}), "overflow"),
        (
            Result("a", {"total": 1, "huge-size": Distribution((10,), (1, 0), 1e308)}),
            "overflow",
        ),
        (Result("a", {"total": 1, "code": Map("class", {"2xx": 1})}), "map-name"),
        (Result("a", {"total": 1, "new": Map("dst", {"x": 1})}), "map-name"),
        (Result("a", {"total": 1, "new": Map("env", {"x": 1})}), "map-name"),
        (Result("a", {"total": 1, "new": Map("le", {"x": 1})}), "map-name"),
        (Result("a", None), "error"),
    ],
)
async def test_a_result_that_cannot_be_folded_in_is_rejected_as_a_whole(
    autojump_clock, bad, reason
):
    keeper = make_keeper(
        distributions={"latency": (1, 2)}, additional_labels={"env": "prod"}
    )
    async with running(keeper) as run:
        run.send(Result("a", GOOD), bad)
        await trio.sleep(1.5)
        (before,) = run.received()
        run.send(Result("a", {"total": 1}))
        await trio.sleep(1)
        (after,) = run.received()
    assert before.metrics == GOOD | {"latency": Distribution((1, 2), (0, 1, 0), 1.5)}
    assert after.metrics == before.metrics | {"total": 2}
    assert keeper.statistics().results_rejected == {reason: 1}
    assert keeper.statistics().results_accepted == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Result("a", [7]), "TypeError('metrics() must return a mapping, got [7]')"),
        (Raising("metrics"), "OSError('no metrics')"),
        (
            Result("a", {"new": Unclassed()}),
            "target 'a': RuntimeError('nothing is there')",
        ),
        (one("x"), "target 'x': never listed, as 0 others"),
        (
            Result("a", {"total": "1"}),
            "target 'a': metric 'total': expected a number, got '1'",
        ),
        (
            Result("a", {"total": Map("code", {})}),
            "target 'a': metric 'total': expected a number, got a Map",
        ),
        (
            Result("a", {"total": Distribution((1,), (0, 0), 0)}),
            "target 'a': metric 'total': expected a number, got a Distribution",
        ),
        (
            Result("a", {"total": -1}),
            "target 'a': metric 'total': a counter can't decrease, got -1",
        ),
        (
            Result("a", {"total": NAN}),
            "target 'a': metric 'total': a counter must be finite, got nan",
        ),
        (
            Result("a", {"huge": 1e308}),
            "target 'a': metric 'huge': the total would exceed the largest float",
        ),
        (
            Result("a", {"latency": INF}),
            "target 'a': metric 'latency': a sample must be finite, got inf",
        ),
        (
            Result("a", {"huge-size": 1e308}),
            "target 'a': metric 'huge-size': expected a distribution, got 1e+308",
        ),
        (
            Result("a", {"huge-size": Distribution((10,), (1, 0), 1e308)}),
            "target 'a': metric 'huge-size': the sum would exceed the largest float",
        ),
        (
            Result("a", {"size": Distribution((11,), (1, 0), 5)}),
            "target 'a': metric 'size': expected the bounds (10.0,), got (11.0,)",
        ),
        (
            Result("a", {"code": 1}),
            "target 'a': metric 'code': expected a map, got 1",
        ),
        (
            Result("a", {"code": Map("class", {})}),
            "target 'a': metric 'code': expected a map named 'code', got 'class'",
        ),
        (
            Result("a", {"code": Map("code", {"404": 1, "500": 1})}),
            "target 'a': metric 'code': the map would exceed 2 keys",
        ),
        (
            Result("a", {"huge-code": Map("code", {"200": 1e308})}),
            "target 'a': metric 'huge-code': the total would exceed the largest float",
        ),
        (
            Result("a", {"total": 1, "new": 1, "newer": 1}),
            "target 'a': metric 'newer': the target would exceed 10 metrics",
        ),
        (
            Result("a", {"new": Map("dst", {})}),
            "target 'a': metric 'new': a map can't be named 'dst': that is a label",
        ),
        (
            Result("a", {"new": [7]}),
            "target 'a': metric 'new': [7] is not a value of a metric",
        ),
        (
            Result("a", {5: 1}),
            "target 'a': metric 5: a metric's name must be a string",
        ),
        (
            Result("a", {"version": 8}),
            "target 'a': metric 'version': expected a str, got 8",
        ),
    ],
)
async def test_a_rejection_tells_what_was_wrong(autojump_clock, caplog, bad, message):
    keeper = make_keeper(
        distributions={"latency": (1, 2)}, max_unlisted=0, max_map_keys=2, max_metrics=10
    )
    async with running(keeper) as run:
        run.send(Result("a", GOOD), bad)
        await trio.sleep(1.5)
    (record,) = caplog.records
    assert record.getMessage().endswith(f"); the newest: {message}")


async def test_nothing_is_held_of_a_target_whose_only_result_was_rejected(autojump_clock):
    keeper = make_keeper()
    async with running(keeper) as run:
        run.send(Result("a", {"total": 1, "latency": None}))
        await trio.sleep(1.5)
        assert run.received() == []
    assert keeper.statistics().targets_tracked == 0


async def test_rejections_are_logged_once_per_export_with_their_count(
    autojump_clock, caplog
):
    async with running(make_keeper()) as run:
        run.send(one("a"))
        for _ in range(3):
            run.send(Result("a", {"total": -1}))
        run.send(Result("a", {"total": "one"}))
        await trio.sleep(2.5)
        ((logger, level, message),) = caplog.record_tuples
    assert (logger, level) == ("trio_statskeeper", logging.WARNING)
    assert message == (
        "http/homepage: 4 results rejected since the last export (negative: 3, kind: 1); "
        "the newest: target 'a': metric 'total': expected a number, got 'one'"
    )


async def test_rejections_after_the_last_export_are_logged_when_the_run_ends(
    autojump_clock, caplog
):
    async with running(make_keeper()) as run:
        await trio.sleep(1.5)
        run.send(Result("a", {"total": -1}))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_rejection_quotes_what_came_from_outside_shortened_and_in_one_line(
    autojump_clock, caplog
):
    async with running(make_keeper()) as run:
        run.send(Result("a\n" * 10_000, {"\n" * 10_000: "x" * 10_000, "total": None}))
        await trio.sleep(1.5)
        run.send(Result("a", {"code": Map("c", {})}))
        run.send(Result("a", {"code": Map("n\n" * 10_000, {})}))
        await trio.sleep(1)
        run.send(Result("a", {"code": Distribution(range(10_000), [0] * 10_001, 0)}))
    assert len(caplog.records) == 3
    for record in caplog.records:
        assert len(record.getMessage()) < 400
        assert "\n" not in record.getMessage()


class Number(int):
    """An int that is no mere number."""


class Text(str):
    """A str that is no mere text."""

    __slots__ = ("extra",)


class Seconds(float):
    """A float that is no mere number."""


async def test_numbers_and_strings_of_any_kind_come_out_as_plain_ones(autojump_clock):
    keeper = make_keeper(
        distributions={"latency": (1, 2)},
        clock=lambda: Seconds(trio.current_time()),
        additional_labels={"zone": lambda _: Text("z1")},
    )
    async with running(keeper) as run:
        run.send(Result(Text("a"), {Text("total"): Number(5), "version": Text("v1")}))
        run.send(Result("a", {"share": Fraction(1, 2), "latency": Fraction(3, 2)}))
        run.send(Result("a", {"total": Fraction(1, 2)}))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert repr(dict(export.metrics)) == repr(
        {
            "total": 5.5,
            "version": "v1",
            "share": 0.5,
            "latency": Distribution((1, 2), (0, 1, 0), 1.5),
        }
    )
    assert {type(text) for text in (*export.metrics, *export.labels.values())} == {str}
    assert {type(export.timestamp), type(export.start_timestamp)} == {float}


async def test_a_target_whose_results_have_no_metrics_is_not_exported(autojump_clock):
    keeper = make_keeper()
    async with running(keeper) as run:
        run.send(Result("a", {}))
        await trio.sleep(1.5)
        assert run.received() == []
        assert keeper.snapshot() == ()
    assert keeper.statistics().results_accepted == 1


# Rule 2: no aliasing


async def test_what_a_caller_changes_later_does_not_change_totals(autojump_clock):
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


async def test_a_result_that_waits_for_the_list_counts_as_it_was_sent(autojump_clock):
    class Changing(Result):
        """A result that its sender changes a turn after it was received."""

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


async def test_a_list_of_targets_that_changes_during_a_pass_does_not_disturb_it(
    autojump_clock,
):
    endpoints = [Endpoint(f"target {i}") for i in range(2_000)]

    class Emptying(Result):
        """A result that is folded in while the list is being gone through."""

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


async def test_what_was_exported_does_not_change_as_the_keeper_works_on(autojump_clock):
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


# Rule 6: ticks lie on a grid


@pytest.mark.parametrize("interval", [0.1, 1 / 3, 0.7])
async def test_ticks_neither_drift_nor_repeat_nor_hang(autojump_clock, interval):
    await trio.sleep(12_345.678)
    start = trio.current_time()
    keeper = make_keeper(export_interval=interval)
    ticks = 10_000
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        timestamps = [(await run.exports.receive()).timestamp for _ in range(ticks)]
    assert timestamps == [start + k * interval for k in range(1, ticks + 1)]
    assert keeper.statistics().ticks_missed == 0


async def test_ticks_that_a_slow_consumer_made_the_keeper_miss_are_skipped_and_counted(
    autojump_clock,
):
    keeper = make_keeper()
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        await trio.sleep(1 + 3.5)
        exports = await receive_exports(run.exports, 3)
    assert [export.timestamp for export in exports] == [1, 5, 6]
    assert keeper.statistics().ticks_missed == 3


@pytest.mark.parametrize("interval", [1, 0.1, 1 / 3, 0.7])
async def test_a_tick_is_counted_as_missed_when_it_is_missed(mock_clock, interval):
    keeper = make_keeper(export_interval=interval)
    missed = []
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        await wait_all_tasks_blocked()
        for tick in range(1, 1_000):
            mock_clock.jump(interval * (tick + 0.5) - trio.current_time())
            await wait_all_tasks_blocked()
            missed.append(keeper.statistics().ticks_missed)
    assert missed == list(range(999))
    assert keeper.statistics().ticks_missed == 998  # also though the pass was cancelled


async def test_a_tick_at_whose_very_instant_the_pass_before_ends_is_not_missed(
    autojump_clock,
):
    interval = 0.1
    await trio.sleep(12_345.678)
    start = trio.current_time()
    # Such that rounding makes it seem past.
    tick = next(
        k
        for k in range(2, 1_000)
        if math.ceil((start + k * interval - start) / interval) > k
    )
    keeper = make_keeper(export_interval=interval)
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"))
        await trio.sleep_until(start + tick * interval)
        timestamps = [(await run.exports.receive()).timestamp for _ in range(2)]
    assert timestamps == [start + interval, start + tick * interval]
    assert keeper.statistics().ticks_missed == tick - 2


# Rule 7: targets


async def test_targets_are_asked_for_at_the_start_at_each_tick_and_for_the_last_pass(
    autojump_clock,
):
    asked = []

    def targets() -> list[Endpoint]:
        asked.append(trio.current_time())
        return []

    async with running(make_keeper(targets=targets)) as run:
        await trio.sleep(3.5)
        run.results.close()
        await trio.sleep(1)
    assert asked == [0, 1, 2, 3, 3.5]


async def test_exports_follow_the_order_of_the_targets(autojump_clock):
    async with running(make_keeper(["b", "c", "a"])) as run:
        run.send(one("a"), one("b"), one("c"))
        await trio.sleep(1.5)
        assert list(totals(run.received())) == ["b", "c", "a"]


async def test_a_target_without_totals_is_skipped(autojump_clock):
    async with running(make_keeper(["a", "b", "c"])) as run:
        run.send(one("b"))
        await trio.sleep(1.5)
        assert list(totals(run.received())) == ["b"]


async def test_the_first_of_two_targets_with_one_key_wins_and_the_other_is_counted(
    autojump_clock,
):
    keeper = make_keeper(
        targets=lambda: [
            Endpoint("a", labels={"zone": "1"}),
            Endpoint("a", labels={"zone": "2"}),
        ],
        additional_labels={"zone": "@target.label.zone@"},
    )
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.labels["zone"] == "1"
    assert keeper.statistics().duplicate_targets == 2  # at the start, and at the tick


async def test_ports_tell_targets_of_one_name_apart(autojump_clock):
    keeper = make_keeper(targets=lambda: (Endpoint("a", 80), Endpoint("a", 443)))
    async with running(keeper) as run:
        run.send(one("a:80"), one("a:443"), one("a:443"))
        await trio.sleep(1.5)
        assert totals(run.received()) == {"a:80": 1, "a:443": 2}


# Rule 8: labels


async def test_labels_are_ptype_probe_dst_then_the_additional_ones_in_order(
    autojump_clock,
):
    keeper = make_keeper(
        targets=lambda: [
            Endpoint("a", 80, {"zone": "z1", "a.b": "c"}),
            Endpoint("b", labels={}),
        ],
        additional_labels={
            "zone": "@target.label.zone@",
            "env": "prod",
            "name": "@target.name@",
            "port": "@target.port@",
            "dotted": "@target.label.a.b@",
            "mail": "ops@target.example",
            "upper": lambda endpoint: endpoint.name.upper(),
        },
    )
    async with running(keeper) as run:
        run.send(one("a:80"), one("b"))
        await trio.sleep(1.5)
        a, b = run.received()
    assert list(a.labels.items()) == [
        ("ptype", "http"),
        ("probe", "homepage"),
        ("dst", "a:80"),
        ("zone", "z1"),
        ("env", "prod"),
        ("name", "a"),
        ("port", "80"),
        ("dotted", "c"),
        ("mail", "ops@target.example"),
        ("upper", "A"),
    ]
    assert (b.labels["zone"], b.labels["port"]) == ("", "")


async def test_labels_are_computed_anew_at_each_export(autojump_clock):
    zones = iter(["z1", "z2"])
    racks = iter(["r1", "r2"])
    keeper = make_keeper(
        targets=lambda: [Endpoint("a", labels={"zone": next(zones, "z0")})],
        additional_labels={
            "zone": "@target.label.zone@",
            "rack": lambda _: next(racks),
        },
    )
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(2.5)
        first, second = run.received()
    assert (first.labels["zone"], first.labels["rack"]) == ("z2", "r1")
    assert (second.labels["zone"], second.labels["rack"]) == ("z0", "r2")


# Rule 9: memory is bounded


async def test_a_target_that_was_not_listed_for_long_returns_from_zero(autojump_clock):
    a, b = Endpoint("a"), Endpoint("b")
    listed = [a, b]
    keeper = make_keeper(targets=lambda: listed, expire_after=3)
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(1.5)
        listed.remove(a)
        await trio.sleep(2)
        assert keeper.statistics().targets_tracked == 2
        await trio.sleep(1)  # not listed at 2, 3, 4
        assert keeper.statistics().targets_tracked == 1
        assert keeper.statistics().targets_expired == 1
        listed.append(a)
        run.received()
        await trio.sleep(1)
        assert totals(run.received()) == {"b": 1}
        run.send(one("a"))
        await trio.sleep(1)
        b_export, a_export = run.received()
    assert a_export.metrics == {"total": 1}
    assert (b_export.start_timestamp, a_export.start_timestamp) == (0, 5.5)


@pytest.mark.parametrize("expire_after", [0.5, None])
async def test_what_a_target_that_left_the_list_counts_is_exported_until_it_expires(
    autojump_clock, expire_after
):
    listed = [Endpoint(name) for name in "abcd"]
    keeper = make_keeper(lambda: listed, expire_after=expire_after)
    async with running(keeper) as run:
        run.send(*map(one, "abcd"))
        await trio.sleep(1.5)
        run.received()
        run.send(*map(one, "cab"))
        del listed[1:]  # b and c have counted something since, d has not
        await trio.sleep(1)
        assert list(totals(run.received()).items()) == [("a", 2), ("b", 2), ("c", 2)]
        run.send(*map(one, "ac"), one("never listed"))
        await trio.sleep(1)
        late = {} if expire_after else {"c": 3}
        assert totals(run.received()) == {"a": 3} | late
        await trio.sleep(1)
        assert totals(run.received()) == {"a": 3}


async def test_a_target_with_late_results_that_returns_is_exported_as_a_listed_one(
    autojump_clock,
):
    a, b = Endpoint("a"), Endpoint("b")
    lists = iter([[a, b], [a, b], [b], [a, b], [b]])
    keeper = make_keeper(lambda: next(lists))
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(2.5)
        run.send(one("a"))
        run.received()
        await trio.sleep(1)
        assert [totals([export]) for export in run.received()] == [{"a": 2}, {"b": 1}]
        await trio.sleep(1)
        assert totals(run.received()) == {"b": 1}


async def test_what_a_target_counted_is_exported_though_it_left_the_list_between_runs(
    autojump_clock,
):
    listed = [Endpoint("a"), Endpoint("b")]
    keeper = make_keeper(lambda: listed, expire_after=0.1)
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(0.5)
    del listed[1]
    for _ in range(2):  # the first ends before it has exported anything
        async with running(keeper):
            await trio.sleep(0.75)
    async with running(keeper) as run:
        await trio.sleep(2.5)
        assert [totals([export]) for export in run.received()] == [
            {"a": 1},
            {"b": 1},
            {"a": 1},
        ]
    assert keeper.statistics().targets_expired == 1


async def test_time_during_which_the_list_is_not_asked_for_does_not_count_for_expiry(
    autojump_clock,
):
    endpoints = [Endpoint("a"), Endpoint("b")]
    lists = iter([endpoints, endpoints, endpoints[:1], endpoints, endpoints[:1]])
    keeper = make_keeper(lambda: next(lists, []), expire_after=5)
    async with running(keeper, exports_buffer=0) as run:
        run.send(one("a"), one("b"))
        for _ in range(3):  # the list lacks b, has it, and lacks it again
            await receive_exports(run.exports, 2)
            run.send(one("a"), one("b"), one("x"))
            await trio.sleep(100.25)  # as the next pass waits
        assert keeper.statistics().targets_expired == 0
        assert totals(await receive_exports(run.exports, 2)) == {"a": 4, "b": 4}


async def test_a_target_that_returns_in_time_counts_on(autojump_clock):
    a = Endpoint("a")
    listed = [a]
    keeper = make_keeper(targets=lambda: listed, expire_after=3.5)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        listed.clear()
        await trio.sleep(2)
        listed.append(a)
        run.send(one("a"))
        run.received()
        await trio.sleep(1.5)
        (export,) = run.received()
        assert (export.metrics["total"], export.start_timestamp) == (2, 0)
        await trio.sleep(10)
        assert totals(keeper.snapshot()) == {"a": 2}
    assert keeper.statistics().targets_expired == 0


@pytest.mark.parametrize("expire_after", [3.5, 4])
async def test_a_target_that_returns_at_the_tick_when_its_time_is_up_starts_from_zero(
    autojump_clock, expire_after
):
    a = Endpoint("a")
    listed = [a]
    keeper = make_keeper(lambda: listed, expire_after=expire_after, export_interval=2)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(3)
        listed.clear()
        await trio.sleep(2)  # not listed at 4
        listed.append(a)
        run.received()
        await trio.sleep(2)
        assert run.received() == []
    assert keeper.statistics().targets_expired == 1


@pytest.mark.parametrize("step", [0, -50])
async def test_a_target_begins_anew_with_a_later_start_though_the_clock_does_not_go_on(
    autojump_clock, step
):
    listed = [Endpoint("a")]
    time = 100.0
    keeper = make_keeper(lambda: listed, expire_after=1.5, clock=lambda: time)
    async with running(keeper) as run:
        run.send(one("a"), one("a"))
        await trio.sleep(0.5)
        time += step
        await trio.sleep(1)
        listed.clear()
        await trio.sleep(2)
        listed.append(Endpoint("a"))
        run.send(one("a"))
        await trio.sleep(1)
        before, after = run.received()
    assert (before.metrics["total"], after.metrics["total"]) == (2, 1)
    assert before.start_timestamp < after.start_timestamp <= after.timestamp


async def test_by_default_targets_expire_after_ten_intervals(autojump_clock):
    listed = [Endpoint("a")]
    keeper = make_keeper(targets=lambda: listed, export_interval=2)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(3)
        listed.clear()
        await trio.sleep(18)
        assert keeper.statistics().targets_tracked == 1
        await trio.sleep(2)
        assert keeper.statistics().targets_tracked == 0


async def test_targets_never_expire_if_so_configured(autojump_clock):
    listed = [Endpoint("a")]
    keeper = make_keeper(targets=lambda: listed, expire_after=INF)
    async with running(keeper) as run:
        run.send(one("a"), one("never listed"))
        await trio.sleep(1.5)
        listed.clear()
        await trio.sleep(1_000)
    assert keeper.statistics().targets_tracked == 2


async def test_a_target_that_was_never_listed_expires_too(autojump_clock):
    keeper = make_keeper(expire_after=3)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(one("x"))
        await trio.sleep(1)
        run.send(one("x"))
        await trio.sleep(2)
        assert keeper.statistics().targets_tracked == 1
        await trio.sleep(1)
    assert keeper.statistics().targets_tracked == 0


async def test_what_came_before_a_target_was_listed_counts_once_it_is(autojump_clock):
    listed = []
    keeper = make_keeper(targets=lambda: listed, expire_after=0.1)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(one("a"))
        listed.append(Endpoint("a"))
        await trio.sleep(1)
        assert totals(run.received()) == {"a": 1}


async def test_of_targets_that_were_never_listed_only_so_many_are_held(autojump_clock):
    keeper = make_keeper(["a", "b"], max_unlisted=2)
    async with running(keeper) as run:
        run.send(one("x"), one("y"), one("z"), one("x"), one("a"), one("b"))
        await trio.sleep(0.5)
    statistics = keeper.statistics()
    assert statistics.results_rejected == {"unlisted": 1}
    assert (statistics.results_accepted, statistics.targets_tracked) == (5, 4)


async def test_targets_that_were_listed_once_do_not_count_as_never_listed(autojump_clock):
    listed = [Endpoint("a"), Endpoint("b")]
    keeper = make_keeper(targets=lambda: listed, max_unlisted=1)
    async with running(keeper) as run:
        run.send(one("a"), one("b"))
        await trio.sleep(0.5)
        listed.clear()
        await trio.sleep(1)
        run.send(one("a"), one("b"), one("x"), one("y"))
        await trio.sleep(0.1)
    assert keeper.statistics().results_rejected == {"unlisted": 1}
    assert keeper.statistics().results_accepted == 5


async def test_a_place_among_the_never_listed_is_free_again_once_one_is_listed(
    autojump_clock,
):
    listed = []
    keeper = make_keeper(targets=lambda: listed, max_unlisted=1)
    async with running(keeper) as run:
        run.send(one("x"))
        listed.append(Endpoint("x"))
        await trio.sleep(1.5)
        run.send(one("y"))
        await trio.sleep(0.1)
    assert keeper.statistics().results_rejected == {}


async def test_a_target_whose_first_result_comes_as_it_leaves_the_list_expires_once(
    autojump_clock,
):
    lists = iter([[Endpoint(f"target {i}") for i in range(2_000)]])

    def targets() -> list[Endpoint]:
        if trio.current_time() == 1:
            run.send(one("target 0"))  # is folded in while the old list is gone through
        return next(lists, [])

    keeper = make_keeper(targets, expire_after=2.5)
    async with running(keeper) as run:
        await trio.sleep(2.5)
        assert keeper.statistics().targets_tracked == 1
        await trio.sleep(3)
    statistics = keeper.statistics()
    assert (statistics.targets_expired, statistics.targets_tracked) == (1, 0)


async def test_what_comes_after_the_tick_at_which_a_target_returns_is_not_dropped_with_it(
    autojump_clock,
):
    others = [Endpoint(f"other {i}") for i in range(2_000)]
    lists = iter([[Endpoint("a")], [Endpoint("a")], [], [], [*others, Endpoint("a")]])

    def targets() -> list[Endpoint]:
        if trio.current_time() == 4:
            run.send(one("a"))  # is folded in while the list is gone through
        return next(lists)

    keeper = make_keeper(targets, expire_after=3)
    async with running(keeper) as run:
        run.send(one("a"), one("a"))
        await trio.sleep(4.5)
        (export,) = keeper.snapshot(["a"])
    assert (export.metrics["total"], export.start_timestamp) == (1, 4)
    assert keeper.statistics().targets_expired == 1


async def test_a_list_that_is_no_good_leaves_all_as_it_was(autojump_clock):
    unlisted = [Endpoint(f"target {i}") for i in range(1_000)]
    listed = []
    keeper = make_keeper(lambda: listed, expire_after=2)
    with pytest.RaisesGroup(TypeError):
        async with running(keeper) as run:
            run.send(*[one(endpoint.key) for endpoint in unlisted])
            listed = [*unlisted, "no endpoint"]
            await trio.sleep(1.5)
    listed = []
    async with running(keeper):
        await trio.sleep(1.5)
    assert keeper.statistics().targets_tracked == 0


async def test_after_a_list_that_is_no_good_the_one_before_is_kept(autojump_clock):
    listed = [Endpoint("a")]
    keeper = make_keeper(lambda: listed)
    with pytest.RaisesGroup(TypeError):
        async with running(keeper) as run:
            run.send(one("a"))
            await trio.sleep(0.5)
            listed = [Endpoint("b"), "no endpoint"]
            await trio.sleep(1)
    assert totals(keeper.snapshot()) == {"a": 1}


@pytest.mark.parametrize("listed_at_tick", [True, False])
async def test_a_result_that_comes_while_targets_are_gone_through_waits_for_the_verdict(
    autojump_clock, listed_at_tick
):
    calls = 0

    class Counted(Result):
        def metrics(self):
            nonlocal calls
            calls += 1
            return self.values

    others = [Endpoint(f"other {i}") for i in range(5_000)]
    lists = iter([[], [*others, *([Endpoint("late")] if listed_at_tick else [])]])

    def targets() -> list[Endpoint]:
        listed = next(lists)
        if listed:
            run.send(Counted("late", {"total": 1}))  # the list is now gone through in steps
        return listed

    keeper = make_keeper(targets=targets, max_unlisted=0)
    async with running(keeper) as run:
        await trio.sleep(1.5)
    statistics = keeper.statistics()
    assert statistics.results_accepted == listed_at_tick
    assert statistics.results_rejected == ({} if listed_at_tick else {"unlisted": 1})
    assert calls == 1


async def test_a_map_has_no_more_keys_than_allowed(autojump_clock):
    keeper = make_keeper(max_map_keys=3)
    async with running(keeper) as run:
        run.send(
            Result("a", {"code": Map("code", {"1": 1, "2": 1})}),
            Result("a", {"code": Map("code", {"3": 1, "4": 1})}),
            Result("a", {"code": Map("code", {"1": 1, "3": 1})}),
            Result("a", {"code": Map("code", {str(n): 1 for n in range(100_000)})}),
            Result("a", {"new": Map("code", {str(n): 1 for n in range(4)})}),
        )
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.metrics == {"code": Map("code", {"1": 2, "2": 1, "3": 1})}
    assert keeper.statistics().results_rejected == {"map-keys": 3}


async def test_totals_that_expired_between_two_runs_begin_again_with_a_later_start(
    autojump_clock,
):
    listed: list[Endpoint] = []
    keeper = make_keeper(lambda: listed, clock=lambda: 5.0, expire_after=0.3)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(0.9)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(one("a"))
        await trio.sleep(0.2)
        listed.append(Endpoint("a"))
        await trio.sleep(0.5)
        (export,) = run.received()
    assert export.metrics["total"] == 1
    assert export.start_timestamp == math.nextafter(5, math.inf)


async def test_an_exception_that_results_raise_again_and_again_does_not_grow(
    autojump_clock,
):
    error = LookupError()

    class Raising:
        target = "a"

        def metrics(self) -> None:
            raise error

    async with running(make_keeper()) as run:
        run.send(*[Raising()] * 20)
        await wait_all_tasks_blocked()
    assert error.__traceback__ is None


async def test_a_target_has_no_more_metrics_than_allowed(autojump_clock):
    keeper = make_keeper(max_metrics=3)
    async with running(keeper) as run:
        for number in range(5):
            run.send(Result("a", {"total": 1, f"id {number}": 1}))
        run.send(Result("a", {f"id {number}": 1 for number in range(100_000)}))
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.metrics == {"total": 3, "id 0": 1, "id 1": 1}
    assert keeper.statistics().results_rejected == {"metrics": 4}


async def test_a_gauge_or_string_that_is_not_renewed_is_left_out(autojump_clock):
    keeper = make_keeper(expire_after=2)
    async with running(keeper) as run:
        await trio.sleep(0.5)
        run.send(Result("a", {"total": 1, "queue": Gauge(5), "version": "v1"}))
        await trio.sleep(2)
        assert [list(export.metrics) for export in run.received()] == [
            ["total", "queue", "version"],
            ["total", "queue", "version"],
        ]
        await trio.sleep(1)
        assert [list(export.metrics) for export in run.received()] == [["total"]]
        assert list(keeper.snapshot()[0].metrics) == ["total"]
        run.send(Result("a", {"queue": Gauge(6)}))
        await trio.sleep(1)
        (export,) = run.received()
    assert export.metrics == {"total": 1, "queue": Gauge(6)}


async def test_a_target_all_of_whose_gauges_are_left_out_is_not_exported(autojump_clock):
    labelled = []
    keeper = make_keeper(
        expire_after=2, additional_labels={"name": lambda e: labelled.append(e) or e.name}
    )
    async with running(keeper) as run:
        run.send(Result("a", {"queue": Gauge(5)}))
        await trio.sleep(3.5)
        assert [export.timestamp for export in run.received()] == [1]
    assert len(labelled) == 1


# Rule 13: the object outlives a run


async def test_a_second_run_counts_on_upon_a_new_grid(autojump_clock):
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


async def test_the_time_between_runs_does_not_count_for_expiry(autojump_clock):
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


async def test_the_time_of_earlier_runs_counts_for_expiry(autojump_clock):
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


def test_a_keeper_counts_on_in_another_trio_run(autojump_clock):
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
async def test_if_a_function_raises_before_the_start_started_is_not_called(
    autojump_clock, function
):
    def fail() -> list[Endpoint]:
        raise OSError

    with pytest.RaisesGroup(OSError):
        async with running(make_keeper(**{function: fail})):
            pytest.fail("started")


async def test_what_targets_has_returned_is_looked_at_after_the_start(autojump_clock):
    started = False
    with pytest.RaisesGroup(TypeError):
        async with running(make_keeper(lambda: ["a"])):
            started = True
            await trio.sleep(1)
    assert started


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("raising_part", ["filter", "handler"])
async def test_a_log_that_fails_ends_no_run(
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


# Rule 14: two clocks


async def test_timestamps_increase_by_a_millisecond_a_pass_though_the_clock_goes_back(
    autojump_clock,
):
    times = iter([90, 100, 50, 200, 150, 200.0001, 200.5])
    keeper = make_keeper(clock=lambda: next(times))
    async with running(keeper) as run:
        run.send(one("a"))  # at 100, after the start at 90
        await trio.sleep(5.5)
        exports = run.received()
    timestamps = [export.timestamp for export in exports]
    assert timestamps == pytest.approx([100, 200, 200.001, 200.002, 200.5], abs=1e-6)
    steps = [after - before for before, after in itertools.pairwise(timestamps)]
    assert min(steps) >= 0.001
    assert {export.start_timestamp for export in exports} == {100}


@pytest.mark.parametrize("reading", [-1e9, 1e-300, 1.7e9, 1e300])
async def test_timestamps_increase_whatever_a_clock_that_stands_still_shows(
    autojump_clock, reading
):
    keeper = make_keeper(clock=lambda: reading)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(100.5)
        timestamps = [export.timestamp for export in run.received()]
    assert all(before < after for before, after in itertools.pairwise(timestamps))


async def test_a_clock_that_goes_back_is_logged_once_and_so_is_its_recovery(
    autojump_clock, caplog
):
    caplog.set_level(logging.INFO)
    keeper = make_keeper(clock=lambda: trio.current_time() - behind)
    behind = -7200.0
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        assert keeper.statistics().clock_behind == 0
        behind = -4.0
        await trio.sleep(2)
        assert keeper.statistics().clock_behind == pytest.approx(7201.001 - 7)
        behind = -7200.0
        await trio.sleep(2)
        assert keeper.statistics().clock_behind == 0
    behind_by, recovered = caplog.records
    assert behind_by.module == recovered.module == "_clocks"
    assert behind_by.getMessage() == (
        "http/homepage: clock is 7195.000 s behind the newest timestamp; until it has "
        "caught up, timestamps increase by 1 ms per pass"
    )
    assert recovered.getMessage() == ("http/homepage: clock recovered")


async def test_a_snapshot_does_not_change_the_timestamps_of_passes(autojump_clock):
    keeper = make_keeper(clock=lambda: trio.current_time() + ahead)
    ahead = 100
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        ahead = 1_000
        assert [export.timestamp for export in keeper.snapshot()] == [1_001.5]
        ahead = 0
        assert [export.timestamp for export in keeper.snapshot()] == [101]
        ahead = 100
        await trio.sleep(1)
        assert [export.timestamp for export in run.received()] == [101, 102]


async def test_by_default_timestamps_are_unix_time(autojump_clock):
    keeper = StatsKeeper("http", "homepage", lambda: [Endpoint("a")], export_interval=1)
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.timestamp >= export.start_timestamp > 1_700_000_000


# What an export tells, self-observation, snapshots


async def test_exports_carry_the_latency_unit_and_the_interval(autojump_clock):
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


async def test_a_snapshot_shows_the_listed_targets_as_they_are_now(autojump_clock):
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


def test_a_snapshot_of_the_characters_of_a_key_is_refused():
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
