"""OTLPExporter against real servers: a receiver of OTLP, and servers that misbehave."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from http.client import HTTPConnection
from typing import Any

import attrs
import h11
import pytest
import trio
import trustme
from helpers import channel_of, one
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from real_servers import free_port

from trio_statskeeper import (
    Distribution,
    Endpoint,
    EventMetrics,
    Gauge,
    Map,
    Prober,
    StatsKeeper,
)
from trio_statskeeper.otlp import OTLPExporter, _delivery

CUMULATIVE = "AGGREGATION_TEMPORALITY_CUMULATIVE"
TARGETS = [Endpoint("a"), Endpoint("b", 80)]
PATIENCE = 60


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    """Retry at once, and ask no proxy."""
    monkeypatch.setattr(_delivery, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(_delivery, "_LONGEST_DELAY", 0.2)
    monkeypatch.setenv("NO_PROXY", "*")


async def until(condition) -> None:
    while True:
        await trio.sleep(0.01)
        if condition():
            return


# A whole program, with a real receiver


class Service:
    """What is probed: it gives a known answer, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def probe(self, endpoint: Endpoint) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.asked[endpoint.key] += 1
        return {
            "resp-code": Map("code", {"200": 1, "404": 2}),
            "round-trip-latency": 0.25,
            "queue": Gauge(self.asked[endpoint.key] * 0.5),
            "version": "v1 beta",
        }


@attrs.frozen
class Program:
    service: Service
    keeper: StatsKeeper
    probing: trio.CancelScope


@asynccontextmanager
async def program(endpoint: str) -> AsyncGenerator[Program]:
    """Run prober, keeper and exporter; in the end, wait until all is delivered."""
    service = Service()
    prober = Prober(service.probe, lambda: TARGETS, interval=0.05, timeout=5)
    keeper = StatsKeeper(
        "http",
        "homepage",
        lambda: TARGETS,
        export_interval=0.2,
        distributions={"latency": (0.001, 0.5, 5)},
        additional_labels={"site": "x"},
    )
    exporter = OTLPExporter(
        endpoint,
        service_name="tests",
        resource_attributes={"deployment.environment.name": "é"},
        compression=None,  # the receiver can't decompress
        statistics_of=[keeper],
    )
    results_send, results = trio.open_memory_channel[Any](100)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run, results, exports_send)
            await nursery.start(exporter.run, exports)
            async with trio.open_nursery() as probers:
                await probers.start(prober.run, results_send)
                yield Program(service, keeper, probers.cancel_scope)
                # The prober closes the results; then the keeper exports once more.
                probers.cancel_scope.cancel()


def newest(receiver, name):
    """Return the newest point of each series, by its attributes without those of all."""
    points = {}
    for point in receiver.points(name):
        attributes = dict(point.attributes)
        assert attributes.pop("ptype") == "http"
        assert attributes.pop("probe") == "homepage"
        assert attributes.pop("site") == "x"
        resource = dict(point.resource)
        assert resource.pop("service.instance.id")
        assert resource == {
            "service.name": "tests",
            "deployment.environment.name": "é",
        }
        points[tuple(sorted(attributes.items()))] = point
    return points


def assert_same_totals(receiver, keeper):
    """Compare what the receiver has got last with the keeper's own totals."""
    expected = {}
    for kept in keeper.snapshot():
        target = ("dst", kept.labels["dst"])
        start = round(kept.start_timestamp * 1e9)
        counter = ("sum", CUMULATIVE, True, start)
        histogram = ("histogram", CUMULATIVE, False, start)
        gauge = ("gauge", None, False, None)
        for metric, value in kept.metrics.items():
            name = "probe_" + metric.replace("-", "_")
            unit = "s" if metric.endswith("latency") else ""
            if isinstance(value, Map):
                for key, count in value.values.items():
                    series = (name, *sorted([target, (value.name, key)]))
                    expected[series] = (*counter, unit, {"asInt": count})
            elif isinstance(value, Distribution):
                data = {
                    "count": value.count,
                    "sum": value.sum,
                    "bucketCounts": list(value.bucket_counts),
                    "explicitBounds": list(value.bounds),
                }
                expected[name, target] = (*histogram, unit, data)
            elif isinstance(value, Gauge):
                expected[name, target] = (*gauge, unit, {"asDouble": value.value})
            elif isinstance(value, str):
                series = (f"{name}_info", target, (metric, value))
                expected[series] = (*gauge, unit, {"asInt": 1})
            else:
                kind = "asInt" if isinstance(value, int) else "asDouble"
                expected[name, target] = (*counter, unit, {kind: value})
    found = {}
    for name in {series[0] for series in expected}:
        for attributes, point in newest(receiver, name).items():
            data = dict(point.data)
            start = data.pop("startTimeUnixNano", None)
            assert data.pop("timeUnixNano") >= (start or 0)
            found[name, *attributes] = (
                *(point.kind, point.temporality, point.monotonic, start),
                *(point.unit, data),
            )
    assert found == expected


