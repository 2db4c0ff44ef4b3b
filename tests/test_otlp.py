"""OTLPExporter: what it sends and when, and how it handles the collector's answers.

The collector is in the same process, on the mock clock; real HTTP is tested in
tests/integration.
"""

from __future__ import annotations

import gzip
import math
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import attrs
import httpcore2
import httpx2
import pytest
import trio
from fake_collector import ENDPOINT, Answer, Collector, Received
from helpers import channel_of, make_keeper, one, running
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from trio.testing import MockClock, memory_stream_pair

from trio_statskeeper import (
    EventMetrics,
    Map,
    Prober,
    StatsKeeper,
    _pacing,
)
from trio_statskeeper.otlp import OTLPExporter, _delivery, _http, _problem, _problem_log
from trio_statskeeper.testing import ScriptedProbe, Succeed

URL = f"collector {ENDPOINT}/v1/metrics"


def export(target: str, total: float, interval: float = 10, **metrics: Any) -> EventMetrics:
    metrics["total"] = total
    return EventMetrics(total, 0, {"dst": target}, metrics, 1, interval)


def partial_success(rejected: int, message: str) -> Answer:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = rejected
    response.partial_success.error_message = message
    return Answer(body=response.SerializeToString())


@pytest.fixture
def collector(monkeypatch):
    """Be all HTTP servers, and take the chance out of delays."""
    collector = Collector()
    monkeypatch.setattr(httpcore2, "AsyncConnectionPool", collector.connect)
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    return collector


@attrs.frozen
class Run:
    """An exporter that runs, and the other end of its channel."""

    exports: trio.MemorySendChannel[EventMetrics]
    nursery: trio.Nursery
    ended: trio.Event

    async def send(self, *exports: EventMetrics) -> None:
        for each in exports:
            await self.exports.send(each)


@asynccontextmanager
async def exporting(endpoint: str = ENDPOINT, **options: Any) -> AsyncGenerator[Run]:
    """Run an exporter in the background; it is cancelled on leaving the block."""
    exporter = OTLPExporter(endpoint, **options)
    send, receive = trio.open_memory_channel[EventMetrics](0)
    ended = trio.Event()

    async def export_all() -> None:
        await exporter.run(receive)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(export_all)
        yield Run(send, nursery, ended)
        nursery.cancel_scope.cancel()


# What it sends


async def test_exports_are_posted_to_the_collector(collector, autojump_clock):
    async with exporting(service_name="tests", resource_attributes={"site": "x"}) as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
    [received] = collector.received
    assert received.totals == {"a": 1}
    assert received.path == "/v1/metrics"
    assert received.headers["content-type"] == "application/x-protobuf"
    [of_resource] = received.message.resource_metrics
    attributes = {a.key: a.value.string_value for a in of_resource.resource.attributes}
    assert attributes.pop("service.instance.id").startswith(f"{socket.gethostname()}-")
    assert attributes == {"service.name": "tests", "site": "x"}


async def test_each_program_has_its_own_instance_id_unless_one_is_given(
    collector, autojump_clock
):
    for attributes in ({}, {}, {"service.instance.id": "mine"}):
        await OTLPExporter(ENDPOINT, resource_attributes=attributes).run(
            channel_of(export("a", 1))
        )
    first, second, third = (
        [a.value.string_value for a in resource.resource.attributes if "instance" in a.key]
        for received in collector.received
        for resource in received.message.resource_metrics
    )
    assert len(first) == len(second) == 1
    assert first != second
    assert third == ["mine"]


async def test_exports_that_arrive_together_share_a_request(collector, autojump_clock):
    async with exporting() as run:
        await run.send(export("a", 1), export("b", 2))
        await trio.sleep(0.01)
        await run.send(export("c", 3), export("a", 4))
        await trio.sleep(1)
        await run.send(export("a", 5))
        await trio.sleep(1)
    assert collector.totals == [{"a": 4, "b": 2, "c": 3}, {"a": 5}]


async def test_the_number_of_exports_in_a_request_is_limited(
    collector, autojump_clock, monkeypatch
):
    monkeypatch.setattr(_delivery, "_MAX_REQUEST_EXPORTS", 2)
    async with exporting() as run:
        await run.send(*(export(target, 1) for target in "abcde"))
        await trio.sleep(1)
    assert [[*totals] for totals in collector.totals] == [["a", "b"], ["c", "d"], ["e"]]
    # What waits already is not kept waiting for more.
    assert collector.times == [0.05] * 3


async def test_a_request_that_is_large_enough_has_no_further_export(
    collector, autojump_clock, monkeypatch
):
    monkeypatch.setattr(_delivery, "_MAX_REQUEST_SIZE", 100_000)
    async with exporting(compression=None) as run:
        await run.send(*(export(target, 1, text="x" * 50_000) for target in "abcde"))
        await trio.sleep(1)
    assert [[*totals] for totals in collector.totals] == [["a", "b"], ["c", "d"], ["e"]]


async def test_other_tasks_run_while_a_request_is_built(
    collector, autojump_clock, monkeypatch
):
    monkeypatch.setattr(_pacing, "_STEP_TIME", 0)
    build = _delivery.Delivery._build
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def build_beside_others(run, *args):
        async with trio.open_nursery() as beside:
            beside.start_soon(others)
            request = await build(run, *args)
            beside.cancel_scope.cancel()
        return request

    monkeypatch.setattr(_delivery.Delivery, "_build", build_beside_others)
    async with exporting() as run:
        await run.send(*(export(str(number), 1) for number in range(200)))
        await trio.sleep(1)
    assert len(collector.received) == 1
    assert turns >= 200


