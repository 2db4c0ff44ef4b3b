"""Listening on all addresses of one or more hosts."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import trio

from trio_statskeeper._lookup import addresses_of

# How many free ports of the first address are tried on the others.
_ATTEMPTS = 10

# A name may have addresses of a family that the system lacks or has disabled.
_UNAVAILABLE = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


async def listen(hosts: Iterable[str], port: int) -> list[trio.SocketListener]:
    """Listen on all addresses of the hosts that are available, at least one of each.

    Args:
      hosts: names or addresses. `::` includes all addresses of IPv4.
      port: the port. 0: one that is free on all addresses.

    Raises:
      OSError: if that fails; the message has the host and port.
    """
    addresses = {host: await _addresses_of(host, port) for host in hosts}
    for _ in range(0 if port else _ATTEMPTS):
        try:
            return await _open_listeners(addresses, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return await _open_listeners(addresses, port)


async def _addresses_of(host: str, port: int) -> list[str]:
    if host == "::":
        # A socket for both families is not available everywhere.
        await trio.lowlevel.checkpoint()
        return ["::", "0.0.0.0"]  # noqa: S104  # the user has asked for it
    try:
        limiter = trio.CapacityLimiter(1)
        return await addresses_of(host, limiter, f"looking up {host}")
    except OSError as error:
        raise _listening_error(host, port, error) from None
    except UnicodeError as error:  # not a valid host name
        raise OSError(f"can't listen on {host}:{port}: {error}") from None


async def _open_listeners(
    addresses: Mapping[str, Sequence[str]], port: int
) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    open_addresses: set[str] = set()
    with ExitStack() as on_error:
        for host, addresses_of_host in addresses.items():
            opened = 0
            for address in addresses_of_host:
                if address in open_addresses:  # it is another host's, too
                    opened += 1
                    continue
                port_of_all = port or _port_of(listeners)
                try:
                    [listener] = await trio.open_tcp_listeners(port_of_all, host=address)
                except OSError as error:
                    is_last = address == addresses_of_host[-1]
                    if error.errno in _UNAVAILABLE and (opened or not is_last):
                        continue
                    raise _listening_error(host, port_of_all, error) from None
                on_error.callback(listener.socket.close)
                listeners.append(listener)
                open_addresses.add(address)
                opened += 1
        on_error.pop_all()
    return listeners  # noqa: ASYNC910  # there is an address


def _port_of(listeners: Sequence[trio.SocketListener]) -> int:
    """Return the port that the system has chosen for the first, or 0."""
    for listener in listeners:
        _, port, *_ = listener.socket.getsockname()
        return int(port)
    return 0


def _listening_error(host: str, port: int, error: OSError) -> OSError:
    reason = error.strerror or error
    return OSError(error.errno, f"can't listen on {host}:{port}: {reason}")
