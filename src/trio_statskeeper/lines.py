"""An output: each export as a line of text, to standard output or a file.

Theory of operation
===================

`write_lines` gathers a batch: the exports that wait, and those that come soon after. A
worker thread writes their lines at once (on Trio's mock clock, the loop does). A slow disk
holds up that thread, and whoever sends the exports, but not the loop. Making a line takes
some 10 to 20 µs, and a pass of the keeper may have thousands, so other tasks get a turn
after each 0.7 ms of that.

From the receipt of an export until it is written, nothing is cancelled: no export is lost,
and no line torn. KeyboardInterrupt, too, waits for the end of the write.

A file that can't be written is an outage, not an error. Until it is over, exports are
still received, and a `ConflatingQueue` keeps the newest one of each target. The file is
opened again at increasing intervals, and what is kept is written.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from ._event_metrics import EventMetrics
from ._json import from_json, to_json
from ._outage import Outage
from ._pacing import Step
from ._receiving import receive_batch
from ._sinks import AppendedFile, WriteFailure, print_text
from ._threads import call_in_thread, finish_in_thread

__all__ = ["from_json", "to_json", "write_lines"]

# Characters of a batch that is complete, whatever else waits: some hundred lines.
_BATCH_SIZE = 2**17

# Seconds for which a batch waits for more. A pass comes in many turns of the scheduler if
# the channel has no buffer. In a busy loop these are long, and each write takes some, too.
# Readers of the lines don't notice.
_LINGER = 0.05

# Exports that are put aside between two checkpoints.
_KEPT_BATCH = 100


@trio.lowlevel.enable_ki_protection
async def write_lines(
    exports: trio.MemoryReceiveChannel[EventMetrics],
    path: str | os.PathLike[str] | None = None,
    *,
    json: bool = False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Write each export as a line to standard output or a file, until `exports` ends.

        nursery.start_soon(write_lines, exports, "metrics.log")

    A file is appended. It is opened again when its path leads to another file or to none:
    it was rotated away. What is waiting is written together, in a worker thread. When this
    is cancelled, the write in progress is finished first, however long it takes.

    If a file can't be written (the disk is full, the directory was removed), that is logged
    once, and tried again after 1, 2, 4 ... 30 seconds. Meanwhile, the newest export of each
    target is kept. The recovery is logged with the number of exports that were lost: newer
    ones replaced them, or their targets have not come for three export intervals. When
    `exports` ends during an outage, or this is cancelled, there is one last attempt.

    Args:
      exports: what to write. Closed on return.
      path: the file; None for standard output, which is `sys.stdout` at each write.
      json: whether to write JSON, which `from_json` reads back, instead of cloudprober's
        lines.
      task_status: for `nursery.start`, told when the file is open.

    Raises:
      OSError: if the file can't be opened at the start, or standard output can't be
        written. It names the file, or `standard output`. If the other end of a pipe is
        closed, at any time, it is a BrokenPipeError.
    """
    line = to_json if json else str
    # One of its own: others may fill Trio's with threads that never end.
    limiter = trio.CapacityLimiter(1)
    with exports:
        if path is None:
            task_status.started()
            await _Writer(exports, line, print_text, "standard output", limiter).run()
            return
        file = AppendedFile(Path(path))
        try:
            # A FIFO opens when somebody reads it: that must not keep this from ending.
            await call_in_thread(file.open, limiter, abandon_on_cancel=True)
            task_status.started()
            await _Writer(exports, line, file.append, str(path), limiter).run()
        finally:
            file.closed = True
            # If it is still being opened, that thread closes it. It has the only token.
            if file.file is not None:
                await finish_in_thread(file.close, limiter)  # noqa: ASYNC102  # it is shielded


