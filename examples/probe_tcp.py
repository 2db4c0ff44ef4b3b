"""Connect to TCP ports, and print live statistics as cloudprober lines.

Latency covers name lookup and connection. The lag of the program's own event loop adds to
it: see `loop_lag` (`--prometheus`, `--otlp`). Without arguments it probes loopback: a
healthy port and a closed one. Press Ctrl-C to stop.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import servers
import shared
import trio

from trio_statskeeper import Endpoint, Prober, StatsKeeper, open_keeper


async def probe(endpoint: Endpoint) -> None:
    """Connect to the endpoint once."""
    stream = await trio.open_tcp_stream(endpoint.name, endpoint.port or 0)
    await stream.aclose()


async def main(args: argparse.Namespace) -> int:
    async with (
        nullcontext(args.targets) if args.targets else servers.tcp_server() as targets
    ):
        keeper = StatsKeeper(
            "tcp", "example", targets, export_interval=args.export_interval
        )
        prober = Prober(probe, keeper, interval=args.interval, timeout=args.timeout)
        async with (
            shared.open_outputs(args, [keeper, prober]) as exports,
            open_keeper(keeper, exports) as results,
        ):
            await (prober.run_once if args.once else prober.run)(results)
    return shared.status(args, keeper)


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "HOST:PORT", shared.host_and_port).parse_args())
