"""What outputs do when a collector, a scraper or a disk fails: docs/failures.md."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import attrs
import h11
import httpx2
import pytest
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from real_servers import missing

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    ProbeResult,
    StatsKeeper,
    _outage,
)
from trio_statskeeper._http import _connection
from trio_statskeeper.lines import from_json, write_lines
from trio_statskeeper.otlp import OTLPExporter, _delivery
from trio_statskeeper.prometheus import PrometheusExporter

PATIENCE = 30
KEYS = ["a", "b"]


async def until(condition):
    while True:
        await trio.sleep(0.005)
        if condition():
            return


def make_keeper():
    endpoints = [Endpoint(key) for key in KEYS]
    return StatsKeeper("http", "homepage", lambda: endpoints, export_interval=0.05)


def totals_of(exports):
    return {export.labels["dst"]: export.metrics["total"] for export in exports}


@attrs.frozen
class One:
    """A result that counts one."""

    target: str

    def metrics(self):
        return {"total": 1}


class Feeder:
    """Sends a keeper results without end, until it is told to stop."""

    def __init__(self):
        self.send, self.results = trio.open_memory_channel[ProbeResult](10)
        self.sent = 0
        self.stopped = trio.Event()

    async def feed(self):
        with self.send, suppress(trio.BrokenResourceError):
            while not self.stopped.is_set():
                for key in KEYS:
                    await self.send.send(One(key))
                    self.sent += 1
                await trio.sleep(0.005)


async def reset(stream):
    """Close a connection in such a way that the other side is told of an error."""
    await trio.lowlevel.checkpoint()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


# The collector


@pytest.fixture
def no_long_pauses(monkeypatch):
    """Retry at once, and ask no proxy."""
    monkeypatch.setattr(_delivery, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(_delivery, "_LONGEST_DELAY", 0.1)
    monkeypatch.setenv("NO_PROXY", "*")


async def request_on(stream, connection):
    """Return the body of the next request, or None if there is none."""
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(2**16))
        elif type(event) is h11.Data:
            body += event.data
        elif type(event) is h11.EndOfMessage:
            return body
        elif type(event) is h11.ConnectionClosed:
            return None


class Collector:
    """Treats so many connections badly, and all further ones well."""

    def __init__(self, fault=None, faults=0):
        self.fault = fault
        self.faults_left = faults
        self.well = trio.Event()
        self.points = []

    async def __call__(self, stream):
        # A client may give up at any time.
        with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
            async with stream:
                if self.faults_left:
                    self.faults_left -= 1
                    await self.fault(stream)
                else:
                    await self.be_good(stream)

    async def be_good(self, stream):
        connection = h11.Connection(h11.SERVER)
        while (body := await request_on(stream, connection)) is not None:
            self.take(body)
            answer = h11.Response(status_code=200, headers=[("Content-Length", "0")])
            await stream.send_all(connection.send(answer))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
            self.well.set()

    def take(self, body):
        request = ExportMetricsServiceRequest.FromString(body)
        self.points += [
            (point.attributes[-1].value.string_value, point)
            for of_resource in request.resource_metrics
            for metric in of_resource.scope_metrics[0].metrics
            if metric.name == "probe_total"
            for point in metric.sum.data_points
        ]

    def of(self, key):
        return [point for of_key, point in self.points if of_key == key]


async def hang_up(stream):
    await trio.lowlevel.checkpoint()


async def hang_up_within_the_request(stream):
    await stream.receive_some(20)


async def reset_within_the_request(stream):
    await stream.receive_some(20)
    await reset(stream)


async def hang_up_after_the_request(stream):
    await request_on(stream, h11.Connection(h11.SERVER))


async def reset_after_the_request(stream):
    await hang_up_after_the_request(stream)
    await reset(stream)


async def take_too_long(stream):
    await hang_up_after_the_request(stream)
    await trio.sleep_forever()


async def take_too_long_to_end(stream):
    await hang_up_after_the_request(stream)
    await stream.send_all(HALF_A_BODY)
    await trio.sleep_forever()


def say(answer, then=hang_up):
    async def answering(stream):
        await hang_up_after_the_request(stream)
        await stream.send_all(answer)
        await then(stream)

    return answering


HALF_A_HEAD = b"HTTP/1.1 200 OK\r\nContent-Le"
HALF_A_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"


def answer(status, *headers, body=b""):
    head = [b"HTTP/1.1 %d X" % status, b"Connection: close", *headers]
    head.append(b"Content-Length: %d" % len(body))
    return say(b"\r\n".join(head) + b"\r\n\r\n" + body)


def partial_success():
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = 1
    response.partial_success.error_message = "too old"
    return answer(200, body=response.SerializeToString())


@asynccontextmanager
async def delivering(url, **options):
    """Have a keeper's exports delivered; yield what feeds it. In the end all is sent."""
    feeder = Feeder()
    keeper = make_keeper()
    send, receive = trio.open_memory_channel[EventMetrics](0)
    exporter = OTLPExporter(url, compression=None, **options)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run, feeder.results, send)
            await nursery.start(exporter.run, receive)
            nursery.start_soon(feeder.feed)
            yield keeper
            feeder.stopped.set()
    assert keeper.statistics().results_accepted == feeder.sent


