"""The smaller examples, as a user runs them; test_probe_http.py tests what all share."""

from __future__ import annotations

import signal
import socket
import socketserver
import threading
from contextlib import contextmanager

import dns.message
import dns.rcode
import pytest
from programs import assert_refused, last_exports, start

from trio_statskeeper import Map

# So that no run takes too long on a slow machine; runs may overlap.
PATIENT = ("--timeout", "20")
PROGRAMS = ("probe_tcp.py", "probe_tls.py", "probe_dns.py", "custom_result.py")

NO_ERROR = Map("error", {})


def assert_well(metrics):
    assert metrics["total"] == metrics["success"] == metrics["latency"].count > 0
    assert metrics["failure"] == metrics["timeouts"] == 0
    assert metrics["error"] == NO_ERROR


def assert_failed(metrics, error):
    assert metrics["total"] == metrics["failure"] > 0
    assert metrics["success"] == 0
    assert metrics["timeouts"] == (metrics["total"] if error == "timeout" else 0)
    assert metrics["error"] == Map("error", {error: metrics["total"]})
    assert "latency" not in metrics


@contextmanager
def serving(server):
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def tcp_port():
    handler = socketserver.BaseRequestHandler  # which closes the connection
    with serving(socketserver.TCPServer(("127.0.0.1", 0), handler)) as port:
        yield port


