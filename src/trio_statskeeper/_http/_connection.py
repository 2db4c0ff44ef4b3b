"""HTTP/1.1 over one connection: requests in, answers out, by h11.

https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

import attrs
import h11
import trio

# Bytes and lines of a request's head, and bytes of its body, which is ignored. Parsing them
# takes some tenths of a millisecond; without the limit of lines, it would take two.
_MAX_HEAD = 2**13
_MAX_LINES = 100
_MAX_BODY = 2**13

# Seconds in which a request has to arrive.
_REQUEST_TIMEOUT = 10.0

# Seconds until the next request begins. Most scrapers come back within a minute.
_IDLE_TIMEOUT = 90.0

# Seconds in which a client has to read a piece of an answer.
_UNREAD_TIMEOUT = 10.0

# Seconds for which a client may go on sending after the last answer.
_LINGER_TIMEOUT = 1.0

# Parameters of a query; parsing as many takes a tenth of a millisecond.
_MAX_PARAMETERS = 100

# Empty lines before a request are ignored, which h11 does not:
# https://www.rfc-editor.org/rfc/rfc9112#section-2.2
_LINE_ENDS = b"\r\n"

Header: TypeAlias = tuple[bytes, bytes]

# Either kind can be closed in one direction.
Stream: TypeAlias = (
    trio.abc.HalfCloseableStream | trio.SSLStream[trio.abc.HalfCloseableStream]
)

_PLAIN_TEXT: Header = (b"Content-Type", b"text/plain; charset=utf-8")
CLOSE: Header = (b"Connection", b"close")


class ConnectionLost(Exception):
    """The client has gone away, or does not read."""


class Refused(Exception):
    """The request is answered by a status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@attrs.frozen
class Request:
    """A request; its body is ignored."""

    method: str
    path: str
    query: str
    _headers: Sequence[Header]

    def header(self, name: bytes) -> str:
        """Return the value of a header; the values of several are joined by commas."""
        values = (value for found, value in self._headers if found == name)
        return b", ".join(values).decode("latin-1")

    def parameters(self) -> dict[str, list[str]]:
        """Return the parameters of the query.

        Raises:
          Refused: if there are too many.
        """
        try:
            return parse_qs(self.query, errors="replace", max_num_fields=_MAX_PARAMETERS)
        except ValueError as error:
            raise Refused(400, str(error)) from None