def assert_it_has_all(collector, keeper):
    """See that what came was cumulative, in order, and at last the keeper's totals."""
    assert totals_of(keeper.snapshot()).keys() == set(KEYS)
    for kept in keeper.snapshot():
        points = collector.of(kept.labels["dst"])
        values = [point.as_int for point in points]
        assert values == sorted(values)
        assert values[-1] == kept.metrics["total"]
        times = [point.time_unix_nano for point in points]
        assert times == sorted(times)
        start = round(kept.start_timestamp * 1e9)
        assert {point.start_time_unix_nano for point in points} == {start}


RETRIED, GIVEN_UP = "; retrying, with ", "; not retried"

# Which of them it is depends on which side is faster.
CUT_OFF = "(Connect|Write|Read|RemoteProtocol)Error: "


@pytest.mark.parametrize(
    ("fault", "logged", "consequence"),
    [
        (hang_up, CUT_OFF, RETRIED),
        (reset, CUT_OFF, RETRIED),
        (hang_up_within_the_request, CUT_OFF, RETRIED),
        (reset_within_the_request, CUT_OFF, RETRIED),
        (hang_up_after_the_request, "RemoteProtocolError: ", RETRIED),
        (reset_after_the_request, "ReadError: ", RETRIED),
        (say(HALF_A_HEAD), "RemoteProtocolError: ", RETRIED),
        (say(HALF_A_HEAD, then=reset), "ReadError: ", RETRIED),
        (say(HALF_A_BODY), "RemoteProtocolError: ", RETRIED),
        (say(HALF_A_BODY, then=reset), "ReadError: ", RETRIED),
        (take_too_long, "no answer within 0.5 s", RETRIED),
        (take_too_long_to_end, "no answer within 0.5 s", RETRIED),
        (answer(429, b"Retry-After: 0"), "status 429", RETRIED),
        (answer(429, b"Retry-After: \xff"), "status 429", RETRIED),
        (answer(503), "status 503", RETRIED),
        (answer(503, b"Retry-After: soon"), "status 503", RETRIED),
        (answer(400, body=b"bad"), "http/homepage: refused the totals of .*'bad'", ""),
        (answer(500), "http/homepage: status 500", GIVEN_UP),
        (answer(101, b"Upgrade: h2c"), "RemoteProtocolError: ", RETRIED),
        (
            answer(307, b"Location: http://localhost/x"),
            "http/homepage: status 307",
            GIVEN_UP,
        ),
        (answer(307, b"Location: :nowhere:"), "http/homepage: status 307", GIVEN_UP),
        (answer(307, b"Location: http://[::1"), "http/homepage: status 307", GIVEN_UP),
        (answer(307, b"Location: \xff\xfe://"), "http/homepage: status 307", GIVEN_UP),
        (partial_success(), "http/homepage: a partial success: 'too old', 1", GIVEN_UP),
        (say(b"\0\xff" * 50 + b"\r\n\r\n"), "RemoteProtocolError: ", RETRIED),
        (
            say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz"),
            "RemoteProtocolError: ",
            RETRIED,
        ),
        (
            say(b"HTTP/1.1 200 OK\r\nContent-Length: z\r\n\r\n"),
            "RemoteProtocolError: ",
            RETRIED,
        ),
        (
            say(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000),
            "RemoteProtocolError: ",
            RETRIED,
        ),
    ],
)
async def test_a_collector_that_fails_gets_the_totals_when_it_recovers(
    no_long_pauses, caplog, fault, logged, consequence
):
    caplog.set_level("INFO", "trio_statskeeper")
    collector = Collector(fault, faults=2)
    slow = fault in (take_too_long, take_too_long_to_end)
    async with (
        server(collector) as url,
        delivering(url, timeout=0.5 if slow else PATIENCE) as keeper,
    ):
        await collector.well.wait()
    assert_it_has_all(collector, keeper)
    assert collector.faults_left == 0
    first, *_, last = caplog.messages
    name = f"collector {url}/v1/metrics: "
    assert re.match(f"{re.escape(name)}{logged}.*{consequence}", first)
    assert last in (f"{name}recovered", f"{name}http/homepage: recovered")


