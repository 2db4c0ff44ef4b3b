"""How the values of each kind add up, and which results are rejected: rule 1."""

from __future__ import annotations

import logging
import math
import weakref
from collections import ChainMap, OrderedDict
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from unittest.mock import Mock

import pytest
import trio
from helpers import Result, make_keeper, one, running, totals

from trio_statskeeper import (
    Distribution,
    Exponential,
    ExponentialDistribution,
    Gauge,
    Map,
    Value,
)

NAN = math.nan
INF = math.inf


async def test_each_kind_of_value_accumulates(autojump_clock):
    keeper = make_keeper(distributions={"latency": (1, 2)})
    first = {
        "total": 1,
        "time": 0.5,
        "ok": True,
        "latency": 1.5,
        "size": Distribution((10,), (1, 0), 5),
        "time-to-first-byte": ExponentialDistribution.of([1.5]),
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
        "time-to-first-byte": ExponentialDistribution.of([0, 3]),
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
        "time-to-first-byte": ExponentialDistribution.of([1.5, 0, 3]),
        "resp-code": Map("code", {"200": 2, "404": 2}),
        "queue": Gauge(3),
        "version": "v2",
    }


async def test_the_keys_of_an_exported_map_are_sorted(autojump_clock):
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


@pytest.mark.parametrize("kind", [MappingProxyType, ChainMap, OrderedDict])
async def test_the_metrics_of_a_result_may_be_any_mapping(autojump_clock, kind):
    async with running(make_keeper()) as run:
        run.send(Result("a", kind({"total": 1})), one("a"))
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
    """A result with a part that raises."""

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
    """A value without a class, like a proxy whose object is gone."""

    @property
    def __class__(self):
        raise RuntimeError("nothing is there")


GOOD = {
    "total": 1,
    "latency": 1.5,
    "size": Distribution((10,), (1, 0), 5),
    "delay": 0.0,
    "first-byte": ExponentialDistribution.of([0, 1.5]),
    "code": Map("code", {"200": 1}),
    "queue": Gauge(7),
    "version": "v1",
    "huge": 1.7e308,
    "huge-code": Map("code", {"200": 1.7e308}),
    "huge-size": Distribution((10,), (1, 0), 1.7e308),
    "huge-delay": 1.7e308,
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
        (Result("a", {"total": 1, "latency": ExponentialDistribution.of([5])}), "kind"),
        (Result("a", {"total": 1, "delay": Distribution((1,), (1, 0), 5)}), "kind"),
        (Result("a", {"total": 1, "delay": "late"}), "kind"),
        (Result("a", {"total": 1, "first-byte": 5.0}), "kind"),
        (Result("a", {"total": 1, "first-byte": Distribution((1,), (1, 0), 5)}), "kind"),
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
        (Result("a", {"total": 1, "delay": NAN}), "not-finite"),
        (Result("a", {"total": 1, "delay": INF}), "not-finite"),
        (Result("a", {"total": 1, "delay": 10**400}), "not-finite"),
        (Result("a", {"total": 1, "huge-delay": 1e308}), "overflow"),
        (Result("a", {"total": 1, "huge-delay": 10**308}), "overflow"),
        (
            Result("a", {"total": 1, "huge-delay": ExponentialDistribution.of([1e308])}),
            "overflow",
        ),
        (
            Result(
                "a", {"total": 1, "delay": ExponentialDistribution(0, zero_count=2**64 - 1)}
            ),
            "overflow",
        ),
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
async def test_a_bad_result_is_rejected_as_a_whole(autojump_clock, bad, reason):
    keeper = make_keeper(
        distributions={
            "latency": (1, 2),
            "delay": Exponential(),
            "huge-delay": Exponential(),
        },
        additional_labels={"env": "prod"},
    )
    async with running(keeper) as run:
        run.send(Result("a", GOOD), bad)
        await trio.sleep(1.5)
        (before,) = run.received()
        run.send(Result("a", {"total": 1}))
        await trio.sleep(1)
        (after,) = run.received()
    assert before.metrics == GOOD | {
        "latency": Distribution((1, 2), (0, 1, 0), 1.5),
        "delay": ExponentialDistribution.of([0]),
        "huge-delay": ExponentialDistribution.of([1.7e308]),
    }
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
            "target 'a': metric 'huge-size': expected a Distribution, got 1e+308",
        ),
        (
            Result("a", {"latency": ExponentialDistribution.of([5])}),
            (
                "target 'a': metric 'latency': expected a number or a Distribution (see "
                "the keeper's distributions=), got an ExponentialDistribution"
            ),
        ),
        (
            Result("a", {"delay": Distribution((1,), (1, 0), 5)}),
            (
                "target 'a': metric 'delay': expected a number or an "
                "ExponentialDistribution (see the keeper's distributions=), got a "
                "Distribution"
            ),
        ),
        (
            Result("a", {"huge-size": Distribution((10,), (1, 0), 1e308)}),
            "target 'a': metric 'huge-size': the sum would exceed the largest float",
        ),
        (
            Result("a", {"first-byte": 5}),
            "target 'a': metric 'first-byte': expected an ExponentialDistribution, got 5",
        ),
        (
            Result("a", {"first-byte": ExponentialDistribution(0, zero_count=2**64 - 1)}),
            (
                "target 'a': metric 'first-byte': a count must be < 2**64, got "
                "18446744073709551616"
            ),
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
            "target 'a': metric 'newer': the target would exceed 13 metrics",
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
async def test_the_log_explains_a_rejection(autojump_clock, caplog, bad, message):
    keeper = make_keeper(
        distributions={"latency": (1, 2), "delay": Exponential()},
        max_unlisted=0,
        max_map_keys=2,
        max_metrics=13,
    )
    async with running(keeper) as run:
        run.send(Result("a", GOOD), bad)
        await trio.sleep(1.5)
    (record,) = caplog.records
    assert record.getMessage().endswith(f"); the newest: {message}")


async def test_a_target_is_not_tracked_if_its_only_result_was_rejected(autojump_clock):
    keeper = make_keeper()
    async with running(keeper) as run:
        run.send(Result("a", {"total": 1, "latency": None}))
        await trio.sleep(1.5)
        assert run.received() == []
    assert keeper.statistics().targets_tracked == 0


async def test_rejections_are_counted_and_logged_once_per_export(autojump_clock, caplog):
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


async def test_the_log_of_a_rejection_is_one_short_line(autojump_clock, caplog):
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
    """A subclass of int."""


class Text(str):
    """A subclass of str."""

    __slots__ = ("extra",)


class Seconds(float):
    """A subclass of float."""


async def test_exported_numbers_and_strings_are_plain(autojump_clock):
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
