"""The Prometheus output: TLS."""

from __future__ import annotations

import re
import ssl

import pytest
import trio
import trustme
from helpers import serve
from scraping import export, feed, read_answers, request, server_of
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from trio_statskeeper._http import _connection
from trio_statskeeper.prometheus import PrometheusExporter

CA = trustme.CA()


@pytest.fixture
def context():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CA.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def trusting():
    """The context of a client."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


def connect(nursery, server):
    """Return the client's end of a connection, which is served, and then closed."""
    ours, stream = memory_stream_pair()

    async def run():
        async with stream:
            await server.serve_stream(stream)

    nursery.start_soon(run)
    return ours


def encrypted(stream, context):
    return trio.SSLStream(stream, context, server_hostname="localhost")


async def all_from(stream):
    received = b""
    while chunk := await stream.receive_some():
        received += chunk
    return received


async def test_answers_are_encrypted_and_their_end_is_announced(
    autojump_clock, nursery, context, trusting
):
    exporter = PrometheusExporter(ssl_context=context)
    await feed(exporter, export())
    client = encrypted(connect(nursery, server_of(exporter)), trusting)
    await client.send_all(request("/"))
    [(status, _, _)] = read_answers(await client.receive_some(), request())
    assert status == 200
    await client.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
    # An end without close_notify would be an error.
    assert b"probe_total{" in await all_from(client)
    await client.aclose()
    assert trio.current_time() == 0


async def test_a_client_need_not_announce_that_it_closes(autojump_clock, context, trusting):
    async with trio.open_nursery() as nursery:
        stream = connect(nursery, server_of(PrometheusExporter(ssl_context=context)))
        client = encrypted(stream, trusting)
        await client.send_all(request("/", "GET", "Connection: close"))
        assert (await all_from(client)).startswith(b"HTTP/1.1 200 ")
    assert trio.current_time() == _connection._LINGER_TIMEOUT


async def test_a_client_that_sends_too_much_can_read_that(
    autojump_clock, nursery, context, trusting
):
    client = encrypted(
        connect(nursery, server_of(PrometheusExporter(ssl_context=context))), trusting
    )
    await client.send_all(request("/", "GET", "Content-Length: 1000000"))
    await client.send_all(b"x" * 100_000)
    [(status, _, _)] = read_answers(await all_from(client), request())
    assert status == 413


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", request("/")])
async def test_a_handshake_has_to_come_in_time_and_to_be_one(
    autojump_clock, context, caplog, sent
):
    async with trio.open_nursery() as nursery:
        client = connect(nursery, server_of(PrometheusExporter(ssl_context=context)))
        await client.send_all(sent)
    assert trio.current_time() == (0 if b"GET" in sent else _connection._REQUEST_TIMEOUT)
    assert caplog.messages == []


async def test_a_client_that_does_not_read_the_last_answer_is_not_waited_for(
    autojump_clock, context, trusting
):
    async with trio.open_nursery() as nursery:
        stream = connect(nursery, server_of(PrometheusExporter(ssl_context=context)))
        client = encrypted(stream, trusting)
        await client.send_all(request("/", "GET", "Connection: close"))
        await wait_all_tasks_blocked()
    assert trio.current_time() == _connection._LINGER_TIMEOUT


async def test_encrypted_connections_are_limited_too(
    autojump_clock, nursery, context, trusting
):
    server = server_of(PrometheusExporter(ssl_context=context))
    server._max_connections = 0  # as if all were being answered
    client = encrypted(connect(nursery, server), trusting)
    await client.send_all(request("/"))
    assert (await all_from(client)).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("authority", "is_served"), [(CA, True), (trustme.CA(), False), (None, False)]
)
async def test_certificates_of_clients_can_be_demanded(
    nursery, context, trusting, authority, is_served
):
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)
    if authority is not None:
        authority.issue_cert("client").configure_cert(trusting)
    client = encrypted(
        connect(nursery, server_of(PrometheusExporter(ssl_context=context))), trusting
    )
    try:
        await client.send_all(request("/"))
        received = await client.receive_some()
    except trio.BrokenResourceError:
        assert not is_served
    else:
        assert is_served
        assert received.startswith(b"HTTP/1.1 200 ")


async def test_over_a_socket_one_connection_that_fails_ends_no_other(
    nursery, context, trusting, caplog
):
    address = await serve(nursery, PrometheusExporter(0, ssl_context=context))
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(request())
        with pytest.raises(trio.BrokenResourceError):
            await all_from(encrypted(stream, trusting))
    async with await trio.open_tcp_stream(*address) as stream:
        client = encrypted(stream, trusting)
        await client.send_all(request())
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (True, TypeError, "ssl_context must be an SSLContext or None, got True"),
        (
            ssl.create_default_context(),
            ValueError,
            "such as ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), got one for cl",
        ),
    ],
)
def test_a_context_that_can_not_serve_is_refused(context, error, message):
    with pytest.raises(error, match=re.escape(message)):
        PrometheusExporter(ssl_context=context)
