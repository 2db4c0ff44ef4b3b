"""The text of values, and reading it back."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    LARGEST,
    LARGEST_WHOLE,
    counts,
    damaged,
    distributions,
    gauges,
    maps,
    texts,
    values,
)

from trio_statskeeper import Distribution, Gauge, Map, parse_value
from trio_statskeeper._values import format_value

INF = math.inf


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
def test_strings_are_quoted_and_escaped(string, text):
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
def test_only_the_text_of_strings_has_spaces(value):
    assert " " not in format_value(value)


@given(texts)
def test_quotes_within_a_string_are_escaped(string):
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
def test_numbers_without_point_or_exponent_are_read_as_integers(text, kind):
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
def test_text_that_is_not_a_value_is_refused_and_quoted(text):
    with pytest.raises(ValueError) as caught:
        parse_value(text)
    expected = f"not a number, string, map or distribution: {text!r}"
    assert str(caught.value) == expected


@pytest.mark.parametrize("text", ["NaN", "nan", "-nan"])
def test_nan_is_refused(text):
    with pytest.raises(ValueError) as caught:
        parse_value(text)
    assert str(caught.value) == f"a value can't be NaN: {text!r}"


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1" * 310, "1" * 5000])
def test_a_number_beyond_the_largest_float_is_refused(text):
    with pytest.raises(ValueError, match=r"beyond the largest float: '-?1"):
        parse_value(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("map:code,", "''"),
        ("map:code,200", "''"),
        ("map:code,200:", "''"),
        ("map:code,200:x", "'x'"),
        ("map:code,200:1:2", "'1:2'"),
        ("map:code,100:1,200:-1", ">= 0, got -1, in '200:-1'"),
        ("map:code,200:+Inf", ">= 0, got inf, in '200:+Inf'"),
        ("map:code,200:1e400", "beyond the largest float: '1e400', in '200:1e400'"),
        ("map:code,200:1,200:2", "key '200' appears twice"),
        (r"map:code,a:1,\x61:2", "key 'a' appears twice"),
    ],
)
def test_an_error_in_a_map_is_quoted(text, reason):
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
        ("dist:sum:1|count:1|lb:-Inf,1|bc:1.0,0", "not an integer: '1.0'"),
        ("dist:sum:1|count:1|lb:-Inf,1|bc:2,-1", ">= 0, got -1"),
        ("dist:sum:1|count:1|lb:-Inf,1|bc:1", "1 bounds need 2 bucket counts, got 1"),
        ("dist:sum:1|count:2|lb:-Inf,1|bc:1,0", "count is '2', but the buckets hold 1"),
    ],
)
def test_an_error_in_a_distribution_is_quoted(text, reason):
    with pytest.raises(ValueError) as caught:
        parse_value(text)
    assert reason in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "map:", "map:code,k:", "dist:", '"'])
def test_an_error_quotes_only_the_ends_of_a_long_text(prefix):
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
def test_any_text_is_read_or_raises_a_value_error(text):
    with suppress(ValueError):
        value = parse_value(text)
        assert parse_value(format_value(value)) == value
