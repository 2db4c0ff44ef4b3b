"""What cloudprober v0.11.1 exported in the same runs, played on the mock clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from helpers import Result, make_keeper, running

from trio_statskeeper import Distribution, Endpoint, Gauge, Map, Value

VECTORS = json.loads((Path(__file__).parent / "data/go-v0.11.1.json").read_text())


def value_of(described: dict, kind: str) -> Value:
    match described:
        case {"int": number}:
            return Gauge(number) if kind == "gauge" else number
        case {"map": {"name": name, "values": values}}:
            return Map(name, values)
        case {"dist": {"samples": samples, "bounds": bounds}}:
            return Distribution.of(samples, bounds)
    raise AssertionError(described)


@pytest.mark.parametrize("run", VECTORS["runs"], ids=lambda run: run["kind"])
async def test_a_run_exports_what_the_original_exported(autojump_clock, run):
    listed: list[Endpoint] = []
    keeper = make_keeper(
        lambda: listed,
        distributions={},
        additional_labels={
            label["key"]: label["value"] for label in run["additional_labels"]
        },
    )
    async with running(keeper) as running_keeper:
        await trio.sleep(0.5)
        for tick in run["ticks"]:
            for result in tick["results"]:
                deltas = {
                    metric["name"]: value_of(metric["value"], run["kind"])
                    for metric in result["metrics"]
                }
                running_keeper.send(Result(result["target"], deltas))
            listed = [
                Endpoint(target["name"], labels=target["labels"])
                for target in tick["targets"]
            ]
            await trio.sleep(1)
            # The original does not export a target once more when it has left the list.
            exports = [
                export
                for export in running_keeper.received()
                if export.labels["dst"] in {endpoint.key for endpoint in listed}
            ]
            assert [list(export.labels.items()) for export in exports] == [
                [(label["name"], label["value"]) for label in exported["labels"]]
                for exported in tick["exported"]
            ]
            assert [
                [(name, str(value)) for name, value in export.metrics.items()]
                for export in exports
            ] == [
                [(metric["name"], metric["string"]) for metric in exported["metrics"]]
                for exported in tick["exported"]
            ]
