"""The Prometheus output: connections, their requests and limits, on the mock clock."""

from __future__ import annotations

import pytest
import trio
from scraping import answers, export, feed, read_answers, request, server_of
from trio.testing import (
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from trio_statskeeper._http import _connection, _server
from trio_statskeeper.prometheus import PrometheusExporter, _page

ROOT = "trio-statskeeper: metrics are at /metrics\n"


async def statuses(*requests):
    return [status for status, _, _ in await answers(PrometheusExporter(), *requests)]


def connect(nursery, server, pair=memory_stream_pair):
    """Return the client's end of a connection, which is served, and then closed."""
    ours, stream = pair()

    async def serve():
        async with stream:
            await server.serve_stream(stream)

    nursery.start_soon(serve)
    return ours


async def all_from(stream):
    received = b""
    while chunk := await stream.receive_some():
        received += chunk
    return received


@pytest.fixture
def server():
    return server_of(PrometheusExporter())


# Requests


async def test_a_connection_stays_open_for_more_requests(autojump_clock, nursery, server):
    client = connect(nursery, server)
    for _ in range(3):
        await client.send_all(request("/"))
        [(status, _, body)] = read_answers(await client.receive_some(), request())
        assert (status, body.decode()) == (200, ROOT)


async def test_requests_that_come_at_once_are_answered_in_their_order():
    assert await statuses(
        request("/"), request("/x"), request("/", "POST"), request(), request("/", "HEAD")
    ) == [200, 404, 405, 200, 200]


async def test_the_connection_closes_if_the_client_asks_for_that(
    autojump_clock, nursery, server
):
    client = connect(nursery, server)
    await client.send_all(request("/", "GET", "Connection: close"))
    [(status, headers, _)] = read_answers(await all_from(client), request())
    assert (status, headers[b"connection"]) == (200, b"close")


async def test_http_1_0_gets_its_answer_as_it_is(autojump_clock, nursery):
    exporter = PrometheusExporter()
    await feed(exporter, export())
    client = connect(nursery, server_of(exporter))
    await client.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
    head, _, text = (await all_from(client)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"chunked" not in head
    [(_, _, body)] = await answers(exporter, request())
    assert text == body


@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy"])
async def test_head_gets_the_headers_of_get(path):
    exporter = PrometheusExporter()
    await feed(exporter, export())
    (_, of_get, body), (_, of_head, nothing) = await answers(
        exporter, request(path), request(path, "HEAD")
    )
    assert body
    assert nothing == b""
    assert of_get == of_head


@pytest.mark.parametrize(
    "target",
    [
        "/metrics?",
        "/metrics?x=%ff&name[]=a",
        "http://example.com/metrics",
        "HTTPS://user@example.com:99/metrics?x=/",
    ],
)
async def test_what_is_asked_for_may_have_a_query_and_a_host(target):
    [(status, headers, _)] = await answers(PrometheusExporter(), request(target))
    assert (status, headers[b"content-type"][:19]) == (200, b"text/plain; version")


@pytest.mark.parametrize("target", ["http://example.com", "http://example.com?x=/metrics"])
async def test_a_host_without_a_path_is_its_root(target):
    [(status, _, body)] = await answers(PrometheusExporter(), request(target))
    assert (status, body.decode()) == (200, ROOT)


async def test_a_scrape_is_given_what_the_request_asks_for():
    asked = []

    async def scrape(step, request):
        await trio.lowlevel.checkpoint()
        asked.append((request.header(b"accept"), request.parameters()))
        content_type = (b"Content-Type", b"text/plain")
        return _server.Answer((content_type,), iter([[b"a", b"b"], [b"c"]]))

    exporter = PrometheusExporter()
    server = server_of(exporter)
    server._resources["/metrics"] = scrape
    async with trio.open_nursery() as nursery:
        client = connect(nursery, server)
        await client.send_all(
            request("/metrics?name%5B%5D=a_total&name[]=b&name[]=&x=y")
            + request("/metrics", "GET", "Accept: text/plain", "accept: */*;q=0.1")
        )
        await wait_all_tasks_blocked()
        await client.send_eof()
        received = await all_from(client)
    answers = read_answers(received, request(), request())
    assert [body for _, _, body in answers] == [b"abc", b"abc"]
    assert asked == [
        ("", {"name[]": ["a_total", "b"], "x": ["y"]}),
        ("text/plain, */*;q=0.1", {}),
    ]


async def test_a_bug_within_an_answer_cuts_it_off_and_is_logged(
    autojump_clock, nursery, monkeypatch, caplog
):
    def scraped(*_):
        yield [b"half"]
        raise RuntimeError("a bug")

    monkeypatch.setattr(_page.Page, "scrape", scraped)
    monkeypatch.setattr(_server, "_PIECE_SIZE", 1)
    client = connect(nursery, server_of(PrometheusExporter()))
    await client.send_all(request() + request("/"))
    assert (await all_from(client)).endswith(b"\r\n4\r\nhalf\r\n")
    assert "a bug" in caplog.text


async def test_a_bug_in_a_connection_closes_it_alone_and_is_logged(
    autojump_clock, nursery, monkeypatch, caplog
):
    def fail(_):
        raise RuntimeError("a bug")

    server = server_of(PrometheusExporter())
    healthy = connect(nursery, server)
    with monkeypatch.context() as patched:
        patched.setattr(_connection, "_parse", fail)
        client = connect(nursery, server)
        await client.send_all(request())
        assert await all_from(client) == b""
    assert (await ask(healthy, "/"))[0] == 200
    [record] = caplog.records
    assert record.getMessage() == "a connection failed: RuntimeError('a bug')"
    assert record.exc_info


async def test_a_query_of_very_many_parameters_is_refused():
    assert await statuses(request("/metrics?" + "&".join(["a"] * 101))) == [400]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Upgrade: websocket\r\nConnection: Upgrade", 200),
        ("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A", 200),
    ],
)
async def test_an_upgrade_is_ignored(header, status):
    ask = request("/", "GET", header)
    assert await statuses(ask, ask) == [status, status]


