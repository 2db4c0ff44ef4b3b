"""Passes: the exports of all listed targets as they were at one instant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs
import trio

from ._clocks import RunningTime, Timestamps
from ._endpoint import Endpoint, endpoints_of
from ._event_metrics import EventMetrics
from ._exports import ExportBuilder
from ._sending import send_all
from ._totals import Totals


@attrs.define(eq=False)
class Passes:
    """Makes the passes of a keeper."""

    probe: str
    """The probe's name in the log."""
    targets: Callable[[], Iterable[Endpoint]]
    exports: ExportBuilder
    totals: Totals
    time: RunningTime
    timestamps: Timestamps

    completed: int = attrs.field(init=False, default=0)
    exports_sent: int = attrs.field(init=False, default=0)

    def ask_for_targets(self, *, for_last_pass: bool = False) -> None:
        """Begin to go through a new list of targets; `relist` goes on."""
        listed = self.totals.listed
        listed.gather_late()  # first: a last pass is made even if `targets` raises
        endpoints = endpoints_of(self.targets)
        listed.relist(endpoints, self.time.now(), for_last_pass=for_last_pass)

    @trio.lowlevel.enable_ki_protection
    async def relist(self) -> None:
        """Go through the new list of targets, letting other tasks run between steps."""
        while True:
            more = self.totals.listed.step()
            await trio.lowlevel.checkpoint()
            if not more:
                return

    async def send(self, channel: trio.MemorySendChannel[EventMetrics]) -> None:
        """Send the totals of all listed targets as they are at the time of the call.

        Raises:
          trio.BrokenResourceError: if all receivers of `channel` are closed.
          BaseException: what the function of a label, or `clock`, raised.
        """
        if channel.statistics().open_receive_channels == 0:
            raise trio.BrokenResourceError("all receivers of the exports are closed")
        listed, rows = self.totals.listed, self.totals.rows
        timestamp = self.timestamps.next_pass()
        stale = self.stale_at()
        rows.begin_cut()
        try:
            await self.relist()
            await send_all(
                channel,
                self._exports(timestamp, stale),
                listed.count_to_export(),
                self._note_sent,
            )
        finally:
            rows.end_cut()
        listed.note_exported()
        self.completed += 1
        self.totals.rejections.report(self.probe)

    def stale_at(self) -> float:
        """Return the running time since which a gauge or string must be updated."""
        return self.time.now() - self.totals.expire_after

    def _exports(self, timestamp: float, stale: float) -> Iterator[EventMetrics | None]:
        """Build the exports of the cut, and None where there is nothing to send.

        Each waits for the next one, as the last export of a pass is marked.
        """
        rows = self.totals.rows
        waiting: EventMetrics | None = None
        try:
            for endpoint in self.totals.listed.to_export():
                row = rows.take(endpoint.key)
                export = None
                if row is not None:
                    export = self.exports.build(endpoint, row, timestamp, stale)
                if export is None:
                    yield None
                else:
                    yield waiting
                    waiting = export
        except Exception:
            yield waiting  # before what a label's function raised
            raise
        if waiting is not None:
            yield attrs.evolve(waiting, ends_pass=True)

    def _note_sent(self) -> None:
        self.exports_sent += 1

    async def send_last(self, channel: trio.MemorySendChannel[EventMetrics]) -> None:
        """Send the totals of all targets that are listed, or were at the last tick.

        If `targets` raises, that is raised after a pass over the targets listed before.
        """
        failure: Exception | None = None
        try:
            self.ask_for_targets(for_last_pass=True)
            await self.relist()
        except Exception as error:  # noqa: BLE001  # raised below
            # At the end of a program, the source of the targets may have ended before.
            failure = error
        try:
            await self.send(channel)
            if failure is not None:
                raise failure
        finally:
            del failure  # avoids a reference cycle through the traceback
