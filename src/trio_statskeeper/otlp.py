"""An output: OpenTelemetry's protocol (OTLP) over HTTP, to any collector.

Theory of operation
===================

`OTLPExporter.run` has two tasks. One receives exports and puts them into `_newest.Newest`,
which keeps the newest of each series. The other sends what waits there, one request at a
time, and takes it out when the collector has it. Meanwhile it goes on waiting, so that a
newer export takes its place, and what is gone is dropped: totals are cumulative, and
whatever is sent last is right. Before each try the request is built anew.

Requests are built data point by data point, with checkpoints in between, and are of bounded
size, for each is serialised in one step.

When the exports end, there is a time limit for what still waits. When `run` is cancelled
and has a `flush_timeout`, both tasks are started once more, under a shield.
"""

from __future__ import annotations

import gzip
import logging
import random
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import chain
from time import perf_counter
from types import MappingProxyType
from typing import Any, Literal, final

import attrs
import httpx2
import trio
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)

from ._checks import above_zero, zero_or_more
from ._event_metrics import EventMetrics
from ._families import Families
from ._newest import Newest
from ._nursery import open_flat_nursery
from ._otlp_request import Request
from ._own_statistics import HELP, PREFIX, Observed, checked_statistics, own_statistics
from ._values import quote

_logger = logging.getLogger("trio_statskeeper")

# Seconds for which what comes after an export is waited for: a pass comes export by export.
_GATHERING = 0.05

# Seconds after which the keepers' own statistics are sent even if there are no exports.
_STATISTICS_INTERVAL = 10.0

# Bytes after which a request takes no further export. One of that size is serialised in
# less than a millisecond, and far from what servers refuse.
_REQUEST_SIZE = 250_000

# Exports that a request may have at most: to take them out of what waits is one step, too.
_REQUEST_EXPORTS = 500

# Seconds of building between two checkpoints.
_BUILDING_STEP = 0.0005

# Bytes that are compressed at once, in some tenths of a millisecond; more in a thread.
_COMPRESSED_AT_ONCE = 50_000

# Problems of which it is remembered that they were logged.
_MEMORY = 1_000

# Bytes of an answer that are looked at; a collector says in some hundred what is wrong.
_ANSWER_SIZE = 16_384

# What may be better the next time, according to OTLP's specification.
_RETRIED = frozenset((429, 502, 503, 504))

# Seconds until the first retry, doubled for each further one, and at most.
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 30.0

# Seconds that a collector may ask for by Retry-After.
_LONGEST_RETRY_AFTER = 300.0

_HEADER_NAME = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_HEADER_VALUE = re.compile(r"\A[ \t]|[^\t -~]|[ \t]\Z")

# Those that follow from what is sent.
_OWN_HEADERS = frozenset(
    ("content-type", "content-encoding", "content-length", "transfer-encoding")
)


def _without_secrets(endpoint: str) -> str:
    return re.sub("//[^/]*@", "//", endpoint).partition("?")[0]


def _endpoint(endpoint: str) -> str:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be a URL as a string, got {quote(endpoint)}")
    shown = quote(_without_secrets(endpoint))
    try:
        url = httpx2.URL(endpoint)
        url.raw_host.decode("ascii").encode("idna")
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ValueError(f"endpoint must be a URL, got {shown}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"endpoint must be like 'http://localhost:4318' or 'https://…', got {shown}"
        )
    if url.port is not None and not 0 < url.port < 2**16:
        raise ValueError(f"endpoint must have a port from 1 to 65535, got {shown}")
    path, mark, query = url.raw_path.partition(b"?")
    path = path.rstrip(b"/")
    if not path.endswith(b"/v1/metrics"):
        path += b"/v1/metrics"
    return str(url.copy_with(raw_path=path + mark + query))


def _texts(name: str, texts: Mapping[Any, Any]) -> Mapping[str, str]:
    if not isinstance(texts, Mapping):
        raise TypeError(f"{name} must be a mapping, got {quote(texts)}")
    for key, value in texts.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"{name} must be strings by name, got a {type(value).__name__} "
                f"for {quote(key)}"
            )
    return MappingProxyType(dict(texts))


def _resource_attributes(attributes: Mapping[str, str]) -> Mapping[str, str]:
    checked = _texts("resource_attributes", attributes)
    if "" in checked:
        raise ValueError("resource_attributes must have names, got one that is empty")
    if "service.name" in checked:
        raise ValueError(
            "resource_attributes can't have 'service.name': give it as service_name"
        )
    return checked