async def test_hundreds_of_exports_take_one_turn_of_a_busy_loop(collector, monkeypatch):
    monkeypatch.setattr(_pacing, "_STEP_TIME", math.inf)  # how long is chance
    turns = 0

    async def be_busy() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def turns_for(count: int) -> int:
        before = turns
        exporter = OTLPExporter(ENDPOINT, compression=None)
        await exporter.run(channel_of(*(export(str(n), 1) for n in range(count))))
        return turns - before

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_busy)
        few, many = await turns_for(200), await turns_for(2000)
        nursery.cancel_scope.cancel()
    assert sum(map(len, collector.totals)) == 2200
    assert many - few <= 1800 / 50


async def test_requests_are_compressed_by_default(collector, autojump_clock):
    for compression in ("gzip", None):
        async with exporting(compression=compression) as run:
            await run.send(export("a", 1))
            await trio.sleep(1)
    assert collector.totals == [{"a": 1}, {"a": 1}]
    encodings = [each.headers.get("content-encoding") for each in collector.received]
    assert encodings == ["gzip", None]


async def test_large_requests_are_compressed_in_a_thread(collector, monkeypatch):
    in_thread = []
    compress = gzip.compress

    def noticing(*args, **options):
        in_thread.append(not trio.lowlevel.in_trio_task())
        return compress(*args, **options)

    monkeypatch.setattr(gzip, "compress", noticing)
    monkeypatch.setattr(_http, "_MAX_SIZE_COMPRESSED_IN_LOOP", 1000)
    exporter = OTLPExporter(ENDPOINT)
    for length in (100, 1000):
        send, receive = trio.open_memory_channel[EventMetrics](1)
        with send:
            send.send_nowait(export("a", length, text="x" * length))
        await exporter.run(receive)
    assert in_thread == [False, True]
    assert collector.totals == [{"a": 100}, {"a": 1000}]


async def test_when_cancelled_it_does_not_wait_for_compression(collector, monkeypatch):
    began, released = trio.Event(), threading.Event()

    def compress(*_: object, **__: object) -> bytes:
        trio.from_thread.run_sync(began.set)
        released.wait()
        return b""

    monkeypatch.setattr(gzip, "compress", compress)
    monkeypatch.setattr(_http, "_MAX_SIZE_COMPRESSED_IN_LOOP", 0)
    async with exporting() as run:
        await run.send(export("a", 1))
        await began.wait()
        run.nursery.cancel_scope.cancel()
    released.set()


async def test_headers_are_sent_except_those_that_would_change_the_answer(
    collector, autojump_clock
):
    async with exporting(headers={"API-Key": "s3", "accept-encoding": "br"}) as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
    [received] = collector.received
    assert received.headers["api-key"] == "s3"
    assert received.headers["accept-encoding"] == "identity"


async def test_credentials_in_the_url_authenticate(collector, autojump_clock):
    async with exporting("http://me:secret@collector") as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
    [received] = collector.received
    assert received.headers["authorization"] == "Basic bWU6c2VjcmV0"


async def test_exports_without_valid_values_make_no_request(
    collector, autojump_clock, caplog
):
    async with exporting() as run:
        await run.send(export("a", -1))
        await trio.sleep(1)
        await run.send(export("b", 1))
        await trio.sleep(1)
    assert collector.totals == [{"b": 1}]
    assert len(caplog.messages) == 1


# A collector in trouble


@pytest.mark.parametrize(
    ("trouble", "logged"),
    [
        (Answer(429), "status 429"),
        (Answer(502), "status 502"),
        (Answer(503, b"full\n\xff"), "status 503: 'full\\n\ufffd'"),
        (Answer(504, b"x" * 1000), f"status 504: '{'x' * 37}...{'x' * 38}'"),
        (httpcore2.ConnectError("refused"), "ConnectError: refused"),
        (httpcore2.RemoteProtocolError("what?"), "RemoteProtocolError: what?"),
        (httpcore2.ProxyError("no"), "ProxyError: no"),
    ],
)
async def test_temporary_problems_are_retried_with_growing_delays_and_logged_once(
    trouble, logged, collector, autojump_clock, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    collector.script = [trouble] * 8 + [Answer()]
    async with exporting() as run:
        await run.send(export("a", 1), export("b", 2))
        await trio.sleep(1000)
    pauses = [
        round(after - before, 6)
        for before, after in zip(collector.times, collector.times[1:], strict=False)
    ]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert collector.totals == [{"a": 1, "b": 2}] * 9
    assert caplog.messages == [
        f"{URL}: {logged}; retrying, with the newest totals of 2 targets",
        f"{URL}: recovered",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_after_a_success_the_delay_is_short_again_and_problems_are_logged_again(
    collector, autojump_clock, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    down, up = Answer(503), Answer()
    collector.script = [down, down, up, down, up]
    async with exporting() as run:
        for total in (1, 2):
            await run.send(export("a", total))
            await trio.sleep(100)
    times = collector.times
    assert [round(times[i] - times[i - 1], 6) for i in (1, 2, 4)] == [1, 2, 1]
    assert [message.split()[2] for message in caplog.messages] == [
        "status",
        "recovered",
    ] * 2


async def test_the_number_of_logged_problems_is_limited_until_a_success(
    collector, autojump_clock, caplog, monkeypatch
):
    monkeypatch.setattr(_problem_log, "_MAX_LOGGED", 2)
    collector.script = [Answer(404 + int(each)) for each in "01012323"]
    collector.script += [Answer(), Answer(404)]
    async with exporting() as run:
        for total in range(10):
            await run.send(export("a", total))
            await trio.sleep(100)
    assert caplog.messages == [
        f"{URL}: status 404; not retried",
        f"{URL}: status 405; not retried",
        f"{URL}: further problems are not logged until it recovers",
        f"{URL}: status 404; not retried",
    ]


async def test_delays_have_jitter(collector, autojump_clock, monkeypatch):
    drawn = []

    def uniform(low, high):
        drawn.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", uniform)
    collector.script = [Answer(503), Answer(503), Answer()]
    async with exporting() as run:
        await run.send(export("a", 1))
        await trio.sleep(100)
    assert collector.times == [0.05, 1.25, 3.65]
    assert drawn == [(0.8, 1.2)] * 2


async def test_a_collector_that_does_not_answer_in_time_is_retried(
    collector, autojump_clock, caplog
):
    collector.script = [Answer(after=3), Answer(after=1)]
    async with exporting(timeout=2.5) as run:
        await run.send(export("a", 1))
        await trio.sleep(100)
    assert collector.times == [0.05, 3.55]
    assert "no answer within 2.5 s; retrying" in caplog.text


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("7", 7),
        ("0", 1),
        ("99999999999999999999", 300),
        ("9" * 400, 300),
        (formatdate(1_000_000_020, usegmt=True), 20),
        (formatdate(999_999_999, usegmt=True), 1),
        (formatdate(2_000_000_000, usegmt=True), 300),
        ("-5", 1),
        ("1.5", 1),
        ("nan", 1),
        ("soon", 1),
        ("", 1),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 1),
    ],
)
async def test_the_collector_may_say_when_to_retry_within_limits(
    retry_after, pause, collector, autojump_clock, monkeypatch
):
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    collector.script = [Answer(503, headers={"Retry-After": retry_after}), Answer()]
    async with exporting() as run:
        await run.send(export("a", 1))
        await trio.sleep(1000)
    assert collector.times == [0.05, 0.05 + pause]


