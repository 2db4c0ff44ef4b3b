"""Probe URLs, and print live statistics of each as cloudprober lines.

Without URLs it probes a server of its own on loopback: one endpoint that is well, one
that is slow and flaky, and a port on which nobody listens. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import suppress

import attrs
import httpx2
import shared
import trio

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    Map,
    ProbeResult,
    StatsKeeper,
    Value,
    exponential_bounds,
)

# 1 ms to 4 s, each four times the one before.
LATENCY_BOUNDS = exponential_bounds(base=4, scale_factor=0.001, num_buckets=7)


@attrs.frozen
class HttpResult:
    """One probe run: the status of the response, or None, and how long it took."""

    target: str
    status: int | None
    seconds: float
    timed_out: bool

    def metrics(self) -> Mapping[str, Value]:
        success = self.status is not None and self.status < 400
        codes = {} if self.status is None else {str(self.status): 1}
        return {
            "total": 1,
            "success": int(success),
            "timeouts": int(self.timed_out),
            "latency": Distribution.of([self.seconds] if success else [], LATENCY_BOUNDS),
            "resp-code": Map("code", codes),
        }


async def probe(client: httpx2.AsyncClient, url: str, seconds: float) -> HttpResult:
    """Get `url` once."""
    start = trio.current_time()
    status = None
    # Without a response the run counts, but has no success.
    with trio.move_on_after(seconds) as scope, suppress(httpx2.HTTPError):
        status = (await client.get(url)).status_code
    return HttpResult(url, status, trio.current_time() - start, scope.cancelled_caught)


async def probe_on_and_on(
    client: httpx2.AsyncClient,
    url: str,
    args: argparse.Namespace,
    results: trio.MemorySendChannel[ProbeResult],
) -> None:
    """Probe `url` at each interval, and send the results."""
    start = trio.current_time()
    with results:
        while True:
            await results.send(await probe(client, url, args.timeout))
            passed = (trio.current_time() - start) // args.interval
            await trio.sleep_until(start + (passed + 1) * args.interval)


async def probe_urls(urls: list[str], args: argparse.Namespace) -> None:
    """Run the probes, the keeper and the printing, until the user wants no more."""
    results_send, results_receive = trio.open_memory_channel[ProbeResult](100)
    exports_send, exports_receive = trio.open_memory_channel[EventMetrics](0)
    keeper = StatsKeeper(
        ptype="http",
        name="example",
        targets=lambda: [Endpoint(url) for url in urls],
        export_interval=args.export_interval,
    )
    async with (
        httpx2.AsyncClient(timeout=None, trust_env=bool(args.urls)) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(shared.print_exports, exports_receive)
        # Leaving this block closes the last sender. Upon that the keeper exports once more.
        async with trio.open_nursery() as probes:
            with results_send:
                for url in urls:
                    probes.start_soon(
                        probe_on_and_on, client, url, args, results_send.clone()
                    )
            await shared.wait_for_the_end(args)
            probes.cancel_scope.cancel()


async def main(args: argparse.Namespace) -> None:
    if args.urls:
        await probe_urls(args.urls, args)
    else:
        async with shared.loopback_server() as urls:
            await probe_urls(urls, args)


def http_url(text: str) -> str:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text!r} is not an http:// or https:// URL")
    return text


if __name__ == "__main__":
    parser = shared.Parser(__doc__)
    parser.add_argument(
        "urls", nargs="*", type=http_url, metavar="URL", help="what to probe"
    )
    shared.run(main, parser.parse_args())
