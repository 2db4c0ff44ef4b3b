"""The status page: an output that answers requests with what it has received."""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import attrs
import trio

from trio_statskeeper._arguments import integer, quote
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._http._basic_auth import validate_users
from trio_statskeeper._http._body import Blocks
from trio_statskeeper._http._connection import Request
from trio_statskeeper._http._listening import (
    Listening,
    validate_host,
    validate_port,
    validate_ssl_context,
)
from trio_statskeeper._http._server import Answer, Resource, Server
from trio_statskeeper._pacing import Step
from trio_statskeeper._receiving import process_all

from ._board import Board, Cut
from ._detail import detail, missing
from ._document import HTML, JSON, JSON_PATH, PATH
from ._json import detail_json, missing_json, overview_json
from ._overview import View, overview
from ._selection import containing, identified, limit, select

# Seconds between two loads of a page: that of the exports, within these bounds. A filter
# that is being typed is lost when the page is loaded again.
_MIN_REFRESH = 10
_MAX_REFRESH = 60

# Connections that are served at a time, and pages that are sent: as of the exporter.
_MAX_CONNECTIONS = 40
_MAX_ANSWERS = 5

# Intervals: a day's, if each is a minute. A plot of so many takes a millisecond.
_MAX_HISTORY = 1440


def _history(page: object, attribute: attrs.Attribute[int], history: int) -> None:
    integer(1)(page, attribute, history)
    if history > _MAX_HISTORY:
        raise ValueError(f"history must be <= {_MAX_HISTORY}, got {quote(history)}")


@final
@attrs.frozen(eq=False)
class StatusPage:
    """Show the state of each target, and its recent history, as a page for browsers.

    The page is served at `http://HOST:PORT/status` while `run` is one of the outputs:

        async with open_outputs(StatusPage(8080).run) as exports:
            ...

    A `PrometheusExporter` can serve it next to the metrics; then it needs no port.

        page = StatusPage()
        prometheus = PrometheusExporter(9464, status=page)
        async with open_outputs(prometheus.run, page.run) as exports:
            ...

    Targets are down, degraded, up or inconclusive, by what the runs of the newest interval
    were like; stale after three export intervals without an export, and dropped after ten.

    Args:
      port: where `run` listens. 0: on any free port. None: `run` does not listen.
      host: a name or address of this machine, or several. All labels are readable there.
        `::` includes IPv4.
      history: how many export intervals are kept of each target, from 1 to 1440.
      ssl_context: serve by TLS, as `PrometheusExporter` does.
      users: who may see the page, by Basic authentication: names, and hashes of their
        passwords by `hash_password`. None: anyone.

    Raises:
      TypeError: if an argument is of another type.
      ValueError: if `port` is not from 0 to 65535, `host` is empty, `history` is not from 1
        to 1440, `ssl_context` is for clients, or `users` is empty or has what is not a
        hash.
    """

    port: int | None = attrs.field(default=None, validator=validate_port)

    host: str | Sequence[str] = attrs.field(default="127.0.0.1", converter=validate_host)

    history: int = attrs.field(default=360, kw_only=True, validator=_history)

    ssl_context: ssl.SSLContext | None = attrs.field(
        default=None, kw_only=True, validator=validate_ssl_context
    )

    users: Mapping[str, str] | None = attrs.field(
        default=None, kw_only=True, repr=False, converter=validate_users
    )

    _board: Board = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: Board(self.history), takes_self=True),
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
        """Receive exports and answer requests until `exports` ends.

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
        return Server(
            resources_of(self),
            f"the status is at {PATH}",
            _MAX_CONNECTIONS,
            _MAX_ANSWERS,
            self.ssl_context,
            self.users,
        )

    @trio.lowlevel.enable_ki_protection
    async def _take(self, exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
        await process_all(exports, self._board, self._board.add_first)

    async def answer(  # noqa: ASYNC910  # short work has no checkpoint
        self, step: Step, request: Request
    ) -> Answer:
        """Return the answer to a request, for a server.

        Args:
          step: the step of work in which this is called.
          request: the request for one of the page's paths.
        """
        ask = {name: values[-1] for name, values in request.parameters().items()}
        board = self._board
        board.use(trio.lowlevel.current_clock())
        for _ in range(board.waiting):
            board.add_first()
            await step.pause_if_over()
        cuts, now = board.cuts(), trio.current_time()
        view = View(
            ask.get("filter", ""), ask.get("refresh") != "off", _refresh(cuts), bool(cuts)
        )
        is_json, target = request.path == JSON_PATH, ask.get("target")
        if target is None:
            match = containing(view.text)
        else:
            match = identified(target, ask.get("probe"), ask.get("ptype"))
        selection = await select(step, cuts, match, now, int if is_json else limit)
        status = 200
        if target is not None and not selection.shown:
            status = 404
            body = missing_json() if is_json else missing()
        elif target is not None and selection.shown == 1:
            [row] = selection.groups[0].rows
            body = detail_json(row) if is_json else detail(row, self.history, view, now)
        elif is_json:
            body = overview_json(selection, now)
        else:
            body = overview(selection, self.history, view, now)
        headers = JSON if is_json else HTML
        if view.refreshes and not is_json:
            headers = (*headers, (b"Refresh", b"%d" % view.refresh))
        return Answer(headers, self._retiring(cuts, body), status)

    def _retiring(self, cuts: Iterable[Cut], body: Blocks) -> Blocks:
        try:
            yield from body
        finally:
            # They may have been replaced meanwhile.
            for cut in cuts:
                self._board.retired.add(segment.values() for segment in cut.segments)


def resources_of(page: StatusPage) -> dict[str, Resource]:
    """Return what a server needs to serve the page."""
    return {PATH: page.answer, JSON_PATH: page.answer, "/": _redirect}


async def _redirect(step: Step, _: Request) -> Answer:
    await step.pause()
    return Answer(((b"Location", PATH.encode()),), iter(()), 302)


def _refresh(cuts: Iterable[Cut]) -> int:
    shortest = min((cut.export_interval for cut in cuts), default=_MIN_REFRESH)
    return math.ceil(min(max(shortest, _MIN_REFRESH), _MAX_REFRESH))
