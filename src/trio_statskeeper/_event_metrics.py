"""What the keeper sends: the totals of one target at one instant, and their line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar, final

import attrs

from ._checks import finite_float, positive_float
from ._plain_values import PlainValue
from ._values import (
    Value,
    escape,
    escape_name,
    format_value,
    parse_value,
    plain_str,
    plain_value,
    quote,
    unescape,
)

V = TypeVar("V")

# Lines come from files and networks, and to read one is a single step. Of the worst kind,
# this much takes some tenths of a second.
_LONGEST_LINE = 2**21

# cloudprober itself prints each line behind a prefix of the user's choice, which may be
# empty, and the line's number.
_HEAD = re.compile(r"(?:[^ ]*+ [0-9]{1,20} )?(-?[0-9]{1,18}) labels=([^ ]*)")
# A string ends at the quote that a space or the line's end follows: cloudprober writes
# spaces and quotes within strings as they are.
_METRIC = re.compile(r' ([^ =]*)=("(?:[^"]|"(?! |\Z))*+"|[^ ]*)')


def _timestamp(timestamp: float) -> float:
    return finite_float("timestamp", timestamp)


def _start_timestamp(timestamp: float) -> float:
    return finite_float("start_timestamp", timestamp)


def _labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    return _checked_items("label", labels, plain_str)


def _metrics(metrics: Mapping[str, Value]) -> Mapping[str, Value]:
    return _checked_items("metric", metrics, plain_value)


def latency_unit(unit: float) -> float:
    """Return `unit`, an attribute of exports and keepers, if it is valid."""
    return positive_float("latency_unit", unit)


def export_interval(interval: float) -> float:
    """Return `interval`, an attribute of exports and keepers, if it is valid."""
    return positive_float("export_interval", interval)


def _checked_items(
    what: str, mapping: Mapping[str, V], check: Callable[[V], V]
) -> Mapping[str, V]:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{what}s must be a mapping, got {quote(mapping)}")
    checked: dict[str, V] = {}
    for name, value in mapping.items():
        try:
            checked[plain_str(name)] = check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{what} {quote(name)}: {error}") from None
    return MappingProxyType(checked)


@final
@attrs.frozen
class EventMetrics(PlainValue):
    """The totals of one target at one instant.

    `str()` gives cloudprober's line, which `EventMetrics.parse` reads back:

        1519084040 labels=ptype=http,probe=homepage sent=62 resp-code=map:code,200:44

    Raises:
      TypeError: if something is of the wrong type.
      ValueError: if a timestamp is not finite; if a metric is NaN, or an integer beyond the
        largest float; if the latency unit or the interval is not finite or not above 0.
    """

    timestamp: float = attrs.field(converter=_timestamp)
    """When the totals stood like this: Unix time in seconds."""

    start_timestamp: float = attrs.field(converter=_start_timestamp)
    """When this target's totals began at zero: Unix time in seconds."""

    labels: Mapping[str, str] = attrs.field(converter=_labels, hash=False)
    """What is measured: ptype, probe, dst, then the additional labels; read-only."""

    metrics: Mapping[str, Value] = attrs.field(converter=_metrics, hash=False)
    """The totals by metric name; read-only."""

    latency_unit: float = attrs.field(default=1.0, converter=latency_unit)
    """Seconds per unit of the latency metrics: `latency`, and names that end in `-latency`
    or `_latency`. No other metric has this unit."""

    export_interval: float = attrs.field(default=10.0, converter=export_interval)
    """Seconds between exports. A target that has not come for three of them is gone."""

    def __str__(self) -> str:
        labels = ",".join(
            f"{escape_name(name, ',=')}={escape(value, ',')}"
            for name, value in self.labels.items()
        )
        metrics = "".join(
            f" {escape_name(name, '=')}={format_value(value)}"
            for name, value in self.metrics.items()
        )
        return f"{math.floor(self.timestamp)} labels={labels}{metrics}"

    @classmethod
    def parse(
        cls,
        line: str,
        *,
        start_timestamp: float = 0.0,
        latency_unit: float = 1.0,
        export_interval: float = 10.0,
    ) -> EventMetrics:
        """Read a line back that cloudprober or `str()` wrote.

        Labels and metrics come back equal, but a `Gauge` as a plain number, and the
        timestamp in whole seconds. What the line does not tell is given by keyword. The
        prefix and the number that cloudprober prints before each line are skipped.

        Raises:
          ValueError: if `line` is not such a line, or has more than 2,097,152 characters;
            the message quotes what is wrong.
        """
        check_length(line)
        line = line.removesuffix("\r\n").removesuffix("\n")
        head = _HEAD.match(line)
        if head is None:
            raise ValueError(
                f"not 'SECONDS labels=…', nor 'PREFIX NUMBER SECONDS labels=…': "
                f"{quote(line)}"
            )
        metrics: dict[str, Value] = {}
        end = head.end()
        while end < len(line):
            metric = _METRIC.match(line, end)
            if metric is None:
                raise ValueError(f"not ' NAME=VALUE': {quote(line[end:])}")
            name = unescape(metric[1])
            if name in metrics:
                raise ValueError(f"metric {quote(name)} stands twice in {quote(line)}")
            try:
                metrics[name] = parse_value(metric[2])
            except ValueError as error:
                raise ValueError(f"metric {quote(name)}: {error}") from None
            end = metric.end()
        return cls(
            float(head[1]),
            start_timestamp,
            _parse_labels(head[2]),
            metrics,
            latency_unit,
            export_interval,
        )


def check_length(line: str) -> None:
    """Raise a ValueError if it would take long to read `line`."""
    if len(line) > _LONGEST_LINE:
        raise ValueError(
            f"a line of {len(line):,} characters: at most {_LONGEST_LINE:,} are read"
        )


# The slots' own setters, which a frozen class does not show: with them, the export of a
# target takes 0.8 µs to make, by the constructor 2.2 (row 6 of the benchmarks).
(
    _set_timestamp,
    _set_start_timestamp,
    _set_labels,
    _set_metrics,
    _set_latency_unit,
    _set_export_interval,
) = (vars(EventMetrics)[field.name].__set__ for field in attrs.fields(EventMetrics))


def unchecked_event_metrics(  # noqa: PLR0913, PLR0917  # those of the constructor
    timestamp: float,
    start_timestamp: float,
    labels: dict[str, str],
    metrics: dict[str, Value],
    latency_unit: float,
    export_interval: float,
) -> EventMetrics:
    """Return an `EventMetrics`; `labels` and `metrics` become its own, without a copy."""
    unchecked = EventMetrics.__new__(EventMetrics)
    _set_timestamp(unchecked, timestamp)
    _set_start_timestamp(unchecked, start_timestamp)
    _set_labels(unchecked, MappingProxyType(labels))
    _set_metrics(unchecked, MappingProxyType(metrics))
    _set_latency_unit(unchecked, latency_unit)
    _set_export_interval(unchecked, export_interval)
    return unchecked


def _parse_labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"not NAME=VALUE: {quote(pair)}, in {quote(text)}")
        name = unescape(name)
        if name in labels:
            raise ValueError(f"label {quote(name)} stands twice in {quote(text)}")
        labels[name] = unescape(value)
    return labels
