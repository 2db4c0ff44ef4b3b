"""EventMetrics: the totals of one target at one instant, and their line of text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import final

import attrs

from ._arguments import (
    plain_str,
    quote,
    validate_finite,
    validate_items,
    validate_positive,
)
from ._plain_values import PlainValue
from ._text import escape, escape_name, unescape
from ._values import Value, format_value, parse_value, plain_value

# Lines come from files and networks, and reading a line is one step without a checkpoint.
# The worst line of this many characters takes some tenths of a second.
_MAX_LINE_LENGTH = 2**21

# cloudprober prints before each line a prefix of the user's choice, which may be empty, and
# the number of the line.
_HEAD = re.compile(r"(?:[^ ]*+ [0-9]{1,20} )?(-?[0-9]{1,18}) labels=([^ ]*)")
# A string ends at a quote before a space or the end of the line, as cloudprober does not
# escape spaces and quotes within strings.
_METRIC = re.compile(r' ([^ =]*)=("(?:[^"]|"(?! |\Z))*+"|[^ ]*)')


def _timestamp(timestamp: float) -> float:
    return validate_finite("timestamp", timestamp)


def _start_timestamp(timestamp: float) -> float:
    return validate_finite("start_timestamp", timestamp)


def _labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    return validate_items("label", labels, plain_str)


def _metrics(metrics: Mapping[str, Value]) -> Mapping[str, Value]:
    return validate_items("metric", metrics, plain_value)


def _boolean(_: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be True or False, got {quote(value)}")


def validate_latency_unit(unit: float) -> float:
    """Validate the attribute `latency_unit` of exports and keepers."""
    return validate_positive("latency_unit", unit)


def validate_export_interval(interval: float) -> float:
    """Validate the attribute `export_interval` of exports and keepers."""
    return validate_positive("export_interval", interval)


@final
@attrs.frozen
class EventMetrics(PlainValue):
    """The totals of one target at one instant.

    `str()` returns cloudprober's line, which `EventMetrics.parse` reads back:

        1519084040 labels=ptype=http,probe=homepage sent=62 resp-code=map:code,200:44

    Args:
      timestamp: the instant of the totals: Unix time in seconds.
      start_timestamp: when the totals of this target were zero: Unix time in seconds.
      labels: the labels ptype, probe and dst, then the additional labels; read-only.
      metrics: the totals by metric name; read-only.
      latency_unit: seconds per unit of the metric `latency` and of metrics whose names end
        in `-latency` or `_latency`. No other metric has this unit.
      export_interval: seconds between exports. A target without an export for three
        intervals is stale.
      ends_pass: whether this is the last export of its pass. All exports of a pass show the
        totals at one instant, and outputs that show many targets at once change from one
        pass to the next.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if a timestamp is not finite; if a metric is NaN, or an integer beyond the
        largest float; if the latency unit or the interval is not finite and > 0.
    """

    timestamp: float = attrs.field(converter=_timestamp)

    start_timestamp: float = attrs.field(converter=_start_timestamp)

    labels: Mapping[str, str] = attrs.field(converter=_labels, hash=False)

    metrics: Mapping[str, Value] = attrs.field(converter=_metrics, hash=False)

    latency_unit: float = attrs.field(default=1.0, converter=validate_latency_unit)

    export_interval: float = attrs.field(default=10.0, converter=validate_export_interval)

    ends_pass: bool = attrs.field(default=True, validator=_boolean)

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

        Labels and metrics read back equal, except that a `Gauge` becomes a plain number.
        The timestamp is rounded down to seconds. The prefix and the number that cloudprober
        prints before each line are skipped.

        Args:
          line: one line, with or without its line ending.
          start_timestamp: an attribute that lines do not have, like the next two.
          latency_unit: see `EventMetrics`.
          export_interval: see `EventMetrics`.

        Raises:
          ValueError: if `line` is not such a line, or has more than 2,097,152 characters.
            The message quotes the error.
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
                raise ValueError(f"metric {quote(name)} appears twice in {quote(line)}")
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
    """Raise a ValueError if `line` is too long to be read without a pause."""
    if len(line) > _MAX_LINE_LENGTH:
        raise ValueError(
            f"a line of {len(line):,} characters: at most {_MAX_LINE_LENGTH:,} are read"
        )


# The setters of the slots, which a frozen class hides: making an export takes 0.8 µs with
# them, and 2.2 µs with the constructor (row 6 of the benchmarks).
(
    _set_timestamp,
    _set_start_timestamp,
    _set_labels,
    _set_metrics,
    _set_latency_unit,
    _set_export_interval,
    _set_ends_pass,
) = (vars(EventMetrics)[field.name].__set__ for field in attrs.fields(EventMetrics))


def unchecked_event_metrics(  # noqa: PLR0913, PLR0917  # the constructor's
    timestamp: float,
    start_timestamp: float,
    labels: dict[str, str],
    metrics: dict[str, Value],
    latency_unit: float,
    export_interval: float,
) -> EventMetrics:
    """Return an `EventMetrics` that does not end its pass.

    It owns `labels` and `metrics`, without a copy.
    """
    unchecked = EventMetrics.__new__(EventMetrics)
    _set_timestamp(unchecked, timestamp)
    _set_start_timestamp(unchecked, start_timestamp)
    _set_labels(unchecked, MappingProxyType(labels))
    _set_metrics(unchecked, MappingProxyType(metrics))
    _set_latency_unit(unchecked, latency_unit)
    _set_export_interval(unchecked, export_interval)
    _set_ends_pass(unchecked, False)
    return unchecked


def _parse_labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"not NAME=VALUE: {quote(pair)}, in {quote(text)}")
        name = unescape(name)
        if name in labels:
            raise ValueError(f"label {quote(name)} appears twice in {quote(text)}")
        labels[name] = unescape(value)
    return labels