def totals_of(points):
    return {point.attributes["dst"]: point.data["asInt"] for point in points}


async def test_a_real_receiver_has_the_keepers_totals_after_an_outage_too(
    start_otlp_receiver, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    receiver = await trio.to_thread.run_sync(start_otlp_receiver)

    async def received_more():
        """Wait until the receiver has more of each target than it has now."""
        before = totals_of(receiver.points("probe_total"))

        def is_more(points):
            totals = totals_of(points)
            return len(totals) == len(TARGETS) and all(
                total > before.get(target, 0) for target, total in totals.items()
            )

        await trio.to_thread.run_sync(receiver.wait_for, "probe_total", is_more)

    async with program(receiver.endpoint.removesuffix("/v1/metrics")) as running:
        await received_more()
        await received_more()
        await trio.to_thread.run_sync(receiver.stop)
        passes = running.keeper.statistics().passes
        await until(lambda: running.keeper.statistics().passes >= passes + 3)
        await trio.to_thread.run_sync(receiver.start)
        await received_more()
        assert receiver.points("probe_total")[-1].data["asInt"] > 3
    await trio.to_thread.run_sync(receiver.stop)

    assert_same_totals(receiver, running.keeper)
    totals = totals_of(receiver.points("probe_total"))
    assert totals.keys() == {"a", "b:80"}
    folded = receiver.points("statskeeper_results_accepted")[-1]
    assert folded.data["asInt"] == running.keeper.statistics().results_accepted
    for target in totals:
        of_target = [
            point.data
            for point in receiver.points("probe_total")
            if point.attributes["dst"] == target
        ]
        assert len({data["startTimeUnixNano"] for data in of_target}) == 1
        times = [data["timeUnixNano"] for data in of_target]
        assert times == sorted(times)
        counts = [data["asInt"] for data in of_target]
        assert counts == sorted(counts)
    messages = [message.split(": ", 1)[1] for message in caplog.messages]
    assert messages[-1] == "recovered"
    assert all(": " in message for message in messages[:-1])


# A collector that is a few lines, and says what it got


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, stream) -> None:
        connection = h11.Connection(h11.SERVER)
        with suppress(trio.BrokenResourceError):  # a client may hang up at any time
            while (event := connection.next_event()) is not h11.PAUSED:
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(2**16))
                elif isinstance(event, h11.ConnectionClosed):
                    break
                elif isinstance(event, h11.Request):
                    head, body = event, b""
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    status, said = await self.take(head, body)
                    length = [("Content-Length", str(len(said)))]
                    response = h11.Response(status_code=status, headers=length)
                    for part in response, h11.Data(data=said), h11.EndOfMessage():
                        if sent := connection.send(part):
                            await stream.send_all(sent)
                    connection.start_next_cycle()

    async def take(self, head, body) -> tuple[int, bytes]:
        headers = {name.decode(): value.decode() for name, value in head.headers}
        assert (head.method, head.target) == (b"POST", b"/v1/metrics")
        assert headers["content-length"] == str(len(body))
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.headers.append(headers)
        self.requests.append(ExportMetricsServiceRequest.FromString(body))
        return await self.answer(self.requests[-1])

    async def answer(self, request: ExportMetricsServiceRequest) -> tuple[int, bytes]:
        await trio.lowlevel.checkpoint()
        return 200, b""

    @property
    def totals(self):
        return {
            point.attributes[0].value.string_value: point.as_int
            for request in self.requests
            for part in request.resource_metrics
            for metric in part.scope_metrics[0].metrics
            if metric.name == "probe_total"
            for point in metric.sum.data_points
        }