def _parser_of(received: bytes = b"") -> h11.Connection:
    """Return a parser of the next request, of which this has been received."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
    if received:  # as opposed to the end of the connection
        parser.receive_data(received)
    return parser


@attrs.define(eq=False)
class Connection:
    """The connection of a client."""

    _stream: Stream
    _http: h11.Connection = attrs.field(init=False, factory=_parser_of)
    # The head of an answer waits for the beginning of its body.
    _unsent: bytearray = attrs.field(init=False, factory=bytearray)
    _is_head: bool = attrs.field(init=False, default=False)

    @property
    def unsent(self) -> int:
        """How many bytes the next flush sends."""
        return len(self._unsent)

    @property
    def can_begin_answer(self) -> bool:
        return self._http.our_state is h11.SEND_RESPONSE

    async def receive_request(self) -> Request | None:
        """Return the next request, or None if there is none, or not in time.

        A request that is not valid is answered here, and it is the last one.

        Raises:
          ConnectionLost: if the client has gone away.
        """
        if self._http.our_state is h11.MUST_CLOSE:
            await self._linger()
            return None
        timeout = _REQUEST_TIMEOUT
        if self._http.our_state is h11.DONE:
            rest, _ = self._http.trailing_data
            self._http = _parser_of(rest.lstrip(_LINE_ENDS))
            self._is_head = False
            if not rest:
                timeout = _IDLE_TIMEOUT
        try:
            with trio.move_on_after(timeout) as scope:
                return await self._receive_request(scope)
        except h11.RemoteProtocolError as error:
            status, reason = error.error_status_hint, str(error)
        except Refused as error:
            status, reason = error.status, str(error)
        else:
            return None
        await self.send_text(status, f"Bad request: {reason}\n", CLOSE)
        await self._linger()
        return None

    async def _receive_request(self, scope: trio.CancelScope) -> Request | None:
        http = self._http
        request: Request | None = None
        while True:  # noqa: ASYNC913  # data has a limited number of events
            head, _ = http.trailing_data
            if request is None and _has_too_many_lines(head):
                raise Refused(431, f"more than {_MAX_LINES} lines")
            event = http.next_event()
            if isinstance(event, h11.Request):
                self._is_head = event.method == b"HEAD"  # even if the request is refused
                request = _parse(event)
            elif isinstance(event, h11.EndOfMessage):
                return request  # noqa: ASYNC910  # its answer has a checkpoint
            elif isinstance(event, h11.ConnectionClosed):
                return None  # noqa: ASYNC910  # it has been received
            elif event is h11.NEED_DATA:
                if http.they_are_waiting_for_100_continue:
                    self._add(
                        h11.InformationalResponse(
                            status_code=100, reason=b"Continue", headers=[]
                        )
                    )
                    await self.flush()
                received = await self._receive(_MAX_HEAD + 1 - len(head))
                if request is None and not head:
                    if received and not (received := received.lstrip(_LINE_ENDS)):
                        continue  # empty lines before the request
                    in_time = trio.current_time() + _REQUEST_TIMEOUT
                    scope.deadline = min(scope.deadline, in_time)
                http.receive_data(received)

    async def _receive(self, max_bytes: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError:
            raise ConnectionLost from None

    async def send_text(self, status: int, text: str, *headers: Header) -> None:
        """Send a whole answer."""
        body = text.encode()
        length = (b"Content-Length", b"%d" % len(body))
        self.begin_answer(status, _PLAIN_TEXT, length, *headers)
        if not self._is_head:
            self.add(body)
        await self.end_answer()

    def begin_answer(self, status: int, *headers: Header) -> None:
        date = (b"Date", formatdate(usegmt=True).encode())
        self._add(
            h11.Response(
                status_code=status,
                reason=HTTPStatus(status).phrase.encode(),
                headers=[date, *headers],
            )
        )

    def add(self, piece: bytes) -> None:
        """Add a piece to the body, to be sent with the next flush."""
        self._add(h11.Data(data=piece))

    async def end_answer(self) -> None:
        """Send what is unsent, and the end of the answer."""
        self._add(h11.EndOfMessage())
        await self.flush()

    async def flush(self) -> None:
        """Send what is unsent, in one turn of the scheduler if the client reads.

        Raises:
          ConnectionLost: if the client has gone away, or does not read.
        """
        unsent, self._unsent = self._unsent, bytearray()
        try:
            with trio.fail_after(_UNREAD_TIMEOUT):
                await self._stream.send_all(unsent)
        except (trio.TooSlowError, trio.BrokenResourceError):
            raise ConnectionLost from None

    def _add(self, event: h11.Event) -> None:
        for part in self._http.send_with_data_passthrough(event) or ():
            self._unsent += part

    async def _linger(self) -> None:  # noqa: ASYNC910  # receiving has a checkpoint
        """Let the client read the last answer.

        If it is still sending, closing the connection would reset it, and may discard what
        the client has not read.
        """
        with (
            trio.move_on_after(_LINGER_TIMEOUT),
            suppress(trio.BrokenResourceError),
        ):
            stream = self._stream
            if isinstance(stream, trio.SSLStream):
                encrypted, stream = stream, stream.transport_stream
                with suppress(trio.BrokenResourceError):  # the client is still sending
                    await encrypted.unwrap()
            await stream.send_eof()
            while await stream.receive_some():
                pass


def _has_too_many_lines(head: bytes) -> bool:
    *lines, _ = head.split(b"\n", _MAX_LINES + 1)
    return len(lines) > _MAX_LINES and not any(line in (b"", b"\r") for line in lines)


def _parse(head: h11.Request) -> Request:
    if head.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, f"HTTP/{head.http_version.decode()} is not supported")
    for name, value in head.headers:
        if name == b"transfer-encoding" or (
            name == b"content-length" and int(value) > _MAX_BODY
        ):
            raise Refused(413, "a request needs no body")
    path, query = _path_and_query(head.target.decode("ascii"))
    return Request(head.method.decode("ascii"), path, query, head.headers)


def _path_and_query(target: str) -> tuple[str, str]:
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return path, query
    # As if to a proxy: https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2
    try:
        url = urlsplit(target)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    return (url.path or "/" if url.netloc else target), url.query
