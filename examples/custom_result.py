"""Feed keepers with results of your own: of TCP ports, and of the disk's free space.

It shows what to do without a `Prober`: loops of your own send a `Result` for each run. Each
kind of target has a keeper, and the keepers share the outputs. Without arguments it probes
loopback: a healthy port and a closed one. Press Ctrl-C to stop.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial

import servers
import shared
import trio

from trio_statskeeper import Endpoint, Gauge, ProbeResult, Result, StatsKeeper, open_keeper

DISK = Endpoint("/")
in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)


async def probe_disk() -> Result:
    usage = await in_thread(shutil.disk_usage, DISK.name)
    return Result(DISK, {"total": 1, "success": 1, "free-bytes": Gauge(usage.free)})


async def probe_tcp(args: argparse.Namespace, endpoint: Endpoint) -> Result:
    start = trio.current_time()
    # UnicodeError: DNS can't encode the name.
    with trio.move_on_after(args.timeout), suppress(OSError, UnicodeError):
        async with await trio.open_tcp_stream(endpoint.name, endpoint.port or 0):
            latency = trio.current_time() - start
            return Result(endpoint, {"total": 1, "success": 1, "latency": latency})
    return Result(endpoint, {"total": 1, "success": 0})


async def main(args: argparse.Namespace) -> int:
    async def repeat(
        probe: Callable[[], Awaitable[Result]], results: trio.MemorySendChannel[ProbeResult]
    ) -> None:
        start = trio.current_time()
        await results.send(await probe())
        while not args.once:
            await trio.sleep_until(start := start + args.interval)
            await results.send(await probe())

    keeper = partial(StatsKeeper, name="example", export_interval=args.export_interval)
    async with nullcontext(args.targets) if args.targets else servers.tcp_server() as ports:
        tcp, disk = keeper("tcp", targets=ports), keeper("disk", targets=[DISK])
        async with (
            shared.open_outputs(args, [tcp, disk]) as exports,
            open_keeper(tcp, exports) as tcp_results,
            open_keeper(disk, exports) as disk_results,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(repeat, probe_disk, disk_results)
            for port in ports:
                nursery.start_soon(repeat, partial(probe_tcp, args, port), tcp_results)
    return shared.status(args, tcp)


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "HOST:PORT", shared.host_and_port).parse_args())
