"""The options of an OTLP exporter."""

from __future__ import annotations

import re
import secrets
import socket
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, final

import attrs
import httpcore2
import httpx2
import trio

from trio_statskeeper._arguments import positive, quote
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._self_metrics import Observed, validate_observed

from ._delivery import Delivery
from ._http import Client
from ._url import proxy_for, quote_invalid, without_secrets

_HEADER_NAME = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_HEADER_VALUE = re.compile(r"\A[ \t]|[^\t -~]|[ \t]\Z")

# Headers that are determined by the request.
_RESERVED_HEADERS = frozenset(
    ("content-type", "content-encoding", "content-length", "transfer-encoding")
)


def _endpoint(endpoint: str) -> str:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be a URL as a string, got {quote(endpoint)}")
    shown = quote_invalid(endpoint)
    try:
        url = httpx2.URL(endpoint)
        url.raw_host.decode("ascii").encode("idna")
    except (httpx2.InvalidURL, UnicodeError) as error:
        why = "" if "@" in endpoint else f": {error}"  # the error may quote a password
        raise ValueError(f"endpoint must be a URL, got {shown}{why}") from None
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
        if name.lower() in _RESERVED_HEADERS:
            raise ValueError(
                f"headers can't have {name!r}: it is determined by the request"
            )
        # The value may be a secret, so it is not quoted.
        wrong = _NOT_IN_HEADER_VALUE.search(value)
        if wrong:
            raise ValueError(
                f"headers must be printable ASCII without spaces around it, "
                f"got {wrong[0]!r} in the value of {name!r}"
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
    """The state of an exporter."""

    busy: bool = False


@final
@attrs.frozen(eq=False)
class OTLPExporter:
    """Send what keepers export to an OpenTelemetry collector, by OTLP over HTTP.

        exporter = OTLPExporter("http://localhost:4318", service_name="website-probes")
        async with open_outputs(exporter.run) as exports:
            ...

    Totals become cumulative monotonic sums, distributions become histograms, gauges and
    strings become gauges. While the collector is down, the newest totals of each target are
    kept. The environment's HTTP proxies (`HTTPS_PROXY`, `NO_PROXY`, ...) are used, except
    for this machine.

    Args:
      endpoint: the URL of the collector. `/v1/metrics` is appended, unless its path ends
        with it.
      service_name: the attribute `service.name` of the resource.
      resource_attributes: further attributes of the resource; a read-only copy.
        `service.instance.id` is the host name and a random part, unless it is given here.
      headers: further headers, such as for authentication; a read-only copy.
      compression: how requests are compressed. None: they are not compressed.
      ssl_context: for `https`: trusted and client certificates. None: the default CA
        certificates.
      timeout: seconds that a request may take. Also the seconds to deliver what still waits
        when the exports have ended.
      statistics_of: keepers and probers whose own statistics are sent, too, as
        `statskeeper_…`: in separate requests, every ten seconds and at the end.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if `endpoint` is not an HTTP URL, a header is invalid, a name is empty, a
        number is out of range, or the environment's proxy is not an HTTP proxy.
    """

    endpoint: str = attrs.field(converter=_endpoint, repr=without_secrets)

    service_name: str = attrs.field(
        default="trio-statskeeper", kw_only=True, validator=_service_name
    )

    resource_attributes: Mapping[str, str] = attrs.field(
        factory=dict[str, str], kw_only=True, converter=_resource_attributes
    )

    headers: Mapping[str, str] = attrs.field(
        factory=dict[str, str], kw_only=True, converter=_headers, repr=False
    )

    compression: Literal["gzip"] | None = attrs.field(
        default="gzip", kw_only=True, validator=_compression
    )

    ssl_context: ssl.SSLContext | None = attrs.field(
        default=None, kw_only=True, validator=_ssl_context
    )

    timeout: float = attrs.field(default=10.0, kw_only=True, validator=positive)

    statistics_of: tuple[Observed, ...] = attrs.field(
        default=(), kw_only=True, converter=validate_observed
    )

    _instance_id: str = attrs.field(init=False, repr=False)
    _proxy: httpcore2.Proxy | None = attrs.field(init=False, repr=False)
    _tls: ssl.SSLContext = attrs.field(init=False, repr=False)
    _progress: _Progress = attrs.field(init=False, repr=False, factory=_Progress)

    def __attrs_post_init__(self) -> None:
        # Receivers refuse data points of a series that two programs send.
        instance_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        object.__setattr__(self, "_instance_id", instance_id)
        object.__setattr__(self, "_proxy", proxy_for(httpx2.URL(self.endpoint)))
        # Loading the default CA certificates takes tens of milliseconds, so they are loaded
        # here instead of in `run`, and only if they are needed.
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

        Failures are logged, never raised. `run` may be called again, with a new channel.

        Args:
          exports: what a keeper sends. Closed on return.
          task_status: for `nursery.start`: started when it begins to receive.

        Raises:
          trio.BusyResourceError: if it is already running; `exports` is not closed then.
        """
        if self._progress.busy:
            raise trio.BusyResourceError("this exporter is already running")
        self._progress.busy = True
        delivery = self._delivery(exports)
        try:
            with exports:
                task_status.started()
                await delivery.run()
        finally:
            self._progress.busy = False
            delivery.report_undelivered()

    def _delivery(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> Delivery:
        client = Client(
            httpx2.URL(self.endpoint),
            self.headers,
            self.compression,
            self._tls,
            self._proxy,
            self.timeout,
        )
        resource_attributes = {
            "service.name": self.service_name,
            "service.instance.id": self._instance_id,
            **self.resource_attributes,
        }
        return Delivery(
            without_secrets(self.endpoint),
            client,
            exports,
            resource_attributes,
            self.statistics_of,
            self.timeout,
        )
