"""The server: which connections it has, and what it answers."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeAlias, TypeVarTuple, cast

import attrs
import trio

from trio_statskeeper._arguments import quote
from trio_statskeeper._log import logger
from trio_statskeeper._nursery import open_flat_nursery
from trio_statskeeper._pacing import Step

from ._basic_auth import BasicAuth
from ._body import Blocks, compressed, joined
from ._connection import CLOSE, Connection, ConnectionLost, Header, Refused, Request
from ._negotiation import prefers_gzip

# Bytes of an answer that are sent at once: some tenths of a millisecond. Each takes a turn
# of the scheduler, which are rare in a busy loop.
_PIECE_SIZE = 2**18

# Seconds that an answer may take.
_ANSWER_TIMEOUT = 300.0

# Seconds that answers in progress may take when the server ends.
_SHUTDOWN_TIMEOUT = 2.0

# How many connections beyond the limit are told so at a time, and in how many seconds.
_MAX_REFUSED = 8
_REFUSAL_TIMEOUT = 1.0

_HEALTHY = "/-/healthy"

_Args = TypeVarTuple("_Args")


@attrs.frozen
class Answer:
    """The answer to a request."""

    headers: tuple[Header, ...]
    blocks: Blocks
    status: int = 200


Resource: TypeAlias = Callable[[Step, Request], Awaitable[Answer]]
"""Makes the answer to a request, in the step of work in which it is called."""


@attrs.define(eq=False)
class Server:
    """A run of the server.

    Args:
      resources: what there is, by path.
      hint: where the most important resource is, for those who ask for another.
      max_connections: how many connections are served at a time.
      max_answers: how many resources are sent at a time.
      ssl_context: for TLS.
      basic_auth: who may ask; None: anyone.
    """

    _resources: Mapping[str, Resource]
    _hint: str
    _max_connections: int
    _max_answers: int
    _ssl_context: ssl.SSLContext | None = None
    _basic_auth: BasicAuth | None = None

    _answers: int = attrs.field(init=False, default=0)
    _refused: int = attrs.field(init=False, default=0)
    # Connections, by their scopes: those without a request that is allowed, of which the
    # first has waited longest, and those that are being answered.
    _waiting: dict[trio.CancelScope, None] = attrs.field(
        init=False, factory=dict[trio.CancelScope, None]
    )
    _answering: set[trio.CancelScope] = attrs.field(
        init=False, factory=set[trio.CancelScope]
    )
    _answered: trio.lowlevel.ParkingLot = attrs.field(
        init=False, factory=trio.lowlevel.ParkingLot
    )

    # Tasks are started here.
    @trio.lowlevel.enable_ki_protection
    async def serve_while(
        self,
        listeners: list[trio.SocketListener],
        work: Callable[[], Awaitable[None]],
    ) -> None:
        """Serve until `work` returns, and then finish the answers in progress."""
        async with open_flat_nursery() as nursery:
            accepting = trio.CancelScope()
            nursery.start_soon(self._accept, listeners, nursery, accepting)
            await work()
            accepting.cancel()
            with trio.move_on_after(_SHUTDOWN_TIMEOUT):
                await self._wait_until_all_are_answered()
            nursery.cancel_scope.cancel()

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
        while self._answering:
            await self._answered.park()

    @trio.lowlevel.enable_ki_protection
    async def serve_stream(  # noqa: ASYNC910  # losing a connection takes a checkpoint
        self, stream: trio.abc.HalfCloseableStream
    ) -> None:
        """Answer the requests of one connection. No failure of it ends the server."""
        if isinstance(stream, trio.SocketStream):
            # Trio lets the system hold only 16 KiB that are not sent yet. To refill them
            # would take many turns of the scheduler.
            with suppress(OSError, AttributeError):  # some systems have no such option
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
        if self._ssl_context is None:
            connection = Connection(stream)
        else:
            connection = Connection(
                trio.SSLStream(stream, self._ssl_context, server_side=True)
            )
        with trio.CancelScope() as scope:  # noqa: ASYNC912
            try:
                if self._make_room():
                    await self._serve(connection, scope)
                else:
                    await self._refuse(connection, scope)
            except ConnectionLost:
                pass
            except Exception as error:  # noqa: BLE001  # nor does a bug
                logger.error("a connection failed: %s", quote(error), exc_info=error)
            finally:
                self._waiting.pop(scope, None)

    def _make_room(self) -> bool:
        """Return whether there is room for one more connection.

        If there is none, the connection that has waited longest for a request is closed, so
        that those who only open connections keep nobody out.
        """
        if len(self._waiting) + len(self._answering) < self._max_connections:
            return True
        for longest in self._waiting:
            del self._waiting[longest]
            longest.cancel()
            return True
        return False

    async def _serve(self, connection: Connection, scope: trio.CancelScope) -> None:
        self._waiting[scope] = None
        while request := await connection.receive_request():
            try:
                await self._handle(connection, request, scope)
            except ConnectionLost:
                raise
            except Exception as error:  # noqa: BLE001  # a bug must not end the server
                logger.error("an answer failed: %s", quote(error), exc_info=error)
                if not connection.can_begin_answer:
                    return
                await connection.send_text(500, "Internal error: see the log\n")
            self._waiting.pop(scope, None)
            self._waiting[scope] = None  # the one that has waited for the shortest time

    async def _refuse(self, connection: Connection, scope: trio.CancelScope) -> None:
        """Answer a connection beyond the limit, unless there are too many of these, too."""
        if self._refused >= _MAX_REFUSED:
            await trio.lowlevel.checkpoint()
            return
        scope.deadline = trio.current_time() + _REFUSAL_TIMEOUT
        self._refused += 1
        try:
            while await connection.receive_request():
                await _send_busy(connection, CLOSE)
        finally:
            self._refused -= 1

    async def _handle(
        self, connection: Connection, request: Request, scope: trio.CancelScope
    ) -> None:
        if self._basic_auth is not None and not await self._basic_auth.allows(
            request.header(b"authorization")
        ):
            challenge = (
                b"WWW-Authenticate",
                b'Basic realm="metrics", charset="UTF-8"',
            )
            await connection.send_text(401, "Unauthorized\n", challenge)
            return
        # The connection may have been closed to make room.
        await trio.lowlevel.checkpoint_if_cancelled()
        del self._waiting[scope]
        self._answering.add(scope)
        try:
            with trio.move_on_after(_ANSWER_TIMEOUT) as answering:
                await self._answer(connection, request)
        finally:
            self._answering.discard(scope)
            self._answered.unpark_all()
        if answering.cancelled_caught:
            raise ConnectionLost

    async def _answer(self, connection: Connection, request: Request) -> None:
        path = request.path
        resource = self._resources.get(path)
        if resource is None and path not in {"/", _HEALTHY}:
            await connection.send_text(404, f"Not found: {self._hint}\n")
        elif request.method not in ("GET", "HEAD"):
            allow = (b"Allow", b"GET, HEAD")
            await connection.send_text(405, "Method not allowed: use GET\n", allow)
        elif resource is None:
            text = "Healthy" if path == _HEALTHY else f"trio-statskeeper: {self._hint}"
            await connection.send_text(200, f"{text}\n")
        elif self._answers >= self._max_answers:
            await _send_busy(connection)
        else:
            self._answers += 1
            try:
                await self._send_answer(connection, request, resource)
            finally:
                self._answers -= 1

    async def _send_answer(
        self, connection: Connection, request: Request, resource: Resource
    ) -> None:
        step = Step()
        try:
            answer = await resource(step, request)
        except Refused as error:
            await connection.send_text(error.status, f"Bad request: {error}\n")
            return
        headers = [*answer.headers]
        if prefers_gzip(request.header(b"accept-encoding")):
            headers.append((b"Content-Encoding", b"gzip"))
            pieces = compressed(answer.blocks)
        else:
            pieces = joined(answer.blocks, _PIECE_SIZE)
        connection.begin_answer(answer.status, *headers)
        for piece in pieces if request.method == "GET" else ():
            connection.add(piece)
            if connection.unsent >= _PIECE_SIZE:
                await connection.flush()
                step.begin_next()
            else:
                await step.pause_if_over()
        await connection.end_answer()


async def _send_busy(connection: Connection, *headers: Header) -> None:
    retry_after = (b"Retry-After", b"1")
    await connection.send_text(503, "Too many requests at a time\n", retry_after, *headers)


@attrs.frozen
class _ProtectedNursery:
    """Starts tasks for `trio.serve_listeners`, whose own tasks are not protected.

    A Ctrl-C within `Nursery.start_soon` leaves half a task behind: the nursery would wait
    for it without end. Within the task, as it closes its stream, it corrupts Trio's state.
    """

    nursery: trio.Nursery

    @trio.lowlevel.enable_ki_protection
    def start_soon(
        self, function: Callable[[*_Args], Awaitable[object]], *args: *_Args
    ) -> None:
        @trio.lowlevel.enable_ki_protection
        async def run() -> None:
            await function(*args)

        self.nursery.start_soon(run, name=function)
