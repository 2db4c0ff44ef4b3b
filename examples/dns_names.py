"""NAME@SERVER as targets, and a DNS server on loopback."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import shared
import trio

from trio_statskeeper import Endpoint


def name_at_server(text: str) -> Endpoint:
    """Return the endpoint of NAME@SERVER, with its parts as labels."""
    name, _, server = text.rpartition("@")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME@SERVER")
    try:
        dns.name.from_text(name)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not a name: {error}") from None
    with_port = f"[{server}]:53" if dns.inet.is_address(server) else server
    at = shared.host_and_port(with_port)
    if not dns.inet.is_address(at.name):
        raise argparse.ArgumentTypeError(f"{at.name!r} is not an IP address")
    return Endpoint(text, labels={"name": name, "server": at.name, "port": str(at.port)})


RCODES = {
    "healthy.example.": "NOERROR",
    "missing.example.": "NXDOMAIN",
    "broken.example.": "SERVFAIL",
}


@asynccontextmanager
async def dns_server() -> AsyncGenerator[list[Endpoint]]:
    """Run a DNS server on loopback; yield the endpoints of the names in `RCODES`."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, server)
            at = f"127.0.0.1:{server.getsockname()[1]}"
            yield [name_at_server(f"{name}@{at}") for name in RCODES]
            nursery.cancel_scope.cancel()


async def answer(server: trio.socket.SocketType) -> None:
    """Answer queries as `RCODES` says."""
    while True:
        packet, client = await server.recvfrom(4096)
        response = dns.message.make_response(dns.message.from_wire(packet))
        name = response.question[0].name
        response.set_rcode(dns.rcode.from_text(RCODES[name.to_text()]))
        if response.rcode() == dns.rcode.NOERROR:
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        await server.sendto(response.to_wire(), client)
