"""The results of probe runs, and the reasons for which a keeper rejects them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias, final

import attrs

from ._arguments import plain_str, quote, validate_items
from ._endpoint import Endpoint
from ._plain_values import PlainValue
from ._values import Value, plain_value

Reason: TypeAlias = Literal[
    "error",
    "type",
    "kind",
    "bounds",
    "negative",
    "not-finite",
    "overflow",
    "map-name",
    "map-keys",
    "metrics",
    "unlisted",
]
"""Why a result was rejected: see `KeeperStatistics.results_rejected`."""


class ProbeResult(Protocol):
    """The result of one probe run, as it is sent to the keeper.

    `Result` implements this protocol. A class of your own needs no base class.
    """

    @property
    def target(self) -> str:
        """The `Endpoint.key` of the target that was probed."""
        ...

    def metrics(self) -> Mapping[str, Value]:
        """Return what this run adds, by metric name: a delta, not a total."""
        ...


def _key(target: str | Endpoint) -> str:
    if isinstance(target, Endpoint):
        return target.key
    if isinstance(target, str):
        if not target:
            raise ValueError("target must not be empty")
        return plain_str(target)
    raise TypeError(f"target must be a string or an Endpoint, got {quote(target)}")


@final
@attrs.frozen(init=False, repr=False)
class Result(PlainValue):
    """The result of one probe run: a target, and what the run adds to its metrics.

        await results.send(Result(endpoint, {"total": 1, "latency": 0.2}))

    The keeper checks whether the values can be added to the totals, as it does for any
    `ProbeResult`.

    Raises:
      TypeError: if `target` is neither a string nor an `Endpoint`, `metrics` is not a
        mapping, a name in it is not a string, or a value not one of a metric.
      ValueError: if `target` is empty, or a number is NaN or beyond the largest float.
    """

    target: str
    """The `Endpoint.key` of the target that was probed."""

    _metrics: Mapping[str, Value] = attrs.field(hash=False)

    # Written by hand: for type checkers, an attribute with a converter is not the plain
    # `str` that `ProbeResult` requires.
    def __init__(self, target: str | Endpoint, metrics: Mapping[str, Value]) -> None:
        object.__setattr__(self, "target", _key(target))
        deltas = validate_items("metric", metrics, plain_value)
        object.__setattr__(self, "_metrics", deltas)

    def metrics(self) -> Mapping[str, Value]:
        """Return what this run adds, by metric name; a read-only copy."""
        return self._metrics

    def __repr__(self) -> str:
        return f"Result({self.target!r}, {dict(self._metrics)!r})"


def unchecked_result(target: str, metrics: Mapping[str, Value]) -> Result:
    """Return a `Result` of valid arguments; `metrics` becomes its own, without a copy."""
    # A prober makes one for each run (row 9 of the benchmarks).
    unchecked = Result.__new__(Result)
    object.__setattr__(unchecked, "target", target)
    object.__setattr__(unchecked, "_metrics", metrics)
    return unchecked
