"""An OTLP collector in place of httpcore2's pool of connections, on the mock clock."""

from __future__ import annotations

import gzip
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import attrs
import httpcore2
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
        return [
            metric
            for of_resource in self.message.resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
        ]


class Collector:
    """Answers as the judge says, or else the script, its last line over and over."""

    def __init__(self) -> None:
        self.judge: Callable[[Received], Answer | Exception] | None = None
        self.script: list[Answer | Exception] = [Answer()]
        self.received: list[Received] = []
        self.pool_options: dict[str, Any] = {}

    @property
    def totals(self) -> list[dict[str, float]]:
        return [received.totals for received in self.received]

    @property
    def times(self) -> list[float]:
        return [round(received.at, 6) for received in self.received]

    def connect(self, **options: Any) -> Self:
        """Be the pool."""
        self.pool_options = options
        return self

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        pass

    @asynccontextmanager
    async def stream(
        self, method: str, url: httpcore2.URL, headers: Any, content: bytes
    ) -> AsyncGenerator[httpcore2.Response]:
        assert method == "POST"
        fields = {name.lower(): value for name, value in headers}
        assert len(fields) == len(headers)
        if fields.get("content-encoding") == "gzip":
            content = gzip.decompress(content)
        message = ExportMetricsServiceRequest.FromString(content)
        path, _, query = url.target.partition(b"?")
        received = Received(trio.current_time(), path.decode(), query, fields, message)
        self.received.append(received)
        answer = self.answer(received)
        if isinstance(answer, Exception):
            raise answer
        async with trio.open_nursery():  # as real connections have, while they are made
            await trio.sleep(answer.after)
        self.acknowledge(answer)
        yield httpcore2.Response(
            answer.status,
            headers=[(n.encode(), v.encode("latin-1")) for n, v in answer.headers.items()],
            content=answer.body,
        )

    def answer(self, received: Received) -> Answer | Exception:
        if self.judge is not None:
            return self.judge(received)
        return self.script[0] if len(self.script) == 1 else self.script.pop(0)

    def acknowledge(self, answer: Answer) -> None:
        """Do what is to be done as the answer is sent."""
