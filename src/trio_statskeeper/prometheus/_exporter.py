"""The exporter: it receives exports, renders them, and prepares scrapes."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import final

import attrs
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from trio_statskeeper._arguments import integer
from trio_statskeeper._classic_buckets import validate_buckets_per_power
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._http._basic_auth import validate_users
from trio_statskeeper._http._connection import Request
from trio_statskeeper._http._listening import (
    Listening,
    validate_host,
    validate_port,
    validate_ssl_context,
)
from trio_statskeeper._http._negotiation import prefers_protobuf
from trio_statskeeper._http._server import Answer, Resource, Server
from trio_statskeeper._keeper import StatsKeeper
from trio_statskeeper._pacing import Step
from trio_statskeeper._receiving import process_all
from trio_statskeeper._self_metrics import (
    HELP,
    PREFIX,
    Observed,
    self_metrics,
    validate_observed,
)
from trio_statskeeper._values import Gauge
from trio_statskeeper.status import StatusPage
from trio_statskeeper.status._page import resources_of

from ._exposition import Exposition
from ._page import Page
from ._protobuf_format import ProtobufFormat
from ._text_format import TextFormat

# Seconds for which a scrape waits until all exports that arrived are rendered.
_RENDERING_TIMEOUT = 1.0

_LAST_EXPORT = "last_export_timestamp_seconds"
_LAST_EXPORT_HELP = "When the newest export of a keeper arrived, in Unix seconds"


@final
@attrs.frozen(eq=False)
class PrometheusExporter(Collector):
    """Hold the newest export of each target for Prometheus.

    With a port, the exporter answers scrapes at `http://HOST:PORT/metrics` while it runs:

        prometheus = PrometheusExporter(9464, statistics_of=[keeper, prober])
        async with open_outputs(prometheus.run) as exports:
            ...

    With or without a port, it is a collector: `registry.register(prometheus)` adds the
    totals to a `prometheus_client` registry, for another server.

    A metric `success` is exported as `probe_success_total`, `resp-code` as
    `probe_resp_code_total` with one more label, `latency` in seconds as
    `probe_latency_seconds`, and a string as a label of an info metric. If two metrics would
    have the same name, or one metric has values of two kinds, only the first is exported,
    and the other is logged. A target becomes stale, and is dropped, after three of its
    export intervals without an export.

    Args:
      port: where `run` listens. 0: on any free port. None: `run` does not listen.
      host: a name or address of this machine, or several. All labels are readable there.
        `::` includes IPv4.
      statistics_of: keepers and probers whose own statistics are exported, too, as
        `statskeeper_…`.
      created: whether `…_created` samples say when each counter and histogram began.
      buckets_per_power: classic buckets of an exponential distribution from one power of
        two to the next: 1, 2, 4, 8 or 16. Native histograms have buckets of
        their own.
      ssl_context: serve by TLS, `https://`, with this context. With its `verify_mode` and
        certificate authorities, it can demand certificates of the clients.
      users: who is served, by Basic authentication: names, and hashes of their passwords
        by `hash_password`. None: everyone.
      status: a page that is served, too, at `/status`. It must be among the outputs itself.
      max_connections: how many connections are served at a time. To make room for another,
        the one that has waited longest for a request is closed. If all are being answered,
        the new one gets a 503.
      max_scrapes: how many scrapes and pages are answered at a time. Further requests get
        a 503.

    Raises:
      TypeError: if an argument is of another type, or `statistics_of` has an item that is
        neither a keeper nor a prober.
      ValueError: if `port` is not from 0 to 65535, `host` is empty, `ssl_context` is for
        clients, `users` is empty or has what is not a hash, a limit is not >= 1, or two
        items of `statistics_of` have the same labels.
    """

    port: int | None = attrs.field(default=None, validator=validate_port)

    host: str | Sequence[str] = attrs.field(default="127.0.0.1", converter=validate_host)

    statistics_of: tuple[Observed, ...] = attrs.field(
        default=(), kw_only=True, converter=validate_observed
    )

    created: bool = attrs.field(default=False, kw_only=True)

    buckets_per_power: int = attrs.field(
        default=1, kw_only=True, converter=validate_buckets_per_power
    )

    ssl_context: ssl.SSLContext | None = attrs.field(
        default=None, kw_only=True, validator=validate_ssl_context
    )

    users: Mapping[str, str] | None = attrs.field(
        default=None, kw_only=True, repr=False, converter=validate_users
    )

    status: StatusPage | None = attrs.field(
        default=None,
        kw_only=True,
        validator=attrs.validators.optional(attrs.validators.instance_of(StatusPage)),
    )

    max_connections: int = attrs.field(default=40, kw_only=True, validator=integer(1))

    max_scrapes: int = attrs.field(default=5, kw_only=True, validator=integer(1))

    _text: TextFormat = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(
            lambda self: TextFormat(self.created, self.buckets_per_power), takes_self=True
        ),
    )

    _protobuf: ProtobufFormat = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(
            lambda self: ProtobufFormat(self.buckets_per_power), takes_self=True
        ),
    )

    _page: Page = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: Page("probe_", self._text), takes_self=True),
    )

    _listening: Listening = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(
            lambda self: Listening(self.host, self.port), takes_self=True
        ),
    )

    @property
    def address(self) -> tuple[str, int] | None:
        """The address and port where `run` listens now, or None; the first of several."""
        return self._listening.address

    @trio.lowlevel.enable_ki_protection
    async def run(  # noqa: ASYNC128  # it passes `started` on
        self,
        exports: trio.MemoryReceiveChannel[EventMetrics],
        *,
        task_status: trio.TaskStatus[tuple[str, int] | None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Receive exports and answer scrapes until `exports` ends.

        Then, answers in progress have two seconds to finish. Without a port, several runs
        can be active at once. With a port, let several keepers share clones of one channel.

        Args:
          exports: what a keeper sends. Closed on return.
          task_status: for `nursery.start`, which returns the address, or None.

        Raises:
          OSError: if it can't listen on the port.
          trio.BusyResourceError: if it is already listening; `exports` is not closed then.
        """
        await self._listening.run(self._server, self._take, exports, task_status)

    def _server(self) -> Server:
        resources: dict[str, Resource] = {"/metrics": self._scrape}
        hint = "metrics are at /metrics"
        if self.status is not None:
            resources |= resources_of(self.status)
            hint += ", the status is at /status"
        return Server(
            resources,
            hint,
            self.max_connections,
            self.max_scrapes,
            self.ssl_context,
            self.users,
        )

    @trio.lowlevel.enable_ki_protection
    async def _take(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        await process_all(exports, self._page, self._page.render_first)

    async def _scrape(self, step: Step, request: Request) -> Answer:
        """Return a scrape, in the format that is asked for."""
        names = frozenset(request.parameters().get("name[]", ()))
        is_protobuf = prefers_protobuf(request.header(b"accept"))
        exposition = self._protobuf if is_protobuf else self._text
        page = self._page
        page.use(trio.lowlevel.current_clock())
        with trio.move_on_after(_RENDERING_TIMEOUT):
            await page.render(step)
        await page.drop_stale(step)
        pages: tuple[Page, ...] = (page,)
        for self_pages in self._self_pages(exposition):
            pages = page, *self_pages
            if step.is_half_over:  # the next page may take as long
                await step.pause()
        blocks = chain.from_iterable(page.scrape(exposition, names) for page in pages)
        content_type = (b"Content-Type", exposition.content_type)
        return Answer((content_type, (b"Vary", b"Accept, Accept-Encoding")), blocks)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, for a `prometheus_client` registry; from any thread."""
        *_, self_pages = self._self_pages(self._text)
        for page in (self._page, *self_pages):
            yield from page.metrics(
                created=self.created, buckets_per_power=self.buckets_per_power
            )

    def describe(self) -> list[Metric]:
        """Return nothing: metrics are not known before they are exported."""
        return []

    def _self_pages(self, exposition: Exposition) -> Iterator[tuple[Page, ...]]:
        """Fill the pages on keepers and probers, in short steps of the iterator."""
        # A keeper and its prober have the same labels, so they need separate pages.
        keepers = Page(PREFIX, exposition, HELP)
        probers = Page(PREFIX, exposition, HELP)
        last_exports = Page(PREFIX, exposition, {_LAST_EXPORT: _LAST_EXPORT_HELP})
        pages = keepers, probers, last_exports
        for observed in self.statistics_of:
            yield pages
            page = keepers if isinstance(observed, StatsKeeper) else probers
            page.put(self_metrics(observed))
            page.render_first()
        for (ptype, probe), keeper in list(self._page.keepers.items()):
            yield pages
            labels = {"ptype": ptype, "probe": probe}
            arrived_at = keeper.arrived_at
            metrics = {_LAST_EXPORT: Gauge(arrived_at)}
            last_exports.put(EventMetrics(arrived_at, arrived_at, labels, metrics))
            last_exports.render_first()
        yield pages
