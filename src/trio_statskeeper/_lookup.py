"""Looking up hosts in threads of one's own."""

from __future__ import annotations

import socket
from functools import partial
from ipaddress import ip_address

import trio


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def addresses_of(
    host: str, limiter: trio.CapacityLimiter, thread_name: str
) -> list[str]:
    """Return the addresses of a host: itself, if it is one.

    Lookups of probes may hold all threads of Trio's default limiter for as long as a name
    server does not answer.

    Raises:
      OSError: if the name can't be looked up.
    """
    if is_address(host):
        await trio.lowlevel.checkpoint()
        return [host]
    found = await trio.to_thread.run_sync(
        partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM),
        thread_name=thread_name,
        abandon_on_cancel=True,
        limiter=limiter,
    )
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