async def test_retry_after_is_ignored_for_permanent_problems(collector, autojump_clock):
    collector.script = [Answer(400, headers={"Retry-After": "1"}), Answer()]
    async with exporting() as run:
        await run.send(export("a", 1))
        await trio.sleep(10)
    assert len(collector.received) == 1


async def test_after_an_outage_only_the_newest_of_each_target_is_sent(
    collector, autojump_clock
):
    down = httpcore2.ConnectError("refused")
    collector.script = [down] * 5 + [Answer()]
    async with exporting() as run:
        for total in range(3):
            await run.send(export("a", total), export("b", total))
            await trio.sleep(10)
        await trio.sleep(100)
    assert collector.totals[-1] == {"a": 2, "b": 2}
    assert len(collector.totals) == 6


async def test_targets_that_become_stale_during_an_outage_are_not_sent_after_it(
    collector, autojump_clock, caplog
):
    collector.script = [Answer(503)] * 5 + [Answer()]
    async with exporting() as run:
        await run.send(export("gone", 1), export("a", 1))
        for total in (2, 3, 4, 5):
            await trio.sleep(10)
            await run.send(export("a", total))
        await trio.sleep(100)
    assert collector.totals[-1] == {"a": 5}


async def test_exports_that_arrive_during_a_request_are_sent_after_it(
    collector, autojump_clock
):
    collector.script = [Answer(after=1)]
    async with exporting() as run:
        await run.send(export("a", 1), export("b", 1))
        await trio.sleep(0.5)
        await run.send(export("a", 2))
        await trio.sleep(10)
    assert collector.totals == [{"a": 1, "b": 1}, {"a": 2}]


@pytest.mark.parametrize("status", [301, 307, 401, 404, 408, 500, 501])
async def test_permanent_problems_are_not_retried_and_logged_once(
    status, collector, autojump_clock, caplog
):
    headers = {"Location": f"{ENDPOINT}/elsewhere"}
    collector.script = [Answer(status, b"why", headers)] * 2 + [Answer()]
    async with exporting() as run:
        for total in (1, 2, 3):
            await run.send(export("a", total))
            await trio.sleep(100)
    assert collector.totals == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert caplog.messages == [f"{URL}: status {status}: 'why'; not retried"]


