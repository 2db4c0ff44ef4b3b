"""Prometheus' scrapes by HTTP.

Each connection is served by Hypercorn's Trio worker. Hypercorn's own server would end, and
its nursery with it, after some malformed requests.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeAlias, TypeVarTuple, cast

import attrs
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio import task_group, worker_context
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from trio_statskeeper._log import logger
from trio_statskeeper._lookup import addresses_of
from trio_statskeeper._nursery import open_flat_nursery
from trio_statskeeper._pacing import Step

from ._text_format import TextFormat

# Bytes of an answer that are sent at once: some tenths of a millisecond.
_CHUNK_SIZE = 2**16

# Seconds after which a connection is closed if the scraper reads nothing of what was sent.
_UNREAD_TIMEOUT = 10.0

# Seconds that an answer may take. An HTTP/2 client can hold up its answer without limit.
_ANSWER_TIMEOUT = 300.0

# Seconds that answers in progress may take when the server ends.
_SHUTDOWN_TIMEOUT = 2.0

_PATHS = ("/", "/metrics")

_Args = TypeVarTuple("_Args")

# The text of a scrape: each iterable of blocks is prepared in a short step.
Blocks: TypeAlias = Iterator[Iterable[bytes]]

_Message: TypeAlias = Mapping[str, Any]


class _Receive(Protocol):
    async def __call__(self) -> _Message: ...


class _Send(Protocol):
    async def __call__(self, message: _Message, /) -> None: ...


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on all addresses of the host, or on a free port of the first.

    Raises:
      OSError: if that fails; the message has the host and port.
    """
    try:
        limiter = trio.CapacityLimiter(1)
        addresses = await addresses_of(host, limiter, f"looking up {host}")
        # A free port may be different for each address.
        return await _open_listeners(addresses, port, at_most=1 if port == 0 else None)
    except OSError as error:
        raise OSError(
            error.errno, f"can't listen on {host}:{port}: {error.strerror}"
        ) from None
    except UnicodeError as error:  # not a valid host name
        raise OSError(f"can't listen on {host}:{port}: {error}") from None


async def _open_listeners(
    addresses: list[str], port: int, at_most: int | None
) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    with ExitStack() as on_error:
        for address in addresses:
            try:
                opened = await trio.open_tcp_listeners(port, host=address)
            except OSError as error:
                # The system may support only one of IPv4 and IPv6.
                if error.errno != errno.EAFNOSUPPORT or (
                    address == addresses[-1] and not listeners
                ):
                    raise
                continue
            for listener in opened:
                on_error.callback(listener.socket.close)
            listeners += opened
            if len(listeners) == at_most:
                break
        on_error.pop_all()
    return listeners  # noqa: ASYNC910  # there is an address


