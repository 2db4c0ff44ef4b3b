"""Gauge, Map and Distribution, and the text of each value."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from itertools import pairwise
from numbers import Integral, Real

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    LARGEST,
    LARGEST_WHOLE,
    bounds,
    counts,
    damaged,
    distributions,
    gauges,
    maps,
    texts,
    values,
)

from trio_statskeeper import (
    Distribution,
    Gauge,
    Map,
    exponential_bounds,
    parse_value,
)
from trio_statskeeper._values import (
    format_value,
    unchecked_distribution,
    unchecked_map,
)

NAN = math.nan
INF = math.inf
NO_NUMBERS = [None, "1", b"1", 1j, [1], Decimal(1)]
NO_STRINGS = [None, 200, b"code", ["code"]]
TOO_HIGH = pytest.param(LARGEST_WHOLE + 1, id="too high")
TOO_LOW = pytest.param(-LARGEST_WHOLE - 1, id="too low")
# More digits than Python itself prints.
TOO_LONG = pytest.param(10**5000, id="too long")
TOO_LARGE = pytest.param(Fraction(10**400), id="too large")
UNCOUNTABLE = [-1, -0.5, NAN, INF, -INF, TOO_HIGH, TOO_LARGE]
UNBOUNDED = [NAN, INF, -INF, TOO_HIGH, TOO_LOW, TOO_LARGE]


class Status(IntEnum):
    OK = 200


class Key(StrEnum):
    CODE = "code"


class Backwards(int):
    """A number whose own conversions give another."""

    def __int__(self):
        return -1

    __pos__ = __index__ = __int__

    def __float__(self):
        return -1.0


class Seconds(float):
    pass


@Real.register
class Float32:
    """A number of other than Python's own kinds, as NumPy has them."""

    def __float__(self):
        return 0.25


@Integral.register
class Int64:
    def __int__(self):
        return 5


class Bool:
    """NumPy's, which is registered as no number."""

    __module__ = "numpy"

    def __int__(self):
        return 1


Bool.__name__ = "bool_"


# Gauge


@pytest.mark.parametrize("number", [0, -1, 10**30, 2.5, -0.001, INF, -INF])
def test_a_gauge_is_any_number(number):
    assert Gauge(number).value == number


def test_a_gauge_is_not_nan():
    expected = "a number can't be NaN, nor beyond the largest float, got nan"
    with pytest.raises(ValueError, match=expected):
        Gauge(NAN)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_gauge_is_nothing_but_a_number(value):
    with pytest.raises(TypeError, match="expected a number, got"):
        Gauge(value)


@pytest.mark.parametrize("number", [TOO_HIGH, TOO_LOW, TOO_LONG, TOO_LARGE])
def test_a_whole_gauge_beyond_the_largest_float_is_refused(number):
    with pytest.raises(ValueError):
        Gauge(number)


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        (True, int, 1),
        (Status.OK, int, 200),
        (Backwards(3), int, 3),
        (Seconds(2.5), float, 2.5),
        (Float32(), float, 0.25),
        (Int64(), int, 5),
        (Bool(), int, 1),
        (Fraction(1, 2), float, 0.5),
    ],
)
def test_a_gauge_keeps_but_a_plain_number(given, kind, value):
    kept = Gauge(given).value
    assert type(kept) is kind
    assert kept == value


@pytest.mark.parametrize(
    ("name", "number"),
    [("int64", 5), ("uint8", 5), ("float32", 0.25), ("float64", 0.25), ("bool_", True)],
)
def test_a_number_of_numpy_counts_as_what_it_is(name, number):
    given = getattr(pytest.importorskip("numpy"), name)(number)
    for kept in (Gauge(given).value, Map("code", {"200": given}).values["200"]):
        assert type(kept) in (int, float)
        assert kept == number
    assert Distribution.of([given], [given]) == Distribution([number], [1, 0], number)


def test_gauges_of_one_number_are_equal_and_hash_alike():
    assert Gauge(1) == Gauge(1.0) != Gauge(2)
    assert hash(Gauge(1)) == hash(Gauge(1.0))


def test_a_gauge_is_not_its_number():
    assert Gauge(1) != 1


# Map


def test_a_map_has_a_name_and_a_count_for_each_key():
    counted = Map("code", {"200": 44, "204": 8.5})
    assert counted.name == "code"
    assert dict(counted.values) == {"200": 44, "204": 8.5}


@pytest.mark.parametrize("name", NO_STRINGS)
def test_the_name_of_a_map_is_a_string(name):
    with pytest.raises(TypeError, match="expected a string, got"):
        Map(name, {"200": 1})


@pytest.mark.parametrize("key", [None, 200, b"200", ("200",)])
def test_the_keys_of_a_map_are_strings(key):
    with pytest.raises(TypeError, match=f"expected a string, got {re.escape(repr(key))}"):
        Map("code", {key: 1})