@asynccontextmanager
async def server(handler):
    """Serve TCP on loopback, until the block is left."""
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, handler, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_exports_accepted_before_a_disconnection_are_sent_again(no_long_pauses):
    async def take_and_hang_up(stream):
        collector.take(await request_on(stream, h11.Connection(h11.SERVER)))

    collector = Collector(take_and_hang_up, faults=1)
    send, receive = trio.open_memory_channel[EventMetrics](1)
    with send:
        send.send_nowait(EventMetrics(5, 2, {"dst": "a"}, {"total": 7}))
    with trio.fail_after(PATIENCE):
        async with server(collector) as url:
            await OTLPExporter(url, compression=None, timeout=PATIENCE).run(receive)
    taken, again = collector.of("a")
    assert taken == again
    assert taken.as_int == 7


async def test_a_success_with_an_invalid_body_is_a_success(no_long_pauses, caplog):
    caplog.set_level("INFO", "trio_statskeeper")
    collector = Collector(answer(200, b"Content-Encoding: gzip", body=b"abc"), faults=1)
    async with server(collector) as url, delivering(url) as keeper:
        await collector.well.wait()
    assert_it_has_all(collector, keeper)
    assert caplog.messages == []


@pytest.fixture
async def bound():
    """A socket that has a port, but does not listen: whoever connects is refused."""
    with trio.socket.socket() as bound:
        await bound.bind(("127.0.0.1", 0))
        yield bound


def url_of(bound):
    return f"http://127.0.0.1:{bound.getsockname()[1]}"


async def test_a_collector_that_starts_late_gets_the_totals(no_long_pauses, caplog, bound):
    caplog.set_level("INFO", "trio_statskeeper")
    collector = Collector()
    async with trio.open_nursery() as nursery:
        async with delivering(url_of(bound)) as keeper:
            await until(lambda: caplog.messages and keeper.statistics().passes >= 3)
            bound.listen()
            listener = trio.SocketListener(bound)
            nursery.start_soon(trio.serve_listeners, collector, [listener])
            await collector.well.wait()
        nursery.cancel_scope.cancel()
    assert_it_has_all(collector, keeper)
    first, *_, last = (message.partition(": ")[2] for message in caplog.messages)
    assert first.startswith("ConnectError: ")
    assert last == "recovered"


