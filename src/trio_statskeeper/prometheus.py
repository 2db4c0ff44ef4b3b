"""Prometheus: the newest totals of all targets, for whoever scrapes them.

Theory of operation
===================

To render all targets when a scrape comes would hold up the loop, and the probes with it,
for as long as that takes; a thread would not help, as it shares the GIL. So the samples of
a target are rendered when its export arrives: a *block* of text for each metric. A scrape
only puts blocks together, family by family, and some at a time.

Each connection is served by Hypercorn's Trio worker. Its own server would end, and the
nursery with it, upon some requests that make no sense.

A collector, for a registry of the user's own, makes its samples anew each time, in whatever
thread it is called.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate, chain
from typing import Any, Protocol, TypeAlias, TypeVarTuple, cast, final

import attrs
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio import task_group, worker_context
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ._event_metrics import EventMetrics
from ._families import Families, Family, Resolved
from ._newest import Series
from ._own_statistics import HELP, PREFIX, Observed, checked_statistics, own_statistics
from ._values import MAX_NUMBER, Distribution, Gauge, Map, Value, plain_number, quote

_logger = logging.getLogger("trio_statskeeper")

# Targets that are gone through, and bytes that are put together, between two checkpoints:
# each some tenths of a millisecond.
_STEP = 500
_CHUNK = 2**16

# Seconds after which a scraper that reads nothing of what was sent to it counts as gone.
_UNREAD_TIMEOUT = 10.0

# Seconds that an answer may take: by HTTP/2, a client can have it wait for ever.
_ANSWER_TIMEOUT = 300.0

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"

_LAST_EXPORT = "last_export_timestamp_seconds"
_LAST_EXPORT_HELP = "When the newest export of a keeper was taken, in Unix seconds"

_PATHS = ("/", "/metrics")

_Args = TypeVarTuple("_Args")

# As Prometheus writes them.
_NOT_FINITE = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}

# What the name of a sample adds to that of its family; the text of the family's label, if
# it has one; the number.
_Sample: TypeAlias = tuple[str, str | None, float]


@final
@attrs.frozen(eq=False)
class PrometheusExporter(Collector):
    """Hold the newest export of each target for Prometheus.

    It serves them itself,

        prometheus = PrometheusExporter(statistics=[keeper, prober])
        nursery.start_soon(prometheus.run, exports)
        nursery.start_soon(prometheus.serve, 9464)

    or is a collector: `registry.register(prometheus)` adds them to a registry of
    `prometheus_client` that something else serves.

    A metric `success` is exported as `probe_success_total`, `resp-code` as
    `probe_resp_code_total` with one more label, `latency` in seconds as
    `probe_latency_seconds`, a string as a label of an info metric. If two metrics would
    have one name, or one has values of two kinds, the first alone is exported, and that is
    logged. A target that has not come for three of its export intervals is gone.

    Raises:
      TypeError: if `statistics` has something that is neither keeper nor prober.
      ValueError: if the statistics of two could not be told apart.
    """

    statistics: tuple[Observed, ...] = attrs.field(
        default=(), kw_only=True, converter=checked_statistics
    )
    """Keepers and probers whose own statistics are exported, too: `statskeeper_…`."""

    created: bool = attrs.field(default=False, kw_only=True)
    """Whether `…_created` tells when each counter and histogram began at zero."""

    _page: _Page = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: _Page("probe_", self.created), takes_self=True),
    )
    # By the labels ptype and probe: when the newest export was taken.
    _last_exports: dict[tuple[str, str], float] = attrs.field(
        init=False, repr=False, factory=dict[tuple[str, str], float]
    )

    @trio.lowlevel.enable_ki_protection
    async def run(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        """Take what a keeper exports, until `exports` ends. Several may run at once.

        Args:
          exports: what a keeper sends. Closed on return.
        """
        page = self._page
        page.use(trio.lowlevel.current_clock())
        with exports:
            async for export in exports:
                page.put(export)
                labels = export.labels
                keeper = labels.get("ptype", ""), labels.get("probe", "")
                if abs(export.timestamp) <= MAX_NUMBER:
                    self._last_exports[keeper] = export.timestamp
                await page.drop_gone_at_times()

    @trio.lowlevel.enable_ki_protection
    async def serve(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer scrapes at `http://HOST:PORT/metrics`, until cancelled.

        Args:
          port: where to listen; 0 for a port that is free.
          host: a name or address of this machine. Who can reach it can read all labels.
          task_status: for `nursery.start`, told the address: host and port.

        Raises:
          OSError: if nothing can listen there.
          ValueError: if `port` is not from 0 to 65535.
        """
        if not 0 <= port <= 65_535:
            raise ValueError(f"port must be from 0 to 65535, got {port!r}")
        streams: set[trio.SocketStream] = set()
        listeners = await _listen(host, port)
        task_status.started(listeners[0].socket.getsockname()[:2])
        serve_stream = partial(self._serve_stream, streams)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_upon_cancellation, streams)
                await trio.serve_listeners(
                    serve_stream,
                    listeners,
                    handler_nursery=cast("trio.Nursery", _ProtectedNursery(nursery)),
                )
        except BaseExceptionGroup as group:
            # Nurseries within nurseries leave Cancelled in groups.
            if group.split(trio.Cancelled)[1] is not None:
                raise
        await trio.lowlevel.checkpoint_if_cancelled()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, for a registry of `prometheus_client`; from any thread."""
        for page in (self._page, *self._own_pages()):
            yield from page.metrics()

    def describe(self) -> list[Metric]:
        """Return nothing: what there is to export is known only when it comes."""
        return []

    def _own_pages(self) -> tuple[_Page, _Page]:
        """Return what there is to tell of keepers and probers as of now."""
        statistics = _Page(PREFIX, self.created, HELP)
        for observed in self.statistics:
            statistics.put(own_statistics(observed))
        last_exports = _Page(PREFIX, False, {_LAST_EXPORT: _LAST_EXPORT_HELP})
        for (ptype, probe), timestamp in list(self._last_exports.items()):
            labels = {"ptype": ptype, "probe": probe}
            metrics = {_LAST_EXPORT: Gauge(timestamp)}
            last_exports.put(EventMetrics(timestamp, timestamp, labels, metrics))
        return statistics, last_exports

    @trio.lowlevel.enable_ki_protection
    async def _serve_stream(
        self, streams: set[trio.SocketStream], stream: trio.SocketStream
    ) -> None:
        """Answer what comes by one connection; whatever goes wrong ends no other."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
            stream.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_UNREAD_TIMEOUT * 1000)
            )
        app = ASGIWrapper(cast("Any", self._answer))
        state = cast("ConnectionState", {})
        streams.add(stream)
        try:
            await TCPServer(app, _Config(), WorkerContext(None), state, cast("Any", stream))
        except BaseExceptionGroup as group:
            error = cast("BaseException | None", group.split(trio.Cancelled)[1])
            if not isinstance(error, Exception):
                raise
            _logger.warning("a connection for metrics failed: %r", error)
            await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            streams.discard(stream)

    @trio.lowlevel.enable_ki_protection
    async def _answer(self, scope: _Message, receive: _Receive, send: _Send) -> None:
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
        page = self._page
        page.use(trio.lowlevel.current_clock())
        await page.drop_gone()
        headers = [(b"content-type", _TEXT)]
        blocks = [*page.text(), *(text for own in self._own_pages() for text in own.text())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = bytearray()
        for block in chain.from_iterable(blocks):
            body += block
            if len(body) >= _CHUNK:
                await _send_body(send, bytes(body), more=True)
                body.clear()
        await _send_body(send, bytes(body), more=False)


_Message: TypeAlias = Mapping[str, Any]


class _Receive(Protocol):
    async def __call__(self) -> _Message: ...


class _Send(Protocol):
    async def __call__(self, message: _Message, /) -> None: ...


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
    errorlog = _logger
    # Seconds for a first request, and until the next.
    keep_alive_timeout = 5.0
    # Seconds in which nothing comes from the client, as while it reads a long answer. A
    # client that announces HTTP/2, but requests nothing, meets no other limit.
    read_timeout = 300


@attrs.frozen
class _ProtectedNursery:
    """Starts tasks for `trio.serve_listeners`, whose own tasks are not protected.

    A Ctrl-C within `Nursery.start_soon` would leave half a task behind: a nursery that
    waits for it never ends.
    """

    nursery: trio.Nursery

    @trio.lowlevel.enable_ki_protection
    def start_soon(
        self, function: Callable[[*_Args], Awaitable[object]], *args: *_Args
    ) -> None:
        self.nursery.start_soon(function, *args)


# The tasks in which Hypercorn starts others. Of the second, which it makes anew each time,
# all share the code that is marked.
trio.lowlevel.enable_ki_protection(task_group._handle)  # noqa: SLF001
trio.lowlevel.enable_ki_protection(
    worker_context._cancel_wrapper(trio.sleep_forever)  # noqa: SLF001
)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise OSError(
            error.errno, f"can't listen on {host}:{port}: {error.strerror}"
        ) from None
    except UnicodeError as error:  # what can't be the name of a host at all
        raise OSError(f"can't listen on {host}:{port}: {error}") from None
    # A port that is free may be another for each of the host's addresses.
    for further in listeners[1:] if port == 0 else ():
        further.socket.close()
        listeners.remove(further)
    return listeners


@trio.lowlevel.enable_ki_protection
async def _close_upon_cancellation(streams: set[trio.SocketStream]) -> None:
    """Close all connections when cancelled: Hypercorn shields its sending from that."""
    try:
        await trio.sleep_forever()
    finally:
        for stream in streams:
            stream.socket.close()


@attrs.frozen(eq=False)
class _Target:
    """The newest export of a target."""

    resolved: Resolved
    labels: Mapping[str, str]
    """Those of the export itself."""
    start_timestamp: float

    @property
    def families(self) -> list[Family]:
        return [family for family, _ in self.resolved.metrics]


@attrs.define(eq=False)
class _Page:
    """What there is to scrape."""

    _prefix: str
    _created: bool
    _help: Mapping[str, str] = attrs.field(factory=dict[str, str])
    _targets: dict[Series, _Target] = attrs.field(init=False, factory=dict[Series, _Target])
    # By family, for a page must have its samples together, and whether they are those that
    # tell when it was created: in this format, these are a family of their own.
    _blocks: dict[tuple[Family, bool], dict[Series, bytes]] = attrs.field(
        init=False, factory=dict[tuple[Family, bool], dict[Series, bytes]]
    )
    _families: Families = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: Families(self._prefix, self._help), takes_self=True
        ),
    )
    _clock: trio.abc.Clock | None = attrs.field(init=False, default=None)
    # How many exports were put here since it was looked for targets that are gone.
    _puts: int = attrs.field(init=False, default=0)

    def use(self, clock: trio.abc.Clock) -> None:
        """Take the time from `clock`; what came by another one is gone."""
        if clock is not self._clock:
            self._clock = clock
            self._targets.clear()
            self._blocks.clear()
            self._families = Families(self._prefix, self._help)

    @property
    def _now(self) -> float:
        # The statistics of keepers and probers are never gone.
        return 0.0 if self._clock is None else self._clock.current_time()

    def put(self, export: EventMetrics) -> None:
        """Put `export` in place of the target's last one."""
        now = self._now
        resolved = self._families.resolve(export, now)
        target = _Target(resolved, export.labels, export.start_timestamp)
        # To Prometheus, a label that is empty is none.
        series = frozenset(label for label in resolved.labels.items() if label[1])
        last = self._targets.get(series)
        if last is not None:
            if last.labels != export.labels and last.resolved.gone_at > now:
                self._families.leave_out(
                    f"labels {quote(dict(export.labels))}: they become those of "
                    f"{quote(dict(last.labels))}"
                )
                return
            if last.families != target.families:
                self._drop(series)
        labels = ",".join(f'{n}="{_escaped(v)}"' for n, v in resolved.labels.items())
        blocks = [
            (family, created, _block(family, labels, samples))
            for family, value in resolved.metrics
            for created, samples in self._samples_of(target, family, value)
        ]
        self._targets[series] = target
        for family, created, block in blocks:
            self._blocks.setdefault((family, created), {})[series] = block
        self._puts += 1

    async def drop_gone_at_times(self) -> None:  # noqa: ASYNC910  # as `drop_gone`
        """Do so after as many exports as there are targets: that takes no time."""
        if self._puts > len(self._targets):
            await self.drop_gone()

    async def drop_gone(self) -> None:  # noqa: ASYNC910  # few targets take no step
        """Drop the targets that are gone."""
        self._puts = 0
        for number, series in enumerate(list(self._targets), 1):
            target = self._targets.get(series)
            if target is not None and target.resolved.gone_at <= self._now:
                self._drop(series)
            if number % _STEP == 0:
                await trio.lowlevel.checkpoint()

    def _drop(self, series: Series) -> None:
        for family in self._targets.pop(series).families:
            for key in (family, False), (family, True):
                blocks = self._blocks.get(key)
                if blocks is not None:
                    del blocks[series]
                    if not blocks:
                        del self._blocks[key]

    def text(self) -> list[list[bytes]]:
        """Return the text of a scrape as it is now, in pieces."""
        now = self._now
        return [
            [_heading(family, created), *blocks.values()]
            for (family, created), blocks in self._blocks.items()
            # Maps may be empty; and what is just gone may have another's name.
            if any(blocks.values()) and family.used_until > now
        ]

    def metrics(self) -> Iterable[Metric]:
        """Return the same for `prometheus_client`; from any thread."""
        metrics: dict[Family, Metric] = {}
        targets = list(self._targets.values())
        now = self._now
        for target in targets:
            if target.resolved.gone_at <= now:
                continue
            for family, value in target.resolved.metrics:
                samples = list(
                    chain.from_iterable(
                        samples for _, samples in self._samples_of(target, family, value)
                    )
                )
                if isinstance(value, Map):
                    # OpenMetrics wants those of each key together.
                    samples.sort(key=lambda sample: sample[1] or "")
                for suffix, text, number in samples:
                    if family not in metrics:
                        metrics[family] = Metric(family.name, family.help, family.kind)
                    labels = target.resolved.labels
                    if text is not None and family.label is not None:
                        labels = {**labels, family.label: text}
                    metrics[family].add_sample(family.name + suffix, labels, number)
        return metrics.values()

    def _samples_of(
        self, target: _Target, family: Family, value: Value
    ) -> Iterator[tuple[bool, list[_Sample]]]:
        yield False, _samples(value)
        if self._created and family.kind in ("counter", "histogram"):
            texts = value.values if isinstance(value, Map) else (None,)
            yield True, [("_created", text, target.start_timestamp) for text in texts]