@pytest.fixture
def silent_port():
    """A TCP port that can be connected to, but nobody answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as listener:
        yield listener.getsockname()[1]


def test_tcp_without_arguments_probes_what_is_well_and_what_is_closed():
    exports = last_exports("probe_tcp.py", *PATIENT, targets=2)
    assert {export.labels["ptype"] for export in exports.values()} == {"tcp"}
    well, closed = sorted(exports.values(), key=lambda e: -e.metrics["success"])
    assert_well(well.metrics)
    assert_failed(closed.metrics, "ConnectionRefusedError")


def test_tcp_probes_the_ports_that_it_is_given(tcp_port):
    keys = [f"127.0.0.1:{tcp_port}", "[::ffff:127.0.0.1]:1"]
    exports = last_exports("probe_tcp.py", *PATIENT, *keys, targets=2)
    assert exports.keys() == set(keys)
    assert_well(exports[keys[0]].metrics)
    assert exports[keys[1]].metrics["success"] == 0


def test_tls_tells_when_the_certificate_expires_and_refuses_that_of_another():
    exports = last_exports("probe_tls.py", *PATIENT, targets=2)
    assert {export.labels["ptype"] for export in exports.values()} == {"tls"}
    well, another = sorted(exports.values(), key=lambda e: -e.metrics["success"])
    assert_well(well.metrics)
    days = well.metrics["cert-expiry"] / 86_400
    assert 0 < days < 90
    assert_failed(another.metrics, "SSLCertVerificationError")
    assert "cert-expiry" not in another.metrics


def test_tls_gives_up_on_a_server_that_never_shakes_hands(silent_port):
    target = f"127.0.0.1:{silent_port}"
    exports = last_exports("probe_tls.py", "--timeout", "0.2", target, targets=1)
    assert_failed(exports[target].metrics, "timeout")


def test_tls_names_the_failure_of_a_server_that_hangs_up(tcp_port):
    target = f"127.0.0.1:{tcp_port}"
    metrics = last_exports("probe_tls.py", *PATIENT, target, targets=1)[target].metrics
    assert metrics["failure"] == metrics["total"] > 0
    # Depends on whether the server has hung up before it was spoken to.
    names = {"SSLEOFError", "SSLZeroReturnError", "ConnectionResetError", "BrokenPipeError"}
    assert metrics["error"].values.keys() <= names


def test_dns_without_arguments_asks_for_what_is_well_missing_and_broken():
    exports = last_exports("probe_dns.py", *PATIENT, targets=3)
    assert {export.labels["ptype"] for export in exports.values()} == {"dns"}
    metrics = {
        target.partition(".")[0]: export.metrics for target, export in exports.items()
    }
    assert metrics.keys() == {"well", "missing", "broken"}
    for name, rcode in (("well", "NOERROR"), ("missing", "NXDOMAIN")):
        assert_well(metrics[name])
        assert metrics[name]["rcode"] == Map("rcode", {rcode: metrics[name]["total"]})
    assert_failed(metrics["broken"], "UselessAnswerError")
    assert "rcode" not in metrics["broken"]


class Refuses(socketserver.BaseRequestHandler):
    def handle(self):
        packet, server = self.request
        answer = dns.message.make_response(dns.message.from_wire(packet))
        answer.set_rcode(
            dns.rcode.REFUSED if "refused" in str(answer.question) else dns.rcode.NOERROR
        )
        server.sendto(answer.to_wire(), self.client_address)


def test_dns_asks_the_servers_that_it_is_given():
    with serving(socketserver.UDPServer(("127.0.0.1", 0), Refuses)) as port:
        targets = [
            f"{name}@127.0.0.1:{port}" for name in ("example.com", "refused.example")
        ]
        exports = last_exports("probe_dns.py", *PATIENT, *targets, targets=2)
    assert exports.keys() == set(targets)
    assert_well(exports[targets[0]].metrics)
    assert_failed(exports[targets[1]].metrics, "UselessAnswerError")


def test_dns_gives_up_on_a_server_that_does_not_answer():
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        target = f"example.com@127.0.0.1:{silent.getsockname()[1]}"
        exports = last_exports("probe_dns.py", "--timeout", "0.2", target, targets=1)
    assert_failed(exports[target].metrics, "timeout")


def test_custom_result_probes_ports_and_the_disk():
    exports = last_exports("custom_result.py", *PATIENT, targets=3)
    disk = exports.pop("/")
    assert disk.labels["ptype"] == "disk"
    assert disk.metrics["total"] > 0
    assert disk.metrics["free-bytes"] >= 0
    assert {export.labels["ptype"] for export in exports.values()} == {"tcp"}
    well, closed = sorted(exports.values(), key=lambda e: -e.metrics["success"])
    assert well.metrics["total"] == well.metrics["success"] > 0
    assert well.metrics["latency"].count == well.metrics["total"]
    assert closed.metrics["total"] > 0
    assert closed.metrics["success"] == 0
    assert "latency" not in closed.metrics


def test_custom_result_probes_the_ports_that_it_is_given(tcp_port):
    targets = [f"127.0.0.1:{tcp_port}", "no..name:80"]
    exports = last_exports("custom_result.py", *PATIENT, *targets, targets=3)
    assert exports.keys() == {"/", *targets}
    well, nameless = (exports[target].metrics for target in targets)
    assert well["success"] == well["total"] > 0
    assert nameless["success"] == 0 < nameless["total"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_sigterm_too_ends_each_with_a_last_export(program):
    assert last_exports(program, *PATIENT, targets=1, signum=signal.SIGTERM)


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_ends_after_the_time_that_is_set(program):
    with start(program, "--for", "0.5") as process:
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("program", ["probe_tcp.py", "probe_tls.py", "custom_result.py"])
@pytest.mark.parametrize(
    "text", ["example.com", "example.com:http", ":80", "[]:80", "a:65536"]
)
def test_what_is_no_host_and_port_is_refused(program, text):
    message = f"argument HOST:PORT: {text!r} is not HOST:PORT"
    assert_refused(program, [text], message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example.com", "'example.com' is not NAME@SERVER"),
        ("@192.0.2.53", "'@192.0.2.53' is not NAME@SERVER"),
        ("a..b@192.0.2.53", "'a..b' is not a name: A DNS label is empty."),
        ("a.example@192.0.2.53:x", "'192.0.2.53:x' is not HOST:PORT"),
        ("a.example@dns.example:53", "'dns.example' is not an IP address"),
    ],
)
def test_what_is_no_name_at_a_server_is_refused(text, message):
    assert_refused("probe_dns.py", [text], f"argument NAME@SERVER: {message}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_tells_of_the_arguments_and_the_end(program):
    with start(program, "--help") as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    for text in ("NAME@SERVER" if "dns" in program else "HOST:PORT", "--for", "Ctrl-C"):
        assert text in output