async def test_a_partial_success_is_logged_once_per_message_and_not_retried(
    collector, autojump_clock, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    collector.script = [
        partial_success(1, "too old"),
        partial_success(2, "too old"),
        partial_success(3, ""),
        partial_success(0, "use gRPC\n"),
        Answer(),
        partial_success(4, "too old"),
    ]
    async with exporting() as run:
        for total in range(6):
            await run.send(export("a", total))
            await trio.sleep(100)
    assert len(collector.received) == 6
    says = f"{URL}: a partial success:"
    assert caplog.messages == [
        f"{says} 'too old', 1 data points rejected; not retried",
        f"{says} '', 3 data points rejected; not retried",
        f"{says} 'use gRPC\\n', 0 data points rejected; not retried",
        f"{URL}: recovered",
        f"{says} 'too old', 4 data points rejected; not retried",
    ]


@pytest.mark.parametrize(
    "body",
    [
        ExportMetricsServiceResponse().SerializeToString(),
        b"{}",
        b"\xff" * 100,
        b"\n" * 10_000_000,
        b"a" * 20_000 + partial_success(1, "out of sight").body,
    ],
)
async def test_other_bodies_of_a_success_are_ignored(
    body, collector, autojump_clock, caplog
):
    collector.script = [Answer(202, body)]
    async with exporting() as run:
        await run.send(export("a", 1))
        await trio.sleep(10)
    assert len(collector.received) == 1
    assert not caplog.messages


@pytest.mark.parametrize(
    "endpoint",
    ["http://user:secret/x@host:4318", "user:secret@host", "http://user:secret@host:x"],
)
def test_the_refusal_of_an_endpoint_has_no_secrets(endpoint):
    with pytest.raises(ValueError, match="endpoint must be") as caught:
        OTLPExporter(endpoint)
    assert "secret" not in str(caught.value)


async def test_neither_log_nor_repr_has_secrets(collector, autojump_clock, caplog):
    caplog.set_level("DEBUG")
    options = {"endpoint": "http://me:s3cret@host/x", "headers": {"api-key": "s3cret"}}
    collector.script = [Answer(404)]
    async with exporting(**options) as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
    assert "collector http://host/x/v1/metrics: status 404; not retried" in caplog.messages
    shown = repr(OTLPExporter(**options))
    assert "endpoint=http://host/x/v1/metrics," in shown
    assert "s3cret" not in caplog.text + shown


async def test_a_query_is_sent_but_not_shown_in_log_or_repr(
    collector, autojump_clock, caplog
):
    endpoint = "http://host?key=s3cret"
    collector.script = [Answer(404)]
    async with exporting(endpoint) as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
    assert collector.received[0].query == b"key=s3cret"
    assert caplog.messages == ["collector http://host/v1/metrics: status 404; not retried"]
    assert "s3cret" not in repr(OTLPExporter(endpoint))


def test_an_exception_without_message_is_explained_by_its_cause():
    tls = ssl.SSLError(1, "certificate has expired")
    middle = trio.BrokenResourceError()
    middle.__context__ = tls
    error = httpcore2.ConnectError("")
    error.__cause__ = middle
    assert _problem.why(error) == "ConnectError: certificate has expired"
    assert _problem.why(httpcore2.ReadError("")) == "ReadError: "


# What is refused


def of(probe: str, target: str, total: float = 1, **metrics: Any) -> EventMetrics:
    labels = {"ptype": "http", "probe": probe, "dst": target}
    return EventMetrics(1, 0, labels, {"total": total, **metrics}, 1, 10)


def refusing(*bad: str, status: int = 400) -> Callable[[Received], Answer]:
    """Return what refuses requests in which there are these targets."""
    return lambda got: Answer(status if got.totals.keys() & {*bad} else 200, b"why")


async def test_each_keeper_has_requests_of_its_own(collector, autojump_clock):
    async with exporting() as run:
        await run.send(of("x", "a"), of("y", "a", 2), of("x", "b"), of("y", "b", 2))
        await trio.sleep(1)
    assert collector.totals == [{"a": 1, "b": 1}, {"a": 2, "b": 2}]
    assert collector.times == [0.05] * 2  # many keepers don't wait for each other


async def test_a_bad_target_affects_no_other_and_is_logged_once_as_is_its_recovery(
    collector, autojump_clock, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    targets = [str(number) for number in range(300)]
    collector.judge = refusing("77")
    async with exporting() as run:
        for total in (1, 2, 3):
            await run.send(*(of("x", target, total) for target in targets))
            await trio.sleep(10)
            if total == 2:
                collector.judge = None
    accepted = [t for t in collector.totals if "77" not in t]
    for total in (1, 2):
        got = {t for totals in accepted for t in totals if totals[t] == total}
        assert got == {*targets} - {"77"}
    # It takes a binary search to find it. From then on it travels alone.
    first = collector.times.index(10.05)
    assert first <= 2 * math.ceil(math.log2(300)) + 1
    assert collector.totals[first + 1 :] == [
        {"77": 2},
        dict.fromkeys([t for t in targets if t != "77"], 3),
        {"77": 3},
    ]
    about = f"{URL}: http/x:"
    assert caplog.messages == [
        f"{about} refused the totals of '77': status 400: 'why'",
        f"{about} recovered",
    ]


async def test_many_bad_targets_are_found_pass_by_pass(collector, autojump_clock, caplog):
    targets = [str(number) for number in range(200)]
    bad = targets[3::7]
    collector.judge = refusing(*bad)
    random.seed(1)  # in what order suspects are tried again
    async with exporting() as run:
        for total in range(30):
            before = len(collector.received)
            await run.send(*(of("x", target, total) for target in targets))
            await trio.sleep(10)
            assert len(collector.received) - before < 100
    newest = {t for totals in collector.totals for t in totals if totals[t] == 29}
    assert newest == {*targets}
    last = [totals for totals in collector.totals if 29 in totals.values()]
    delivered = {t for totals in last if not totals.keys() & {*bad} for t in totals}
    assert delivered == {*targets} - {*bad}
    assert len(caplog.messages) == _problem_log._MAX_LOGGED + 1


async def test_a_collector_that_refuses_everything_gets_a_bounded_number_of_requests(
    collector, autojump_clock, caplog, monkeypatch
):
    monkeypatch.setattr(_delivery, "_MAX_SUSPECTS", 50)
    collector.script = [Answer(413)]
    async with exporting() as run:
        for total in range(10):
            before = len(collector.received)
            await run.send(*(of("x", str(n), total) for n in range(100)))
            await trio.sleep(10)
            assert 0 < len(collector.received) - before <= 70
    assert len(caplog.messages) <= _problem_log._MAX_LOGGED + 1


async def test_a_suspect_that_is_no_longer_listed_does_not_delay_the_recovery(
    collector, autojump_clock, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    collector.judge = refusing("a")
    async with exporting() as run:
        await run.send(of("x", "a"), of("x", "b"))
        for total in range(5):
            await trio.sleep(10)
            await run.send(of("x", "b", total))
        await trio.sleep(1)
    assert [message.split()[-1] for message in caplog.messages] == ["'why'", "recovered"]


def limit(
    size: int, trouble: Answer | Exception
) -> Callable[[Received], Answer | Exception]:
    """Return what refuses requests above this size."""
    return lambda got: trouble if got.message.ByteSize() > size else Answer()


async def test_requests_too_large_are_halved_until_they_fit_and_that_is_remembered(
    collector, autojump_clock, caplog, monkeypatch
):
    monkeypatch.setattr(_delivery, "_GROWTH_INTERVAL", 50)
    collector.judge = limit(60_000, Answer(413))
    targets = [str(number) for number in range(500)]
    async with exporting(compression=None) as run:
        for total in (1, 2):
            await run.send(*(of("x", t, total, text="x" * 500) for t in targets))
            await trio.sleep(10)
        refused = [got.message.ByteSize() > 60_000 for got in collector.received]
        second = collector.times.index(10.05)
        assert 1 <= sum(refused[:second]) <= 5
        assert not any(refused[second:])
        # After a while it tries larger ones again.
        collector.judge = None
        for total in range(3, 30):
            await run.send(*(of("x", t, total, text="x" * 500) for t in targets))
            await trio.sleep(10)
    assert not caplog.messages
    accepted = [
        g.totals for g, bad in zip(collector.received, refused, strict=False) if not bad
    ]
    for total in (1, 2):
        assert {t for got in accepted for t in got if got[t] == total} == {*targets}
    sizes = [len(totals) for totals in collector.totals[len(refused) :]]
    assert sizes[0] < 100
    assert sizes[-1] == 500


async def test_a_single_target_too_large_is_refused_and_leaves_the_others_their_size(
    collector, autojump_clock, caplog
):
    collector.judge = limit(60_000, Answer(413))
    async with exporting(compression=None) as run:
        for total in (1, 2):
            await run.send(of("x", "large", total, text="x" * 70_000))
            await run.send(*(of("x", t, total, text="x" * 500) for t in "abcdef"))
            await trio.sleep(10)
    assert collector.totals[-2:] == [{"large": 2}, dict.fromkeys("abcdef", 2)]
    [message] = caplog.messages
    assert message == f"{URL}: http/x: refused the totals of 'large': status 413"


async def test_connections_that_are_cut_off_again_and_again_have_requests_halved(
    collector, autojump_clock, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    collector.judge = limit(150_000, httpcore2.WriteError("reset"))
    targets = [str(number) for number in range(500)]
    async with exporting(compression=None) as run:
        await run.send(*(of("x", t, text="x" * 800) for t in targets))
        await trio.sleep(100)
    # The first time it may be a matter of chance.
    assert collector.totals[0] == collector.totals[1] == dict.fromkeys(targets, 1)
    assert {t for totals in collector.totals[3:] for t in totals} == {*targets}
    assert "WriteError: reset; retrying" in caplog.messages[0]
    assert caplog.messages[-1] == f"{URL}: recovered"


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/x-protobuf", b"\x08\x03\x12\x07too old", ": 'too old'"),
        ("application/x-protobuf", b"\xff\xff", ""),
        ("application/json", b'{"code": 3, "message": "too old"}', ": 'too old'"),
        ("application/json", b'["too old"]', ": '[\"too old\"]'"),
        ("text/plain", b"too old\n", ": 'too old\\n'"),
        ("", b"\x08\x03\x12\x07too old", ""),
    ],
)
async def test_what_a_refusal_says_is_logged_but_no_raw_bytes(
    content_type, body, said, collector, caplog
):
    collector.script = [Answer(401, body, {"Content-Type": content_type})]
    await OTLPExporter(ENDPOINT).run(channel_of(export("a", 1)))
    assert caplog.messages[0] == f"{URL}: status 401{said}; not retried"


GRPC_HINT = "is this the gRPC port (4317)? OTLP over HTTP is 4318"


@pytest.mark.parametrize(
    ("port", "trouble"),
    [
        (4317, httpcore2.RemoteProtocolError("disconnected")),
        (4317, httpcore2.ReadError("")),
        (4317, Answer(after=100)),
        (4317, Answer(415)),
        (4318, httpcore2.RemoteProtocolError("illegal request line")),
    ],
)
async def test_the_log_asks_whether_a_port_is_that_of_grpc(
    port, trouble, collector, autojump_clock, caplog
):
    collector.script = [trouble]
    async with exporting(f"http://collector:{port}") as run:
        await run.send(export("a", 1))
        await trio.sleep(11)
    assert GRPC_HINT in caplog.messages[0]


@pytest.mark.parametrize(
    ("port", "trouble"),
    [
        (4317, Answer(503)),
        (4317, httpcore2.ConnectError("refused")),
        (4318, httpcore2.RemoteProtocolError("illegal status line: b'SSH'")),
    ],
)
async def test_the_log_does_not_ask_about_grpc_where_that_is_unlikely(
    port, trouble, collector, autojump_clock, caplog
):
    collector.script = [trouble]
    async with exporting(f"http://collector:{port}") as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
    assert GRPC_HINT not in caplog.text


async def test_labels_that_receivers_overwrite_are_logged_once(
    collector, autojump_clock, caplog
):
    jobs = Map("job", {"backup": 1})
    async with exporting() as run:
        for total in (1, 2):
            await run.send(EventMetrics(total, 0, {"instance": "a"}, {"jobs": jobs}))
            await trio.sleep(1)
    overwritten = "which receivers based on Prometheus overwrite"
    assert caplog.messages == [
        f"{URL}: data points have an attribute {label!r}, {overwritten}"
        for label in ("instance", "job")
    ]


# The keepers' own statistics


async def test_the_statistics_of_keepers_and_probers_come_every_ten_seconds_and_at_the_end(
    collector, autojump_clock
):
    keeper = make_keeper()
    probe = ScriptedProbe([Succeed()])
    prober = Prober(probe, list, interval=1, timeout=1, name="homepage")
    async with running(keeper) as kept, exporting(statistics_of=[keeper, prober]) as run:
        kept.send(one("a"))
        await trio.sleep(15)
        await run.send(export("a", 1))
        await trio.sleep(10)
        kept.send(one("a"))
        await trio.sleep(1)
        run.exports.close()
        await run.ended.wait()
    assert collector.times == [10, 15.05, 20, 26]
    # Requests of their own.
    assert collector.totals == [{}, {"a": 1}, {}, {}]
    folded = [
        each.values("statskeeper_results_accepted", "probe") for each in collector.received
    ]
    assert folded == [{"homepage": 1}, {}, {"homepage": 1}, {"homepage": 2}]
    metrics = {metric.name: metric for metric in collector.received[0].metrics}
    assert metrics["statskeeper_results_rejected"].description == (
        "Results of probe runs that could not be added to the totals."
    )
    assert metrics["statskeeper_targets_tracked"].gauge.data_points[0].as_int == 1
    assert metrics["statskeeper_prober_runs_missed"].sum.is_monotonic


async def test_statistics_that_were_not_delivered_are_sent_again_as_usual(
    collector, autojump_clock, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    collector.script = [Answer(503), Answer(503), Answer()]
    async with exporting(statistics_of=[make_keeper()]):
        await trio.sleep(31)
    assert collector.times == [10, 20, 30]
    assert caplog.messages == [f"{URL}: status 503; retrying", f"{URL}: recovered"]


async def test_statistics_too_large_for_one_request_are_sent_in_several(
    collector, autojump_clock, monkeypatch
):
    monkeypatch.setattr(_delivery, "_MAX_REQUEST_SIZE", 1)
    keepers = [StatsKeeper("http", name, list) for name in "abc"]
    async with exporting(statistics_of=keepers):
        await trio.sleep(11)
    sent = [
        each.values("statskeeper_results_accepted", "probe") for each in collector.received
    ]
    assert [[*names] for names in sent] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("refused", "logged"),
    [
        ("statskeeper_", "statistics: status 400; not retried"),
        ("probe_", "refused the totals of 'a': status 400"),
    ],
)
async def test_targets_and_statistics_do_not_share_the_fate_of_a_refusal(
    collector, autojump_clock, caplog, refused, logged
):
    caplog.set_level("INFO", "trio_statskeeper")
    healthy = trio.Event()

    def judge(received: Received) -> Answer:
        bad = received.metrics[0].name.startswith(refused) and not healthy.is_set()
        return Answer(400 if bad else 200)

    collector.judge = judge
    async with exporting(statistics_of=[make_keeper()]) as run:
        for total in range(6):
            await run.send(export("a", total))
            await trio.sleep(10)
            if total == 3:
                healthy.set()
    assert sum(bool(totals) for totals in collector.totals) == 6
    about = logged.partition(": ")[0] + ": " if logged.startswith("statistics") else ""
    assert caplog.messages == [f"{URL}: {logged}", f"{URL}: {about}recovered"]


async def test_without_statistics_and_exports_nothing_is_sent(collector, autojump_clock):
    async with exporting():
        await trio.sleep(1000)
    assert not collector.received


# The end


async def test_when_the_exports_end_all_are_sent(collector, autojump_clock, monkeypatch):
    monkeypatch.setattr(_delivery, "_MAX_REQUEST_EXPORTS", 1)
    collector.script = [Answer(after=1), Answer(503), Answer(after=1)]
    async with exporting() as run:
        await run.send(*(export(target, 1) for target in "ab"))
        run.exports.close()
        await run.ended.wait()
    # It does not wait for what might still come.
    assert collector.times == [0, 1, 2]
    assert collector.totals == [{"a": 1}, {"b": 1}, {"b": 1}]


async def test_when_nothing_waits_at_the_end_it_returns_at_once(collector, autojump_clock):
    async with exporting(statistics_of=[make_keeper()]) as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
        run.exports.close()
        await run.ended.wait()
        assert trio.current_time() == 1
    assert len(collector.received) == 2  # the totals, and the statistics


async def test_the_end_cuts_short_the_pause_before_a_retry(collector, autojump_clock):
    collector.script = [Answer(503)] * 6 + [Answer()]
    async with exporting() as run:
        await run.send(export("a", 1))
        await trio.sleep(20)
        run.exports.close()
        await run.ended.wait()
    # The next try would have been due at 31.05.
    assert collector.times == [0.05, 1.05, 3.05, 7.05, 15.05, 20, 21]


async def test_the_end_does_not_cut_short_a_retry_after(collector, autojump_clock):
    collector.script = [Answer(429, headers={"Retry-After": "5"}), Answer()]
    async with exporting() as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
        run.exports.close()
        await run.ended.wait()
    assert collector.times == [0.05, 5.05]


@pytest.mark.parametrize("trouble", [Answer(503), Answer(after=1000)])
async def test_after_the_end_undelivered_totals_are_logged_when_time_is_up(
    trouble, collector, autojump_clock, caplog
):
    collector.script = [trouble]
    async with exporting(timeout=5) as run:
        await run.send(export("a", 1), export("b", 1))
        await trio.sleep(1)
        run.exports.close()
        await run.ended.wait()
        assert trio.current_time() == 6
    assert caplog.messages[-1] == f"{URL}: the totals of 2 targets were not delivered"


async def test_totals_that_the_collector_refuses_after_the_end_are_logged_as_undelivered(
    collector, autojump_clock, caplog
):
    collector.script = [Answer(400)]
    async with exporting(statistics_of=[make_keeper()]) as run:
        await run.send(export("a", 1), export("b", 1))
        await trio.sleep(1)
        await run.send(export("a", 2))
        run.exports.close()
        await run.ended.wait()
    assert caplog.messages == [
        f"{URL}: refused the totals of 'a': status 400",
        f"{URL}: refused the totals of 'b': status 400",
        f"{URL}: statistics: status 400; not retried",
        f"{URL}: the totals of 1 targets were not delivered",
    ]


@pytest.mark.parametrize(("status", "undelivered"), [(200, 0), (400, 1)])
async def test_refused_totals_do_not_count_as_undelivered_if_newer_ones_follow(
    collector, autojump_clock, caplog, status, undelivered
):
    collector.script = [Answer(400, after=3), Answer(status)]
    async with exporting() as run:
        await run.send(export("a", 1))
        await trio.sleep(1)
        await run.send(export("a", 2))
        run.exports.close()
        await run.ended.wait()
    messages = [f"{URL}: the totals of 1 targets were not delivered"] * undelivered
    assert caplog.messages[1:] == messages


class Cancelled:
    """An exporter in a scope of its own, which is cancelled."""

    def __init__(self, nursery, **options):
        self.exports, self.receive = trio.open_memory_channel[EventMetrics](0)
        self.exporter = OTLPExporter(ENDPOINT, **options)
        self.scope = trio.CancelScope()
        self.raised = None
        self.ended = trio.Event()
        nursery.start_soon(self._run)

    async def _run(self):
        with self.scope:
            try:
                await self.exporter.run(self.receive)
            except BaseException as error:
                self.raised = error
                self.ended_at = trio.current_time()
                raise
            finally:
                self.ended.set()

    async def cancel(self):
        self.scope.cancel()
        await self.ended.wait()
        assert type(self.raised) is trio.Cancelled
        assert self.exports.statistics().open_receive_channels == 0


@pytest.mark.parametrize("trouble", [Answer(503), Answer(after=1000), Answer()])
async def test_when_cancelled_it_ends_at_once_with_a_bare_cancelled(
    trouble, collector, autojump_clock, nursery
):
    collector.script = [trouble]
    run = Cancelled(nursery)
    await run.exports.send(export("a", 1))
    await trio.sleep(0.5)
    await run.cancel()
    assert run.ended_at == 0.5


async def test_when_cancelled_it_logs_how_many_targets_were_not_delivered(
    collector, autojump_clock, nursery, caplog
):
    collector.script = [Answer(after=1000)]
    run = Cancelled(nursery)
    await run.exports.send(export("a", 1))
    await run.exports.send(export("b", 1))
    await trio.sleep(0.5)
    await run.cancel()
    assert caplog.messages == [f"{URL}: the totals of 2 targets were not delivered"]


async def test_it_may_run_again_with_a_new_channel(collector, autojump_clock):
    exporter = OTLPExporter(ENDPOINT)
    for total in (1, 2):
        send, receive = trio.open_memory_channel[EventMetrics](1)
        with send:
            send.send_nowait(export("a", total))
        await exporter.run(receive)
    assert collector.totals == [{"a": 1}, {"a": 2}]


async def test_two_runs_at_once_are_refused_and_nothing_is_closed(
    collector, autojump_clock, nursery
):
    exporter = OTLPExporter(ENDPOINT)
    first, first_receive = trio.open_memory_channel[EventMetrics](0)
    second, second_receive = trio.open_memory_channel[EventMetrics](0)
    await nursery.start(exporter.run, first_receive)
    with pytest.raises(trio.BusyResourceError, match="already running"):
        await exporter.run(second_receive)
    assert second.statistics().open_receive_channels == 1
    await first.send(export("a", 1))
    await trio.sleep(1)
    assert collector.totals == [{"a": 1}]
    first.close()


async def test_exceptions_that_the_collector_did_not_cause_are_raised_bare(
    collector, monkeypatch
):
    collector.script = [RuntimeError("a bug")]
    exporter = OTLPExporter(ENDPOINT)
    send, receive = trio.open_memory_channel[EventMetrics](1)
    send.send_nowait(export("a", 1))
    with pytest.raises(RuntimeError, match="a bug"):
        await exporter.run(receive)
    assert send.statistics().open_receive_channels == 0


# What is configured


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/metrics"),
        ("http://localhost:4318/", "http://localhost:4318/v1/metrics"),
        ("https://h/v1/metrics", "https://h/v1/metrics"),
        ("https://h/v1/metrics/", "https://h/v1/metrics"),
        ("https://h/a%2Fb/?key=%20c#d", "https://h/a%2Fb/v1/metrics?key=%20c#d"),
        ("HTTPS://H", "https://h/v1/metrics"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/metrics"),
    ],
)
def test_the_path_is_added_unless_it_is_there(endpoint, url):
    assert OTLPExporter(endpoint).endpoint == url


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (4318, "endpoint must be a URL as a string, got 4318"),
        (
            b"http://localhost",
            "endpoint must be a URL as a string, got b'http://localhost'",
        ),
        (
            "localhost:4318",
            "must be like 'http://localhost:4318' or 'https://…', got 'localhost:4318'",
        ),
        ("grpc://localhost", "got 'grpc://localhost'"),
        ("http://", "got 'http://'"),
        ("", "got ''"),
        ("http://h\n", "endpoint must be a URL, got 'http://h\\n': Invalid"),
        ("http://h:x", "endpoint must be a URL, got 'http://h:x': Invalid port"),
        ("http://a..b", "endpoint must be a URL, got 'http://a..b': "),
        ("http://h/\ud800", "endpoint must be a URL, got 'http://h/\\ud800': "),
        ("http://h:0", "endpoint must have a port from 1 to 65535, got 'http://h:0'"),
        ("http://h:65536", "got 'http://h:65536'"),
        ("http://me:s3cret@h:0?s3cret", "got 'http://h:0'"),
    ],
)
def test_an_invalid_url_is_refused(endpoint, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        OTLPExporter(endpoint)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"service_name": ""}, ValueError, "service_name must not be empty"),
        ({"service_name": 1}, TypeError, "service_name must be a string, got 1"),
        (
            {"resource_attributes": {"a": 1}},
            TypeError,
            "resource_attributes must be strings by name, got a int for 'a'",
        ),
        ({"resource_attributes": {1: "a"}}, TypeError, "got a str for 1"),
        (
            {"resource_attributes": [("a", "b")]},
            TypeError,
            "resource_attributes must be a mapping, got [('a', 'b')]",
        ),
        ({"resource_attributes": {"": "a"}}, ValueError, "got one that is empty"),
        (
            {"resource_attributes": {"service.name": "a"}},
            ValueError,
            "resource_attributes can't have 'service.name': give it as service_name",
        ),
        (
            {"headers": {"a": b"b"}},
            TypeError,
            "headers must be strings by name, got a byte",
        ),
        ({"headers": None}, TypeError, "headers must be a mapping, got None"),
        ({"headers": {"": "a"}}, ValueError, "got ''"),
        (
            {"headers": {"a:": "b"}},
            ValueError,
            "headers must have names of ASCII letters, digits and hyphens, got 'a:'",
        ),
        ({"headers": {"a\n": "b"}}, ValueError, r"got 'a\n'"),
        ({"headers": {"é": "b"}}, ValueError, "got 'é'"),
        (
            {"headers": {"api-key": "s3cret\n"}},
            ValueError,
            r"printable ASCII without spaces around it, got '\n' in the value of 'api-key'",
        ),
        ({"headers": {"api-key": " a"}}, ValueError, "got ' ' in the value of 'api-key'"),
        ({"headers": {"api-key": "a\t"}}, ValueError, r"got '\t' in the value"),
        ({"headers": {"api-key": "aéb"}}, ValueError, "got 'é' in the value"),
        ({"headers": {"api-key": "a\x7f"}}, ValueError, r"got '\x7f' in the value"),
        (
            {"headers": {"Content-Type": "a"}},
            ValueError,
            "headers can't have 'Content-Type': it is determined by the request",
        ),
        ({"headers": {"content-LENGTH": "1"}}, ValueError, "headers can't have"),
        ({"compression": "br"}, ValueError, "compression must be 'gzip' or None, got 'br'"),
        ({"compression": True}, ValueError, "got True"),
        (
            {"ssl_context": True},
            TypeError,
            "ssl_context must be an ssl.SSLContext or None, got True",
        ),
        ({"timeout": 0}, ValueError, "timeout must be finite and > 0, got 0"),
        ({"timeout": None}, TypeError, "timeout must be a number, got None"),
        ({"statistics_of": [1]}, TypeError, "statistics_of must be keepers and probers"),
    ],
)
def test_invalid_options_are_refused(options, error, message):
    with pytest.raises(error) as raised:
        OTLPExporter(ENDPOINT, **options)
    assert message in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_headers_may_be_empty_or_have_spaces_and_tabs_inside():
    headers = {"Authorization": "Bearer a\tb", "X-Empty": ""}
    assert OTLPExporter(ENDPOINT, headers=headers).headers == headers


