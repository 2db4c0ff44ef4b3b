"""What type checkers make of the public API; they read it, nothing runs it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import assert_type

import attrs
import trio
from prometheus_client import CollectorRegistry

import trio_statskeeper as ts
from trio_statskeeper import lines, testing
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter, hash_password
from trio_statskeeper.status import StatusPage


@attrs.frozen
class Frozen:
    """A result whose target can't be set, which is as good."""

    target: str

    def metrics(self) -> dict[str, ts.Value]:
        return {"total": 1, "ok": True, "ratio": 0.5, "version": "v1"}


class Mutable:
    def __init__(self) -> None:
        self.target = "a"

    def metrics(self) -> Mapping[str, int]:
        return {"total": 1}


class NoTarget:
    def metrics(self) -> Mapping[str, ts.Value]:
        return {}


endpoint = ts.Endpoint("a", port=80, labels=MappingProxyType({"zone": "z"}))
result = ts.Result("a", {"total": 1, "ok": True, "code": ts.Map("code", {"200": 1})})
assert_type(result.target, str)
assert_type(result.metrics(), Mapping[str, ts.Value])
ts.Result(5, {})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ts.Result("a", {"total": None})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
results: list[ts.ProbeResult] = [
    Frozen("a"),
    Mutable(),
    result,
    ts.Result(target=endpoint, metrics={"total": 1}),
]
no_result: ts.ProbeResult = NoTarget()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

values: list[ts.Value] = [1, 1.5, True, "text", ts.Gauge(1), ts.Map("code", {"200": 1})]
no_value: ts.Value = [1]  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

