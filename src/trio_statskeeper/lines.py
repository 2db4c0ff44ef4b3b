"""An output: each export as a line of text, to standard output or a file.

Theory of operation
===================

`write_lines` waits for an export, then takes those that wait already, up to a limit, and
hands their lines to a worker thread, which writes them at once. A disk that is slow holds
up that thread, and whoever sends the exports, but not the loop. Each export becomes a line
in a step of its own, for a pass may have many.

From the receipt of an export until it is written, nothing can be cancelled: no export is
lost, and no line torn. KeyboardInterrupt, too, waits for the end of the write.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TypeVarTuple

import attrs
import trio

from ._event_metrics import EventMetrics
from ._json import from_json, to_json

__all__ = ["from_json", "to_json", "write_lines"]

# Characters of a batch that is complete, whatever else waits: what a pipe holds, and some
# hundred lines.
_BATCH = 2**16

# Turns of the scheduler until the next export of a pass is seen to wait, in a channel that
# has no buffer. Trio runs tasks in any order: after one, whoever sent this export has gone
# on; after two, the keeper's next is there, and after three `fan_out`'s.
_TURNS = 3

_Args = TypeVarTuple("_Args")


@trio.lowlevel.enable_ki_protection
async def write_lines(
    exports: trio.MemoryReceiveChannel[EventMetrics],
    path: str | os.PathLike[str] | None = None,
    *,
    json: bool = False,
) -> None:
    """Write each export as a line to standard output or a file, until `exports` ends.

        nursery.start_soon(write_lines, exports, "metrics.log")

    A file is appended, and opened anew when its path leads to another or to none: it was
    rotated away. What is waiting is written together, in a worker thread. When this is
    cancelled, the write in progress is finished first, however long it takes.

    Args:
      exports: what to write. Closed on return.
      path: the file; None for standard output, which is `sys.stdout` at each write.
      json: whether to write JSON, which `from_json` reads back, instead of cloudprober's
        lines.

    Raises:
      OSError: if it can't be opened, at once, or not be written, because the disk is full
        for instance. It names the file, or `standard output`. If the other end of a pipe
        is closed, it is a BrokenPipeError.
      ValueError: if `json` is wanted of an export that has a NaN. Those before it are
        written.
    """
    line = to_json if json else str
    with exports:
        if path is None:
            await _write_batches(exports, line, _print)
            return
        file = _File(Path(path))
        try:
            # A FIFO opens when somebody reads it: that must not keep this from ending.
            await trio.to_thread.run_sync(file.open, abandon_on_cancel=True)
            await _write_batches(exports, line, file.append)
        finally:
            await _in_thread(file.close)  # noqa: ASYNC102  # it is shielded


async def _write_batches(
    exports: trio.MemoryReceiveChannel[EventMetrics],
    line: Callable[[EventMetrics], str],
    write: Callable[[str], None],
) -> None:
    async for received in exports:
        event_metrics, lines, size = received, list[str](), 0
        try:
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    lines.append(f"{line(event_metrics)}\n")
                    size += len(lines[-1])
                    if size >= _BATCH:
                        break
                    for _ in range(_TURNS):
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    event_metrics = exports.receive_nowait()
        finally:
            await _in_thread(write, "".join(lines))  # noqa: ASYNC102  # likewise


async def _in_thread(function: Callable[[*_Args], None], *args: *_Args) -> None:
    """Call `function` in a worker thread, and wait for its end, whatever happens."""
    with trio.CancelScope(shield=True):
        try:
            await trio.to_thread.run_sync(function, *args)
        except KeyboardInterrupt:
            # In the main task, one that waits for a checkpoint keeps the thread from
            # being started, despite the shield.
            await trio.to_thread.run_sync(function, *args)  # noqa: ASYNC120  # shielded
            raise


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

    def open(self) -> None:
        with _named(str(self.path)):
            torn = self._is_torn()
            self.file = self.path.open("ab", buffering=0)
            if self.closed:
                # Nobody waited until it was open.
                self.file.close()
            elif torn:
                # Else the next line would be lost with the torn one.
                _write_all(self.file, b"\n")

    def append(self, text: str) -> None:
        with _named(str(self.path)):
            assert self.file is not None
            if self._is_rotated_away():
                self.file.close()
                self.open()
            _write_all(self.file, text.encode())

    def close(self) -> None:
        self.closed = True
        if self.file is not None:
            with _named(str(self.path)):
                self.file.close()

    def _is_torn(self) -> bool:
        """Return whether the last line has no end: a disk was full, or a machine fell."""
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


def _write_all(file: FileIO, data: bytes) -> None:
    # A disk that is nearly full takes a part: only the next write tells what is wrong.
    while data:
        data = data[os.write(file.fileno(), data) :]


@contextmanager
def _named(name: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        error.filename = name
        raise
