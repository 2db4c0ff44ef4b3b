"""What the examples share: arguments, prober and keeper, outputs, a clean end."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TextIO

import trio

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    Output,
    Prober,
    StatsKeeper,
    exponential_bounds,
    fan_out,
)
from trio_statskeeper.lines import write_lines
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

# 1 ms to 4 s, each four times the one before.
LATENCY_BOUNDS = exponential_bounds(base=4, scale_factor=0.001, num_buckets=7)


class OneLineParser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class Parser(OneLineParser):
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
        self.add_argument("--json", action="store_true", help="print JSON, without loss")
        self.add_argument(
            "--prometheus",
            type=port,
            metavar="PORT",
            help="serve http://127.0.0.1:PORT/metrics, too (0: a port that is free)",
        )
        self.add_argument(
            "--otlp",
            type=otlp_url,
            metavar="URL",
            help="send OTLP, too, to a collector such as http://localhost:4318",
        )


def seconds(text: str) -> float:
    """Return the number of seconds, above 0 and finite, that `text` says."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not finite and above 0")
    return number


def port(text: str) -> int:
    """Return the port, 0 to 65535, that `text` says."""
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


class ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is now: a live table puts another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


class OneLine(logging.Formatter):
    """Leaves tracebacks out: here it is targets that fail, not the program."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info and record.exc_info[1]
        return f"{record.getMessage()}: {error!r}" if error else record.getMessage()


def run(
    main: Callable[[argparse.Namespace], Awaitable[None]], args: argparse.Namespace
) -> None:
    """Run `main`; end quietly when nobody reads standard output any more (`| head`)."""
    log = ToStandardError()
    log.setFormatter(OneLine())
    logging.getLogger("trio_statskeeper").addHandler(log)
    status = 0
    try:
        trio.run(main, args)
    except* (BrokenPipeError, trio.BrokenResourceError):  # write_lines', the keeper's
        # Python flushes standard output once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except* OSError as group:
        # A port that is taken, for instance: no traceback tells more.
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        print(error, file=sys.stderr)
        status = 1
    sys.exit(status)


async def probe_until_the_end(  # noqa: PLR0913
    args: argparse.Namespace,
    ptype: str,
    probe: Callable[[Endpoint], Awaitable[Any]],
    endpoints: Sequence[Endpoint],
    show: Output | None = None,
    *,
    latency_bounds: Sequence[float] = LATENCY_BOUNDS,
) -> None:
    """Run prober, keeper and outputs, until the user wants no more."""
    results_send, results_receive = trio.open_memory_channel[Any](100)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](0)
    prober = Prober(probe, lambda: endpoints, interval=args.interval, timeout=args.timeout)
    keeper = StatsKeeper(
        ptype=ptype,
        name="example",
        targets=lambda: endpoints,
        export_interval=args.export_interval,
        distributions={"latency": latency_bounds},
    )
    statistics: list[StatsKeeper | Prober] = [keeper, prober]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(export, args, exports_receive, statistics, show)
        async with trio.open_nursery() as probers:
            probers.start_soon(prober.run, results_send)
            await wait_for_the_end(args)
            # The prober closes the results, upon which the keeper exports once more.
            probers.cancel_scope.cancel()


async def export(
    args: argparse.Namespace,
    exports: trio.MemoryReceiveChannel[EventMetrics],
    statistics: Sequence[StatsKeeper | Prober],
    show: Output | None = None,
) -> None:
    """Run the outputs that the user has asked for, until `exports` ends."""
    outputs: list[Output] = [show or partial(write_lines, json=args.json)]
    async with trio.open_nursery() as servers:
        if args.prometheus is not None:
            prometheus = PrometheusExporter(statistics_of=statistics)
            outputs.append(prometheus.run)
            host, port = await servers.start(prometheus.serve, args.prometheus)
            print(f"Metrics are at http://{host}:{port}/metrics.", file=sys.stderr)
        if args.otlp is not None:
            outputs.append(OTLPExporter(args.otlp, statistics_of=statistics).run)
        await fan_out(exports, *outputs)
        servers.cancel_scope.cancel()


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


async def connect(endpoint: Endpoint) -> trio.SocketStream:
    """Open a TCP connection to the endpoint."""
    assert endpoint.port is not None
    return await trio.open_tcp_stream(endpoint.name, endpoint.port)
