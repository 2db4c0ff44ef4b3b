"""Do TLS handshakes with servers, and print live statistics as cloudprober lines.

`cert-expiry` is the number of seconds for which the server's certificate is still valid,
negative if it has expired. A certificate that has expired, is for another name or is not
trusted is a failure. Latency covers name lookup, connection and handshake. Without
arguments it probes loopback: a healthy server, one whose certificate is for another name,
and one whose certificate has expired. Press Ctrl-C to stop.
"""

from __future__ import annotations

import argparse
import ssl
import time
from contextlib import nullcontext
from functools import partial

import servers
import shared
import trio
from cryptography.x509 import load_der_x509_certificate

from trio_statskeeper import Endpoint, Gauge, ProbeFailed, Prober, StatsKeeper, open_keeper


async def probe(context: ssl.SSLContext, endpoint: Endpoint) -> dict[str, Gauge]:
    """Do a TLS handshake with the endpoint once."""
    try:
        return await handshake(context, endpoint)
    except ssl.SSLCertVerificationError as error:
        # Only a handshake that verifies nothing gives the certificate that was refused.
        unverified = ssl._create_unverified_context()
        metrics = await handshake(unverified, endpoint)
        raise ProbeFailed(type(error).__name__, metrics=metrics) from error


async def handshake(context: ssl.SSLContext, endpoint: Endpoint) -> dict[str, Gauge]:
    tcp = await trio.open_tcp_stream(endpoint.name, endpoint.port or 0)
    async with trio.SSLStream(tcp, context, server_hostname=endpoint.name) as tls:
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            # Trio says no more than that; failures are counted by class.
            raise error.__cause__ or error from None
        certificate = load_der_x509_certificate(tls.getpeercert(binary_form=True))
        return {"cert-expiry": Gauge(certificate.not_valid_after_utc.timestamp() - time.time())}
