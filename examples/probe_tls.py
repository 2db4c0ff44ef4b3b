"""Do TLS handshakes with servers, and print live statistics as cloudprober lines.

`cert-expiry` is the number of seconds until the server's certificate expires, negative if
it has. A certificate that has expired, is for another name or is not trusted is a failure.
Latency covers name lookup, connection and handshake. The lag of the program's own event
loop adds to it: see `loop_lag` (`--prometheus`, `--otlp`). Without arguments it probes
loopback: servers whose certificates are valid, for another name, and expired. Press Ctrl-C
to stop.
"""

from __future__ import annotations

import argparse
import ssl
from contextlib import nullcontext
from functools import partial

import shared
from certificates import UNVERIFIED, seconds_until_expiry, tls_servers

from trio_statskeeper import Endpoint, Gauge, ProbeFailed, Prober, StatsKeeper, open_keeper


async def probe(context: ssl.SSLContext, endpoint: Endpoint) -> dict[str, Gauge]:
    """Do a TLS handshake with the endpoint once."""
    try:
        return {"cert-expiry": Gauge(await seconds_until_expiry(endpoint, context))}
    except ssl.SSLCertVerificationError as error:
        refusal = error
    # A second handshake shows the certificate that was refused in the first.
    metrics = {"cert-expiry": Gauge(await seconds_until_expiry(endpoint, UNVERIFIED))}
    reason = refusal.verify_message.partition(",")[0].replace(" ", "-")
    raise ProbeFailed(reason, metrics=metrics) from refusal


async def main(args: argparse.Namespace) -> int:
    context = ssl.create_default_context()
    async with (
        nullcontext(args.targets) if args.targets else tls_servers(context) as targets
    ):
        keeper = StatsKeeper(
            "tls", "example", targets, export_interval=args.export_interval
        )
        prober = Prober(
            partial(probe, context), keeper, interval=args.interval, timeout=args.timeout
        )
        async with (
            shared.open_outputs(args, [keeper, prober]) as exports,
            open_keeper(keeper, exports) as results,
        ):
            await (prober.run_once if args.once else prober.run)(results)
    return shared.status(args, keeper)


if __name__ == "__main__":
    shared.run(main, shared.Parser(__doc__, "HOST:PORT", shared.host_and_port).parse_args())
