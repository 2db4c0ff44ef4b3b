"""An output: each export as a line of text, on standard output or in a file.

Theory of operation
===================

`write_lines` gathers a batch: the exports that wait, and those that arrive soon after. A
worker thread writes their lines at once (with Trio's mock clock, the loop writes them). A
slow disk holds up that thread, and the sender of the exports, but not the loop. Formatting
a line takes 10 to 20 µs, and a pass of the keeper may have thousands of lines, so a batch
is formatted in short steps.

From the receipt of an export until it is written, cancellation is deferred: no export is
lost, and no line is torn. KeyboardInterrupt is deferred to the end of the write, too.

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

# Characters after which a batch is complete: some hundred lines.
_BATCH_SIZE = 2**17

# Seconds for which a batch waits for further exports. If the channel has no buffer, a pass
# arrives in many turns of the scheduler. In a busy loop, these are long, and each write
# takes several, too.
_LINGER = 0.05

# Exports that are kept between two checkpoints during an outage.
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

    Lines are appended to a file. After a rotation, when its path leads to another file or
    to none, the file is opened again. Exports that wait are written together, in a worker
    thread. When cancelled, `write_lines` finishes the write in progress first, however long
    that takes.

    If a file can't be written (the disk is full, the directory was removed), that is logged
    once, and retried after 1, 2, 4 ... 30 seconds. Meanwhile, the newest export of each
    target is kept. The recovery is logged with the number of lost exports: those replaced
    by newer ones, and those of targets without an export for three export intervals. When
    `exports` ends during an outage, or `write_lines` is cancelled, there is a last attempt.

    Args:
      exports: what to write. Closed on return.
      path: the file; None for standard output, which is `sys.stdout` at each write.
      json: whether to write JSON, for `from_json`, instead of cloudprober's lines.
      task_status: for `nursery.start`: started when the file is open.

    Raises:
      OSError: if the file can't be opened at the start, or standard output can't be
        written. It names the file, or `standard output`. If the other end of a pipe is
        closed, at any time, it is a BrokenPipeError.
    """
    line = to_json if json else str
    # Not Trio's default limiter: other threads may hold all of its tokens.
    limiter = trio.CapacityLimiter(1)
    with exports:
        if path is None:
            task_status.started()
            await _Writer(exports, line, print_text, "standard output", limiter).run()
            return
        file = AppendedFile(Path(path))
        try:
            # Opening a FIFO blocks until it has a reader, so it must be cancellable.
            await call_in_thread(file.open, limiter, abandon_on_cancel=True)
            task_status.started()
            await _Writer(exports, line, file.append, str(path), limiter).run()
        finally:
            file.closed = True
            # If it is still being opened, that thread closes it; it has the only token.
            if file.file is not None:
                await finish_in_thread(file.close, limiter)  # noqa: ASYNC102  # it is shielded


@attrs.define(eq=False)
class _Batch:
    """Exports whose lines are written together."""

    line: Callable[[EventMetrics], str]
    exports: list[EventMetrics] = attrs.field(init=False, factory=list[EventMetrics])
    lines: list[str] = attrs.field(init=False, factory=list[str])
    size: int = attrs.field(init=False, default=0)
    _step: Step = attrs.field(init=False, factory=Step)

    async def add(self, export: EventMetrics) -> None:  # noqa: ASYNC910  # once per step
        """Format the line of `export`, shielded from cancellation."""
        self.lines.append(f"{self.line(export)}\n")
        self.exports.append(export)
        self.size += len(self.lines[-1])
        if self._step.is_over:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._step.begin_next()


@attrs.define(eq=False)
class _Writer:
    """Writes the exports of a channel."""

    exports: trio.MemoryReceiveChannel[EventMetrics]
    line: Callable[[EventMetrics], str]
    write: Callable[[str], WriteFailure | None]
    """Called in a thread; `run` raises what it raises."""
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
        """Wait for an export; add it, and those that arrive within the linger time."""
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
        """Receive exports until the next attempt is due."""
        with trio.move_on_at(outage.retry_at):
            while True:
                outage.keep(await receive_batch(self.exports, _KEPT_BATCH))

    async def _retry(self, outage: Outage) -> None:  # noqa: ASYNC910  # it waits
        """Write what was kept, until a write fails or all is written."""

        async def take(batch: _Batch) -> None:
            await outage.kept.wait()  # it drops stale exports; the last one never is
            for export in outage.kept.first(_KEPT_BATCH):
                await batch.add(export)

        while await self._write_batch(take) and self.outage is outage:
            pass

    async def _write_batch(self, fill: Callable[[_Batch], Awaitable[None]]) -> bool:
        """Have a batch filled, and write it; return whether it was written.

        If `fill` raises an exception or is cancelled, what it has added is still written.
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
            # KeyboardInterrupt may be raised even if the batch was written.
            for failure in failures:
                self._settle(batch, failure)
        return failures == [None]

    def _settle(self, batch: _Batch, failure: WriteFailure | None) -> None:
        """Note what was written of `batch`."""
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
