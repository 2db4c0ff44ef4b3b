"""Exponential distributions as values: what they count, and what can be asked of them."""

from __future__ import annotations

import math
import sys
from functools import reduce
from operator import add
from unittest.mock import Mock

import attrs
import pytest
from hypothesis import assume, example, given, reject
from hypothesis import strategies as st
from opentelemetry.sdk.metrics._internal.aggregation import (
    AggregationTemporality,
    _ExponentialBucketHistogramAggregation,
)
from strategies import exponentials, factors

from trio_statskeeper import Exponential, ExponentialDistribution
from trio_statskeeper._exponential_mapping import bucket_start
from trio_statskeeper._unchecked_exponential import without_factor

LARGEST = sys.float_info.max
NAN = math.nan
INF = math.inf

max_buckets = st.sampled_from([2, 3, 4, 7, 20, 160])
# Small enough for their sums to be finite.
samples = st.lists(st.floats(-1e300, 1e300) | st.floats(-4, 4) | st.integers(-8, 8))
some_samples = samples.filter(bool)
# Every float in between is far from the boundaries of buckets that are not powers of two.
latencies = st.lists(st.integers(1, 100_000).map(lambda number: number / 1_000), min_size=1)


# The samples


def of_opentelemetry(samples, max_size):
    aggregation = _ExponentialBucketHistogramAggregation(
        {}, Mock(), AggregationTemporality.DELTA, 0, max_size=max_size
    )
    for sample in samples:
        aggregation.aggregate(Mock(value=sample))
    point = aggregation.collect(AggregationTemporality.CUMULATIVE, 1)
    return ExponentialDistribution(
        point.scale,
        positive_offset=point.positive.offset,
        positive_counts=point.positive.bucket_counts,
        negative_offset=point.negative.offset,
        negative_counts=point.negative.bucket_counts,
        zero_count=point.zero_count,
        sum=point.sum,
        min=point.min,
        max=point.max,
    )


@given(some_samples, max_buckets)
@example([0, 0.0, -0.0], 2)
@example([5e-324, 1.5, -1e300, -5e-324], 2)
@example([1, 2, 4, 1.0000000000000002], 2)
def test_samples_are_counted_as_by_opentelemetrys_sdk(samples, max_buckets):
    ours = ExponentialDistribution.of(samples, max_buckets)
    try:
        theirs = of_opentelemetry(samples, max_buckets)
    except IndexError:  # see the next test
        reject()
    assert ours == theirs


def test_a_sample_whose_bucket_is_another_at_a_coarser_scale_is_counted():
    # Rounded, the logarithm of the second is that of 2**-30, a bucket higher than that of
    # its exponent. OpenTelemetry's SDK 1.45 raises an IndexError.
    samples = [1.5 * 2**-29, math.nextafter(2**-30, 0)]
    assert ExponentialDistribution.of(samples, 2) == ExponentialDistribution(
        -1,
        positive_offset=-16,
        positive_counts=(1, 1),
        sum=sum(samples),
        min=samples[1],
        max=samples[0],
    )
    # Here, the scale that suffices is too fine once the bucket is another.
    twice = ExponentialDistribution.of([2**-6, math.nextafter(2**-10, 0)], 2)
    assert (twice.scale, len(twice.positive_counts)) == (-2, 2)


@given(some_samples, max_buckets)
def test_count_and_sum_and_extremes_are_those_of_the_samples(samples, max_buckets):
    distribution = ExponentialDistribution.of(samples, max_buckets)
    assert distribution.count == len(samples)
    # Not by sum(), which is more exact since Python 3.12
    assert distribution.sum == reduce(add, map(float, samples))
    assert (distribution.min, distribution.max) == (min(samples), max(samples))
    assert distribution.zero_count == samples.count(0)


@given(samples, max_buckets)
def test_there_are_at_most_as_many_buckets_of_each_sign_as_asked_for(samples, max_buckets):
    distribution = ExponentialDistribution.of(samples, max_buckets)
    assert len(distribution.positive_counts) <= max_buckets
    assert len(distribution.negative_counts) <= max_buckets


