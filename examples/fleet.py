"""Probe URLs from several processes, whose counts one Prometheus adds up.

A fleet of machines works in the same way: each prober has its share of the URLs and serves
its own metrics, and `sum by (dst) (probe_total)` in Prometheus does the rest. The scrape
configuration for it is printed first. A prober that dies is started again. Without URLs it
probes those of probe_http.py. After Ctrl-C the probers stop probing, serve their last
totals for a while, and end; a second Ctrl-C ends them at once.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from contextlib import nullcontext

import fleet_arguments
import servers
import shared
from fleet_prober import run_prober
from fleet_processes import keep_running

HOST = "127.0.0.1"

SCRAPE_CONFIGS = """\
scrape_configs:
  - job_name: fleet
    static_configs:
      - targets: {}"""


async def run_fleet(args: argparse.Namespace) -> int | str:
    """Run all probers; return the exit status, as `sys.exit` takes it."""
    ports = range(args.port, args.port + args.probers)
    for port in ports:
        exit_unless_free(port)
    addresses = json.dumps([f"{HOST}:{port}" for port in ports])
    print(SCRAPE_CONFIGS.format(addresses), flush=True)
    async with nullcontext(()) if args.targets else servers.http_server() as own:
        # Four of each: the server answers below a path as at the path itself.
        urls = [f"{url}{number}" for url in own for number in range(4)]
        ended_well = await keep_running(
            [sys.executable, sys.argv[0], f"--member={member}", *sys.argv[1:], *urls]
            for member in range(args.probers)
        )
    return 0 if ended_well else "not all probers have ended well"


def exit_unless_free(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        sys.exit(f"can't listen on {HOST}:{port}: {error.strerror}")


if __name__ == "__main__":
    args = fleet_arguments.parse(__doc__)
    shared.run(run_fleet if args.member is None else run_prober, args)
