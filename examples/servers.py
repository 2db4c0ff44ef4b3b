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