async def test_connect_is_not_found():
    assert await statuses(request("example.com:443", "CONNECT")) == [404]


# Bodies


async def test_a_small_body_is_ignored():
    ask = request("/", "GET", "Content-Length: 3")
    assert await statuses(ask + b"abc", ask + b"abc") == [200, 200]


async def test_a_client_that_waits_before_it_sends_a_body_is_told_to_go_on(
    autojump_clock, nursery, server
):
    client = connect(nursery, server)
    expect = request("/", "POST", "Content-Length: 3", "Expect: 100-continue")
    await client.send_all(expect)
    assert (await client.receive_some()).startswith(b"HTTP/1.1 100 ")
    await client.send_all(b"abc")
    assert (await client.receive_some()).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("header", ["Transfer-Encoding: chunked", "Content-Length: 8193"])
async def test_a_large_body_or_one_of_any_length_is_refused(
    autojump_clock, nursery, server, header
):
    client = connect(nursery, server)
    await client.send_all(request("/", "GET", header, "Expect: 100-continue"))
    [(status, headers, _)] = read_answers(await all_from(client), request())
    assert (status, headers[b"connection"]) == (413, b"close")


async def test_a_client_can_read_why_its_body_is_refused_while_it_sends(
    autojump_clock, nursery, server
):
    client = connect(nursery, server)
    await client.send_all(request("/", "GET", "Content-Length: 1000000"))
    for _ in range(10):
        await client.send_all(b"x" * 100_000)
        await wait_all_tasks_blocked()
    [(status, _, _)] = read_answers(await all_from(client), request())
    assert status == 413


# What is not HTTP


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\0\xff" * 50 + b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\na b: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 20_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 99 + b"\r\n", 431),
        (b"GET / HTTP/1.1\nHost: x\n" + b"a:\n" * 99 + b"\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\na:\r\n" + b" b\r\n" * 98 + b"\r\n", 431),
        (b"GET /" + b"x" * 1_000_000, 431),
    ],
)
async def test_what_is_not_http_is_answered_and_the_connection_closed(
    autojump_clock, nursery, caplog, sent, status
):
    client = connect(nursery, server_of(PrometheusExporter()))
    await client.send_all(sent)
    received = await all_from(client)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in received
    assert caplog.messages == []


async def test_a_head_of_a_hundred_lines_is_read():
    headers = [f"a{number}:" for number in range(98)]
    assert await statuses(*[request("/", "GET", *headers)] * 2) == [200, 200]


@pytest.mark.parametrize("size", [1, 1_000])
async def test_empty_lines_before_a_request_are_ignored(
    autojump_clock, nursery, server, size
):
    client = connect(nursery, server)
    sent = b"\r\n" + request("/") + b"\r\n\r\n" + request("/")
    for begin in range(0, len(sent), size):
        await client.send_all(sent[begin : begin + size])
    await wait_all_tasks_blocked()
    await client.send_eof()
    answered = read_answers(await all_from(client), request(), request())
    assert [status for status, _, _ in answered] == [200, 200]


