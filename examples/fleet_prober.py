"""One prober of a fleet, a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterable
from functools import partial
from hashlib import blake2b
from typing import TypeVar

import trio
import urls
from fleet_processes import say
from probe_http import probe

from trio_statskeeper import Prober, StatsKeeper, open_keeper, open_outputs
from trio_statskeeper.prometheus import PrometheusExporter

Member = TypeVar("Member", int, str)


def owner(key: str, members: Iterable[Member]) -> Member:
    """Return the member whose hash with the key is the highest: rendezvous hashing.

    A member that comes or goes moves only its own share, and the members have to agree on
    nothing but their names.
    """
    return max(members, key=lambda member: blake2b(f"{member} {key}".encode()).digest())


async def run_prober(args: argparse.Namespace) -> int:
    """Probe the share of `args.member`; after the first signal only serve the totals."""
    url_of = urls.by_endpoint(args.targets)
    members = range(args.probers)
    share = [target for target in url_of if owner(target.key, members) == args.member]
    keeper = StatsKeeper("http", "fleet", share, export_interval=args.export_interval)
    prober = Prober(
        partial(probe, url_of), keeper, interval=args.interval, timeout=args.timeout
    )
    name, port = f"prober {args.member}", args.port + args.member
    prometheus = PrometheusExporter(port=port, statistics_of=[keeper, prober])
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            open_outputs(prometheus.run) as exports,
            open_keeper(keeper, exports) as results,  # it exports until the block ends
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(cancel_without_the_fleet, nursery.cancel_scope)
            say(
                f"{name} (pid {os.getpid()}) probes {len(share)} of {len(url_of)} targets; "
                f"metrics at http://127.0.0.1:{port}/metrics"
            )
            async with trio.open_nursery() as probing:
                probing.start_soon(prober.run, results.clone())
                await anext(signals)
                probing.cancel_scope.cancel()
            rest = args.export_interval + args.linger  # the next tick has the last totals
            say(f"{name} has stopped probing; it ends in {rest:g} s")
            with trio.move_on_after(rest):
                await anext(signals)
            nursery.cancel_scope.cancel()
    return 0


async def cancel_without_the_fleet(scope: trio.CancelScope) -> None:
    """Cancel when standard input ends: the fleet's own process holds its other end."""
    await trio.lowlevel.wait_readable(0)
    scope.cancel()
