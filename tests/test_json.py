"""EventMetrics as JSON, without loss."""

from __future__ import annotations

import json
import math
from contextlib import suppress

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    LARGEST,
    LARGEST_WHOLE,
    counts,
    damaged,
    distributions,
    exponentials,
    factors,
    finite,
    gauges,
    texts,
)

from trio_statskeeper import (
    Distribution,
    EventMetrics,
    ExponentialDistribution,
    Gauge,
    Map,
)
from trio_statskeeper.lines import from_json, to_json

FULL = EventMetrics(
    1519084040.25,
    1519080000.5,
    {"ptype": "http", "dst": "a"},
    {
        "total": 3,
        "latency": Distribution([0.5, 2], [2, 1, 0], 1.25),
        "resp-code": Map("code", {"200": 2, "404": 1}),
        "temperature": Gauge(3.5),
        "version": "1.2",
    },
    latency_unit=0.001,
    export_interval=60.0,
)


def test_json_names_all_fields():
    assert to_json(FULL) == (
        '{"timestamp":1519084040.25,"start_timestamp":1519080000.5,'
        '"labels":{"ptype":"http","dst":"a"},"metrics":{"total":3,'
        '"latency":{"bounds":[0.5,2.0],"bucket_counts":[2,1,0],"sum":1.25},'
        '"resp-code":{"map":"code","values":{"200":2,"404":1}},'
        '"temperature":{"gauge":3.5},"version":"1.2"},'
        '"latency_unit":0.001,"export_interval":60.0,"ends_pass":true}'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "1"),
        (2.0, "2.0"),
        (10**300, str(10**300)),
        (math.inf, '{"number":"+Inf"}'),
        (-math.inf, '{"number":"-Inf"}'),
        (
            ExponentialDistribution.of([1.5, -2, 0], max_buckets=2),
            (
                '{"scale":20,"positive_offset":613377,"positive_counts":[1],'
                '"negative_offset":1048575,"negative_counts":[1],"zero_count":1,'
                '"sum":-0.5,"min":-2.0,"max":1.5,"factor":1.0}'
            ),
        ),
        (
            ExponentialDistribution(0),
            (
                '{"scale":20,"positive_offset":0,"positive_counts":[],"negative_offset":0,'
                '"negative_counts":[],"zero_count":0,"sum":0.0,"min":null,"max":null,'
                '"factor":1.0}'
            ),
        ),
        (Gauge(math.inf), '{"gauge":"+Inf"}'),
        (Gauge(-math.inf), '{"gauge":"-Inf"}'),
        ("+Inf", '"+Inf"'),
        ("two\nlines \u2603\ud83d", r'"two\nlines \u2603\ud83d"'),
    ],
)
def test_metrics_of_each_kind_are_written(value, text):
    line = to_json(EventMetrics(5, 0, {}, {"x": value}))
    assert f'"metrics":{{"x":{text}}}' in line
    assert from_json(line).metrics == {"x": value}


