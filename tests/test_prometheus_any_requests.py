"""The Prometheus output: no request makes the server fail."""

from __future__ import annotations

import logging

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scraping import server_of
from trio.testing import MockClock, memory_stream_pair

from trio_statskeeper.prometheus import PrometheusExporter

# scrypt's fastest
HASH = "$scrypt$ln=1,r=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"

METHODS = b"HEAD", b"GET", b"POST", b"CONNECT", b"OPTIONS", b"get", b"G T", b""

TARGETS = (
    b"/",
    b"/metrics",
    b"/-/healthy",
    b"/x",
    b"*",
    b"//",
    b"?",
    b"\xff",
    b"/metrics?name[]=%zz&x",
    b"a:443",
    b"http://a/metrics",
    b"http://a?x=1",
    b"http:///metrics",
    b"http://[/",
    b"http://[::1]:x/",
)

VERSIONS = b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.9", b"HTTP/1.", b""

HEADERS = (
    b"Host: a",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"Content-Length: 99999",
    b"Content-Length: -1",
    b"Content-Length: \xb2",
    b"Content-Length: 3, 3",
    b"Content-Length: " + b"9" * 5_000,
    b"Expect: 100-continue",
    b"Expect: x",
    b"Upgrade: h2c",
    b"Connection: upgrade, close",
    b"Connection: keep-alive",
    b"Connection: close",
    b"Accept-Encoding: gzip",
    b"Accept: \xff\xfe",
    b"Authorization: Basic \xff",
    b"X",
    b" x: y",
    b"X: \0",
    b": a",
)

BODIES = b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"x" * 9_000, b"\r\n", b"GARBAGE\r\n\r\n"


def some(values):
    """Return one of the values; the first more often than others."""
    return st.one_of(st.just(values[0]), st.sampled_from(values))


@st.composite
def sent_requests(draw):
    """What a client sends: requests, or nearly so."""
    sent = b""
    for _ in range(draw(st.integers(1, 4))):
        request_line = b" ".join(draw(some(part)) for part in (METHODS, TARGETS, VERSIONS))
        headers = draw(st.lists(st.sampled_from(HEADERS), max_size=3))
        host = draw(st.sampled_from([[b"Host: a"], []]))
        sent += b"\r\n".join([request_line, *host, *headers, b"", draw(some(BODIES))])
    return sent[: draw(st.sampled_from([None, None, None, -1, -100]))]


def sends(*parts):
    """Return an example of a client that sends this at once."""
    sent = b"\r\n".join(parts)
    return example(sent=sent, size=10_000, ends=False, max_connections=1, users=None)


@sends(b"HEAD / HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked", b"", b"")
@sends(b"HEAD / HTTP/1.1", b"Host: a", b"Content-Length: 99999", b"", b"")
@sends(b"HEAD / HTTP/2.0", b"Host: a", b"", b"")
@sends(b"HEAD http://[/ HTTP/1.1", b"Host: a", b"", b"")
@sends(b"HEAD / HTTP/1.1", b"Host: a", b"", b"GARBAGE", b"", b"")
@settings(max_examples=300, deadline=None)
@given(
    sent=sent_requests(),
    size=st.sampled_from([5, 100, 10_000]),
    ends=st.booleans(),
    max_connections=st.integers(0, 1),
    users=st.sampled_from([None, {"a": HASH}]),
)
def test_no_request_makes_the_server_fail(sent, size, ends, max_connections, users):
    server = server_of(PrometheusExporter(users=users))
    server._max_connections = max_connections

    async def client(stream):
        try:
            for begin in range(0, len(sent), size):
                await stream.send_all(sent[begin : begin + size])
            if ends:
                await stream.send_eof()
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass

    async def serve():
        ours, stream = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client, ours)
            async with stream:
                await server.serve_stream(stream)

    failures = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = failures.append
    logger = logging.getLogger("trio_statskeeper")
    logger.addHandler(handler)
    try:
        trio.run(serve, clock=MockClock(autojump_threshold=0))
    finally:
        logger.removeHandler(handler)
    assert not failures
    assert not server._waiting
    assert not server._answering
    assert not server._refused
