"""The smaller examples, as a user runs them; test_probe_http.py tests what all share."""

from __future__ import annotations

import signal
import socket
import socketserver

import dns.message
import dns.rcode
import pytest
from loopback import serving
from programs import assert_refused, last_exports, probe_once, run

from trio_statskeeper import Map

# No run takes that long, even on a slow machine.
PATIENT = ("--timeout", "20")
PROGRAMS = ("probe_tcp.py", "probe_tls.py", "probe_dns.py", "custom_result.py")

NO_ERROR = Map("error", {})


def assert_healthy(metrics):
    assert metrics["total"] == metrics["success"] == metrics["latency"].count > 0
    assert metrics["failure"] == metrics["timeouts"] == 0
    assert metrics["error"] == NO_ERROR


def assert_failed(metrics, error):
    assert metrics["total"] == metrics["failure"] > 0
    assert metrics["success"] == 0
    assert metrics["timeouts"] == (metrics["total"] if error == "timeout" else 0)
    assert metrics["error"] == Map("error", {error: metrics["total"]})
    assert "latency" not in metrics


@pytest.fixture
def tcp_port():
    handler = socketserver.BaseRequestHandler  # which closes the connection
    with serving(socketserver.TCPServer(("127.0.0.1", 0), handler)) as server:
        yield server.server_address[1]


