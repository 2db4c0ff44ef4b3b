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

import errno
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import attrs
import trio

from ._conflating import ConflatingQueue
from ._event_metrics import EventMetrics
from ._json import from_json, to_json
from ._log import logger
from ._pacing import Step
from ._receiving import receive_batch

__all__ = ["from_json", "to_json", "write_lines"]

# Characters of a batch that is complete, whatever else waits: some hundred lines.
_BATCH = 2**17

# Seconds for which a batch waits for more. A pass comes in many turns of the scheduler if
# the channel has no buffer. In a busy loop these are long, and each write takes some, too.
# Readers of the lines don't notice.
_LINGER = 0.05

# Exports that are put aside between two checkpoints.
_AT_ONCE = 100

# Seconds from a failure to the next attempt, which double up to the longest.
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 30.0

_THREAD_NAME = "write_lines"


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
            await _Writer(exports, line, _print, "standard output", limiter).run()
            return
        file = _File(Path(path))
        try:
            # A FIFO opens when somebody reads it: that must not keep this from ending.
            await _call(file.open, limiter, abandon_on_cancel=True)
            task_status.started()
            await _Writer(exports, line, file.append, str(path), limiter).run()
        finally:
            file.closed = True
            # If it is still being opened, that thread closes it. It has the only token.
            if file.file is not None:
                await _in_thread(limiter, file.close)  # noqa: ASYNC102  # it is shielded


@attrs.frozen
class _Failure:
    """Why a text was not written as a whole."""

    cause: OSError
    lines_written: int


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
class _Outage:
    """The time in which a file can't be written, and what is kept for it meanwhile."""

    name: str
    newest: ConflatingQueue = attrs.field(init=False, factory=ConflatingQueue)
    retry_at: float = attrs.field(init=False, default=0.0)
    _delay: float = attrs.field(init=False, factory=lambda: _FIRST_DELAY)
    _received: int = attrs.field(init=False, default=0)
    _written: int = attrs.field(init=False, default=0)
    _logged: set[str] = attrs.field(init=False, factory=set[str])

    def __attrs_post_init__(self) -> None:
        # All that waits may turn out to be stale: nothing is to be waited for then.
        self.newest.end()

    def keep(self, exports: Iterable[EventMetrics]) -> None:
        for export in exports:
            self.newest.put(export)
            self._received += 1

    def written(self, exports: Sequence[EventMetrics]) -> None:
        self.newest.done(exports)
        self._written += len(exports)

    def postpone(self, cause: OSError) -> None:
        """Try again later; log why, once per cause."""
        self.retry_at = trio.current_time() + self._delay
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        why = cause.strerror or repr(cause)
        if why not in self._logged:
            self._logged.add(why)
            logger.warning("%s: %s; retrying", self.name, why)

    def log_recovery(self) -> None:
        lost = self._received - self._written
        if lost:
            logger.warning("%s: recovered; %d exports were lost", self.name, lost)
        else:
            logger.info("%s: recovered", self.name)

    def log_end(self) -> None:
        lost = self._received - self._written
        logger.warning("%s: not recovered; %d exports were lost", self.name, lost)


