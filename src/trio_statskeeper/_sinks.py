"""Where lines are written: standard output, or a file that may be rotated away.

All of this runs in a worker thread.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import attrs

from ._log import logger


@attrs.frozen
class WriteFailure:
    """Why only a part of a text was written, or nothing."""

    cause: OSError
    lines_written: int


def print_text(text: str) -> None:
    """Write `text` to standard output.

    Raises:
      OSError: if that fails; it names `standard output`.
    """
    with _named("standard output"):
        if sys.stdout is None or sys.stdout.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # A character that it can't encode is escaped as `EventMetrics.parse` reads it.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


@attrs.define(eq=False)
class AppendedFile:
    """A file to append to: at each write, the one that its path leads to."""

    path: Path
    file: FileIO | None = None
    closed: bool = False
    """Whether it must not be open any more. A thread that is still opening it closes it."""
    _torn: bool = False
    """Whether its last line has no end, after a full disk or a crash."""

    def open(self, opener: Callable[[str, int], int] | None = None) -> None:
        with _named(str(self.path)):
            self._torn = self._is_torn()
            self.file = FileIO(self.path, "a", opener=opener)
            if self.closed:
                # The opening was abandoned.
                self.file.close()

    def append(self, text: str) -> WriteFailure | None:
        """Write `text`; return why that failed, if another attempt may succeed.

        Raises:
          BrokenPipeError: if the other end of a pipe is closed.
        """
        data = memoryview(text.encode())
        left = data
        try:
            with _named(str(self.path)):
                file = self._current_file()
                if self._torn:
                    # Otherwise the next line would be part of the torn one.
                    os.write(file.fileno(), b"\n")
                    self._torn = False
                # A disk that is nearly full accepts a part; the next write says why.
                while left:
                    left = left[os.write(file.fileno(), left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            self._abandon()
            written = bytes(data[: len(data) - len(left)])
            return WriteFailure(error, written.count(b"\n"))
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
        """Close the file, to open it again: the descriptor may be stale."""
        with suppress(OSError):
            if self.file is not None:
                self.file.close()
        self.file = None

    def close(self) -> None:
        assert self.file is not None
        try:
            self.file.close()
        except OSError as error:
            # Network file systems may report a full disk only now.
            logger.warning(
                "%s: %s when closed; the last lines may be lost", self.path, error.strerror
            )

    def _is_torn(self) -> bool:
        # The file may not exist, be empty, or be unreadable.
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
    """Open a file; if it is a FIFO without a reader, fail instead of waiting."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


# Windows has no such FIFOs, and no such flag.
_opener = _open_at_once if hasattr(os, "O_NONBLOCK") else None


@contextmanager
def _named(name: str) -> Generator[None]:
    """Have an OSError name its file."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise
