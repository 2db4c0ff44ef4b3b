"""Probe URLs, and show how they do: a table on a terminal, else cloudprober lines.

Each run has a connection of its own, without cookies or proxies. Certificates are verified,
redirects are not followed. Statuses of 400 and above are failures; `resp-code` counts all.
Latency covers name lookup, connection, TLS, request and at most 1 MB of the body. The lag
of the program's own event loop adds to it: see `loop_lag` (`--prometheus`, `--otlp`).
Targets are shown without user, password and query; if several look the same then, the names
of the others end in `#2`, `#3` and so on. Without URLs it probes loopback: a healthy URL,
one that is slow and flaky, and a closed port. Press Ctrl-C to stop.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial

import servers
import shared
import urls
from live_table import add_lines_option, show_table

from trio_statskeeper import Endpoint, Map, ProbeFailed, Prober, StatsKeeper, open_keeper


async def probe(url_of: dict[Endpoint, str], endpoint: Endpoint) -> dict[str, Map]:
    """Get the endpoint's URL once."""
    status = await urls.get_status(url_of[endpoint])
    metrics = {"resp-code": Map("code", {str(status): 1})}
    if status >= 400:
        raise ProbeFailed(f"status-{status}", metrics=metrics)
    return metrics


async def main(args: argparse.Namespace) -> int:
    server = nullcontext(args.targets) if args.targets else servers.http_server()
    async with server as given:
        url_of = urls.by_endpoint(given)
        table = None if args.lines or args.json else partial(show_table, url_of)
        keeper = StatsKeeper(
            "http", "example", list(url_of), export_interval=args.export_interval
        )
        prober = Prober(
            partial(probe, url_of), keeper, interval=args.interval, timeout=args.timeout
        )
        async with (
            shared.open_outputs(args, [keeper, prober], table) as exports,
            open_keeper(keeper, exports) as results,
        ):
            await (prober.run_once if args.once else prober.run)(results)
    return shared.status(args, keeper)


if __name__ == "__main__":
    parser = shared.Parser(__doc__, "URL", urls.http_url)
    add_lines_option(parser)
    shared.run(main, parser.parse_args())
