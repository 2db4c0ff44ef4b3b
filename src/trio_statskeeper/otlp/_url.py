"""URLs of collectors and proxies, and which proxy is between."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from ipaddress import ip_address, ip_network
from urllib.request import getproxies, proxy_bypass

import httpcore2
import httpx2

from trio_statskeeper._arguments import quote
from trio_statskeeper._lookup import is_address


def without_secrets(url: str) -> str:
    """Return a valid URL without its user, password and query."""
    return re.sub("//[^/]*@", "//", url).partition("?")[0]


def quote_invalid(url: str) -> str:
    """Quote an invalid URL without all before the last @, which may be a password."""
    shown = re.sub(r"(?is)^([a-z][a-z0-9+.-]*://)?.*@", r"\1", url)
    return quote(shown.partition("?")[0])


def proxy_for(url: httpx2.URL) -> httpcore2.Proxy | None:
    """Return the proxy that the environment has for `url`, or None for this machine.

    Raises:
      ValueError: if it is not the URL of an HTTP proxy; the message names the variable.
    """
    proxies = getproxies()
    if _is_loopback(url.host) or _is_in_no_proxy(url, proxies.get("no", "")):
        return None
    for scheme in (url.scheme, "all"):
        if address := proxies.get(scheme):
            return _proxy(scheme, address)
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return is_address(host) and ip_address(host).is_loopback


def _is_in_no_proxy(url: httpx2.URL, no_proxy: str) -> bool:
    entries = [entry.strip().strip("[]") for entry in no_proxy.split(",")]
    if "*" in entries or url.host in entries or proxy_bypass(url.netloc.decode()):
        return True
    if is_address(url.host):
        for entry in entries:
            with suppress(ValueError):
                if ip_address(url.host) in ip_network(entry, strict=False):
                    return True
    return False


def _proxy(scheme: str, address: str) -> httpcore2.Proxy:
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    # The operating system may have the setting instead of the environment.
    name = next((name for name in names if name in os.environ), f"{scheme} proxy")
    if "://" not in address:
        address = f"http://{address}"
    try:
        url = httpx2.URL(address)
        url.raw_host.decode("ascii").encode("idna")
    except (httpx2.InvalidURL, UnicodeError):
        url = httpx2.URL()
    if (
        url.scheme not in ("http", "https")
        or not url.host
        or not (url.port is None or 0 < url.port < 2**16)
    ):
        raise ValueError(
            f"{name} must be the URL of an HTTP proxy, like 'http://proxy:3128', got "
            f"{quote_invalid(address)}; list the collector in NO_PROXY if it "
            "needs no proxy"
        )
    return httpcore2.Proxy(
        url=core_url(url.copy_with(raw_path=b"/")),
        auth=(url.username.encode(), url.password.encode()) if url.userinfo else None,
    )


def core_url(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
