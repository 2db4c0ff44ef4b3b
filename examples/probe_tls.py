"""Shake hands with TLS servers, and print live statistics of each as cloudprober lines.

`cert-expiry` tells for how many seconds the server's certificate is still valid. One that
is not to be trusted, or is for another name, is a failure. Without arguments it probes
servers of its own on loopback: one that is well, and one with the certificate of another.
Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import shared
import trio
import trustme

from trio_statskeeper import Endpoint, Gauge, Value


async def probe(context: ssl.SSLContext, endpoint: Endpoint) -> Mapping[str, Value]:
    """Do a TLS handshake with the endpoint once."""
    async with await shared.connect(endpoint) as tcp:
        tls = trio.SSLStream(tcp, context, server_hostname=endpoint.name)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            # Trio says no more than that; failures are counted by class.
            raise error.__cause__ or error from None
        expiry = ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"])
        await tls.aclose()  # a goodbye; it waits for no answer
    return {"cert-expiry": Gauge(expiry - time.time())}


async def main(args: argparse.Namespace) -> None:
    context = ssl.create_default_context()
    async with AsyncExitStack() as stack:
        endpoints = args.targets or await stack.enter_async_context(tls_servers(context))
        probe_tls = partial(probe, context)
        await shared.probe_until_the_end(args, "tls", probe_tls, endpoints)


@asynccontextmanager
async def tls_servers(client_context: ssl.SSLContext) -> AsyncGenerator[list[Endpoint]]:
    """Run TLS servers on loopback, which `client_context` is made to trust.

    They are well, and with a certificate for another name.
    """
    authority = trustme.CA()
    authority.configure_trust(client_context)  # pyright: ignore[reportUnknownMemberType]
    expiry = datetime.now(UTC) + timedelta(days=90)
    endpoints: list[Endpoint] = []
    async with trio.open_nursery() as nursery:
        for name in ("127.0.0.1", "another.example"):
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            certificate = authority.issue_cert(name, not_after=expiry)
            certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
            serve = partial(
                trio.serve_ssl_over_tcp, shake_hands, 0, context, host="127.0.0.1"
            )
            (listener,) = await nursery.start(serve)
            port = listener.transport_listener.socket.getsockname()[1]
            endpoints.append(Endpoint("127.0.0.1", port))
        yield endpoints
        nursery.cancel_scope.cancel()


async def shake_hands(stream: trio.SSLStream[trio.SocketStream]) -> None:
    with suppress(trio.BrokenResourceError):  # the client does not trust the certificate
        await stream.do_handshake()
        await stream.receive_some()  # until the client closes the connection


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "HOST:PORT", shared.host_and_port).parse_args())
