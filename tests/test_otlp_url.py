"""The proxy between an OTLP exporter and its collector."""

from __future__ import annotations

import os

import pytest

from trio_statskeeper.otlp import OTLPExporter, _url


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
def test_an_invalid_proxy_is_refused_at_the_start(environment, name, value):
    environment(**{name: value})
    with pytest.raises(
        ValueError, match="must be the URL of an HTTP proxy, like"
    ) as raised:
        OTLPExporter("http://collector:4318")
    assert str(raised.value).startswith(f"{name} must be")
    assert "s3" not in str(raised.value)


def test_a_proxy_of_the_operating_system_is_named_in_the_error(environment, monkeypatch):
    monkeypatch.setattr(_url, "getproxies", lambda: {"http": "socks://proxy"})
    with pytest.raises(ValueError, match=r"^http proxy must be the URL of an HTTP proxy"):
        OTLPExporter("http://collector:4318")


@pytest.mark.parametrize(
    "host", ["localhost", "otel.localhost", "127.0.0.1", "127.8.0.1", "[::1]"]
)
def test_loopback_ignores_proxies_even_invalid_ones(environment, host):
    environment(ALL_PROXY="socks5://proxy", HTTP_PROXY="http://proxy:port")
    assert proxy_of(f"http://{host}:4318") is None


def test_the_proxy_for_the_scheme_is_preferred_to_that_for_all(environment):
    environment(HTTPS_PROXY="proxy:3128", ALL_PROXY="http://other")
    assert proxy_of("https://collector") == (b"http", b"proxy", 3128)
    assert proxy_of("http://collector") == (b"http", b"other", None)


def test_a_proxy_may_need_a_password(environment):
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
def test_hosts_in_no_proxy_need_no_proxy(environment, endpoint, no_proxy):
    environment(ALL_PROXY="socks5://proxy", NO_PROXY=no_proxy)
    assert proxy_of(endpoint) is None


def test_other_hosts_than_those_in_no_proxy_need_one(environment):
    environment(ALL_PROXY="http://proxy", NO_PROXY="10.0.0.0/8,collect,example.com")
    for host in ("collector", "11.0.0.1", "[fd00::1]", "myexample.com"):
        assert proxy_of(f"http://{host}") == (b"http", b"proxy", None)