async def test_a_collector_that_stops_gets_the_totals_when_it_starts_again(
    no_long_pauses, caplog
):
    caplog.set_level("INFO", "trio_statskeeper")
    collector = Collector()
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        async with delivering(f"http://127.0.0.1:{port}") as keeper:
            for _ in range(3):
                async with trio.open_nursery() as serving:
                    serving.start_soon(trio.serve_listeners, collector, [listener])
                    collector.well = trio.Event()
                    await collector.well.wait()
                    serving.cancel_scope.cancel()
                caplog.clear()
                passes = keeper.statistics().passes + 3
                await until(lambda p=passes: keeper.statistics().passes >= p)
                await until(lambda: "retrying" in caplog.text)
                [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, collector, [listener])
        nursery.cancel_scope.cancel()
    assert_it_has_all(collector, keeper)
    assert caplog.messages[-1].endswith(": recovered")


async def test_a_collector_that_never_starts_only_prevents_the_delivery(
    no_long_pauses, caplog, bound
):
    async with delivering(url_of(bound), timeout=0.2) as keeper:
        await until(lambda: keeper.statistics().passes >= 3)
    assert len(keeper.snapshot()) == 2
    assert caplog.messages[-1].endswith(": the totals of 2 targets were not delivered")


# The scraper


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def connect_and_say_nothing(stream):
    await trio.lowlevel.checkpoint()


async def send_half_a_request(stream):
    await stream.send_all(GET[:20])


async def send_something_else(stream):
    await stream.send_all(b"\0\xff" * 50 + b"\r\n\r\n")


async def send_a_request(stream):
    await stream.send_all(GET)


async def read_half_of_the_answer(stream):
    await stream.send_all(GET)
    assert (await stream.receive_some(15)) == b"HTTP/1.1 200 OK"


async def read_the_answer(stream):
    await read_half_of_the_answer(stream)
    end = b""
    while end != b"\r\n0\r\n\r\n":
        received = await stream.receive_some()
        assert received
        end = (end + received)[-7:]


async def stay(stream):
    await trio.lowlevel.checkpoint()


async def close(stream):
    await stream.aclose()


@asynccontextmanager
async def a_big_page():
    """Serve a page of more than sockets buffer; yield its address, and what feeds it."""
    exporter = PrometheusExporter(0)
    send, receive = trio.open_memory_channel[EventMetrics](0)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(exporter.run, receive)
            await send.send(EventMetrics(5, 0, {"dst": "big"}, {"page": "x" * 8_000_000}))
            yield address, send
            nursery.cancel_scope.cancel()


async def scraped(address):
    async with httpx2.AsyncClient(trust_env=False) as client:
        response = await client.get("http://{}:{}/metrics".format(*address))
    assert response.status_code == 200
    samples = dict(line.rsplit(" ", 1) for line in response.text.splitlines())
    return float(samples['probe_total{dst="a"}'])


@pytest.mark.parametrize("then", [stay, close, reset])
@pytest.mark.parametrize(
    "fault",
    [
        connect_and_say_nothing,
        send_half_a_request,
        send_something_else,
        send_a_request,
        read_half_of_the_answer,
        read_the_answer,
    ],
)
async def test_the_next_scrape_after_a_failed_one_is_right(caplog, fault, then):
    async with a_big_page() as (address, exports):
        await exports.send(EventMetrics(5, 0, {"dst": "a"}, {"total": 1}))
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await fault(stream)
            await then(stream)
            await exports.send(EventMetrics(6, 0, {"dst": "a"}, {"total": 2}))
            assert await scraped(address) == 2
    assert caplog.messages == []


@pytest.mark.parametrize("fault", [connect_and_say_nothing, send_half_a_request])
async def test_a_scraper_that_sends_no_request_is_disconnected(monkeypatch, caplog, fault):
    monkeypatch.setattr(_connection, "_REQUEST_TIMEOUT", 0.1)
    async with a_big_page() as (address, _):
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await fault(stream)
            assert await stream.receive_some() == b""
    assert caplog.messages == []


