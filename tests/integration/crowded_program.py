"""Probe a TCP port every 10 ms, with few descriptors, and serve Prometheus the results.

python crowded_program.py PORT
"""

from __future__ import annotations

import resource
import sys

import trio

from trio_statskeeper import Endpoint, Prober, StatsKeeper, open_keeper, open_outputs
from trio_statskeeper.prometheus import PrometheusExporter

TARGETS = [Endpoint(f"target-{number}") for number in range(8)]


async def main(port: int) -> None:
    async def probe(_: Endpoint) -> None:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()

    prober = Prober(probe, TARGETS, interval=0.01, timeout=10)
    keeper = StatsKeeper("tcp", "crowded", TARGETS, export_interval=0.1)
    prometheus = PrometheusExporter(0)
    async with (
        open_outputs(prometheus.run) as exports,
        open_keeper(keeper, exports) as results,
    ):
        print(prometheus.address[1], flush=True)  # noqa: T201
        await prober.run(results)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
    trio.run(main, int(sys.argv[1]))
