"""Latencies without chosen bounds, as Prometheus and VictoriaMetrics show them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import trio
from helpers import Result
from real_servers import Prometheus, Sample, free_port

from trio_statskeeper import Endpoint, StatsKeeper, open_keeper, open_outputs
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

LATENCY = 'probe_latency_seconds{dst="a"}'
QUANTILES = [0.05, 0.5, 0.9, 0.99]


def true_quantile(samples: Sequence[float], q: float) -> float:
    return sorted(samples)[math.ceil(q * len(samples)) - 1]


def error_of(samples: Sequence[float], max_buckets: int = 160) -> float:
    """Return by which ratio a bucket is wide that is as fine as the samples permit."""
    octaves = math.log2(max(samples) / min(samples))
    scale = min(8, math.floor(math.log2((max_buckets - 1) / octaves)))
    return 2 ** (2**-scale)


@pytest.fixture
def two_releases(prometheus_programs, newer_prometheus, tmp_path_factory):
    port = free_port()
    servers = [
        Prometheus(
            program,
            tmp_path_factory.mktemp("prometheus"),
            [f"127.0.0.1:{port}"],
            "500ms",
            features="native-histograms",
        )
        for program in (prometheus_programs[0], newer_prometheus)
    ]
    with servers[0], servers[1]:
        yield port, servers


async def wait_for(server: Prometheus, expr: str, value: float) -> None:
    def is_value(found: list[Sample]) -> bool:
        return [sample.value for sample in found] == [value]

    await trio.to_thread.run_sync(server.wait_for, expr, is_value)


async def check_quantiles(
    servers: Sequence[Prometheus], histogram: str, samples: Sequence[float]
) -> None:
    error = error_of(samples)
    assert error < 1.1
    for server in servers:
        for q in QUANTILES:
            [found] = server.query(f"histogram_quantile({q}, {histogram})")
            true = true_quantile(samples, q)
            assert true / error <= found.value <= true * error, (q, found.value, true)


async def test_quantiles_are_right_through_changes_of_scale_restarts_and_resets(
    two_releases,
):
    port, servers = two_releases
    rng = random.Random(1)  # noqa: S311  # it need not be secure
    narrow = [0.05 * rng.lognormvariate(0, 0.3) for _ in range(10_000)]
    wide = [0.05 * rng.lognormvariate(0, 1) for _ in range(1_000)]
    other = [0.2 * rng.lognormvariate(0, 0.1) for _ in range(10_000)]

    def keeper() -> StatsKeeper:
        return StatsKeeper("http", "x", [Endpoint("a")], export_interval=0.2)

    async with (
        open_outputs(PrometheusExporter(port).run) as exports,
        open_keeper(keeper(), exports) as results,
    ):
        for sample in narrow:
            await results.send(Result("a", {"latency": sample}))
        for server in servers:
            await wait_for(server, f"histogram_count({LATENCY})", 10_000)
        await check_quantiles(servers, LATENCY, narrow)
        # The scale becomes coarser.
        for sample in wide:
            await results.send(Result("a", {"latency": sample}))
        for server in servers:
            await wait_for(server, f"histogram_count({LATENCY})", 11_000)
        await check_quantiles(servers, LATENCY, narrow + wide)
        # The server restarts.
        for server in servers:
            await trio.to_thread.run_sync(server.stop)
            await trio.to_thread.run_sync(server.start)
            await wait_for(server, f"histogram_count({LATENCY})", 11_000)
        await check_quantiles(servers, LATENCY, narrow + wide)
    # The program restarts, and counts from zero.
    async with (
        open_outputs(PrometheusExporter(port).run) as exports,
        open_keeper(keeper(), exports) as results,
    ):
        for sample in other:
            await results.send(Result("a", {"latency": sample}))
        for server in servers:
            await wait_for(server, f"histogram_count({LATENCY})", 10_000)
        await check_quantiles(servers, LATENCY, other)
        # To a rate, the totals have been reset, and all of them are new.
        for server in servers:
            [total] = server.query(f"histogram_count(increase({LATENCY}[1m]))")
            assert total.value > 10_000
            [sum_] = server.query(f"histogram_sum({LATENCY})")
            assert sum_.value == pytest.approx(sum(other))


async def test_victoria_metrics_has_the_quantiles_of_what_it_got_by_otlp(victoria_metrics):
    rng = random.Random(2)  # noqa: S311  # it need not be secure
    latencies = [0.05 * rng.lognormvariate(0, 0.3) for _ in range(10_000)]
    # Only the last totals are exported.
    keeper = StatsKeeper("http", "quantiles", [Endpoint("a")], export_interval=3600)
    async with (
        open_outputs(OTLPExporter(victoria_metrics.endpoint).run) as exports,
        open_keeper(keeper, exports) as results,
    ):
        for latency in latencies:
            await results.send(Result("a", {"latency": latency}))
    labels, wait_for = '{probe="quantiles"}', victoria_metrics.wait_for_value
    for expr, value in (
        (f"sum(probe_latency_seconds_bucket{labels})", 10_000),
        (f"probe_latency_seconds_count{labels}", 10_000),
        (f"round(probe_latency_seconds_sum{labels}, 0.001)", round(sum(latencies), 3)),
    ):
        await trio.to_thread.run_sync(wait_for, expr, value)
    # It rounds bounds to four digits.
    error = error_of(latencies) * 1.001
    buckets = f"sum by (vmrange) (probe_latency_seconds_bucket{labels})"
    for q in QUANTILES:
        [found] = victoria_metrics.query(f"histogram_quantile({q}, {buckets})")
        true = true_quantile(latencies, q)
        assert true / error <= found.value <= true * error, (q, found.value, true)
