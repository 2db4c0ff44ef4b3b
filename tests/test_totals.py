"""Rows, the schemas that they share, and steps."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable

import pytest
from helpers import Result
from hypothesis import given
from hypothesis import strategies as st
from strategies import LARGEST, LARGEST_WHOLE, counts

from trio_statskeeper import Distribution, Endpoint, Gauge, Map, Value, _rows
from trio_statskeeper._aggregation import AggregationRules
from trio_statskeeper._row import Row
from trio_statskeeper._rows import FIRST_NUMBER, SAVED, metrics
from trio_statskeeper._totals import Totals


class Count(int):
    """A subclass of int."""


def make_totals(*listed: str) -> Totals:
    rules = AggregationRules(
        distributions={"latency": (1.0, 2.0)},
        label_names=frozenset(),
        max_map_keys=100,
        max_metrics=200,
        latency_unit=1.0,
    )
    made = Totals(rules=rules, export_interval=10.0, expire_after=10.0, max_unlisted=100)
    relist(made, listed, now=0.0)
    return made


def row_of(totals: Totals, key: str) -> Row | None:
    return totals.rows.by_key.get(key)


def metrics_of(totals: Totals, key: str) -> dict[str, Value]:
    return metrics(totals.rows.by_key[key], -math.inf)


def relist(totals: Totals, listed: Iterable[str], now: float) -> None:
    totals.listed.relist([Endpoint(name) for name in listed], now)
    while totals.listed.step():
        pass


def fold(totals: Totals, result: Result, now: float = 0.0) -> None:
    assert totals.fold(result, now, timestamp=lambda: 0.0) is None


def test_targets_with_the_same_metrics_share_a_schema():
    totals = make_totals("a", "b")
    for name in "ab":
        fold(totals, Result(name, {"total": 1, "latency": 1.5}))
    assert row_of(totals, "a")[0] is row_of(totals, "b")[0]


def test_maps_with_the_same_keys_in_any_order_share_a_schema():
    totals = make_totals("a", "b")
    for name, codes in (("a", ["200", "404", "100"]), ("b", ["404", "100", "200"])):
        for code in codes:
            fold(totals, Result(name, {"code": Map("code", {code: 1})}))
    assert row_of(totals, "a") == row_of(totals, "b")


def test_an_unused_schema_is_dropped():
    totals = make_totals("a")
    for key in range(50):
        fold(totals, Result("a", {"code": Map("code", {str(key): 1})}))
    gc.collect()
    assert len(totals.schemas) == 1


def test_an_accepted_result_builds_one_schema_and_a_rejected_one_none(monkeypatch):
    built = []

    def build(aggregations):
        built.append(aggregations)
        return schema(aggregations)

    schema = _rows.Schema
    totals = make_totals("a", "b")
    monkeypatch.setattr(_rows, "Schema", build)
    deltas = {f"metric {i}": 1 for i in range(100)}
    fold(totals, Result("a", deltas | {"code": Map("code", {"200": 1})}))
    fold(totals, Result("b", deltas | {"code": Map("code", {"200": 1})}))
    for number in range(300):
        fold(totals, Result("a", {f"id {number}": 1, "total": -1}))
        fold(totals, Result("a", {f"id {number} {i}": 1 for i in range(150)}))
    assert totals.rejections.counts == {"negative": 300, "metrics": 300}
    assert len(built) == 1


def test_a_row_in_place_does_not_change():
    totals = make_totals("a")
    fold(totals, Result("a", {"total": 1, "code": Map("code", {"2": 1})}))
    row = row_of(totals, "a")
    copy = row.copy()
    fold(totals, Result("a", {"total": 1, "code": Map("code", {"1": 1}), "x": 1}))
    assert row == copy


def test_cuts_that_were_given_up_keep_at_most_one_row():
    totals = make_totals("a")
    fold(totals, Result("a", {"total": 1}))
    rows = []
    for _ in range(5):
        totals.rows.begin_cut()
        fold(totals, Result("a", {"total": 1}))
        totals.rows.end_cut()
        rows.append(row_of(totals, "a"))
    assert [row[SAVED] for row in rows] == [None] * 4 + [rows[3]]


def test_without_a_cut_no_old_row_is_kept():
    totals = make_totals("a")
    fold(totals, Result("a", {"total": 1}))
    totals.rows.begin_cut()
    totals.rows.end_cut()
    fold(totals, Result("a", {"total": 1}))
    assert row_of(totals, "a")[SAVED] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total", LARGEST),
        ("total", LARGEST_WHOLE),
        ("total", Count(LARGEST_WHOLE)),
        ("latency", LARGEST),
        ("latency", -LARGEST),
        ("code", Map("code", {"200": LARGEST_WHOLE})),
        ("size", Distribution((1,), (1, 0), LARGEST)),
        ("size", Distribution((1,), (1, 0), -LARGEST)),
    ],
    ids=str,
)
def test_totals_may_be_the_largest_float(name, value):
    totals = make_totals("a")
    fold(totals, Result("a", {name: value}))
    assert totals.rejections.counts == {}
    assert totals.results_accepted == 1


@pytest.mark.parametrize("first", [0, 1, 99, 100])
def test_a_map_may_have_as_many_keys_as_allowed(first):
    totals = make_totals("a")
    keys = {str(key): 1 for key in range(100)}
    fold(totals, Result("a", {"code": Map("code", dict(list(keys.items())[:first]))}))
    fold(totals, Result("a", {"code": Map("code", keys)}))
    assert totals.rejections.counts == {}
    (counted,) = metrics_of(totals, "a").values()
    assert counted.values.keys() == keys.keys()


@pytest.mark.parametrize("sample", [LARGEST, -LARGEST])
def test_samples_whose_sum_exceeds_the_largest_float_overflow(sample):
    totals = make_totals("a")
    for _ in range(2):
        fold(totals, Result("a", {"latency": sample}))
    assert totals.rejections.counts == {"overflow": 1}


@pytest.mark.parametrize("samples", [(1, 1, 5), (True, True, 5), (1.0, Count(1), 5.0)])
def test_samples_of_one_bucket_are_counted_together(samples):
    totals = make_totals("a")
    for sample in samples:
        fold(totals, Result("a", {"latency": sample}))
    expected = Distribution((1, 2), (2, 0, 1), 7)
    assert metrics_of(totals, "a") == {"latency": expected}


def test_a_row_holds_no_more_than_its_numbers():
    totals = make_totals("a")
    code = Map("code", {"200": 1, "404": 1})
    fold(totals, Result("a", {"total": 1, "latency": 1, "code": code, "queue": Gauge(1)}))
    # A sum; a histogram's sum and three buckets; two keys; the last value and its time.
    assert len(row_of(totals, "a")) == FIRST_NUMBER + 1 + 4 + 2 + 2


def test_delisted_and_never_listed_targets_expire_independently():
    totals = make_totals("a", "b")
    for name in "ab":
        fold(totals, Result(name, {"total": 1}))
    totals.rows.begin_cut()
    totals.listed.note_exported()
    relist(totals, [], now=1.0)
    fold(totals, Result("x", {"total": 1}), now=9.0)
    relist(totals, [], now=10.0)
    assert totals.unlisted.expired == 2
    assert [row_of(totals, name) is not None for name in "abx"] == [
        False,
        False,
        True,
    ]


def test_targets_with_late_results_are_gathered_in_small_steps_and_do_not_expire():
    names = [f"target {i}" for i in range(1_200)]
    totals = make_totals(*names)
    for name in names:
        fold(totals, Result(name, {"total": 1}))
    totals.rows.begin_cut()
    totals.listed.note_exported()
    relist(totals, [], now=1.0)
    for name in names:
        fold(totals, Result(name, {"total": 1}), now=9.0)
    totals.listed.gather_late()
    steps = 0
    while totals.listed.step():
        steps += 1
        for name in names:
            fold(totals, Result(name, {"total": 1}), now=20.0)
    assert steps == 2
    assert totals.unlisted.expired == 0
    assert [endpoint.key for endpoint in totals.listed.to_export()] == names


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1_200])
def test_an_equal_list_is_not_built_again(count):
    names = [f"target {i}" for i in range(count)]
    totals = make_totals(*names)
    listed = totals.listed.by_key
    relist(totals, names, now=1.0)
    assert totals.listed.by_key is listed
    relist(totals, [*names[:-1], "another"], now=2.0)
    assert list(totals.listed.by_key) == [*names[:-1], "another"]


@pytest.mark.parametrize("zero", [0, 0.0, False, -0.0])
def test_a_counter_may_grow_by_zero(zero):
    totals = make_totals("a")
    fold(totals, Result("a", {"total": zero}))
    assert metrics_of(totals, "a") == {"total": 0}


def test_a_row_is_taken_once():
    totals = make_totals("a")
    fold(totals, Result("a", {"total": 1}))
    totals.rows.begin_cut()
    assert totals.rows.take("a") is not None
    assert totals.rows.take("a") is None


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5), max_size=4),
        max_size=12,
    )
)
def test_a_map_adds_up_key_by_key(deltas):
    totals = make_totals("a")
    expected: dict[str, int] = {}
    for delta in deltas:
        fold(totals, Result("a", {"code": Map("code", delta), "total": 1}))
        for key, count in delta.items():
            expected[key] = expected.get(key, 0) + count
    row = row_of(totals, "a")
    assert (metrics(row, -math.inf) if row else {}) == (
        {"code": Map("code", expected), "total": len(deltas)} if deltas else {}
    )


@given(st.lists(counts, max_size=20))
def test_a_count_never_decreases(numbers):
    totals = make_totals("a")
    before = 0
    for number in numbers:
        fold(totals, Result("a", {"total": number, "code": Map("code", {"2": number})}))
        now = metrics_of(totals, "a")
        assert now["total"] == now["code"].values["2"] >= before
        assert type(now["total"]) is type(before + number) or totals.rejections.counts
        before = now["total"]
    assert totals.rejections.counts.keys() <= {"overflow"}


def test_an_integer_that_becomes_a_float_is_rounded_up():
    totals = make_totals("a")
    fold(totals, Result("a", {"total": 2**53 + 1}))
    fold(totals, Result("a", {"total": 0.5}))
    assert metrics_of(totals, "a") == {"total": 2**53 + 2}
