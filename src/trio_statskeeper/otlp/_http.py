"""HTTP for OTLP: one request at a time, directly or through a proxy.

Nothing here uses Trio's default limit of threads, which a program's own hanging name
lookups may exhaust: names are looked up, and requests compressed, in one thread each.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address, ip_network
from itertools import chain
from typing import Any, Literal, TypeAlias, cast
from urllib.request import getproxies, proxy_bypass

import attrs
import httpcore2
import httpx2
import trio
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from trio_statskeeper._arguments import quote
from trio_statskeeper._lookup import addresses_of, is_address

# Bytes that are compressed in the loop, in some tenths of a millisecond; more in a thread.
_COMPRESSED_IN_LOOP = 50_000

# Bytes of an answer that are read; a collector says in some hundred what is wrong.
_ANSWER_SIZE = 16_384

# Seconds for which an idle connection is kept; many servers close theirs then.
_KEEP_ALIVE = 5.0

# Seconds that each address of a name has in the first round, and how many times longer in
# each further one. A collector may have an address of IPv6 that can't be reached from here.
_FIRST_PATIENCE = 0.25
_MORE_PATIENCE = 4

# The trouble may be over the next time, according to OTLP's specification.
_RETRIED = frozenset((429, 502, 503, 504))

# Something in the request was refused; the rest of it may be fine.
_BAD_DATA = frozenset((400, 422))

# Characters of an exception that are logged; some quote all that they got.
_CAUSE_LENGTH = 200

_GRPC_PORT = 4317
_GRPC_HINT = "; is this the gRPC port (4317)? OTLP over HTTP is 4318"

_USER_AGENT = f"trio-statskeeper/{version('trio-statskeeper')}"

Kind: TypeAlias = Literal["remark", "retried", "cut off", "too large", "bad data", "other"]


@attrs.frozen
class Problem:
    """Why a request did not do all that it should."""

    what: str
    """What is logged once."""
    detail: str = ""
    """What is logged with it."""
    kind: Kind = "retried"
    """What to do: nothing, for `remark`: the collector took the request. `retried`: send
    it once more; `cut off`: likewise, but it may have been too large. The others: not that
    request."""
    retry_after: float | None = None
    """Seconds that the collector asks for."""


def without_secrets(url: str) -> str:
    """Return a valid URL without its user, password and query."""
    return re.sub("//[^/]*@", "//", url).partition("?")[0]


def quote_invalid(url: str) -> str:
    """Quote an invalid URL, of which all before the last @ may belong to a password."""
    shown = re.sub(r"(?is)^([a-z][a-z0-9+.-]*://)?.*@", r"\1", url)
    return quote(shown.partition("?")[0])


# Proxies


def proxy_for(url: httpx2.URL) -> httpcore2.Proxy | None:
    """Return the proxy that the environment has for `url`; loopback needs none.

    Raises:
      ValueError: if that is not the URL of an HTTP proxy; the message names the variable.
    """
    proxies = getproxies()
    if _is_loopback(url.host) or _is_in_no_proxy(url, proxies.get("no", "")):
        return None
    for scheme in (url.scheme, "all"):
        if address := proxies.get(scheme):
            return _proxy(scheme, address)
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return is_address(host) and ip_address(host).is_loopback


def _is_in_no_proxy(url: httpx2.URL, no_proxy: str) -> bool:
    entries = [entry.strip().strip("[]") for entry in no_proxy.split(",")]
    if "*" in entries or url.host in entries or proxy_bypass(url.netloc.decode()):
        return True
    if is_address(url.host):
        for entry in entries:
            with suppress(ValueError):
                if ip_address(url.host) in ip_network(entry, strict=False):
                    return True
    return False


def _proxy(scheme: str, address: str) -> httpcore2.Proxy:
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    # Some systems have settings of their own.
    name = next((name for name in names if name in os.environ), f"{scheme} proxy")
    if "://" not in address:
        address = f"http://{address}"
    try:
        url = httpx2.URL(address)
        url.raw_host.decode("ascii").encode("idna")
    except (httpx2.InvalidURL, UnicodeError):
        url = httpx2.URL()
    if (
        url.scheme not in ("http", "https")
        or not url.host
        or not (url.port is None or 0 < url.port < 2**16)
    ):
        raise ValueError(
            f"{name} must be the URL of an HTTP proxy, like 'http://proxy:3128', got "
            f"{quote_invalid(address)}; list the collector in NO_PROXY if it "
            "needs no proxy"
        )
    return httpcore2.Proxy(
        url=core_url(url.copy_with(raw_path=b"/")),
        auth=(url.username.encode(), url.password.encode()) if url.userinfo else None,
    )


def core_url(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


# Connections


@attrs.define(eq=False)
class _Network(httpcore2.AsyncNetworkBackend):
    """Trio's sockets, but for how names are looked up."""

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
        patience = _FIRST_PATIENCE
        while True:
            await trio.lowlevel.checkpoint()
            errors: list[httpcore2.ConnectError] = []
            for address in addresses:
                with trio.move_on_after(patience):  # noqa: ASYNC912  # it can be cancelled
                    try:
                        return await self._sockets.connect_tcp(
                            address, port, timeout, local_address, socket_options
                        )
                    except httpcore2.ConnectError as error:
                        errors.append(error)
            if len(errors) == len(addresses):
                raise errors[0]
            patience *= _MORE_PATIENCE

    async def _look_up(self, host: str) -> list[str]:
        try:
            return await addresses_of(host, self._limiter, f"OTLP: looking up {host}")
        except OSError as error:
            raise httpcore2.ConnectError(f"{host}: {error}") from error


