"""Prometheus: the newest totals of all targets, for whoever scrapes them.

Theory of operation
===================

To render all targets when a scrape comes would hold up the loop, and the probes with it,
for as long as that takes; a thread would not help, as it shares the GIL. So the samples of
a target are rendered when its export arrives: a *block* of text for each metric. A scrape
only puts blocks together, family by family, some hundred at a time.

A collector, for a registry of the user's own, makes its samples anew each time, in whatever
thread it is called.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, TypeAlias, cast, final

import attrs
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ._event_metrics import EventMetrics
from ._families import Families, Family, Resolved, valid_text
from ._newest import Series
from ._own_statistics import HELP, PREFIX, Observed, checked_statistics, own_statistics
from ._values import Distribution, Gauge, Map, Value, plain_number

_logger = logging.getLogger("trio_statskeeper")

# Blocks that are put together, and targets that are gone through, between two checkpoints:
# each some tenths of a millisecond.
_STEP = 500

# Milliseconds after which a scraper that reads nothing of what was sent to it counts as
# gone. Hypercorn shields its sending from cancellation, which would have to wait for it.
_UNREAD_TIMEOUT = 10_000

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"

_LAST_EXPORT = "last_export_timestamp_seconds"
_LAST_EXPORT_HELP = "When the newest export of a keeper was taken, in Unix seconds"

_PATHS = ("/", "/metrics")

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
        default=attrs.Factory(
            lambda self: _Page(Families("probe_"), self.created), takes_self=True
        ),
    )
    # By the labels ptype and probe: when the newest export was taken.
    _last_exports: dict[tuple[str, str], float] = attrs.field(
        init=False, repr=False, factory=dict[tuple[str, str], float]
    )

    async def run(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        """Take what a keeper exports, until `exports` ends. Several may run at once.

        Args:
          exports: what a keeper sends. Closed on return.
        """
        page = self._page
        page.use(trio.lowlevel.current_clock())
        with exports:
            async for export in exports:
                page.put(export, trio.current_time())
                labels = export.labels
                keeper = labels.get("ptype", ""), labels.get("probe", "")
                self._last_exports[keeper] = export.timestamp
                if page.puts > len(page.targets):
                    await self._drop_gone()

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
        with ExitStack() as stack:
            sockets = await _listen(host, port, stack)
            server = partial(serve, shutdown_trigger=trio.sleep_forever)
            app = cast("Any", self._answer)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(server, app, _Config(sockets))
                    task_status.started(sockets[0].getsockname()[:2])
            except BaseExceptionGroup as group:
                # Hypercorn's nurseries leave Cancelled in groups.
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
        statistics = _Page(Families(PREFIX, HELP), self.created)
        for observed in self.statistics:
            statistics.put(own_statistics(observed), 0)
        last_exports = _Page(Families(PREFIX, {_LAST_EXPORT: _LAST_EXPORT_HELP}), False)
        for (ptype, probe), timestamp in list(self._last_exports.items()):
            labels = {"ptype": ptype, "probe": probe}
            metrics = {_LAST_EXPORT: Gauge(timestamp)}
            last_exports.put(EventMetrics(timestamp, timestamp, labels, metrics), 0)
        return statistics, last_exports

    async def _drop_gone(self) -> None:  # noqa: ASYNC910  # few targets take no step
        page = self._page
        page.puts = 0
        now = trio.current_time()
        for number, (series, target) in enumerate(list(page.targets.items()), 1):
            if target.resolved.gone_at <= now and page.targets.get(series) is target:
                page.drop(series)
            if number % _STEP == 0:
                await trio.lowlevel.checkpoint()

    async def _answer(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request, as an ASGI application."""
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
        elif scope["type"] == "websocket":
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
        await self._drop_gone()
        blocks = [b for page in (self._page, *self._own_pages()) for b in page.text()]
        headers = [(b"content-type", _TEXT)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(blocks), _STEP):
            body = b"".join(blocks[start : start + _STEP])
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})


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
    await send({"type": "http.response.body", "body": text.encode()})


