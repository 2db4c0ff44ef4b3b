"""What a scraper asks for: the format, and whether it is compressed.

https://www.rfc-editor.org/rfc/rfc9110#name-content-negotiation
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_PROTOBUF = "application/vnd.google.protobuf"
_PROTO = "io.prometheus.client.metricfamily"
_TEXT = {"text/plain", "text/*", "*/*"}

# Characters of a header that is read. Prometheus' have some 400.
_MAX_LENGTH = 1_000

# https://www.rfc-editor.org/rfc/rfc9110#section-12.4.2
_WEIGHT = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)


def prefers_protobuf(accept: str) -> bool:
    """Return whether an Accept header ranks the protobuf format before the text format.

    If both are ranked equally, the one that is named first is preferred.
    """
    best, best_is_protobuf = 0.0, False
    for media_type, parameters, weight in _items(accept):
        is_protobuf = (
            media_type == _PROTOBUF
            and parameters.get("proto") == _PROTO
            and parameters.get("encoding") == "delimited"
        )
        if weight > best and (is_protobuf or media_type in _TEXT):
            best, best_is_protobuf = weight, is_protobuf
    return best_is_protobuf


def prefers_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header asks for gzip."""
    weights = {coding: weight for coding, _, weight in _items(accept_encoding)}
    of_gzip = weights.get("gzip", weights.get("*", 0.0))
    return of_gzip > 0 and of_gzip >= weights.get("identity", 0.0)


def _items(header: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Yield what a header lists: names, parameters, and weights, 0 if not valid."""
    items = header.lower().split(",") if len(header) <= _MAX_LENGTH else ()
    for item in items:
        name, *rest = (part.strip() for part in item.split(";"))
        parameters: dict[str, str] = {}
        for parameter in rest:
            key, _, parameters[key] = parameter.partition("=")
        weight = _WEIGHT.fullmatch(parameters.get("q", "1"))
        yield name, parameters, float(weight[0]) if weight else 0.0