async def test_a_client_that_sends_empty_lines_only_is_disconnected_in_time(
    autojump_clock, nursery, server
):
    client = connect(nursery, server)

    async def send_slowly():
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await client.send_all(b"\r\n")
                await trio.sleep(1)

    nursery.start_soon(send_slowly)
    assert await time_until_closed(client) == _connection._REQUEST_TIMEOUT


@pytest.mark.parametrize(
    ("sent", "status_line"),
    [
        (request("/"), b"HTTP/1.1 200 OK"),
        (request("/x"), b"HTTP/1.1 404 Not Found"),
        (b"GET / HTTP/2.0\r\n\r\n", b"HTTP/1.1 505 HTTP Version Not Supported"),
        (
            request("/", "POST", "Content-Length: 3", "Expect: 100-continue"),
            b"HTTP/1.1 100 Continue",
        ),
    ],
)
async def test_the_status_line_has_a_reason(nursery, server, sent, status_line):
    client = connect(nursery, server)
    await client.send_all(sent)
    assert (await client.receive_some()).split(b"\r\n")[0] == status_line
    nursery.cancel_scope.cancel()


async def test_a_client_that_goes_away_within_its_request_is_no_error(
    autojump_clock, server, caplog
):
    async with trio.open_nursery() as nursery:
        client = connect(nursery, server)
        await client.send_all(request()[:20])
        await client.aclose()
    assert caplog.messages == []


# Deadlines


async def time_until_closed(stream):
    began = trio.current_time()
    await all_from(stream)
    return trio.current_time() - began


@pytest.mark.parametrize("sent", [b"", request()[:20]])
async def test_a_request_has_to_come_in_time(autojump_clock, nursery, server, sent):
    client = connect(nursery, server)
    await trio.sleep(4)
    await client.send_all(sent)
    assert await time_until_closed(client) == _connection._REQUEST_TIMEOUT - 4


async def test_a_request_that_comes_byte_by_byte_has_no_more_time(
    autojump_clock, nursery, server
):
    client = connect(nursery, server)

    async def send_slowly():
        with pytest.raises(trio.BrokenResourceError):
            for byte in request("/" + "x" * 100):
                await client.send_all(bytes([byte]))
                await trio.sleep(1)

    nursery.start_soon(send_slowly)
    assert await time_until_closed(client) == _connection._REQUEST_TIMEOUT


async def test_an_idle_connection_stays_open_for_longer(autojump_clock, nursery, server):
    client = connect(nursery, server)
    for _ in range(2):
        await client.send_all(request("/"))
        assert await client.receive_some()
        await trio.sleep(60)
    assert await time_until_closed(client) == _connection._IDLE_TIMEOUT - 60


async def test_the_next_request_has_to_come_in_time_once_it_has_begun(
    autojump_clock, nursery, server
):
    client = connect(nursery, server)
    await client.send_all(request("/") + request("/")[:5])
    assert await client.receive_some()
    assert await time_until_closed(client) == _connection._REQUEST_TIMEOUT
    client = connect(nursery, server)
    await client.send_all(request("/"))
    assert await client.receive_some()
    await trio.sleep(30)
    await client.send_all(request("/")[:5])
    assert await time_until_closed(client) == _connection._REQUEST_TIMEOUT
    client = connect(nursery, server)
    await client.send_all(request("/"))
    assert await client.receive_some()
    await trio.sleep(_connection._IDLE_TIMEOUT - 3)
    await client.send_all(request("/")[:5])
    assert await time_until_closed(client) == 3


async def test_a_client_that_does_not_read_is_disconnected(autojump_clock, server, caplog):
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        client = connect(nursery, server, lockstep_stream_pair)
        await client.send_all(request())
    assert trio.current_time() - began == _connection._UNREAD_TIMEOUT
    assert caplog.messages == []


async def test_a_client_that_reads_very_slowly_is_disconnected(autojump_clock, monkeypatch):
    monkeypatch.setattr(_server, "_PIECE_SIZE", 1)
    exporter = PrometheusExporter()
    await feed(exporter, *(export(dst=str(number)) for number in range(200)))
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        client = connect(nursery, server_of(exporter), lockstep_stream_pair)
        await client.send_all(request())
        while await client.receive_some():
            await trio.sleep(_connection._UNREAD_TIMEOUT - 1)
    assert trio.current_time() - began < _server._ANSWER_TIMEOUT + 20


