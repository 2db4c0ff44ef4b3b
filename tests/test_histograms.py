"""How samples add up to distributions in a row, and what a row takes."""

from __future__ import annotations

import math
import random
import sys

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import exponentials, factors

from trio_statskeeper import ExponentialDistribution
from trio_statskeeper._exponential_buckets import ExponentialBuckets
from trio_statskeeper._histograms import ExponentialHistogram
from trio_statskeeper._packed_buckets import Layout
from trio_statskeeper._row import Rejected

EMPTY = ExponentialDistribution.of([])

max_buckets = st.sampled_from([2, 3, 20, 160])
numbers = st.floats(-1e300, 1e300) | st.floats(0.01, 100) | st.integers(-3, 16)
near_powers_of_two = st.builds(
    math.nextafter, st.sampled_from([0.5, 1.0, 8.0]), st.sampled_from([0.0, math.inf])
)
samples = st.lists(numbers | near_powers_of_two, max_size=50)


def fold(histogram, values, row=None):
    row = [*histogram.zero] if row is None else row
    for value in values:
        histogram.add(row, 0, value, 0.0)
    return row


def total(histogram, row):
    return histogram.total(row, 0, 0.0)


def latencies(count, spread, seed=1):
    dice = random.Random(seed)  # noqa: S311
    return [0.05 * math.exp(dice.gauss(0, spread)) for _ in range(count)]


@given(samples, max_buckets)
def test_samples_add_up_to_their_distribution(samples, max_buckets):
    histogram = ExponentialHistogram(max_buckets, takes_samples=True)
    added = total(histogram, fold(histogram, samples))
    assert added == ExponentialDistribution.of(samples, max_buckets)
    # It is as valid as one that was validated: equal, to the kind of each number.
    assert repr(added) == repr(attrs.evolve(added))


@given(samples | st.lists(st.integers(1, 2**70)), max_buckets, factors | st.just(5e-324))
def test_samples_are_counted_in_buckets_of_the_factor(samples, max_buckets, factor):
    histogram = ExponentialHistogram(max_buckets, takes_samples=True, factor=factor)
    expected = ExponentialBuckets(factor=factor)
    for sample in samples:
        expected.add(float(sample), max_buckets)
    added = total(histogram, fold(histogram, samples))
    assert (added.positive_offset, added.positive_counts) == (
        expected.positive.offset,
        tuple(expected.positive.counts),
    )
    assert added.scale == expected.scale
    assert added.factor == (
        factor if expected.positive.counts or expected.negative.counts else 1
    )
    assert repr(added) == repr(attrs.evolve(added))


@pytest.mark.parametrize("factor", [1000, 1e6, 10, 1 / 60])
def test_samples_next_to_a_boundary_are_counted_as_by_the_slow_path(factor):
    histogram = ExponentialHistogram(160, takes_samples=True, factor=factor)
    boundaries = [factor * 2.0**n for n in range(-4, 4)]
    samples = [math.nextafter(n, end) for n in boundaries for end in (0, n, math.inf)]
    # Once there are all buckets, their number and scale stay.
    added = total(histogram, fold(histogram, samples * 2))
    expected = ExponentialBuckets(factor=factor)
    for sample in samples * 2:
        expected.add(sample, 160)
    assert added.positive_counts == tuple(expected.positive.counts)


@given(st.lists(st.integers(1, 2**60)), st.sampled_from([20, 160]))
def test_integers_are_counted_as_floats_are(integers, max_buckets):
    histogram = ExponentialHistogram(max_buckets, takes_samples=True)
    rows = fold(histogram, integers), fold(histogram, map(float, integers))
    assert repr(rows[0]) == repr(rows[1])


def test_distributions_of_another_factor_are_converted_to_that_of_the_keeper():
    histogram = ExponentialHistogram(160, takes_samples=True, factor=8)
    one = ExponentialDistribution.of([1.5, -3, 0])
    twice = total(histogram, fold(histogram, [one, 1.5, -3.0, 0.0]))
    eighths = ExponentialDistribution.of([n / 8 for n in (1.5, -3, 0)] * 2)
    assert twice == attrs.evolve(eighths, sum=-3, min=-3, max=1.5, factor=8)


@pytest.mark.parametrize("spread", [0, 0.01, 0.3, 3])
def test_many_latencies_add_up_to_their_distribution(spread):
    samples = latencies(10_000, spread)
    histogram = ExponentialHistogram(160, takes_samples=True)
    added = total(histogram, fold(histogram, samples))
    assert added == ExponentialDistribution.of(samples)


