"""Ask DNS servers for names, and print live statistics as cloudprober lines.

SERVER is ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, as in example.com@192.0.2.53. It is asked
for an IPv4 address (A), over UDP. NOERROR and NXDOMAIN are successes; another rcode, or no
answer, is a failure; `rcode` counts each. Latency is the time until the answer. The lag of
the program's own event loop adds to it: see `loop_lag` (`--prometheus`, `--otlp`). Without
arguments it asks a server on loopback for a name that exists, one that does not, and one
for which it answers SERVFAIL. Press Ctrl-C to stop.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import dns.asyncbackend
import dns.asyncquery
import dns.message
import dns.rcode
import shared
from dns_names import dns_server, name_at_server

from trio_statskeeper import Endpoint, Map, ProbeFailed, Prober, StatsKeeper, open_keeper

TRIO = dns.asyncbackend.get_backend("trio")


async def probe(endpoint: Endpoint) -> dict[str, Map]:
    """Ask the endpoint's server for its name once."""
    query = dns.message.make_query(endpoint.labels["name"], "A")
    server, port = endpoint.labels["server"], int(endpoint.labels["port"])
    answer = await dns.asyncquery.udp(query, server, port=port, backend=TRIO)
    rcode = dns.rcode.to_text(answer.rcode())
    metrics = {"rcode": Map("rcode", {rcode: 1})}
    if rcode not in ("NOERROR", "NXDOMAIN"):
        raise ProbeFailed(rcode, metrics=metrics)
    return metrics


async def main(args: argparse.Namespace) -> int:
    async with nullcontext(args.targets) if args.targets else dns_server() as targets:
        keeper = StatsKeeper(
            "dns", "example", targets, export_interval=args.export_interval
        )
        prober = Prober(probe, keeper, interval=args.interval, timeout=args.timeout)
        async with (
            shared.open_outputs(args, [keeper, prober]) as exports,
            open_keeper(keeper, exports) as results,
        ):
            await (prober.run_once if args.once else prober.run)(results)
    return shared.status(args, keeper)


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "NAME@SERVER", name_at_server).parse_args())