async def test_a_client_that_stays_after_the_last_answer_is_not_waited_for(
    autojump_clock, server
):
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        client = connect(nursery, server)
        await client.send_all(request("/", "GET", "Connection: close"))
    assert trio.current_time() - began == _connection._LINGER_TIMEOUT


# Limits


def server_with(max_connections, max_scrapes=5):
    exporter = PrometheusExporter(max_connections=max_connections, max_scrapes=max_scrapes)
    return server_of(exporter)


async def is_open(client):
    with trio.move_on_after(0.01):
        return await client.receive_some() != b""
    return True


async def ask(client, path="/"):
    await client.send_all(request(path))
    [answer] = read_answers(await client.receive_some(), request(path))
    return answer


async def test_beyond_the_limit_the_connection_that_has_waited_longest_is_closed(
    autojump_clock, nursery
):
    server = server_with(max_connections=3)
    clients = []
    for _ in range(3):
        clients.append(connect(nursery, server))
        await wait_all_tasks_blocked()
    await clients[1].send_all(request()[:10])  # which is not a request
    assert (await ask(clients[0]))[0] == 200
    for newcomer in range(3, 6):
        clients.append(connect(nursery, server))
        assert (await ask(clients[newcomer]))[0] == 200
    assert [await is_open(client) for client in clients] == [False] * 3 + [True] * 3


async def test_a_connection_that_has_ended_leaves_its_place_to_another(
    autojump_clock, nursery
):
    server = server_with(max_connections=2)
    stays = connect(nursery, server)
    await wait_all_tasks_blocked()
    ends = connect(nursery, server)
    await wait_all_tasks_blocked()
    await ends.aclose()
    await wait_all_tasks_blocked()
    assert (await ask(connect(nursery, server)))[0] == 200
    assert await is_open(stays)


async def test_a_connection_that_is_being_answered_is_not_closed_for_another(
    autojump_clock, nursery
):
    server = server_with(max_connections=2)
    answered = [connect(nursery, server, lockstep_stream_pair) for _ in range(2)]
    for client in answered:
        await client.send_all(request())
    await wait_all_tasks_blocked()
    refused = connect(nursery, server)
    status, headers, _ = await ask(refused, "/")
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert headers[b"connection"] == b"close"
    assert not await is_open(refused)
    for client in answered:
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_few_connections_beyond_the_limit_are_open_at_a_time_and_not_for_long(
    autojump_clock,
    nursery,
):
    server = server_with(max_connections=1)
    answered = connect(nursery, server, lockstep_stream_pair)
    await answered.send_all(request())
    await wait_all_tasks_blocked()
    began = trio.current_time()
    refused = [connect(nursery, server) for _ in range(20)]
    await wait_all_tasks_blocked()
    are_open = [await is_open(client) for client in refused]
    assert sum(are_open) == _server._MAX_REFUSED
    for client in refused:
        await all_from(client)
    assert trio.current_time() - began == _server._REFUSAL_TIMEOUT


async def test_a_request_of_a_connection_that_is_closed_for_another_is_not_answered(
    autojump_clock,
    nursery,
    caplog,
):
    answered = []

    async def note(step, request):
        answered.append(request)
        await trio.sleep_forever()

    server = server_with(max_connections=1)
    resources, server._resources = server._resources, {"/metrics": note}
    first = connect(nursery, server)
    await wait_all_tasks_blocked()
    await first.send_all(request() * 2)
    server._make_room()  # in the same step
    assert await all_from(first) == b""
    assert answered == []
    server._resources = resources
    second = connect(nursery, server)
    assert (await ask(second))[0] == 200
    assert caplog.messages == []


async def test_few_scrapes_are_answered_at_a_time(autojump_clock, nursery):
    server = server_with(max_connections=10, max_scrapes=2)
    clients = [connect(nursery, server, lockstep_stream_pair) for _ in range(2)]
    for client in clients:
        await client.send_all(request())
    await wait_all_tasks_blocked()
    further = connect(nursery, server)
    status, headers, _ = await ask(further, "/metrics")
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert (await ask(further, "/-/healthy"))[0] == 200
    while not (await clients[0].receive_some()).endswith(b"0\r\n\r\n"):
        pass
    assert (await ask(further, "/metrics"))[0] == 200
