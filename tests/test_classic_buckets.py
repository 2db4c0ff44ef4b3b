"""Classic buckets of exponential distributions."""

from __future__ import annotations

import sys
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import exponentials, factors

from trio_statskeeper import Distribution, ExponentialDistribution

LARGEST = sys.float_info.max

per_power = st.sampled_from([1, 2, 4, 8, 16])


def test_classic_bounds_are_powers_of_two_and_zero():
    distribution = ExponentialDistribution.of([-3, -0.75, 0, 0, 1, 1.5, 1.5, 7])
    assert distribution.scale > 0
    assert distribution.classic() == Distribution(
        [-4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8],
        [0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 0],
        sum=distribution.sum,
    )


def test_only_what_was_observed_has_classic_bounds():
    assert ExponentialDistribution.of([]).classic() == Distribution([0], [0, 0], 0)
    assert ExponentialDistribution.of([0]).classic() == Distribution([0], [1, 0], 0)
    assert ExponentialDistribution.of([3]).classic() == Distribution([2, 4], [0, 1, 0], 3)


def test_classic_buckets_may_be_finer():
    classic = ExponentialDistribution.of([1.1, 1.3, 1.9]).classic(buckets_per_power=4)
    assert classic.bounds == pytest.approx((1, 2**0.25, 2**0.5, 2**0.75, 2))
    assert classic.bucket_counts == (0, 1, 1, 0, 1, 0)


def test_at_a_negative_scale_there_are_fewer_classic_bounds():
    distribution = ExponentialDistribution.of([1.5, 2**100], max_buckets=20)
    assert distribution.scale == -3
    assert distribution.classic().bounds == tuple(2.0**n for n in range(0, 105, 8))


def test_the_largest_floats_are_in_the_buckets_without_a_bound():
    distribution = ExponentialDistribution.of([LARGEST, -LARGEST, -LARGEST])
    assert distribution.classic() == Distribution(
        [-(2.0**1023), 2.0**1023], [2, 0, 1], -LARGEST
    )


@given(st.lists(st.integers(1, 4_000).map(lambda n: n / 4)))
def test_classic_counts_are_those_of_the_samples(samples):
    distribution = ExponentialDistribution.of(samples)
    for buckets_per_power in 1, 2:
        classic = distribution.classic(buckets_per_power)
        assert classic == Distribution.of(samples, classic.bounds)


@given(exponentials(factors), per_power)
def test_classic_buckets_have_the_same_samples(distribution, buckets_per_power):
    for covering in None, (2**-3 * distribution.factor, 2**3 * distribution.factor):
        classic = distribution.classic(buckets_per_power, covering=covering)
        assert (classic.count, classic.sum) == (distribution.count, distribution.sum)
        assert len(classic.bucket_counts) == len(classic.bounds) + 1
        assert classic.bounds[0] >= -LARGEST
        assert classic.bounds[-1] <= LARGEST
        assert all(lower < upper for lower, upper in pairwise(classic.bounds))


def test_bounds_are_multiplied_by_the_factor():
    milliseconds = ExponentialDistribution(
        0, positive_offset=-2, positive_counts=(1, 2), sum=1100, factor=1000
    )
    assert milliseconds.classic() == Distribution([250, 500, 1000], [0, 1, 2, 0], 1100)
    assert milliseconds.classic(covering=(500, 2000)) == Distribution(
        [500, 1000, 2000], [1, 2, 0, 0], 1100
    )


# Bounds that are asked for


def test_classic_bounds_may_be_the_same_for_all_samples():
    bounds = [0.5, 1, 2, 4]
    for samples in [], [3, 5], [1000], [-3, 0, 0.1], [0.75, 1e-9, 1e9]:
        classic = ExponentialDistribution.of(samples).classic(covering=(0.5, 4))
        assert classic == Distribution.of(samples, bounds)
    finer = ExponentialDistribution.of([1.1]).classic(4, covering=(1, 2))
    assert finer.bounds == pytest.approx((1, 2**0.25, 2**0.5, 2**0.75, 2))
    assert finer.bucket_counts == (0, 1, 0, 0, 0, 0)


def test_a_bound_within_a_coarse_bucket_counts_all_its_samples():
    coarse = ExponentialDistribution(-2, positive_offset=-1, positive_counts=(1, 2, 4))
    assert coarse.classic(covering=(0.25, 64)) == Distribution(
        [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64], [1, 0, 0, 2, 0, 0, 0, 4, 0, 0], 0
    )


samples = st.floats(-4, 1e9) | st.integers(-2, 40)


@given(st.lists(samples), st.lists(samples, min_size=1), per_power)
def test_counts_at_bounds_never_fall_while_samples_arrive(first, later, buckets_per_power):
    now, before = ExponentialDistribution.of(first, max_buckets=4), None
    for sample in later:
        now = now.merge(ExponentialDistribution.of([sample]), max_buckets=4)
        classic = now.classic(buckets_per_power, covering=(2**-3, 2**6))
        counts = [*accumulate(classic.bucket_counts)]
        if before is not None:
            assert all(n >= earlier for n, earlier in zip(counts, before, strict=True))
        before = counts


# Arguments


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (0, ValueError, "buckets_per_power must be 1, 2, 4, 8 or 16, got 0"),
        (-1, ValueError, "must be 1, 2, 4, 8 or 16, got -1"),
        (6, ValueError, "must be 1, 2, 4, 8 or 16, got 6"),
        (32, ValueError, "must be 1, 2, 4, 8 or 16, got 32"),
        (True, TypeError, "buckets_per_power must be an integer, got True"),
        (1.0, TypeError, "buckets_per_power must be an integer, got 1.0"),
    ],
)
def test_the_number_of_classic_buckets_is_a_power_of_two(number, error, message):
    for covering in None, (1, 2):
        with pytest.raises(error, match=message):
            ExponentialDistribution.of([1]).classic(number, covering=covering)


@pytest.mark.parametrize(
    ("covering", "error", "message"),
    [
        ((1, 3), ValueError, "covering must be two powers of two, got 3"),
        ((2, 2), ValueError, r"covering must increase, got \(2, 2\)"),
        ((4, 2), ValueError, r"covering must increase, got \(4, 2\)"),
        ((0, 2), ValueError, "covering must be > 0, got 0"),
        ((5e-324, 2), ValueError, "covering must be two powers of two, got 5e-324"),
        ((1, 2**1024), ValueError, "covering must be finite, got 1797"),
        ((True, 2), TypeError, "covering must be a number, got True"),
        ((1, 2, 4), ValueError, r"must be two powers of two, got \(1, 2, 4\)"),
    ],
)
def test_bounds_from_one_power_of_two_to_another_can_be_asked_for(covering, error, message):
    with pytest.raises(error, match=message):
        ExponentialDistribution.of([1]).classic(covering=covering)


def test_with_a_factor_the_bounds_that_are_asked_for_are_multiplied_by_it():
    distribution = ExponentialDistribution(0, positive_counts=[1], factor=10)
    with pytest.raises(ValueError, match=r"two powers of two times 10\.0, got 4"):
        distribution.classic(covering=(4, 8))
