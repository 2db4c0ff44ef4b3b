"""Make status.png: the status page after a made-up hour, as chromium shows it.

python docs/status_picture.py docs/status.png
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from random import Random

import trio

from trio_statskeeper import EventMetrics, ExponentialDistribution, Map
from trio_statskeeper.status import StatusPage

SIZE = (1120, 640)
BEGAN = 1_767_225_600  # 2026-01-01 00:00 UTC
PASSES = 360
RUNS = 5

# The targets of each probe, and their usual latency in seconds.
TARGETS = {
    ("http", "shop"): {
        "shop.example.com": 0.045,
        "api.example.com": 0.018,
        "images.example.com": 0.012,
        "login.example.com": 0.03,
        "search.example.com": 0.12,
    },
    ("dns", "resolvers"): {
        "192.0.2.53:53": 0.004,
        "198.51.100.53:53": 0.006,
        "203.0.113.53:53": 0.005,
    },
}


def failures(target: str, number: int, dice: Random) -> tuple[int, str]:
    """Return how many runs of a pass fail, and how."""
    if target == "search.example.com" and number > 338:
        return RUNS, "status-503"
    if target == "login.example.com" and (number > 355 or 120 < number < 150):
        return dice.randint(1, 2), "timeout"
    if target == "198.51.100.53:53" and 200 < number < 215:
        return RUNS, "ConnectionRefusedError"
    return 0, ""


def exports(dice: Random) -> Iterator[EventMetrics]:
    totals = {
        (*keeper, target): (0, {}, ExponentialDistribution(0))
        for keeper, targets in TARGETS.items()
        for target in targets
    }
    for number in range(1, PASSES + 1):
        for (ptype, probe), targets in TARGETS.items():
            for target, usual in targets.items():
                success, errors, latency = totals[ptype, probe, target]
                failed, kind = failures(target, number, dice)
                if failed:
                    errors = {**errors, kind: errors.get(kind, 0) + failed}
                busy = 3 if target == "search.example.com" and number > 320 else 1
                samples = [
                    usual * busy * dice.lognormvariate(0, 0.25)
                    for _ in range(RUNS - failed)
                ]
                success += RUNS - failed
                latency = latency.merge(ExponentialDistribution.of(samples))
                totals[ptype, probe, target] = success, errors, latency
                metrics = {"total": RUNS * number, "success": success, "latency": latency}
                metrics["error"] = Map("error", errors)
                labels = {"ptype": ptype, "probe": probe, "dst": target}
                yield EventMetrics(
                    BEGAN + 10 * number,
                    BEGAN,
                    labels,
                    metrics,
                    ends_pass=target == [*targets][-1],
                )


async def main(picture: str) -> None:
    page = StatusPage(0)
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(page.run, receive)
        for export in exports(Random(11)):
            await send.send(export)
        width, height = SIZE
        chromium = [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
            f"--screenshot={picture}",
            f"http://{host}:{port}/status",
        ]
        await trio.to_thread.run_sync(partial(subprocess.run, chromium, check=True))
        nursery.cancel_scope.cancel()


trio.run(main, sys.argv[1])
