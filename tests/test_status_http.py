"""The status page: who serves it, and to whom."""

from __future__ import annotations

import json
import socket

import pytest
import trio
from helpers import channel_of, serve
from scraping import answers, request
from status_pages import Document, export, feed

from trio_statskeeper import EventMetrics, open_outputs
from trio_statskeeper.prometheus import PrometheusExporter, hash_password
from trio_statskeeper.status import StatusPage


async def test_an_exporter_serves_the_page_next_to_the_metrics():
    page = StatusPage()
    exporter = PrometheusExporter(status=page)
    for output in exporter, page:
        await feed(output, export(10, total=1, success=1))
    html, data, metrics, root, unknown = await answers(
        exporter,
        request("/status"),
        request("/status.json?filter=up"),
        request("/metrics"),
        request("/"),
        request("/x"),
    )
    assert html[0] == data[0] == metrics[0] == 200
    assert Document(html[2].decode()).texts("h1") == ["Status"]
    assert [each["target"] for each in json.loads(data[2])["targets"]] == ["a"]
    assert b"probe_success_total" in metrics[2]
    assert (root[0], root[1][b"location"]) == (302, b"/status")
    assert unknown[2] == b"Not found: metrics are at /metrics, the status is at /status\n"


async def test_an_exporter_without_a_page_has_none():
    [(status, _, body)] = await answers(PrometheusExporter(), request("/status"))
    assert (status, body) == (404, b"Not found: metrics are at /metrics\n")


async def test_a_page_with_a_port_serves_itself(nursery):
    page = StatusPage(0)
    send, exports = trio.open_memory_channel[EventMetrics](1)
    address = await nursery.start(page.run, exports)
    assert page.address == address
    send.send_nowait(export(10, total=1, success=1))
    await trio.testing.wait_all_tasks_blocked()
    assert b">Up<" in await get(address, "/status")
    assert b"\r\n\r\nNot found: the status is at /status\n" in await get(
        address, "/metrics"
    )
    assert b"\r\nlocation: /status\r\n" in (await get(address, "/")).lower()
    send.close()
    await trio.testing.wait_all_tasks_blocked()
    assert page.address is None


async def get(address, path):
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(request(path, "GET", "Connection: close"))
        return b"".join([chunk async for chunk in stream])


async def test_a_page_is_an_output_like_the_others():
    page = StatusPage()
    async with open_outputs(page.run) as exports:
        await exports.send(export(10, total=1))


async def test_a_page_that_runs_already_is_busy_and_closes_nothing(nursery):
    page = StatusPage(0)
    await serve(nursery, page)
    exports = channel_of(export(10))
    with pytest.raises(trio.BusyResourceError):
        await page.run(exports)
    assert exports.receive_nowait()
    nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{port}"):
            await StatusPage(port).run(channel_of())


async def test_those_without_a_password_do_not_see_it(nursery):
    page = StatusPage(0, users={"ann": hash_password("secret")})
    address = await serve(nursery, page)
    assert b" 401 " in await get(address, "/status")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_page_is_compressed_for_those_who_ask_for_it(method):
    exporter = PrometheusExporter(status=StatusPage())
    ask = request("/status", method, "Accept-Encoding: gzip")
    [(status, headers, body)] = await answers(exporter, ask)
    assert (status, headers[b"content-encoding"]) == (200, b"gzip")
    assert bool(body) == (method == "GET")


async def test_a_query_of_very_many_parameters_is_a_bad_request():
    exporter = PrometheusExporter(status=StatusPage())
    for path in "/status", "/status.json":
        [(status, _, _)] = await answers(exporter, request(f"{path}?{'a=b&' * 101}"))
        assert status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_page_can_only_be_read(method):
    exporter = PrometheusExporter(status=StatusPage())
    for path in "/status", "/status.json", "/":
        [(status, _, _)] = await answers(exporter, request(path, method))
        assert status == 405


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": "8080"}, "port must be an integer or None, got '8080'"),
        ({"port": 70_000}, "port must be from 0 to 65535, got 70000"),
        ({"host": 1}, "host must be a string"),
        ({"ssl_context": True}, "ssl_context must be an SSLContext or None, got True"),
        ({"users": {}}, "users"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        StatusPage(**arguments)


def test_an_exporter_takes_no_other_page():
    with pytest.raises(TypeError, match="status"):
        PrometheusExporter(status="/status")
