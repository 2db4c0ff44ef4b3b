"""Where an output listens: its arguments, and whether it does."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import attrs
import trio

from trio_statskeeper._arguments import quote
from trio_statskeeper._event_metrics import EventMetrics

from ._listeners import listen
from ._server import Server


def validate_port(_: object, attribute: attrs.Attribute[Any], port: object) -> None:
    if port is None:
        return
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"{attribute.name} must be an integer or None, got {quote(port)}")
    if not 0 <= port <= 65_535:
        raise ValueError(f"{attribute.name} must be from 0 to 65535, got {port}")


def validate_host(host: str | Sequence[str]) -> str | tuple[str, ...]:
    if isinstance(host, str):
        if not host:
            raise ValueError("host must not be empty, got ''")
        return host
    error = TypeError(f"host must be a string, or a sequence of strings, got {quote(host)}")
    if not isinstance(host, Sequence):
        raise error
    for each in host:
        if not isinstance(each, str):
            raise error
    if not host or "" in host:
        raise ValueError(
            f"host must not be empty, or have an empty item, got {quote(host)}"
        )
    return tuple(host)


def validate_ssl_context(
    _: object, attribute: attrs.Attribute[Any], context: object
) -> None:
    name = attribute.name
    if context is None:
        return
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"{name} must be an SSLContext or None, got {quote(context)}")
    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            f"{name} must be for a server, such as "
            "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), got one for clients"
        )


@attrs.define(eq=False)
class Listening:
    """Where an output listens, if it has a port."""

    _host: str | Sequence[str]
    _port: int | None
    address: tuple[str, int] | None = attrs.field(init=False, default=None)
    """The address and port where it listens now; the first of several."""
    _busy: bool = attrs.field(init=False, default=False)

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        make_server: Callable[[], Server],
        take: Callable[[trio.MemoryReceiveChannel[EventMetrics]], Awaitable[None]],
        exports: trio.MemoryReceiveChannel[EventMetrics],
        task_status: trio.TaskStatus[tuple[str, int] | None],
    ) -> None:
        """Take all exports; with a port, serve meanwhile.

        Raises:
          OSError: if it can't listen on the port.
          trio.BusyResourceError: if it is already listening; `exports` is not closed then.
        """
        if self._port is None:
            task_status.started(None)
            await take(exports)
            return
        if self._busy:
            raise trio.BusyResourceError(
                "this output is already running; let keepers share its channel by clones"
            )
        self._busy = True
        try:
            with exports:
                hosts = [self._host] if isinstance(self._host, str) else self._host
                listeners = await listen(hosts, self._port)
                self.address = listeners[0].socket.getsockname()[:2]
                task_status.started(self.address)
                await make_server().serve_while(listeners, partial(take, exports))
        finally:
            self._busy = False
            self.address = None
