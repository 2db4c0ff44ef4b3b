"""fan_out amid outputs that lag, stop and come back, and lists of targets that change.

A plain model says what must hold at each receipt. To play more scenarios than the suite:

    python tests/test_fan_out_scenarios.py 10000
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import attrs
import trio
from trio.testing import MockClock

from trio_statskeeper import EventMetrics, _conflating, _fan_out, _pacing, fan_out
from trio_statskeeper._fan_out import _Feed


@attrs.frozen
class Sent:
    """What was sent of each target, and when anything was last sent."""

    newest: dict[str, EventMetrics] = attrs.field(factory=dict)
    last: float = 0.0

    def fresh(self) -> dict[str, int]:
        """Return the newest total of each target that is not stale."""
        return {
            target: export.metrics["total"]
            for target, export in self.newest.items()
            if export.timestamp + 3 * export.export_interval >= self.last
        }


@attrs.define(eq=False)
class Scenario:
    seed: int
    dice: random.Random = attrs.field(init=False)
    now: Sent = attrs.field(init=False, factory=Sent)
    before: Sent = attrs.field(init=False, factory=Sent)
    """What was sent before this instant: by now, `fan_out` must have acted on it."""
    ended: bool = attrs.field(init=False, default=False)
    most_fresh: int = attrs.field(init=False, default=0)
    feeds: list[_Feed] = attrs.field(init=False, factory=list)
    received: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311

    def feed(self, *args: Any) -> _Feed:
        self.feeds.append(_Feed(*args))
        return self.feeds[-1]

    def settled(self) -> Sent:
        return self.now if trio.current_time() > self.now.last else self.before

    async def produce(self, exports: trio.MemorySendChannel[EventMetrics]) -> None:
        dice = self.dice
        interval = dice.choice((1, 2, 5))
        pool = [f"target {n}" for n in range(dice.choice((1, 3, 6, 6, 30)))]
        intervals = {target: interval * dice.choice((1, 1, 1, 4)) for target in pool}
        with exports:
            for number in range(dice.randint(1, 8)):
                for target in dice.sample(pool, dice.randint(1, len(pool))):
                    now = trio.current_time()
                    labels = {"dst": target}
                    each = EventMetrics(
                        now, 0, labels, {"total": number}, 1, intervals[target]
                    )
                    self.before = self.settled()
                    self.now = Sent({**self.now.newest, target: each}, now)
                    self.most_fresh = max(self.most_fresh, len(self.now.fresh()))
                    await exports.send(each)
                    if dice.random() < 0.1:
                        await trio.sleep(interval / 10)
                await trio.sleep(interval * dice.choice((1, 1, 1, 2.5, 4, 7)))
                for feed in self.feeds:
                    assert len(feed.waiting) <= 2 * self.most_fresh, "memory grows"
            self.ended = True

    async def listen(
        self, dice: random.Random, exports: trio.MemoryReceiveChannel[EventMetrics]
    ) -> None:
        got: dict[str, int] = {}
        at_once = dice.choice((1, 2, 1000))
        patience = dice.choice((0.7, 1000, 1000))
        pauses = [dice.choice((0, 0, 0.3, 5, 17)) for _ in range(5)]
        stays = dice.random() < 0.8
        with exports:
            while stays or dice.random() < 0.8:
                began = trio.current_time()
                batch = []
                try:
                    with trio.move_on_after(patience):
                        batch.append(await exports.receive())
                    while batch and len(batch) < at_once:
                        batch.append(exports.receive_nowait())
                except trio.WouldBlock:
                    pass
                except trio.EndOfChannel:
                    if not batch:
                        assert self.ended, "told of an end while exports go on"
                        self.has_all(got, self.now)
                        return
                if trio.current_time() > began:
                    self.has_all(got, self.settled())  # it was waiting all the time
                for each in batch:
                    self.take(got, each)
                await trio.sleep(dice.choice(pauses))
        await trio.sleep(dice.choice((0, 3)))

    def take(self, got: dict[str, int], export: EventMetrics) -> None:
        target, total = export.labels["dst"], export.metrics["total"]
        settled = self.settled()
        assert total > got.get(target, -1), "older after newer"
        if target in settled.newest:
            newest = settled.newest[target].metrics["total"]
            assert total >= newest, "not the newest"
            assert total > newest or target in settled.fresh(), "stale"
        got[target] = total
        self.received += 1

    def has_all(self, got: dict[str, int], sent: Sent) -> None:
        fresh = sent.fresh()
        assert {target: got.get(target) for target in fresh} == fresh, (
            "something is missing"
        )

    async def main(self, fan: Callable[..., Awaitable[None]]) -> None:
        dice = self.dice
        send, exports = trio.open_memory_channel[EventMetrics](dice.choice((0, 2, 1000)))
        outputs = [
            partial(self.listen, random.Random(dice.random()))  # noqa: S311
            for _ in range(dice.randint(1, 3))
        ]
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._produce_until_none_receives, send)
                nursery.start_soon(fan, exports, *outputs)
        assert exports.statistics().open_receive_channels == 0

    async def _produce_until_none_receives(
        self, send: trio.MemorySendChannel[EventMetrics]
    ) -> None:
        try:
            await self.produce(send)
        except trio.BrokenResourceError:
            self.ended = True


def play(seed: int, fan: Callable[..., Awaitable[None]] = fan_out) -> int:
    """Play a scenario; return how many exports were received."""
    scenario = Scenario(seed)
    dice = random.Random(seed)  # noqa: S311
    with (
        patch.object(_fan_out, "_BUFFER_SIZE", dice.choice((1, 3, 200)), create=True),
        patch.object(_pacing, "_STEP_TIME", dice.choice((0, 1000))),
        patch.object(_fan_out, "_Feed", scenario.feed),
        patch.object(_conflating, "_CHECKED_BATCH", dice.choice((1, 500))),
        patch.object(logging.getLogger("trio_statskeeper"), "disabled", True),
    ):
        trio.run(scenario.main, fan, clock=MockClock(autojump_threshold=0))
    return scenario.received


def test_a_lagging_output_gets_the_newest_of_each_target_and_nothing_old():
    assert sum(play(seed) for seed in range(200)) > 2000


if __name__ == "__main__":
    for seed in range(int(sys.argv[1])):
        try:
            play(seed)
        except BaseException:
            print(f"seed {seed}:")  # noqa: T201
            raise
