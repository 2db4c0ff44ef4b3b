"""Why a request did not succeed: from a collector's answer, or from an exception.

https://opentelemetry.io/docs/specs/otlp/#otlphttp-response
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

import attrs
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from trio_statskeeper._arguments import quote

# "The requests that receive a response status code listed in following table SHOULD be
# retried": https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes
_RETRYABLE = frozenset((429, 502, 503, 504))

# A part of the request was refused; the rest may be accepted.
_BAD_DATA = frozenset((400, 422))

# Characters of an exception that are logged: some quote all data that they received.
_MAX_CAUSE_LENGTH = 200

Kind: TypeAlias = Literal["remark", "retried", "cut off", "too large", "bad data", "other"]


@attrs.frozen
class Problem:
    """Why a request did not succeed, or not completely."""

    what: str
    """What is logged, once."""
    detail: str = ""
    """Logged with it, but not part of what makes two problems the same."""
    kind: Kind = "retried"
    """What to do. `remark`: nothing, the collector accepted the request. `retried`: send
    the request again. `cut off`: likewise, but it may have been too large. The others: do
    not send this request again."""
    retry_after: float | None = None
    """Seconds that the collector asks for."""


def problem_in(status: int, headers: Mapping[bytes, str], answer: bytes) -> Problem | None:
    """Return what is wrong according to the collector's answer, if anything."""
    if 200 <= status < 300:
        message = ExportMetricsServiceResponse()
        try:
            message.ParseFromString(answer)
        except DecodeError:
            return None  # without a readable body there is no partial success
        rejected = message.partial_success.rejected_data_points
        remark = message.partial_success.error_message
        if not rejected and not remark:
            return None
        what = f"a partial success: {quote(remark)}"
        return Problem(what, f", {rejected} data points rejected", kind="remark")
    said = _message(headers.get(b"content-type", ""), answer)
    what, detail = f"status {status}", f": {quote(said)}" if said else ""
    if status in _RETRYABLE:
        retry_after = _seconds(headers.get(b"retry-after", ""))
        return Problem(what, detail, retry_after=retry_after)
    if status == 413:
        return Problem(what, detail, kind="too large")
    return Problem(what, detail, kind="bad data" if status in _BAD_DATA else "other")


def _message(content_type: str, answer: bytes) -> str:
    """Return the message of an error: that of a google.rpc.Status, or plain text."""
    if content_type.startswith("application/x-protobuf"):
        # Its fields are those of a Status: an integer, and the message.
        status = ExportMetricsPartialSuccess()
        with suppress(DecodeError):
            status.ParseFromString(answer)
        return str(status.error_message)
    text = answer.decode(errors="replace")
    if content_type.startswith("application/json"):
        with suppress(ValueError, TypeError, LookupError, RecursionError):
            return str(json.loads(text)["message"])
    # Binary data is not a message.
    return "" if re.search("[\0-\x08\x0e-\x1f]", text) else text


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header, which may have a date instead.

    https://www.rfc-editor.org/rfc/rfc9110.html#section-10.2.3
    """
    if re.fullmatch("[0-9]+", retry_after):
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def why(error: BaseException) -> str:
    """Return the name of the exception's class, and what its innermost cause says."""
    name = type(error).__name__
    while not str(error) and (cause := error.__cause__ or error.__context__):
        error = cause
    return f"{name}: {str(error)[:_MAX_CAUSE_LENGTH]}"