@pytest.mark.parametrize("count", NO_NUMBERS)
def test_the_counts_of_a_map_are_numbers(count):
    with pytest.raises(TypeError, match="expected a number, got"):
        Map("code", {"200": count})


@pytest.mark.parametrize("count", UNCOUNTABLE)
def test_the_counts_of_a_map_are_finite_and_not_negative(count):
    with pytest.raises(ValueError, match="expected a finite number of 0 or more, got"):
        Map("code", {"200": count})


@pytest.mark.parametrize(
    "count", [0, 0.0, LARGEST, pytest.param(LARGEST_WHOLE, id="whole")]
)
def test_the_counts_of_a_map_reach_from_zero_to_the_largest_float(count):
    assert Map("code", {"200": count}).values["200"] == count


def test_a_map_does_not_change_with_what_it_was_made_of():
    given = {"200": 1}
    counted = Map("code", given)
    given["200"] = 2
    given["500"] = 1
    assert counted == Map("code", {"200": 1})


def test_the_counts_of_a_map_can_only_be_read():
    counted = Map("code", {"200": 1})
    with pytest.raises(TypeError):
        counted.values["200"] = 2
    assert counted.values["200"] == 1


def test_a_map_keeps_no_subclass_of_its_strings_and_numbers():
    counted = Map(Key.CODE, {Key.CODE: Status.OK, "others": Int64()})
    (key, number), *_ = counted.values.items()
    assert [type(kept) for kept in (counted.name, key, number)] == [str, str, int]
    assert (counted.name, key, number) == ("code", "code", 200)


def test_maps_are_equal_by_name_and_counts():
    assert Map("code", {"a": 1, "b": 2}) == Map("code", {"b": 2, "a": 1})
    assert Map("code", {"a": 1}) != Map("code", {"a": 2})
    assert Map("code", {"a": 1}) != Map("kind", {"a": 1})


# Distribution


def test_a_distribution_has_bounds_and_counts_and_a_sum():
    distribution = Distribution([0.5, 2, 7.5], [34, 54, 121, 12], 899)
    assert distribution.bounds == (0.5, 2.0, 7.5)
    assert distribution.bucket_counts == (34, 54, 121, 12)
    assert distribution.sum == 899.0


def test_the_count_of_a_distribution_is_that_of_all_its_buckets():
    assert Distribution([0.5, 2, 7.5], [34, 54, 121, 12], 899).count == 221


def test_a_distribution_does_not_change_with_what_it_was_made_of():
    given_bounds, given_counts = [1.0, 2.0], [1, 2, 3]
    distribution = Distribution(given_bounds, given_counts, 9)
    given_bounds.append(3.0)
    given_counts[0] = 7
    assert distribution == Distribution((1.0, 2.0), (1, 2, 3), 9.0)


def test_bounds_and_counts_of_a_distribution_come_from_any_iterable():
    assert Distribution(iter([1, 2]), iter([1, 2, 3]), 9) == Distribution(
        (1, 2), (1, 2, 3), 9
    )


def test_a_distribution_keeps_floats_for_bounds_and_sum_and_ints_for_counts():
    distribution = Distribution([Status.OK], [True, Status.OK], Backwards(3))
    assert [type(bound) for bound in distribution.bounds] == [float]
    assert [type(count) for count in distribution.bucket_counts] == [int, int]
    assert type(distribution.sum) is float
    assert distribution == Distribution((200,), (1, 200), 3)
    of_others = Distribution([Float32()], [Int64(), Bool()], Fraction(1, 2))
    assert repr(of_others) == repr(Distribution([0.25], [5, 1], 0.5))


def test_a_distribution_needs_a_bound():
    expected = "^a distribution needs at least one bound, got none$"
    with pytest.raises(ValueError, match=expected):
        Distribution([], [1], 0)


@pytest.mark.parametrize("bound", UNBOUNDED)
def test_bounds_are_finite(bound):
    with pytest.raises(ValueError, match="expected a finite number, got"):
        Distribution([bound], [0, 0], 0)


@pytest.mark.parametrize("bound", NO_NUMBERS)
def test_bounds_are_numbers(bound):
    with pytest.raises(TypeError, match="expected a number, got"):
        Distribution([bound], [0, 0], 0)


@pytest.mark.parametrize(
    "unordered",
    [(2, 1), (1, 3, 2), (1, 1), (0.0, -0.0), (2**53, 2**53 + 1)],
    ids=["falling", "falling later", "repeated", "both zeros", "one as floats"],
)
def test_bounds_increase_strictly(unordered):
    with pytest.raises(ValueError, match="bounds must increase strictly"):
        Distribution(unordered, [0] * (len(unordered) + 1), 0)


