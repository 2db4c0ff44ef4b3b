"""Prometheus: the newest totals of all targets, for whoever scrapes them.

Theory of operation
===================

Rendering all targets when a scrape comes would hold up the loop, and the probes with it. A
thread would not help, as it shares the GIL. So the samples of a target are rendered when
its export has arrived: a *block* of text for each metric. A scrape takes a snapshot of all
blocks, which costs the same however many they are, and joins them family by family. No step
of either takes more than about a millisecond.

Rendering is most of the work. In a busy loop, where steps are rare, exports come faster
than they can be rendered in such steps. So they are taken first, a hundred in a step; the
newest of each target waits to be rendered, and what was rendered before is shown meanwhile.

Each connection is served by Hypercorn's Trio worker. Its own server would end, and the
nursery with it, upon some requests that make no sense.

A collector, for a registry of the user's own, makes its samples anew each time, in whatever
thread it is called.
"""

from __future__ import annotations

import errno
import math
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from itertools import accumulate, chain
from time import perf_counter
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

from ._arguments import quote
from ._event_metrics import EventMetrics
from ._families import Families, Family
from ._keeper import StatsKeeper
from ._log import logger
from ._lookup import addresses_of
from ._newest import Series, when_gone
from ._nursery import open_flat_nursery
from ._own_statistics import HELP, PREFIX, Observed, checked_statistics, own_statistics
from ._segments import SegmentedDict
from ._values import Distribution, Gauge, Map, Value

# Seconds of work between two checkpoints.
_STEP_TIME = 0.0007

# Seconds for which a scrape waits until what has arrived is rendered.
_RENDERING_TIMEOUT = 1.0

# Bytes that are sent at once: some tenths of a millisecond.
_CHUNK = 2**16

# Seconds after which a scraper that reads nothing of what was sent to it counts as gone.
_UNREAD_TIMEOUT = 10.0

# Seconds that an answer may take: by HTTP/2, a client can have it wait for ever.
_ANSWER_TIMEOUT = 300.0

# Seconds that answers may take once the exports have ended.
_LAST_ANSWERS_TIMEOUT = 2.0

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"

_LAST_EXPORT = "last_export_timestamp_seconds"
_LAST_EXPORT_HELP = "When the newest export of a keeper arrived, in Unix seconds"

_PATHS = ("/", "/metrics")

_Args = TypeVarTuple("_Args")

# As Prometheus writes them.
_NOT_FINITE = {"inf": "+Inf", "-inf": "-Inf"}

# What the name of a sample adds to that of its family; the text of the family's label, if
# it has one; the number.
_Sample: TypeAlias = tuple[str, str | None, float]


def _port(_: object, attribute: attrs.Attribute[Any], port: object) -> None:
    if port is None:
        return
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"{attribute.name} must be an integer or None, got {quote(port)}")
    if not 0 <= port <= 65_535:
        raise ValueError(f"{attribute.name} must be from 0 to 65535, got {port}")


@attrs.define(eq=False)
class _Listening:
    """What changes as an exporter with a port runs."""

    busy: bool = False
    address: tuple[str, int] | None = None