# Requests


@attrs.define(eq=False, repr=False)
class Client:
    """What sends requests to a collector; an async context manager."""

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
            keepalive_expiry=_KEEP_ALIVE,
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
                    # To leave the loop would leave httpcore2's generators behind.
                    with trio.CancelScope() as reading:
                        async for chunk in response.aiter_stream():
                            answer += chunk
                            if len(answer) >= _ANSWER_SIZE:
                                reading.cancel()
        except trio.TooSlowError:
            what = f"no answer within {self._timeout:g} s"
            # A body that is too large for something in between may get no answer either.
            what += self._hint()
            return Problem(what, kind="cut off")  # noqa: ASYNC910  # time has passed
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.ProxyError,
        ) as error:
            return self._cut_off(error)  # noqa: ASYNC910  # likewise
        fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        problem = _problem(response.status, fields, bytes(answer))
        if problem is not None and problem.kind == "other":
            return attrs.evolve(problem, detail=problem.detail + self._hint())
        return problem

    async def _compressed(self, body: bytes) -> bytes:
        compress = partial(gzip.compress, body, compresslevel=6)
        if len(body) <= _COMPRESSED_IN_LOOP:
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
        # The first of each name counts.
        chosen: dict[str, tuple[bytes | str, bytes | str]] = {}
        for name, value in chain(fixed.items(), self._headers.items(), headers.items()):
            chosen.setdefault(name.lower(), (name, value))
        return [*chosen.values()]

    def _cut_off(self, error: Exception) -> Problem:
        what = why(error)
        if isinstance(error, httpcore2.ConnectError | httpcore2.ProxyError):
            return Problem(what)
        # What h11 calls so begins with a byte that is no character, as HTTP/2 does.
        hint = self._hint(speaks_http_2="illegal request line" in what)
        return Problem(what + hint, kind="cut off")

    def _hint(self, speaks_http_2: bool = False) -> str:
        return _GRPC_HINT if speaks_http_2 or self._url.port == _GRPC_PORT else ""


def _problem(status: int, headers: Mapping[bytes, str], answer: bytes) -> Problem | None:
    """Return what is wrong according to the collector's answer."""
    if 200 <= status < 300:
        message = ExportMetricsServiceResponse()
        try:
            message.ParseFromString(answer)
        except DecodeError:
            return None  # whatever it is, it has no partial success
        rejected = message.partial_success.rejected_data_points
        remark = message.partial_success.error_message
        if not rejected and not remark:
            return None
        what = f"a partial success: {quote(remark)}"
        return Problem(what, f", {rejected} data points rejected", kind="remark")
    said = _said(headers.get(b"content-type", ""), answer)
    what, detail = f"status {status}", f": {quote(said)}" if said else ""
    if status in _RETRIED:
        retry_after = _seconds(headers.get(b"retry-after", ""))
        return Problem(what, detail, retry_after=retry_after)
    if status == 413:
        return Problem(what, detail, kind="too large")
    return Problem(what, detail, kind="bad data" if status in _BAD_DATA else "other")


def _said(content_type: str, answer: bytes) -> str:
    """Return what an error says in words: in a google.rpc.Status, or in plain text."""
    if content_type.startswith("application/x-protobuf"):
        # It has the fields of a Status: an integer, and the message.
        status = ExportMetricsPartialSuccess()
        with suppress(DecodeError):
            status.ParseFromString(answer)
        return str(status.error_message)
    text = answer.decode(errors="replace")
    if content_type.startswith("application/json"):
        with suppress(ValueError, TypeError, LookupError, RecursionError):
            return str(json.loads(text)["message"])
    # Bytes that are no text tell nobody anything.
    return "" if re.search("[\0-\x08\x0e-\x1f]", text) else text


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that are given, or until the time that is."""
    if re.fullmatch("[0-9]+", retry_after):
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def why(error: BaseException) -> str:
    """Return the name of the exception's class, and what its innermost cause says."""
    name = type(error).__name__
    while not str(error) and (cause := error.__cause__ or error.__context__):
        error = cause
    return f"{name}: {str(error)[:_CAUSE_LENGTH]}"
