"""Servers on loopback, in threads of their own."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(server):
    """Serve in a thread while the block runs; yield the server."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class HttpServer(ThreadingHTTPServer):
    """An HTTP server that answers by `handle(request)`, a `BaseHTTPRequestHandler`."""

    daemon_threads = True
    request_queue_size = 200

    def __init__(self, handle):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.handle = handle
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.handle(self)

    def do_POST(self):
        self.server.handle(self)

    def log_message(self, *_):
        pass


def answer(request, status=200, body=b"", **headers):
    """Answer a request; `Some_Header="value"` adds a header."""
    request.send_response(status)
    for name, value in {**headers, "Content_Length": str(len(body))}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)