@attrs.define(eq=False)
class _Batch:
    """Exports whose lines are written at once."""

    line: Callable[[EventMetrics], str]
    exports: list[EventMetrics] = attrs.field(init=False, factory=list[EventMetrics])
    lines: list[str] = attrs.field(init=False, factory=list[str])
    size: int = attrs.field(init=False, default=0)
    _step: Step = attrs.field(init=False, factory=Step)

    async def add(self, export: EventMetrics) -> None:  # noqa: ASYNC910  # once per step
        """Make the line of `export`; nothing is cancelled meanwhile."""
        self.lines.append(f"{self.line(export)}\n")
        self.exports.append(export)
        self.size += len(self.lines[-1])
        if self._step.is_over:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._step.begin_next()


@attrs.define(eq=False)
class _Writer:
    """Writes what comes from a channel."""

    exports: trio.MemoryReceiveChannel[EventMetrics]
    line: Callable[[EventMetrics], str]
    write: Callable[[str], WriteFailure | None]
    """Called in a thread; what it raises ends it all."""
    name: str
    limiter: trio.CapacityLimiter
    outage: Outage | None = attrs.field(init=False, default=None)

    async def run(self) -> None:  # noqa: ASYNC910  # receiving has checkpoints
        """Write until the exports end."""
        try:
            with suppress(trio.EndOfChannel):
                while True:
                    if self.outage is None:
                        await self._write_batch(self._gather)
                    else:
                        await self._keep_newest(self.outage)
                        await self._retry(self.outage)
        finally:
            if (outage := self.outage) is not None:
                try:
                    with trio.CancelScope(shield=True):
                        await self._retry(outage)
                finally:
                    if self.outage is not None:
                        outage.log_end()

    async def _gather(self, batch: _Batch) -> None:
        """Wait for an export; add it, those that wait behind it, and those to come soon."""
        await batch.add(await self.exports.receive())
        linger_ends = trio.current_time() + _LINGER
        while batch.size < _BATCH_SIZE:
            try:
                await batch.add(self.exports.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                with trio.move_on_at(linger_ends) as lingering:
                    await batch.add(await self.exports.receive())
                if lingering.cancelled_caught:
                    return

    async def _keep_newest(self, outage: Outage) -> None:
        """Receive until it is time to try again."""
        with trio.move_on_at(outage.retry_at):
            while True:
                outage.keep(await receive_batch(self.exports, _KEPT_BATCH))

    async def _retry(self, outage: Outage) -> None:  # noqa: ASYNC910  # it waits
        """Write what was kept, until that fails or all of it is written."""

        async def take(batch: _Batch) -> None:
            await outage.kept.wait()  # this drops what is stale; the last never is
            for export in outage.kept.first(_KEPT_BATCH):
                await batch.add(export)

        while await self._write_batch(take) and self.outage is outage:
            pass

    async def _write_batch(self, fill: Callable[[_Batch], Awaitable[None]]) -> bool:
        """Have a batch filled and write it; return whether that worked.

        If `fill` raises or is cancelled, what it has added is written nevertheless.
        """
        batch = _Batch(self.line)
        try:
            await fill(batch)
        except BaseException:
            if batch.lines:
                await self._write(batch)  # noqa: ASYNC102  # it is shielded
            raise
        return await self._write(batch)

    async def _write(self, batch: _Batch) -> bool:
        failures: list[WriteFailure | None] = []

        def write() -> None:
            failures.append(self.write("".join(batch.lines)))

        try:
            await finish_in_thread(write, self.limiter)
        finally:
            # KeyboardInterrupt may be raised though this was written.
            for failure in failures:
                self._settle(batch, failure)
        return failures == [None]

    def _settle(self, batch: _Batch, failure: WriteFailure | None) -> None:
        """Take note of what was written of `batch`."""
        if self.outage is None:
            if failure is None:
                return
            self.outage = Outage(self.name)
            self.outage.keep(batch.exports)
        if failure is None:
            self.outage.written(batch.exports)
            if not self.outage.kept:
                recovered, self.outage = self.outage, None
                recovered.log_recovery()
        else:
            self.outage.written(batch.exports[: failure.lines_written])
            self.outage.postpone(failure.cause)