@pytest.mark.parametrize("bucket_counts", [(), (1,), (1, 2), (1, 2, 3, 4)])
def test_there_is_one_bucket_more_than_bounds(bucket_counts):
    expected = f"2 bounds need 3 bucket counts, got {len(bucket_counts)}"
    with pytest.raises(ValueError, match=expected):
        Distribution([1, 2], bucket_counts, 0)


@pytest.mark.parametrize("count", UNCOUNTABLE)
def test_bucket_counts_are_finite_and_not_negative(count):
    with pytest.raises(ValueError, match="expected a finite number of 0 or more, got"):
        Distribution([1], [0, count], 0)


@pytest.mark.parametrize("count", NO_NUMBERS)
def test_bucket_counts_are_numbers(count):
    with pytest.raises(TypeError, match="expected a number, got"):
        Distribution([1], [0, count], 0)


def test_bucket_counts_are_whole_numbers():
    with pytest.raises(TypeError, match=r"expected a whole number, got 1\.0"):
        Distribution([1], [0, 1.0], 0)


@pytest.mark.parametrize("total", UNBOUNDED)
def test_the_sum_of_a_distribution_is_finite(total):
    with pytest.raises(ValueError, match="expected a finite number, got"):
        Distribution([1], [0, 0], total)


@pytest.mark.parametrize("total", NO_NUMBERS)
def test_the_sum_of_a_distribution_is_a_number(total):
    with pytest.raises(TypeError, match="expected a number, got"):
        Distribution([1], [0, 0], total)


@pytest.mark.parametrize(
    "total", [LARGEST, -LARGEST, pytest.param(LARGEST_WHOLE, id="whole")]
)
def test_the_sum_of_a_distribution_reaches_to_the_largest_float(total):
    assert Distribution([1], [0, 1], total).sum == total


def test_equal_distributions_hash_alike():
    one, same = Distribution([1], [0, 1], 2), Distribution((1.0,), (0, 1), 2.0)
    assert one == same
    assert hash(one) == hash(same)


@pytest.mark.parametrize(
    "other",
    [
        Distribution([2], [0, 1], 2),
        Distribution([1], [1, 0], 2),
        Distribution([1], [0, 1], 3),
    ],
)
def test_distributions_differ_by_bounds_and_counts_and_sum(other):
    assert Distribution([1], [0, 1], 2) != other


# Distribution.of


def test_samples_are_counted_and_summed():
    assert Distribution.of([0.25, 1, 5, 1.5], [0.5, 2]) == Distribution(
        [0.5, 2], [1, 2, 1], 7.75
    )


def test_no_samples_make_an_empty_distribution():
    assert Distribution.of([], [0.5, 2]) == Distribution([0.5, 2], [0, 0, 0], 0)


def test_samples_and_bounds_come_from_any_iterable():
    assert Distribution.of(iter([1]), iter([2])) == Distribution([2], [1, 0], 1)


@pytest.mark.parametrize(
    ("sample", "bucket_counts"),
    [(0.5, (1, 0, 0, 0)), (2, (0, 1, 0, 0)), (7.5, (0, 0, 1, 0))],
)
def test_a_sample_on_a_bound_falls_into_the_bucket_that_it_closes(sample, bucket_counts):
    assert Distribution.of([sample], [0.5, 2, 7.5]).bucket_counts == bucket_counts


@pytest.mark.parametrize(
    ("sample", "bucket_counts"),
    [(-3, (1, 0, 0)), (0.5000001, (0, 1, 0)), (2.0000001, (0, 0, 1))],
)
def test_a_sample_beside_the_bounds_falls_into_the_bucket_around_it(sample, bucket_counts):
    assert Distribution.of([sample], [0.5, 2]).bucket_counts == bucket_counts


@given(st.lists(st.integers(-5, 5) | st.floats(-5, 5)), bounds)
def test_each_bucket_holds_the_samples_above_its_lower_and_up_to_its_upper_bound(
    samples, bounds
):
    edges = pairwise([-INF, *bounds, INF])
    assert Distribution.of(samples, bounds).bucket_counts == tuple(
        sum(lower < sample <= upper for sample in samples) for lower, upper in edges
    )


@pytest.mark.parametrize("sample", UNBOUNDED)
def test_samples_are_finite(sample):
    with pytest.raises(ValueError, match="expected a finite number, got"):
        Distribution.of([1, sample], [1])


@pytest.mark.parametrize("sample", NO_NUMBERS)
def test_samples_are_numbers(sample):
    with pytest.raises(TypeError, match="expected a number, got"):
        Distribution.of([1, sample], [1])


def test_samples_whose_sum_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="expected a finite number, got inf"):
        Distribution.of([LARGEST, LARGEST], [1])


@pytest.mark.parametrize("bounds", [[], [NAN], [2, 1]])
def test_samples_need_valid_bounds(bounds):
    with pytest.raises(ValueError, match=r"bound|finite"):
        Distribution.of([1], bounds)


