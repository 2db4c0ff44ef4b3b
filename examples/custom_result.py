"""Feed keepers with results of your own: the free space of disks, and the load of the host.

It shows what to do without a `Prober`: a loop of your own sends a `Result` for each run.
Each kind of target has a keeper, and the keepers share the outputs. Without arguments it
looks at the disk of `/`. Press Ctrl-C to stop.
"""

from __future__ import annotations

import argparse
import os
import shutil
from functools import partial

import shared
import trio

from trio_statskeeper import Endpoint, Gauge, Map, Result, StatsKeeper, open_keeper

HOST = Endpoint("localhost")
in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)


async def measure_disk(path: Endpoint, limit: float) -> Result:
    try:
        with trio.fail_after(limit):  # a disk may hang
            usage = await in_thread(shutil.disk_usage, path.name)
    except (OSError, trio.TooSlowError) as error:
        errors = Map("error", {type(error).__name__: 1})
        return Result(path, {"total": 1, "success": 0, "error": errors})
    return Result(path, {"total": 1, "success": 1, "free-bytes": Gauge(usage.free)})


def measure_load() -> Result:
    return Result(HOST, {"total": 1, "success": 1, "load": Gauge(os.getloadavg()[0])})


async def main(args: argparse.Namespace) -> int:
    paths = args.targets or [Endpoint("/")]
    disk = StatsKeeper("disk", "example", paths, export_interval=args.export_interval)
    host = StatsKeeper("host", "example", [HOST], export_interval=args.export_interval)
    async with (
        shared.open_outputs(args, [disk, host]) as exports,
        open_keeper(disk, exports) as disk_results,
        open_keeper(host, exports) as host_results,
    ):
        while True:
            start = trio.current_time()
            for path in paths:
                await disk_results.send(await measure_disk(path, args.timeout))
            await host_results.send(measure_load())
            if args.once:
                break
            await trio.sleep_until(start + args.interval)
    return shared.status(args, disk)


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "PATH", Endpoint).parse_args())
