"""URLs as targets: how to get them for a measurement, and names without secrets."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable

import httpx2
import trio

from trio_statskeeper import Endpoint

MAX_BODY = 1_000_000  # bytes

TLS = httpx2.create_ssl_context()  # slow to create
HEADERS = {"Accept-Encoding": "identity", "Connection": "close"}


async def get_status(url: str) -> int:
    """Get the URL and, as far as MAX_BODY, its body; return the status.

    Each call has a client of its own, as a client shares connections, a limit on them, and
    cookies between its requests. The client itself takes about half a millisecond. The body
    is not decoded, so a compressed one can't grow.

    Raises:
      OSError: if there is no connection, or it breaks.
      httpx2.TransportError: if the server does not speak HTTP.
    """
    try:
        async with (
            httpx2.AsyncClient(verify=TLS, trust_env=False, timeout=None) as client,
            client.stream("GET", url, headers=HEADERS) as response,
        ):
            # Cancelled, as a `break` would leave generators of the client's unfinished.
            with trio.CancelScope() as reading:
                async for _ in response.aiter_raw():
                    if response.num_bytes_downloaded >= MAX_BODY:
                        reading.cancel()
            return response.status_code
    except httpx2.TransportError as error:
        origin = os_error_of(error) or error
    raise origin  # here, so that the two do not refer to each other


def os_error_of(error: BaseException | None) -> OSError | None:
    """Return the OSError from which the client raised its own error, which says less."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def http_url(text: str) -> str:
    """Return `text` if it is an HTTP URL."""
    try:
        url = httpx2.URL(text)
        valid = url.scheme in ("http", "https") and url.host != ""
    except (httpx2.InvalidURL, UnicodeError):
        valid = False
    if not valid:
        shown = re.sub(r".*@|[?#].*", "…", text)  # no secrets in errors either
        raise argparse.ArgumentTypeError(f"{shown!r} is not an http:// or https:// URL")
    return text


def by_endpoint(urls: Iterable[str]) -> dict[Endpoint, str]:
    """Return the URLs by endpoints, named without user, password, query and fragment.

    If several URLs differ only in those, the second one's name ends in `#2`, and so on.
    """
    endpoints: dict[Endpoint, str] = {}
    same = Counter[str]()
    for text in dict.fromkeys(urls):
        name = str(httpx2.URL(text).copy_with(userinfo=b"", query=None, fragment=None))
        same[name] += 1
        endpoints[Endpoint(name if same[name] == 1 else f"{name}#{same[name]}")] = text
    return endpoints
