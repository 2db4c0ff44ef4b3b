"""HTTP for OTLP: name lookups, and addresses that don't answer."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpcore2
import pytest
import trio

from trio_statskeeper.otlp._http import _Network


class Sockets(httpcore2.AsyncNetworkBackend):
    """Connects after so many seconds, by address; other addresses refuse."""

    def __init__(self, **after: float | None) -> None:
        self.after = after
        self.tried: list[str] = []

    async def connect_tcp(self, host: str, *_: Any) -> Any:
        self.tried.append(host)
        after = self.after.get(host)
        await trio.sleep(after or 0)
        if after is None:
            raise httpcore2.ConnectError(f"{host} refused")
        return host


@pytest.mark.parametrize(
    ("after", "tried", "elapsed"),
    [
        ({"a": 0, "b": 0}, "a", 0),
        ({"a": None, "b": 0}, "ab", 0),
        # One that can't be reached takes no answer for long.
        ({"a": 1000, "b": 0.1}, "ab", 0.35),
        # A slow one is given more time in the next round.
        ({"a": 1000, "b": 0.5}, "abab", 2),
        ({"a": 5}, "aaaa", 10.25),
    ],
)
async def test_addresses_are_tried_in_turn_with_growing_timeouts(
    after, tried, elapsed, autojump_clock, monkeypatch
):
    async def look_up(*_: object) -> list[str]:
        await trio.lowlevel.checkpoint()
        return [*after]

    monkeypatch.setattr(_Network, "_look_up", look_up)
    sockets = Sockets(**after)
    assert await _Network(sockets).connect_tcp("collector", 4318) == tried[-1]
    assert "".join(sockets.tried) == tried
    assert trio.current_time() == pytest.approx(elapsed)


async def test_if_all_addresses_refuse_the_first_error_is_raised(monkeypatch):
    found = [(0, 0, 0, "", (address, 4318)) for address in "aba"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = Sockets()
    with pytest.raises(httpcore2.ConnectError, match="a refused"):
        await _Network(sockets).connect_tcp("collector", 4318)
    assert sockets.tried == ["a", "b"]


async def test_an_address_is_not_looked_up():
    sockets = Sockets(**{"::1": 0})
    assert await _Network(sockets).connect_tcp("::1", 4318) == "::1"


async def test_a_failed_lookup_names_the_host(monkeypatch):
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(httpcore2.ConnectError, match=r"^collector: .*service not known"):
        await _Network(Sockets()).connect_tcp("collector", 4318)


async def test_a_lookup_that_hangs_holds_one_thread_however_often_it_is_tried(monkeypatch):
    released, looking_up = threading.Event(), []

    def look_up(*_: object, **__: object) -> list[Any]:
        looking_up.append(threading.current_thread().name)
        released.wait()
        return [(0, 0, 0, "", ("a", 4318))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    network = _Network(Sockets(a=0))
    try:
        for _ in range(3):
            with trio.move_on_after(0.05) as trying:
                await network.connect_tcp("collector", 4318)
            assert trying.cancelled_caught
        assert looking_up == ["OTLP: looking up collector"]
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    finally:
        released.set()
    assert await network.connect_tcp("collector", 4318) == "a"