@pytest.mark.parametrize("bound", NO_NUMBERS)
def test_samples_need_bounds_that_are_numbers(bound):
    with pytest.raises(TypeError, match="expected a number, got"):
        Distribution.of([1], [bound])


# Distribution.quantile


@pytest.mark.parametrize(
    ("q", "quantile"),
    [
        (0, 0),
        (0.125, 1),
        (0.25, 2),
        (0.375, 3),
        (0.5, 4),
        (0.625, 5),
        (0.75, 6),
        (0.8125, 7),
        (0.875, 8),
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket(q, quantile):
    assert Distribution([2, 6, 8], [4, 8, 2, 2], 0).quantile(q) == quantile


@pytest.mark.parametrize("q", [0.876, 1])
def test_a_quantile_in_the_last_bucket_is_the_highest_bound(q):
    assert Distribution([2, 6, 8], [4, 8, 2, 2], 0).quantile(q) == 8


@pytest.mark.parametrize("bound", [0, -2])
@pytest.mark.parametrize("q", [0, 0.3, 0.5])
def test_a_quantile_in_a_first_bucket_up_to_zero_or_less_is_its_bound(q, bound):
    assert Distribution([bound, 5], [4, 4, 0], 0).quantile(q) == bound


def test_a_quantile_above_the_first_bucket_may_be_negative():
    assert Distribution([-4, -2], [0, 4, 0], 0).quantile(0.25) == -3.5


@pytest.mark.parametrize("q", [0, 0.5, 1])
def test_a_quantile_of_no_samples_is_nan(q):
    assert math.isnan(Distribution([1], [0, 0], 0).quantile(q))


@pytest.mark.parametrize("q", [NAN, -0.001, 1.001, -INF, INF])
def test_a_quantile_is_from_zero_to_one(q):
    with pytest.raises(ValueError, match=f"from 0 to 1, got {q!r}"):
        Distribution([1], [1, 1], 0).quantile(q)


@pytest.mark.parametrize(
    ("bucket_counts", "quantile"),
    [((0, 0, 1, 1), 2), ((0, 1, 0, 1), 1), ((1, 0, 0, 1), 0), ((0, 0, 0, 1), 4)],
)
def test_the_least_quantile_begins_the_first_bucket_that_holds_samples(
    bucket_counts, quantile
):
    assert Distribution([1, 2, 4], bucket_counts, 0).quantile(0) == quantile


@pytest.mark.parametrize(("samples", "count"), [(7, 100), (29, 30), (57, 100)])
def test_a_share_that_is_exactly_reached_does_not_fall_into_a_later_bucket(samples, count):
    distribution = Distribution([1, 2, 3], [samples, 0, count - samples, 0], 0)
    assert distribution.quantile(samples / count) == 1


def test_a_distribution_has_no_more_samples_than_a_float_can_hold():
    half = LARGEST_WHOLE // 2
    assert Distribution([1], [half, half], 0).count == 2 * half
    with pytest.raises(ValueError, match="number of samples is beyond the largest float"):
        Distribution([1], [LARGEST_WHOLE, LARGEST_WHOLE], 0)


def test_quantiles_of_the_widest_buckets_and_of_the_highest_counts_do_not_overflow():
    half = LARGEST_WHOLE // 2
    widest = Distribution([-LARGEST, LARGEST], [0, half, half], 0)
    assert widest.quantile(0.25) == 0


@pytest.mark.parametrize("upper", [0.9, math.nextafter(0.3, 1)])
def test_rounding_takes_no_quantile_out_of_its_bucket(upper):
    distribution = Distribution([0.3, upper], [0, 19, 0], 0)
    quantiles = [distribution.quantile(rank / 19) for rank in range(20)]
    assert quantiles == sorted(quantiles)
    assert (quantiles[0], quantiles[-1]) == (0.3, upper)


shares = st.floats(0, 1)


@given(distributions(), shares, shares)
def test_quantiles_do_not_fall_as_their_shares_rise(distribution, one, other):
    lower, higher = map(distribution.quantile, sorted([one, other]))
    assert lower <= higher or distribution.count == 0


@given(st.lists(st.integers(-5, 5) | st.floats(-5, 5), min_size=1), bounds, st.data())
def test_a_quantile_lies_in_the_bucket_of_the_sample_of_its_rank(samples, bounds, data):
    rank = data.draw(st.integers(1, len(samples)))
    share = (rank - data.draw(st.sampled_from([0, 0.25, 0.5]))) / len(samples)
    quantile = Distribution.of(samples, bounds).quantile(share)
    sample = sorted(samples)[rank - 1]
    # The first bucket is taken to begin at 0, the last to be its lower bound.
    edges = pairwise([min(0, bounds[0]), *bounds, INF])
    lower, upper = next(edge for edge in edges if sample <= edge[1])
    assert lower <= quantile <= min(upper, bounds[-1])


# Distribution.subtract


def test_what_was_observed_since_an_earlier_state_is_the_difference():
    earlier = Distribution([1, 2], [1, 0, 2], 8)
    now = Distribution([1, 2], [1, 3, 4], 18.5)
    assert now.subtract(earlier) == Distribution([1, 2], [0, 3, 2], 10.5)


def test_nothing_was_observed_since_the_same_state():
    distribution = Distribution([1, 2], [1, 0, 2], 8)
    assert distribution.subtract(distribution) == Distribution.of([], [1, 2])


@pytest.mark.parametrize("bucket_counts", [(0, 5, 5), (5, 0, 5), (5, 5, 1)])
def test_totals_that_began_anew_were_all_observed_since(bucket_counts):
    now = Distribution([1, 2], bucket_counts, 3)
    assert now.subtract(Distribution([1, 2], [1, 1, 2], 8)) == now


@pytest.mark.parametrize("other", [(1, 3), (1,), (1, 2, 3)])
def test_only_distributions_of_equal_bounds_are_subtracted(other):
    expected = r"must be equal, got \(1\.0, 2\.0\) and \(1\.0.*\) earlier"
    with pytest.raises(ValueError, match=expected):
        Distribution.of([], [1, 2]).subtract(Distribution.of([], other))


def test_sums_whose_difference_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="expected a finite number, got inf"):
        Distribution([1], [0, 0], LARGEST).subtract(Distribution([1], [0, 0], -LARGEST))


some_samples = st.lists(st.floats(-5, 5))


@given(some_samples, some_samples, bounds)
def test_what_was_observed_since_is_the_distribution_of_the_later_samples(
    first, later, bounds
):
    since = Distribution.of(first + later, bounds).subtract(Distribution.of(first, bounds))
    expected = Distribution.of(later, bounds)
    assert since.bucket_counts == expected.bucket_counts
    assert since.sum == pytest.approx(expected.sum, abs=1e-9)


# All three


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Gauge(1), "value"),
        (Map("code", {}), "name"),
        (Map("code", {}), "values"),
        (Distribution([1], [0, 0], 0), "bounds"),
        (Distribution([1], [0, 0], 0), "bucket_counts"),
        (Distribution([1], [0, 0], 0), "sum"),
    ],
)
def test_values_are_frozen(value, field):
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, getattr(value, field))


