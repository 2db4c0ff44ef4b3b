"""HTTP for OTLP: one request at a time, directly or through a proxy.

Name lookups and compression have one thread each, which they do not take from Trio's
default limiter: hanging lookups of the program itself may exhaust that.
"""

from __future__ import annotations

import gzip
import ssl
from base64 import b64encode
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.metadata import version
from itertools import chain
from typing import Any, Literal, cast

import attrs
import httpcore2
import httpx2
import trio

from trio_statskeeper._lookup import addresses_of

from ._problem import Problem, problem_in, why
from ._url import core_url

# Bytes that are compressed in the loop, in some tenths of a millisecond. Larger requests
# are compressed in a thread.
_MAX_SIZE_COMPRESSED_IN_LOOP = 50_000

# Bytes of an answer that are read. Collectors say what is wrong in some hundred.
_MAX_ANSWER_SIZE = 16_384

# Seconds for which an idle connection is kept: many servers close theirs after five.
_KEEP_ALIVE_TIMEOUT = 5.0

# Seconds to connect to each address of a name in the first round, and the factor for each
# further round. A collector may have an IPv6 address that is unreachable from here.
_FIRST_CONNECT_TIMEOUT = 0.25
_CONNECT_TIMEOUT_FACTOR = 4

_GRPC_PORT = 4317
_GRPC_HINT = "; is this the gRPC port (4317)? OTLP over HTTP is 4318"

_USER_AGENT = f"trio-statskeeper/{version('trio-statskeeper')}"


@attrs.define(eq=False)
class _Network(httpcore2.AsyncNetworkBackend):
    """Trio's sockets, with name lookups in a thread of their own."""

    _sockets: httpcore2.AsyncNetworkBackend = attrs.field(
        factory=cast("Any", httpcore2.TrioBackend)
    )
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the signature is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._look_up(host)
        connect_timeout = _FIRST_CONNECT_TIMEOUT
        while True:
            await trio.lowlevel.checkpoint()
            errors: list[httpcore2.ConnectError] = []
            for address in addresses:
                with trio.move_on_after(connect_timeout):  # noqa: ASYNC912  # it can be cancelled
                    try:
                        return await self._sockets.connect_tcp(
                            address, port, timeout, local_address, socket_options
                        )
                    except httpcore2.ConnectError as error:
                        errors.append(error)
            if len(errors) == len(addresses):
                raise errors[0]
            connect_timeout *= _CONNECT_TIMEOUT_FACTOR

    async def _look_up(self, host: str) -> list[str]:
        try:
            return await addresses_of(host, self._limiter, f"OTLP: looking up {host}")
        except OSError as error:
            raise httpcore2.ConnectError(f"{host}: {error}") from error


@attrs.define(eq=False, repr=False)
class Client:
    """Sends requests to a collector; an async context manager."""

    _url: httpx2.URL
    _headers: Mapping[str, str]
    _compression: Literal["gzip"] | None
    _tls: ssl.SSLContext
    _proxy: httpcore2.Proxy | None
    _timeout: float

    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(1)
    )
    _network: _Network = attrs.field(init=False, factory=_Network)
    _pool: httpcore2.AsyncConnectionPool = attrs.field(init=False)

    async def __aenter__(self) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=self._tls,
            proxy=self._proxy,
            keepalive_expiry=_KEEP_ALIVE_TIMEOUT,
            network_backend=self._network,
        )
        await self._pool.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._pool.aclose()

    async def post(self, body: bytes) -> Problem | None:
        """Send a request; return what went wrong, if anything."""
        if self._compression:
            body = await self._compressed(body)
        headers = self._all_headers()
        answer = bytearray()
        try:
            with trio.fail_after(self._timeout):
                async with self._pool.stream(
                    "POST", core_url(self._url), headers=headers, content=body
                ) as response:
                    # Breaking out of the loop would abandon httpcore2's generators.
                    with trio.CancelScope() as reading:
                        async for chunk in response.aiter_stream():
                            answer += chunk
                            if len(answer) >= _MAX_ANSWER_SIZE:
                                reading.cancel()
        except trio.TooSlowError:
            what = f"no answer within {self._timeout:g} s"
            # A proxy that finds the body too large may give no answer, either.
            what += self._hint()
            return Problem(what, kind="cut off")  # noqa: ASYNC910  # time has passed
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.ProxyError,
        ) as error:
            return self._cut_off(error)  # noqa: ASYNC910  # likewise
        fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        problem = problem_in(response.status, fields, bytes(answer))
        if problem is not None and problem.kind == "other":
            return attrs.evolve(problem, detail=problem.detail + self._hint())
        return problem

    async def _compressed(self, body: bytes) -> bytes:
        compress = partial(gzip.compress, body, compresslevel=6)
        if len(body) <= _MAX_SIZE_COMPRESSED_IN_LOOP:
            return compress()  # noqa: ASYNC910  # the request itself is a checkpoint
        return await trio.to_thread.run_sync(
            compress,
            thread_name="OTLP: gzip",
            abandon_on_cancel=True,
            limiter=self._limiter,
        )

    def _all_headers(self) -> list[tuple[bytes | str, bytes | str]]:
        headers = {"User-Agent": _USER_AGENT}
        if self._url.userinfo:
            userinfo = f"{self._url.username}:{self._url.password}".encode()
            headers["Authorization"] = f"Basic {b64encode(userinfo).decode()}"
        fixed = {"Content-Type": "application/x-protobuf", "Accept-Encoding": "identity"}
        if self._compression:
            fixed["Content-Encoding"] = self._compression
        # The first header of each name wins.
        chosen: dict[str, tuple[bytes | str, bytes | str]] = {}
        for name, value in chain(fixed.items(), self._headers.items(), headers.items()):
            chosen.setdefault(name.lower(), (name, value))
        return [*chosen.values()]

    def _cut_off(self, error: Exception) -> Problem:
        what = why(error)
        if isinstance(error, httpcore2.ConnectError | httpcore2.ProxyError):
            return Problem(what)
        # To h11, the first bytes of HTTP/2 are an illegal request line.
        hint = self._hint(speaks_http_2="illegal request line" in what)
        return Problem(what + hint, kind="cut off")

    def _hint(self, speaks_http_2: bool = False) -> str:
        return _GRPC_HINT if speaks_http_2 or self._url.port == _GRPC_PORT else ""
