"""The status page: an output that answers requests with what it has received."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import final
from urllib.parse import parse_qs

import attrs
import trio

from trio_statskeeper._arguments import integer, quote
from trio_statskeeper._conflating import ConflatingQueue, KeeperKey, keeper_of
from trio_statskeeper._event_metrics import EventMetrics
from trio_statskeeper._pacing import Step

from ._board import Board, Cut
from ._detail import detail, missing
from ._document import HTML, JSON, JSON_PATH, PATH, Answer, Body
from ._json import detail_json, missing_json, overview_json
from ._overview import View, overview
from ._selection import containing, identified, limit, select

# Seconds between two loads of a page: that of the exports, within these bounds.
_MIN_REFRESH = 5
_MAX_REFRESH = 60

# Intervals: a day's, if each is a minute. A plot of so many takes a millisecond.
_MAX_HISTORY = 1440

# Parameters of a query; parsing as many takes a tenth of a millisecond.
_MAX_PARAMETERS = 100


def _history(page: object, attribute: attrs.Attribute[int], history: int) -> None:
    integer(1)(page, attribute, history)
    if history > _MAX_HISTORY:
        raise ValueError(f"history must be <= {_MAX_HISTORY}, got {quote(history)}")


@attrs.define(eq=False)
class _Queue:
    """What has arrived, but is not on the board: exports arrive faster than that."""

    _board: Board
    waiting: ConflatingQueue = attrs.field(init=False, factory=ConflatingQueue)
    # The newest export of each keeper since the queue was empty.
    _newest: dict[KeeperKey, EventMetrics] = attrs.field(
        init=False, factory=dict[KeeperKey, EventMetrics]
    )

    def put(self, export: EventMetrics) -> None:
        self._newest[keeper_of(export)] = export
        self.waiting.put(export)

    def take_first(self) -> None:
        """Add the export that has waited longest to the board, unless it is stale."""
        exports = self.waiting.first(1)
        for export in exports:
            self._board.add(export)
        self.waiting.done(exports)
        if not self.waiting:
            for export in self._newest.values():
                if export.ends_pass:
                    self._board.end_pass(export)
            self._newest.clear()


@final
@attrs.frozen(eq=False)
class StatusPage:
    """Show the state of each target, and its recent history, as a page for browsers.

    Args:
      history: how many export intervals are kept of each target. Each takes 13 bytes.

    Raises:
      TypeError: if `history` is not an integer.
      ValueError: if `history` is not from 1 to 1440.
    """

    history: int = attrs.field(default=360, kw_only=True, validator=_history)

    _board: Board = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: Board(self.history), takes_self=True),
    )

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        exports: trio.MemoryReceiveChannel[EventMetrics],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Receive exports until `exports` ends.

        Several runs can be active at once.

        Args:
          exports: what a keeper sends. Closed on return.
          task_status: for `nursery.start`.
        """
        self._board.use(trio.lowlevel.current_clock())
        task_status.started()
        queue = _Queue(self._board)
        with exports, suppress(trio.EndOfChannel):
            while True:
                if queue.waiting:
                    await trio.lowlevel.checkpoint()
                else:
                    queue.put(await exports.receive())
                step = Step()
                with suppress(trio.WouldBlock, trio.EndOfChannel):
                    while not step.is_half_over:
                        queue.put(exports.receive_nowait())
                while queue.waiting:
                    queue.take_first()
                    if step.is_over:
                        break
        await trio.lowlevel.checkpoint()

    async def answer(self, step: Step, path: str, query: str) -> Answer | None:  # noqa: ASYNC910  # short work has no checkpoint
        """Return the answer to a request; None if the path is not one of the page's.

        Args:
          step: the step of work in which this is called.
          path: the path of the request.
          query: its query.

        Raises:
          ValueError: if the query has too many parameters.
        """
        if path not in {PATH, JSON_PATH}:
            return None  # noqa: ASYNC910  # short work has no checkpoint
        parameters = parse_qs(query, errors="replace", max_num_fields=_MAX_PARAMETERS)
        ask = {name: values[-1] for name, values in parameters.items()}
        cuts, now = self._board.cuts(), trio.current_time()
        view = View(
            ask.get("filter", ""), ask.get("refresh") != "off", _refresh(cuts), bool(cuts)
        )
        is_json, target = path == JSON_PATH, ask.get("target")
        if target is None:
            match = containing(view.text)
        else:
            match = identified(target, ask.get("probe"), ask.get("ptype"))
        selection = await select(step, cuts, match, now, int if is_json else limit)
        status, body = 200, overview(selection, self.history, view, now)
        if target is not None and not selection.shown:
            status, body = 404, missing_json() if is_json else missing()
        elif target is not None and selection.shown == 1:
            [row] = selection.groups[0].rows
            page = detail_json(row) if is_json else detail(row, self.history, view, now)
            body = page
        elif is_json:
            body = overview_json(selection, now)
        headers = JSON if is_json else HTML
        if view.refreshes and not is_json:
            headers = (*headers, (b"Refresh", b"%d" % view.refresh))
        return Answer(status, headers, self._retiring(cuts, body))

    def _retiring(self, cuts: Iterable[Cut], body: Body) -> Body:
        try:
            yield from body
        finally:
            # They may have been replaced meanwhile.
            for cut in cuts:
                self._board.retired.add(cut.segments)


def _refresh(cuts: Iterable[Cut]) -> int:
    shortest = min((cut.export_interval for cut in cuts), default=_MIN_REFRESH)
    return math.ceil(min(max(shortest, _MIN_REFRESH), _MAX_REFRESH))
