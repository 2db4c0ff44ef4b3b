"""The processes of a fleet: started, started again when they end, and stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Sequence

import trio

PAUSE = 1.0  # seconds until a process that has ended is started again


def say(line: str) -> None:
    """Write a line to standard error in one piece, as many processes write there."""
    sys.stderr.write(f"{line}\n")


async def keep_running(commands: Iterable[Sequence[str]]) -> bool:
    """Keep a process running for each command, until Ctrl-C or SIGTERM.

    The first signal is passed on to the processes as SIGTERM. After the second one, or if
    this process is killed, their standard input ends.

    Returns:
      whether all processes ended well after the first signal.
    """
    stopped: list[trio.Process] = []

    async def stop(process: trio.Process) -> None:
        stopped.append(process)
        process.terminate()

    async def repeat(member: int, command: Sequence[str]) -> None:
        while True:
            ended = await trio.run_process(
                command,
                stdin=stdin,
                check=False,
                deliver_cancel=stop,
                process_group=0,  # a terminal's Ctrl-C does not reach them
            )
            say(f"prober {member} ended with status {ended.returncode}; restarting")
            await trio.sleep(PAUSE)

    async def end_upon_signals() -> None:
        await anext(signals)
        processes.cancel_scope.cancel()
        await anext(signals)
        os.close(lifeline)

    stdin, lifeline = os.pipe()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_upon_signals)
            async with trio.open_nursery() as processes:
                for member, command in enumerate(commands):
                    processes.start_soon(repeat, member, command)
            nursery.cancel_scope.cancel()
    # SIGTERM itself ends those that are not ready for it yet.
    return all(process.returncode in (0, -signal.SIGTERM) for process in stopped)
