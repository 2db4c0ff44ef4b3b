"""The Prometheus output: compression."""

from __future__ import annotations

import gzip
import secrets

import pytest
from scraping import answers, export, feed, request

from trio_statskeeper._http import _body
from trio_statskeeper.prometheus import PrometheusExporter


@pytest.mark.parametrize(
    "accept_encoding",
    [
        "gzip",
        "GZIP",
        " gzip ",
        "*",
        "gzip, deflate, br",
        "br;q=1.0, gzip;q=0.8, *;q=0.1",
        "gzip;q=0.001",
        "gzip; q=1.000",
        "gzip;q=0.5, identity;q=0.5",
        "identity;q=0.1, *;q=0.2",
        ",,gzip,",
    ],
)
def test_gzip_is_used_if_the_client_prefers_it(accept_encoding):
    assert _body.prefers_gzip(accept_encoding)


@pytest.mark.parametrize(
    "accept_encoding",
    [
        "",
        "identity",
        "deflate, br",
        "gzip;q=0",
        "gzip;q=0.000, *",
        "*;q=0",
        "gzip;q=0.5, identity",
        "gzip;q=0.5, identity;q=0.6",
        "gzip;q=2",
        "gzip;q=0.5555",
        "gzip;q=nan",
        "gzip;q=",
        "gzip;",
        "gzip;level=1",
        "gzipped",
        "gzi p",
        ",;=;,;",
        "\xff",
        ", " * 1_000 + "gzip",
    ],
)
def test_gzip_is_not_used_if_the_client_does_not_prefer_it(accept_encoding):
    assert not _body.prefers_gzip(accept_encoding)


async def test_a_compressed_page_is_the_same_page():
    exporter = PrometheusExporter()
    texts = [f"{secrets.token_hex(500)}{number}" for number in range(500)]
    await feed(exporter, *(export({"text": text}, dst=text) for text in texts))
    (_, plain, page), (status, headers, body) = await answers(
        exporter, request(), request("/metrics", "GET", "Accept-Encoding: br, gzip")
    )
    assert status == 200
    assert headers[b"content-encoding"] == b"gzip"
    assert b"content-encoding" not in plain
    assert headers[b"vary"] == plain[b"vary"] == b"Accept, Accept-Encoding"
    assert len(page) > 1_000_000 > len(body)
    assert gzip.decompress(body) == page


async def test_an_empty_page_can_be_compressed():
    ask = request("/metrics", "GET", "Accept-Encoding: gzip")
    [(_, _, body)] = await answers(PrometheusExporter(), ask)
    assert gzip.decompress(body) == b""
