"""The servers on loopback that the examples probe unless they are given targets."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeAlias

import trio

from trio_statskeeper import Endpoint

Handler: TypeAlias = Callable[[trio.SocketStream], Awaitable[object]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncGenerator[tuple[int, int]]:
    """Listen on loopback; yield the port, and another one that refuses connections."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # but it does not listen
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
            (listener,) = await nursery.start(serve)
            yield listener.socket.getsockname()[1], closed.getsockname()[1]
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp_server() -> AsyncGenerator[list[Endpoint]]:
    """Run a TCP server on loopback; yield endpoints that are healthy and closed."""
    async with serving(trio.aclose_forcefully) as ports:
        yield [Endpoint("127.0.0.1", port) for port in ports]


@asynccontextmanager
async def http_server() -> AsyncGenerator[list[str]]:
    """Run an HTTP server on loopback; yield URLs that are healthy, flaky and closed."""
    async with serving(answer_http) as ports:
        healthy, closed = (f"http://127.0.0.1:{port}/" for port in ports)
        yield [healthy, f"{healthy}flaky", closed]


async def answer_http(stream: trio.SocketStream) -> None:
    """Answer one HTTP request; `/flaky` is slow and fails at times."""
    request = b""
    async with stream:
        with suppress(trio.BrokenResourceError):  # the client is gone
            while b"\r\n\r\n" not in request:
                received = await stream.receive_some()
                if not received:
                    return
                request += received
            status = "200 OK"
            if request.startswith(b"GET /flaky"):
                await trio.sleep(random.expovariate(2))
                status = random.choice(["200 OK", "200 OK", "503 Service Unavailable"])
            head = f"HTTP/1.1 {status}\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
            await stream.send_all(f"{head}OK\n".encode())


RCODES = {
    "healthy.example.": "NOERROR",
    "missing.example.": "NXDOMAIN",
    "broken.example.": "SERVFAIL",
}


@asynccontextmanager
async def dns_server() -> AsyncGenerator[list[str]]:
    """Run a DNS server on loopback; yield NAME@SERVER of each kind in `RCODES`."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_dns, server)
            at = f"127.0.0.1:{server.getsockname()[1]}"
            yield [f"{name}@{at}" for name in RCODES]
            nursery.cancel_scope.cancel()


async def answer_dns(server: trio.socket.SocketType) -> None:
    """Answer DNS queries as `RCODES` says."""
    from dns import message, rcode, rrset  # noqa: PLC0415  # only one example needs it

    while True:
        packet, client = await server.recvfrom(4096)
        answer = message.make_response(message.from_wire(packet))
        name = answer.question[0].name
        answer.set_rcode(rcode.from_text(RCODES[name.to_text()]))
        if answer.rcode() == rcode.NOERROR:
            answer.answer.append(rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        await server.sendto(answer.to_wire(), client)
