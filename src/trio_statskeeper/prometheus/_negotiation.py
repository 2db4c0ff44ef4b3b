"""Which format a scraper asks for.

https://www.rfc-editor.org/rfc/rfc9110#name-accept
"""

from __future__ import annotations

import math

_PROTOBUF = "application/vnd.google.protobuf"
_PROTO = "io.prometheus.client.metricfamily"


def prefers_protobuf(accept: str) -> bool:
    """Return whether a header "Accept" ranks the protobuf format before the text format.

    If both are ranked equally, the one that is named first is preferred. What can't be read
    is ignored.
    """
    best, best_is_protobuf = 0.0, False
    for media_range in accept.split(","):
        media_type, *parameters = (part.strip() for part in media_range.lower().split(";"))
        pairs: dict[str, str] = {}
        for parameter in parameters:
            name, _, pairs[name] = parameter.partition("=")
        is_protobuf = (
            media_type == _PROTOBUF
            and pairs.get("proto") == _PROTO
            and pairs.get("encoding") == "delimited"
        )
        weight = _weight(pairs.get("q", "1"))
        if weight > best and (is_protobuf or media_type in {"text/plain", "text/*", "*/*"}):
            best, best_is_protobuf = weight, is_protobuf
    return best_is_protobuf


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if math.isfinite(weight) else 0.0
