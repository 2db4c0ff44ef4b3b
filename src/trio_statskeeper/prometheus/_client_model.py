"""Prometheus' messages of protobuf.

The package that defines them has no Python code, so the fields in use are defined here:

    https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto
"""

from __future__ import annotations

from typing import Any, TypeAlias

from google.protobuf import timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_Field = FieldDescriptorProto
# A field's number, its type, and whether it is repeated. A string is a message's name.
_Type: TypeAlias = "tuple[int, FieldDescriptorProto.Type.ValueType | str, bool]"

_PACKAGE = "io.prometheus.client"
_TIMESTAMP = "google.protobuf.Timestamp"

_MESSAGES: dict[str, dict[str, _Type]] = {
    "LabelPair": {
        "name": (1, _Field.TYPE_STRING, False),
        "value": (2, _Field.TYPE_STRING, False),
    },
    "Gauge": {"value": (1, _Field.TYPE_DOUBLE, False)},
    "Counter": {
        "value": (1, _Field.TYPE_DOUBLE, False),
        "created_timestamp": (3, _TIMESTAMP, False),
    },
    "Bucket": {
        "cumulative_count": (1, _Field.TYPE_UINT64, False),
        "upper_bound": (2, _Field.TYPE_DOUBLE, False),
    },
    "BucketSpan": {
        "offset": (1, _Field.TYPE_SINT32, False),
        "length": (2, _Field.TYPE_UINT32, False),
    },
    "Histogram": {
        "sample_count": (1, _Field.TYPE_UINT64, False),
        "sample_sum": (2, _Field.TYPE_DOUBLE, False),
        "bucket": (3, "Bucket", True),
        "schema": (5, _Field.TYPE_SINT32, False),
        "zero_threshold": (6, _Field.TYPE_DOUBLE, False),
        "zero_count": (7, _Field.TYPE_UINT64, False),
        "negative_span": (9, "BucketSpan", True),
        "negative_delta": (10, _Field.TYPE_SINT64, True),
        "positive_span": (12, "BucketSpan", True),
        "positive_delta": (13, _Field.TYPE_SINT64, True),
        "created_timestamp": (15, _TIMESTAMP, False),
    },
    "Metric": {
        "label": (1, "LabelPair", True),
        "gauge": (2, "Gauge", False),
        "counter": (3, "Counter", False),
        "histogram": (7, "Histogram", False),
    },
    "MetricFamily": {
        "name": (1, _Field.TYPE_STRING, False),
        "help": (2, _Field.TYPE_STRING, False),
        "type": (3, _Field.TYPE_INT32, False),  # an enum's number
        "metric": (4, "Metric", True),
    },
}

# MetricType
COUNTER, GAUGE, HISTOGRAM = 0, 1, 4


def _define() -> dict[str, Any]:
    file = FileDescriptorProto(
        name="io/prometheus/client/metrics.proto",
        package=_PACKAGE,
        syntax="proto2",
        dependency=[timestamp_pb2.DESCRIPTOR.name],
    )
    for message, fields in _MESSAGES.items():
        defined = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            field = defined.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type = _Field.TYPE_MESSAGE
                field.type_name = kind if "." in kind else f"{_PACKAGE}.{kind}"
                field.type_name = f".{field.type_name}"
            else:
                field.type = kind
    # Not the default pool: another package may have defined the same messages there.
    pool = DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_messages = _define()
Histogram: Any = _messages["Histogram"]
Metric: Any = _messages["Metric"]
MetricFamily: Any = _messages["MetricFamily"]
