"""The Prometheus output: which format and coding a scraper gets."""

from __future__ import annotations

import pytest

from trio_statskeeper._http._negotiation import prefers_gzip, prefers_protobuf

ACCEPT = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
    "encoding=delimited"
)
PROMETHEUS_2_42 = (
    f"{ACCEPT},application/openmetrics-text;version=1.0.0;q=0.8,"
    "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,"
    "*/*;q=0.1"
)


@pytest.mark.parametrize(
    "accept",
    [
        ACCEPT,
        PROMETHEUS_2_42,
        ACCEPT.upper().replace(";", " ; "),
        f"{ACCEPT};q=0.6;escaping=allow-utf-8,text/plain;version=1.0.0;q=0.5",
        f"{ACCEPT};q=0.5,text/plain;q=0.5",
        f"text/plain;q=0.4, {ACCEPT};q=0.5",
        f"text/html,text/plain;q=0,{ACCEPT};q=0.001",
    ],
)
def test_protobuf_is_sent_if_it_is_preferred(accept):
    assert prefers_protobuf(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain;version=0.0.4",
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "application/*",
        "application/vnd.google.protobuf",
        ACCEPT.replace("delimited", "text"),
        ACCEPT.replace("MetricFamily", "Metric"),
        f"{ACCEPT};q=0",
        f"{ACCEPT};q=nan",
        f"{ACCEPT};q=inf",
        f"{ACCEPT};q=x",
        f"{ACCEPT};q=0.5,text/plain",
        f"{ACCEPT};q=0.1,text/*;q=0.2",
        f"text/plain;q=0.5,{ACCEPT};q=0.5",
        ";,=;q",
        ACCEPT + "," * 1_000,
    ],
)
def test_text_is_sent_otherwise(accept):
    assert not prefers_protobuf(accept)


@pytest.mark.parametrize(
    "accept_encoding",
    [
        "gzip",
        "GZIP",
        " gzip ",
        "*",
        "gzip, deflate, br",
        "br;q=1.0, gzip;q=0.8, *;q=0.1",
        "gzip;q=0.001",
        "gzip; q=1.000",
        "gzip;q=0.5, identity;q=0.5",
        "identity;q=0.1, *;q=0.2",
        ",,gzip,",
        "gzip;",
        "gzip;level=1",
    ],
)
def test_gzip_is_used_if_the_client_prefers_it(accept_encoding):
    assert prefers_gzip(accept_encoding)


@pytest.mark.parametrize(
    "accept_encoding",
    [
        "",
        "identity",
        "deflate, br",
        "gzip;q=0",
        "gzip;q=0.000, *",
        "*;q=0",
        "gzip;q=0.5, identity",
        "gzip;q=0.5, identity;q=0.6",
        "gzip;q=2",
        "gzip;q=0.5555",
        "gzip;q=nan",
        "gzip;q=",
        "gzipped",
        "gzi p",
        ",;=;,;",
        "\xff",
        ", " * 1_000 + "gzip",
    ],
)
def test_gzip_is_not_used_if_the_client_does_not_prefer_it(accept_encoding):
    assert not prefers_gzip(accept_encoding)
