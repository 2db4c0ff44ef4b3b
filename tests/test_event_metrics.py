"""EventMetrics, and writing and reading its line."""

from __future__ import annotations

import math
from contextlib import suppress
from decimal import Decimal

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import damaged, exports, texts

from trio_statskeeper import (
    Distribution,
    EventMetrics,
    ExponentialDistribution,
    Gauge,
    Map,
)

LINE = "1519084040 labels=ptype=http,probe=homepage sent=62 resp-code=map:code,200:44,204:8"
LABELS = {"ptype": "http", "probe": "homepage"}
METRICS = {"sent": 62, "resp-code": Map("code", {"200": 44, "204": 8})}


def read_back(export):
    return EventMetrics.parse(
        str(export),
        start_timestamp=export.start_timestamp,
        latency_unit=export.latency_unit,
        export_interval=export.export_interval,
    )


def as_read_back(export):
    return attrs.evolve(
        export,
        timestamp=math.floor(export.timestamp),
        metrics={name: value_as_read_back(value) for name, value in export.metrics.items()},
    )


def value_as_read_back(value):
    match value:
        case Gauge():
            return value.value
        case ExponentialDistribution():
            return value.classic()
    return value


# Attributes


def test_the_defaults_are_seconds_and_an_interval_of_ten_seconds():
    export = EventMetrics(2.5, 1.5, LABELS, METRICS)
    assert (export.latency_unit, export.export_interval) == (1.0, 10.0)


def test_labels_and_metrics_are_copied():
    labels, metrics = dict(LABELS), dict(METRICS)
    export = EventMetrics(2, 1, labels, metrics)
    labels["ptype"] = "dns"
    metrics["sent"] = 63
    assert export.labels == LABELS
    assert export.metrics == METRICS


@pytest.mark.parametrize("field", ["labels", "metrics"])
def test_labels_and_metrics_are_read_only(field):
    export = EventMetrics(2, 1, LABELS, METRICS)
    with pytest.raises(TypeError):
        getattr(export, field)["ptype"] = "dns"


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(EventMetrics)])
def test_an_export_is_frozen(field):
    export = EventMetrics(2, 1, LABELS, METRICS)
    with pytest.raises(FrozenInstanceError):
        setattr(export, field, getattr(export, field))


def test_equal_exports_have_equal_hashes():
    one, same = EventMetrics(2, 1, LABELS, METRICS), EventMetrics(2, 1, LABELS, METRICS)
    assert one == same
    assert hash(one) == hash(same)


@pytest.mark.parametrize(
    "change",
    [
        {"timestamp": 3},
        {"start_timestamp": 0},
        {"labels": {}},
        {"metrics": {}},
        {"latency_unit": 0.001},
        {"export_interval": 1},
    ],
)
def test_exports_differ_by_each_field(change):
    export = EventMetrics(2, 1, LABELS, METRICS)
    assert export != attrs.evolve(export, **change)


# Refusals


VALID = {
    "timestamp": 2,
    "start_timestamp": 1,
    "labels": LABELS,
    "metrics": METRICS,
    "latency_unit": 1,
    "export_interval": 10,
}
NOT_A_VALUE = (
    "expected a number, string, Gauge, Map, Distribution or ExponentialDistribution"
)
TIMES = ["timestamp", "start_timestamp", "latency_unit", "export_interval"]


@pytest.mark.parametrize("field", TIMES)
@pytest.mark.parametrize("value", [None, "5", [5], True, Decimal(5)])
def test_times_are_numbers(field, value):
    with pytest.raises(TypeError) as caught:
        EventMetrics(**VALID | {field: value})
    assert str(caught.value) == f"{field} must be a number, got {value!r}"


def test_an_export_ends_its_pass_or_does_not():
    with pytest.raises(TypeError, match=r"^ends_pass must be True or False, got 1$"):
        EventMetrics(**VALID, ends_pass=1)


