"""Result: what a probe run adds to the metrics of a target."""

from __future__ import annotations

import math
from collections import UserDict

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError
from helpers import make_keeper, running

from trio_statskeeper import Endpoint, Result


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("target", "key"), [("a", "a"), (Endpoint("a", 80), "a:80"), (Text("a"), "a")]
)
def test_the_target_is_given_by_its_key_or_as_an_endpoint(target, key):
    result = Result(target, {"total": 1})
    assert result.target == key
    assert type(result.target) is str


@pytest.mark.parametrize("target", [None, 5, b"a", ["a"]])
def test_a_target_of_another_type_is_refused(target):
    with pytest.raises(TypeError, match="target must be a string or an Endpoint, got "):
        Result(target, {})


@pytest.mark.parametrize("metrics", [None, 5, "total", [("total", 1)]])
def test_metrics_that_are_not_a_mapping_are_refused(metrics):
    with pytest.raises(TypeError, match="metrics must be a mapping, got "):
        Result("a", metrics)


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ({"size": None}, TypeError, "metric 'size': expected a number, string, Gauge,"),
        ({5: 1}, TypeError, "metric 5: expected a string, got 5"),
        ({"size": math.nan}, ValueError, "metric 'size': "),
    ],
)
def test_what_is_not_a_metric_is_refused(metrics, error, message):
    with pytest.raises(error, match=message):
        Result("a", metrics)


def test_an_empty_target_is_refused():
    with pytest.raises(ValueError, match="target must not be empty"):
        Result("", {})


def test_the_metrics_are_a_read_only_copy():
    metrics = {"total": 1}
    result = Result("a", metrics)
    metrics["total"] = 2
    assert result.metrics() == {"total": 1}
    with pytest.raises(TypeError):
        result.metrics()["total"] = 2


def test_results_with_equal_targets_and_metrics_are_equal():
    result = Result("a", {"total": 1})
    assert result == Result(Endpoint("a"), UserDict(total=1))
    assert result not in {Result("b", {"total": 1}), Result("a", {"total": 2})}


def test_a_result_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Result("a", {}).target = "b"


def test_a_result_can_be_evolved():
    result = Result("a", {"total": 1})
    assert attrs.evolve(result, target="b") == Result("b", {"total": 1})
    assert attrs.evolve(result, metrics={}) == Result("a", {})


def test_the_repr_can_be_evaluated():
    result = Result("a", {"total": 1, "version": "v1"})
    assert repr(result) == "Result('a', {'total': 1, 'version': 'v1'})"


async def test_a_keeper_accepts_results_and_checks_their_values(autojump_clock):
    keeper = make_keeper()
    async with running(keeper) as run:
        run.send(*[Result("a", {"total": 1})] * 2, Result(Endpoint("a"), {"total": "1"}))
        await run.results.aclose()
        (export,) = [export async for export in run.exports]
    assert export.metrics == {"total": 2}
    assert keeper.statistics().results_rejected == {"kind": 1}
