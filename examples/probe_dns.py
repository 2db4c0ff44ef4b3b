"""Ask DNS servers for names, and print live statistics of each as cloudprober lines.

SERVER is ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, as in example.com@192.0.2.53; it is asked
for an IPv4 address (A), over UDP. That the name exists (NOERROR) or not (NXDOMAIN) is a
success, and `rcode` counts them. Any other answer (SERVFAIL, ...), or none, is a failure.
Without arguments it asks a server of its own on loopback for a name that exists, one that
does not, and one with which it fails. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import AsyncExitStack

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.rcode
import servers
import shared

from trio_statskeeper import Endpoint, Map, Value

TRIO = dns.asyncbackend.get_backend("trio")


class UselessAnswerError(Exception):
    """The server answered, but does not tell whether the name exists."""


async def probe(endpoint: Endpoint) -> Mapping[str, Value]:
    """Ask the endpoint's server for its name once."""
    query = dns.message.make_query(endpoint.labels["name"], "A")
    server, port = endpoint.labels["server"], int(endpoint.labels["port"])
    answer = await dns.asyncquery.udp(query, server, port=port, backend=TRIO)
    rcode = dns.rcode.to_text(answer.rcode())
    if rcode not in ("NOERROR", "NXDOMAIN"):
        raise UselessAnswerError(rcode)
    return {"rcode": Map("rcode", {rcode: 1})}


async def main(args: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        endpoints = args.targets
        if not endpoints:
            questions = await stack.enter_async_context(servers.dns_server())
            endpoints = [name_at_server(question) for question in questions]
        await shared.probe_until_the_end(args, "dns", probe, endpoints)


def name_at_server(text: str) -> Endpoint:
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


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "NAME@SERVER", name_at_server).parse_args())