@pytest.mark.parametrize("number", [TOO_LONG, pytest.param(-(10**5000), id="below zero")])
def test_a_number_too_long_to_print_is_refused_for_what_it_is(number):
    with pytest.raises(ValueError, match="expected a finite number of 0 or more, got"):
        Map("code", {"200": number})


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([10**5000], id="too long"),
        pytest.param(type("Unprintable", (), {"__repr__": None})(), id="no repr"),
        pytest.param(type("array", (), {})(), id="named as a type that reprlib knows"),
    ],
)
def test_what_is_hard_to_print_is_refused_for_what_it_is(value):
    with pytest.raises(TypeError, match="expected a number, got"):
        Gauge(value)


def test_of_what_cannot_be_printed_an_error_tells_the_class():
    no_array = type("array", (), {})()  # as which reprlib prints it
    with pytest.raises(TypeError, match="got <array without a repr>"):
        Gauge(no_array)


def test_what_the_keeper_makes_unchecked_equals_what_is_checked():
    assert unchecked_map("code", {"200": 1}) == Map("code", {"200": 1})
    assert unchecked_distribution((1.0,), (1, 2), 3.0) == Distribution([1], [1, 2], 3)


def test_an_unchecked_map_can_only_be_read():
    with pytest.raises(TypeError):
        unchecked_map("code", {"200": 1}).values["200"] = 2


# exponential_bounds


@pytest.mark.parametrize(
    ("base", "scale_factor", "num_buckets", "expected"),
    [
        (2, 1, 1, (0, 1)),
        (2, 1, 4, (0, 1, 2, 4, 8)),
        (10, 0.5, 3, (0, 0.5, 5, 50)),
        (1.5, 2, 3, (0, 2, 3, 4.5)),
        (1.01, 100, 2, (0, 100, 101)),
    ],
)
def test_exponential_bounds_are_zero_and_then_grow_by_their_base(
    base, scale_factor, num_buckets, expected
):
    assert exponential_bounds(base, scale_factor, num_buckets) == expected


def test_exponential_bounds_are_floats():
    assert {type(bound) for bound in exponential_bounds(2, 1, 3)} == {float}


@pytest.mark.parametrize("base", [1.009, 1, 0, -2, NAN, INF])
def test_the_base_of_exponential_bounds_is_not_below_1_01_and_finite(base):
    with pytest.raises(ValueError, match=f"base must be at least 1.01 .* got {base!r}"):
        exponential_bounds(base, 1, 3)