class _Config(Config):
    """Hypercorn's configuration, with sockets that are bound already."""

    include_server_header = False
    errorlog = _logger

    def __init__(self, bound: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = bound

    def create_sockets(self) -> Sockets:
        return Sockets([], self._sockets, [])


async def _listen(host: str, port: int, stack: ExitStack) -> list[socket.socket]:
    """Return sockets bound to each address of `host`, on one port."""
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            bound = stack.enter_context(
                socket.create_server((address[0], port), family=family)
            )
            bound.setblocking(False)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
                bound.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_TIMEOUT
                )
            port = bound.getsockname()[1]
            sockets.append(bound)
    except OSError as error:
        raise OSError(
            error.errno, f"can't listen on {host}:{port}: {error.strerror}"
        ) from None
    return sockets


@attrs.frozen(eq=False)
class _Target:
    """The newest export of a target."""

    resolved: Resolved
    start_timestamp: float

    @property
    def families(self) -> list[Family]:
        return [family for family, _ in self.resolved.metrics]


@attrs.define(eq=False)
class _Page:
    """What there is to scrape."""

    _families: Families
    _created: bool
    targets: dict[Series, _Target] = attrs.field(init=False, factory=dict[Series, _Target])
    # By family, for a page must have its samples together, and whether they are those that
    # tell when it was created: in this format, these are a family of their own.
    _blocks: dict[tuple[Family, bool], dict[Series, bytes]] = attrs.field(
        init=False, factory=dict[tuple[Family, bool], dict[Series, bytes]]
    )
    puts: int = attrs.field(init=False, default=0)
    """How many exports were put here since it was looked for targets that are gone."""
    _clock: trio.abc.Clock | None = attrs.field(init=False, default=None)

    def use(self, clock: trio.abc.Clock) -> None:
        """Take the time from `clock`; what came by another clock is gone."""
        if clock is not self._clock:
            self._clock = clock
            self.targets.clear()
            self._blocks.clear()

    def put(self, export: EventMetrics, now: float) -> None:
        """Put `export` in place of the target's last one."""
        self.puts += 1
        resolved = self._families.resolve(export, now)
        target = _Target(resolved, export.start_timestamp)
        series = frozenset(resolved.labels.items())
        last = self.targets.get(series)
        if last is not None and last.families != target.families:
            self.drop(series)
        self.targets[series] = target
        labels = ",".join(f'{n}="{_escaped(v)}"' for n, v in resolved.labels.items())
        for family, value in resolved.metrics:
            for created, samples in self._samples(target, family, value):
                blocks = self._blocks.setdefault((family, created), {})
                blocks[series] = _block(family, labels, samples)

    def drop(self, series: Series) -> None:
        """Drop a target."""
        for family in self.targets.pop(series).families:
            for key in (family, False), (family, True):
                blocks = self._blocks.get(key)
                if blocks is not None:
                    del blocks[series]
                    if not blocks:
                        del self._blocks[key]

    def text(self) -> Iterator[bytes]:
        """Yield the text of a scrape, piece by piece."""
        for (family, created), blocks in self._blocks.items():
            if any(blocks.values()):  # maps may be empty
                yield _heading(family, created)
                yield from blocks.values()

    def metrics(self) -> Iterable[Metric]:
        """Return the same for `prometheus_client`; from any thread."""
        now = -math.inf if self._clock is None else self._clock.current_time()
        metrics: dict[Family, Metric] = {}
        for target in list(self.targets.values()):
            if target.resolved.gone_at <= now:
                continue
            for family, value in target.resolved.metrics:
                for _, samples in self._samples(target, family, value):
                    for suffix, text, number in samples:
                        if family not in metrics:
                            metrics[family] = Metric(family.name, family.help, family.kind)
                        labels = target.resolved.labels
                        if text is not None and family.label is not None:
                            labels = {**labels, family.label: text}
                        metrics[family].add_sample(family.name + suffix, labels, number)
        return metrics.values()

    def _samples(
        self, target: _Target, family: Family, value: Value
    ) -> Iterator[tuple[bool, list[_Sample]]]:
        yield False, _samples(value)
        if self._created and family.kind in ("counter", "histogram"):
            texts = map(valid_text, value.values) if isinstance(value, Map) else (None,)
            start = target.start_timestamp
            yield True, [("_created", text, start) for text in texts]


def _samples(value: Value) -> list[_Sample]:
    if isinstance(value, Map):
        return [("_total", valid_text(key), n) for key, n in value.values.items()]
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
        return [("_info", valid_text(value), 1)]
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