# JSON can't tell the two halves of a character from that character.
json_texts = texts.map(
    lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
json_values = (
    st.integers(-LARGEST_WHOLE, LARGEST_WHOLE)
    | st.floats(allow_nan=False)
    | json_texts
    | gauges
    | st.builds(Map, json_texts, st.dictionaries(json_texts, counts, max_size=5))
    | distributions()
    | exponentials(factors)
)
positive = st.floats(0, LARGEST, exclude_min=True)
exports = st.builds(
    EventMetrics,
    finite,
    start_timestamp=finite,
    labels=st.dictionaries(json_texts, json_texts, max_size=4),
    metrics=st.dictionaries(json_texts, json_values, max_size=4),
    latency_unit=positive,
    export_interval=positive,
)


@given(exports)
@example(FULL)
@example(EventMetrics(0, -0.0, {}, {}))
@example(EventMetrics(0, 0, {"b": "", "a": ""}, {"d": 1, "c": 1.0}))
def test_json_reads_back_equal_of_the_same_types_and_in_the_same_order(export):
    again = from_json(to_json(export))
    assert again == export
    # Equal are 1 and 1.0, too, and dicts in any order.
    assert repr(again) == repr(export)


def refuse(constant):
    raise AssertionError(constant)


@given(exports)
def test_json_is_one_line_of_ascii_that_strict_parsers_read(export):
    line = to_json(export)
    assert line.isascii()
    assert line.isprintable()
    assert list(json.loads(line, parse_constant=refuse)["metrics"]) == list(export.metrics)


def test_surrogate_pairs_are_read_back_as_one_character():
    halves = EventMetrics(0, 0, {"face": "\ud83d\ude00"}, {})
    assert from_json(to_json(halves)).labels == {"face": "\U0001f600"}


@pytest.mark.parametrize("line", ["{}\n", " {}", "{}\r\n"])
def test_white_space_around_the_object_is_allowed(line):
    assert from_json(line.format(to_json(FULL))) == FULL


def test_fields_may_be_in_any_order():
    fields = json.loads(to_json(FULL))
    assert from_json(json.dumps(dict(reversed(fields.items())))) == FULL


def with_field(**fields):
    return json.dumps(json.loads(to_json(FULL)) | fields)


def with_metric(value):
    return with_field(metrics={"x": value})


def test_integers_are_allowed_as_bounds_and_sum():
    line = with_metric({"bounds": [1], "bucket_counts": [2, 0], "sum": 2})
    assert repr(from_json(line).metrics["x"]) == repr(Distribution([1], [2, 0], 2))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not JSON: '': Expecting value"),
        ("x", "not JSON: 'x'"),
        ("{", "not JSON: '{'"),
        (to_json(FULL) + "x", "Extra data"),
        (to_json(FULL)[:-1], "not JSON"),
        ("null", "an export must be an object, got None"),
        ("[]", "an export must be an object, got []"),
        ('{"a":1,"a":1}', "'a' appears twice in one object"),
        ("{}", "expected the fields timestamp, start_timestamp, labels,"),
        (with_field(host="a"), "expected the fields timestamp"),
        (to_json(FULL).replace("timestamp", "time", 1), "got ['time', 'start_timestamp'"),
        (to_json(FULL).replace("60.0", "NaN"), "'NaN'"),
        (to_json(FULL).replace("60.0", "Infinity"), "'Infinity'"),
        (to_json(FULL).replace("60.0", "-Infinity"), "'-Infinity'"),
        (to_json(FULL).replace("60.0", "1e309"), "beyond the largest float: '1e309'"),
        (to_json(FULL).replace("60.0", "6" * 5000), "beyond the largest float: '6666"),
        (to_json(FULL).replace('"dst"', '"ptype"'), "'ptype' appears twice"),
        (to_json(FULL).replace('"version"', '"total"'), "'total' appears twice"),
        (to_json(FULL).replace('"404"', '"200"'), "'200' appears twice"),
        (with_field(timestamp=None), "timestamp must be a number, got None"),
        (with_field(timestamp="5"), "timestamp must be a number, got '5'"),
        (with_field(timestamp=True), "timestamp must be a number, got True"),
        (with_field(start_timestamp=[]), "start_timestamp must be a number, got []"),
        (with_field(latency_unit={}), "latency_unit must be a number, got {}"),
        (with_field(export_interval="NaN"), "export_interval must be a number, got 'NaN'"),
        (with_field(ends_pass=1), "ends_pass must be true or false, got 1"),
        (with_field(labels=[]), "labels must be an object, got []"),
        (with_field(labels={"dst": 1}), "label 'dst' must be a string, got 1"),
        (with_field(metrics=1), "metrics must be an object, got 1"),
    ],
)
def test_a_line_that_is_not_an_export_is_refused(line, reason):
    with pytest.raises(ValueError) as caught:
        from_json(line)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "expected a number, string or object, got None"),
        (True, "expected a number, string or object, got True"),
        ([1], "expected a number, string or object, got [1]"),
        ({}, "expected a gauge, map or distribution, got {}"),
        ({"x": 1}, "expected a gauge, map or distribution, got {'x': 1}"),
        ({"gauge": 1, "x": 1}, "expected a gauge, map or distribution"),
        ({"number": "inf"}, "number must be a number, got 'inf'"),
        ({"gauge": "3"}, "gauge must be a number, got '3'"),
        ({"gauge": False}, "gauge must be a number, got False"),
        ({"map": 1, "values": {}}, "map must be a string, got 1"),
        ({"map": "code", "values": []}, "values must be an object, got []"),
        ({"map": "code", "values": {"a": "b"}}, "value 'a' must be a number, got 'b'"),
        ({"map": "code", "values": {"a": -1}}, "expected a finite number >= 0"),
        ({"map": "code", "values": {"a": "+Inf"}}, "expected a finite number >= 0"),
        (
            {"bounds": 1, "bucket_counts": [1, 2], "sum": 1},
            "bounds must be an array, got 1",
        ),
        (
            {"bounds": ["1"], "bucket_counts": [1, 2], "sum": 1},
            "each bound must be a number, got '1'",
        ),
        (
            {"bounds": [1], "bucket_counts": {}, "sum": 1},
            "bucket_counts must be an array, got {}",
        ),
        (
            {"bounds": [1], "bucket_counts": [1, 2.0], "sum": 1},
            "each bucket count must be an integer, got 2.0",
        ),
        (
            {"bounds": [1], "bucket_counts": [1, True], "sum": 1},
            "each bucket count must be an integer, got True",
        ),
        (
            {"bounds": [1], "bucket_counts": [1], "sum": 1},
            "1 bounds need 2 bucket counts, got 1",
        ),
        (
            {"bounds": [2, 1], "bucket_counts": [1, 1, 1], "sum": 1},
            "bounds must increase strictly",
        ),
        (
            {"bounds": [1], "bucket_counts": [1, 2], "sum": "+Inf"},
            "expected a finite number, got inf",
        ),
        (
            {"bounds": [1], "bucket_counts": [1, 2], "sum": None},
            "sum must be a number, got None",
        ),
    ],
)
def test_an_invalid_value_is_refused_with_the_name_of_its_metric(value, reason):
    with pytest.raises(ValueError) as caught:
        from_json(with_metric(value))
    assert str(caught.value).startswith("metric 'x': ")
    assert reason in str(caught.value)


