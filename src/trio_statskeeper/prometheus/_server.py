"""The server: which connections it has, and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeAlias, TypeVarTuple, cast
from urllib.parse import parse_qs

import attrs
import trio

from trio_statskeeper._arguments import quote
from trio_statskeeper._log import logger
from trio_statskeeper._nursery import open_flat_nursery
from trio_statskeeper._pacing import Step

from ._connection import CLOSE, Connection, ConnectionLost, Header, Request

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

# Parameters of a query; parsing as many takes a tenth of a millisecond.
_MAX_PARAMETERS = 100

_TEXTS = {
    "/": "trio-statskeeper: metrics are at /metrics\n",
    "/-/healthy": "Healthy\n",
}

_Args = TypeVarTuple("_Args")

# The text of a scrape: each iterable of blocks is prepared in a short step.
Blocks: TypeAlias = Iterator[Iterable[bytes]]


@attrs.frozen
class Scrape:
    """The answer to a scrape."""

    content_type: bytes
    blocks: Blocks


@attrs.define(eq=False)
class Server:
    """A run of the server.

    Args:
      scrape: makes a scrape. It is given the step of work in which it is called, the Accept
        header, and the names of the metrics that are asked for; none means all.
      max_connections: how many connections are served at a time.
      max_scrapes: how many scrapes are answered at a time.
    """

    _scrape: Callable[[Step, str, frozenset[str]], Awaitable[Scrape]]
    _max_connections: int
    _max_scrapes: int

    _scrapes: int = attrs.field(init=False, default=0)
    _refused: int = attrs.field(init=False, default=0)
    # Connections are known by their scopes.
    _open: set[trio.CancelScope] = attrs.field(init=False, factory=set[trio.CancelScope])
    # Those without a request in progress; the one that has waited longest comes first.
    _waiting: dict[trio.CancelScope, None] = attrs.field(
        init=False, factory=dict[trio.CancelScope, None]
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
        while len(self._open) > len(self._waiting):
            await self._answered.park()

    @trio.lowlevel.enable_ki_protection
    async def serve_stream(self, stream: trio.abc.Stream) -> None:  # noqa: ASYNC910
        """Answer the requests of one connection; what fails here ends no other."""
        with trio.CancelScope() as scope:  # noqa: ASYNC912  # a lost connection has had one
            connection = Connection(stream)
            try:
                if self._make_room():
                    await self._serve(connection, scope)
                else:
                    await self._refuse(connection, scope)
            except ConnectionLost:
                pass
            finally:
                self._open.discard(scope)
                self._waiting.pop(scope, None)
                self._answered.unpark_all()

    def _make_room(self) -> bool:
        """Return whether there is room for one more connection.

        If there is none, the connection that has waited longest for a request is closed. So
        idle connections keep nobody out.
        """
        if len(self._open) < self._max_connections:
            return True
        if not self._waiting:
            return False
        longest = next(iter(self._waiting))
        del self._waiting[longest]
        self._open.discard(longest)
        longest.cancel()
        return True

    async def _serve(self, connection: Connection, scope: trio.CancelScope) -> None:
        self._open.add(scope)
        self._waiting[scope] = None
        while request := await connection.receive_request():
            del self._waiting[scope]
            with trio.move_on_after(_ANSWER_TIMEOUT) as answering:
                await self._answer_or_log(connection, request)
            if answering.cancelled_caught:
                break
            self._waiting[scope] = None
            self._answered.unpark_all()

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

    async def _answer_or_log(self, connection: Connection, request: Request) -> None:
        try:
            await self._answer(connection, request)
        except ConnectionLost:
            raise
        except Exception as error:  # noqa: BLE001  # a bug must not end the server
            logger.error("a scrape failed: %s", quote(error), exc_info=error)
            if not connection.can_begin_answer:
                raise ConnectionLost from None
            await connection.send_text(500, "Internal error: see the log\n")

    async def _answer(self, connection: Connection, request: Request) -> None:
        if request.path != "/metrics" and request.path not in _TEXTS:
            await connection.send_text(404, "Not found: metrics are at /metrics\n")
        elif request.method not in ("GET", "HEAD"):
            allow = (b"Allow", b"GET, HEAD")
            await connection.send_text(405, "Method not allowed: use GET\n", allow)
        elif request.path in _TEXTS:
            await connection.send_text(200, _TEXTS[request.path])
        elif self._scrapes >= self._max_scrapes:
            await _send_busy(connection)
        else:
            self._scrapes += 1
            try:
                await self._send_metrics(connection, request)
            finally:
                self._scrapes -= 1

    async def _send_metrics(self, connection: Connection, request: Request) -> None:
        step = Step()
        try:
            parameters = parse_qs(request.query, max_num_fields=_MAX_PARAMETERS)
        except ValueError as error:
            await connection.send_text(400, f"Bad request: {error}\n")
            return
        names = frozenset(parameters.get("name[]", ()))
        scrape = await self._scrape(step, request.header(b"accept"), names)
        connection.begin_answer(200, (b"Content-Type", scrape.content_type))
        piece = bytearray()
        for blocks in scrape.blocks if request.method == "GET" else ():
            for block in blocks:
                piece += block
                if len(piece) >= _PIECE_SIZE:
                    await connection.send(bytes(piece))
                    piece.clear()
                    step.begin_next()
            await step.pause_if_over()
        await connection.end_answer(bytes(piece))


async def _send_busy(connection: Connection, *headers: Header) -> None:
    retry_after = (b"Retry-After", b"1")
    await connection.send_text(503, "Too many requests at a time\n", retry_after, *headers)


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
