"""An output that shows a live table of targets on a terminal.

A row covers the last export interval in which a run of the target ended; "updated" is how
long ago that was. It is yellow if a run failed in that interval, red if all of them did.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping
from heapq import nsmallest
from typing import Any

import attrs
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_statskeeper import Endpoint, EventMetrics, ExponentialDistribution

NUMBERS = {"success": 8, "p50 ms": 8, "p99 ms": 8, "updated": 10}  # column: width


def add_lines_option(parser: argparse.ArgumentParser) -> None:
    """Add `--lines`, which is the default where no table can be shown."""
    # A "dumb" terminal can't move its cursor.
    supported = sys.stdout.isatty() and Console().is_interactive
    text = "print lines on a terminal, too"
    parser.add_argument("--lines", action="store_true", default=not supported, help=text)


async def show_table(
    targets: Iterable[Endpoint], exports: trio.MemoryReceiveChannel[EventMetrics]
) -> None:
    """Show a row for each of the targets, until `exports` ends; the table then stays there.

    It is refreshed once a pass, as that holds up the loop for some milliseconds.
    """
    rows = {target.key: Row() for target in targets}

    def update(export: EventMetrics) -> None:
        target = export.labels["dst"]
        rows[target] = rows[target].after(export)

    # Rich needs a thread to refresh by itself. Log lines appear above the table.
    live = Live(auto_refresh=False, redirect_stderr=sys.stderr.isatty())
    with exports, live:
        async for export in exports:
            update(export)
            with trio.move_on_after(0.05):  # the rest of the pass follows at once
                async for further in exports:
                    update(further)
            live.update(table(rows, live.console), refresh=True)


@attrs.frozen
class Row:
    """A target's totals at the last export, and how it did since the one before."""

    totals: Mapping[str, Any] = {"total": 0, "success": 0}
    timestamp: float = 0
    success: float = 0
    latency: ExponentialDistribution | None = None

    def after(self, export: EventMetrics) -> Row:
        now: Mapping[str, Any] = export.metrics
        runs = now["total"] - self.totals["total"]
        if runs == 0:
            return self
        successes = now["success"] - self.totals["success"]
        latency = now.get("latency")  # there is none before the first success
        if latency is not None and "latency" in self.totals:
            latency = latency.subtract(self.totals["latency"])
        return Row(now, export.timestamp, successes / runs, latency)


def table(rows: Mapping[str, Row], console: Console) -> Table:
    probed = [(target, row) for target, row in rows.items() if row.timestamp]
    table = Table("target", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, width in NUMBERS.items():
        table.add_column(name, justify="right", min_width=width, no_wrap=True)
    # Leave room for the ^C that terminals echo at the end of the last row.
    room = max(console.width - sum(NUMBERS.values()) - 2 * len(NUMBERS) - 2, 10)
    now = max(row.timestamp for row in rows.values())
    shown = probed
    if len(shown) >= console.height:  # then the worst, and a last line
        shown = nsmallest(console.height - 2, shown, key=lambda item: item[1].success)
    for target, row in shown:
        table.add_row(
            Text(shortened(target, room)),  # as Text: a URL's brackets are not markup
            f"{row.success:.0%}",
            milliseconds(row.latency, 0.5),
            milliseconds(row.latency, 0.99),
            f"{now - row.timestamp:.0f} s ago",
            style="bold red" if row.success == 0 else "yellow" if row.success < 1 else "",
        )
    if len(shown) < len(probed):
        more = len(probed) - len(shown)
        table.add_row(f"… {more} more, none of them worse", style="dim")
    return table


def shortened(text: str, width: int) -> str:
    """Return `text` without its middle if it is too long: a URL's ends matter most."""
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[-end:]}"


def milliseconds(latency: ExponentialDistribution | None, quantile: float) -> str:
    seconds = math.nan if latency is None else latency.quantile(quantile)
    return "-" if math.isnan(seconds) else f"{seconds * 1000:.1f}"