def test_options_are_copied_and_read_only():
    attributes, headers = {"a": "b"}, {"c": "d"}
    exporter = OTLPExporter(ENDPOINT, resource_attributes=attributes, headers=headers)
    attributes["a"] = headers["c"] = "x"
    assert exporter.resource_attributes == {"a": "b"}
    assert exporter.headers == {"c": "d"}
    with pytest.raises(TypeError):
        exporter.headers["c"] = "x"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        exporter.timeout = 1


def test_certificates_are_checked_unless_the_user_says_otherwise(monkeypatch):
    own, usual = ssl.create_default_context(), ssl.create_default_context()
    monkeypatch.setattr(httpx2, "create_ssl_context", lambda: usual)
    assert OTLPExporter("https://collector")._tls is usual
    assert OTLPExporter("https://collector", ssl_context=own)._tls is own
    # It is not used; if it were, no certificate would be trusted.
    context = OTLPExporter(ENDPOINT)._tls
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.get_ca_certs()


# The page


def test_the_program_in_the_page_on_opentelemetry_runs_and_is_short(collector, monkeypatch):
    page = Path(__file__).parents[1] / "docs/opentelemetry.md"
    fence = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    (program,) = fence.findall(page.read_text())
    assert program.count("\n") <= 25
    run = trio.run

    async def connect(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return memory_stream_pair()[0]

    async def for_a_while(main) -> None:
        with trio.move_on_after(15):
            await main()

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    clock = MockClock(autojump_threshold=0)
    monkeypatch.setattr(trio, "run", lambda main: run(for_a_while, main, clock=clock))
    exec(compile(program, page, "exec"), {"__name__": "__main__"})
    # On a slow machine, the two targets may come in two requests.
    totals, accepted = {}, {}
    for received in collector.received:
        totals |= received.totals
        accepted |= received.values("statskeeper_results_accepted", "probe")
    assert totals.keys() == {"localhost:80", "localhost:443"}
    assert accepted["example"] > 0
