"""The Prometheus output: compression."""

from __future__ import annotations

import gzip
import secrets

from scraping import answers, export, feed, request

from trio_statskeeper.prometheus import PrometheusExporter


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