@given(st.lists(exponentials() | numbers, max_size=5), max_buckets)
def test_samples_and_distributions_are_merged(values, max_buckets):
    histogram = ExponentialHistogram(max_buckets, takes_samples=True)
    row, expected = [*histogram.zero], EMPTY
    for value in values:
        added = value
        if not isinstance(value, ExponentialDistribution):
            added = ExponentialDistribution.of([value])
        try:
            expected = expected.merge(added, max_buckets)
        except ValueError:
            with pytest.raises(Rejected):
                histogram.add(row[:], 0, value, 0.0)
        else:
            histogram.add(row, 0, value, 0.0)
        assert total(histogram, row) == expected


@pytest.mark.parametrize("sample", [0.0, 0.7, -0.7, 1.0])
@pytest.mark.parametrize("width", [8, 12, 16, 32])
def test_fields_are_widened_when_a_count_fills_them(sample, width):
    histogram = ExponentialHistogram(160, takes_samples=True)
    one = ExponentialDistribution.of([sample, 0.8, -0.9])
    many = attrs.evolve(
        one,
        positive_counts=[n * (2**width - 3) for n in one.positive_counts],
        negative_counts=[n * (2**width - 3) for n in one.negative_counts],
        zero_count=one.zero_count * (2**width - 3),
    )
    row, expected = fold(histogram, [many]), many
    for _ in range(5):
        histogram.add(row, 0, sample, 0.0)
        expected = expected.merge(ExponentialDistribution.of([sample]))
        assert total(histogram, row) == expected


@pytest.mark.parametrize("sample", [0.0, 0.7, -0.7])
def test_a_count_is_less_than_two_to_the_64(sample):
    histogram = ExponentialHistogram(160, takes_samples=True)
    one = ExponentialDistribution.of([sample])
    full = attrs.evolve(
        one,
        positive_counts=[n * (2**64 - 2) for n in one.positive_counts],
        negative_counts=[n * (2**64 - 2) for n in one.negative_counts],
        zero_count=one.zero_count * (2**64 - 2),
    )
    row = fold(histogram, [full, sample])
    assert total(histogram, row).count == 2**64 - 1
    with pytest.raises(Rejected, match=r"a count must be < 2\*\*64") as caught:
        histogram.add(row, 0, sample, 0.0)
    assert caught.value.reason == "overflow"


def test_a_copy_of_a_row_keeps_its_totals():
    histogram = ExponentialHistogram(160, takes_samples=True)
    row = fold(histogram, [1.5, 2.5, -1, 0])
    before = row.copy()
    fold(histogram, [1.5, 2.5, -1, 0, 1e9, 1], row)
    assert total(histogram, before) == ExponentialDistribution.of([1.5, 2.5, -1, 0])


def test_extremes_are_exact_within_a_bucket():
    histogram = ExponentialHistogram(160, takes_samples=True)
    row = fold(histogram, [3.0, 100.0])
    before = total(histogram, row)
    after = total(histogram, fold(histogram, [2.96, 101.0], row))
    assert (after.min, after.max) == (2.96, 101.0)
    assert after.positive_offset == before.positive_offset
    assert len(after.positive_counts) == len(before.positive_counts)


def test_extremes_that_are_not_known_stay_so():
    histogram = ExponentialHistogram(160, takes_samples=True)
    unknown = ExponentialDistribution(0, positive_counts=(1,))
    row = fold(histogram, [5.0, unknown, 0.001, 7000.0, EMPTY])
    assert total(histogram, row).min is None
    assert total(histogram, row).max is None
    assert total(histogram, row).count == 4


EMPTY_BUCKETS = ExponentialHistogram(160, takes_samples=True).zero[-1]


def bytes_of(row):
    """Return what a row takes: the places of the list, and all that is not shared."""
    is_shared = [isinstance(number, Layout) or number is EMPTY_BUCKETS for number in row]
    return sum(
        8 + (0 if shared else sys.getsizeof(number))
        for number, shared in zip(row, is_shared, strict=True)
    )


@pytest.mark.parametrize("repetitions", [1, 10])
@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_usual_latencies_take_400_bytes(repetitions, spread):
    histogram = ExponentialHistogram(160, takes_samples=True)
    row = fold(histogram, latencies(10_000, spread))
    part = total(histogram, row)
    assert bytes_of(fold(histogram, [part] * (repetitions - 1), row)) <= 400


def test_rows_share_what_they_can():
    rows = [
        fold(ExponentialHistogram(160, takes_samples=True), [0.5 * n, 0.7 * n])
        for n in (1, 64)
    ]
    assert rows[0][3] is rows[1][3]
    assert rows[0][5] is rows[1][5] is EMPTY_BUCKETS
