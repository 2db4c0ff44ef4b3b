"""A real program is ended by a signal: each output has the last totals."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import loads
from pathlib import Path

import pytest
from fake_collector import Received
from loopback import serving
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from trio_statskeeper.lines import from_json

PROGRAM = Path(__file__).parent / "clean_end_program.py"


class Collector(BaseHTTPRequestHandler):
    """Takes its time to answer, and notes the totals when it has."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        message = ExportMetricsServiceRequest.FromString(gzip.decompress(body))
        time.sleep(0.2)
        self.send_response(200)
        self.end_headers()
        self.server.totals.update(Received(0, self.path, b"", {}, message).totals)
        self.server.received.set()

    def log_message(self, *args):
        pass


@pytest.fixture
def collector():
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Collector)) as server:
        server.totals = {}
        server.received = threading.Event()
        yield server


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_each_output_has_the_last_totals(collector, tmp_path, signum):
    lines = tmp_path / "metrics.log"
    url = f"http://127.0.0.1:{collector.server_port}"
    command = [sys.executable, PROGRAM, url, lines, signal.Signals(signum).name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert collector.received.wait(60)
        program.send_signal(signum)
        output, errors = program.communicate(timeout=60)
    counted = loads(output)
    exports = map(from_json, lines.read_text().splitlines())
    written = {export.labels["dst"]: export.metrics["total"] for export in exports}
    assert counted["prometheus"] == collector.totals == written
    assert sum(written.values()) == counted["sent"] > 0
    if signum == signal.SIGTERM:
        assert (program.returncode, errors) == (0, "")
    else:
        assert program.returncode == -signal.SIGINT
        assert errors.splitlines()[-1] == "KeyboardInterrupt"
        assert "Exception Group" not in errors