@attrs.define(eq=False)
class _Connections:
    """The connections of scrapers, and how many of their requests are being answered."""

    streams: set[trio.SocketStream] = attrs.field(factory=set[trio.SocketStream])
    _unanswered: int = 0
    _answered: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    @contextmanager
    def answering(self) -> Generator[None]:
        self._unanswered += 1
        try:
            yield
        finally:
            self._unanswered -= 1
            self._answered.unpark_all()

    async def wait_until_all_are_answered(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._unanswered:
            await self._answered.park()

    @trio.lowlevel.enable_ki_protection
    async def close_when_cancelled(self) -> None:
        """Close all when cancelled: Hypercorn shields its sending from that."""
        try:
            await trio.sleep_forever()
        finally:
            for stream in self.streams:
                stream.socket.close()


@final
@attrs.frozen(eq=False)
class PrometheusExporter(Collector):
    """Hold the newest export of each target for Prometheus.

    With a port, it answers scrapes at `http://HOST:PORT/metrics` while it runs:

        prometheus = PrometheusExporter(9464, statistics_of=[keeper, prober])
        async with open_outputs(prometheus.run) as exports:
            ...

    With or without, it is a collector: `registry.register(prometheus)` adds the totals to a
    registry of `prometheus_client` that something else serves.

    A metric `success` is exported as `probe_success_total`, `resp-code` as
    `probe_resp_code_total` with one more label, `latency` in seconds as
    `probe_latency_seconds`, a string as a label of an info metric. If two metrics would
    have one name, or one has values of two kinds, the first alone is exported, and that is
    logged. A target that has not come for three of its export intervals is gone.

    Args:
      port: where `run` listens. 0: any port that is free. None: it does not listen.
      host: a name or address of this machine. Who can reach it can read all labels.
      statistics_of: keepers and probers whose own statistics are exported, too:
        `statskeeper_…`.
      created: whether `…_created` tells when each counter and histogram began at zero.

    Raises:
      TypeError: if `port` is not an integer, `host` is not a string, or `statistics_of` has
        something that is neither keeper nor prober.
      ValueError: if `port` is not from 0 to 65535, or the statistics of two could not be
        told apart.
    """

    port: int | None = attrs.field(default=None, validator=_port)

    host: str = attrs.field(
        default="127.0.0.1", validator=attrs.validators.instance_of(str)
    )

    statistics_of: tuple[Observed, ...] = attrs.field(
        default=(), kw_only=True, converter=checked_statistics
    )

    created: bool = attrs.field(default=False, kw_only=True)

    _page: _Page = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: _Page("probe_", self.created), takes_self=True),
    )

    _listening: _Listening = attrs.field(init=False, repr=False, factory=_Listening)

    @property
    def address(self) -> tuple[str, int] | None:
        """The host and port where it listens now, or None."""
        return self._listening.address

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        exports: trio.MemoryReceiveChannel[EventMetrics],
        *,
        task_status: trio.TaskStatus[tuple[str, int] | None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take what keepers export, and answer scrapes, until `exports` ends.

        Answers in progress are finished then, for two seconds at most. Without a port,
        several may run at once. With one, several keepers share one channel by clones.

        Args:
          exports: what a keeper sends. Closed on return.
          task_status: for `nursery.start`, told the address where it listens, or None.

        Raises:
          OSError: if it can't listen there.
          trio.BusyResourceError: if it listens already; `exports` is not closed then.
        """
        listening = self._listening
        if self.port is None:
            task_status.started(None)
            await self._take(exports)
            return
        if listening.busy:
            raise trio.BusyResourceError(
                "this exporter is already running; let keepers share its channel by clones"
            )
        listening.busy = True
        try:
            with exports:
                listeners = await _listen(self.host, self.port)
                listening.address = listeners[0].socket.getsockname()[:2]
                await self._take_and_serve(exports, listeners, task_status.started)
        finally:
            listening.busy = False
            listening.address = None

    @trio.lowlevel.enable_ki_protection
    async def _take(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        page = self._page
        page.use(trio.lowlevel.current_clock())
        with exports, suppress(trio.EndOfChannel):
            while True:
                if page.waiting:
                    await trio.lowlevel.checkpoint()
                else:
                    page.put(await exports.receive())
                step = _Step()
                with suppress(trio.WouldBlock, trio.EndOfChannel):
                    while not step.is_half_over:
                        page.put(exports.receive_nowait())
                while page.waiting:
                    page.render_first()
                    if step.is_over:
                        break
        await trio.lowlevel.checkpoint()

    # Where tasks are started, and in what Hypercorn does for us, too.
    @trio.lowlevel.enable_ki_protection
    async def _take_and_serve(
        self,
        exports: trio.MemoryReceiveChannel[EventMetrics],
        listeners: list[trio.SocketListener],
        started: Callable[[tuple[str, int] | None], None],
    ) -> None:
        connections = _Connections()
        async with open_flat_nursery() as nursery:
            nursery.start_soon(connections.close_when_cancelled)
            accepting = trio.CancelScope()
            nursery.start_soon(self._accept, listeners, connections, nursery, accepting)
            started(self.address)
            await self._take(exports)
            accepting.cancel()
            with trio.move_on_after(_LAST_ANSWERS_TIMEOUT):
                await connections.wait_until_all_are_answered()
            nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _accept(
        self,
        listeners: list[trio.SocketListener],
        connections: _Connections,
        nursery: trio.Nursery,
        accepting: trio.CancelScope,
    ) -> None:
        with accepting:
            await trio.serve_listeners(
                partial(self._serve_stream, connections),
                listeners,
                handler_nursery=cast("trio.Nursery", _ProtectedNursery(nursery)),
            )

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, for a registry of `prometheus_client`; from any thread."""
        *_, own_pages = self._own_pages()
        for page in (self._page, *own_pages):
            yield from page.metrics()

    def describe(self) -> list[Metric]:
        """Return nothing: what there is to export is known only when it comes."""
        return []

    def _own_pages(self) -> Iterator[tuple[_Page, ...]]:
        """Fill the pages on keepers and probers; no step of the iterator is long."""
        # A keeper and its prober have the same labels, and so need pages of their own.
        keepers = _Page(PREFIX, self.created, HELP)
        probers = _Page(PREFIX, self.created, HELP)
        last_exports = _Page(PREFIX, False, {_LAST_EXPORT: _LAST_EXPORT_HELP})
        pages = keepers, probers, last_exports
        for observed in self.statistics_of:
            yield pages
            page = keepers if isinstance(observed, StatsKeeper) else probers
            page.put(own_statistics(observed))
            page.render_first()
        for (ptype, probe), keeper in list(self._page.keepers.items()):
            yield pages
            labels = {"ptype": ptype, "probe": probe}
            arrived_at = keeper.arrived_at
            metrics = {_LAST_EXPORT: Gauge(arrived_at)}
            last_exports.put(EventMetrics(arrived_at, arrived_at, labels, metrics))
            last_exports.render_first()
        yield pages

    @trio.lowlevel.enable_ki_protection
    async def _serve_stream(
        self, connections: _Connections, stream: trio.SocketStream
    ) -> None:
        """Answer what comes by one connection; whatever goes wrong ends no other."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
            stream.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_UNREAD_TIMEOUT * 1000)
            )

        async def answer(scope: _Message, receive: _Receive, send: _Send) -> None:
            with connections.answering():
                await self._answer(scope, receive, send)

        app = ASGIWrapper(cast("Any", answer))
        state = cast("ConnectionState", {})
        connections.streams.add(stream)
        try:
            await TCPServer(app, _Config(), WorkerContext(None), state, cast("Any", stream))
        except BaseExceptionGroup as group:
            error = cast("BaseException | None", group.split(trio.Cancelled)[1])
            if not isinstance(error, Exception):
                raise
            logger.warning("a connection for metrics failed: %r", error)
            await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            connections.streams.discard(stream)

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
        step = _Step()
        with trio.move_on_after(_RENDERING_TIMEOUT):
            await page.render(step)
        await page.drop_gone(step)
        pages: tuple[_Page, ...] = (page,)
        for own_pages in self._own_pages():
            pages = page, *own_pages
            if step.is_half_over:  # the next page may take as long again
                await step.pause()
        headers = [(b"content-type", _TEXT)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = bytearray()
        for blocks in chain.from_iterable(page.text() for page in pages):
            for block in blocks:
                body += block
                if len(body) >= _CHUNK:
                    await _send_body(send, bytes(body), more=True)
                    body.clear()
                    # Of what answers a HEAD nothing is sent, and nobody else has a turn.
                    await step.pause_if_over()
            await step.pause_if_over()
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
    errorlog = logger.logger
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


# The tasks in which Hypercorn starts others; the names are its own. Of the second, which it
# makes each time, all share the code that is marked.
trio.lowlevel.enable_ki_protection(cast("Any", task_group)._handle)  # noqa: SLF001
trio.lowlevel.enable_ki_protection(
    cast("Any", worker_context)._cancel_wrapper(trio.sleep_forever)  # noqa: SLF001
)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on all addresses of the host, or on a free port of the first."""
    try:
        limiter = trio.CapacityLimiter(1)
        addresses = await addresses_of(host, limiter, f"looking up {host}")
        # A port that is free may be another for each address.
        return await _open_listeners(addresses, port, at_most=1 if port == 0 else None)
    except OSError as error:
        raise OSError(
            error.errno, f"can't listen on {host}:{port}: {error.strerror}"
        ) from None
    except UnicodeError as error:  # what can't be the name of a host at all
        raise OSError(f"can't listen on {host}:{port}: {error}") from None


async def _open_listeners(
    addresses: list[str], port: int, at_most: int | None
) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    with ExitStack() as on_error:
        for address in addresses:
            try:
                opened = await trio.open_tcp_listeners(port, host=address)
            except OSError as error:
                # Of IPv4 and IPv6, the system may have only one.
                if error.errno != errno.EAFNOSUPPORT or (
                    address == addresses[-1] and not listeners
                ):
                    raise
                continue
            for listener in opened:
                on_error.callback(listener.socket.close)
            listeners += opened
            if len(listeners) == at_most:
                break
        on_error.pop_all()
    return listeners  # noqa: ASYNC910  # there is an address


@attrs.define(eq=False)
class _Step:
    """A step of work, which began now. Only a checkpoint may begin another one."""

    _ends: float = attrs.field(init=False, factory=lambda: perf_counter() + _STEP_TIME)

    @property
    def is_over(self) -> bool:
        return perf_counter() >= self._ends

    @property
    def is_half_over(self) -> bool:
        return perf_counter() >= self._ends - _STEP_TIME / 2

    async def pause_if_over(self) -> None:  # noqa: ASYNC910
        if self.is_over:
            await self.pause()

    async def pause(self) -> None:
        """Let others run, and begin another one."""
        await trio.lowlevel.checkpoint()
        self._ends = perf_counter() + _STEP_TIME


@attrs.define(eq=False)
class _Keeper:
    """What is known of the keeper that exports come from, told by ptype and probe."""

    timestamp: float = -math.inf
    """That of its newest pass."""
    arrived: float = -math.inf
    """When its newest export came, in seconds of Trio's clock."""
    arrived_at: float = 0.0
    """The same in Unix time."""
    _began: deque[float] = attrs.field(init=False, factory=partial(deque[float], maxlen=3))
    """When its newest passes began to come."""

    def note(self, export: EventMetrics, now: float) -> None:
        if export.timestamp > self.timestamp:
            self.timestamp = export.timestamp
            self._began.append(now)
        self.arrived = now
        self.arrived_at = time.time()

    def has_left_out(self, arrived: float) -> bool:
        """Return whether two whole passes came without a target that `arrived` then."""
        return len(self._began) == 3 and arrived < self._began[0]


@attrs.define(eq=False)
class _Target:
    """A target as it was rendered last."""

    metrics: list[tuple[Family, Value]]
    labels: dict[str, str]
    """As Prometheus has them."""
    exported_labels: Mapping[str, str]
    """As the export has them."""
    start_timestamp: float
    keeper: _Keeper
    arrived: float
    """When it came, in seconds of Trio's clock."""
    lifetime: float
    """Seconds after which it is gone unless it comes again, or passes take long."""
    gone_at: float
    """When it is gone unless it comes again, in seconds of Trio's clock."""

    @property
    def families(self) -> list[Family]:
        return [family for family, _ in self.metrics]


@attrs.define(eq=False)
class _Page:
    """What there is to scrape."""

    _prefix: str
    _created: bool
    _help: Mapping[str, str] = attrs.field(factory=dict[str, str])
    _targets: SegmentedDict[_Target] = attrs.field(
        init=False, factory=SegmentedDict[_Target]
    )
    # By family, for a page must have its samples together, and whether they are those that
    # tell when it was created: in this format, these are a family of their own.
    _blocks: dict[tuple[Family, bool], SegmentedDict[bytes]] = attrs.field(
        init=False, factory=dict[tuple[Family, bool], SegmentedDict[bytes]]
    )
    _families: Families = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: Families(self._prefix, self._help), takes_self=True
        ),
    )
    _clock: trio.abc.Clock | None = attrs.field(init=False, default=None)
    # By the labels ptype and probe.
    keepers: dict[tuple[str, str], _Keeper] = attrs.field(
        init=False, factory=dict[tuple[str, str], _Keeper]
    )
    # The newest exports that are to be rendered, by their labels, and when they came.
    waiting: OrderedDict[Series, tuple[EventMetrics, float]] = attrs.field(
        init=False, factory=OrderedDict[Series, tuple[EventMetrics, float]]
    )
    # Targets that are to be looked at, whether they are gone: the rest of a segment.
    _looked_at: Iterator[tuple[Series, _Target]] = attrs.field(init=False, default=iter(()))
    _segment: int = attrs.field(init=False, default=0)

    def use(self, clock: trio.abc.Clock) -> None:
        """Take the time from `clock`; what came by another one is gone."""
        if clock is not self._clock:
            self._clock = clock
            self._targets = SegmentedDict()
            self._blocks = {}
            self.waiting.clear()
            self._families = Families(self._prefix, self._help)

    @property
    def _now(self) -> float:
        # The statistics of keepers and probers are never gone.
        return 0.0 if self._clock is None else self._clock.current_time()

    def put(self, export: EventMetrics) -> None:
        """Have `export` rendered; until then, what was rendered of its target stays."""
        now = self._now
        self._keeper_of(export).note(export, now)
        self.waiting[frozenset(export.labels.items())] = export, now

    def _keeper_of(self, export: EventMetrics) -> _Keeper:
        key = export.labels.get("ptype", ""), export.labels.get("probe", "")
        if key not in self.keepers:
            self.keepers[key] = _Keeper()
        return self.keepers[key]

    async def render(self, step: _Step) -> None:  # noqa: ASYNC910  # few take no turn
        """Render what waits."""
        while self.waiting:
            self.render_first()
            await step.pause_if_over()

    def render_first(self) -> None:
        """Render the export that waits longest, in place of the target's last one."""
        _, (export, arrived) = self.waiting.popitem(last=False)
        resolved = self._families.resolve(export, arrived)
        labels = resolved.labels
        target = _Target(
            resolved.metrics,
            labels,
            export.labels,
            export.start_timestamp,
            self._keeper_of(export),
            arrived,
            resolved.gone_at - arrived,
            resolved.gone_at,
        )
        series = _series(labels)
        last = self._targets.get(series)
        if last is not None:
            if last.exported_labels != export.labels and last.gone_at > arrived:
                self._families.leave_out(
                    f"labels {quote(dict(export.labels))}: they become those of "
                    f"{quote(dict(last.exported_labels))}"
                )
                return
            if last.families != target.families:
                self._drop(series)
        text = ",".join(f'{n}="{_escaped(v)}"' for n, v in labels.items())
        self._targets.set(series, target)
        for family, value in resolved.metrics:
            self._set_block(series, family, False, _block(family, text, value))
            if self._created and family.kind in ("counter", "histogram"):
                samples = _created(value, export.start_timestamp)
                self._set_block(series, family, True, _lines(family, text, samples))
        self._drop_some_gone(arrived)

    def _set_block(
        self, series: Series, family: Family, created: bool, block: bytes
    ) -> None:
        key = family, created
        if not block:  # a map may be empty
            self._discard(series, family, created)
        elif key in self._blocks:
            self._blocks[key].set(series, block)
        else:
            self._blocks[key] = SegmentedDict()
            self._blocks[key].set(series, block)

    def _drop_some_gone(self, now: float) -> None:
        """Look at two targets for each that is rendered: at all, again and again."""
        for _ in range(2):
            looked_at = next(self._looked_at, None)
            if looked_at is None:
                self._looked_at = iter(self._targets.segment(self._segment))
                self._segment += 1
            else:
                self._drop_if_gone(*looked_at, now)

    async def drop_gone(self, step: _Step) -> None:  # noqa: ASYNC910  # few take no turn
        """Drop the targets that are gone."""
        now = self._now
        for segment in self._targets.snapshot():
            for series, target in segment.items():
                self._drop_if_gone(series, target, now)
                await step.pause_if_over()

    def _drop_if_gone(self, series: Series, target: _Target, now: float) -> None:
        if self._is_gone(target, now) and self._targets.get(series) is target:
            self._drop(series)

    def _is_gone(self, target: _Target, now: float) -> bool:
        if target.gone_at > now:
            return False
        keeper = target.keeper
        waiting = self.waiting.get(frozenset(target.exported_labels.items()))
        if waiting is not None:
            # It has come again, though it is not rendered yet.
            target.arrived = waiting[1]
            target.gone_at = when_gone(*waiting)
        if target.gone_at <= now and not keeper.has_left_out(target.arrived):
            # In a busy loop, passes may take longer than intervals, up to twice as long.
            newest = min(keeper.arrived, target.arrived + target.lifetime)
            target.gone_at = newest + target.lifetime
        if target.gone_at <= now:
            return True
        for family in target.families:
            family.used_until = max(family.used_until, target.gone_at)
        return False

    def _drop(self, series: Series) -> None:
        for family in self._targets.remove(series).families:
            for created in False, True:
                self._discard(series, family, created)

    def _discard(self, series: Series, family: Family, created: bool) -> None:
        blocks = self._blocks.get((family, created))
        if blocks is not None and blocks.get(series) is not None:
            blocks.remove(series)
            if not blocks:
                del self._blocks[family, created]

    def text(self) -> Iterator[Iterable[bytes]]:
        """Yield the text of a scrape, as it was at the first step; the steps are short.

        A target's metrics are of one export, whatever comes meanwhile.
        """
        now = self._now
        families = [
            (key, blocks.snapshot())
            for key, blocks in self._blocks.items()
            if key[0].used_until > now  # what is just gone may have another's name
        ]
        for key, segments in families:
            yield [_heading(*key)]
            for segment in segments:
                yield segment.values()

    def metrics(self) -> Iterable[Metric]:
        """Return the same for `prometheus_client`; from any thread."""
        metrics: dict[Family, Metric] = {}
        targets = self._targets.values()
        now = self._now
        for target in targets:
            if self._is_gone(target, now):
                continue
            for family, value in target.metrics:
                samples = _samples(value)
                if self._created and family.kind in ("counter", "histogram"):
                    samples += _created(value, target.start_timestamp)
                if isinstance(value, Map):
                    # OpenMetrics wants those of each key together.
                    samples.sort(key=lambda sample: sample[1] or "")
                for suffix, text, number in samples:
                    if family not in metrics:
                        metrics[family] = Metric(family.name, family.help, family.kind)
                    labels = target.labels
                    if text is not None and family.label is not None:
                        labels = {**labels, family.label: text}
                    metrics[family].add_sample(family.name + suffix, labels, number)
        return metrics.values()