@asynccontextmanager
async def collector(certificate=None) -> AsyncGenerator[Collector]:
    async with serving(Collector(), certificate) as app:
        yield app


@asynccontextmanager
async def serving(app, certificate=None) -> AsyncGenerator[Collector]:
    handler = app
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)

        async def handler(stream) -> None:
            await app(trio.SSLStream(stream, context, server_side=True))

    async with server(handler) as url:
        app.url = url if certificate is None else url.replace("http", "https")
        yield app


def export(target: str, total: int, **metrics) -> EventMetrics:
    return EventMetrics(1519084040, 0, {"dst": target}, {"total": total, **metrics})


async def run(exporter: OTLPExporter, *exports: EventMetrics) -> None:
    """Export these, and wait until they are delivered."""
    send, receive = trio.open_memory_channel[EventMetrics](len(exports))
    with send:
        for each in exports:
            send.send_nowait(each)
    with trio.fail_after(PATIENCE):
        await exporter.run(receive)


@pytest.mark.parametrize("compression", ["gzip", None])
async def test_a_server_sees_these_requests(compression):
    async with collector() as app:
        headers = {"Authorization": "Bearer s3"}
        exporter = OTLPExporter(app.url, compression=compression, headers=headers)
        many = [export(str(number), number, text="x" * 1000) for number in range(2000)]
        await run(exporter, *many)
    assert app.totals == {str(number): number for number in range(2000)}
    assert len(app.requests) > 1
    for headers in app.headers:
        assert headers["authorization"] == "Bearer s3"
        assert headers["content-type"] == "application/x-protobuf"
        assert headers.get("content-encoding") == compression


async def test_https_works_with_a_custom_certificate_authority():
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with collector(authority.issue_cert("127.0.0.1")) as app:
        await run(OTLPExporter(app.url, ssl_context=trusting), export("a", 1))
    assert app.totals == {"a": 1}


async def test_an_untrusted_certificate_is_logged_and_its_server_gets_nothing(caplog):
    async with collector(trustme.CA().issue_cert("127.0.0.1")) as app:
        await run(OTLPExporter(app.url, timeout=0.5), export("a", 1))
    assert not app.requests
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    assert "the totals of 1 targets were not delivered" in caplog.messages[-1]


@asynccontextmanager
async def server(handler) -> AsyncGenerator[str]:
    """Serve TCP on loopback."""
    async with trio.open_nursery() as nursery:
        serve_tcp = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        [listener] = await nursery.start(serve_tcp)
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


class Flaky:
    """Misbehaves twice, then answers 200."""

    def __init__(self, misbehave) -> None:
        self.misbehave = misbehave
        self.connections = 0

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            request = b""
            # The body follows the headers in a packet of its own, and is small.
            while not request.partition(b"\r\n\r\n")[2]:
                request += await stream.receive_some(100_000)
            assert request.startswith(b"POST /v1/metrics HTTP/1.1\r\n")
            if self.connections <= 2:
                await self.misbehave(stream)
            else:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def hang_up(stream) -> None:
    await trio.lowlevel.checkpoint()


