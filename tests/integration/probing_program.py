"""Probe what targets.json lists, until killed, and serve Prometheus what it adds up to.

    python probing_program.py PORT NAME INTERVAL [created]

The list stands in the working directory, `{target: {"url": ..., "note": ...}}`, and may
change at any time; exports.jsonl, beside it, gets all exports. What a target answers are
metrics that it reports of itself: a second keeper, with latencies in milliseconds, adds
them up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import attrs
import httpx2
import trio

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    Map,
    Prober,
    ProbeResult,
    StatsKeeper,
    Value,
    exponential_bounds,
    fan_out,
)
from trio_statskeeper.lines import from_json, write_lines
from trio_statskeeper.prometheus import PrometheusExporter

# Milliseconds.
REPORTED_BOUNDS = (1, 2, 5, 10)


@attrs.frozen
class Report:
    target: str
    reported: Mapping[str, Value]

    def metrics(self) -> Mapping[str, Value]:
        return self.reported


def targets() -> list[Endpoint]:
    listed = json.loads(Path("targets.json").read_text())
    return [Endpoint(target, labels=labels) for target, labels in listed.items()]


async def probe(
    client: httpx2.AsyncClient,
    reports: trio.MemorySendChannel[ProbeResult],
    endpoint: Endpoint,
) -> Mapping[str, Value]:
    response = await client.get(endpoint.labels["url"])
    await reports.send(Report(endpoint.key, from_json(response.text).metrics))
    return {"resp-code": Map("code", {str(response.status_code): 1})}


async def main(port: int, name: str, interval: float, *, created: bool) -> None:
    results_send, results_receive = trio.open_memory_channel[ProbeResult](100)
    reports_send, reports_receive = trio.open_memory_channel[ProbeResult](100)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](0)
    make_keeper = partial(
        StatsKeeper,
        name=name,
        targets=targets,
        export_interval=0.25,
        additional_labels={"note": "@target.label.note@"},
    )
    bounds = exponential_bounds(base=4, scale_factor=0.001, num_buckets=7)
    probed = make_keeper("http", distributions={"latency": bounds})
    reported = make_keeper(
        "reported", distributions={"latency": REPORTED_BOUNDS}, latency_unit=0.001
    )
    async with (
        httpx2.AsyncClient(timeout=None, trust_env=False) as client,
        trio.open_nursery() as nursery,
    ):
        prober = Prober(
            partial(probe, client, reports_send),
            targets,
            interval=interval,
            timeout=30,
            name=name,
        )
        prometheus = PrometheusExporter(
            port, statistics_of=[probed, reported, prober], created=created
        )
        to_file = partial(write_lines, path="exports.jsonl", json=True)
        await nursery.start(fan_out, exports_receive, prometheus.run, to_file)
        nursery.start_soon(probed.run, results_receive, exports_send.clone())
        nursery.start_soon(reported.run, reports_receive, exports_send)
        nursery.start_soon(prober.run, results_send)


if __name__ == "__main__":
    _, port, name, interval, *options = sys.argv
    trio.run(partial(main, int(port), name, float(interval), created="created" in options))
