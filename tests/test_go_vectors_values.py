"""What cloudprober v0.11.1 printed for real values, and read from real texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trio_statskeeper import Distribution, Map, exponential_bounds, parse_value
from trio_statskeeper._values import format_value

VECTORS = json.loads(
    Path(__file__).with_name("data").joinpath("go-v0.11.1.json").read_text("utf-8")
)


def value_of(vector):
    match vector:
        case {"map": {"name": name, "values": values}}:
            return Map(name, values)
        case {"dist": {"samples": samples, "bounds": bounds}}:
            return Distribution.of(samples, bounds)
    ((_, value),) = vector.items()
    return value


@pytest.mark.parametrize(
    ("value", "string"),
    [(vector["value"], vector["string"]) for vector in VECTORS["values"]],
    ids=range(len(VECTORS["values"])),
)
def test_values_are_written_as_go_writes_them(value, string):
    assert format_value(value_of(value)) == string


@pytest.mark.parametrize("string", [vector["string"] for vector in VECTORS["values"]])
def test_what_go_wrote_is_read_and_written_alike(string):
    assert format_value(parse_value(string)) == string


@pytest.mark.parametrize(
    ("text", "string"),
    [
        (vector["text"], vector["string"])
        for vector in VECTORS["parse"]
        if "error" not in vector
    ],
)
def test_texts_are_read_as_go_reads_them(text, string):
    assert parse_value(text) == parse_value(string)


@pytest.mark.parametrize(
    "text", [vector["text"] for vector in VECTORS["parse"] if "error" in vector]
)
def test_texts_are_refused_that_go_refuses(text):
    with pytest.raises(ValueError):
        parse_value(text)


@pytest.mark.parametrize("vector", VECTORS["exponential"])
def test_exponential_bounds_are_those_of_go(vector):
    bounds = exponential_bounds(
        vector["base"], vector["scale_factor"], vector["num_buckets"]
    )
    assert bounds == pytest.approx(vector["lower_bounds"], rel=1e-12, abs=0)
