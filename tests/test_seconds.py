"""Values in seconds."""

from __future__ import annotations

import math
from decimal import Inexact, localcontext
from itertools import accumulate

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_statskeeper import Distribution, ExponentialDistribution, Gauge
from trio_statskeeper._histograms import ExponentialHistogram
from trio_statskeeper._seconds import factor_in_unit, in_seconds


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


# Exponential distributions


def test_only_bounds_and_numbers_of_an_exponential_distribution_become_seconds():
    distribution = ExponentialDistribution.of([-3, 0, 1.5, 2.25, 900])
    seconds = in_seconds(distribution, 0.001)
    assert seconds == attrs.evolve(
        distribution, sum=0.90075, min=-0.003, max=0.9, factor=0.001
    )
    unknown = ExponentialDistribution(0, positive_counts=(1,), factor=8)
    assert in_seconds(unknown, 0.5) == attrs.evolve(unknown, factor=4)


def test_without_buckets_there_is_no_factor_in_seconds():
    assert in_seconds(ExponentialDistribution.of([]), 0.1) == ExponentialDistribution.of([])


def test_a_factor_that_is_too_small_in_seconds_is_refused():
    tiny = ExponentialDistribution(0, positive_counts=(1,), factor=5e-324)
    with pytest.raises(ValueError, match="its factor is too small for a float"):
        in_seconds(tiny, 0.001)


# What a keeper counts in its latency unit

units = st.sampled_from([0.001, 1e-6, 1e-9, 0.1, 60, 7e-310])
latencies = st.lists(st.floats(1e-3, 1e6) | st.integers(0, 100_000) | st.floats(-1, 1))


def kept(samples, unit, max_buckets, row=None):
    """Return what a keeper exports, and its row, to add further samples to."""
    histogram = ExponentialHistogram(max_buckets, True, factor_in_unit(unit))
    row = [*histogram.zero] if row is None else row
    for sample in samples:
        histogram.add(row, 0, sample, 0.0)
    return histogram.total(row, 0, 0.0), row


@given(latencies, latencies, units, st.sampled_from([4, 20, 160]))
@example([88, 983], [18805], 0.001, 160)
def test_what_was_observed_since_is_the_same_in_seconds(first, later, unit, max_buckets):
    before, row = kept(first, unit, max_buckets)
    now, _ = kept(later, unit, max_buckets, row)
    assert now.subtract(before).count == len(later)
    since = in_seconds(now, unit).subtract(in_seconds(before, unit))
    assert since.count == len(later)


@given(latencies, units, st.sampled_from([4, 20, 160]), st.sampled_from([1, 2, 16]))
def test_counts_at_bounds_in_seconds_never_fall(samples, unit, max_buckets, per_power):
    row, before = None, [0] * 400
    for sample in samples:
        distribution, row = kept([sample], unit, max_buckets, row)
        seconds = in_seconds(distribution, unit)
        classic = seconds.classic(per_power, covering=(2**-14, 2**6))
        counts = [*accumulate(classic.bucket_counts)]
        assert all(now >= then for now, then in zip(counts, before, strict=False))
        before = counts


@pytest.mark.parametrize("unit", [0.001, 1e-6, 1e-9, 0.1, 60])
@given(st.lists(st.floats(1e-3, 1e6), min_size=1), st.floats(0, 1))
def test_a_keepers_buckets_are_powers_of_the_base_in_seconds(unit, samples, q):
    seconds = in_seconds(kept(samples, unit, 160)[0], unit)
    assert seconds.factor == 1
    converted = sorted(in_seconds(sample, unit) for sample in samples)
    exact = ExponentialDistribution.of(converted)
    width = 2**2**-seconds.scale * (1 + 1e-9)
    assert abs(seconds.scale - exact.scale) <= 1
    rank = max(1, math.ceil(q * len(samples)))
    sample = converted[rank - 1]
    quantile = seconds.quantile((rank - 0.5) / len(samples))
    assert sample / width <= quantile <= sample * width
    assert seconds.quantile(0) == converted[0]
    assert seconds.quantile(1) == converted[-1]


def test_the_bounds_of_usual_units_are_exact_in_seconds():
    latency, _ = kept([125, 250.0, 251, 1000], 0.001, 160)
    assert latency.factor == 1000
    assert in_seconds(latency, 0.001).classic() == Distribution(
        [0.0625, 0.125, 0.25, 0.5, 1], [0, 1, 1, 1, 1, 0], 1.626
    )