def _headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    checked = _texts("headers", headers)
    for name, value in checked.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(
                "headers must have names of ASCII letters, digits and hyphens, "
                f"got {quote(name)}"
            )
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"headers can't have {name!r}: it follows from what is sent")
        # The value itself may be a secret.
        wrong = _NOT_IN_HEADER_VALUE.search(value)
        if wrong:
            raise ValueError(
                f"headers must be printable ASCII without spaces around it, "
                f"got {wrong[0]!r} in that of {name!r}"
            )
    return checked


def _service_name(_: object, attribute: attrs.Attribute[str], service_name: str) -> None:
    if not isinstance(service_name, str):
        raise TypeError(f"{attribute.name} must be a string, got {quote(service_name)}")
    if not service_name:
        raise ValueError(f"{attribute.name} must not be empty")


def _compression(_: object, attribute: attrs.Attribute[Any], compression: object) -> None:
    if compression not in ("gzip", None):
        raise ValueError(
            f"{attribute.name} must be 'gzip' or None, got {quote(compression)}"
        )


def _ssl_context(_: object, attribute: attrs.Attribute[Any], context: object) -> None:
    if context is not None and not isinstance(context, ssl.SSLContext):
        raise TypeError(
            f"{attribute.name} must be an ssl.SSLContext or None, got {quote(context)}"
        )


@attrs.define(eq=False)
class _Progress:
    """What changes as an exporter runs."""

    busy: bool = False