async def hang_up_within_the_answer(stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")


async def speak_something_else(stream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def take_ones_time(stream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("misbehave", "logged"),
    [
        (hang_up, "Error: "),
        (hang_up_within_the_answer, "RemoteProtocolError: peer closed connection"),
        (speak_something_else, "RemoteProtocolError: illegal status line"),
        (take_ones_time, "no answer within 0.5 s"),
    ],
)
async def test_a_request_is_retried_when_the_server_misbehaves(misbehave, logged, caplog):
    flaky = Flaky(misbehave)
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with server(flaky) as url, trio.open_nursery() as nursery:
        nursery.start_soon(OTLPExporter(url, timeout=0.5).run, receive)
        await send.send(export("a", 1))
        with trio.fail_after(PATIENCE):
            await until(lambda: flaky.connections == 3)
        send.close()
    assert flaky.connections == 3
    assert logged in caplog.messages[0]
    assert len(caplog.messages) == 1


async def test_an_endless_answer_is_not_read_to_its_end(caplog):
    async def talk(stream) -> None:
        async with stream:
            await stream.receive_some(100_000)
            await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"a" * 100_000)

    async with server(talk) as url:
        await run(OTLPExporter(url), export("a", 1))
    assert not caplog.messages


async def test_when_cancelled_during_a_request_it_ends(caplog):
    connected = trio.Event()

    async def read_nothing(stream) -> None:
        connected.set()
        await trio.sleep_forever()

    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with server(read_nothing) as url:
        exporter = OTLPExporter(url, timeout=1000, compression=None)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exporter.run, receive)
                # More than the buffers of both sockets hold.
                await send.send(export("a", 1, text="x" * 50_000_000))
                await connected.wait()
                nursery.cancel_scope.cancel()
    assert send.statistics().open_receive_channels == 0


async def test_a_missing_collector_is_logged_and_waited_for(tmp_path, caplog):
    url = f"http://127.0.0.1:{free_port()}"
    await run(OTLPExporter(url, timeout=0.5), export("a", 1))
    first, last = caplog.messages
    name = f"collector {url}/v1/metrics"
    assert first.startswith(f"{name}: ConnectError: all attempts to connect")
    assert last == f"{name}: the totals of 1 targets were not delivered"


# Threads, proxies, and what is not OTLP over HTTP


async def test_it_delivers_while_other_code_holds_all_of_trios_threads():
    limiter = trio.to_thread.current_default_thread_limiter()
    released = threading.Event()
    exports = [export(str(number), number, text="x" * 1000) for number in range(100)]
    try:
        async with collector() as app, trio.open_nursery() as nursery:
            for _ in range(int(limiter.total_tokens)):
                nursery.start_soon(trio.to_thread.run_sync, released.wait)
            await until(lambda: limiter.available_tokens == 0)
            # It takes threads to look up the name, and to compress so much.
            url = app.url.replace("127.0.0.1", "localhost")
            await run(OTLPExporter(url), *exports)
            assert limiter.available_tokens == 0
            released.set()
    finally:
        released.set()
    assert app.totals == {str(number): number for number in range(100)}
    assert app.headers[0]["host"] == url.removeprefix("http://")


