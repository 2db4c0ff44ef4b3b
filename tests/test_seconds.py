"""Values in seconds."""

from __future__ import annotations

import math
from decimal import Inexact, localcontext

import pytest

from trio_statskeeper import ExponentialDistribution, Gauge
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


def test_an_exponential_distribution_keeps_its_scale():
    samples = [-3, 0, 1.5, 2.25, 900]
    distribution = ExponentialDistribution.of(samples)
    eighths = in_seconds(distribution, 0.125)
    assert eighths == ExponentialDistribution.of([sample / 8 for sample in samples])


def test_by_any_unit_buckets_are_moved_by_at_most_half_their_width():
    distribution = ExponentialDistribution.of([12, 13, 14, 15, 900])
    seconds = in_seconds(distribution, 0.001)
    assert (seconds.min, seconds.max, seconds.sum) == (0.012, 0.9, 0.954)
    assert (seconds.scale, seconds.count) == (distribution.scale, 5)
    half = 2**2 ** -(distribution.scale + 1)
    for q in 0, 0.3, 0.5, 0.7, 1:
        error = seconds.quantile(q) / (distribution.quantile(q) / 1000)
        assert 1 / half <= error * (1 + 1e-9)
        assert error <= half * (1 + 1e-9)


def test_what_is_not_known_is_not_known_in_seconds():
    distribution = ExponentialDistribution(0, positive_counts=(1,))
    assert in_seconds(distribution, 0.5) == ExponentialDistribution(
        0, positive_offset=-1, positive_counts=(1,)
    )


def test_seconds_below_the_smallest_normal_float_are_in_the_first_bucket():
    distribution = ExponentialDistribution(
        0, positive_offset=-1021, positive_counts=(1, 2, 4)
    )
    assert in_seconds(distribution, 2**-4) == ExponentialDistribution(
        0, positive_offset=-1023, positive_counts=(7,)
    )
    assert in_seconds(distribution, 2**-3) == ExponentialDistribution(
        0, positive_offset=-1023, positive_counts=(3, 4)
    )


def test_seconds_above_the_largest_float_are_refused():
    distribution = ExponentialDistribution(0, positive_offset=1023, positive_counts=(1,))
    with pytest.raises(ValueError, match="from -1023 to 1023, got 1024 to 1024"):
        in_seconds(distribution, 2)