def test_the_distribution_of_no_samples_is_empty():
    empty = ExponentialDistribution.of([])
    assert empty == ExponentialDistribution(20)
    assert (empty.count, empty.sum, empty.min, empty.max) == (0, 0.0, None, None)


@pytest.mark.parametrize("sample", [NAN, INF, -INF])
def test_samples_are_finite(sample):
    with pytest.raises(ValueError, match="expected a finite number, got"):
        ExponentialDistribution.of([sample])


def test_the_sum_of_samples_is_finite():
    with pytest.raises(ValueError, match="expected a finite number, got inf"):
        ExponentialDistribution.of([LARGEST, LARGEST])


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (1, ValueError, "max_buckets must be from 2 to 1,000, got 1"),
        (1_001, ValueError, "max_buckets must be from 2 to 1,000, got 1001"),
        (2.0, TypeError, "max_buckets must be an integer, got 2.0"),
        (True, TypeError, "max_buckets must be an integer, got True"),
    ],
)
def test_there_are_two_to_a_thousand_buckets(limit, error, message):
    one = ExponentialDistribution.of([1])
    for make in (
        Exponential,
        lambda limit: ExponentialDistribution.of([], limit),
        lambda limit: one.merge(one, limit),
    ):
        with pytest.raises(error, match=message):
            make(limit)


# Arguments


def test_numbers_become_plain_ints_and_floats():
    distribution = ExponentialDistribution(
        True,
        positive_counts=iter([1, True]),
        zero_count=True,
        sum=3,
        min=0,
        max=2,
        factor=1,
    )
    assert repr(distribution) == (
        "ExponentialDistribution(scale=1, positive_offset=0, positive_counts=(1, 1), "
        "negative_offset=0, negative_counts=(), zero_count=1, sum=3.0, min=0.0, max=2.0, "
        "factor=1.0)"
    )


def test_equal_distributions_are_equal_values():
    padded = ExponentialDistribution(
        3,
        positive_offset=-2,
        positive_counts=[0, 1, 0, 2, 0],
        negative_offset=7,
        negative_counts=[0, 0],
    )
    bare = ExponentialDistribution(3, positive_offset=-1, positive_counts=(1, 0, 2))
    assert padded == bare
    assert hash(padded) == hash(bare)
    assert (padded.positive_offset, padded.positive_counts) == (-1, (1, 0, 2))
    assert (padded.negative_offset, padded.negative_counts) == (0, ())