async def test_a_scraper_that_does_not_send_http_is_refused(caplog):
    async with a_big_page() as (address, _):
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await send_something_else(stream)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
    assert caplog.messages == []


# The disk


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.json"


def opened(path):
    return open(path, "w", encoding="utf-8")  # noqa: PTH123  # as sys.stdout is


def texts_of(path):
    """Return the lines without what a test put before them."""
    return path.read_bytes().rpartition(b"\0")[2].decode().splitlines()


def is_whole(line):
    with suppress(ValueError):
        return bool(from_json(line))
    return False


def close_descriptors_of(path):
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if entry.readlink() == path:
                os.close(int(entry.name))


class Written:
    """A keeper whose exports are written, until writing fails."""

    def __init__(self, path):
        self.path = path
        self.feeder = Feeder()
        self.keeper = make_keeper()
        self.raised = None
        self.keeper_raised = None

    async def write(self, exports):
        try:
            await write_lines(exports, self.path, json=True)
        except OSError as error:
            self.raised = error

    async def keep(self, exports):
        try:
            await self.keeper.run(self.feeder.results, exports)
        except trio.BrokenResourceError as error:
            self.keeper_raised = error

    @asynccontextmanager
    async def writing(self):
        send, receive = trio.open_memory_channel[EventMetrics](0)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keep, send)
                nursery.start_soon(self.write, receive)
                nursery.start_soon(self.feeder.feed)
                yield

    def assert_it_failed(self, number):
        assert self.raised.errno == number
        assert self.raised.filename == str(self.path or "standard output")
        assert type(self.keeper_raised) is trio.BrokenResourceError
        assert self.keeper.statistics().results_accepted == self.feeder.sent

    async def assert_the_next_file_is_right(self, path):
        """See that another run counts on, and writes all that was sent before."""
        sent = self.feeder.sent
        self.feeder, self.path, self.raised = Feeder(), path, None
        async with self.writing():
            await until(lambda: self.feeder.sent > 10)
            self.feeder.stopped.set()
        assert self.raised is None
        assert self.keeper.statistics().results_accepted == sent + self.feeder.sent
        exports = [from_json(line) for line in texts_of(path) if is_whole(line)]
        assert totals_of(exports) == totals_of(self.keeper.snapshot())
        assert sum(totals_of(exports).values()) == sent + self.feeder.sent


async def test_standard_output_on_a_full_disk_ends_writing_and_loses_no_total(
    path, monkeypatch
):
    full = opened("/dev/full")
    monkeypatch.setattr(sys, "stdout", full)
    written = Written(None)
    async with written.writing():
        pass
    monkeypatch.undo()
    with suppress(OSError):
        full.close()
    written.assert_it_failed(errno.ENOSPC)
    await written.assert_the_next_file_is_right(path)


async def test_a_closed_standard_output_ends_writing_and_loses_no_total(path, monkeypatch):
    closed = opened(os.devnull)
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    written = Written(None)
    async with written.writing():
        pass
    monkeypatch.undo()
    written.assert_it_failed(errno.EBADF)
    await written.assert_the_next_file_is_right(path)


# Far beyond what else this process might write.
SIZE = 20_000_000


