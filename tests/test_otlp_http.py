"""HTTP for OTLP: proxies, name lookups, and addresses that don't answer."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import httpcore2
import pytest
import trio

from trio_statskeeper.otlp import OTLPExporter, _http
from trio_statskeeper.otlp._http import _Network

# Proxies


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the variables for proxies, and no others."""
    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def proxy_of(endpoint: str) -> tuple[bytes, bytes, int | None] | None:
    proxy = OTLPExporter(endpoint)._proxy
    return proxy and (proxy.url.scheme, proxy.url.host, proxy.url.port)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://proxy:1080"),
        ("all_proxy", "socks4://proxy:1080"),
        ("HTTP_PROXY", "ftp://proxy"),
        ("http_proxy", "http://proxy:port"),
        ("HTTP_PROXY", "http://proxy:99999"),
        ("HTTP_PROXY", "http://"),
        ("HTTP_PROXY", "http://:3128"),
        ("HTTP_PROXY", "http://me:s3cret@proxy:0"),
        ("HTTP_PROXY", "http://me:s3/cret@proxy"),
        ("HTTP_PROXY", "http://proxy..test:3128"),
    ],
)
def test_a_proxy_that_makes_no_sense_is_refused_at_the_start(environment, name, value):
    environment(**{name: value})
    with pytest.raises(
        ValueError, match="must be the URL of an HTTP proxy, like"
    ) as raised:
        OTLPExporter("http://collector:4318")
    assert str(raised.value).startswith(f"{name} must be")
    assert "s3" not in str(raised.value)


def test_a_proxy_of_the_system_has_a_name_too(environment, monkeypatch):
    monkeypatch.setattr(_http, "getproxies", lambda: {"http": "socks://proxy"})
    with pytest.raises(ValueError, match=r"^http proxy must be the URL of an HTTP proxy"):
        OTLPExporter("http://collector:4318")


@pytest.mark.parametrize(
    "host", ["localhost", "otel.localhost", "127.0.0.1", "127.8.0.1", "[::1]"]
)
def test_loopback_needs_no_proxy_and_no_sense_in_its_settings(environment, host):
    environment(ALL_PROXY="socks5://proxy", HTTP_PROXY="http://proxy:port")
    assert proxy_of(f"http://{host}:4318") is None


def test_the_proxy_for_the_scheme_is_preferred_to_that_for_all(environment):
    environment(HTTPS_PROXY="proxy:3128", ALL_PROXY="http://other")
    assert proxy_of("https://collector") == (b"http", b"proxy", 3128)
    assert proxy_of("http://collector") == (b"http", b"other", None)


def test_a_proxy_may_want_a_password(environment):
    environment(HTTP_PROXY="https://me:p%C3%A4ss@proxy")
    proxy = OTLPExporter("http://collector")._proxy
    assert proxy.url.scheme == b"https"
    assert proxy.auth == (b"me", "päss".encode())


@pytest.mark.parametrize(
    ("endpoint", "no_proxy"),
    [
        ("http://collector:4318", "*"),
        ("http://collector:4318", "a, *"),
        ("http://collector:4318", "collector"),
        ("http://collector:4318", "collector:4318"),
        ("http://otel.example.com", ".example.com"),
        ("http://otel.example.com", "a,example.com,b"),
        ("http://10.1.2.3:4318", "10.0.0.0/8"),
        ("http://10.1.2.3:4318", "10.1.2.3"),
        ("http://[fd00::1]:4318", "fd00::/8"),
        ("http://[fd00::1]:4318", "[fd00::1]"),
    ],
)
def test_what_no_proxy_lists_needs_no_proxy(environment, endpoint, no_proxy):
    environment(ALL_PROXY="socks5://proxy", NO_PROXY=no_proxy)
    assert proxy_of(endpoint) is None


def test_what_no_proxy_does_not_list_needs_one(environment):
    environment(ALL_PROXY="http://proxy", NO_PROXY="10.0.0.0/8,collect,example.com")
    for host in ("collector", "11.0.0.1", "[fd00::1]", "myexample.com"):
        assert proxy_of(f"http://{host}") == (b"http", b"proxy", None)


# Connections


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
async def test_one_address_after_the_other_is_tried_with_ever_more_patience(
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


async def test_a_name_without_address_is_named(monkeypatch):
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