def test_without_buckets_the_scale_is_the_finest():
    assert ExponentialDistribution(3, zero_count=2) == ExponentialDistribution(
        -5, positive_offset=9, zero_count=2
    )
    assert ExponentialDistribution(3).scale == 20


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 21}, ValueError, "scale must be from -10 to 20, got 21"),
        ({"scale": -11}, ValueError, "scale must be from -10 to 20, got -11"),
        ({"scale": 1.0}, TypeError, "expected an integer, got 1.0"),
        ({"scale": "1"}, TypeError, "expected a number, got '1'"),
        ({"positive_offset": 0.5}, TypeError, "expected an integer, got 0.5"),
        ({"positive_counts": [1.0]}, TypeError, "expected an integer, got 1.0"),
        ({"positive_counts": [-1]}, ValueError, "expected a finite number >= 0, got -1"),
        ({"negative_counts": [2**64]}, ValueError, r"a count must be < 2\*\*64, got 18446"),
        ({"zero_count": 2**64}, ValueError, r"a count must be < 2\*\*64, got 18446"),
        ({"zero_count": -1}, ValueError, "expected a finite number >= 0, got -1"),
        (
            {"positive_offset": 1023, "positive_counts": [1, 1]},
            ValueError,
            "buckets of scale 0 have indexes from -1023 to 1023, got 1023 to 1024",
        ),
        (
            {"negative_offset": -1024, "negative_counts": [1]},
            ValueError,
            "buckets of scale 0 have indexes from -1023 to 1023, got -1024 to -1024",
        ),
        ({"sum": INF}, ValueError, "expected a finite number, got inf"),
        ({"sum": None}, TypeError, "expected a number, got None"),
        ({"zero_count": 1, "min": NAN, "max": 1}, ValueError, "finite number, got nan"),
        ({"zero_count": 1, "min": 1}, ValueError, "both be known, or neither, got 1.0 and"),
        ({"zero_count": 1, "max": 1}, ValueError, "or neither, got None and 1.0"),
        ({"zero_count": 1, "min": 2, "max": 1}, ValueError, "min must be <= max, got 2.0"),
        ({"min": 1, "max": 1}, ValueError, "without samples, min and max must be None"),
        (
            {"positive_counts": [1], "min": -1, "max": 2},
            ValueError,
            "min and max must lie in the outermost buckets, got -1.0 and 2.0",
        ),
        (
            {"positive_counts": [1, 0, 0, 1], "min": 1.5, "max": 3},
            ValueError,
            "outermost buckets, got 1.5 and 3.0",
        ),
        ({"zero_count": 1, "min": 0, "max": 1}, ValueError, "outermost buckets"),
        (
            {"negative_counts": [1, 0, 0, 1], "min": -3, "max": -1.5},
            ValueError,
            "outermost buckets, got -3.0 and -1.5",
        ),
        (
            {"negative_counts": [1], "zero_count": 1, "min": -2, "max": -1.5},
            ValueError,
            "outermost buckets, got -2.0 and -1.5",
        ),
        (
            {"positive_counts": [0] * 2_001},
            ValueError,
            "there may be 2,000 buckets of each sign, got 2,001",
        ),
        ({"factor": 0}, ValueError, "factor must be > 0, got 0"),
        ({"factor": INF}, ValueError, "factor must be finite, got inf"),
        ({"factor": "1"}, TypeError, "factor must be a number, got '1'"),
        (
            {"positive_offset": 1000, "positive_counts": [1], "factor": 1e9},
            ValueError,
            "with the factor 1000000000.0, the bucket of index 1000 is too high for floats",
        ),
    ],
)
def test_arguments_are_validated(arguments, error, message):
    with pytest.raises(error, match=message):
        ExponentialDistribution(**{"scale": 0} | arguments)


# Quantiles


@pytest.mark.parametrize(
    ("q", "quantile"),
    [
        (0, -8),
        (0.1, -(2**2.5)),
        (0.2, -4),
        (0.3, 0),
        (0.6, 0),
        (0.7, 2**0.5),
        (0.8, 2),
        (0.9, 2**1.5),
        (1, 4),
    ],
)
def test_quantiles_are_interpolated_on_a_logarithmic_scale(q, quantile):
    distribution = ExponentialDistribution(
        0,
        positive_counts=(2, 2),
        negative_offset=2,
        negative_counts=(2,),
        zero_count=4,
    )
    assert distribution.quantile(q) == pytest.approx(quantile)


def test_quantiles_lie_between_the_extremes():
    distribution = ExponentialDistribution.of([5, 5, 5], max_buckets=2)
    coarse = attrs.evolve(distribution, scale=0, positive_offset=2)
    assert {coarse.quantile(q) for q in (0, 0.25, 0.5, 1)} <= {5, 8, 2**2.5}
    assert coarse.quantile(0) == coarse.quantile(1) == 5


@pytest.mark.parametrize("q", [0, 0.5, 1])
def test_a_quantile_of_no_samples_is_nan(q):
    assert math.isnan(ExponentialDistribution(0).quantile(q))


@pytest.mark.parametrize("q", [NAN, -0.1, 1.1])
def test_a_quantile_is_from_zero_to_one(q):
    with pytest.raises(ValueError, match="a quantile must be from 0 to 1, got"):
        ExponentialDistribution.of([1]).quantile(q)


def test_a_quantile_of_the_highest_bucket_is_finite():
    highest = ExponentialDistribution(-10, positive_counts=(1,))
    assert highest.quantile(1) == LARGEST


def test_the_extremes_are_the_quantiles_of_zero_and_one():
    distribution = ExponentialDistribution.of([5e-324, 3, LARGEST])
    assert distribution.quantile(0) == 5e-324
    assert distribution.quantile(1) == LARGEST


