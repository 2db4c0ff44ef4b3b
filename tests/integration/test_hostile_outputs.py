"""Hostile input, exported to real servers: they can read whatever a probe returns."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
import trio
from helpers import Result, channel_of, serve
from real_servers import get

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    Gauge,
    Map,
    ProbeResult,
    StatsKeeper,
)
from trio_statskeeper.otlp import OTLPExporter
from trio_statskeeper.prometheus import PrometheusExporter

ODD_CHARACTERS = [
    *map(chr, range(0x21)),
    *map(chr, range(0x7F, 0xA1)),
    *'"\\,=:{}#',
    *"\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2028\u2029",
    *"\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069",
    *"\ufeff\ufff9\uffff\U000e0001\U0010ffff",
    *"\udc00\udfff\ud800\udbff",
]
ODD_TEXTS = [
    *ODD_CHARACTERS,
    "".join(ODD_CHARACTERS),
    "\u202egnp.exe\u202c \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    '"} 1\nprobe_total{dst="forged"} 7\n# EOF',
    "x" * 100_000,
    "".join(ODD_CHARACTERS) * 900,
]
WHOLE = [2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**308]
MANY_KEYS = {f"key {number}": number for number in range(1_000)}


def shown(text: str) -> str:
    """Return `text` as it is exported: escaped, if it is not Unicode."""
    return text.encode(errors="backslashreplace").decode()


ODD_RESULTS = [
    # The number keeps apart what neither Prometheus nor OTLP has in names.
    Result(text, {f"{number}{text}": 1, "seen": Map("text", {text: 2}), "said": text})
    for number, text in enumerate(ODD_TEXTS)
]
WHOLE_RESULTS = [
    Result(
        str(number),
        {
            "size": part,
            "code": Map("code", {"200": part}),
            "free": Gauge(-number),
            "time": Distribution([1], [part, 0], 0),
        },
    )
    for number in WHOLE
    for part in (number - 1, 1)
]


async def exports_of(name: str, *results: ProbeResult) -> list[EventMetrics]:
    """Return what a keeper exports that is fed with `results`."""
    listed = [
        Endpoint(target, labels={"note": target})
        for target in dict.fromkeys(result.target for result in results)
    ]
    keeper = StatsKeeper(
        "http",
        name,
        lambda: listed,
        export_interval=1_000,
        additional_labels={"note": "@target.label.note@"},
    )
    send, receive = trio.open_memory_channel[EventMetrics](math.inf)
    await keeper.run(channel_of(*results), send)
    return [export async for export in receive]


# Prometheus


@asynccontextmanager
async def scraped(port: int, exports: Iterable[EventMetrics]) -> AsyncIterator[None]:
    exporter = PrometheusExporter(port)
    await exporter.run(channel_of(*exports))
    async with trio.open_nursery() as nursery:
        await serve(nursery, exporter)
        yield
        nursery.cancel_scope.cancel()


def there_are(number):
    return lambda found: len(found) == number


async def until_there_are(prometheus, number, expr):
    """Return the samples of `expr` once there are so many, by target."""
    found = await trio.to_thread.run_sync(
        prometheus.wait_for, expr, there_are(number), 15.0
    )
    return {sample.labels.get("dst", ""): sample for sample in found}


async def test_prometheus_has_all_texts(prometheus, port, check_metrics):
    count = len(ODD_TEXTS)
    async with scraped(port, await exports_of("texts", *ODD_RESULTS)):
        seen = await until_there_are(prometheus, count, 'probe_seen_total{probe="texts"}')
        said = await until_there_are(prometheus, count, 'probe_said_info{probe="texts"}')
        numbered = 'count({probe="texts",__name__=~"probe_[0-9].*"})'
        [of_one_each] = (await until_there_are(prometheus, 1, numbered)).values()
        [up] = (await until_there_are(prometheus, 1, "up")).values()
        _, page = await trio.to_thread.run_sync(get, port, "/metrics")
    assert (up.value, of_one_each.value) == (1, count)
    for text in map(shown, ODD_TEXTS):
        assert (seen[text].labels["text"], seen[text].value) == (text, 2)
        assert seen[text].labels["note"] == text
        assert said[text].labels["said"] == text
    status, complaint = await trio.to_thread.run_sync(check_metrics, page.decode())
    assert (status, complaint) == (0, "")


async def test_prometheus_has_integers_as_floats(prometheus, port):
    count = len(WHOLE)
    async with scraped(port, await exports_of("whole", *WHOLE_RESULTS)):
        for name, sign in {
            "probe_size_total": 1,
            "probe_code_total": 1,
            "probe_free": -1,
            "probe_time_count": 1,
        }.items():
            expr = f'{name}{{probe="whole"}}'
            found = await until_there_are(prometheus, count, expr)
            for number in WHOLE:
                assert found[str(number)].value == sign * float(number)


async def test_prometheus_has_all_keys_of_a_map(prometheus, port):
    result = Result("a", {"many": Map("key", MANY_KEYS)})
    expr = 'probe_many_total{probe="keys"}'
    async with scraped(port, await exports_of("keys", result)):
        found = await trio.to_thread.run_sync(
            prometheus.wait_for, expr, there_are(len(MANY_KEYS)), 15.0
        )
    assert {sample.labels["key"]: sample.value for sample in found} == MANY_KEYS


# OpenTelemetry


@pytest.fixture
async def received(start_otlp_receiver, monkeypatch):
    """Return a function that sends a keeper's exports to a receiver, and returns it."""
    monkeypatch.setenv("NO_PROXY", "*")
    receiver = await trio.to_thread.run_sync(start_otlp_receiver)

    async def receive(*results):
        exporter = OTLPExporter(receiver.endpoint, compression=None, timeout=60)
        await exporter.run(channel_of(*await exports_of("otlp", *results)))
        await trio.to_thread.run_sync(receiver.stop)
        return receiver

    return receive


def by(attribute, points):
    return {point.attributes[attribute]: point for point in points}


async def test_a_receiver_has_all_texts(received, caplog):
    receiver = await received(*ODD_RESULTS)
    seen = by("dst", receiver.points("probe_seen"))
    said = by("dst", receiver.points("probe_said_info"))
    texts = [shown(text) for text in ODD_TEXTS]
    assert seen.keys() == said.keys() == set(texts)
    for text in texts:
        assert seen[text].attributes["note"] == text
        assert seen[text].attributes["text"] == text
        assert seen[text].data["asInt"] == 2
        assert said[text].attributes["said"] == text
    assert not caplog.messages


async def test_a_receiver_has_integers_up_to_64_bits_and_floats_beyond(received):
    receiver = await received(*WHOLE_RESULTS)
    for name, sign in {"probe_size": 1, "probe_code": 1, "probe_free": -1}.items():
        of_target = by("dst", receiver.points(name))
        for number in WHOLE:
            data, value = of_target[str(number)].data, sign * number
            if -(2**63) <= value < 2**63:
                assert data["asInt"] == value
            else:
                # JavaScript writes some as integers.
                assert float(data["asDouble"]) == float(value)
    counts = {point.data["count"] for point in receiver.points("probe_time")}
    assert counts == {number for number in WHOLE if number < 2**64}


async def test_a_receiver_has_all_keys_of_a_map(received):
    receiver = await received(Result("a", {"many": Map("key", MANY_KEYS)}))
    found = by("key", receiver.points("probe_many"))
    assert {key: point.data["asInt"] for key, point in found.items()} == MANY_KEYS
