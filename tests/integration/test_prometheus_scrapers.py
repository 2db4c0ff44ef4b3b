"""Scrapers that behave badly, on real sockets."""

from __future__ import annotations

import trio

from trio_statskeeper import EventMetrics, prometheus
from trio_statskeeper.prometheus import PrometheusExporter


async def test_a_scraper_that_reads_nothing_does_not_keep_the_server_from_ending(
    monkeypatch,
):
    monkeypatch.setattr(prometheus, "_UNREAD_TIMEOUT", 100)
    exporter = PrometheusExporter()
    send, receive = trio.open_memory_channel[EventMetrics](1)
    # More than sockets buffer.
    await send.send(EventMetrics(5, 0, {"dst": "a"}, {"page": "x" * 50_000_000}))
    send.close()
    await exporter.run(receive)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(exporter.serve, 0)
        async with await trio.open_tcp_stream(host, port) as scraper:
            await scraper.send_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await scraper.receive_some(15)) == b"HTTP/1.1 200 \r\n"
            # It hangs here, for ever, if the scraper is waited for.
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(30):
                while nursery.child_tasks:
                    await trio.sleep(0.01)
