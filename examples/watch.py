"""Probe URLs, and show in a live table how each of them does.

A row tells of the last export interval in which a probe run of the target ended: so long
ago is "updated". It is yellow if a run failed in it, red if all did. Without URLs, or if
standard output is not a terminal, it does what probe_http.py does. Ctrl-C ends it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import partial
from heapq import nsmallest
from typing import Any

import attrs
import probe_http
import shared
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_statskeeper import Distribution, EventMetrics, exponential_bounds

# 0.1 ms to 60 s, and fine: an interval may have few samples.
BOUNDS = exponential_bounds(base=1.2, scale_factor=0.0001, num_buckets=74)
NO_LATENCY = Distribution.of((), BOUNDS)
NUMBERS = {"success": 8, "p50 ms": 8, "p99 ms": 8, "updated": 10}  # column: width


@attrs.frozen
class Row:
    totals: Mapping[str, Any] = {"total": 0, "success": 0, "latency": NO_LATENCY}
    timestamp: float = 0
    success: float = 0
    latency: Distribution = NO_LATENCY

    def after(self, export: EventMetrics) -> Row:
        # There is no latency before the first success.
        now: dict[str, Any] = {"latency": NO_LATENCY, **export.metrics}
        runs = now["total"] - self.totals["total"]
        if runs == 0:
            return self
        success = (now["success"] - self.totals["success"]) / runs
        latency = now["latency"].subtract(self.totals["latency"])
        return Row(now, export.timestamp, success, latency)


async def watch(exports: trio.MemoryReceiveChannel[EventMetrics]) -> None:
    """Refresh the table once per pass, as that holds up the loop for some milliseconds."""
    rows: dict[str, Row] = {}

    def update(export: EventMetrics) -> None:
        target = export.labels["dst"]
        # To the end, for rows to stand in the order of the pass: that of the arguments.
        rows[target] = rows.pop(target, Row()).after(export)

    # It needs a thread to refresh by itself. What is logged to the terminal goes above it.
    live = Live(auto_refresh=False, redirect_stderr=sys.stderr.isatty())
    with exports, live:
        async for export in exports:
            update(export)
            with trio.move_on_after(0.05):  # the rest of the pass follows at once
                async for further in exports:
                    update(further)
            live.update(table(rows, live.console), refresh=True)


def table(rows: Mapping[str, Row], console: Console) -> Table:
    table = Table("target", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, width in NUMBERS.items():
        table.add_column(name, justify="right", min_width=width, no_wrap=True)
    # Room remains for the ^C that terminals write at the end of the last row.
    room = max(console.width - sum(NUMBERS.values()) - 2 * len(NUMBERS) - 2, 10)
    now = max(row.timestamp for row in rows.values())
    shown = list(rows.items())
    if len(shown) >= console.height:  # then the worst, and a last line
        shown = nsmallest(console.height - 2, shown, key=lambda item: item[1].success)
    for target, row in shown:
        table.add_row(
            Text(shortened(target, room)),  # as Text: a URL's brackets are no markup
            f"{row.success:.0%}",
            milliseconds(row.latency.quantile(0.5)),
            milliseconds(row.latency.quantile(0.99)),
            f"{now - row.timestamp:.0f} s ago",
            style="bold red" if row.success == 0 else "yellow" if row.success < 1 else "",
        )
    if len(shown) < len(rows):
        table.add_row(f"… {len(rows) - len(shown)} that do no worse", style="dim")
    return table


def shortened(text: str, width: int) -> str:
    """Return `text` without its middle if it is too long: both ends of a URL tell much."""
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[-end:]}"


def milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000:.1f}"


if __name__ == "__main__":
    args = shared.Parser(__doc__, "URL", probe_http.http_url).parse_args()
    main = probe_http.main
    # Not on a "dumb" terminal.
    if not args.json and sys.stdout.isatty() and Console().is_interactive:
        main = partial(main, show=watch, latency_bounds=BOUNDS)
    shared.run(main, args)
