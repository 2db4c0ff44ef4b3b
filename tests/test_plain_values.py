"""Values, exports, endpoints, results and statistics are plain values: see `PlainValue`."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import attrs
import pytest
from helpers import make_keeper, one, running
from hypothesis import given
from hypothesis import strategies as st
from strategies import exports, texts, values

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    ExponentialDistribution,
    Gauge,
    Map,
    Prober,
    Result,
)

VALUES = [
    Gauge(1.5),
    Map("code", {"200": 1, "404": 2.5}),
    Distribution([1, 2], [1, 0, 3], 7.5),
    ExponentialDistribution.of([-1.5, 0, 2, 1000]),
    Endpoint("a", 80, {"zone": "z"}),
    Endpoint("a"),
    Result("a", {"code": Map("code", {"200": 1})}),
    EventMetrics(2.5, 1.5, {"dst": "a"}, {"code": Map("code", {"200": 1})}, 0.001, 60),
]


def pickled(value, protocol=None):
    return pickle.loads(pickle.dumps(value, protocol))


each_way = pytest.mark.parametrize(
    "way", [partial(pickled, protocol=0), pickled, copy.copy, copy.deepcopy, attrs.evolve]
)


def assert_alike(one, other):
    assert other == one
    assert type(other) is type(one)
    assert hash(other) == hash(one)
    assert repr(other) == repr(one)
    assert str(other) == str(one)


@each_way
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_copy_equals_the_original(value, way):
    assert_alike(value, way(value))


@each_way
async def test_exports_of_a_keeper_can_be_copied(autojump_clock, way):
    keeper = make_keeper(distributions={"latency": [1, 2]})
    async with running(keeper) as run:
        run.send(one("a"))
        run.send(Result("a", {"code": Map("code", {"200": 1}), "latency": 1.5}))
        run.send(Result("a", {"free": Gauge(1), "version": "v1", "seconds": 0.5}))
        await run.results.aclose()
        (export,) = [export async for export in run.exports]
    assert_alike(export, way(export))


async def probe(endpoint):
    pass


@each_way
def test_statistics_can_be_copied(way):
    keeper = make_keeper()
    prober = Prober(probe, keeper.targets, interval=1, timeout=1)
    for statistics in keeper.statistics(), prober.statistics():
        assert_alike(statistics, way(statistics))


@given(
    values()
    | exports()
    | st.builds(Result, texts.filter(bool), st.dictionaries(texts, values()))
)
def test_any_value_can_be_pickled(value):
    assert_alike(value, pickled(value))


def test_a_copy_is_read_only():
    with pytest.raises(TypeError):
        copy.deepcopy(Map("code", {"200": 1})).values["200"] = 2


def test_an_unpickled_object_is_validated():
    text = pickle.dumps(Map("code", {"200": 77}), 0)
    with pytest.raises(ValueError, match="expected a finite number >= 0, got -7"):
        pickle.loads(text.replace(b"77", b"-7"))