@pytest.fixture
def silent_port():
    """A TCP port that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as listener:
        yield listener.getsockname()[1]


def test_tcp_without_arguments_probes_a_healthy_and_a_closed_port():
    exports = last_exports("probe_tcp.py", *PATIENT, targets=2)
    assert {export.labels["ptype"] for export in exports.values()} == {"tcp"}
    healthy, closed = sorted(exports.values(), key=lambda e: -e.metrics["success"])
    assert_healthy(healthy.metrics)
    assert_failed(closed.metrics, "ConnectionRefusedError")


def test_tcp_probes_the_ports_that_it_is_given(tcp_port):
    healthy, closed = f"127.0.0.1:{tcp_port}", "[::ffff:127.0.0.1]:1"
    status, exports = probe_once("probe_tcp.py", healthy, closed)
    assert status == 1
    assert exports.keys() == {healthy, closed}
    assert_healthy(exports[healthy].metrics)
    assert exports[closed].metrics["success"] == 0


def test_tls_exports_the_expiry_of_certificates_and_refuses_those_that_are_not_valid():
    exports = last_exports("probe_tls.py", *PATIENT, targets=3)
    assert {export.labels["ptype"] for export in exports.values()} == {"tls"}
    by_expiry = sorted(exports.values(), key=lambda e: e.metrics["cert-expiry"])
    expired, *others = (export.metrics for export in by_expiry)
    healthy, another = sorted(others, key=lambda metrics: -metrics["success"])
    assert_healthy(healthy)
    assert_failed(another, "IP-address-mismatch")
    assert_failed(expired, "certificate-has-expired")
    for metrics, days in ((healthy, 90), (another, 90), (expired, -1)):
        assert days - 1 < metrics["cert-expiry"] / 86_400 < days


def test_tls_gives_up_on_a_server_that_never_shakes_hands(silent_port):
    target = f"127.0.0.1:{silent_port}"
    _, exports = probe_once("probe_tls.py", target, "--timeout", "0.2")
    assert_failed(exports[target].metrics, "timeout")


def test_tls_names_the_failure_of_a_server_that_hangs_up(tcp_port):
    target = f"127.0.0.1:{tcp_port}"
    _, exports = probe_once("probe_tls.py", target)
    assert exports[target].metrics["failure"] == 1
    # Depends on whether the server hangs up before or after the client sends something.
    names = {"SSLEOFError", "SSLZeroReturnError", "ConnectionResetError", "BrokenPipeError"}
    assert exports[target].metrics["error"].values.keys() <= names


def test_dns_without_arguments_asks_for_a_healthy_a_missing_and_a_broken_name():
    exports = last_exports("probe_dns.py", *PATIENT, targets=3)
    assert {export.labels["ptype"] for export in exports.values()} == {"dns"}
    metrics = {
        target.partition(".")[0]: export.metrics for target, export in exports.items()
    }
    assert_healthy(metrics["healthy"])
    assert_healthy(metrics["missing"])
    assert_failed(metrics["broken"], "SERVFAIL")
    rcodes = {"healthy": "NOERROR", "missing": "NXDOMAIN", "broken": "SERVFAIL"}
    for name, rcode in rcodes.items():
        assert metrics[name]["rcode"] == Map("rcode", {rcode: metrics[name]["total"]})


class Refuses(socketserver.BaseRequestHandler):
    def handle(self):
        packet, server = self.request
        answer = dns.message.make_response(dns.message.from_wire(packet))
        answer.set_rcode(
            dns.rcode.REFUSED if "refused" in str(answer.question) else dns.rcode.NOERROR
        )
        server.sendto(answer.to_wire(), self.client_address)


def test_dns_asks_the_servers_that_it_is_given():
    with serving(socketserver.UDPServer(("127.0.0.1", 0), Refuses)) as server:
        at = f"127.0.0.1:{server.server_address[1]}"
        healthy, refused = f"example.com@{at}", f"refused.example@{at}"
        status, exports = probe_once("probe_dns.py", healthy, refused)
    assert status == 1
    assert exports.keys() == {healthy, refused}
    assert_healthy(exports[healthy].metrics)
    assert_failed(exports[refused].metrics, "REFUSED")


def test_dns_gives_up_on_a_server_that_does_not_answer():
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        target = f"example.com@127.0.0.1:{silent.getsockname()[1]}"
        _, exports = probe_once("probe_dns.py", target, "--timeout", "0.2")
    assert_failed(exports[target].metrics, "timeout")


def test_custom_result_measures_a_disk_and_the_load_of_the_host():
    exports = last_exports("custom_result.py", targets=2)
    assert exports.keys() == {"/", "localhost"}
    disk, host = exports["/"], exports["localhost"]
    assert (disk.labels["ptype"], host.labels["ptype"]) == ("disk", "host")
    assert disk.metrics["success"] == disk.metrics["total"] > 0
    assert disk.metrics["free-bytes"] >= 0
    assert host.metrics["total"] > 0
    assert host.metrics["load"] >= 0


def test_custom_result_measures_the_disks_that_it_is_given(tmp_path):
    healthy, missing = str(tmp_path), str(tmp_path / "missing")
    status, exports = probe_once("custom_result.py", healthy, missing)
    assert status == 1
    assert exports.keys() == {healthy, missing, "localhost"}
    assert exports[healthy].metrics["success"] == 1
    assert exports[missing].metrics["success"] == 0
    assert exports[missing].metrics["error"] == Map("error", {"FileNotFoundError": 1})


@pytest.mark.parametrize("program", PROGRAMS)
def test_sigterm_ends_each_with_a_last_export(program):
    assert last_exports(program, *PATIENT, targets=1, signum=signal.SIGTERM)


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_ends_after_the_given_time(program):
    status, _, _ = run(program, "--for", "0.5")
    assert status == 0


@pytest.mark.parametrize("program", ["probe_tcp.py", "probe_tls.py"])
@pytest.mark.parametrize(
    "text", ["example.com", "example.com:http", ":80", "[]:80", "a:65536"]
)
def test_anything_but_a_host_and_port_is_refused(program, text):
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
def test_anything_but_a_name_at_a_server_is_refused(text, message):
    assert_refused("probe_dns.py", [text], f"argument NAME@SERVER: {message}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_describes_the_arguments_and_the_end(program):
    status, output, _ = run(program, "--help")
    assert status == 0
    target = {"probe_dns.py": "NAME@SERVER", "custom_result.py": "PATH"}
    for text in (target.get(program, "HOST:PORT"), "--for", "Ctrl-C"):
        assert text in output
