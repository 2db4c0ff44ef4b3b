"""The Prometheus output: HTTP."""

from __future__ import annotations

import errno
import math
import re
import socket
from contextlib import suppress

import httpx2
import pytest
import trio
from helpers import channel_of, make_keeper, serve
from scraping import export, feed, scrape, server_of
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper._http import _connection, _listeners, _server
from trio_statskeeper.prometheus import PrometheusExporter, _exporter


async def get(address, path="/metrics", method="GET"):
    async with httpx2.AsyncClient(trust_env=False) as client:
        host, port = address
        host = f"[{host}]" if ":" in host else host
        return await client.request(method, f"http://{host}:{port}{path}")


async def test_it_serves_on_loopback_and_reports_the_address(nursery):
    exporter = PrometheusExporter(0)
    await feed(exporter, export(dst="é"))
    host, port = await serve(nursery, exporter)
    assert host == "127.0.0.1"
    response = await get((host, port))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "server" not in response.headers
    _, _, text = await scrape(exporter)
    assert response.text == text


async def test_the_system_holds_few_pieces_of_an_answer_that_is_not_read(nursery):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with (
        listener,
        await trio.open_tcp_stream(*listener.socket.getsockname()),
        await listener.accept() as stream,
    ):
        nursery.start_soon(server_of(PrometheusExporter()).serve_stream, stream)
        await wait_all_tasks_blocked()
        option = socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT
        pieces = stream.getsockopt(*option) / _server._PIECE_SIZE
        assert 1 <= pieces <= 2
        nursery.cancel_scope.cancel()


async def test_a_port_can_be_chosen_and_is_free_again_afterwards(nursery):
    async with trio.open_nursery() as first:
        host, port = await serve(first, PrometheusExporter(0))
        assert (await get((host, port))).status_code == 200
        first.cancel_scope.cancel()
    assert await serve(nursery, PrometheusExporter(port)) == (host, port)
    assert (await get((host, port))).status_code == 200


async def test_on_a_chosen_port_it_serves_all_addresses_of_the_host(nursery):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    await serve(nursery, PrometheusExporter(port, "localhost"))
    for *_, address in await trio.socket.getaddrinfo("localhost", port, type=1):
        assert (await get(address[:2])).status_code == 200


@pytest.mark.parametrize("host", ["::1", "localhost"])
async def test_another_host_can_be_chosen(nursery, host):
    address = await serve(nursery, PrometheusExporter(0, host))
    assert (await get(address)).status_code == 200


@pytest.fixture
def addresses(monkeypatch):
    """The addresses of any host."""
    addresses = []

    async def found(*_):
        await trio.lowlevel.checkpoint()
        return addresses

    monkeypatch.setattr(_listeners, "addresses_of", found)
    return addresses


async def test_on_a_free_port_it_serves_all_addresses_of_all_hosts(nursery):
    exporter = PrometheusExporter(0, ["127.0.0.2", "127.0.0.1"])
    host, port = await serve(nursery, exporter)
    assert host == "127.0.0.2"
    for host in "127.0.0.1", "127.0.0.2":
        assert (await get((host, port))).status_code == 200


async def test_a_port_that_is_not_free_on_all_addresses_is_not_taken(nursery, monkeypatch):
    with socket.create_server(("127.0.0.2", 0)) as taken:
        ports = [taken.getsockname()[1]]
        listen = trio.open_tcp_listeners

        async def listen_there_first(port, *, host):
            return await listen(port or (ports.pop() if ports else 0), host=host)

        monkeypatch.setattr(trio, "open_tcp_listeners", listen_there_first)
        exporter = PrometheusExporter(0, ["127.0.0.1", "127.0.0.2"])
        _, port = await serve(nursery, exporter)
        assert (await get(("127.0.0.2", port))).status_code == 200
    assert not ports


async def test_the_host_of_all_addresses_is_that_of_both_families(nursery):
    _, port = await serve(nursery, PrometheusExporter(0, "::"))
    for host in "127.0.0.1", "::1":
        assert (await get((host, port))).status_code == 200


@pytest.mark.parametrize("port", ["free", "chosen"])
@pytest.mark.parametrize(
    "hosts",
    [("localhost", "127.0.0.1"), ("::", "0.0.0.0"), ("127.0.0.1", "127.0.0.1")],  # noqa: S104
)
async def test_hosts_may_have_addresses_in_common(nursery, hosts, port):
    with socket.create_server(("127.0.0.1", 0)) as free:
        chosen = free.getsockname()[1]
    exporter = PrometheusExporter(chosen if port == "chosen" else 0, hosts)
    _, port = await serve(nursery, exporter)
    assert (await get(("127.0.0.1", port))).status_code == 200


