"""What the tests of the prober share: probes, and a prober that runs on the mock clock."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from trio_statskeeper import Endpoint, Prober, ProbeResult
from trio_statskeeper.testing import Hang, ScriptedProbe, Succeed

A, B = Endpoint("a"), Endpoint("b")


async def well(endpoint: Endpoint) -> None:
    await trio.lowlevel.checkpoint()


def slow(seconds: float = 0.25) -> ScriptedProbe:
    return ScriptedProbe([Succeed(after=seconds)])


def hanging() -> ScriptedProbe:
    return ScriptedProbe([Hang()])


def times(probe: ScriptedProbe, key: str) -> list[float]:
    """Return when `probe` was called for the target."""
    return [time for time, called in probe.calls if called == key]


def make_prober(probe: Any, targets: Any = (A,), **options: Any) -> Prober:
    listed = targets if callable(targets) else lambda: targets
    defaults = {"interval": 1, "timeout": 0.5, "clock": trio.current_time}
    return Prober(probe, listed, **(defaults | options))


@attrs.frozen
class Running:
    """A prober that runs, and the other end of its channel."""

    results: trio.MemoryReceiveChannel[ProbeResult]
    nursery: trio.Nursery

    def received(self) -> list[tuple[str, dict]]:
        """Return target and metrics of what was sent since the last call."""
        received = []
        try:
            while True:
                result = self.results.receive_nowait()
                received.append((result.target, dict(result.metrics())))
        except (trio.WouldBlock, trio.EndOfChannel):
            return received


@asynccontextmanager
async def running(prober: Prober, buffer: float = math.inf) -> AsyncGenerator[Running]:
    results_send, results_receive = trio.open_memory_channel[ProbeResult](buffer)
    async with trio.open_nursery() as nursery:
        await nursery.start(prober.run, results_send)
        yield Running(results_receive, nursery)
        nursery.cancel_scope.cancel()
