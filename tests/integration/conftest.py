"""Real servers as fixtures; real_servers.py says how they come here."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from functools import partial

import pytest
import real_servers
from real_servers import OtlpReceiver, Prometheus, VictoriaMetrics, free_port


@pytest.fixture(scope="session")
def prometheus_programs():
    return real_servers.find_prometheus()


@pytest.fixture(scope="session")
def newer_prometheus():
    return real_servers.find_newer_prometheus()


@pytest.fixture(scope="session")
def mockotlpserver():
    return real_servers.find_mockotlpserver()


@pytest.fixture(scope="session")
def victoria_metrics(tmp_path_factory):
    program = real_servers.find_victoria_metrics()
    folder = tmp_path_factory.mktemp("victoria-metrics")
    with VictoriaMetrics(program, folder) as victoria_metrics:
        yield victoria_metrics


@pytest.fixture
def start_prometheus(prometheus_programs, tmp_path_factory):
    """Start a Prometheus that scrapes these targets: `start("127.0.0.1:80", ...)`."""
    with ExitStack() as servers:

        def start(*targets, scrape_interval="1s", **options):
            folder = tmp_path_factory.mktemp("prometheus")
            program = prometheus_programs[0]
            server = Prometheus(program, folder, targets, scrape_interval, **options)
            return servers.enter_context(server)

        yield start


@pytest.fixture(scope="module")
def port():
    """The port that `prometheus` scrapes."""
    return free_port()


@pytest.fixture(scope="module")
def prometheus(prometheus_programs, tmp_path_factory, port):
    # One for all tests of a file, because its first scrape takes long.
    folder = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{port}"
    with Prometheus(prometheus_programs[0], folder, [address], "500ms") as prometheus:
        yield prometheus


@pytest.fixture
def promtool(prometheus_programs):
    """Run promtool, and return its status and output."""

    def run(*args):
        completed = subprocess.run(
            [prometheus_programs[1], *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=real_servers.TIMEOUT,
        )
        return completed.returncode, completed.stdout

    return run


@pytest.fixture
def promtool_test(promtool, tmp_path):
    """Run `promtool test rules` with series, each a name and its values."""

    def run(series, interval, rules, **tests):
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        test = {"interval": interval, "input_series": inputs, **tests}
        config = {"evaluation_interval": interval, "tests": [test], **rules}
        path = tmp_path / "test.yml"
        path.write_text(json.dumps(config))  # JSON is YAML, too
        return promtool("test", "rules", path)

    return run


@pytest.fixture
def check_metrics(prometheus_programs):
    return partial(real_servers.check_metrics, prometheus_programs[1])


@pytest.fixture
def start_otlp_receiver(mockotlpserver, tmp_path_factory):
    """Start a receiver of OTLP, on this port if any is given."""
    with ExitStack() as servers:

        def start(port=0):
            folder = tmp_path_factory.mktemp("otlp")
            return servers.enter_context(OtlpReceiver(mockotlpserver, folder, port))

        yield start
