"""Rows 3, 4 and 18: one fold against the same updates with metrics libraries and bounds.

`python benchmarks/folds.py 3` measures the first.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from time import process_time
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from prometheus_client import CollectorRegistry, Counter, Histogram
from standard import (
    BOUNDS,
    ROUNDS,
    Result,
    Work,
    alternate,
    check_totals,
    make_endpoints,
    make_work,
    report_ratio,
    size,
)

from trio_statskeeper import Distribution, Exponential, ExponentialDistribution, Value
from trio_statskeeper._aggregation import AggregationRules
from trio_statskeeper._rows import metrics
from trio_statskeeper._totals import Totals

TARGETS = 100
RESULTS = size(50_000, 1_000)

HOW = (
    f"{RESULTS:,} results that were made before, for {TARGETS} known targets, "
    "one after the other, in no event loop; CPU time. "
)


class Ours:
    """What the keeper does with each result."""

    def __init__(
        self,
        max_targets: int = TARGETS,
        latency: tuple[float, ...] | Exponential = BOUNDS,
    ) -> None:
        rules = AggregationRules(
            distributions={"latency": latency},
            label_names=frozenset(),
            max_map_keys=0,
            max_metrics=200,
            latency_unit=1.0,
        )
        self.totals = Totals(
            rules=rules, export_interval=10, expire_after=3600, max_unlisted=max_targets
        )

    def fold(self, results: list[Result]) -> float:
        totals = self.totals
        start = process_time()
        for result in results:
            totals.fold(result, 0.0, time.time)
        return process_time() - start

    def metrics_by_target(self, targets: list[str]) -> dict[str, Mapping[str, Value]]:
        rows = self.totals.rows.by_key
        return {target: metrics(rows[target], 0.0) for target in targets}


class PrometheusClient:
    """Children by target, as its documentation advises."""

    def __init__(self, targets: list[str]) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"labelnames": ["dst"], "registry": self.registry}
        total = Counter("total", "runs", **options)
        success = Counter("success", "runs that succeeded", **options)
        latency = Histogram("latency", "seconds", buckets=BOUNDS, **options)
        self.children = {
            target: (total.labels(target), success.labels(target), latency.labels(target))
            for target in targets
        }

    def update(self, results: list[Result]) -> float:
        children = self.children
        start = process_time()
        for result in results:
            total, success, latency = children[result.target]
            total.inc()
            success.inc()
            latency.observe(result.latency)
        return process_time() - start

    def metrics_by_target(self) -> dict[str, Mapping[str, Value]]:
        samples = {
            (sample.name, sample.labels["dst"], sample.labels.get("le")): sample.value
            for family in self.registry.collect()
            for sample in family.samples
        }
        bounds = [*map(str, BOUNDS), "+Inf"]
        totals: dict[str, Mapping[str, Value]] = {}
        for target in self.children:
            cumulative = [int(samples["latency_bucket", target, bound]) for bound in bounds]
            counts = [
                upper - lower
                for lower, upper in zip([0, *cumulative], cumulative, strict=False)
            ]
            latency_sum = samples["latency_sum", target, None]
            totals[target] = {
                "total": samples["total_total", target, None],
                "success": samples["success_total", target, None],
                "latency": Distribution(BOUNDS, counts, latency_sum),
            }
        return totals


class OpenTelemetry:
    """Attributes by target, made before."""

    def __init__(self, targets: list[str]) -> None:
        self.reader = InMemoryMetricReader()
        buckets = ExplicitBucketHistogramAggregation(BOUNDS)
        self.provider = MeterProvider(
            [self.reader], views=[View(instrument_name="latency", aggregation=buckets)]
        )
        meter = self.provider.get_meter("benchmark")
        self.total = meter.create_counter("total")
        self.success = meter.create_counter("success")
        self.latency = meter.create_histogram("latency")
        self.attributes = {target: {"dst": target} for target in targets}

    def update(self, results: list[Result]) -> float:
        attributes = self.attributes
        start = process_time()
        for result in results:
            of_target = attributes[result.target]
            self.total.add(1, of_target)
            self.success.add(1, of_target)
            self.latency.record(result.latency, of_target)
        return process_time() - start

    def metrics_by_target(self) -> dict[str, Mapping[str, Value]]:
        totals = defaultdict[str, dict[str, Value]](dict)
        data = self.reader.get_metrics_data()
        assert data is not None
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                assert point.attributes is not None
                target = str(point.attributes["dst"])
                if isinstance(point, HistogramDataPoint):
                    bounds, counts = point.explicit_bounds, point.bucket_counts
                    totals[target][metric.name] = Distribution(bounds, counts, point.sum)
                elif isinstance(point, NumberDataPoint):
                    totals[target][metric.name] = point.value
        return dict(totals)


def against_prometheus(work: Work, results: list[Result], targets: list[str]) -> None:
    ours, peer = Ours(), PrometheusClient(targets)
    seconds = alternate(lambda: ours.fold(results), lambda: peer.update(results))
    for totals in ours.metrics_by_target(targets), peer.metrics_by_target():
        check_totals(totals, work, times=ROUNDS + 1)
    report_ratio(
        "3",
        "one fold ÷ the same three updates with prometheus_client",
        f"{HOW}Its children, which it looks up by target, are cached.",
        reach=0.6,
        seconds=seconds,
        runs=RESULTS,
    )


def against_opentelemetry(work: Work, results: list[Result], targets: list[str]) -> None:
    ours, peer = Ours(), OpenTelemetry(targets)
    seconds = alternate(lambda: ours.fold(results), lambda: peer.update(results))
    for totals in ours.metrics_by_target(targets), peer.metrics_by_target():
        check_totals(totals, work, times=ROUNDS + 1)
    peer.provider.shutdown()
    report_ratio(
        "4",
        "one fold ÷ the same three updates with the OpenTelemetry SDK",
        f"{HOW}Its attributes, which it looks up by target, were made before.",
        reach=0.08,
        seconds=seconds,
        runs=RESULTS,
    )


def against_bounds(work: Work, results: list[Result], targets: list[str]) -> None:
    ours, peer = Ours(latency=Exponential()), Ours()
    seconds = alternate(lambda: ours.fold(results), lambda: peer.fold(results))
    check_totals(peer.metrics_by_target(targets), work, times=ROUNDS + 1)
    samples = defaultdict[str, list[float]](list)
    for target, latency in work * (ROUNDS + 1):
        samples[target].append(latency)
    for target, totals in ours.metrics_by_target(targets).items():
        assert totals["latency"] == ExponentialDistribution.of(samples[target])
    report_ratio(
        "18",
        "one fold with an exponential latency ÷ with 11 bounds",
        HOW,
        reach=1.4,
        seconds=seconds,
        runs=RESULTS,
    )


def main() -> None:
    endpoints = make_endpoints(TARGETS)
    work = make_work(endpoints, RESULTS)
    results = [Result(target, latency) for target, latency in work]
    targets = [endpoint.key for endpoint in endpoints]
    against = {
        "3": against_prometheus,
        "4": against_opentelemetry,
        "18": against_bounds,
    }
    against[sys.argv[1]](work, results, targets)


if __name__ == "__main__":
    main()
