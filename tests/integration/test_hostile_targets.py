"""Servers that are odd, broken or hostile, as the examples probe them."""

from __future__ import annotations

import gzip
import importlib
import re
import signal
import ssl
import threading
import time
import tracemalloc
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.request import urlopen

import pytest
import trio
import trustme
from loopback import HttpServer, answer, serving
from programs import EXAMPLES, TIMEOUT, probe_once, run, start

from trio_statskeeper import Map


@pytest.fixture
def serve():
    """Serve HTTP on loopback by a function of the request, and return the URL."""
    with ExitStack() as servers:
        yield lambda handle: servers.enter_context(serving(HttpServer(handle))).url


# Connections


def test_each_run_has_a_connection_of_its_own_and_no_cookies(serve):
    clients, cookies = [], []

    def handle(request):
        clients.append(request.client_address)
        cookies.append(request.headers["Cookie"])
        answer(request, Set_Cookie="visited=1", Connection="keep-alive")

    with start("probe_http.py", "--interval", "0.05", serve(handle)) as program:
        while len(clients) < 5:
            assert program.poll() is None
            time.sleep(0.01)
    assert len(set(clients)) == len(clients)
    assert set(cookies) == {None}


def test_there_is_no_limit_to_the_number_of_connections(serve):
    together = threading.Barrier(150)

    def handle(request):
        together.wait(TIMEOUT)
        answer(request)

    url = serve(handle)
    status, exports = probe_once("probe_http.py", *(f"{url}{n}" for n in range(150)))
    assert status == 0
    assert len(exports) == 150


# Certificates


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusting(authority, tmp_path):
    """The environment of a program that trusts the authority."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return {"SSL_CERT_FILE": str(path)}


@pytest.fixture
def serve_tls(authority):
    """Serve HTTPS on loopback with such a certificate, and return HOST:PORT."""
    with ExitStack() as servers:

        def serve(name="127.0.0.1", days=90, authority=authority):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            expiry = datetime.now(UTC) + timedelta(days)
            authority.issue_cert(name, not_after=expiry).configure_cert(context)
            server = HttpServer(answer)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            servers.enter_context(serving(server))
            return f"127.0.0.1:{server.server_port}"

        yield serve


def test_http_verifies_certificates(serve_tls, trusting):
    good, bad = (f"https://{at}/" for at in (serve_tls(), serve_tls("another.example")))
    status, exports = probe_once("probe_http.py", good, bad, **trusting)
    assert status == 1
    assert exports[good].metrics["success"] == 1
    assert exports[bad].metrics["failure"] == 1
    errors = Map("error", {"SSLCertVerificationError": 1})
    assert exports[bad].metrics["error"] == errors


def test_tls_exports_the_expiry_also_of_a_certificate_that_it_refuses(serve_tls, trusting):
    days = {
        serve_tls(days=-2): ("certificate-has-expired", -2),
        serve_tls("another.example", 30): ("IP-address-mismatch", 30),
        serve_tls(authority=trustme.CA()): ("unable-to-get-local-issuer-certificate", 90),
    }
    status, exports = probe_once("probe_tls.py", *days, **trusting)
    assert status == 1
    for target, (reason, left) in days.items():
        metrics = exports[target].metrics
        assert metrics["failure"] == 1
        assert metrics["error"] == Map("error", {reason: 1})
        assert metrics["cert-expiry"].value == pytest.approx(left * 86_400, abs=2 * TIMEOUT)


# Bodies


@pytest.fixture
def get_status(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("urls").get_status


async def test_of_an_endless_body_about_a_megabyte_is_read(serve, get_status):
    sent = []

    def handle(request):
        request.send_response(200)
        request.end_headers()
        while True:
            sent.append(request.wfile.write(bytes(10_000)))

    url = serve(handle)
    with trio.fail_after(TIMEOUT):
        assert await get_status(url) == 200
    # Some more was sent, into the buffers of the two sockets.
    assert 1_000_000 <= sum(sent) < 20_000_000


async def test_a_compressed_body_is_not_inflated(serve, get_status):
    bomb = gzip.compress(bytes(100_000_000))
    url = serve(partial(answer, body=bomb, Content_Encoding="gzip"))
    tracemalloc.start()
    try:
        with trio.fail_after(TIMEOUT):
            assert await get_status(url) == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


def test_a_truncated_body_is_a_failure(serve):
    def handle(request):
        request.send_response(200)
        request.send_header("Content-Length", "10")
        request.end_headers()
        request.wfile.write(b"short")
        request.close_connection = True

    url = serve(handle)
    status, exports = probe_once("probe_http.py", url)
    assert status == 1
    assert exports[url].metrics["error"] == Map("error", {"RemoteProtocolError": 1})


# Statuses


def test_statuses_of_400_and_above_are_failures_and_are_counted(serve):
    url = serve(lambda request: answer(request, int(request.path[1:])))
    codes = {"204": {}, "301": {}, "404": {"status-404": 1}, "503": {"status-503": 1}}
    status, exports = probe_once("probe_http.py", *(url + code for code in codes))
    assert status == 1
    for code, errors in codes.items():
        metrics = exports[url + code].metrics
        assert metrics["resp-code"] == Map("code", {code: 1})
        assert metrics["error"] == Map("error", errors)
        assert metrics["success"] == (not errors)


# Secrets


def test_secrets_in_urls_are_sent_to_the_server_but_not_shown(serve):
    received = set()

    def handle(request):
        received.add((request.path, request.headers["Authorization"]))
        answer(request, 503 if "two" in request.path else 200)

    url = serve(handle)
    with_user = url.replace("//", "//user:hidden@")
    urls = [f"{with_user}?token=hidden-{n}" for n in ("one", "two")]
    options = ("--interval", "0.1", "--export-interval", "0.5", "--prometheus", "0")
    with start("probe_http.py", *options, *urls) as program:
        [address] = re.findall(r"http://.+/metrics", program.stderr.readline())
        lines = [program.stdout.readline() for _ in urls]
        with urlopen(address, timeout=TIMEOUT) as response:
            page = response.read().decode()
        program.send_signal(signal.SIGINT)
        rest = program.communicate(timeout=TIMEOUT)
    credentials = "Basic dXNlcjpoaWRkZW4="
    assert received == {(f"/?token=hidden-{n}", credentials) for n in ("one", "two")}
    shown = "".join([*lines, page, *rest])
    assert "hidden" not in shown
    for key in (url, f"{url}#2"):
        assert f"dst={key} " in shown
        assert f'dst="{key}"' in shown
    assert f"{url}#2: probe failed" in shown


def test_secrets_in_a_url_that_is_refused_are_not_shown():
    urls = ["http://user:hid/den@x/", "ftp://user:hidden@x/?hidden", "user:hidden@x#hidden"]
    for url in urls:
        status, output, errors = run("probe_http.py", url)
        assert (status, output) == (2, "")
        assert "is not an http:// or https:// URL" in errors
        assert "hid" not in errors
