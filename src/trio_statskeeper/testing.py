"""For tests of programs that have a keeper inside, on Trio's mock clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias, final

import attrs
import trio

from ._arguments import non_negative, quote
from ._endpoint import Endpoint
from ._event_metrics import EventMetrics
from ._values import Value


async def receive_exports(
    exports: trio.MemoryReceiveChannel[EventMetrics],
    count: int,
    *,
    timeout: float = 60.0,  # noqa: ASYNC109  # a scope around it could not say what came
) -> list[EventMetrics]:
    """Return the next `count` exports, waiting for them.

    Args:
      exports: what the keeper, or the program around it, sends to.
      count: how many exports, not passes: each target's counts; at least 1.
      timeout: how many seconds of Trio's clock they may take, all together. On a mock clock
        the waiting costs nothing.

    Raises:
      AssertionError: if fewer came in that time, or before the end of `exports`; it quotes
        those that came.
      ValueError: if `count` is below 1, or `timeout` is negative or NaN.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count!r}")
    received: list[EventMetrics] = []
    missed = f"within {timeout} seconds"
    try:
        with trio.move_on_after(timeout):
            while True:
                received.append(await exports.receive())
                if len(received) == count:
                    return received
    except trio.EndOfChannel:
        missed = "before the channel's end"
    lines = "".join(f"\n  {export}" for export in received)
    raise AssertionError(f"{len(received)} of {count} exports came {missed}{lines}")


def by_metric(exports: Iterable[EventMetrics]) -> dict[str, dict[str, list[Value]]]:
    """Arrange exports by metric, then by target (the label `dst`), in their order.

    `by_metric(exports)["total"]["a.example"] == [1, 3]` if the two exports of a.example had
    a `total` of 1, then of 3. Targets without a metric are not among its targets.
    """
    arranged: dict[str, dict[str, list[Value]]] = {}
    for export in exports:
        for name, value in export.metrics.items():
            targets = arranged.setdefault(name, {})
            targets.setdefault(export.labels["dst"], []).append(value)
    return arranged


def _metrics(metrics: Mapping[str, Value] | None) -> Mapping[str, Value] | None:
    if metrics is None:
        return None
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a mapping or None, got {quote(metrics)}")
    return MappingProxyType(dict(metrics))


def _error(_: object, __: object, error: BaseException | type[BaseException]) -> None:
    kind = error if isinstance(error, type) else type(error)
    if not issubclass(kind, BaseException):
        raise TypeError(
            "error must be an exception or a class of exceptions, such as "
            f"OSError('refused'), got {quote(error)}"
        )


@final
@attrs.frozen
class Succeed:
    """A step that returns metrics.

    Args:
      metrics: what it returns; a read-only copy.
      after: seconds until it does.

    Raises:
      TypeError: if `metrics` is not a mapping, or `after` not a number.
      ValueError: if `after` is negative or not finite.
    """

    metrics: Mapping[str, Value] | None = attrs.field(
        default=None, converter=_metrics, hash=False
    )

    after: float = attrs.field(default=0.0, kw_only=True, validator=non_negative)


@final
@attrs.frozen
class Fail:
    """A step that raises.

    Args:
      error: what it raises: any exception. A `ProbeFailed` may carry metrics and name its
        `error` key; an `Inconclusive` makes the run count as neither a success nor a
        failure.
      after: seconds until it does.

    Raises:
      TypeError: if `error` can't be raised, or `after` is not a number.
      ValueError: if `after` is negative or not finite.
    """

    error: BaseException | type[BaseException] = attrs.field(validator=_error)

    after: float = attrs.field(default=0.0, kw_only=True, validator=non_negative)


@final
@attrs.frozen
class Hang:
    """A step that never ends, until it is cancelled."""


Step: TypeAlias = Succeed | Fail | Hang
"""What one call of a `ScriptedProbe` does."""


def _script(script: Sequence[Step]) -> tuple[Step, ...]:
    if not isinstance(script, Sequence):
        raise TypeError(
            f"script must be a sequence of steps, such as [Hang()], got {quote(script)}"
        )
    if not script:
        raise ValueError("script needs at least one step, such as [Hang()], got none")
    for step in script:
        if not isinstance(step, Step):
            raise TypeError(
                f"a step must be a Succeed, Fail or Hang, such as Hang(), got {quote(step)}"
            )
    return tuple(script)


@final
@attrs.frozen(eq=False)
class ScriptedProbe:
    """A probe that follows a script: one step per call, then always the last.

    Each endpoint, told by its key, is led through the script from its beginning:

        probe = ScriptedProbe([Succeed(after=0.2), Fail(OSError("refused")), Hang()])

    Args:
      script: the steps.

    Raises:
      TypeError: if `script` is not a sequence of steps.
      ValueError: if it is empty.
    """

    script: tuple[Step, ...] = attrs.field(converter=_script)

    calls: list[tuple[float, str]] = attrs.field(
        init=False, factory=list[tuple[float, str]]
    )
    """When (on Trio's clock) it was called, and for which endpoint (its key)."""

    _begun: Counter[str] = attrs.field(init=False, repr=False, factory=Counter[str])

    async def __call__(self, endpoint: Endpoint) -> Mapping[str, Value] | None:
        """Do the endpoint's next step: return its metrics, raise its error, or hang."""
        self.calls.append((trio.current_time(), endpoint.key))
        step = self.script[min(self._begun[endpoint.key], len(self.script) - 1)]
        self._begun[endpoint.key] += 1
        if isinstance(step, Hang):
            await trio.sleep_forever()
        await trio.sleep(step.after)
        if isinstance(step, Fail):
            raise step.error
        return step.metrics
