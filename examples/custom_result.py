"""Feed keepers with results of your own: of TCP ports, and of the free space of the disk.

It shows what there is to do without a `Prober`: each kind of probe has a class of results
and a keeper. Without arguments it connects to loopback: to a port that is well, and to one
on which nobody listens. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial

import attrs
import servers
import shared
import trio

from trio_statskeeper import Endpoint, EventMetrics, Gauge, ProbeResult, StatsKeeper, Value

DISK = Endpoint("/")


@attrs.frozen
class TcpResult:
    target: str
    latency: float | None = None  # None: the connection failed

    def metrics(self) -> Mapping[str, Value]:
        if self.latency is None:
            return {"total": 1, "success": 0}
        return {"total": 1, "success": 1, "latency": self.latency}


@attrs.frozen
class DiskResult:
    target: str
    free: int

    def metrics(self) -> Mapping[str, Value]:
        return {"total": 1, "free-bytes": Gauge(self.free)}


async def probe_tcp(endpoint: Endpoint, args: argparse.Namespace) -> TcpResult:
    start = trio.current_time()
    # UnicodeError: a name that DNS can't write.
    with trio.move_on_after(args.timeout), suppress(OSError, UnicodeError):
        async with await trio.open_tcp_stream(endpoint.name, endpoint.port or 0):
            return TcpResult(endpoint.key, trio.current_time() - start)
    return TcpResult(endpoint.key)


async def probe_disk(endpoint: Endpoint) -> DiskResult:
    # In a thread, for a disk may be slow.
    look = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
    return DiskResult(endpoint.key, (await look(shutil.disk_usage, endpoint.name)).free)


async def repeat(
    probe: Callable[[], Awaitable[ProbeResult]],
    interval: float,
    results: trio.MemorySendChannel[ProbeResult],
) -> None:
    with results:
        while True:
            start = trio.current_time()
            await results.send(await probe())
            await trio.sleep_until(start + interval)


async def main(args: argparse.Namespace) -> None:
    tcp_send, tcp_receive = trio.open_memory_channel[ProbeResult](100)
    disk_send, disk_receive = trio.open_memory_channel[ProbeResult](100)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](0)
    async with AsyncExitStack() as stack:
        ports = args.targets or await stack.enter_async_context(servers.tcp_server())
        nursery = await stack.enter_async_context(trio.open_nursery())
        keeper = partial(StatsKeeper, name="example", export_interval=args.export_interval)
        bounds = {"latency": shared.LATENCY_BOUNDS}
        tcp = keeper("tcp", targets=lambda: ports, distributions=bounds)
        disk = keeper("disk", targets=lambda: [DISK])
        # Whoever is handed a channel closes it: who shares one gets a clone.
        nursery.start_soon(tcp.run, tcp_receive, exports_send.clone())
        nursery.start_soon(disk.run, disk_receive, exports_send)
        nursery.start_soon(shared.export, args, exports_receive, [tcp, disk])
        async with trio.open_nursery() as probes:
            with tcp_send:  # the clones stay open
                for port in ports:
                    probe = partial(probe_tcp, port, args)
                    probes.start_soon(repeat, probe, args.interval, tcp_send.clone())
            probes.start_soon(repeat, partial(probe_disk, DISK), args.interval, disk_send)
            await shared.wait_for_the_end(args)
            # That closes all senders, upon which the keepers export once more.
            probes.cancel_scope.cancel()


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "HOST:PORT", shared.host_and_port).parse_args())
