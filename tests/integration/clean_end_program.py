"""A program with three outputs, which prints at its end what it has counted."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial

import trio

from trio_statskeeper import Endpoint, Prober, StatsKeeper, open_keeper, open_outputs
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

endpoints = [Endpoint(name) for name in ("a", "b", "c")]


async def probe(endpoint: Endpoint) -> None:
    await trio.sleep(0.003)


async def cancel_when_terminated(  # noqa: ASYNC114
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def main(collector: str, path: str, *, until_terminated: bool) -> None:
    # A shorter timeout would make runs inconclusive on a slow machine.
    prober = Prober(probe, lambda: endpoints, interval=0.02, timeout=10)
    keeper = StatsKeeper("sleep", "clean-end", lambda: endpoints, export_interval=0.3)
    prometheus = PrometheusExporter(0)
    try:
        async with (
            open_outputs(
                prometheus.run,
                OTLPExporter(collector).run,
                partial(write_lines, path=path, json=True),
            ) as exports,
            open_keeper(keeper, exports) as results,
        ):
            if until_terminated:
                async with trio.open_nursery() as nursery:
                    await nursery.start(cancel_when_terminated, nursery.cancel_scope)
                    nursery.start_soon(prober.run, results)
            else:
                await prober.run(results)
    finally:
        totals = {
            sample.labels["dst"]: sample.value
            for metric in prometheus.collect()
            for sample in metric.samples
            if sample.name == "probe_total"
        }
        sent = prober.statistics().results_sent
        sys.stdout.write(json.dumps({"prometheus": totals, "sent": sent}))


if __name__ == "__main__":
    _, collector, path, signame = sys.argv
    trio.run(partial(main, collector, path, until_terminated=signame == "SIGTERM"))