@pytest.mark.parametrize("scale_factor", [0, -1, NAN, INF])
def test_the_scale_factor_of_exponential_bounds_is_above_zero_and_finite(scale_factor):
    expected = f"scale_factor must be above 0 .* got {scale_factor!r}"
    with pytest.raises(ValueError, match=expected):
        exponential_bounds(2, scale_factor, 3)


@pytest.mark.parametrize("num_buckets", [0, -1])
def test_exponential_bounds_have_a_bucket_between_them(num_buckets):
    expected = f"num_buckets must be at least 1, got {num_buckets}"
    with pytest.raises(ValueError, match=expected):
        exponential_bounds(2, 1, num_buckets)


@pytest.mark.parametrize(
    ("base", "scale_factor", "num_buckets"),
    [(2, 1, 2000), (2, 1e308, 3), (10**400, 1, 1), (2, 10**400, 1)],
)
def test_no_exponential_bound_is_beyond_the_largest_float(base, scale_factor, num_buckets):
    with pytest.raises(ValueError, match=r"largest float|finite"):
        exponential_bounds(base, scale_factor, num_buckets)


def test_exponential_bounds_that_are_too_small_to_tell_apart_are_refused():
    with pytest.raises(ValueError, match="bounds must increase strictly"):
        exponential_bounds(1.01, 5e-324, 3)


@pytest.mark.parametrize("arguments", [("2", 1, 3), (2, "1", 3), (2, 1, 3.5)])
def test_the_arguments_of_exponential_bounds_are_numbers(arguments):
    with pytest.raises(TypeError):
        exponential_bounds(*arguments)


# Writing


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (62, "62"),
        (-62, "-62"),
        (44.0, "44.0"),
        (1.5, "1.5"),
        (100.0, "100.0"),
        (0.1 + 0.2, "0.30000000000000004"),
        (0.0001, "0.0001"),
        (1e-07, "0.0000001"),
        (-2.5e-07, "-0.00000025"),
        (1e16, "10000000000000000.0"),
        (INF, "+Inf"),
        (-INF, "-Inf"),
    ],
)
def test_numbers_are_written_in_full_and_without_an_exponent(number, text):
    assert format_value(number) == text
    assert str(Gauge(number)) == text


@pytest.mark.parametrize(
    ("string", "text"),
    [
        ("", '""'),
        ("hello world", '"hello world"'),
        ("a=b, c:d|e's", '"a=b, c:d|e\'s"'),
        ("Größe 日本 😀", '"Größe 日本 😀"'),
        ('say "hi"', r'"say \x22hi\x22"'),
        ("C:\\temp", r'"C:\\temp"'),
        ("two\nlines\r\tand\0", r'"two\x0alines\x0d\x09and\x00"'),
        ("no-break\xa0space", r'"no-break\xa0space"'),
        ("right\u202eto left\u200f", r'"right\u202eto left\u200f"'),
        ("\u061c\u2028\ufeff\uffff", r'"\u061c\u2028\ufeff\uffff"'),
        ("\ud83d\ude00", r'"\ud83d\ude00"'),
        ("\U0010ffff", r'"\U0010ffff"'),
    ],
)
def test_strings_are_quoted_and_escaped_where_they_would_break_the_line(string, text):
    assert format_value(string) == text


@pytest.mark.parametrize(
    ("counted", "text"),
    [
        (Map("code", {}), "map:code"),
        (Map("code", {"200": 44, "204": 8}), "map:code,200:44,204:8"),
        (Map("code", {"204": 8, "200": 44}), "map:code,200:44,204:8"),
        (Map("load", {"a": 0.25, "b": 1.0}), "map:load,a:0.25,b:1.0"),
        (Map("", {"": 1}), "map:,:1"),
        (Map("a b", {"c,d:e\\": 1}), r"map:a\x20b,c\x2cd\x3ae\\:1"),
        (Map("a,b:c", {"d e=|\n": 1}), r"map:a\x2cb\x3ac,d\x20e=|\x0a:1"),
        (Map("AXZ", {"AXZ": 1}), "map:AXZ,AXZ:1"),
    ],
)
def test_maps_are_written_in_the_order_of_their_keys(counted, text):
    assert str(counted) == text
    assert format_value(counted) == text


@pytest.mark.parametrize(
    ("distribution", "text"),
    [
        (
            Distribution([0.5, 2, 7.5], [34, 54, 121, 12], 899),
            "dist:sum:899|count:221|lb:-Inf,0.5,2,7.5|bc:34,54,121,12",
        ),
        (
            Distribution([-1e-07, 1e16], [0, 0, 1], 2.5e16),
            "dist:sum:25000000000000000|count:1|lb:-Inf,-0.0000001,10000000000000000|bc:0,0,1",
        ),
    ],
)
def test_distributions_are_written_with_bounds_and_counts(distribution, text):
    assert str(distribution) == text
    assert format_value(distribution) == text


