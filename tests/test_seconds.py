"""Values in seconds."""

from __future__ import annotations

import math
from decimal import Inexact, localcontext

import pytest

from trio_statskeeper import Gauge
from trio_statskeeper._seconds import in_seconds


def test_a_string_is_not_converted():
    assert in_seconds("1 ms", 0.001) == "1 ms"


def test_an_infinite_gauge_is_infinite_in_seconds():
    assert in_seconds(Gauge(-math.inf), 0.001) == Gauge(-math.inf)


def test_seconds_are_exact_whatever_the_decimal_context_of_the_program():
    with localcontext(prec=3, traps=[Inexact]):
        assert in_seconds(123_456_789, 0.001) == 123_456.789


@pytest.mark.parametrize("number", [True, type("Odd", (float,), {"__repr__": str})(1.0)])
def test_numbers_of_any_class_can_be_converted_to_seconds(number):
    assert in_seconds(number, 0.001) == 0.001
