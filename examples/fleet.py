"""Probe URLs from several processes, for one Prometheus that adds up what they count.

A fleet of machines works in the same way: each prober has its share of the URLs and serves
its own metrics, and `sum by (dst) (probe_total)` in Prometheus does the rest. What to paste
into its configuration is printed first. A prober that dies is started again. Without URLs
it probes those of probe_http.py. Upon Ctrl-C the probers stop, and end when their last
counts have been there to scrape for a while; a second Ctrl-C ends them at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import httpx2
import probe_http
import servers
import shared
import trio

from trio_statskeeper import EventMetrics, Prober, StatsKeeper
from trio_statskeeper.prometheus import PrometheusExporter

Member = TypeVar("Member", int, str)

HOST = "127.0.0.1"
PAUSE = 1.0  # seconds until a prober that has died is started again

SCRAPE_CONFIGS = """\
scrape_configs:
  - job_name: fleet
    static_configs:
      - targets: {}"""


def say(line: str) -> None:
    # As one piece, for the others write there, too; `print` writes the end by itself.
    sys.stderr.write(f"{line}\n")


def owner(key: str, members: Iterable[Member]) -> Member:
    """Return the member whose hash with the key is the highest: rendezvous hashing.

    A member more or less moves only its own share, and all that the members have to agree
    on is their names.
    """
    return max(members, key=lambda member: blake2b(f"{member} {key}".encode()).digest())


async def run_prober(args: argparse.Namespace) -> None:
    """Probe a member's share of the URLs, and serve what comes of it."""
    members = range(args.probers)
    share = [url for url in args.targets if owner(url.key, members) == args.member]
    results_send, results_receive = trio.open_memory_channel[Any](100)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](0)
    async with httpx2.AsyncClient(timeout=None) as client, trio.open_nursery() as nursery:
        prober = Prober(
            partial(probe_http.probe, client),
            lambda: share,
            interval=args.interval,
            timeout=args.timeout,
            name="fleet",
        )
        keeper = StatsKeeper(
            ptype="http",
            name="fleet",
            targets=lambda: share,
            export_interval=args.export_interval,
            distributions={"latency": shared.LATENCY_BOUNDS},
        )
        prometheus = PrometheusExporter(statistics_of=[keeper, prober])
        with (
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
            results_send.clone(),  # as long as it is open, the keeper exports at its ticks
        ):
            nursery.start_soon(end_with_the_fleet, nursery.cancel_scope)
            nursery.start_soon(keeper.run, results_receive, exports_send)
            nursery.start_soon(prometheus.run, exports_receive)
            host, port = await nursery.start(prometheus.serve, args.port + args.member)
            say(
                f"prober {args.member} (pid {os.getpid()}) probes {len(share)} of "
                f"{len(args.targets)} targets; metrics at http://{host}:{port}/metrics"
            )
            async with trio.open_nursery() as probing:
                probing.start_soon(prober.run, results_send)
                await anext(signals)
                probing.cancel_scope.cancel()
            # The last counts are exported at the next tick.
            rest = args.export_interval + args.linger
            say(f"prober {args.member} probes no more; it ends in {rest:g} s")
            with trio.move_on_after(rest):
                await anext(signals)
        nursery.cancel_scope.cancel()


async def end_with_the_fleet(scope: trio.CancelScope) -> None:
    """Cancel when standard input ends: the fleet's process has the other end of it."""
    await trio.lowlevel.wait_readable(0)
    scope.cancel()


async def run_fleet(args: argparse.Namespace) -> None:
    """Run all probers, until the user wants no more and they have ended."""
    ports = [args.port + member for member in range(args.probers)]
    for port in ports:
        exit_unless_free(port)
    stopped: list[trio.Process] = []

    async def stop(process: trio.Process) -> None:
        stopped.append(process)
        process.terminate()

    program, *arguments = sys.argv
    env = dict(os.environ)
    stdin, lifeline = os.pipe()
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM)
        )
        addresses = json.dumps([f"{HOST}:{port}" for port in ports])
        print(SCRAPE_CONFIGS.format(addresses), flush=True)
        if not args.targets:
            urls = await stack.enter_async_context(servers.http_server())
            # A few of each, for the server minds no query.
            arguments += [f"{url.name}?{n}" for url in urls for n in range(4)]
            env["no_proxy"] = "*"  # nothing on loopback needs a proxy
        run = partial(
            trio.run_process,
            stdin=stdin,
            check=False,
            deliver_cancel=stop,
            env=env,
            process_group=0,  # Ctrl-C in a terminal is not for them
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        async with trio.open_nursery() as probers:
            nursery.start_soon(end_upon_signals, signals, probers.cancel_scope, lifeline)
            for member in range(args.probers):
                command = [sys.executable, program, f"--member={member}", *arguments]
                probers.start_soon(keep_running, member, partial(run, command))
        nursery.cancel_scope.cancel()
    # SIGTERM itself ends those that are not ready for it yet.
    if any(process.returncode not in (0, -signal.SIGTERM) for process in stopped):
        sys.exit("not all probers have ended well")


def exit_unless_free(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        sys.exit(f"can't listen on {HOST}:{port}: {error.strerror}")


async def keep_running(
    member: int, run: Callable[[], Awaitable[subprocess.CompletedProcess[bytes]]]
) -> None:
    while True:
        status = (await run()).returncode
        say(f"prober {member} has ended with status {status}; it is started again")
        await trio.sleep(PAUSE)


async def end_upon_signals(
    signals: AsyncIterator[int], probers: trio.CancelScope, lifeline: int
) -> None:
    await anext(signals)
    probers.cancel()
    await anext(signals)
    os.close(lifeline)


def parse_args() -> argparse.Namespace:
    parser = shared.OneLineParser(description=__doc__)
    url = probe_http.http_url
    parser.add_argument("targets", nargs="*", type=url, metavar="URL", help="what to probe")
    for option, kind, default, meaning in (
        ("--probers", above_zero, 4, "how many probers there are"),
        ("--port", above_zero, 9464, "the first one's; the others' are those that follow"),
        ("--interval", shared.seconds, 1, "seconds between two probe runs of a target"),
        ("--timeout", shared.seconds, 1, "seconds that a probe run may take"),
        ("--export-interval", shared.seconds, 2, "seconds between two exports"),
        ("--linger", shared.seconds, 20, "seconds for which the last export is served"),
    ):
        parser.add_argument(
            option,
            type=kind,
            default=default,
            metavar="SECONDS" if kind is shared.seconds else "NUMBER",
            help=f"{meaning} (default: {default})",
        )
    parser.add_argument("--member", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.port + args.probers > 65_536:
        parser.error(f"there are no {args.probers} ports from {args.port} on")
    return args


def above_zero(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    args = parse_args()
    shared.run(run_fleet if args.member is None else run_prober, args)
