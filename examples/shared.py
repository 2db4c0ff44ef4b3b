"""What the examples share: arguments, a server to probe on loopback, and a clean end."""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import trio
from hypercorn.config import Config
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]

from trio_statskeeper import EventMetrics


class Parser(argparse.ArgumentParser):
    """A parser of the arguments that all examples take."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description)
        for option, default, meaning in (
            ("--interval", 1, "between two probe runs of a target (default: 1)"),
            ("--timeout", 1, "that a probe run may take (default: 1)"),
            ("--export-interval", 2, "between two exports (default: 2)"),
            ("--for", math.inf, "to run (default: until Ctrl-C)"),
        ):
            self.add_argument(
                option, type=seconds, default=default, metavar="SECONDS", help=meaning
            )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def seconds(text: str) -> float:
    """Return the number of seconds, above 0 and finite, that `text` says."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not finite and above 0")
    return number


def run(
    main: Callable[[argparse.Namespace], Awaitable[None]], args: argparse.Namespace
) -> None:
    """Run `main`; end quietly when nobody reads standard output any more (`| head`)."""
    status = 0
    try:
        trio.run(main, args)
    except* (BrokenPipeError, trio.BrokenResourceError):  # print_exports', the keeper's
        # Python flushes standard output once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


async def wait_for_the_end(args: argparse.Namespace) -> None:
    """Return after the time that the user has set, or upon Ctrl-C or SIGTERM."""
    print(
        f"Probing every {args.interval:g} s, exporting every {args.export_interval:g} s. "
        "Ctrl-C ends it.",
        file=sys.stderr,
    )
    with (
        trio.move_on_after(getattr(args, "for")),
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        async for _ in signals:
            return


async def print_exports(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
    """Print a line for each target at each export."""
    with exports:
        async for event_metrics in exports:
            print(event_metrics, flush=True)


@asynccontextmanager
async def loopback_server() -> AsyncGenerator[list[str]]:
    """Run an HTTP server on loopback; give URLs that are well, flaky and closed."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # but not listening: nobody can connect
        async with trio.open_nursery() as nursery:
            (base,) = await nursery.start(serve, app, config)  # pyright: ignore[reportUnknownArgumentType]
            port = closed.getsockname()[1]
            yield [f"{base}/", f"{base}/flaky", f"http://127.0.0.1:{port}/"]
            nursery.cancel_scope.cancel()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer HTTP requests; `/flaky` is slow and fails at times (an ASGI app)."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        return
    status = 200
    if scope["path"] == "/flaky":
        await trio.sleep(random.expovariate(2))
        status = random.choice([200, 200, 200, 503])
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"well\n"})
