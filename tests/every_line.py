"""Press Ctrl-C at every line of a play: at another line each time."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Protocol, TypeAlias

import attrs
import trio
from every_step import deterministic_scheduling
from trio import _channel, _sync, _threads  # noqa: ASYNC106
from trio._core import _parking_lot, _run
from trio._core._ki import _CODE_KI_PROTECTION_STATUS_WMAP, ki_protection_enabled
from trio.testing import MockClock

import trio_statskeeper
from trio_statskeeper._exceptions import leaf_exceptions

Line: TypeAlias = tuple[CodeType, int, bool]
"""The code of a function, the number of a line, and whether it is protected."""

# Seconds after which a play hangs, and until it is told so again: what is raised where
# nothing propagates, as in a finalizer, ends nothing.
_TOO_LONG = 20
_AGAIN = 1

_LIBRARY = str(Path(trio_statskeeper.__file__).parent)

# What starts tasks and hands over results.
_WATCHED = {
    module.__file__
    for module in (_channel, _parking_lot, _run, _sync, _threads, contextlib)
}

_watching: ContextVar[bool] = ContextVar("watching", default=False)


class _HangError(BaseException):
    """The play did not end."""


class Play(Protocol):
    """Something that is interrupted once."""

    async def run(self, ctrl_c: CtrlC) -> None:
        """Have `ctrl_c` watch something."""

    def check(self) -> None:
        """Assert, after the end of Trio, that nothing is lost."""


def _trio_protects(frame: FrameType | None) -> bool:
    """Return whether Trio protects a line that is protected, whoever calls."""
    while frame is not None and not frame.f_code.co_filename.startswith(_LIBRARY):
        with contextlib.suppress(KeyError):
            return _CODE_KI_PROTECTION_STATUS_WMAP[frame.f_code]
        frame = frame.f_back
    return False


@attrs.define(eq=False)
class CtrlC:
    """A user who presses Ctrl-C at a line of what is watched.

    Lines of the library count, and those of Trio's modules that start tasks and hand over
    results, in the task that is watched and in those that it starts.
    """

    at: Line | None = None
    time: int = 1
    """Which time the line is reached."""
    in_main_task: bool = True
    struck: bool = False
    reached: Counter[Line] = attrs.field(factory=Counter)

    async def watch(self, run: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Await `run(*args)`, in this task or in another one."""
        if self.in_main_task:
            await self._watch(run, *args)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, run, *args)

    async def _watch(self, run: Callable[..., Awaitable[object]], *args: Any) -> None:
        token = _watching.set(True)
        try:
            await run(*args)
        finally:
            _watching.reset(token)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Do what `sys.settrace` asks for."""
        if self.at is not None and frame.f_code != self.at[0]:
            return None  # this saves most of the time
        file = frame.f_code.co_filename
        if file in _WATCHED or file.startswith(_LIBRARY):
            return self._trace_line
        return None

    def _trace_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self.at is not None and frame.f_lineno != self.at[1]:
            return self._trace_line
        if event == "line" and _watching.get():
            protected = ki_protection_enabled(frame)
            if not (protected and _trio_protects(frame)):
                line = frame.f_code, frame.f_lineno, protected
                self.reached[line] += 1
                if line == self.at and self.reached[line] == self.time:
                    self.struck = True
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
        return self._trace_line


@contextlib.contextmanager
def _tracing(trace: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    before = sys.gettrace()  # coverage's
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def hang(signum: int, frame: FrameType | None) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def perform(play: Play, ctrl_c: CtrlC, *, mock_clock: bool = True) -> None:
    """Run `play`; Ctrl-C has to end it, and nothing else."""
    clock = MockClock(autojump_threshold=0) if mock_clock else None
    unraisable: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with deterministic_scheduling(), _limited(_TOO_LONG), _tracing(ctrl_c.trace):
            trio.run(play.run, ctrl_c, clock=clock)
    except BaseException as error:  # noqa: ASYNC103  # the run is over
        if not all(type(leaf) is KeyboardInterrupt for leaf in leaf_exceptions(error)):
            raise
        ended = True
    else:
        ended = False
    finally:
        gc.collect()
        sys.unraisablehook = hook
    assert ended == ctrl_c.struck
    if ctrl_c.at is not None and not ctrl_c.at[-1]:
        # Code of others', where Ctrl-C is raised at once: what it just opened is left to
        # the garbage collector.
        unraisable = [each for each in unraisable if each.exc_type is not ResourceWarning]
    assert not unraisable
    play.check()


def press_at_every_line(make: Callable[[], Play], *, mock_clock: bool = True) -> int:
    """Press Ctrl-C at each line that a play reaches; return how often it struck.

    Every other line is reached in the main task, where Trio delivers a Ctrl-C that waits.
    Of a line that is reached again and again, it is the first, second or third time; in
    another task, or in real time, it may not be reached as often.
    """
    gc.collect()
    gc.freeze()  # what is garbage later is found quickly
    try:
        struck = 0
        ctrl_c = CtrlC()
        perform(make(), ctrl_c, mock_clock=mock_clock)
        for number, (line, times) in enumerate(ctrl_c.reached.items()):
            pressed = CtrlC(line, min(times, number % 3 + 1), in_main_task=number % 2 == 0)
            try:
                perform(make(), pressed, mock_clock=mock_clock)
            except BaseException as error:
                error.add_note(f"Ctrl-C at {line}, time {pressed.time}")
                raise
            struck += pressed.struck
        return struck
    finally:
        gc.unfreeze()