def test_quantiles_are_multiplied_by_the_factor():
    distribution = ExponentialDistribution(
        0, positive_counts=(1,), negative_counts=(1,), factor=10
    )
    assert [distribution.quantile(q) for q in (0, 0.5, 1)] == [-20, -10, 20]


@given(exponentials(factors), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_increase_with_q(distribution, one, other):
    assume(distribution.count)
    low, high = sorted((one, other))
    assert distribution.quantile(low) <= distribution.quantile(high)


@given(latencies, st.data())
def test_a_quantile_is_as_exact_as_its_bucket(samples, data):
    rank = data.draw(st.integers(1, len(samples)))
    distribution = ExponentialDistribution.of(samples)
    width = 2**2**-distribution.scale
    quantile = distribution.quantile((rank - 0.5) / len(samples))
    sample = sorted(samples)[rank - 1]
    assert sample / width / (1 + 1e-9) <= quantile <= sample * width * (1 + 1e-9)


# Adding and subtracting


@given(latencies, latencies, st.sampled_from([20, 160]))
def test_merging_gives_the_distribution_of_all_samples(one, other, max_buckets):
    parts = [ExponentialDistribution.of(part, max_buckets) for part in (one, other)]
    merged = parts[0].merge(parts[1], max_buckets)
    whole = ExponentialDistribution.of(one + other, max_buckets)
    assert attrs.evolve(merged, sum=whole.sum) == whole
    assert merged.sum == parts[0].sum + parts[1].sum
    assert parts[1].merge(parts[0], max_buckets) == merged


@given(exponentials())
def test_merging_an_empty_distribution_changes_nothing(distribution):
    empty = ExponentialDistribution.of([])
    assert distribution.merge(empty) == distribution
    assert empty.merge(distribution) == distribution


@given(exponentials(), exponentials(), max_buckets)
def test_merged_distributions_are_no_wider_than_asked_for(one, other, max_buckets):
    assume(max(*counts_of(one), *counts_of(other)) < 2**50)
    assume(abs(one.sum + other.sum) <= LARGEST)
    merged = one.merge(other, max_buckets)
    assert merged.count == one.count + other.count
    assert len(merged.positive_counts) <= max_buckets
    assert len(merged.negative_counts) <= max_buckets
    if merged.positive_counts or merged.negative_counts:
        assert merged.scale <= min(one.scale, other.scale)


def counts_of(distribution):
    return (
        *distribution.positive_counts,
        *distribution.negative_counts,
        distribution.zero_count,
    )


def test_an_empty_distribution_changes_neither_extremes_nor_factor():
    known = ExponentialDistribution(
        0, positive_offset=-1, positive_counts=(1, 1), min=1, max=3, factor=1.5
    )
    empty = ExponentialDistribution.of([])
    for other in known.merge(empty), empty.merge(known), known.subtract(empty):
        assert (other.min, other.max, other.factor) == (1, 3, 1.5)
    assert empty.subtract(known) == empty


def test_only_distributions_of_equal_factors_are_merged_or_subtracted():
    one = ExponentialDistribution.of([1])
    other = attrs.evolve(one, factor=1.0000001)
    assert other.merge(other).factor == other.subtract(other).merge(other).factor
    for operation in one.merge, one.subtract:
        with pytest.raises(ValueError, match=r"must be equal, got 1\.0 and 1\.0000001"):
            operation(other)


def test_a_merged_extreme_is_unknown_if_one_of_both_is():
    known = ExponentialDistribution.of([1, 3])
    unknown = attrs.evolve(known, min=None, max=None)
    assert known.merge(unknown).min is None
    assert unknown.merge(known).max is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"sum": LARGEST}, "expected a finite number, got inf"),
        ({"zero_count": 2**63}, r"a count must be < 2\*\*64, got"),
    ],
)
def test_what_is_too_large_is_not_merged(part, message):
    distribution = ExponentialDistribution(0, **part)
    with pytest.raises(ValueError, match=message):
        distribution.merge(distribution)


