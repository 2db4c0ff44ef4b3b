"""Probe URLs, and print live statistics of each as cloudprober lines.

A response of any status is a success, as it is for cloudprober; `resp-code` counts them by
status. Without URLs it probes a server of its own on loopback: one endpoint that is well,
one that is slow and flaky, and a port on which nobody listens. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx2
import servers
import shared

from trio_statskeeper import Endpoint, Map, Value


async def probe(client: httpx2.AsyncClient, endpoint: Endpoint) -> Mapping[str, Value]:
    """Get the endpoint's URL once."""
    response = await client.get(endpoint.name)
    return {"resp-code": Map("code", {str(response.status_code): 1})}


async def main(args: argparse.Namespace, **output: Any) -> None:
    """Probe until the end; `output` is that of `shared.probe_until_the_end`."""
    async with (
        # The prober sees to the timeout; nothing on loopback needs a proxy.
        httpx2.AsyncClient(timeout=None, trust_env=bool(args.targets)) as client,
        AsyncExitStack() as stack,
    ):
        urls = args.targets or await stack.enter_async_context(servers.http_server())
        await shared.probe_until_the_end(
            args, "http", partial(probe, client), urls, **output
        )


def http_url(text: str) -> Endpoint:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text!r} is not an http:// or https:// URL")
    return Endpoint(text)


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "URL", http_url).parse_args())
