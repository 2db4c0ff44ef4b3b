"""PrometheusExporter and its clients: Prometheus itself, curl, and a crowd."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from socket import create_connection
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
import trio
import trustme
from helpers import serve
from loopback import serving
from real_servers import get, missing

from trio_statskeeper import EventMetrics
from trio_statskeeper._http import _server
from trio_statskeeper.prometheus import PrometheusExporter, hash_password

PATIENCE = 60


async def fed(**options):
    """Return an exporter with an export."""
    exporter = PrometheusExporter(0, **options)
    send, receive = trio.open_memory_channel[EventMetrics](1)
    with send:
        send.send_nowait(EventMetrics(5, 0, {"dst": "a"}, {"total": 7}, 1, 3600))
    await exporter.run(receive)
    return exporter


# A crowd


class Probed(ThreadingTCPServer):
    request_queue_size = 100


def total(port, metric):
    status, page = get(port, "/metrics", timeout=10)
    assert status == 200
    lines = page.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


def test_no_probe_and_no_scrape_fails_because_somebody_opens_connections():
    program = [sys.executable, Path(__file__).with_name("crowded_program.py")]
    with (
        serving(Probed(("127.0.0.1", 0), BaseRequestHandler)) as probed,
        subprocess.Popen(
            [*program, str(probed.server_address[1])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        ExitStack() as crowd,
    ):
        crowd.callback(process.kill)
        port = int(process.stdout.readline())
        for number in range(400):
            connection = crowd.enter_context(create_connection(("127.0.0.1", port)))
            if number % 2:
                connection.sendall(b"GET /metrics HTT")
        before = total(port, "probe_success_total{")
        deadline = time.monotonic() + PATIENCE
        while total(port, "probe_success_total{") < before + 500:
            assert time.monotonic() < deadline
            for _ in range(20):
                crowd.enter_context(create_connection(("127.0.0.1", port)))
            time.sleep(0.05)
        assert total(port, "probe_failure_total{") == 0
        assert total(port, "probe_inconclusive_total{") == 0
        process.kill()
        assert process.stderr.read() == b""


# Prometheus


async def is_up(prometheus):
    """Return whether it scrapes the target."""
    up = await trio.to_thread.run_sync(prometheus.wait_for, "up", bool)
    return up[0].value == 1


@pytest.fixture
def encodings(monkeypatch):
    """What scrapes accept, and whether they got gzip."""
    encodings = {}
    prefers_gzip = _server.prefers_gzip

    def noted(accept_encoding):
        encodings[accept_encoding] = prefers_gzip(accept_encoding)
        return encodings[accept_encoding]

    monkeypatch.setattr(_server, "prefers_gzip", noted)
    return encodings


CA = trustme.CA()


@pytest.fixture
def context():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def files(tmp_path):
    """Certificates of the authority and of a client, as Prometheus is given them."""
    paths = {name: str(tmp_path / name) for name in ("ca_file", "cert_file", "key_file")}
    CA.cert_pem.write_to_path(paths["ca_file"])
    client = CA.issue_cert("prometheus")
    client.cert_chain_pems[0].write_to_path(paths["cert_file"])
    client.private_key_pem.write_to_path(paths["key_file"])
    return paths


@pytest.fixture
def serve_by_tls(nursery, context):
    """Serve those who have a certificate; return the port."""

    async def serve_by_tls():
        context.verify_mode = ssl.CERT_REQUIRED
        CA.configure_trust(context)
        _, port = await serve(nursery, await fed(ssl_context=context))
        return port

    return serve_by_tls


async def test_prometheus_scrapes_with_a_certificate_of_its_own(
    start_prometheus, serve_by_tls, files, encodings
):
    target = f"127.0.0.1:{await serve_by_tls()}"
    start = partial(start_prometheus, target, scheme="https", tls_config=files)
    prometheus = await trio.to_thread.run_sync(start)
    assert await is_up(prometheus)
    [sample] = await trio.to_thread.run_sync(prometheus.query, "probe_total")
    assert sample.value == 7
    assert encodings == {"gzip": True}


async def test_prometheus_without_a_certificate_is_not_served(
    start_prometheus, serve_by_tls, files
):
    target = f"127.0.0.1:{await serve_by_tls()}"
    tls = {"ca_file": files["ca_file"]}
    start = partial(start_prometheus, target, scheme="https", tls_config=tls)
    prometheus = await trio.to_thread.run_sync(start)
    assert not await is_up(prometheus)


RIGHT = "s3cret"


@pytest.mark.parametrize("password", [RIGHT, "wrong"])
async def test_prometheus_scrapes_with_a_password(start_prometheus, nursery, password):
    exporter = await fed(users={"prometheus": hash_password(RIGHT)})
    _, port = await serve(nursery, exporter)
    login = {"username": "prometheus", "password": password}
    start = partial(start_prometheus, f"127.0.0.1:{port}", basic_auth=login)
    prometheus = await trio.to_thread.run_sync(start)
    assert await is_up(prometheus) is (password == RIGHT)


# curl


@pytest.fixture
def curl():
    if not shutil.which("curl"):
        missing("no curl here: apt-get install curl")

    async def curl(*args):
        """Return the status, the version of HTTP, and the body."""
        command = ["curl", "--silent", "--max-time", "30", "--noproxy", "*"]
        command += ["--write-out", "\n%{http_code} %{http_version}", *args]
        process = await trio.run_process(command, capture_stdout=True)
        body, _, end = process.stdout.decode().rpartition("\n")
        return end, body

    return curl


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ([], "200 1.1"),
        (["--http1.0"], "200 1.1"),  # the server's version
        (["--http2"], "200 1.1"),
        (["--compressed"], "200 1.1"),
        (["--get", "--data-urlencode", "name[]=probe_total"], "200 1.1"),
        (["--data", "x"], "405 1.1"),
        (["--header", "Expect: 100-continue", "--data", "x" * 5_000], "405 1.1"),
        (["--header", "Transfer-Encoding: chunked", "--data", "x"], "413 1.1"),
        (["--header", "Transfer-Encoding: gzip"], "501 1.1"),
        (["--data-binary", "@/bin/sh"], "413 1.1"),
    ],
    ids=lambda each: " ".join(each)[:30] if isinstance(each, list) else None,
)
async def test_curl_gets_its_answer(nursery, curl, options, status):
    exporter = await fed()
    _, port = await serve(nursery, exporter)
    end, body = await curl(*options, f"http://127.0.0.1:{port}/metrics")
    assert end == status
    assert ('probe_total{dst="a"} 7' in body) is status.startswith("200")


async def test_curl_asks_as_a_proxy_is_asked(nursery, curl):
    exporter = await fed()
    _, port = await serve(nursery, exporter)
    proxy = ("--noproxy", "", "--proxy", f"http://127.0.0.1:{port}")
    end, body = await curl(*proxy, "http://example.com/metrics")
    assert end == "200 1.1"
    assert 'probe_total{dst="a"} 7' in body


async def test_curl_checks_that_the_end_of_an_answer_is_announced(
    nursery, curl, context, files
):
    exporter = await fed(ssl_context=context, users={"me": hash_password(RIGHT)})
    _, port = await serve(nursery, exporter)
    url = f"https://127.0.0.1:{port}/metrics"
    options = ("--cacert", files["ca_file"], "--user", f"me:{RIGHT}")
    for version in "--http1.0", "--http1.1":
        end, body = await curl(*options, version, url)
        assert end == "200 1.1"
        assert 'probe_total{dst="a"} 7' in body
