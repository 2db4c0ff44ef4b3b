"""Which targets a prober has, and how often each is probed, and for how long."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs
import trio

from ._arguments import MAX_NUMBER, quote
from ._endpoint import Endpoint, validate_endpoint
from ._health import Health
from ._schedule import Schedule, offset_of
from ._targets import Counts, Target
from ._wakeups import Wakeups

Seconds: TypeAlias = float | Callable[[Endpoint], float]
"""Seconds, or a function of a target that returns them."""

# Else slots of today can't be told apart: they are numbered from 1970.
_SHORTEST_INTERVAL = 1e-6

# Targets, or runs of them, that are removed between two checkpoints.
_REMOVED_BATCH = 25

# Delisted targets of which it is remembered how they failed.
_MAX_DELISTED = 1_000


def validate_seconds(what: str, value: float) -> float:
    """Return an interval or a timeout.

    Raises:
      TypeError: if it is not a number.
      ValueError: if it is not finite and > 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number, got {quote(value)}")
    if not 0 < value <= MAX_NUMBER:
        raise ValueError(f"{what} must be finite and > 0, got {quote(value)}")
    return float(value)


def validate_times(interval: float, timeout: float, of: str = "") -> None:
    """Raise a ValueError if the two cannot be combined."""
    if interval < _SHORTEST_INTERVAL:
        raise ValueError(
            f"interval{of} must be at least a microsecond (1e-06), got {interval!r}"
        )
    if math.isinf(timeout / interval):
        raise ValueError(
            f"timeout{of} divided by interval must be a finite float, got {timeout!r} "
            f"and an interval of {interval!r}"
        )


@trio.lowlevel.disable_ki_protection
def _ask(seconds: Seconds, endpoint: Endpoint) -> float:
    return seconds(endpoint) if callable(seconds) else seconds


@attrs.define(eq=False)
class PastTargets:
    """The health of delisted targets, so that one which comes and goes is not news."""

    _health: OrderedDict[str, Health] = attrs.field(factory=OrderedDict[str, Health])

    def remember(self, target: Target) -> None:
        """Keep the health of a target that is delisted."""
        if target.health is not None:
            self._health[target.endpoint.key] = target.health
            if len(self._health) > _MAX_DELISTED:
                self._health.popitem(last=False)

    def restore(self, target: Target) -> None:
        """Give a target that is listed the health that it had before."""
        target.health = self._health.pop(target.endpoint.key, target.health)


@attrs.define(eq=False)
class Listing:
    """The targets that are listed, and what has changed since the list before."""

    interval: Seconds
    timeout: Seconds
    schedule: Schedule
    wakeups: Wakeups
    counts: Counts
    past: PastTargets
    targets: dict[str, Target] = attrs.field(init=False, factory=dict[str, Target])
    leaving: dict[str, Target] = attrs.field(init=False, factory=dict[str, Target])
    """Targets that are delisted, but whose cancelled runs are not over."""
    shortest_interval: float = attrs.field(init=False)
    """Of the targets that are listed, or were listed last."""
    _number: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.shortest_interval = math.inf if callable(self.interval) else self.interval

    async def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Schedule new targets, and cancel those that are delisted."""
        # A run that was just started is in progress only after a checkpoint.
        await self.wakeups.let_others_run()
        self._number += 1
        listed = 0
        interval = timeout = math.inf
        asks = callable(self.interval) or callable(self.timeout)
        for endpoint in endpoints:
            if self.wakeups.is_step_over():
                await self.wakeups.let_others_run()
            target = self.targets.get(validate_endpoint(endpoint).key)
            if target is not None and target.listing == self._number:
                self.counts.duplicate_targets += 1
                continue
            if asks or target is None or target.endpoint is not endpoint:
                target = self._update_target(endpoint, target)
            target.listing = self._number
            listed += 1
            interval = min(interval, target.interval)
            timeout = min(timeout, target.timeout)
        if listed:
            self.shortest_interval = interval
            self.wakeups.shortest_timeout = timeout
        if listed < len(self.targets):
            await self._remove_delisted()
        await self.schedule.tidy(self.targets)

    def _update_target(self, endpoint: Endpoint, target: Target | None) -> Target:
        """Return the target of an endpoint, which is new if there is none yet."""
        if target is None:
            key = endpoint.key
            # If it was listed before, and has runs that are still not over, these count.
            target = self.leaving.pop(key, None) or Target(endpoint, offset_of(key))
            self.past.restore(target)
            self.targets[key] = target
        target.endpoint = endpoint
        self._update_times(target)
        return target

    def _update_times(self, target: Target) -> None:
        interval, timeout = self.interval, self.timeout
        if callable(interval) or callable(timeout):
            key = quote(target.endpoint.key)
            interval = validate_seconds(
                f"interval of {key}", _ask(interval, target.endpoint)
            )
            timeout = validate_seconds(f"timeout of {key}", _ask(timeout, target.endpoint))
            validate_times(interval, timeout, f" of {key}")
        if interval != target.interval or timeout != target.timeout:
            target.slots.resize(max(math.ceil(timeout / interval), 1))
            target.timeout = timeout
        if interval != target.interval or target.due == -math.inf:
            target.interval = interval
            self.schedule.add(target)

    async def _remove_delisted(self) -> None:  # noqa: ASYNC910  # `update` has let others run
        delisted = list[Target]()
        for target in list(self.targets.values()):
            if self.wakeups.is_step_over():
                await self.wakeups.let_others_run()
            if target.listing != self._number:
                delisted.append(target)
        while delisted:
            target = delisted.pop()
            key = target.endpoint.key
            del self.targets[key]
            self.schedule.remove(target)
            self.past.remember(target)
            if target.runs:
                self.leaving[key] = target
            for run in target.runs:
                run.end()
            if len(delisted) % _REMOVED_BATCH == 0:
                await self.wakeups.let_others_run()

    def clear(self) -> None:
        """Forget all targets but how they failed."""
        for target in self.targets.values():
            self.past.remember(target)
        self.targets.clear()