@given(values())
def test_the_text_of_a_value_is_printable(value):
    assert format_value(value).isprintable()


@given(counts | gauges | maps | distributions())
def test_only_strings_have_spaces_in_their_text(value):
    assert " " not in format_value(value)


@given(texts)
def test_the_quotes_around_a_string_are_the_only_ones_in_its_text(string):
    assert format_value(string).count('"') == 2


# Reading back


@given(counts | gauges.map(lambda gauge: gauge.value))
@example(1e23)
@example(-LARGEST)
@example(5e-324)
@example(LARGEST_WHOLE)
def test_numbers_read_back_equal_and_of_the_same_type(number):
    read = parse_value(format_value(number))
    assert read == number
    assert type(read) is type(number)


@given(gauges)
def test_a_gauge_reads_back_as_its_number(gauge):
    assert parse_value(str(gauge)) == gauge.value


@given(texts)
@example("\u061c\uffff\U000e0001")
def test_strings_read_back_equal(string):
    assert parse_value(format_value(string)) == string


@given(maps)
@example(Map("code", {"200": 1e23}))
def test_maps_read_back_equal(counted):
    assert parse_value(str(counted)) == counted


@given(distributions())
@example(Distribution([-LARGEST, 1e23], [0, 1, 2], LARGEST))
def test_distributions_read_back_equal(distribution):
    assert parse_value(str(distribution)) == distribution


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("62", 62),
        ("-62", -62),
        ("+62", 62),
        ("007", 7),
        ("62.000", 62),
        ("0.001", 0.001),
        ("-1.500", -1.5),
        ("1e3", 1000),
        ("1e+06", 1_000_000),
        ("2.5E-05", 0.000025),
        ("+Inf", INF),
        ("-Inf", -INF),
        ("Inf", INF),
        pytest.param("9" * 300, 10**300 - 1, id="300 digits"),
    ],
)
def test_numbers_are_read_as_cloudprober_writes_them(text, number):
    assert parse_value(text) == number


@pytest.mark.parametrize(
    ("text", "kind"), [("62", int), ("62.0", float), ("6e1", float), ("Inf", float)]
)
def test_numbers_without_point_or_exponent_are_read_as_whole(text, kind):
    assert type(parse_value(text)) is kind


@pytest.mark.parametrize(
    ("text", "string"),
    [
        ('""', ""),
        ('"hello world"', "hello world"),
        ('"say "hi" to"', 'say "hi" to'),
        ('""""', '""'),
        (r'"C:\temp\new"', r"C:\temp\new"),
        (r'"\x2 \x2g \X20 \u202"', r"\x2 \x2g \X20 \u202"),
        (r'"\x2F \u202E"', r"\x2F \u202E"),
        (r'"\U00110000 \U0000202"', r"\U00110000 \U0000202"),
        ('"map:code,200:1"', "map:code,200:1"),
        ('"two\nlines"', "two\nlines"),
        ('"62"', "62"),
    ],
)
def test_strings_are_read_as_cloudprober_writes_them(text, string):
    assert parse_value(text) == string


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("map:code", Map("code", {})),
        ("map:code,200:44,204:8", Map("code", {"200": 44, "204": 8})),
        ("map:code,200:10123.000,404:21.500", Map("code", {"200": 10123, "404": 21.5})),
        ("map:a b,c d:1", Map("a b", {"c d": 1})),
        (r"map:C:\temp,\n:1", Map(r"C:\temp", {r"\n": 1})),
    ],
)
def test_maps_are_read_as_cloudprober_writes_them(text, counted):
    assert parse_value(text) == counted


def test_distributions_are_read_as_cloudprober_writes_them():
    text = "dist:sum:1.5e+06|count:4|lb:-Inf,1e-05,0.5|bc:1,0,3"
    assert parse_value(text) == Distribution([0.00001, 0.5], [1, 0, 3], 1_500_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "12abc",
        '"',
        '"open',
        'closed"',
        "'single'",
        "inf",
        "Infinity",
        "--1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x10",
        "1_000",
        " 1",
        "1\n",
        "1,2",
        "\u0661",
        "1\u0661",
        "mop:code",
        "map",
        "MAP:code",
    ],
)
def test_what_is_no_value_is_refused_and_quoted(text):
    with pytest.raises(ValueError) as caught:
        parse_value(text)
    expected = f"not a number, string, map or distribution: {text!r}"
    assert str(caught.value) == expected


