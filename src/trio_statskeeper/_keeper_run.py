"""One run of a keeper: its two tasks, and its end.

Theory of operation
===================

Two tasks share the totals (`_totals.Totals`):

- `_fold_results` waits for a result, then folds the waiting results in for less than a
  millisecond before other tasks run again.
- `_export_at_ticks` sleeps until the next tick. Then, in one step and so at one instant, it
  asks for the targets, takes the timestamp and begins a cut. The rest of the pass takes its
  time: it goes through the list of targets, and sends the totals as they were at the cut,
  many targets per turn of the scheduler (`send_all`), however long the consumer takes.
  Meanwhile, the other task folds on.

No lock is needed: the totals change only between two checkpoints.

A run ends in one of three ways:

- The results end. The first task sets an event and returns. The second task finishes a pass
  in progress, asks for the targets again, makes a last pass and returns.
- `run` is cancelled, and so are both tasks. The buffer is drained into the totals and
  `results` closed in one step, so that no sender can come between. With a flush timeout, a
  last pass follows under a shield.
- A task raises, for example because all receivers of the exports channel are closed. The
  other task is cancelled, and the buffer drained as above.

The two tasks run in a nursery, which wraps what they raise in a group;
`open_flat_nursery` unwraps it.

KeyboardInterrupt can't strike while results are folded in (it waits for a checkpoint).
Otherwise, a result could be lost between its receipt and the totals.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import attrs
import trio

from ._event_metrics import EventMetrics
from ._nursery import open_flat_nursery
from ._passes import Passes
from ._results import ProbeResult
from ._ticks import Grid, MissedTicks

# Seconds of folding between two checkpoints. Probes stay precise in a loop whose steps take
# up to a millisecond.
_FOLDING_TIME = 0.0005

# None is a bad result, which is rejected and counted.
_NO_RESULT: Any = object()


@attrs.define(eq=False)
class KeeperRun:
    """A run of a keeper with its channels."""

    results: trio.MemoryReceiveChannel[ProbeResult]
    exports: trio.MemorySendChannel[EventMetrics]
    passes: Passes
    missed_ticks: MissedTicks
    grid: Grid

    pending: Any = attrs.field(init=False, default=_NO_RESULT)
    """A result that was received, but is not folded in yet."""
    _ended: trio.Event = attrs.field(init=False, factory=trio.Event)
    """Set when all results are folded in."""

    @trio.lowlevel.enable_ki_protection
    async def run(self, started: Callable[[], None], flush_timeout: float) -> None:
        """Keep statistics until the results end; close both channels."""
        with self.exports:
            try:
                with self.results:
                    await self._keep(started)
            except trio.Cancelled:
                if flush_timeout > 0:
                    with trio.move_on_after(flush_timeout, shield=True):
                        await self._flush()
                raise

    async def _keep(self, started: Callable[[], None]) -> None:
        try:
            self.passes.timestamps.update()  # for `_drain`
            self.passes.ask_for_targets()
            started()
            await self.passes.relist()
            async with open_flat_nursery() as nursery:
                nursery.start_soon(self._fold_results)
                nursery.start_soon(self._export_at_ticks)
        finally:
            self._drain()

    # The two tasks

    @trio.lowlevel.enable_ki_protection
    async def _fold_results(self) -> None:  # noqa: ASYNC910  # the channel ends in receive()
        totals, time = self.passes.totals, self.passes.time
        while True:
            try:
                self.pending = await self.results.receive()
            except trio.EndOfChannel:
                break
            now = time.now()
            pause_at = perf_counter() + _FOLDING_TIME
            while self.pending is not _NO_RESULT:
                postponed = totals.fold(self.pending, now, self._start_timestamp)
                if postponed is not None:
                    # `_export_at_ticks` is going through a new list of targets.
                    self.pending = postponed
                    await trio.lowlevel.checkpoint()
                    continue
                self.pending = _NO_RESULT
                if perf_counter() < pause_at:
                    try:
                        self.pending = self.results.receive_nowait()
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
        self._ended.set()

    @trio.lowlevel.enable_ki_protection
    async def _export_at_ticks(self) -> None:
        tick = self.missed_ticks.next_tick(self.grid, 0)
        while not self._ended.is_set():
            with trio.move_on_at(self.grid.at(tick)):
                await self._ended.wait()
            if not self._ended.is_set():
                tick = await self._export(tick)
        await self.passes.send_last(self.exports)

    async def _export(self, tick: int) -> int:
        """Make the pass of a tick, and return the next tick."""
        self.passes.ask_for_targets()
        self.missed_ticks.begin_pass(self.grid, tick)
        try:
            await self.passes.send(self.exports)
        finally:
            tick = self.missed_ticks.next_tick(self.grid, tick)
        return tick

    # The end

    def _drain(self) -> None:
        """Fold the buffer in, without a checkpoint at which senders could run."""
        try:
            while self.passes.totals.listed.step():
                pass
        finally:
            self._fold_pending()

    def _fold_pending(self) -> None:
        now = self.passes.time.now()
        raised: BaseException | None = None
        while True:
            result, self.pending = self.pending, _NO_RESULT
            if result is _NO_RESULT:
                try:
                    result = self.results.receive_nowait()
                except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                    break
            try:
                self.passes.totals.fold(result, now, self._start_timestamp_or_newest)
            except BaseException as error:  # noqa: ASYNC103, BLE001  # raised below
                # For example a SystemExit from a result: the other results must count.
                raised = raised or error
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # avoids a reference cycle through the traceback

    async def _flush(self) -> None:  # noqa: ASYNC910  # a pass has checkpoints
        try:
            await self.passes.send_last(self.exports)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if _is_open(self.exports):
                raise  # it came from the function of a label

    # Timestamps of new targets

    def _start_timestamp(self) -> float:
        latest_expired = self.passes.totals.unlisted.latest_start_expired
        return self.passes.timestamps.start(latest_expired)

    def _start_timestamp_or_newest(self) -> float:
        latest_expired = self.passes.totals.unlisted.latest_start_expired
        return self.passes.timestamps.start_or_newest(latest_expired)


def _is_open(exports: trio.MemorySendChannel[EventMetrics]) -> bool:
    """Return whether both ends of a channel are open."""
    try:
        exports.clone().close()
    except trio.ClosedResourceError:
        return False
    return exports.statistics().open_receive_channels > 0