@attrs.define(eq=False)
class _Writer:
    """Writes what comes from a channel."""

    exports: trio.MemoryReceiveChannel[EventMetrics]
    line: Callable[[EventMetrics], str]
    write: Callable[[str], _Failure | None]
    """Called in a thread; what it raises ends it all."""
    name: str
    limiter: trio.CapacityLimiter
    outage: _Outage | None = attrs.field(init=False, default=None)

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
        while batch.size < _BATCH:
            try:
                await batch.add(self.exports.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                with trio.move_on_at(linger_ends) as lingering:
                    await batch.add(await self.exports.receive())
                if lingering.cancelled_caught:
                    return

    async def _keep_newest(self, outage: _Outage) -> None:
        """Receive until it is time to try again."""
        with trio.move_on_at(outage.retry_at):
            while True:
                outage.keep(await receive_batch(self.exports, _AT_ONCE))

    async def _retry(self, outage: _Outage) -> None:  # noqa: ASYNC910  # it waits
        """Write what was kept, until that fails or all of it is written."""

        async def take(batch: _Batch) -> None:
            await outage.newest.wait()  # this drops what is stale; the last never is
            for export in outage.newest.first(_AT_ONCE):
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
        failures: list[_Failure | None] = []

        def write() -> None:
            failures.append(self.write("".join(batch.lines)))

        try:
            await _in_thread(self.limiter, write)
        finally:
            # KeyboardInterrupt may be raised though this was written.
            for failure in failures:
                self._settle(batch, failure)
        return failures == [None]

    def _settle(self, batch: _Batch, failure: _Failure | None) -> None:
        """Take note of what was written of `batch`."""
        if self.outage is None:
            if failure is None:
                return
            self.outage = _Outage(self.name)
            self.outage.keep(batch.exports)
        if failure is None:
            self.outage.written(batch.exports)
            if not self.outage.newest:
                recovered, self.outage = self.outage, None
                recovered.log_recovery()
        else:
            self.outage.written(batch.exports[: failure.lines_written])
            self.outage.postpone(failure.cause)


async def _in_thread(limiter: trio.CapacityLimiter, function: Callable[[], None]) -> None:
    """Call `function` in a worker thread, and wait for its end, whatever happens."""
    with trio.CancelScope(shield=True):
        try:
            await _call(function, limiter)
        except KeyboardInterrupt as interrupt:
            # In the main task, one that waits for a checkpoint keeps the thread from
            # being started, despite the shield.
            try:
                await _call(function, limiter)  # noqa: ASYNC120  # shielded
            finally:
                raise interrupt


async def _call(
    function: Callable[[], None],
    limiter: trio.CapacityLimiter,
    *,
    abandon_on_cancel: bool = False,
) -> None:
    """Call `function` in a worker thread; on Trio's mock clock, in the loop's own thread.

    Tasks that wait for a thread are idle to a mock clock, which would jump ahead meanwhile.
    """
    # Where such a clock runs, its module was imported.
    testing = sys.modules.get("trio.testing")
    if testing and isinstance(trio.lowlevel.current_clock(), testing.MockClock):
        await trio.lowlevel.checkpoint()
        function()
    else:
        await trio.to_thread.run_sync(
            function,
            limiter=limiter,
            abandon_on_cancel=abandon_on_cancel,
            thread_name=_THREAD_NAME,
        )


# In the worker thread


def _print(text: str) -> None:
    with _named("standard output"):
        if sys.stdout is None or sys.stdout.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # A character that it can't encode is written as `EventMetrics.parse` reads it.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


@attrs.define(eq=False)
class _File:
    """A file that is appended, always the one that its path leads to."""

    path: Path
    file: FileIO | None = None
    closed: bool = False
    """Whether it is to be open no more, even if it is only being opened yet."""
    _torn: bool = False
    """Whether its last line has no end: a disk was full, or a machine fell."""

    def open(self, opener: Callable[[str, int], int] | None = None) -> None:
        with _named(str(self.path)):
            self._torn = self._is_torn()
            self.file = FileIO(self.path, "a", opener=opener)
            if self.closed:
                # Nobody waited until it was open.
                self.file.close()

    def append(self, text: str) -> _Failure | None:
        """Write `text`, and return why that failed, if trying again may help."""
        data = memoryview(text.encode())
        left = data
        try:
            with _named(str(self.path)):
                file = self._current_file()
                if self._torn:
                    # Else the next line would be lost with the torn one.
                    os.write(file.fileno(), b"\n")
                    self._torn = False
                # A disk that is nearly full takes a part; the next write says why.
                while left:
                    left = left[os.write(file.fileno(), left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            self._abandon()
            written = bytes(data[: len(data) - len(left)])
            return _Failure(error, written.count(b"\n"))
        return None

    def _current_file(self) -> FileIO:
        if self.file is not None and self._is_rotated_away():
            self.file.close()
            self.file = None
        if self.file is None:
            self.open(_opener)
            assert self.file is not None
        return self.file

    def _abandon(self) -> None:
        """Have it opened again: the descriptor may be stale, or another file's."""
        with suppress(OSError):
            if self.file is not None:
                self.file.close()
        self.file = None

    def close(self) -> None:
        assert self.file is not None
        try:
            self.file.close()
        except OSError as error:
            # Network file systems report only now that there was no room.
            logger.warning(
                "%s: %s when closed; the last lines may be lost", self.path, error.strerror
            )

    def _is_torn(self) -> bool:
        # There may be no such file, or an empty one, or one that only others can read.
        with suppress(OSError):
            if self.path.is_file():
                with self.path.open("rb") as file:
                    file.seek(-1, os.SEEK_END)
                    return file.read(1) != b"\n"
        return False

    def _is_rotated_away(self) -> bool:
        assert self.file is not None
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return True


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; if it is a FIFO that nobody reads, fail instead of waiting."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


# Windows has no such FIFOs.
_opener = _open_at_once if hasattr(os, "O_NONBLOCK") else None


@contextmanager
def _named(name: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        error.filename = name
        raise