json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            texts
            | st.sampled_from(
                ["number", "gauge", "map", "values", "bounds", "bucket_counts", "sum"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    texts
    | json_like.map(json.dumps)
    | json_like.map(with_metric)
    | st.builds(
        lambda field, value: with_field(**{field: value}),
        st.sampled_from([field.name for field in attrs.fields(EventMetrics)]),
        json_like,
    )
    | damaged(exports.map(to_json))
)
def test_any_line_is_either_read_or_a_value_error(line):
    with suppress(ValueError):
        export = from_json(line)
        assert from_json(to_json(export)) == export


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("place", ["{}", '{{"metrics":{{"x":{}'])
def test_deep_nesting_is_refused(opening, place):
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(place.format(opening * 100_000))


@pytest.mark.parametrize("repeated", ["1", '"', "\\", ",", " ", "[", "{", "\\u2028", "\n"])
@pytest.mark.parametrize(
    "begin",
    ["", '"', "[", '{"timestamp":', '{"timestamp":1,"labels":{"', '{"metrics":{"x":[1'],
)
def test_a_megabyte_of_anything_is_refused_quickly(begin, repeated):
    with pytest.raises(ValueError) as caught:
        from_json(begin + repeated * (1_000_000 // len(repeated)))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        ["x" * 1_000] * 1_000,
        {str(number): 1 for number in range(100_000)},
        {"gauge": ["x" * 1_000] * 1_000},
        {"map": "x" * 1_000_000, "values": {}, "x": 1},
        {"map": "code", "values": {"x" * 1_000_000: "x" * 1_000_000}},
        {"bounds": [1] * 100_000, "bucket_counts": [], "sum": 1},
    ],
    ids=["text", "array", "object", "gauge", "map", "value", "distribution"],
)
def test_an_error_quotes_only_the_ends_of_a_long_value(value):
    with pytest.raises(ValueError) as caught:
        from_json(with_field(labels={"x" * 1_000: "y"}, metrics={"x" * 1_000: [value]}))
    assert len(str(caught.value)) < 1_000
    with pytest.raises(ValueError) as caught:
        from_json(with_field(labels=value))
    assert len(str(caught.value)) < 1_000
