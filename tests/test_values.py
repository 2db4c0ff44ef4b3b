"""Gauge, Map and Distribution, and the text of each value."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from itertools import pairwise
from numbers import Integral, Real

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st
from strategies import LARGEST, LARGEST_WHOLE, bounds, distributions

from trio_statskeeper import Distribution, Gauge, Map, exponential_bounds
from trio_statskeeper._distribution import unchecked_distribution
from trio_statskeeper._values import unchecked_map

NAN = math.nan
INF = math.inf
NO_NUMBERS = [None, "1", b"1", 1j, [1], Decimal(1)]
NO_STRINGS = [None, 200, b"code", ["code"]]
TOO_HIGH = pytest.param(LARGEST_WHOLE + 1, id="too high")
TOO_LOW = pytest.param(-LARGEST_WHOLE - 1, id="too low")
UNCOUNTABLE = [-1, -0.5, NAN, INF, -INF, TOO_HIGH]
UNBOUNDED = [NAN, INF, -INF, TOO_HIGH, TOO_LOW]


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
    expected = "a number can be neither NaN nor beyond the largest float, got nan"
    with pytest.raises(ValueError, match=expected):
        Gauge(NAN)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_the_value_of_a_gauge_is_a_number(value):
    with pytest.raises(TypeError, match="expected a number, got"):
        Gauge(value)


@pytest.mark.parametrize("number", [TOO_HIGH, TOO_LOW])
def test_an_integer_gauge_beyond_the_largest_float_is_refused(number):
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
def test_a_gauge_holds_a_plain_number(given, kind, value):
    kept = Gauge(given).value
    assert type(kept) is kind
    assert kept == value


@pytest.mark.parametrize(
    ("name", "number"),
    [("int64", 5), ("uint8", 5), ("float32", 0.25), ("float64", 0.25), ("bool_", True)],
)
def test_numpy_numbers_become_plain_numbers(name, number):
    given = getattr(pytest.importorskip("numpy"), name)(number)
    for kept in (Gauge(given).value, Map("code", {"200": given}).values["200"]):
        assert type(kept) in (int, float)
        assert kept == number
    assert Distribution.of([given], [given]) == Distribution([number], [1, 0], number)


def test_gauges_of_equal_numbers_are_equal_and_have_equal_hashes():
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
    with pytest.raises(ValueError, match="expected a finite number >= 0, got"):
        Map("code", {"200": count})


@pytest.mark.parametrize(
    "count", [0, 0.0, LARGEST, pytest.param(LARGEST_WHOLE, id="whole")]
)
def test_the_counts_of_a_map_range_from_zero_to_the_largest_float(count):
    assert Map("code", {"200": count}).values["200"] == count


def test_a_map_copies_its_arguments():
    given = {"200": 1}
    counted = Map("code", given)
    given["200"] = 2
    given["500"] = 1
    assert counted == Map("code", {"200": 1})


def test_the_counts_of_a_map_are_read_only():
    counted = Map("code", {"200": 1})
    with pytest.raises(TypeError):
        counted.values["200"] = 2
    assert counted.values["200"] == 1


def test_a_map_holds_plain_strings_and_numbers():
    counted = Map(Key.CODE, {Key.CODE: Status.OK, "others": Int64()})
    (key, number), *_ = counted.values.items()
    assert [type(kept) for kept in (counted.name, key, number)] == [str, str, int]
    assert (counted.name, key, number) == ("code", "code", 200)


def test_maps_with_equal_names_and_counts_are_equal():
    assert Map("code", {"a": 1, "b": 2}) == Map("code", {"b": 2, "a": 1})
    assert Map("code", {"a": 1}) != Map("code", {"a": 2})
    assert Map("code", {"a": 1}) != Map("kind", {"a": 1})


# Distribution


def test_a_distribution_has_bounds_and_counts_and_a_sum():
    distribution = Distribution([0.5, 2, 7.5], [34, 54, 121, 12], 899)
    assert distribution.bounds == (0.5, 2.0, 7.5)
    assert distribution.bucket_counts == (34, 54, 121, 12)
    assert distribution.sum == 899.0


def test_the_count_of_a_distribution_is_the_sum_of_its_buckets():
    assert Distribution([0.5, 2, 7.5], [34, 54, 121, 12], 899).count == 221


def test_a_distribution_copies_its_arguments():
    given_bounds, given_counts = [1.0, 2.0], [1, 2, 3]
    distribution = Distribution(given_bounds, given_counts, 9)
    given_bounds.append(3.0)
    given_counts[0] = 7
    assert distribution == Distribution((1.0, 2.0), (1, 2, 3), 9.0)


def test_a_distribution_takes_any_iterables():
    assert Distribution(iter([1, 2]), iter([1, 2, 3]), 9) == Distribution(
        (1, 2), (1, 2, 3), 9
    )


def test_a_distribution_holds_plain_floats_and_ints():
    distribution = Distribution([Status.OK], [True, Status.OK], Backwards(3))
    assert [type(bound) for bound in distribution.bounds] == [float]
    assert [type(count) for count in distribution.bucket_counts] == [int, int]
    assert type(distribution.sum) is float
    assert distribution == Distribution((200,), (1, 200), 3)
    of_others = Distribution([Float32()], [Int64(), Bool()], Fraction(1, 2))
    assert repr(of_others) == repr(Distribution([0.25], [5, 1], 0.5))


def test_a_distribution_has_at_least_one_bound():
    expected = "^a distribution must have at least one bound, got none$"
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
def test_there_is_one_more_bucket_than_bounds(bucket_counts):
    expected = f"2 bounds need 3 bucket counts, got {len(bucket_counts)}"
    with pytest.raises(ValueError, match=expected):
        Distribution([1, 2], bucket_counts, 0)


@pytest.mark.parametrize("count", UNCOUNTABLE)
def test_bucket_counts_are_finite_and_not_negative(count):
    with pytest.raises(ValueError, match="expected a finite number >= 0, got"):
        Distribution([1], [0, count], 0)


@pytest.mark.parametrize("count", NO_NUMBERS)
def test_bucket_counts_are_numbers(count):
    with pytest.raises(TypeError, match="expected a number, got"):
        Distribution([1], [0, count], 0)


def test_bucket_counts_are_integers():
    with pytest.raises(TypeError, match=r"expected an integer, got 1\.0"):
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
def test_the_sum_of_a_distribution_may_be_the_largest_float(total):
    assert Distribution([1], [0, 1], total).sum == total


def test_equal_distributions_have_equal_hashes():
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


def test_a_distribution_of_no_samples_is_empty():
    assert Distribution.of([], [0.5, 2]) == Distribution([0.5, 2], [0, 0, 0], 0)


def test_samples_and_bounds_may_be_any_iterables():
    assert Distribution.of(iter([1]), iter([2])) == Distribution([2], [1, 0], 1)


@pytest.mark.parametrize(
    ("sample", "bucket_counts"),
    [(0.5, (1, 0, 0, 0)), (2, (0, 1, 0, 0)), (7.5, (0, 0, 1, 0))],
)
def test_a_sample_that_equals_a_bound_falls_into_the_bucket_below(sample, bucket_counts):
    assert Distribution.of([sample], [0.5, 2, 7.5]).bucket_counts == bucket_counts


@pytest.mark.parametrize(
    ("sample", "bucket_counts"),
    [(-3, (1, 0, 0)), (0.5000001, (0, 1, 0)), (2.0000001, (0, 0, 1))],
)
def test_a_sample_between_bounds_falls_into_the_bucket_between_them(sample, bucket_counts):
    assert Distribution.of([sample], [0.5, 2]).bucket_counts == bucket_counts


@given(st.lists(st.integers(-5, 5) | st.floats(-5, 5)), bounds)
def test_a_bucket_excludes_its_lower_bound_and_includes_its_upper_bound(samples, bounds):
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


def test_the_sum_of_samples_is_finite():
    with pytest.raises(ValueError, match="expected a finite number, got inf"):
        Distribution.of([LARGEST, LARGEST], [1])


@pytest.mark.parametrize("bounds", [[], [NAN], [2, 1]])
def test_the_bounds_for_samples_are_valid(bounds):
    with pytest.raises(ValueError, match=r"bound|finite"):
        Distribution.of([1], bounds)


@pytest.mark.parametrize("bound", NO_NUMBERS)
def test_the_bounds_for_samples_are_numbers(bound):
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
def test_a_quantile_in_a_first_bucket_with_a_bound_of_at_most_zero_is_that_bound(q, bound):
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
def test_the_quantile_of_zero_is_the_lower_bound_of_the_first_bucket_with_samples(
    bucket_counts, quantile
):
    assert Distribution([1, 2, 4], bucket_counts, 0).quantile(0) == quantile


@pytest.mark.parametrize(("samples", "count"), [(7, 100), (29, 30), (57, 100)])
def test_a_quantile_at_the_end_of_a_bucket_does_not_fall_into_a_later_one(samples, count):
    distribution = Distribution([1, 2, 3], [samples, 0, count - samples, 0], 0)
    assert distribution.quantile(samples / count) == 1


def test_quantiles_of_the_widest_buckets_do_not_overflow():
    widest = Distribution([-LARGEST, LARGEST], [0, 5, 5], 0)
    assert widest.quantile(0.25) == 0


@pytest.mark.parametrize("upper", [0.9, math.nextafter(0.3, 1)])
def test_rounding_does_not_move_a_quantile_out_of_its_bucket(upper):
    distribution = Distribution([0.3, upper], [0, 19, 0], 0)
    quantiles = [distribution.quantile(rank / 19) for rank in range(20)]
    assert quantiles == sorted(quantiles)
    assert (quantiles[0], quantiles[-1]) == (0.3, upper)


shares = st.floats(0, 1)


@given(distributions(), shares, shares)
def test_quantiles_increase_with_q(distribution, one, other):
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


def test_subtracting_an_earlier_state_gives_the_difference():
    earlier = Distribution([1, 2], [1, 0, 2], 8)
    now = Distribution([1, 2], [1, 3, 4], 18.5)
    assert now.subtract(earlier) == Distribution([1, 2], [0, 3, 2], 10.5)


def test_subtracting_the_same_state_gives_an_empty_distribution():
    distribution = Distribution([1, 2], [1, 0, 2], 8)
    assert distribution.subtract(distribution) == Distribution.of([], [1, 2])


@pytest.mark.parametrize("bucket_counts", [(0, 5, 5), (5, 0, 5), (5, 5, 1)])
def test_after_a_reset_subtracting_gives_the_whole_distribution(bucket_counts):
    now = Distribution([1, 2], bucket_counts, 3)
    assert now.subtract(Distribution([1, 2], [1, 1, 2], 8)) == now


@pytest.mark.parametrize("other", [(1, 3), (1,), (1, 2, 3)])
def test_only_distributions_of_equal_bounds_are_subtracted(other):
    expected = r"must be equal, got \(1\.0, 2\.0\) and, earlier, \(1\.0"
    with pytest.raises(ValueError, match=expected):
        Distribution.of([], [1, 2]).subtract(Distribution.of([], other))


def test_the_difference_of_sums_is_finite():
    with pytest.raises(ValueError, match="expected a finite number, got inf"):
        Distribution([1], [0, 0], LARGEST).subtract(Distribution([1], [0, 0], -LARGEST))


some_samples = st.lists(st.floats(-5, 5))


@given(some_samples, some_samples, bounds)
def test_subtracting_gives_the_distribution_of_the_later_samples(first, later, bounds):
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


def test_unchecked_values_equal_checked_ones():
    assert unchecked_map("code", {"200": 1}) == Map("code", {"200": 1})
    assert unchecked_distribution((1.0,), (1, 2), 3.0) == Distribution([1], [1, 2], 3)


def test_an_unchecked_map_is_read_only():
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
def test_exponential_bounds_begin_with_zero_and_grow_by_their_base(
    base, scale_factor, num_buckets, expected
):
    assert exponential_bounds(base, scale_factor, num_buckets) == expected


def test_exponential_bounds_are_floats():
    assert {type(bound) for bound in exponential_bounds(2, 1, 3)} == {float}


@pytest.mark.parametrize("base", [1.009, 1, 0, -2, NAN, INF])
def test_the_base_of_exponential_bounds_is_finite_and_at_least_1_01(base):
    with pytest.raises(ValueError, match=f"base must be finite and >= 1.01, got {base!r}"):
        exponential_bounds(base, 1, 3)


@pytest.mark.parametrize("scale_factor", [0, -1, NAN, INF])
def test_the_scale_factor_of_exponential_bounds_is_finite_and_positive(scale_factor):
    expected = f"scale_factor must be finite and > 0, got {scale_factor!r}"
    with pytest.raises(ValueError, match=expected):
        exponential_bounds(2, scale_factor, 3)


@pytest.mark.parametrize("num_buckets", [0, -1])
def test_exponential_bounds_have_at_least_one_bucket(num_buckets):
    expected = f"num_buckets must be >= 1, got {num_buckets}"
    with pytest.raises(ValueError, match=expected):
        exponential_bounds(2, 1, num_buckets)


@pytest.mark.parametrize(
    ("base", "scale_factor", "num_buckets"),
    [(2, 1, 2000), (2, 1e308, 3), (10**400, 1, 1), (2, 10**400, 1)],
)
def test_exponential_bounds_do_not_exceed_the_largest_float(
    base, scale_factor, num_buckets
):
    with pytest.raises(ValueError, match=r"largest float|finite"):
        exponential_bounds(base, scale_factor, num_buckets)


def test_exponential_bounds_too_small_to_tell_apart_are_refused():
    with pytest.raises(ValueError, match="bounds must increase strictly"):
        exponential_bounds(1.01, 5e-324, 3)


@pytest.mark.parametrize("arguments", [("2", 1, 3), (2, "1", 3), (2, 1, 3.5)])
def test_the_arguments_of_exponential_bounds_are_numbers(arguments):
    with pytest.raises(TypeError):
        exponential_bounds(*arguments)


def test_equal_values_have_equal_hashes():
    values = [Gauge(1), Map("code", {"200": 1}), Distribution((1,), (1, 0), 0.5)]
    copies = [Gauge(1), Map("code", {"200": 1}), Distribution((1,), (1, 0), 0.5)]
    assert list(map(hash, values)) == list(map(hash, copies))


def test_a_map_takes_the_same_arguments_as_a_dict():
    assert Map("code", [("200", 1)]) == Map("code", {"200": 1})