@attrs.define(eq=False)
class Server:
    """A run of the server: its connections, and how many requests are in progress."""

    _scrape: Callable[[Step], Awaitable[Blocks]]
    """Returns the text of a scrape; it is given the step of work in which it is called."""

    _streams: set[trio.SocketStream] = attrs.field(
        init=False, factory=set[trio.SocketStream]
    )
    _unanswered: int = attrs.field(init=False, default=0)
    _answered: trio.lowlevel.ParkingLot = attrs.field(
        init=False, factory=trio.lowlevel.ParkingLot
    )

    # Tasks are started here, and within Hypercorn.
    @trio.lowlevel.enable_ki_protection
    async def serve_while(
        self,
        listeners: list[trio.SocketListener],
        work: Callable[[], Awaitable[None]],
    ) -> None:
        """Serve until `work` returns, and then finish the answers in progress."""
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._close_when_cancelled)
            accepting = trio.CancelScope()
            nursery.start_soon(self._accept, listeners, nursery, accepting)
            await work()
            accepting.cancel()
            with trio.move_on_after(_SHUTDOWN_TIMEOUT):
                await self._wait_until_all_are_answered()
            nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _close_when_cancelled(self) -> None:
        """Close all connections when cancelled: Hypercorn shields its sending."""
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            for stream in self._streams:
                stream.socket.close()
            raise

    @trio.lowlevel.enable_ki_protection
    async def _accept(
        self,
        listeners: list[trio.SocketListener],
        nursery: trio.Nursery,
        accepting: trio.CancelScope,
    ) -> None:
        with accepting:
            await trio.serve_listeners(
                self.serve_stream,
                listeners,
                handler_nursery=cast("trio.Nursery", _ProtectedNursery(nursery)),
            )

    async def _wait_until_all_are_answered(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._unanswered:
            await self._answered.park()

    @contextmanager
    def _answering(self) -> Generator[None]:
        self._unanswered += 1
        try:
            yield
        finally:
            self._unanswered -= 1
            self._answered.unpark_all()

    @trio.lowlevel.enable_ki_protection
    async def serve_stream(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection; what fails here ends no other."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
            stream.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_UNREAD_TIMEOUT * 1000)
            )

        async def answer(scope: _Message, receive: _Receive, send: _Send) -> None:
            with self._answering():
                await self.answer(scope, receive, send)

        app = ASGIWrapper(cast("Any", answer))
        state = cast("ConnectionState", {})
        self._streams.add(stream)
        try:
            await TCPServer(app, _Config(), WorkerContext(None), state, cast("Any", stream))
        except BaseExceptionGroup as group:
            error = cast("BaseException | None", group.split(trio.Cancelled)[1])
            if not isinstance(error, Exception):
                raise
            logger.warning("a scraper's connection failed: %r", error)
            await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            self._streams.discard(stream)

    @trio.lowlevel.enable_ki_protection
    async def answer(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request, as an ASGI application."""
        with trio.move_on_after(_ANSWER_TIMEOUT):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            elif scope["path"] not in _PATHS:
                await _send_text(send, 404, "Not found: metrics are at /metrics\n")
            elif scope["method"] not in ("GET", "HEAD"):
                allow = (b"allow", b"GET, HEAD")
                await _send_text(send, 405, "Method not allowed: use GET\n", allow)
            elif scope["path"] == "/":
                await _send_text(send, 200, "trio-statskeeper: metrics are at /metrics\n")
            else:
                await self._send_metrics(send)

    async def _send_metrics(self, send: _Send) -> None:
        step = Step()
        scraped = await self._scrape(step)
        headers = [(b"content-type", TextFormat.content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = bytearray()
        for blocks in scraped:
            for block in blocks:
                body += block
                if len(body) >= _CHUNK_SIZE:
                    await _send_body(send, bytes(body), more=True)
                    body.clear()
                    # The body of an answer to HEAD is not sent, without a checkpoint.
                    await step.pause_if_over()
            await step.pause_if_over()
        await _send_body(send, bytes(body), more=False)


async def _send_text(
    send: _Send, status: int, text: str, *headers: tuple[bytes, bytes]
) -> None:
    headers = (b"content-type", b"text/plain; charset=utf-8"), *headers
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await _send_body(send, text.encode(), more=False)


async def _send_body(send: _Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


class _Config(Config):
    """Hypercorn's configuration."""

    include_server_header = False
    errorlog = logger.logger
    # Seconds to wait for the first request, and for the next.
    keep_alive_timeout = 5.0
    # Seconds without data from the client, such as while it reads a long answer. For a
    # client that announces HTTP/2, but requests nothing, there is no other limit.
    read_timeout = 300


@attrs.frozen
class _ProtectedNursery:
    """Starts tasks for `trio.serve_listeners`, whose own tasks are not protected.

    A Ctrl-C within `Nursery.start_soon` leaves half a task behind: the nursery would wait
    for it without end.
    """

    nursery: trio.Nursery

    @trio.lowlevel.enable_ki_protection
    def start_soon(
        self, function: Callable[[*_Args], Awaitable[object]], *args: *_Args
    ) -> None:
        self.nursery.start_soon(function, *args)


# Protects the tasks in which Hypercorn starts others. The second function is created each
# time, with the same code object, which has the mark.
trio.lowlevel.enable_ki_protection(cast("Any", task_group)._handle)  # noqa: SLF001
trio.lowlevel.enable_ki_protection(
    cast("Any", worker_context)._cancel_wrapper(trio.sleep_forever)  # noqa: SLF001
)