async def test_each_host_must_be_of_this_machine():
    hosts = ["127.0.0.1", "192.0.2.1"]
    with pytest.raises(OSError, match=r"can't listen on 192\.0\.2\.1:\d+: Cannot assign"):
        await PrometheusExporter(0, hosts).run(channel_of())


async def test_on_a_port_that_one_address_has_taken_it_serves_none(addresses):
    addresses += "127.0.0.1", "127.0.0.2"
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=r"can't listen on 127\.0\.0\.1:\d+: Address"):
            await PrometheusExporter(port).run(channel_of())
        with socket.create_server(("127.0.0.1", port)):
            pass


async def test_addresses_that_the_system_does_not_support_are_skipped(
    nursery, addresses, monkeypatch
):
    listen = trio.open_tcp_listeners

    async def listen_without_ipv6(port, *, host):
        if ":" in host:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return await listen(port, host=host)

    monkeypatch.setattr(trio, "open_tcp_listeners", listen_without_ipv6)
    addresses += "::1", "127.0.0.1"
    address = await serve(nursery, PrometheusExporter(0))
    assert (await get(address)).status_code == 200
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    addresses.append("::2")
    assert (await serve(nursery, PrometheusExporter(port)))[1] == port
    addresses[:] = ["::1"]
    with pytest.raises(OSError, match=r"can't listen on .*: no IPv6"):
        await PrometheusExporter(0).run(channel_of())


async def test_its_host_is_looked_up_even_if_other_lookups_hold_all_threads(nursery):
    limiter = trio.to_thread.current_default_thread_limiter()
    while limiter.available_tokens:
        limiter.acquire_on_behalf_of_nowait(object())
    with trio.fail_after(30):
        address = await serve(nursery, PrometheusExporter(0, "localhost"))
    async with await trio.open_tcp_stream("127.0.0.1", address[1]):
        pass


async def test_a_port_that_is_taken_is_a_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=f"can't listen on 127.0.0.1:{port}: Address already"
        ):
            await PrometheusExporter(port).run(channel_of())


@pytest.fixture
async def big_answer(nursery, monkeypatch):
    """A run whose exports can be closed, and a scraper that has read only a little."""
    monkeypatch.setattr(_connection, "_UNREAD_TIMEOUT", 1_000)
    send, exports = trio.open_memory_channel(1)
    await send.send(export(text="x" * 10_000_000))
    exporter = PrometheusExporter(0)
    ended = trio.Event()

    async def run(task_status):  # noqa: ASYNC114, ASYNC128  # it hands it on
        await exporter.run(exports, task_status=task_status)
        ended.set()

    address = await nursery.start(run)
    assert address == exporter.address
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.receive_some(1)
        yield send, stream, ended
    assert exporter.address is None


async def test_an_answer_in_progress_is_finished_when_the_exports_end(
    big_answer, monkeypatch
):
    monkeypatch.setattr(_server, "_SHUTDOWN_TIMEOUT", math.inf)
    exports, stream, ended = big_answer
    exports.close()
    await wait_all_tasks_blocked()
    assert not ended.is_set()
    with pytest.raises(OSError):
        await trio.open_tcp_stream(*stream.socket.getpeername())
    received = bytearray()
    async for chunk in stream:
        received += chunk
    assert received.endswith(b"\r\n0\r\n\r\n")
    with trio.fail_after(30):
        await ended.wait()


async def test_an_answer_that_takes_long_is_cut_off_when_the_exports_have_ended(
    big_answer, monkeypatch
):
    monkeypatch.setattr(_server, "_SHUTDOWN_TIMEOUT", 0.01)
    exports, _, ended = big_answer
    exports.close()
    with trio.fail_after(30):
        await ended.wait()


async def test_when_the_exports_end_no_more_connections_are_accepted(nursery):
    send, exports = trio.open_memory_channel(0)
    address = await nursery.start(PrometheusExporter(0).run, exports)
    async with await trio.open_tcp_stream(*address) as idle:
        send.close()
        with suppress(trio.BrokenResourceError):
            assert await idle.receive_some() == b""
        with pytest.raises(OSError):
            await trio.open_tcp_stream(*address)


async def test_two_runs_at_once_on_one_port_are_refused_and_nothing_is_closed(nursery):
    exporter = PrometheusExporter(0)
    await serve(nursery, exporter)
    send, exports = trio.open_memory_channel(0)
    with pytest.raises(trio.BusyResourceError, match="already running; let keepers share"):
        await exporter.run(exports)
    with pytest.raises(trio.WouldBlock):  # as opposed to closed
        exports.receive_nowait()
    send.close()