@pytest.mark.parametrize("field", TIMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_times_are_finite(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be finite, got "):
        EventMetrics(**VALID | {field: value})


@pytest.mark.parametrize("field", ["latency_unit", "export_interval"])
@pytest.mark.parametrize("value", [0, -1, -0.0])
def test_a_unit_and_an_interval_are_positive(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be > 0, got {value}"):
        EventMetrics(**VALID | {field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels must be a mapping, got None"),
        ({"labels": [("dst", "a")]}, "labels must be a mapping, got [('dst', 'a')]"),
        ({"labels": {5: "a"}}, "label 5: expected a string, got 5"),
        ({"labels": {"dst": None}}, "label 'dst': expected a string, got None"),
        ({"metrics": ["total"]}, "metrics must be a mapping, got ['total']"),
        ({"metrics": {5: 1}}, "metric 5: expected a string, got 5"),
        ({"metrics": {"total": None}}, f"metric 'total': {NOT_A_VALUE}, got None"),
        ({"metrics": {"total": [1]}}, f"metric 'total': {NOT_A_VALUE}, got [1]"),
    ],
)
def test_labels_are_strings_and_metrics_are_values(change, message):
    with pytest.raises(TypeError) as caught:
        EventMetrics(**VALID | change)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [math.nan, 10**400])
def test_a_metric_that_no_output_can_hold_is_refused(value):
    with pytest.raises(ValueError, match="metric 'total': a number can be neither NaN"):
        EventMetrics(**VALID | {"metrics": {"total": value}})


class Text(str):
    __slots__ = ()

    def __repr__(self):
        return "a text"


class Number(float):
    def __repr__(self):
        return "a number"


def test_an_export_holds_plain_numbers_and_strings():
    number, text = Number(5), Text("a")
    export = EventMetrics(
        number, number, {text: text}, {text: number, "b": text, "c": True}, number, number
    )
    assert repr(export) == repr(
        EventMetrics(5, 5, {"a": "a"}, {"a": 5.0, "b": "a", "c": 1}, 5, 5)
    )
    assert str(export) == '5 labels=a=a a=5.0 b="a" c=1'


# Writing


def test_the_line_is_that_of_cloudprober():
    assert str(EventMetrics(1519084040.0, 0.0, LABELS, METRICS)) == LINE


def test_labels_and_metrics_are_written_in_their_order():
    export = EventMetrics(5, 0, {"b": "1", "a": "2"}, {"d": 3, "c": 4})
    assert str(export) == "5 labels=b=1,a=2 d=3 c=4"


def test_labels_and_metrics_may_be_empty():
    assert str(EventMetrics(5, 0, {}, {})) == "5 labels="


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [(5, "5"), (5.999, "5"), (0.5, "0"), (-0.5, "-1"), (1e15, "1000000000000000")],
)
def test_the_timestamp_is_rounded_down_to_seconds(timestamp, seconds):
    assert str(EventMetrics(timestamp, 0, {}, {})) == f"{seconds} labels="


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (62, "62"),
        (0.0001, "0.0001"),
        (Gauge(-1.5), "-1.5"),
        (Gauge(math.inf), "+Inf"),
        ("v 1=2", '"v 1=2"'),
        ('a" b="c', r'"a\x22 b=\x22c"'),
        (Map("a b", {"c=d": 1}), r"map:a\x20b,c=d:1"),
        (Distribution([1], [1, 2], 9), "dist:sum:9|count:3|lb:-Inf,1|bc:1,2"),
    ],
)
def test_metrics_of_each_kind_are_written(value, text):
    assert str(EventMetrics(5, 0, {}, {"x": value})) == f"5 labels= x={text}"


@pytest.mark.parametrize(
    ("labels", "metrics", "line"),
    [
        ({"a=b,c d": "x"}, {}, r"5 labels=a\x3db\x2cc\x20d=x"),
        ({"a": "x=y,z w"}, {}, r"5 labels=a=x=y\x2cz\x20w"),
        ({"url": "http://[::1]:80/?q"}, {}, "5 labels=url=http://[::1]:80/?q"),
        ({"path": "C:\\temp\n"}, {}, r"5 labels=path=C:\\temp\x0a"),
        ({"": ""}, {"": 1}, "5 labels== =1"),
        ({}, {"a=b c,d": 1}, r"5 labels= a\x3db\x20c,d=1"),
        ({}, {'"\\\u2028': 1}, r'5 labels= "\\\u2028=1'),
        ({"AXZ": "axz"}, {"AXZ": 1}, "5 labels=AXZ=axz AXZ=1"),
        ({"axz": "AXZ"}, {"axz": 1}, "5 labels=axz=AXZ axz=1"),
    ],
)
def test_separators_within_names_and_label_values_are_escaped(labels, metrics, line):
    assert str(EventMetrics(5, 0, labels, metrics)) == line


@given(exports())
def test_the_line_is_printable(export):
    assert str(export).isprintable()


@given(exports(texts.map(lambda text: text.replace(" ", "_"))))
def test_spaces_separate_the_metrics_and_equals_signs_their_names(export):
    seconds, labels, *metrics = str(export).split(" ")
    assert seconds == str(math.floor(export.timestamp))
    assert labels.startswith("labels=")
    assert len(metrics) == len(export.metrics)
    assert all("=" in metric for metric in metrics)


@given(st.dictionaries(texts, texts, min_size=1, max_size=4))
def test_commas_separate_the_labels(labels):
    line = str(EventMetrics(5, 0, labels, {}))
    assert len(line.removeprefix("5 labels=").split(",")) == len(labels)


