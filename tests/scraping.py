"""What the tests of the Prometheus output share: exports, and scrapes without HTTP."""

from __future__ import annotations

import attrs
import h11
import prometheus_client
import trio
from helpers import channel_of
from prometheus_client.parser import text_string_to_metric_families

from trio_statskeeper import EventMetrics

LABELS = {"ptype": "http", "probe": "homepage", "dst": "a"}
IN_TEXT = 'ptype="http",probe="homepage",dst="a"'


def export(metrics=None, at=5.0, start=2.0, interval=10.0, unit=1.0, **labels):
    metrics = {"total": 1} if metrics is None else metrics
    return EventMetrics(at, start, LABELS | labels, metrics, unit, interval)


@attrs.define(eq=False)
class Client(trio.abc.HalfCloseableStream):
    """The server's end of a connection whose client sends this, and reads all answers."""

    request: bytes
    sent: list[bytes] = attrs.field(factory=list)
    """What the server has sent."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        # Without a checkpoint: others run only when the server lets them.
        received, self.request = self.request[:max_bytes], self.request[max_bytes:]
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(bytes(data))

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


def server_of(exporter):
    return exporter._server()


def request(path="/metrics", method="GET", *headers):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


async def answers(exporter, *requests):
    """Ask over one connection; return the status, headers and body of each answer."""
    client = Client(b"".join(requests))
    await server_of(exporter).serve_stream(client)
    return [*read_answers(b"".join(client.sent), *requests)]


def read_answers(received, *requests):
    scraper = h11.Connection(h11.CLIENT)
    scraper.receive_data(received)
    scraper.receive_data(b"")
    for each in requests:
        method, path, *_ = each.split()
        scraper.send(h11.Request(method=method, target=path, headers=[("Host", "x")]))
        scraper.send(h11.EndOfMessage())
        body = b""
        answer = scraper.next_event()
        while not isinstance(event := scraper.next_event(), h11.EndOfMessage):
            body += event.data
        yield answer.status_code, dict(answer.headers), body
        if scraper.our_state is h11.MUST_CLOSE:
            break
        scraper.start_next_cycle()
    assert not scraper.trailing_data[0]


async def scrape(exporter, *args):
    """Ask the exporter over a connection; return status, headers and text."""
    [(status, headers, body)] = await answers(exporter, request(*args))
    return status, headers, body.decode()


async def page(exporter):
    """Return the lines of a scrape, but not those that tell of the keeper."""
    _, _, text = await scrape(exporter)
    return [line for line in text.splitlines() if "last_export" not in line]


async def samples(exporter):
    return [line for line in await page(exporter) if not line.startswith("#")]


async def feed(exporter, *exports):
    await exporter.run(channel_of(*exports))


def collected(exporter):
    """Return what a registry of `prometheus_client` makes of it."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(exporter)
    return prometheus_client.generate_latest(registry).decode()


def parsed(text):
    """Return all that prometheus_client reads from a scrape, in no order."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.name not in found
        in_family = {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for sample in family.samples
        }
        assert len(in_family) == len(family.samples)
        found[family.name] = (family.type, family.documentation, in_family)
    return found
