"""Which exponential bucket a number falls into, and where the buckets begin."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping import (
    exponent_mapping,
    logarithm_mapping,
)

from trio_statskeeper._exponential_mapping import (
    MAX_SCALE,
    MIN_SCALE,
    bucket_index,
    bucket_start,
    highest_index,
    lowest_index,
)

LARGEST = sys.float_info.max
SMALLEST_NORMAL = sys.float_info.min

scales = st.integers(MIN_SCALE, MAX_SCALE)
any_float = st.floats(0, exclude_min=True, allow_infinity=False)
powers_of_two = st.integers(-1074, 1023).map(lambda exponent: math.ldexp(1, exponent))
next_to_powers_of_two = st.builds(
    math.nextafter, powers_of_two, st.sampled_from([0, math.inf])
).filter(lambda number: 0 < number < math.inf)
boundaries = st.builds(
    bucket_start,
    st.integers(-2000, 2000),
    scales.filter(lambda scale: scale > 0),
)
numbers = any_float | powers_of_two | next_to_powers_of_two | boundaries


@given(numbers, scales)
@example(5e-324, 20)
@example(SMALLEST_NORMAL, 20)
@example(SMALLEST_NORMAL, 0)
@example(SMALLEST_NORMAL, -10)
@example(math.nextafter(SMALLEST_NORMAL, 1), 20)
@example(LARGEST, 20)
@example(LARGEST, -10)
def test_indexes_are_those_of_opentelemetrys_sdk(number, scale):
    if scale > 0:
        mapping = logarithm_mapping.LogarithmMapping(scale)
    else:
        mapping = exponent_mapping.ExponentMapping(scale)
    assert bucket_index(number, scale) == mapping.map_to_index(number)


@given(numbers.filter(lambda number: number >= SMALLEST_NORMAL), scales)
def test_a_number_lies_within_its_bucket(number, scale):
    index = bucket_index(number, scale)
    # Next to a boundary, the logarithm may be rounded to the other side of it.
    slack = 1e-12 if scale > 0 else 0
    assert bucket_start(index, scale) * (1 - slack) < number
    assert number <= bucket_start(index + 1, scale) * (1 + slack)


@given(powers_of_two.filter(lambda number: number > SMALLEST_NORMAL), scales)
def test_a_bucket_ends_at_a_power_of_two_exactly(number, scale):
    if scale >= 0:
        assert bucket_start(bucket_index(number, scale) + 1, scale) == number


@pytest.mark.parametrize("scale", range(MIN_SCALE, MAX_SCALE + 1))
def test_the_range_of_indexes_is_that_of_floats(scale):
    assert lowest_index(scale) == bucket_index(5e-324, scale)
    assert highest_index(scale) == bucket_index(LARGEST, scale)
    assert bucket_start(highest_index(scale) + 1, scale) == math.inf
    assert 0 < bucket_start(lowest_index(scale), scale) < SMALLEST_NORMAL


@given(st.integers(-1_000_000, 1_000_000), scales.filter(lambda scale: scale > MIN_SCALE))
def test_two_buckets_make_one_of_the_next_coarser_scale(index, scale):
    index = max(lowest_index(scale), min(index, highest_index(scale)))
    assert bucket_start(2 * (index >> 1), scale) == bucket_start(index >> 1, scale - 1)
