"""Requests of OpenTelemetry's protocol, OTLP: exports in its terms.

Values that OTLP can't hold are skipped, and logged once. This module knows no Trio: a
request is built data point by data point, so that others can run in between.

Data points are encoded here rather than by protobuf's classes, which take three times as
long: a pass over thousands of targets must not need a second of a busy loop. The numbers
of the fields are those of opentelemetry/proto/metrics/v1/metrics.proto, which is stable
(https://github.com/open-telemetry/opentelemetry-proto); the tests decode what is encoded
here with OpenTelemetry's own classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from struct import Struct, pack

import attrs

from ._event_metrics import EventMetrics
from ._families import Families, Family, valid_text
from ._values import Distribution, Gauge, Map

# Nanoseconds have 64 bits.
_TOO_LATE = 2**64 / 1e9

# What receivers that are based on Prometheus make of service.name and service.instance.id.
_OVERWRITTEN = frozenset(("job", "instance"))

# AGGREGATION_TEMPORALITY_CUMULATIVE in the field 2 of a Sum or Histogram; 3: is_monotonic.
_CUMULATIVE, _MONOTONIC = b"\x10\x02", b"\x18\x01"

# The field of a Metric, and what follows the data points there.
_KINDS = {
    "counter": (7, _CUMULATIVE + _MONOTONIC),
    "gauge": (5, b""),
    "histogram": (9, _CUMULATIVE),
    "info": (5, b""),
}

# Tags of the fields with a length in which data points and their attributes are.
_DATA_POINT, _ATTRIBUTE, _ATTRIBUTE_OF_HISTOGRAM = b"\x0a", b"\x3a", b"\x4a"

# Tags and values of start_time_unix_nano and time_unix_nano, and of as_int or as_double.
_INTEGER = Struct("<BQBQBq")
_TIME_SIZE = 9  # bytes of each time, with its tag
_DOUBLE = Struct("<BQBQBd")
# Of these times, count and sum.
_HISTOGRAM = Struct("<BQBQBQBd")


@lru_cache
def _length(number: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _sized(content: bytes) -> bytes:
    return _length(len(content)) + content


def _field(number: int, content: bytes | str) -> bytes:
    """Return a field that has a length: a text or a message."""
    if isinstance(content, str):
        content = content.encode()
    return bytes((number << 3 | 2,)) + _sized(content)


# Most labels are the same for all targets of a keeper.
@lru_cache(maxsize=1_000)
def _attribute(name: str, value: str) -> bytes:
    """Return a KeyValue, after its length."""
    return _sized(_field(1, name) + _field(2, _field(1, value)))


_SCOPE = _field(1, "trio_statskeeper") + _field(2, version("trio-statskeeper"))


@attrs.define(eq=False)
class Request:
    """A request that is being built."""

    resource_attributes: Mapping[str, str]

    exports: list[EventMetrics] = attrs.field(init=False, factory=list[EventMetrics])
    """What was added."""
    size: int = attrs.field(init=False, default=0)
    """Bytes that the data points take."""
    overwritten: set[str] = attrs.field(init=False, factory=set[str])
    """Labels that receivers may overwrite."""

    _data_points: dict[Family, list[bytes]] = attrs.field(
        init=False, factory=dict[Family, list[bytes]]
    )

    def add(self, export: EventMetrics, families: Families, now: float) -> Iterator[None]:
        """Add an export; each of the iterator's steps is short."""
        self.exports.append(export)
        resolved = families.resolve(export, now)
        start, end = export.start_timestamp, export.timestamp
        if not (0 <= start < _TOO_LATE and 0 <= end < _TOO_LATE):
            families.leave_out(
                "times that are not between 1970 and 2554",
                f"; {start!r} and {end!r} for instance",
            )
            yield
            return
        time = round(end * 1e9)
        start_time = min(round(start * 1e9), time)
        labels = [_attribute(name, label) for name, label in resolved.labels.items()]
        attributes = b"".join(_ATTRIBUTE + label for label in labels)
        self.overwritten.update(_OVERWRITTEN & resolved.labels.keys())
        for family, value in resolved.metrics:
            if isinstance(value, Distribution) and value.count >= 2**64:
                families.leave_out(f"{family}: a count that OTLP can't hold")
                continue
            first = start_time if family.kind in ("counter", "histogram") else 0
            if isinstance(value, Distribution):
                self._add(family, _histogram(value, labels, first, time))
            elif isinstance(value, Map | str):
                assert family.label is not None
                if family.label in _OVERWRITTEN:
                    self.overwritten.add(family.label)
                values = value.values if isinstance(value, Map) else {value: 1}
                for key, number in values.items():
                    further = _ATTRIBUTE + _attribute(family.label, key)
                    self._add(family, _number(number, first, time) + attributes + further)
                    yield
            else:
                number = value.value if isinstance(value, Gauge) else value
                self._add(family, _number(number, first, time) + attributes)
        yield

    def _add(self, family: Family, data_point: bytes) -> None:
        field = _DATA_POINT + _sized(data_point)
        if family in self._data_points:
            self._data_points[family].append(field)
        else:
            self._data_points[family] = [field]
        self.size += len(field)

    def serialize(self) -> bytes:
        resource = b"".join(
            b"\x0a" + _attribute(valid_text(name), valid_text(value))
            for name, value in self.resource_attributes.items()
        )
        metrics = b"".join(
            _field(2, _metric(family, data_points))
            for family, data_points in self._data_points.items()
        )
        of_scope = _field(1, _SCOPE) + metrics
        return _field(1, _field(1, resource) + _field(2, of_scope))


def _metric(family: Family, data_points: Iterable[bytes]) -> bytes:
    number, properties = _KINDS[family.kind]
    return (
        _field(1, family.otlp_name)
        + _field(2, family.help)
        + (_field(3, "s") if family.in_seconds else b"")
        + _field(number, b"".join(data_points) + properties)
    )


def _number(value: float, start_time: int, time: int) -> bytes:
    """Return the numbers of a data point; a `start_time` of 0 means that it has none."""
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        encoded = _INTEGER.pack(0x11, start_time, 0x19, time, 0x31, value)
    else:
        encoded = _DOUBLE.pack(0x11, start_time, 0x19, time, 0x21, float(value))
    return encoded if start_time else encoded[_TIME_SIZE:]


def _histogram(
    value: Distribution, labels: list[bytes], start_time: int, time: int
) -> bytes:
    sums = (0x21, value.count, 0x29, value.sum)
    counts = pack(f"<{len(value.bucket_counts)}Q", *value.bucket_counts)
    return (
        _HISTOGRAM.pack(0x11, start_time, 0x19, time, *sums)
        + _field(6, counts)
        + _explicit_bounds(value.bounds)
        + b"".join(_ATTRIBUTE_OF_HISTOGRAM + label for label in labels)
    )


@lru_cache
def _explicit_bounds(bounds: tuple[float, ...]) -> bytes:
    return _field(7, pack(f"<{len(bounds)}d", *bounds))
