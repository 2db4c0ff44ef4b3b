"""Connect to TCP ports, and print live statistics of each as cloudprober lines.

Without arguments it probes loopback: a port that is well, and one on which nobody listens.
Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from contextlib import AsyncExitStack

import servers
import shared

from trio_statskeeper import Endpoint


async def probe(endpoint: Endpoint) -> None:
    """Connect to the endpoint once."""
    stream = await shared.connect(endpoint)
    await stream.aclose()


async def main(args: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        endpoints = args.targets or await stack.enter_async_context(servers.tcp_server())
        await shared.probe_until_the_end(args, "tcp", probe, endpoints)


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "HOST:PORT", shared.host_and_port).parse_args())