@given(samples, samples, max_buckets)
def test_subtracting_an_earlier_state_gives_the_later_samples(first, later, max_buckets):
    before = ExponentialDistribution.of(first, max_buckets)
    now = before.merge(ExponentialDistribution.of(later, max_buckets), max_buckets)
    since = now.subtract(before)
    assert since.count == len(later)
    assert attrs.evolve(since.merge(before, 1_000), sum=now.sum, min=None, max=None) == (
        attrs.evolve(now, min=None, max=None)
    )
    if first:
        assert (since.min, since.max) == (None, None)


@pytest.mark.parametrize(
    "earlier",
    [
        ExponentialDistribution.of([1, 2, 4, 1024]),
        ExponentialDistribution.of([0, 0, 1]),
        ExponentialDistribution.of([-3, 1]),
        ExponentialDistribution.of([1] * 9),
        ExponentialDistribution.of([1e-9, 1e9], max_buckets=2),
    ],
)
def test_after_a_reset_subtracting_gives_the_whole_distribution(earlier):
    now = ExponentialDistribution.of([0, 1, 1, 4])
    assert now.subtract(earlier) == now


def test_a_bucket_that_is_missing_was_reset():
    one, *others = (
        attrs.evolve(ExponentialDistribution.of([sample]), min=None, max=None)
        for sample in (1, 1e-300, 1e300)
    )
    for other in others:
        assert one.subtract(other) is one


def test_an_extreme_that_is_less_extreme_was_reset():
    now = ExponentialDistribution(0, positive_counts=(4,), min=1.2, max=1.8)
    for lowest, highest in (1.19, 1.8), (1.2, 1.81):
        earlier = attrs.evolve(now, positive_counts=(3,), min=lowest, max=highest)
        assert now.subtract(earlier) is now
        unknown = attrs.evolve(now, min=None, max=None)
        assert unknown.subtract(earlier).count == 1


def test_the_difference_of_sums_is_finite():
    low = ExponentialDistribution(0, zero_count=1, sum=-LARGEST)
    with pytest.raises(ValueError, match="expected a finite number, got inf"):
        attrs.evolve(low, sum=LARGEST).subtract(low)


def test_the_start_of_a_bucket_may_be_asked_for_within_it():
    assert bucket_start(2.5, 1) == pytest.approx(2**1.25)


# Other factors


def test_without_a_factor_each_bucket_is_the_nearest():
    distribution = ExponentialDistribution(
        0, positive_counts=(1, 2), negative_counts=(3,), zero_count=4, factor=1000
    )
    # 1,000 is 2**9.97.
    assert without_factor(distribution) == ExponentialDistribution(
        0,
        positive_offset=10,
        positive_counts=(1, 2),
        negative_offset=10,
        negative_counts=(3,),
        zero_count=4,
    )
    nearer = attrs.evolve(distribution, factor=2**9.4)
    assert without_factor(nearer).positive_offset == 9
    assert without_factor(attrs.evolve(distribution, factor=1)).positive_offset == 0


@given(exponentials(factors), st.floats(0, 1))
def test_without_a_factor_quantiles_change_by_half_a_bucket(distribution, q):
    # Buckets may be merged, and a count may be too large then.
    assume(0 < distribution.count < 2**64)
    estimate = attrs.evolve(distribution, min=None, max=None).quantile(q)
    converted = attrs.evolve(without_factor(distribution), min=None, max=None).quantile(q)
    assume(1e-290 < abs(estimate) < 1e290)
    assert converted / estimate >= 0
    assert abs(math.log2(converted / estimate)) <= 2**-distribution.scale * 0.5 + 1e-9


def test_buckets_beyond_the_range_of_floats_become_the_outermost():
    low = ExponentialDistribution(
        0, positive_offset=-1021, positive_counts=(1, 2, 4), factor=2**-4
    )
    assert without_factor(low) == ExponentialDistribution(
        0, positive_offset=-1023, positive_counts=(7,)
    )
    high = ExponentialDistribution(
        0, negative_offset=1020, negative_counts=(1, 2, 4), factor=4
    )
    assert without_factor(high) == ExponentialDistribution(
        0, negative_offset=1022, negative_counts=(1, 6)
    )
