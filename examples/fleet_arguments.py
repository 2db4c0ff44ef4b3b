"""The arguments of a fleet, and of its probers."""

from __future__ import annotations

import argparse

import shared
import urls


def parse(description: str | None) -> argparse.Namespace:
    parser = shared.OneLineParser(description=description)
    parser.add_argument(
        "targets", nargs="*", type=urls.http_url, metavar="URL", help="what to probe"
    )
    for option, kind, default, meaning in (
        ("--probers", positive_integer, 4, "number of probers"),
        ("--port", positive_integer, 9464, "port of the first prober; the others follow"),
        ("--interval", shared.seconds, 1, "seconds between two probe runs of a target"),
        ("--timeout", shared.seconds, 1, "seconds that a probe run may take"),
        ("--export-interval", shared.seconds, 2, "seconds between two exports"),
        ("--linger", shared.seconds, 20, "seconds for which the last totals are served"),
    ):
        parser.add_argument(
            option,
            type=kind,
            default=default,
            metavar="SECONDS" if kind is shared.seconds else "NUMBER",
            help=f"{meaning} (default: {default})",
        )
    # That of one of the processes that the fleet itself starts.
    parser.add_argument("--member", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.port + args.probers > 65_536:
        parser.error(f"there are no {args.probers} ports from {args.port} on")
    return args


def positive_integer(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)