# Reading back


def test_the_line_is_read_back():
    export = EventMetrics.parse(LINE)
    assert export == EventMetrics(1519084040.0, 0.0, LABELS, METRICS, 1.0, 10.0)


def test_attributes_that_the_line_lacks_are_given_by_keyword():
    export = EventMetrics.parse(
        LINE, start_timestamp=7, latency_unit=0.001, export_interval=60
    )
    assert export == EventMetrics(1519084040.0, 7, LABELS, METRICS, 0.001, 60)


def test_the_order_of_labels_and_metrics_is_read_back():
    export = EventMetrics.parse("5 labels=b=1,a=2 d=3 c=4")
    assert list(export.labels) == ["b", "a"]
    assert list(export.metrics) == ["d", "c"]


def test_the_timestamp_is_read_back_as_a_float():
    assert type(EventMetrics.parse(LINE).timestamp) is float


@given(exports())
@example(EventMetrics(5, 0, {}, {}))
@example(EventMetrics(5, 0, {"": ""}, {"": ""}))
@example(EventMetrics(5, 0, {}, {"x": 1e23}))
def test_labels_and_metrics_read_back_equal(export):
    assert read_back(export) == as_read_back(export)


def test_a_line_may_end_with_a_newline():
    assert EventMetrics.parse(LINE + "\n") == EventMetrics.parse(LINE)


@pytest.mark.parametrize(
    ("line", "labels", "metrics"),
    [
        ("5 labels=", {}, {}),
        ("5 labels= sent=62.000", {}, {"sent": 62.0}),
        ("5 labels= latency=0.001 up=-1.500", {}, {"latency": 0.001, "up": -1.5}),
        (
            "5 labels= code=map:code,200:10123.000",
            {},
            {"code": Map("code", {"200": 10123})},
        ),
        (
            '5 labels= a="hello world" b=1 c="x y"',
            {},
            {"a": "hello world", "b": 1, "c": "x y"},
        ),
        ('5 labels= a="a"b"c" b=1', {}, {"a": 'a"b"c', "b": 1}),
        ('5 labels= a="x=1 y="z" b=1', {}, {"a": 'x=1 y="z', "b": 1}),
        ('5 labels= a="" b=""', {}, {"a": "", "b": ""}),
        ('5 labels= a=""" b=1', {}, {"a": '"', "b": 1}),
        ('5 labels= a="two\nlines" b=1', {}, {"a": "two\nlines", "b": 1}),
        (r'5 labels= a="C:\temp\new"', {}, {"a": r"C:\temp\new"}),
        ("5 labels=url=http://h:80/?q=1", {"url": "http://h:80/?q=1"}, {}),
        (r"5 labels=path=C:\temp\new", {"path": r"C:\temp\new"}, {}),
        ('5 labels=say="hi",b=', {"say": '"hi"', "b": ""}, {}),
        ("5 labels= a,b=1", {}, {"a,b": 1}),
        ("cloudprober 1500590430132947313 5 labels=a=b x=1", {"a": "b"}, {"x": 1}),
        ("any-word 0 5 labels= x=1", {}, {"x": 1}),
        (" 1500 5 labels= x=1", {}, {"x": 1}),  # the prefix is empty
        ("5 labels= x=1e+06 y=+Inf z=-Inf", {}, {"x": 1e6, "y": math.inf, "z": -math.inf}),
        ("5 labels= code=map:code", {}, {"code": Map("code", {})}),
        (
            "5 labels= a=dist:sum:1e+21|count:3|lb:-Inf,1e-07,1e+06|bc:1,0,2",
            {},
            {"a": Distribution([1e-7, 1e6], [1, 0, 2], 1e21)},
        ),
    ],
)
def test_lines_are_read_as_cloudprober_writes_them(line, labels, metrics):
    assert EventMetrics.parse(line) == EventMetrics(5, 0, labels, metrics)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "5",
        "labels=",
        " labels=",
        "5 labels",
        "5  labels=",
        " 5 labels=",
        "5.5 labels=",
        "+5 labels=",
        "- labels=",
        "x labels=a=b sent=1",
        "1234567890123456789 labels=",
        "\u0665 labels=",
        "\n5 labels=",
        "cloudprober 5 labels=",
        "two words 1500 5 labels=",
        "cloudprober -1 5 labels=",
    ],
)
def test_a_line_begins_with_seconds_and_labels(line):
    with pytest.raises(ValueError, match="not 'SECONDS labels=…'") as caught:
        EventMetrics.parse(line)
    assert repr(line.removesuffix("\n")) in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ("a", "not NAME=VALUE: 'a', in 'a'"),
        (",", "not NAME=VALUE: '', in ','"),
        ("a=b,", "not NAME=VALUE: '', in 'a=b,'"),
        ("a=b,c", "not NAME=VALUE: 'c', in 'a=b,c'"),
        ("a=b,a=c", "label 'a' appears twice in 'a=b,a=c'"),
        (r"a=b,\x61=c", "label 'a' appears twice"),
    ],
)
def test_labels_are_pairs_of_different_names(labels, reason):
    with pytest.raises(ValueError) as caught:
        EventMetrics.parse(f"5 labels={labels} sent=62")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (" ", "not ' NAME=VALUE': ' '"),
        (" sent", "not ' NAME=VALUE': ' sent'"),
        (" sent=62 ", "not ' NAME=VALUE': ' '"),
        (" sent=62  lost=1", "not ' NAME=VALUE': '  lost=1'"),
        (" sent 62", "not ' NAME=VALUE': ' sent 62'"),
        (' say="hi" there"', "not ' NAME=VALUE': ' there\"'"),
        (" sent=", "''"),
        (" sent=x", "'x'"),
        (" sent=62\r", r"'62\r'"),
        (' sent="open b=1', "'\"open'"),
        (' sent="', "'\"'"),
        (' sent="a"b', "'\"a\"b'"),
        (" sent=map:code,200:x", "'x'"),
        (" sent=1 latency=NaN", "metric 'latency': a value can't be NaN: 'NaN'"),
        (" code=map:code,200:NaN", "a value can't be NaN: 'NaN', in '200:NaN'"),
        (" a=dist:sum:NaN|count:1|lb:-Inf,1|bc:1,0", "a value can't be NaN: 'NaN', in"),
        (" a=1 a=2", "metric 'a' appears twice in '5 labels=a=b a=1 a=2'"),
        (r" sent=62 \x73ent=63", "metric 'sent' appears twice"),
    ],
)
def test_metrics_are_pairs_of_different_names_and_a_value(metrics, reason):
    with pytest.raises(ValueError) as caught:
        EventMetrics.parse(f"5 labels=a=b{metrics}")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "x" * 10_000,
        "5 labels=" + "x" * 10_000,
        "5 labels= " + "x" * 10_000,
        "5 labels=" + "a=b," * 10_000,
        "5 labels= " + " a=1" * 10_000,
    ],
    ids=["head", "label", "metric", "repeated labels", "repeated metrics"],
)
def test_an_error_quotes_only_the_ends_of_a_long_line(line):
    with pytest.raises(ValueError) as caught:
        EventMetrics.parse(line)
    assert len(str(caught.value)) < 400


