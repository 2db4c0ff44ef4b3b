"""What the tests of the Prometheus output share: exports, and scrapes without HTTP."""

from __future__ import annotations

import prometheus_client
import trio
from helpers import channel_of
from prometheus_client.parser import text_string_to_metric_families

from trio_statskeeper import EventMetrics
from trio_statskeeper.prometheus import _server

LABELS = {"ptype": "http", "probe": "homepage", "dst": "a"}
IN_TEXT = 'ptype="http",probe="homepage",dst="a"'


def export(metrics=None, at=5.0, start=2.0, interval=10.0, unit=1.0, **labels):
    metrics = {"total": 1} if metrics is None else metrics
    return EventMetrics(at, start, LABELS | labels, metrics, unit, interval)


async def scrape(exporter, path="/metrics", method="GET"):
    """Ask the exporter as an ASGI server does; return status, headers and body."""
    events = []

    async def send(event):
        await trio.lowlevel.checkpoint()
        events.append(event)

    scope = {"type": "http", "path": path, "method": method}
    await _server.Server(exporter._scrape).answer(scope, trio.sleep_forever, send)
    start, *body = events
    assert [event.get("more_body", False) for event in body] == [
        *[True] * (len(body) - 1),
        False,
    ]
    text = b"".join(event.get("body", b"") for event in body).decode()
    return start["status"], dict(start["headers"]), text


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
