"""Arguments of constructors, and how error messages quote them."""

from __future__ import annotations

import attrs
import pytest

from trio_statskeeper import (
    Distribution,
    ExponentialDistribution,
    Gauge,
    Map,
    StatsKeeper,
)
from trio_statskeeper._arguments import integer, quote


class Unprintable:
    def __repr__(self):
        raise RuntimeError


def test_a_long_string_is_shortened():
    assert len(quote("x" * 10_000)) == 80


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Gauge(1), "Gauge(value=1)"),
        (Map("code", {"200": 1}), "a Map"),
        (Distribution([1], [1, 0], 1), "a Distribution"),
        (ExponentialDistribution(0), "an ExponentialDistribution"),
    ],
)
def test_values_of_any_size_are_not_written_in_full(value, text):
    assert quote(value) == text


def test_a_repr_that_raises_is_replaced_by_the_class():
    assert quote(Unprintable()) == "<Unprintable without a repr>"


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1, ValueError, "max_unlisted must be >= 2, got 1"),
        (2.0, TypeError, r"max_unlisted must be an integer, got 2\.0"),
        (True, TypeError, "max_unlisted must be an integer, got True"),
    ],
)
def test_a_number_that_is_not_an_integer_or_too_low_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        integer(2)(None, attrs.fields(StatsKeeper).max_unlisted, value)


@pytest.mark.parametrize("value", [2, 3])
def test_an_integer_may_be_the_minimum_or_greater(value):
    assert integer(2)(None, attrs.fields(StatsKeeper).max_unlisted, value) is None
