"""When certificates of TLS servers expire, and servers on loopback that have some."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import trio
import trustme
from cryptography.x509 import load_der_x509_certificate

from trio_statskeeper import Endpoint

# Accepts all certificates.
UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
UNVERIFIED.check_hostname = False
UNVERIFIED.verify_mode = ssl.CERT_NONE


async def seconds_until_expiry(endpoint: Endpoint, context: ssl.SSLContext) -> float:
    """Do a handshake with the endpoint; return how long its certificate is still valid.

    Raises:
      ssl.SSLCertVerificationError: if `context` does not accept the certificate.
    """
    tcp = await trio.open_tcp_stream(endpoint.name, endpoint.port or 0)
    async with trio.SSLStream(tcp, context, server_hostname=endpoint.name) as stream:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            # The cause says what is wrong.
            raise error.__cause__ or error from None
        certificate = load_der_x509_certificate(stream.getpeercert(binary_form=True))
    return (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()


@asynccontextmanager
async def tls_servers(client: ssl.SSLContext) -> AsyncGenerator[list[Endpoint]]:
    """Run TLS servers on loopback, whose authority `client` is made to trust.

    Their certificates are valid, for another name, and expired.
    """
    authority = trustme.CA()
    authority.configure_trust(client)  # pyright: ignore[reportUnknownMemberType]
    endpoints: list[Endpoint] = []
    async with trio.open_nursery() as nursery:
        for name, days in (("127.0.0.1", 90), ("another.example", 90), ("127.0.0.1", -1)):
            expiry = datetime.now(UTC) + timedelta(days)
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
    with suppress(trio.BrokenResourceError):  # the client does not accept the certificate
        await stream.do_handshake()
        await stream.receive_some()  # until the client closes the connection
