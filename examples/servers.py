"""The servers on loopback that the examples probe unless they are given targets."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from trio_statskeeper import Endpoint


def closed_port() -> socket.socket:
    """Return a socket to whose port nobody can connect: it is bound, but not listening."""
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    return closed


@asynccontextmanager
async def tcp_server() -> AsyncGenerator[list[Endpoint]]:
    """Listen on loopback; give endpoints that are well and closed."""
    with closed_port() as closed:
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, trio.aclose_forcefully, 0, host="127.0.0.1")
            (listener,) = await nursery.start(serve)
            ports = [sock.getsockname()[1] for sock in (listener.socket, closed)]
            yield [Endpoint("127.0.0.1", port) for port in ports]
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def http_server() -> AsyncGenerator[list[Endpoint]]:
    """Run an HTTP server on loopback; give URLs that are well, flaky and closed."""
    from hypercorn.config import Config  # noqa: PLC0415  # only HTTP examples need it
    from hypercorn.trio import serve  # noqa: PLC0415  # pyright: ignore[reportUnknownVariableType]

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    with closed_port() as closed:
        async with trio.open_nursery() as nursery:
            (base,) = await nursery.start(serve, app, config)  # pyright: ignore[reportUnknownArgumentType]
            nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
            yield [Endpoint(url) for url in (f"{base}/", f"{base}/flaky", nobody)]
            nursery.cancel_scope.cancel()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer HTTP requests; `/flaky` is slow and fails at times (an ASGI app)."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        return
    status = 200
    if scope["path"] == "/flaky":
        await trio.sleep(random.expovariate(2))
        status = random.choice([200, 200, 200, 503])
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"well\n"})


RCODES = {
    "well.example.": "NOERROR",
    "missing.example.": "NXDOMAIN",
    "broken.example.": "SERVFAIL",
}


@asynccontextmanager
async def dns_server() -> AsyncGenerator[list[str]]:
    """Run a DNS server on loopback; give NAME@SERVER that are well, missing and broken."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_queries, server)
            at = f"127.0.0.1:{server.getsockname()[1]}"
            yield [f"{name}@{at}" for name in RCODES]
            nursery.cancel_scope.cancel()


async def answer_queries(server: trio.socket.SocketType) -> None:
    from dns import message, rcode, rrset  # noqa: PLC0415  # only this example needs it

    while True:
        packet, client = await server.recvfrom(4096)
        answer = message.make_response(message.from_wire(packet))
        name = answer.question[0].name
        answer.set_rcode(rcode.from_text(RCODES[name.to_text()]))
        if answer.rcode() == rcode.NOERROR:
            answer.answer.append(rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        await server.sendto(answer.to_wire(), client)
