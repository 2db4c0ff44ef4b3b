"""What the examples share: arguments, prober and keeper, a loopback server, a clean end."""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import trio

from trio_statskeeper import Endpoint, EventMetrics, Prober, StatsKeeper, exponential_bounds

# 1 ms to 4 s, each four times the one before.
LATENCY_BOUNDS = exponential_bounds(base=4, scale_factor=0.001, num_buckets=7)


class Parser(argparse.ArgumentParser):
    """A parser of what all examples take: targets, and how often to probe and export."""

    def __init__(
        self, description: str | None, metavar: str, target: Callable[[str], Endpoint]
    ) -> None:
        super().__init__(description=description)
        self.add_argument(
            "targets", nargs="*", type=target, metavar=metavar, help="what to probe"
        )
        for option, default, meaning in (
            ("--interval", 1, "between two probe runs of a target (default: 1)"),
            ("--timeout", 1, "that a probe run may take (default: 1)"),
            ("--export-interval", 2, "between two exports (default: 2)"),
            ("--for", math.inf, "to run (default: until Ctrl-C)"),
        ):
            self.add_argument(
                option,
                type=seconds,
                default=default,
                metavar="SECONDS",
                help=f"seconds {meaning}",
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


def host_and_port(text: str) -> Endpoint:
    """Return the endpoint of `HOST:PORT`, or `[ADDRESS]:PORT` for IPv6."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return Endpoint(host.removeprefix("[").removesuffix("]"), int(port))


class OneLine(logging.Formatter):
    """Leaves tracebacks out: here it is targets that fail, not the program."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info and record.exc_info[1]
        return f"{record.getMessage()}: {error!r}" if error else record.getMessage()


def run(
    main: Callable[[argparse.Namespace], Awaitable[None]], args: argparse.Namespace
) -> None:
    """Run `main`; end quietly when nobody reads standard output any more (`| head`)."""
    log = logging.StreamHandler()
    log.setFormatter(OneLine())
    logging.getLogger("trio_statskeeper").addHandler(log)
    status = 0
    try:
        trio.run(main, args)
    except* (BrokenPipeError, trio.BrokenResourceError):  # print_exports', the keeper's
        # Python flushes standard output once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


async def print_exports(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
    """Print a line for each target at each export."""
    with exports:
        async for event_metrics in exports:
            print(event_metrics, flush=True)


async def probe_until_the_end(
    args: argparse.Namespace,
    ptype: str,
    probe: Callable[[Endpoint], Awaitable[Any]],
    endpoints: Sequence[Endpoint],
    show: Callable[
        [trio.MemoryReceiveChannel[EventMetrics]], Awaitable[None]
    ] = print_exports,
) -> None:
    """Run prober, keeper and output, until the user wants no more."""
    results_send, results_receive = trio.open_memory_channel[Any](100)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](0)
    prober = Prober(probe, lambda: endpoints, interval=args.interval, timeout=args.timeout)
    keeper = StatsKeeper(
        ptype=ptype,
        name="example",
        targets=lambda: endpoints,
        export_interval=args.export_interval,
        distributions={"latency": LATENCY_BOUNDS},
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(show, exports_receive)
        async with trio.open_nursery() as probers:
            probers.start_soon(prober.run, results_send)
            await wait_for_the_end(args)
            # The prober closes the results, upon which the keeper exports once more.
            probers.cancel_scope.cancel()


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


def closed_port() -> socket.socket:
    """Return a socket to whose port nobody can connect: it is bound, but not listening."""
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    return closed


@asynccontextmanager
async def http_server() -> AsyncGenerator[list[Endpoint]]:
    """Run an HTTP server on loopback; give URLs that are well, flaky and closed."""
    from hypercorn.config import Config  # noqa: PLC0415  # only HTTP examples need it
    from hypercorn.trio import serve  # noqa: PLC0415  # pyright: ignore[reportUnknownVariableType]

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    with closed_port() as closed:
        async with trio.open_nursery() as nursery:
            (base,) = await nursery.start(serve, app, config)  # pyright: ignore[reportUnknownArgumentType]
            nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
            yield [Endpoint(url) for url in (f"{base}/", f"{base}/flaky", nobody)]
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
