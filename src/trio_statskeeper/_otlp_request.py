"""Requests of OpenTelemetry's protocol, OTLP: exports in its terms.

What its numbers can't hold is left out, and logged once. This module knows no Trio; a
request is built data point by data point, so that others can run in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

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
    HistogramDataPoint,
    NumberDataPoint,
)

from ._event_metrics import EventMetrics
from ._families import Families, Family, valid_text
from ._values import Distribution, Gauge, Map, Value

_SCOPE = InstrumentationScope(name="trio_statskeeper", version=version("trio-statskeeper"))

# Nanoseconds have 64 bits.
_TOO_LATE = 2**64 / 1e9


@attrs.define(eq=False)
class Request:
    """A request that is being built."""

    resource_attributes: Mapping[str, str]

    exports: list[EventMetrics] = attrs.field(init=False, factory=list[EventMetrics])
    """What was added."""
    size: int = attrs.field(init=False, default=0)
    """Bytes that the data points take."""

    _message: ExportMetricsServiceRequest = attrs.field(
        init=False, factory=ExportMetricsServiceRequest
    )
    _metrics: Any = attrs.field(init=False)
    _data_points: dict[Family, Any] = attrs.field(init=False, factory=dict[Family, Any])

    def __attrs_post_init__(self) -> None:
        of_resource = self._message.resource_metrics.add()
        for name, value in self.resource_attributes.items():
            attribute = _attribute(valid_text(name), valid_text(value))
            of_resource.resource.attributes.append(attribute)
        self._metrics = of_resource.scope_metrics.add(scope=_SCOPE).metrics

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
        for family, value in resolved.metrics:
            if isinstance(value, Distribution) and value.count >= 2**64:
                families.leave_out(f"{family}: a count that OTLP can't hold")
                continue
            for data_point in _data_points(family, value, labels):
                data_point.time_unix_nano = time
                if family.kind in ("counter", "histogram"):
                    data_point.start_time_unix_nano = start_time
                self._add(family, data_point)
                yield
        yield

    def serialize(self) -> bytes:
        serialized: bytes = self._message.SerializeToString()
        return serialized

    def _add(
        self, family: Family, data_point: HistogramDataPoint | NumberDataPoint
    ) -> None:
        if family not in self._data_points:
            self._data_points[family] = self._new_metric(family)
        self._data_points[family].append(data_point)
        self.size += data_point.ByteSize()

    def _new_metric(self, family: Family) -> Any:
        """Add a metric; return where its data points belong."""
        metric = self._metrics.add(
            name=family.otlp_name,
            description=family.help,
            unit="s" if family.in_seconds else "",
        )
        if family.kind == "counter":
            metric.sum.is_monotonic = True
            metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
            return metric.sum.data_points
        if family.kind == "histogram":
            metric.histogram.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
            return metric.histogram.data_points
        return metric.gauge.data_points


def _data_points(
    family: Family, value: Value, labels: list[KeyValue]
) -> Iterator[HistogramDataPoint | NumberDataPoint]:
    if isinstance(value, Distribution):
        yield HistogramDataPoint(
            attributes=labels,
            count=value.count,
            sum=value.sum,
            bucket_counts=value.bucket_counts,
            explicit_bounds=value.bounds,
        )
    elif isinstance(value, Map):
        assert family.label is not None
        for key, count in value.values.items():
            yield _number([*labels, _attribute(family.label, key)], count)
    elif isinstance(value, str):
        assert family.label is not None
        yield _number([*labels, _attribute(family.label, value)], 1)
    else:
        yield _number(labels, value.value if isinstance(value, Gauge) else value)


def _number(attributes: list[KeyValue], value: float) -> NumberDataPoint:
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return NumberDataPoint(attributes=attributes, as_int=value)
    return NumberDataPoint(attributes=attributes, as_double=float(value))


def _attribute(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))
