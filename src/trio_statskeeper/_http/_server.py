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

from ._basic_auth import BasicAuth, TooManyChecks
from ._body import Blocks, compressed, joined
from ._connection import CLOSE, Connection, ConnectionLost, Header, Refused, Request
from ._negotiation import prefers_gzip

# Bytes of an answer that are sent at once, in some tenths of a millisecond. Each piece
# takes a turn of the scheduler, and a busy loop has few.
_PIECE_SIZE = 2**18

# Unsent bytes at which the system takes no more. Below half of them, it takes the next
# piece.
_MAX_UNSENT = 2 * _PIECE_SIZE

# Seconds that an answer may take.
_ANSWER_TIMEOUT = 300.0

# Seconds that answers in progress may take when the server ends.
_SHUTDOWN_TIMEOUT = 2.0

# How many connections beyond the limit get a 503 at a time, and the seconds they have for
# their request.
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
      resources: what is served, by path.
      hint: where the most important resource is, for clients that request another path.
      max_connections: how many connections are served at a time.
      max_answers: how many resources are sent at a time.
      ssl_context: for TLS.
      users: who is served: names, and hashes of passwords. None: everyone.
    """

    _resources: Mapping[str, Resource]
    _hint: str
    _max_connections: int
    _max_answers: int
    _ssl_context: ssl.SSLContext | None = None
    _users: Mapping[str, str] | None = None

    _basic_auth: BasicAuth | None = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: (
                self._users and BasicAuth(self._users, max(self._max_connections // 4, 2))
            ),
            takes_self=True,
        ),
    )
    _answers: int = attrs.field(init=False, default=0)
    _refused: int = attrs.field(init=False, default=0)
    # Connections, by their scopes. Those without a request that is allowed, of which the
    # first has waited longest, can be closed for others. Those whose password is being
    # checked, and those that are being answered, can't.
    _waiting: dict[trio.CancelScope, None] = attrs.field(
        init=False, factory=dict[trio.CancelScope, None]
    )
    _checking: int = attrs.field(init=False, default=0)
    _answering: set[trio.CancelScope] = attrs.field(
        init=False, factory=set[trio.CancelScope]
    )
    _answer_ended: trio.lowlevel.ParkingLot = attrs.field(
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
            await self._answer_ended.park()

    @trio.lowlevel.enable_ki_protection
    async def serve_stream(  # noqa: ASYNC910  # losing a connection takes a checkpoint
        self, stream: trio.abc.HalfCloseableStream
    ) -> None:
        """Answer the requests of one connection. No failure of it ends the server."""
        if isinstance(stream, trio.SocketStream):
            # Trio's limit is 16 KiB: each piece would take many turns of the scheduler.
            # Without a limit, the system takes megabytes at once, and then nothing for so
            # long that a slow client seems not to read.
            with suppress(OSError, AttributeError):  # some systems have no such option
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT)
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
        that idle connections keep no client out.
        """
        connections = len(self._waiting) + self._checking + len(self._answering)
        if connections < self._max_connections:
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
            self._waiting[scope] = None

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
        # The connection may have been closed to make room.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            allowed = await self._allows(request, scope)
        except TooManyChecks:
            await _send_busy(connection)
            return
        if not allowed:
            challenge = (
                b"WWW-Authenticate",
                b'Basic realm="metrics", charset="UTF-8"',
            )
            await connection.send_text(401, "Unauthorized\n", challenge)
            return
        del self._waiting[scope]
        self._answering.add(scope)
        try:
            with trio.move_on_after(_ANSWER_TIMEOUT) as answering:
                await self._answer(connection, request)
        finally:
            self._answering.discard(scope)
            self._answer_ended.unpark_all()
        if answering.cancelled_caught:
            raise ConnectionLost

    async def _allows(  # noqa: ASYNC910  # the answer has a checkpoint
        self, request: Request, scope: trio.CancelScope
    ) -> bool:
        if self._basic_auth is None:
            return True  # noqa: ASYNC910
        del self._waiting[scope]
        self._checking += 1
        try:
            return await self._basic_auth.allows(request.header(b"authorization"))
        finally:
            self._checking -= 1
            self._waiting[scope] = None

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