@final
@attrs.frozen(eq=False)
class OTLPExporter:
    """Send what keepers export to an OpenTelemetry collector, by OTLP over HTTP.

        exporter = OTLPExporter("http://localhost:4318", service_name="website-probes")
        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(exporter.run, exports_receive)

    Totals become cumulative monotonic sums, distributions histograms, gauges and strings
    gauges. While the collector is down, the newest totals of each target are kept. The
    environment's proxies (`HTTPS_PROXY`, `NO_PROXY`, ...) are used.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if `endpoint` is no URL of HTTP, a header is none, a name is empty, or a
        number is out of range.
    """

    endpoint: str = attrs.field(converter=_endpoint, repr=_without_secrets)
    """The URL of the collector: `/v1/metrics` is added, unless its path ends so."""

    service_name: str = attrs.field(
        default="trio-statskeeper", kw_only=True, validator=_service_name
    )
    """What the resource has as its attribute `service.name`."""

    resource_attributes: Mapping[str, str] = attrs.field(
        factory=dict[str, str], kw_only=True, converter=_resource_attributes
    )
    """Further attributes of the resource; a read-only copy."""

    headers: Mapping[str, str] = attrs.field(
        factory=dict[str, str], kw_only=True, converter=_headers, repr=False
    )
    """Further headers, for authentication for instance; a read-only copy."""

    compression: Literal["gzip"] | None = attrs.field(
        default="gzip", kw_only=True, validator=_compression
    )
    """How requests are compressed; None: they are not."""

    ssl_context: ssl.SSLContext | None = attrs.field(
        default=None, kw_only=True, validator=_ssl_context
    )
    """For `https`: whom to trust, and client certificates. None: the usual authorities."""

    timeout: float = attrs.field(default=10.0, kw_only=True, validator=above_zero)
    """Seconds that a request may take, and, when the exports have ended, the delivery of
    all that still waits."""

    flush_timeout: float = attrs.field(default=0.0, kw_only=True, validator=zero_or_more)
    """Seconds that `run`, when cancelled, may go on until the exports have ended and are
    sent. 0: it ends at once."""

    statistics: tuple[Observed, ...] = attrs.field(
        default=(), kw_only=True, converter=checked_statistics
    )
    """Keepers and probers whose own statistics are sent, too, as `statskeeper_…`: with each
    request, and every ten seconds if there are no exports."""

    _tls: ssl.SSLContext = attrs.field(init=False, repr=False)
    _progress: _Progress = attrs.field(init=False, repr=False, factory=_Progress)

    def __attrs_post_init__(self) -> None:
        # To load the usual authorities takes tens of milliseconds: here, not in `run`, and
        # not for nothing.
        context = self.ssl_context
        if context is None and self.endpoint.startswith("https:"):
            context = httpx2.create_ssl_context()
        object.__setattr__(self, "_tls", context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        exports: trio.MemoryReceiveChannel[EventMetrics],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Send exports until they end and are sent, or until cancelled.

        What can't be delivered is logged, and never raised. `run` may be called again, with
        a new channel.

        Args:
          exports: what a keeper sends. Closed on return.
          task_status: for `nursery.start`, told when it begins to receive.

        Raises:
          trio.BusyResourceError: if it is running already; `exports` is not closed then.
        """
        if self._progress.busy:
            raise trio.BusyResourceError("this exporter is already running")
        self._progress.busy = True
        run = _Run(self, self._tls, exports)
        try:
            with exports:
                task_status.started()
                try:
                    await run.until_the_end()
                except trio.Cancelled:
                    if self.flush_timeout > 0:
                        with trio.move_on_after(self.flush_timeout, shield=True):
                            await run.until_the_end()
                    raise
        finally:
            self._progress.busy = False
            run.report_undelivered()


@attrs.frozen
class _Problem:
    """Why a request did not do all that it should."""

    what: str
    """What is logged once."""
    detail: str = ""
    """What is logged with it."""
    retried: bool = False
    refused: bool = False
    """Whether the collector took nothing of it, and never will."""
    retry_after: float | None = None
    """Seconds that the collector asks for."""


@attrs.define(eq=False)
class _Run:
    """A run of an exporter."""

    exporter: OTLPExporter
    tls: ssl.SSLContext
    exports: trio.MemoryReceiveChannel[EventMetrics]
    waiting: Newest = attrs.field(init=False, factory=Newest)
    ended: trio.Event = attrs.field(init=False, factory=trio.Event)
    families: Families = attrs.field(init=False, factory=lambda: Families("probe_"))
    own_families: Families = attrs.field(init=False, factory=lambda: Families(PREFIX, HELP))
    # Those that were logged since the last success.
    problems: set[str] = attrs.field(init=False, factory=set[str])
    # Targets whose last totals were refused.
    refused: int = attrs.field(init=False, default=0)

    async def until_the_end(self) -> None:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._send)
            async for export in self.exports:
                self.waiting.put(export)
            self.waiting.end()
            self.ended.set()
            nursery.cancel_scope.deadline = trio.current_time() + self.exporter.timeout

    def report_undelivered(self) -> None:
        targets = len(self.waiting) + self.refused
        if targets:
            self._log(
                logging.WARNING, f"the totals of {targets} targets were not delivered"
            )

    @trio.lowlevel.enable_ki_protection
    async def _send(self) -> None:
        url = httpx2.URL(self.exporter.endpoint)
        async with httpx2.AsyncClient(
            # httpx2 logs URLs: passwords must not be in them.
            auth=(url.username, url.password) if url.userinfo else None,
            headers=self.exporter.headers,
            # One that is not ASCII would break all further requests.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            verify=self.tls,
            timeout=None,
        ) as client:
            url = url.copy_with(userinfo=b"")
            while await self._wait():
                delay, problem = _FIRST_DELAY, None
                while True:
                    request = await self._build()
                    if not request.size:
                        break
                    problem = await self._post(client, url, request)
                    self._report(problem)
                    if problem is None or not problem.retried:
                        break
                    delay = await self._pause(delay, problem.retry_after)
                waited = len(self.waiting)
                self.waiting.done(request.exports)
                if problem is not None and problem.refused and self.ended.is_set():
                    self.refused += waited - len(self.waiting)

    async def _wait(self) -> bool:
        """Wait until there is something to send; return False if that is never."""
        with trio.move_on_after(_STATISTICS_INTERVAL):
            await self.waiting.wait()
            if len(self.waiting) < _REQUEST_EXPORTS:
                with trio.move_on_after(_GATHERING):
                    await self.ended.wait()
        return len(self.waiting) > 0 or not self.ended.is_set()

    async def _pause(self, delay: float, retry_after: float | None) -> float:
        """Wait before a retry; return the delay before the next."""
        if retry_after is not None:
            await trio.sleep(min(max(retry_after, _FIRST_DELAY), _LONGEST_RETRY_AFTER))
            return delay
        jittered = delay * random.uniform(0.8, 1.2)  # noqa: S311  # no secret
        if self.ended.is_set():
            await trio.sleep(jittered)
        else:
            with trio.move_on_after(jittered):
                await self.ended.wait()
                return _FIRST_DELAY  # there is not much time left
        return min(2 * delay, _LONGEST_DELAY)

    async def _build(self) -> Request:
        """Return a request with the statistics and the first of what waits."""
        exporter = self.exporter
        resource = {"service.name": exporter.service_name, **exporter.resource_attributes}
        request = Request(resource)
        pause_at = perf_counter() + _BUILDING_STEP
        for export, families in chain(
            ((own_statistics(each), self.own_families) for each in exporter.statistics),
            ((export, self.families) for export in self.waiting.first(_REQUEST_EXPORTS)),
        ):
            for _ in request.add(export, families, trio.current_time()):
                if perf_counter() >= pause_at:
                    await trio.lowlevel.checkpoint()
                    pause_at = perf_counter() + _BUILDING_STEP
            if request.size >= _REQUEST_SIZE and families is self.families:
                break
        await trio.lowlevel.checkpoint()
        return request

    async def _post(
        self, client: httpx2.AsyncClient, url: httpx2.URL, request: Request
    ) -> _Problem | None:
        body = request.serialize()
        headers = {"Content-Type": "application/x-protobuf", "Accept-Encoding": "identity"}
        if self.exporter.compression:
            headers["Content-Encoding"] = "gzip"
            compress = partial(gzip.compress, body, compresslevel=6)
            # In a thread, others run meanwhile.
            body = (
                compress()
                if len(body) <= _COMPRESSED_AT_ONCE
                else await trio.to_thread.run_sync(compress, abandon_on_cancel=True)
            )
        answer = bytearray()
        timeout = self.exporter.timeout
        try:
            with trio.fail_after(timeout):
                async with client.stream(
                    "POST", url, content=body, headers=headers
                ) as response:
                    # To leave the loop would leave httpx2's generators behind.
                    with trio.CancelScope() as reading:
                        async for chunk in response.aiter_raw():
                            answer += chunk
                            if len(answer) >= _ANSWER_SIZE:
                                reading.cancel()
        except trio.TooSlowError:
            what = f"no answer within {timeout:g} s"
            return _Problem(what, retried=True)  # noqa: ASYNC910  # time has passed
        # A ValueError: httpx2 tried to understand a redirect that makes no sense.
        except (httpx2.TransportError, ValueError) as error:
            return _Problem(_why(error), retried=True)  # noqa: ASYNC910  # likewise
        return _problem(response, bytes(answer))

    def _report(self, problem: _Problem | None) -> None:
        if problem is None:
            if self.problems:
                self.problems.clear()
                self._log(logging.INFO, "works again")
        elif problem.what not in self.problems:
            if len(self.problems) == _MEMORY:
                self.problems.clear()  # what collectors say has no end
            self.problems.add(problem.what)
            consequence = "not retried"
            if problem.retried:
                targets = len(self.waiting)
                consequence = f"retrying, with the newest totals of {targets} targets"
            self._log(logging.WARNING, f"{problem.what}{problem.detail}; {consequence}")

    def _log(self, level: int, message: str) -> None:
        _logger.log(level, "%s: %s", _without_secrets(self.exporter.endpoint), message)


def _problem(response: httpx2.Response, answer: bytes) -> _Problem | None:
    """Return what is wrong according to the collector's answer."""
    status = response.status_code
    if response.is_success:
        message = ExportMetricsServiceResponse()
        try:
            message.ParseFromString(answer)
        except DecodeError:
            return None  # whatever it is, it has no partial success
        rejected = message.partial_success.rejected_data_points
        remark = message.partial_success.error_message
        if not rejected and not remark:
            return None
        return _Problem(
            f"a partial success: {quote(remark)}", f", {rejected} data points rejected"
        )
    detail = f": {quote(answer.decode(errors='replace'))}" if answer else ""
    if status not in _RETRIED:
        return _Problem(f"status {status}", detail, refused=True)
    retry_after = _seconds(response.headers.get("Retry-After", ""))
    return _Problem(f"status {status}", detail, retried=True, retry_after=retry_after)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that are given, or until the time that is."""
    if re.fullmatch("[0-9]+", retry_after):
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def _why(error: BaseException) -> str:
    """Return the name of the exception's class and what the innermost cause tells."""
    name = type(error).__name__
    while not str(error) and (cause := error.__cause__ or error.__context__):
        error = cause
    return f"{name}: {error}"
