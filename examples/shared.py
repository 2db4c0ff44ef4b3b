"""What the examples share: arguments, logging, and the outputs that they ask for."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NoReturn, TextIO

import trio

import trio_statskeeper
from trio_statskeeper import Endpoint, EventMetrics, Output, Prober, StatsKeeper
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter
from trio_statskeeper.status import StatusPage


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class Parser(OneLineParser):
    """A parser for targets, for how often to probe and export, and for where to."""

    def __init__(
        self, description: str | None, metavar: str, target: Callable[[str], object]
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
        self.add_argument(
            "--once",
            action="store_true",
            help="probe each target once; exit status 1 if any of them failed",
        )
        self.add_argument("--json", action="store_true", help="print JSON lines, lossless")
        self.add_argument(
            "--prometheus",
            type=port,
            metavar="PORT",
            help="also serve http://127.0.0.1:PORT/metrics (0: any free port)",
        )
        self.add_argument(
            "--status",
            type=port,
            default=0,
            metavar="PORT",
            help="serve http://127.0.0.1:PORT/status (default: 0, any free port)",
        )
        self.add_argument(
            "--otlp",
            type=otlp_url,
            metavar="URL",
            help="also send OTLP to a collector such as http://localhost:4318",
        )


def seconds(text: str) -> float:
    """Return the number of seconds, finite and > 0, in `text`."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not finite and > 0")
    return number


def port(text: str) -> int:
    """Return the port, 0 to 65535, in `text`."""
    if not text.isascii() or not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def otlp_url(text: str) -> str:
    """Return `text` if it is the URL of a collector."""
    try:
        OTLPExporter(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def host_and_port(text: str) -> Endpoint:
    """Return the endpoint of `HOST:PORT`, or `[ADDRESS]:PORT` for IPv6."""
    host, _, number = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host:
        with suppress(argparse.ArgumentTypeError):
            return Endpoint(host, port(number))
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")


@asynccontextmanager
async def open_outputs(
    args: argparse.Namespace,
    statistics_of: Sequence[StatsKeeper | Prober],
    show: Output | None = None,
) -> AsyncGenerator[trio.MemorySendChannel[EventMetrics]]:
    """Open the outputs that the arguments ask for; cancel the block when `--for` is over.

    Args:
      args: as parsed.
      statistics_of: whose own statistics Prometheus and OTLP get, too.
      show: takes the place of lines on standard output.
    """
    outputs = [show or partial(write_lines, json=args.json)]
    prometheus = PrometheusExporter(port=args.prometheus or 0, statistics_of=statistics_of)
    page = StatusPage(port=args.status)
    if not args.once:
        outputs.append(page.run)
    if args.prometheus is not None:
        outputs.append(prometheus.run)
    if args.otlp is not None:
        outputs.append(OTLPExporter(args.otlp, statistics_of=statistics_of).run)
    async with trio_statskeeper.open_outputs(*outputs) as exports:
        for what, path, address in (
            ("Metrics are", "metrics", prometheus.address),
            ("The status page is", "status", page.address),
        ):
            if address is not None:
                host, number = address
                print(f"{what} at http://{host}:{number}/{path}.", file=sys.stderr)
        if not args.once:
            print(
                f"Probing every {args.interval:g} s, exporting every "
                f"{args.export_interval:g} s. Press Ctrl-C to stop.",
                file=sys.stderr,
            )
        with trio.move_on_after(getattr(args, "for")):  # noqa: ASYNC100  # the block has some
            yield exports


def status(args: argparse.Namespace, keeper: StatsKeeper) -> int:
    """Return the exit status: 1 if a target failed in the only run that it had."""
    failed = any(not totals.metrics["success"] for totals in keeper.snapshot())
    return int(args.once and failed)


class ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which a live table replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def interrupt(*_: object) -> None:
    """Do what Ctrl-C does; Trio takes care of no other signal."""
    signal.raise_signal(signal.SIGINT)


def run(
    main: Callable[[argparse.Namespace], Awaitable[int | str]], args: argparse.Namespace
) -> NoReturn:
    """Run `main`, and exit with what it returns.

    Ctrl-C and SIGTERM interrupt it where it waits, and are a clean end. A reader of
    standard output that goes away (`| head`) and a port that is taken are not worth a
    traceback.
    """
    logging.getLogger("trio_statskeeper").addHandler(ToStandardError())
    signal.signal(signal.SIGTERM, interrupt)
    result: int | str = 0
    try:
        result = trio.run(main, args, restrict_keyboard_interrupt_to_checkpoints=True)
    except* KeyboardInterrupt:
        pass
    except* (BrokenPipeError, trio.BrokenResourceError):  # write_lines', the keeper's
        # Python flushes standard output once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        result = 1
    except* OSError as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        print(getattr(error, "strerror", None) or error, file=sys.stderr)
        result = 1
    sys.exit(result)