assert_type(ts.Gauge(1).value, int | float)
assert_type(ts.Map("code", {"200": 1}).values, Mapping[str, int | float])
distribution = ts.Distribution.of([1, 2.5], bounds=(1, 2))
assert_type(distribution, ts.Distribution)
assert_type(ts.Distribution([1, 2], [0, 1, 0], 1.5), ts.Distribution)
assert_type(distribution.bounds, tuple[float, ...])
assert_type(distribution.bucket_counts, tuple[int, ...])
assert_type(distribution.sum, float)
assert_type(distribution.count, int)
assert_type(distribution.quantile(0.5), float)
assert_type(distribution.subtract(distribution), ts.Distribution)
distribution.subtract([])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
exponential = ts.ExponentialDistribution.of([1, 2.5], max_buckets=20)
assert_type(exponential, ts.ExponentialDistribution)
assert_type(exponential.positive_counts, tuple[int, ...])
assert_type(exponential.min, float | None)
assert_type(exponential.quantile(0.5), float)
assert_type(exponential.merge(exponential, 20), ts.ExponentialDistribution)
assert_type(exponential.subtract(exponential), ts.ExponentialDistribution)
assert_type(exponential.classic(4), ts.Distribution)
ts.ExponentialDistribution(3, -5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
exponential.subtract(distribution)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(ts.Exponential().max_buckets, int)
assert_type(ts.exponential_bounds(2, 0.001, 10), tuple[float, ...])
assert_type(ts.parse_value("1"), ts.Value)

event_metrics = ts.EventMetrics(1, 0, {"dst": "a"}, {"total": 1})
assert_type(event_metrics.labels, Mapping[str, str])
assert_type(event_metrics.metrics, Mapping[str, ts.Value])
assert_type(ts.EventMetrics.parse("1 labels=", latency_unit=0.001), ts.EventMetrics)
event_metrics.timestamp = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

assert_type(endpoint.key, str)
assert_type(endpoint.port, int | None)
ts.Endpoint("a", "80")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def rack_of(endpoint: ts.Endpoint) -> str:
    return endpoint.name


keeper = ts.StatsKeeper(
    ptype="http",
    name="homepage",
    targets=lambda: [endpoint],
    export_interval=10,
    latency_unit=1,
    distributions={"latency": (1, 2), "size": [10.0, 20], "delay": ts.Exponential(20)},
    additional_labels={"env": "prod", "zone": "@target.label.zone@", "rack": rack_of},
    expire_after=None,
    max_unlisted=10_000,
    max_map_keys=1_000,
    max_metrics=200,
    flush_timeout=0,
)
label: ts.Label = rack_of
labels: dict[str, ts.Label] = {"env": "prod", "rack": label}
from_sequence = ts.StatsKeeper("http", "homepage", [endpoint], additional_labels=labels)
assert_type(from_sequence.targets, Callable[[], Iterable[ts.Endpoint]])
ts.StatsKeeper("http", "homepage", ["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
ts.StatsKeeper("http", "homepage", lambda: {"a"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(keeper.statistics(), ts.KeeperStatistics)
assert_type(keeper.statistics().results_rejected, Mapping[str, int])
assert_type(keeper.snapshot(), tuple[ts.EventMetrics, ...])
assert_type(keeper.snapshot(["a"]), tuple[ts.EventMetrics, ...])


async def connect(endpoint: ts.Endpoint) -> None:
    pass


async def probe_with_metrics(endpoint: ts.Endpoint) -> dict[str, ts.Value]:
    return {"size": 5}


def not_async(endpoint: ts.Endpoint) -> None:
    pass


probes: list[ts.Probe] = [connect, probe_with_metrics]
no_probe: ts.Probe = not_async  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
reason: ts.Reason = "map-keys"
no_reason: ts.Reason = "bad"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
prober = ts.Prober(connect, keeper.targets, interval=5, timeout=2)
ts.Prober(probe_with_metrics, lambda: [endpoint], interval=5, timeout=2, max_concurrent=9)
ts.Prober(not_async, lambda: [endpoint], interval=5, timeout=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ts.Prober(connect, lambda: [endpoint], 5, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
assert_type(prober.statistics(), ts.ProberStatistics)
of_keeper = ts.Prober(connect, keeper, interval=5, timeout=2)
assert_type(of_keeper.keeper, ts.StatsKeeper | None)
assert_type(of_keeper.targets, Callable[[], Iterable[ts.Endpoint]])
assert_type(of_keeper.name, str)
assert_type(of_keeper.clock, Callable[[], float])


def interval_of(endpoint: ts.Endpoint) -> int:
    return int(endpoint.labels["interval"])


ts.Prober(connect, [endpoint], interval=interval_of, timeout=lambda _: 0.5)
ts.Prober(connect, ("a",), interval=5, timeout=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ts.Prober(connect, [endpoint], interval=lambda: 5, timeout=2)  # type: ignore[misc, arg-type]  # pyright: ignore[reportArgumentType]
a_probe: ts.Probe = connect


full = ts.ProbeFailed("full", metrics={"resp-code": ts.Map("code", {"503": 1})})
assert_type(full.reason, str)
assert_type(ts.Inconclusive("no route").metrics, Mapping[str, ts.Value])
ts.ProbeFailed(503)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ts.Inconclusive("no route", {"size": 1})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def run(nursery: trio.Nursery) -> None:
    results_send, results_receive = trio.open_memory_channel[ts.ProbeResult](10)
    exports_send, exports_receive = trio.open_memory_channel[ts.EventMetrics](10)
    nursery.start_soon(keeper.run, results_receive, exports_send)
    nursery.start_soon(prober.run, results_send)
    nursery.start_soon(prober.run_once, results_send)
    await nursery.start(prober.run, results_send)
    nursery.start_soon(keeper.run, exports_receive, exports_send)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await nursery.start(keeper.run, results_receive, exports_send)
    nursery.start_soon(partial(keeper.run, results_receive, exports_send))
    await results_send.send(Frozen("a"))
    # A channel of the user's own results can be read from as it is.
    _, frozen_receive = trio.open_memory_channel[Frozen](10)
    assert_type(await keeper.run(frozen_receive, exports_send), None)


assert_type(testing.by_metric(keeper.snapshot()), dict[str, dict[str, list[ts.Value]]])
testing.Succeed({"size": [1]})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
testing.Fail(OSError)
testing.Fail("refused")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
script: list[testing.Step] = [
    testing.Succeed({"size": 1}, after=1),
    testing.Fail(ts.ProbeFailed("full")),
    testing.Hang(),
]
probe = testing.ScriptedProbe(script)
assert_type(probe.script, tuple[testing.Step, ...])
assert_type(probe.calls, list[tuple[float, str]])
testing.ScriptedProbe([testing.Hang])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def use_helpers(exports: trio.MemoryReceiveChannel[ts.EventMetrics]) -> None:
    received = await testing.receive_exports(exports, 2, timeout=1)
    assert_type(received, list[ts.EventMetrics])
    assert_type(await probe(endpoint), Mapping[str, ts.Value] | None)


async def summarize(exports: trio.MemoryReceiveChannel[ts.EventMetrics]) -> int:
    return len([export async for export in exports])


async def use_outputs(
    nursery: trio.Nursery, exports: trio.MemoryReceiveChannel[ts.EventMetrics]
) -> None:
    nursery.start_soon(lines.write_lines, exports)
    nursery.start_soon(partial(lines.write_lines, exports, Path("file"), json=True))
    prometheus = PrometheusExporter(9464, statistics_of=[keeper, prober], created=True)
    nursery.start_soon(prometheus.run, exports)
    assert_type(prometheus.address, tuple[str, int] | None)
    CollectorRegistry().register(prometheus)
    page = StatusPage(8080, history=60)
    PrometheusExporter(9464, status=page)
    assert_type(page.address, tuple[str, int] | None)
    PrometheusExporter(status="page")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PrometheusExporter(9464, "::", max_connections=9, max_scrapes=2)
    PrometheusExporter(9464, ["::1", "127.0.0.1"], users={"a": hash_password("b")})
    PrometheusExporter(9464, ssl_context=ssl.create_default_context())
    PrometheusExporter(users="a:b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PrometheusExporter(statistics_of=["keeper"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    otlp = OTLPExporter(
        "http://localhost:4318", statistics_of=(prober,), headers={"a": "b"}
    )
    nursery.start_soon(otlp.run, exports)
    await nursery.start(otlp.run, exports)
    to_file: ts.Output = partial(lines.write_lines, path="file")
    nursery.start_soon(ts.fan_out, exports, to_file, prometheus.run, otlp.run, summarize)
    await ts.fan_out(exports, exports)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with (
        ts.open_outputs(to_file, prometheus.run, summarize, grace=1) as to_outputs,
        ts.open_keeper(keeper, to_outputs) as results,
    ):
        assert_type(to_outputs, trio.MemorySendChannel[ts.EventMetrics])
        assert_type(results, trio.MemorySendChannel[ts.ProbeResult])
        await prober.run(results)
    ts.open_outputs(prober.run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ts.fan_out(exports, prober.run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    OTLPExporter("http://localhost:4318", compression="zip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


assert_type(lines.from_json(lines.to_json(keeper.snapshot()[0])), ts.EventMetrics)
