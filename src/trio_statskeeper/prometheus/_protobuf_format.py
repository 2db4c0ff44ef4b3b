"""Prometheus' protobuf format, the only one that has native histograms.

https://prometheus.io/docs/instrumenting/exposition_formats/#protobuf-format
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import sub
from typing import Any, final

import attrs

from trio_statskeeper._distribution import Distribution
from trio_statskeeper._exponential import ExponentialDistribution
from trio_statskeeper._exponential_buckets import Range
from trio_statskeeper._naming import Family
from trio_statskeeper._values import Value

from ._client_model import COUNTER, GAUGE, HISTOGRAM, Metric, MetricFamily
from ._exposition import SUFFIX_AND_TYPE, Part
from ._samples import classic, samples

_TYPES = {"counter": COUNTER, "gauge": GAUGE, "histogram": HISTOGRAM}

# "Currently, valid numbers are -4 <= n <= 8", says the definition of the field "schema":
# https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto
_MIN_SCHEMA, _MAX_SCHEMA = -4, 8

# A distribution may have larger counts than the fields hold.
_MAX_UINT64, _MAX_INT64 = 2**64 - 1, 2**63 - 1

# The end of the year 9999, up to which protobuf's timestamps go.
_MAX_TIMESTAMP = 253_402_300_800

# The tag of the field "metric" of "MetricFamily": its number, and that its length follows.
# https://protobuf.dev/programming-guides/encoding/#structure
_METRIC_TAG = bytes([4 << 3 | 2])


@final
@attrs.frozen(eq=False)  # so it hashes fast
class ProtobufFormat:
    """The protobuf format.

    A scrape is a sequence of families, each preceded by its length. A block is a field of
    a family: protobuf's messages can be joined from their serialized fields.
    """

    buckets_per_power: int
    """Classic buckets of an exponential distribution per power of two."""

    content_type = (
        b"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; "
        b"encoding=delimited"
    )

    def parts(self, family: Family) -> list[Part]:
        return [(family, False)]

    def blocks(
        self,
        metrics: Iterable[tuple[Family, Value]],
        labels: Mapping[str, str],
        start_timestamp: float,
    ) -> list[bytes]:
        in_common = Metric()
        for name, text in labels.items():
            in_common.label.add(name=name, value=text)
        prefix = in_common.SerializeToString()
        return [
            b"".join(
                _METRIC_TAG + _delimited(prefix + metric.SerializeToString())
                for metric in self._metrics(family, value, start_timestamp)
            )
            for family, value in metrics
        ]

    def join(
        self, part: Part, columns: deque[tuple[bytes, ...]]
    ) -> Iterator[Sequence[bytes]]:
        family, _ = part
        suffix, kind = SUFFIX_AND_TYPE[family.kind]
        name = family.name + suffix
        message = MetricFamily(name=name, help=family.help, type=_TYPES[kind])
        heading = message.SerializeToString()
        size = 0
        for column in columns:
            size += sum(map(len, column))
            yield ()
        if size:  # a map may be empty
            yield [_varint(len(heading) + size) + heading]
            while columns:
                yield columns.popleft()

    def _metrics(self, family: Family, value: Value, start: float) -> Iterator[Any]:
        """Yield the messages of a target's value, without the labels of the target."""
        shown = classic(family, value, self.buckets_per_power)
        if isinstance(shown, Distribution):
            metric = Metric()
            _set_created(metric.histogram, start)
            if isinstance(value, ExponentialDistribution):
                _set_native(metric.histogram, value)
            _set_classic(metric.histogram, shown)
            yield metric
            return
        for _, text, number in samples(shown):
            metric = Metric()
            if text is not None:
                metric.label.add(name=family.label or "", value=text)
            if family.kind == "counter":
                metric.counter.value = number
                _set_created(metric.counter, start)
            else:
                metric.gauge.value = number
            yield metric


def _set_created(message: Any, start: float) -> None:
    if 0 <= start < _MAX_TIMESTAMP:
        message.created_timestamp.FromMicroseconds(round(start * 1e6))


def _set_classic(histogram: Any, value: Distribution) -> None:
    histogram.sample_count = min(value.count, _MAX_UINT64)
    histogram.sample_sum = value.sum
    for bound, count in zip(value.bounds, accumulate(value.bucket_counts), strict=False):
        bucket = histogram.bucket.add()
        bucket.upper_bound = bound
        bucket.cumulative_count = min(count, _MAX_UINT64)


def _set_native(histogram: Any, value: ExponentialDistribution) -> None:
    # Capped counts would not add up, as Prometheus demands.
    if value.scale < _MIN_SCHEMA or value.count > _MAX_INT64:
        return
    histogram.schema = min(value.scale, _MAX_SCHEMA)
    histogram.zero_threshold = 0
    histogram.zero_count = value.zero_count
    # Without any span, it would be a classic histogram.
    offset, deltas = _span(value.scale, value.positive_offset, value.positive_counts)
    histogram.positive_span.add(offset=offset, length=len(deltas))
    histogram.positive_delta.extend(deltas)
    if value.negative_counts:
        offset, deltas = _span(value.scale, value.negative_offset, value.negative_counts)
        histogram.negative_span.add(offset=offset, length=len(deltas))
        histogram.negative_delta.extend(deltas)


def _span(scale: int, offset: int, counts: tuple[int, ...]) -> tuple[int, list[int]]:
    """Return the offset of buckets, and the difference of each count to the one before."""
    if not counts:
        return 0, []
    buckets = Range(offset, [*counts])
    if scale > _MAX_SCHEMA:
        buckets.coarsen(scale - _MAX_SCHEMA)
    within = buckets.counts
    # Prometheus numbers buckets by their upper bounds, OpenTelemetry by their lower ones.
    return buckets.offset + 1, [within[0], *map(sub, within[1:], within)]


def _delimited(message: bytes) -> bytes:
    return _varint(len(message)) + message


def _varint(number: int) -> bytes:
    """Return an integer in protobuf's encoding.

    https://protobuf.dev/programming-guides/encoding/#varints
    """
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