async def test_each_address_of_a_name_is_tried(monkeypatch):
    getaddrinfo = socket.getaddrinfo

    def look_up(host, *args, **options):
        # The first does not answer: it accepts no connections, and its queue is full.
        addresses = ["127.0.0.2", "127.0.0.1"] if host == "otel.test" else [host]
        return [found for a in addresses for found in getaddrinfo(a, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with collector() as app:
        port = int(app.url.rpartition(":")[2])
        with socket.socket() as full:
            full.bind(("127.0.0.2", port))
            full.listen(0)
            waiting = [socket.socket() for _ in range(4)]
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(("127.0.0.2", port))
            await run(OTLPExporter(f"http://otel.test:{port}"), export("a", 1))
            for each in waiting:
                each.close()
    assert app.totals == {"a": 1}


async def test_it_uses_the_proxy_of_the_environment(monkeypatch):
    asked = []

    async def proxy(stream) -> None:
        async with stream:
            request = await stream.receive_some(100_000)
            asked.append(request)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.delenv("NO_PROXY")
    async with server(proxy) as url:
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:s3cret@"))
        await run(OTLPExporter("http://collector.test:4318"), export("a", 1))
    head = asked[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert head[0] == b"POST http://collector.test:4318/v1/metrics HTTP/1.1"
    assert b"Host: collector.test:4318" in head
    assert b"Proxy-Authorization: Basic bWU6czNjcmV0" in head


async def test_a_server_that_speaks_only_http_2_is_suspected_to_be_grpc(caplog):
    async def serve_http_2(stream) -> None:
        settings = b"\0\0\0\4\0" + bytes(4)
        go_away = b"\0\0\x08\7\0" + bytes(4) + bytes(4) + b"\0\0\0\1"
        async with stream:
            await stream.send_all(settings)
            await stream.receive_some(100_000)
            await stream.send_all(go_away)

    # An address of its own: others may use the port.
    serving = partial(trio.serve_tcp, serve_http_2, 4317, host="127.0.43.17")
    async with trio.open_nursery() as nursery:
        await nursery.start(serving)
        exporter = OTLPExporter("http://127.0.43.17:4317", timeout=0.2)
        await run(exporter, export("a", 1))
        nursery.cancel_scope.cancel()
    assert "is this the gRPC port (4317)? OTLP over HTTP is 4318" in caplog.messages[0]


async def test_the_body_limit_of_a_server_that_resets_is_found_and_respected(caplog):
    """Servers that stop reading at a limit reset the connection, often without a status."""
    limit, taken = 100_000, set()

    async def read_so_much(stream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            body = b""
            while type(event := connection.next_event()) is not h11.EndOfMessage:
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(2**14))
                elif type(event) is h11.Data:
                    body += event.data
                    if len(body) > limit:
                        linger = struct.pack("ii", 1, 0)
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        stream.socket.close()
                        return
            message = ExportMetricsServiceRequest.FromString(body)
            taken.update(
                point.attributes[0].value.string_value
                for part in message.resource_metrics
                for metric in part.scope_metrics[0].metrics
                for point in getattr(metric, metric.WhichOneof("data")).data_points
            )
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )

    exports = [export(str(number), 1, text="x" * 500) for number in range(1000)]
    async with server(read_so_much) as url:
        await run(OTLPExporter(url, compression=None, timeout=PATIENCE), *exports)
    assert taken == {str(number) for number in range(1000)}
    assert "retrying" in caplog.messages[0]
    assert len(caplog.messages) == 1


# A receiver that only ever appends: Prometheus, by what collectors write to it


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, content: bytes | str) -> bytes:
    """Return a field of a protobuf message that has a length."""
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def attributes_of(message) -> dict[str, str]:
    return {each.key: each.value.string_value for each in message.attributes}


def write_request(request: ExportMetricsServiceRequest) -> bytes:
    """Return the sums of a request as a prometheus.WriteRequest."""
    series = []
    [of_resource] = request.resource_metrics
    resource = attributes_of(of_resource.resource)
    for metric in of_resource.scope_metrics[0].metrics:
        for point in metric.sum.data_points:
            labels = {"__name__": metric.name, **attributes_of(point)}
            # As all receivers do that are based on Prometheus.
            labels["instance"] = resource["service.instance.id"]
            at = point.time_unix_nano // 1_000_000
            sample = struct.pack("<Bd", 0x09, point.as_int or point.as_double)
            fields = [
                field(1, field(1, name) + field(2, labels[name])) for name in sorted(labels)
            ]
            fields.append(field(2, sample + b"\x10" + varint(at)))
            series.append(field(1, b"".join(fields)))
    return b"".join(series)


def in_snappy(content: bytes) -> bytes:
    """Return `content` in the format of Snappy, as literals of 60 bytes."""
    chunks = [content[at : at + 60] for at in range(0, len(content), 60)]
    literals = (bytes([len(chunk) - 1 << 2]) + chunk for chunk in chunks)
    return varint(len(content)) + b"".join(literals)


class AppendOnly(Collector):
    """Writes what it gets to a Prometheus, and answers what that says."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def answer(self, request: ExportMetricsServiceRequest) -> tuple[int, bytes]:
        body = in_snappy(write_request(request))
        return await trio.to_thread.run_sync(self._write, body)

    def _write(self, body: bytes) -> tuple[int, bytes]:
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)) as to:
            headers = {
                "Content-Encoding": "snappy",
                "Content-Type": "application/x-protobuf",
                "X-Prometheus-Remote-Write-Version": "0.1.0",
            }
            to.request("POST", "/api/v1/write", body, headers)
            response = to.getresponse()
            return response.status, response.read()


async def exported(probe: str, targets: Iterable[str], slow: float) -> list[EventMetrics]:
    """Return what a keeper exports whose clock is slow by so many seconds."""
    endpoints = [Endpoint(target) for target in targets]
    keeper = StatsKeeper("http", probe, lambda: endpoints, clock=lambda: time.time() - slow)
    send, receive = trio.open_memory_channel[EventMetrics](len(endpoints))
    await keeper.run(channel_of(*(one(e.key) for e in endpoints)), send)
    return [export async for export in receive]


async def test_a_keeper_with_a_wrong_clock_does_not_affect_another(
    start_prometheus, caplog
):
    prometheus = await trio.to_thread.run_sync(start_prometheus)
    healthy = await exported("healthy", map(str, range(300)), slow=0)
    sick = await exported("sick", "ab", slow=3 * 3600)
    async with serving(AppendOnly(prometheus.port)) as app:
        exporter = OTLPExporter(app.url)
        await run(exporter, healthy[0])
        await run(exporter, *healthy[:150], *sick, *healthy[150:])
    found = await trio.to_thread.run_sync(prometheus.query, "probe_total")
    assert len(found) == 300
    assert {sample.labels["probe"] for sample in found} == {"healthy"}
    assert [m.partition("metrics: ")[2] for m in caplog.messages] == [
        "http/sick: refused the totals of 'a': status 400: 'out of bounds\\n'",
        "http/sick: refused the totals of 'b': status 400: 'out of bounds\\n'",
        "the totals of 2 targets were not delivered",
    ]


async def test_programs_that_differ_only_in_their_targets_do_not_affect_each_other(
    start_prometheus, caplog
):
    prometheus = await trio.to_thread.run_sync(start_prometheus)
    async with serving(AppendOnly(prometheus.port)) as app:
        for _ in range(2):
            # Of one name, but each with statistics of its own.
            for target, slow in (("a", 0), ("b", 1.5)):
                keeper = StatsKeeper("http", "homepage", list)
                exporter = OTLPExporter(app.url, statistics_of=[keeper])
                await run(exporter, *await exported("homepage", target, slow))
    found = await trio.to_thread.run_sync(prometheus.query, "statskeeper_results_accepted")
    assert len(found) == 4
    found = await trio.to_thread.run_sync(prometheus.query, "probe_total")
    assert {sample.labels["dst"] for sample in found} == {"a", "b"}
    assert not caplog.messages


async def test_a_receiver_that_only_appends_has_the_newest_totals_after_the_clock_went_back(
    start_prometheus, caplog
):
    prometheus = await trio.to_thread.run_sync(start_prometheus)
    behind = 0.0
    service = Service()
    prober = Prober(service.probe, lambda: TARGETS, interval=0.02, timeout=5)
    keeper = StatsKeeper(
        "http",
        "homepage",
        lambda: TARGETS,
        export_interval=0.1,
        clock=lambda: time.time() - behind,
    )
    results_send, results = trio.open_memory_channel[Any](100)
    exports_send, exports = trio.open_memory_channel[EventMetrics](0)
    with trio.fail_after(PATIENCE):
        async with serving(AppendOnly(prometheus.port)) as app:
            exporter = OTLPExporter(app.url, statistics_of=[keeper])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.run, results, exports_send)
                nursery.start_soon(exporter.run, exports)
                async with trio.open_nursery() as probers:
                    await probers.start(prober.run, results_send)
                    await until(lambda: len(app.requests) >= 5)
                    behind = 7200.0
                    requests = len(app.requests)
                    await until(lambda: len(app.requests) >= requests + 10)
                    probers.cancel_scope.cancel()
    found = await trio.to_thread.run_sync(prometheus.query, "probe_total")
    newest = {sample.labels["dst"]: sample.value for sample in found}
    assert newest == {k.labels["dst"]: k.metrics["total"] for k in keeper.snapshot()}
    [folded] = await trio.to_thread.run_sync(
        prometheus.query, "statskeeper_results_accepted"
    )
    assert folded.value == keeper.statistics().results_accepted
    refused = [m for m in caplog.messages if "refused" in m or "not delivered" in m]
    assert not refused