async def test_without_a_port_several_runs_go_on_at_once_and_none_has_an_address(nursery):
    exporter = PrometheusExporter()
    for dst in "ab":
        send, exports = trio.open_memory_channel(0)
        assert await nursery.start(exporter.run, exports) is None
        await send.send(export(dst=dst))
    await wait_all_tasks_blocked()
    assert exporter.address is None
    _, _, text = await scrape(exporter)
    assert 'dst="a"' in text
    assert 'dst="b"' in text


@pytest.mark.parametrize("host", ["no such host", "a..b", "a" * 64])
async def test_an_unknown_host_is_a_clear_error(host):
    with pytest.raises(OSError, match=f"can't listen on {host}:9464: "):
        await PrometheusExporter(9464, host).run(channel_of())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"port": -1}, ValueError, "port must be from 0 to 65535, got -1"),
        ({"port": 65_536}, ValueError, "port must be from 0 to 65535, got 65536"),
        ({"port": "9464"}, TypeError, "port must be an integer or None, got '9464'"),
        ({"port": True}, TypeError, "port must be an integer or None, got True"),
        (
            {"host": None},
            TypeError,
            "host must be a string, or a sequence of strings, got None",
        ),
        ({"host": ["::1", 1]}, TypeError, "or a sequence of strings, got ['::1', 1]"),
        ({"host": []}, ValueError, "have an empty item, got []"),
        ({"host": ""}, ValueError, "host must not be empty, got ''"),
        ({"host": ["::1", ""]}, ValueError, "have an empty item, got ['::1', '']"),
        ({"max_connections": 0}, ValueError, "max_connections must be >= 1, got 0"),
        ({"max_scrapes": 0}, ValueError, "max_scrapes must be >= 1, got 0"),
    ],
)
def test_invalid_options_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        PrometheusExporter(**options)


async def test_only_metrics_the_root_and_health_answer():
    exporter = PrometheusExporter()
    root = "trio-statskeeper: metrics are at /metrics\n"
    assert (await scrape(exporter, "/"))[::2] == (200, root)
    assert (await scrape(exporter, "/-/healthy"))[::2] == (200, "Healthy\n")
    for path in "/metrics/", "/x", "*", "/METRICS", "//", "//metrics":
        status, headers, text = await scrape(exporter, path)
        assert headers[b"content-type"] == b"text/plain; charset=utf-8"
        assert (status, text) == (404, "Not found: metrics are at /metrics\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("path", ["/", "/metrics"])
async def test_other_methods_than_get_and_head_are_refused(method, path):
    status, headers, _ = await scrape(PrometheusExporter(), path, method)
    assert status == 405
    assert headers[b"allow"] == b"GET, HEAD"


async def test_a_head_request_gets_no_body(nursery):
    exporter = PrometheusExporter(0)
    await feed(exporter, export())
    address = await serve(nursery, exporter)
    response = await get(address, method="HEAD")
    assert (response.status_code, response.content) == (200, b"")


async def test_when_cancelled_with_open_connections_it_raises_a_bare_cancelled():
    raised = None

    async def run(task_status):  # noqa: ASYNC114, ASYNC128  # it hands it on
        nonlocal raised
        try:
            _, exports = trio.open_memory_channel(0)
            await PrometheusExporter(0).run(exports, task_status=task_status)
        except BaseException as error:
            raised = error
            raise

    async with trio.open_nursery() as nursery:
        address = await nursery.start(run)
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.receive_some()
            nursery.cancel_scope.cancel()
    assert type(raised) is trio.Cancelled


async def test_a_keyboard_interrupt_in_an_answer_ends_the_server(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    exporter = PrometheusExporter(0, statistics_of=[make_keeper()])
    monkeypatch.setattr(_exporter, "self_metrics", interrupt)
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            address = await serve(nursery, exporter)
            async with await trio.open_tcp_stream(*address) as stream:
                await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                await trio.sleep_forever()


async def test_a_bug_in_an_answer_is_logged(nursery, caplog, monkeypatch):
    def bug(*_):
        raise RuntimeError("a bug")

    exporter = PrometheusExporter(0, statistics_of=[make_keeper()])
    monkeypatch.setattr(_exporter, "self_metrics", bug)
    address = await serve(nursery, exporter)
    assert (await get(address)).status_code == 500
    assert "a bug" in caplog.text
    assert {record.name for record in caplog.records} == {"trio_statskeeper"}
    caplog.clear()