@contextmanager
def room_for(size):
    """Let no file be larger than `size`: what is written beyond it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, which has room for 64 kB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        missing(f"a small disk can't be mounted: {mounted.stderr}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@contextmanager
def full(path):
    ballast = path.with_name("ballast")
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1000)
    yield
    ballast.unlink()


@contextmanager
def no_larger(path):
    with room_for(path.stat().st_size + 1_500):
        yield


@contextmanager
def closed_by_somebody_else(path):
    close_descriptors_of(path)
    yield


@contextmanager
def without_its_folder(path):
    path.parent.rename(path.parent.with_name("old"))
    yield
    path.parent.mkdir()


@contextmanager
def replaced_by_a_directory(path):
    path.unlink()
    path.mkdir()
    yield
    path.rmdir()


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        (full, errno.ENOSPC),
        (no_larger, errno.EFBIG),
        (closed_by_somebody_else, errno.EBADF),
        (without_its_folder, errno.ENOENT),
        (replaced_by_a_directory, errno.EISDIR),
    ],
)
async def test_a_file_that_cannot_be_written_for_a_while_loses_no_total(
    small_disk, monkeypatch, caplog, damaged, fault
):
    caplog.set_level("INFO", "trio_statskeeper")
    monkeypatch.setattr(_outage, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(_outage, "_LONGEST_DELAY", 0.2)
    path = small_disk / "logs" / "metrics.json"
    path.parent.mkdir()
    written = Written(path)
    async with written.writing():
        await until(lambda: path.exists() and path.stat().st_size)
        with damaged(path):
            await until(lambda: "; retrying" in caplog.text)
            passes = written.keeper.statistics().passes + 3
            await until(lambda: written.keeper.statistics().passes >= passes)
        await until(lambda: ": recovered" in caplog.text)
        written.feeder.stopped.set()
    assert written.raised is written.keeper_raised is None
    started, ended = caplog.messages
    assert started == f"{path}: {os.strerror(fault)}; retrying"
    assert re.fullmatch(f"{path}: recovered(; [1-9][0-9]* exports were lost)?", ended)
    whole = [from_json(line) for line in texts_of(path) if is_whole(line)]
    assert totals_of(whole) == totals_of(written.keeper.snapshot())
    assert sum(totals_of(whole).values()) == written.feeder.sent


async def test_lines_are_written_even_if_other_threads_never_end(path):
    release = threading.Event()
    limiter = trio.to_thread.current_default_thread_limiter()
    written = Written(path)
    async with trio.open_nursery() as nursery:
        for _ in range(int(limiter.total_tokens)):
            nursery.start_soon(trio.to_thread.run_sync, release.wait)
        try:
            await until(lambda: not limiter.available_tokens)
            async with written.writing():
                await until(lambda: path.exists() and path.stat().st_size)
                written.feeder.stopped.set()
        finally:
            release.set()
    assert written.raised is None
    exports = [from_json(line) for line in texts_of(path)]
    assert totals_of(exports) == totals_of(written.keeper.snapshot())


@pytest.fixture
def pipe(tmp_path):
    """A FIFO that has a reader, and that reader."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as reader:
        yield path, reader


def fill(fifo):
    with os.fdopen(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb", 0) as writer:
        while writer.write(b"\0" * 512):
            pass


async def test_a_pipe_without_a_reader_ends_writing_and_loses_no_total(path, pipe):
    fifo, reader = pipe
    written = Written(fifo)
    async with written.writing():
        await until(reader.read)
        reader.close()
    written.assert_it_failed(errno.EPIPE)
    await written.assert_the_next_file_is_right(path)


async def test_a_stuck_disk_delays_ticks_and_loses_no_total(pipe, caplog):
    fifo, reader = pipe
    fill(fifo)
    written = Written(fifo)
    read_lines = []

    async def read():
        found = await trio.to_thread.run_sync(texts_of, fifo, abandon_on_cancel=True)
        read_lines.extend(found)

    async with written.writing():
        # Should the test fail, the reader goes: else the write would never end.
        with reader:
            async with trio.open_nursery() as nursery:
                # To feed so many takes longer than some export intervals.
                await until(lambda: written.keeper.statistics().results_accepted >= 100)
                nursery.start_soon(read)
                await until(lambda: written.keeper.statistics().ticks_missed)
                written.feeder.stopped.set()
    assert written.raised is None
    assert written.keeper_raised is None
    assert caplog.messages == []
    assert len(read_lines) == written.keeper.statistics().exports_sent
    totals = totals_of(map(from_json, read_lines))
    assert totals == totals_of(written.keeper.snapshot())
    assert sum(totals.values()) == written.feeder.sent