@pytest.mark.parametrize("text", ["NaN", "nan", "-nan"])
def test_nan_is_refused_as_such(text):
    with pytest.raises(ValueError) as caught:
        parse_value(text)
    assert str(caught.value) == f"a value can't be NaN: {text!r}"


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1" * 310 + ".0"])
def test_a_number_beyond_the_largest_float_is_not_read_as_infinite(text):
    with pytest.raises(ValueError, match=r"beyond the largest float: '-?1"):
        parse_value(text)


@pytest.mark.parametrize(
    "text",
    ["1" * 5000, "0" * 5000 + "1", "0." + "1" * 5000],
    ids=["ones", "zeros", "decimals"],
)
def test_a_number_of_too_many_digits_is_refused(text):
    with pytest.raises(ValueError, match=f"too long for a number: '{text[:10]}"):
        parse_value(text)


def test_a_number_may_have_as_many_digits_as_python_reads():
    assert parse_value("0" * 4_299 + "7") == 7
    with pytest.raises(ValueError, match="too long for a number"):
        parse_value("0" * 4_300 + "7")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("map:code,", "''"),
        ("map:code,200", "''"),
        ("map:code,200:", "''"),
        ("map:code,200:x", "'x'"),
        ("map:code,200:1:2", "'1:2'"),
        ("map:code,100:1,200:-1", "0 or more, got -1, in '200:-1'"),
        ("map:code,200:+Inf", "0 or more, got inf, in '200:+Inf'"),
        ("map:code,200:1e400", "beyond the largest float: '1e400', in '200:1e400'"),
        ("map:code,200:1,200:2", "key '200' stands twice"),
        (r"map:code,a:1,\x61:2", "key 'a' stands twice"),
    ],
)
def test_what_is_wrong_in_a_map_is_quoted(text, reason):
    with pytest.raises(ValueError) as caught:
        parse_value(text)
    assert reason in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dist:", "not dist:sum:…|count:…|lb:-Inf,…|bc:…"),
        ("dist:count:1", "not dist:sum:…|count:…|lb:-Inf,…|bc:…"),
        ("dist:sum:1|count:1|lb:-Inf|bc:1", "not dist:"),
        ("dist:sum:1|count:1|lb:0,1|bc:1,0", "not dist:"),
        ("dist:sum:1|count:1|lb:-Inf,1|bc:1,0|", "not dist:"),
        ("dist:sum:1|count:-1|lb:-Inf,1|bc:1,0", "not dist:"),
        ("dist:sum:x|count:1|lb:-Inf,1|bc:1,0", "'x'"),
        ("dist:sum:+Inf|count:1|lb:-Inf,1|bc:1,0", "finite number, got inf"),
        ("dist:sum:1|count:1|lb:-Inf,|bc:1,0", "''"),
        ("dist:sum:1|count:1|lb:-Inf,y|bc:1,0", "'y'"),
        ("dist:sum:1|count:1|lb:-Inf,2,1|bc:1,0,0", "got 1.0 after 2.0"),
        ("dist:sum:1|count:1|lb:-Inf,1|bc:z,0", "'z'"),
        ("dist:sum:1|count:1|lb:-Inf,1|bc:1.0,0", "not a whole number: '1.0'"),
        ("dist:sum:1|count:1|lb:-Inf,1|bc:2,-1", "0 or more, got -1"),
        ("dist:sum:1|count:1|lb:-Inf,1|bc:1", "1 bounds need 2 bucket counts, got 1"),
        ("dist:sum:1|count:2|lb:-Inf,1|bc:1,0", "count is '2', but the buckets hold 1"),
    ],
)
def test_what_is_wrong_in_a_distribution_is_quoted(text, reason):
    with pytest.raises(ValueError) as caught:
        parse_value(text)
    assert reason in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "map:", "map:code,k:", "dist:", '"'])
def test_of_a_long_text_an_error_quotes_only_the_ends(prefix):
    with pytest.raises(ValueError) as caught:
        parse_value(prefix + "x," * 10_000)
    assert len(str(caught.value)) < 400


@given(
    texts
    | st.text()
    | st.from_regex(r"\A(map:|dist:sum:|[+-])?[0-9.eInf,:|\"\\x -]*\Z")
    | st.from_regex(r"\Adist:sum:.*\|count:[0-9]*\|lb:-Inf,.*\|bc:.*\Z")
    | damaged(values().map(format_value))
)
def test_any_text_is_either_read_or_a_value_error(text):
    with suppress(ValueError):
        value = parse_value(text)
        assert parse_value(format_value(value)) == value


def test_equal_values_hash_alike():
    values = [Gauge(1), Map("code", {"200": 1}), Distribution((1,), (1, 0), 0.5)]
    copies = [Gauge(1), Map("code", {"200": 1}), Distribution((1,), (1, 0), 0.5)]
    assert list(map(hash, values)) == list(map(hash, copies))


def test_a_map_takes_what_a_dict_takes():
    assert Map("code", [("200", 1)]) == Map("code", {"200": 1})
