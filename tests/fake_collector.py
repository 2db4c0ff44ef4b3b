"""An OTLP collector as an ASGI application, for tests on the mock clock."""

from __future__ import annotations

import gzip
from typing import Any

import attrs
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

ENDPOINT = "http://collector:4318"


@attrs.frozen
class Answer:
    """What the collector answers, and after how long."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = attrs.field(factory=dict)
    after: float = 0


@attrs.frozen
class Received:
    at: float
    path: str
    query: bytes
    headers: dict[str, str]
    message: ExportMetricsServiceRequest

    @property
    def totals(self) -> dict[str, float]:
        """The values of `probe_total`, by target."""
        return self.values("probe_total", "dst")

    def values(self, name: str, attribute: str) -> dict[str, float]:
        """The values of a sum, by one of its attributes."""
        return {
            each.value.string_value: point.as_int
            for metric in self.metrics
            if metric.name == name
            for point in metric.sum.data_points
            for each in point.attributes
            if each.key == attribute
        }

    @property
    def metrics(self):
        [of_resource] = self.message.resource_metrics
        [of_scope] = of_resource.scope_metrics
        return of_scope.metrics


class Collector:
    """Answers as the script says, its last line over and over."""

    def __init__(self) -> None:
        self.script: list[Answer | Exception] = [Answer()]
        self.received: list[Received] = []
        self.client_options: dict[str, Any] = {}

    @property
    def totals(self) -> list[dict[str, float]]:
        return [received.totals for received in self.received]

    @property
    def times(self) -> list[float]:
        return [round(received.at, 6) for received in self.received]

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        message = {"more_body": True}
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.received.append(
            Received(
                trio.current_time(),
                scope["path"],
                scope["query_string"],
                headers,
                ExportMetricsServiceRequest.FromString(body),
            )
        )
        answer = self.script[0] if len(self.script) == 1 else self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        async with trio.open_nursery():  # as real connections have, while they are made
            await trio.sleep(answer.after)
        headers = [
            (name.encode(), text.encode("latin-1")) for name, text in answer.headers.items()
        ]
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": answer.body})