def _samples(value: Value) -> list[_Sample]:
    if isinstance(value, Map):
        return [("_total", key, n) for key, n in value.values.items()]
    if isinstance(value, Distribution):
        bounds = (*map(repr, value.bounds), "+Inf")
        counts = accumulate(value.bucket_counts)
        return [
            *(("_bucket", le, count) for le, count in zip(bounds, counts, strict=True)),
            ("_sum", None, value.sum),
            ("_count", None, value.count),
        ]
    if isinstance(value, Gauge):
        return [("", None, value.value)]
    if isinstance(value, str):
        return [("_info", value, 1)]
    return [("_total", None, value)]


def _block(family: Family, labels: str, samples: list[_Sample]) -> bytes:
    """Return the lines of one target."""
    name = family.name
    further = f"{labels},{family.label}" if labels else family.label
    lines = [
        f"{name}{suffix}{{{labels}}} {_number(number)}\n"
        if text is None
        else f'{name}{suffix}{{{further}="{_escaped(text)}"}} {_number(number)}\n'
        for suffix, text, number in samples
    ]
    return "".join(lines).encode()


def _heading(family: Family, created: bool) -> bytes:
    name, kind = family.name, str(family.kind)
    if created:
        name, kind = f"{name}_created", "gauge"
    elif kind == "counter":
        name += "_total"
    elif kind == "info":
        name, kind = f"{name}_info", "gauge"
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(number: float) -> str:
    text = repr(plain_number(number))
    return _NOT_FINITE.get(text, text)
