"""OTLP requests, built from exports.

Values that OTLP can't represent are skipped, and logged once. This module does not use
Trio: requests are built in short steps, and the caller lets other tasks run in between.

https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/metrics/v1/metrics.proto
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import Any, TypeAlias, assert_never

import attrs
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    InstrumentationScope,
    KeyValue,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    NumberDataPoint,
)

from trio_statskeeper._distribution import Distribution
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._exponential import ExponentialDistribution
from trio_statskeeper._naming import Families, Family, valid_text
from trio_statskeeper._values import Gauge, Map, Value

_SCOPE = InstrumentationScope(name="trio_statskeeper", version=version("trio-statskeeper"))

AnyDistribution: TypeAlias = Distribution | ExponentialDistribution

# "time_unix_nano" is a fixed64, in nanoseconds.
_TIME_LIMIT = 2**64 / 1e9

# Bytes that are serialized in one step. Serialized messages can be merged by concatenation:
# https://protobuf.dev/programming-guides/encoding/#last-one-wins
_PART_SIZE = 200_000

# The labels to which Prometheus-based receivers map service.name and service.instance.id.
_OVERWRITTEN = frozenset(("job", "instance"))


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

    # Serialized parts, and the bytes of their data points.
    _parts: list[bytes] = attrs.field(init=False, factory=list[bytes])
    _size_of_parts: int = attrs.field(init=False, default=0)
    # The part that is being built.
    _message: ExportMetricsServiceRequest = attrs.field(init=False)
    _metrics: Any = attrs.field(init=False)
    _data_points: dict[tuple[Family, bool], Any] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._begin_part()

    def _begin_part(self) -> None:
        self._message = ExportMetricsServiceRequest()
        self._data_points = {}
        of_resource = self._message.resource_metrics.add()
        for name, value in self.resource_attributes.items():
            attribute = _attribute(valid_text(name), valid_text(value))
            of_resource.resource.attributes.append(attribute)
        self._metrics = of_resource.scope_metrics.add(scope=_SCOPE).metrics

    def add(self, export: EventMetrics, families: Families, now: float) -> Iterator[None]:
        """Add an export, in the short steps of an iterator."""
        self.exports.append(export)
        resolved = families.resolve(export, now)
        start, end = export.start_timestamp, export.timestamp
        if not (0 <= start < _TIME_LIMIT and 0 <= end < _TIME_LIMIT):
            families.log_skipped(
                "timestamps that are not between 1970 and 2554",
                f": {start!r} and {end!r}",
            )
            yield
            return
        time = round(end * 1e9)
        start_time = min(round(start * 1e9), time)
        labels = [_attribute(name, label) for name, label in resolved.labels.items()]
        # Merging bytes takes a third of the time of copying messages.
        attributes = NumberDataPoint(attributes=labels).SerializeToString()
        self.overwritten.update(_OVERWRITTEN & resolved.labels.keys())
        for family, value in resolved.metrics:
            if isinstance(value, AnyDistribution) and value.count >= 2**64:
                families.log_skipped(f"{family}: a count is too large for OTLP")
                continue
            if isinstance(value, Map | str) and family.label in _OVERWRITTEN:
                self.overwritten.add(family.label)
            for number, further in _numbers(family, value):
                data_points = self._data_points_of(family, value)
                if isinstance(number, AnyDistribution):
                    data_point = data_points.add(attributes=labels)
                    _fill(data_point, number)
                else:
                    data_point = data_points.add()
                    data_point.MergeFromString(attributes)
                    data_point.attributes.extend(further)
                    if isinstance(number, int) and -(2**63) <= number < 2**63:
                        data_point.as_int = number
                    else:
                        data_point.as_double = float(number)
                data_point.time_unix_nano = time
                if family.is_cumulative:
                    data_point.start_time_unix_nano = start_time
                self.size += data_point.ByteSize()
                if further:
                    yield
        yield
        yield from self._end_large_part()

    def _end_large_part(self) -> Iterator[None]:
        if self.size - self._size_of_parts >= _PART_SIZE:
            self._parts.append(self._message.SerializeToString())
            self._size_of_parts = self.size
            self._begin_part()
            yield

    def serialize(self) -> bytes:
        return b"".join((*self._parts, self._message.SerializeToString()))

    def _data_points_of(self, family: Family, value: Value) -> Any:
        # The same family has other data points if the options of a keeper differ.
        key = family, isinstance(value, ExponentialDistribution)
        if key not in self._data_points:
            self._data_points[key] = self._new_metric(*key)
        return self._data_points[key]

    def _new_metric(self, family: Family, is_exponential: bool) -> Any:
        """Add a metric, and return its data points."""
        metric = self._metrics.add(
            name=family.otlp_name,
            description=family.help,
            unit="s" if family.in_seconds else "",
        )
        match family.kind:
            case "counter":
                metric.sum.is_monotonic = True
                metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
                return metric.sum.data_points
            case "info" | "gauge":
                return metric.gauge.data_points
            case "histogram":
                histogram = (
                    metric.exponential_histogram if is_exponential else metric.histogram
                )
                histogram.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
                return histogram.data_points
            case _:
                assert_never(family.kind)


def _numbers(
    family: Family, value: Value
) -> Iterator[tuple[float | AnyDistribution, list[KeyValue]]]:
    """Yield the number of each data point, and its attributes beside the labels."""
    match value:
        case int() | float():
            yield value, []
        case str():
            assert family.label is not None
            yield 1, [_attribute(family.label, value)]
        case Gauge():
            yield value.value, []
        case Map():
            assert family.label is not None
            for key, count in value.values.items():
                yield count, [_attribute(family.label, key)]
        case Distribution() | ExponentialDistribution():
            yield value, []
        case _:
            assert_never(value)


def _fill(data_point: Any, value: AnyDistribution) -> None:
    data_point.count = value.count
    data_point.sum = value.sum
    if isinstance(value, Distribution):
        data_point.bucket_counts.extend(value.bucket_counts)
        data_point.explicit_bounds.extend(value.bounds)
        return
    data_point.scale = value.scale
    data_point.zero_count = value.zero_count
    data_point.positive.offset = value.positive_offset
    data_point.positive.bucket_counts.extend(value.positive_counts)
    data_point.negative.offset = value.negative_offset
    data_point.negative.bucket_counts.extend(value.negative_counts)
    if value.min is not None and value.max is not None:
        data_point.min, data_point.max = value.min, value.max


# Most labels are common to all targets of a keeper.
@lru_cache(maxsize=1_000)
def _attribute(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))
