"""Scrapers that behave badly, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from helpers import serve

from trio_statskeeper import EventMetrics
from trio_statskeeper._http import _connection, _server
from trio_statskeeper.prometheus import PrometheusExporter


@pytest.fixture
async def exporter():
    """An exporter of more than sockets buffer."""
    exporter = PrometheusExporter(0)
    send, receive = trio.open_memory_channel[EventMetrics](1)
    await send.send(EventMetrics(5, 0, {"dst": "a"}, {"page": "x" * 50_000_000}))
    send.close()
    await exporter.run(receive)
    return exporter


@pytest.fixture
def served(monkeypatch):
    """An event that comes when a connection is over."""
    event = trio.Event()
    serve_stream = _server.Server.serve_stream

    async def noted(*args):
        try:
            await serve_stream(*args)
        finally:
            event.set()

    monkeypatch.setattr(_server.Server, "serve_stream", noted)
    return event


@asynccontextmanager
async def scraper_that_reads_nothing(
    address: tuple[str, int],
) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream(*address) as scraper:
        await scraper.send_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await scraper.receive_some(15)) == b"HTTP/1.1 200 OK"
        yield scraper


async def test_a_scraper_that_reads_nothing_does_not_keep_the_server_from_ending(
    exporter, served, monkeypatch, caplog
):
    monkeypatch.setattr(_connection, "_UNREAD_TIMEOUT", 1_000)
    async with trio.open_nursery() as nursery:
        address = await serve(nursery, exporter)
        async with scraper_that_reads_nothing(address):
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(30):
                await served.wait()
    assert caplog.messages == []


async def test_a_scraper_that_reads_nothing_is_not_waited_for(
    exporter, served, nursery, monkeypatch, caplog
):
    monkeypatch.setattr(_connection, "_UNREAD_TIMEOUT", 0.1)
    address = await serve(nursery, exporter)
    async with scraper_that_reads_nothing(address):
        with trio.fail_after(30):
            await served.wait()
    assert caplog.messages == []


async def test_a_scraper_that_disconnects_is_not_an_error(
    exporter, served, nursery, caplog
):
    address = await serve(nursery, exporter)
    async with scraper_that_reads_nothing(address):
        pass
    with trio.fail_after(30):
        await served.wait()
    assert caplog.messages == []