@given(
    texts
    | texts.map("5 labels={}".format)
    | texts.map("5 labels=a=b {}".format)
    | texts.map('5 labels= a="{}'.format)
    | st.from_regex(r'\A([a ]* [0-9]+ )?-?[0-9]+ labels=[a=,\\x2]*( [a=]*=["a1 map:,]*)*\Z')
    | damaged(exports().map(str))
)
def test_any_line_is_read_or_raises_a_value_error(line):
    with suppress(ValueError):
        export = EventMetrics.parse(line)
        assert EventMetrics.parse(str(export)) == export


@pytest.mark.parametrize(
    "repeated", ["1", '"', "\\", ",", " ", "=", "a=1 ", '" a="', "\\x2"]
)
@pytest.mark.parametrize(
    "begin",
    [
        "",
        "5 labels=",
        "5 labels=a=",
        "5 labels= ",
        "5 labels= a=",
        '5 labels= a="',
        "5 labels= a=map:",
        "5 labels= a=dist:sum:",
        "5 labels= a=dist:sum:1|count:1|lb:-Inf,",
    ],
)
@pytest.mark.parametrize("end", ["", '"', " b=1"])
def test_a_megabyte_of_anything_is_read_or_refused_quickly(begin, repeated, end):
    line = begin + repeated * (1_000_000 // len(repeated)) + end
    with suppress(ValueError):
        assert EventMetrics.parse(line).timestamp == 5


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_may_end_with_any_newline(end):
    assert EventMetrics.parse(f"1 labels= sent=62{end}").metrics == {"sent": 62}


def test_the_length_of_a_line_is_limited():
    head = "0 labels= text="
    longest = head + '"' + "x" * (2**21 - len(head) - 2) + '"'
    assert len(EventMetrics.parse(longest).metrics["text"]) == 2**21 - len(head) - 2
    with pytest.raises(ValueError) as caught:
        EventMetrics.parse(f"{longest}\n")
    assert str(caught.value) == (
        "a line of 2,097,153 characters: at most 2,097,152 are read"
    )
