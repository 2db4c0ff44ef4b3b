"""The worker thread that writes lines."""

from __future__ import annotations

import sys
from collections.abc import Callable

import trio


async def finish_in_thread(
    function: Callable[[], None], limiter: trio.CapacityLimiter
) -> None:
    """Call `function` in a worker thread, and wait for its end even when cancelled."""
    with trio.CancelScope(shield=True):
        try:
            await call_in_thread(function, limiter)
        except KeyboardInterrupt as interrupt:
            # In the main task, a pending interrupt is raised at the next checkpoint,
            # before the thread is started, despite the shield.
            try:
                await call_in_thread(function, limiter)  # noqa: ASYNC120  # shielded
            finally:
                raise interrupt


async def call_in_thread(
    function: Callable[[], None],
    limiter: trio.CapacityLimiter,
    *,
    abandon_on_cancel: bool = False,
) -> None:
    """Call `function` in a worker thread; on Trio's mock clock, in the loop's own thread.

    To a mock clock, a task that waits for a thread is idle: the clock would jump ahead.
    """
    # If a mock clock is in use, its module was imported.
    testing = sys.modules.get("trio.testing")
    if testing and isinstance(trio.lowlevel.current_clock(), testing.MockClock):
        await trio.lowlevel.checkpoint()
        function()
    else:
        await trio.to_thread.run_sync(
            function,
            limiter=limiter,
            abandon_on_cancel=abandon_on_cancel,
            thread_name="write_lines",
        )
