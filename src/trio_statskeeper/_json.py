"""EventMetrics as JSON, without loss."""

from __future__ import annotations

import math
from json import JSONDecodeError, JSONDecoder, JSONEncoder
from typing import TypeAlias, assert_never

import attrs

from ._arguments import quote
from ._distribution import Distribution
from ._event_metrics import EventMetrics, check_length
from ._exponential import ExponentialDistribution
from ._text import parse_number
from ._values import Gauge, Map, Value

# What is read.
_Json: TypeAlias = "bool | int | float | str | list[_Json] | dict[str, _Json] | None"

_FIELDS = tuple(field.name for field in attrs.fields(EventMetrics))

_EXPONENTIAL_FIELDS = tuple(field.name for field in attrs.fields(ExponentialDistribution))

# ASCII alone: it is safe in any encoding, and lone surrogates are escaped.
_encoder = JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def to_json(event_metrics: EventMetrics) -> str:
    """Return `event_metrics` as a line of JSON, without its end, for `from_json`."""
    return _encoder.encode(
        {
            "timestamp": event_metrics.timestamp,
            "start_timestamp": event_metrics.start_timestamp,
            "labels": dict(event_metrics.labels),
            "metrics": {
                name: _to_json(value) for name, value in event_metrics.metrics.items()
            },
            "latency_unit": event_metrics.latency_unit,
            "export_interval": event_metrics.export_interval,
            "ends_pass": event_metrics.ends_pass,
        }
    )


def _to_json(value: Value) -> object:
    match value:
        case int() | float():
            number = _finite_or_text(value)
            return {"number": number} if isinstance(number, str) else number
        case str():
            return value
        case Gauge():
            return {"gauge": _finite_or_text(value.value)}
        case Map():
            return {"map": value.name, "values": dict(value.values)}
        case Distribution():
            return {
                "bounds": value.bounds,
                "bucket_counts": value.bucket_counts,
                "sum": value.sum,
            }
        case ExponentialDistribution():
            return {name: getattr(value, name) for name in _EXPONENTIAL_FIELDS}
        case _:
            assert_never(value)


def _finite_or_text(value: float) -> int | float | str:
    """Return `value`, or its text if it is infinite, which JSON can't represent."""
    if math.isfinite(value):
        return value
    return "+Inf" if value > 0 else "-Inf"


def from_json(line: str) -> EventMetrics:
    """Read a line back that `to_json` wrote.

    All that it holds comes back equal, of the same types and in the same order. (Only a
    string that holds the two halves of one character, as lone surrogates, comes back with
    that character.)

    Raises:
      ValueError: if `line` is not such a line, or has more than 2,097,152 characters; the
        message quotes what is wrong.
    """
    check_length(line)
    try:
        fields: _Json = _decoder.decode(line)
    except JSONDecodeError as error:
        raise ValueError(f"not JSON: {quote(line)}: {error}") from None
    except RecursionError:
        raise ValueError(f"nested too deeply: {quote(line)}") from None
    fields = _object("an export", fields)
    if fields.keys() != set(_FIELDS):
        raise ValueError(
            f"expected the fields {', '.join(_FIELDS)}, got {quote(list(fields))}"
        )
    return EventMetrics(
        timestamp=_number("timestamp", fields["timestamp"]),
        start_timestamp=_number("start_timestamp", fields["start_timestamp"]),
        labels={
            name: _text(f"label {quote(name)}", label)
            for name, label in _object("labels", fields["labels"]).items()
        },
        metrics={
            name: _metric(name, value)
            for name, value in _object("metrics", fields["metrics"]).items()
        },
        latency_unit=_number("latency_unit", fields["latency_unit"]),
        export_interval=_number("export_interval", fields["export_interval"]),
        ends_pass=_boolean("ends_pass", fields["ends_pass"]),
    )


def _different_names(pairs: list[tuple[str, _Json]]) -> dict[str, _Json]:
    names: dict[str, _Json] = {}
    for name, value in pairs:
        if name in names:
            raise ValueError(f"{quote(name)} appears twice in one object")
        names[name] = value
    return names


# `parse_number` rejects NaN, Infinity, and what is too large for a float.
_decoder = JSONDecoder(
    object_pairs_hook=_different_names,
    parse_int=parse_number,
    parse_float=parse_number,
    parse_constant=parse_number,
)


def _metric(name: str, value: _Json) -> Value:
    try:
        return _from_json(value)
    except ValueError as error:
        raise ValueError(f"metric {quote(name)}: {error}") from None


def _from_json(value: _Json) -> Value:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"expected a number, string or object, got {quote(value)}")  # noqa: TRY004
    names = value.keys()
    if names == {"number"}:
        return _number("number", value["number"])
    if names == {"gauge"}:
        return Gauge(_number("gauge", value["gauge"]))
    if names == {"map", "values"}:
        counts = _object("values", value["values"])
        return Map(
            _text("map", value["map"]),
            {key: _number(f"value {quote(key)}", count) for key, count in counts.items()},
        )
    if names == {"bounds", "bucket_counts", "sum"}:
        return Distribution(
            [_number("each bound", bound) for bound in _array("bounds", value["bounds"])],
            _integers("bucket_counts", value["bucket_counts"]),
            _number("sum", value["sum"]),
        )
    if names == set(_EXPONENTIAL_FIELDS):
        return ExponentialDistribution(
            _integer("scale", value["scale"]),
            positive_offset=_integer("positive_offset", value["positive_offset"]),
            positive_counts=_integers("positive_counts", value["positive_counts"]),
            negative_offset=_integer("negative_offset", value["negative_offset"]),
            negative_counts=_integers("negative_counts", value["negative_counts"]),
            zero_count=_integer("zero_count", value["zero_count"]),
            sum=_number("sum", value["sum"]),
            min=_number_or_none("min", value["min"]),
            max=_number_or_none("max", value["max"]),
            factor=_number("factor", value["factor"]),
        )
    raise ValueError(f"expected a gauge, map or distribution, got {quote(value)}")


def _object(what: str, value: _Json) -> dict[str, _Json]:
    if isinstance(value, dict):
        return value
    raise ValueError(f"{what} must be an object, got {quote(value)}")


def _array(what: str, value: _Json) -> list[_Json]:
    if isinstance(value, list):
        return value
    raise ValueError(f"{what} must be an array, got {quote(value)}")


def _text(what: str, value: _Json) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{what} must be a string, got {quote(value)}")


def _boolean(what: str, value: _Json) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"{what} must be true or false, got {quote(value)}")


def _integers(what: str, value: _Json) -> list[int]:
    return [_integer("each bucket count", count) for count in _array(what, value)]


def _integer(what: str, value: _Json) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{what} must be an integer, got {quote(value)}")


def _number_or_none(what: str, value: _Json) -> int | float | None:
    return None if value is None else _number(what, value)


def _number(what: str, value: _Json) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if value in ("+Inf", "-Inf"):
        return parse_number(value)
    raise ValueError(f"{what} must be a number, got {quote(value)}")