def _series(labels: Mapping[str, str]) -> Series:
    # To Prometheus, a label that is empty is none.
    return frozenset(label for label in labels.items() if label[1])


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


def _created(value: Value, start: float) -> list[_Sample]:
    texts = value.values if isinstance(value, Map) else (None,)
    return [("_created", text, start) for text in texts]


def _block(family: Family, labels: str, value: Value) -> bytes:
    """Return the lines of one target, which are many for a histogram."""
    if not isinstance(value, Distribution):
        return _lines(family, labels, _samples(value))
    between = _between_labels(family.name, value.bounds, bool(labels))
    counts = [*accumulate(value.bucket_counts)]
    text = labels.replace("%", "%%").join(between)
    return (text % (*counts, _number(value.sum), counts[-1])).encode()


# A histogram's lines are the same for all targets but for labels and numbers.
@lru_cache
def _between_labels(name: str, bounds: tuple[float, ...], has_labels: bool) -> list[str]:
    comma = "," if has_labels else ""
    ends = [f'{comma}le="{le}"}} %s\n' for le in (*map(repr, bounds), "+Inf")]
    starts = [f"{name}_bucket{{"] * len(ends)
    starts += f"{name}_sum{{", f"{name}_count{{"
    ends += "} %s\n", "} %s\n"
    return [a + b for a, b in zip(["", *ends], [*starts, ""], strict=True)]


def _lines(family: Family, labels: str, samples: list[_Sample]) -> bytes:
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
    text = repr(number)
    return _NOT_FINITE.get(text, text)
