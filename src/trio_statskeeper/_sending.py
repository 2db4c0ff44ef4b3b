"""Sending many items in each turn of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from time import perf_counter
from typing import Generic, TypeVar, final

import attrs
import trio

from ._nursery import open_flat_nursery

T = TypeVar("T")

# Seconds for getting items, in one step. A loop that is held up for a millisecond still
# probes precisely.
_TIME_PER_STEP = 0.0005

# Tasks that wait in `send` with one item each where the channel has no room, and seconds
# for getting items in all of their steps, which are short, of one turn of the scheduler.
_SENDERS = 100
_STARTED_PER_STEP = 25
_TIME_PER_TURN = 0.001


async def send_all(
    channel: trio.MemorySendChannel[T],
    items: Iterator[T | None],
    at_most: int,
    note_sent: Callable[[], None],
) -> None:
    """Send items in their order, as many in each turn of the scheduler as are received.

    A sender that needs a turn for each item lags in a busy loop. So items are handed over
    in one step as long as the channel takes them. Once it has no room, or if it has no
    buffer at all, many tasks wait with one item each: a receiver that takes all that waits
    gets that many at once.

    Args:
      channel: where the items go.
      items: the items. It is advanced for a millisecond per turn at most, so it yields None
        where it has worked but has no item.
      at_most: how many items there are at most.
      note_sent: called for each item that was received or buffered.

    Raises:
      BaseException: what `items` raised, an `Exception` once the items before were
        received; and what `send` raises.
    """
    await _Sending(channel, items, note_sent).send_all(at_most)


@final
@attrs.define(eq=False)
class _Sending(Generic[T]):
    channel: trio.MemorySendChannel[T]
    items: Iterator[T | None]
    note_sent: Callable[[], None]

    # All senders share the time of a turn.
    _time_per_turn: float = attrs.field(init=False, factory=lambda: _TIME_PER_STEP)
    _time_left: float = attrs.field(init=False, factory=lambda: _TIME_PER_STEP)
    _turn: int = attrs.field(init=False, default=0)
    _ended: bool = attrs.field(init=False, default=False)
    _raised: Exception | None = attrs.field(init=False, default=None)

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, at_most: int) -> None:  # noqa: ASYNC910  # see `_send`
        while True:
            item = self._next()
            if item is not None:
                try:
                    self.channel.send_nowait(item)
                except trio.WouldBlock:
                    break
                self.note_sent()
                at_most -= 1
            elif self._ended:
                break
            else:
                await self._wait_for_the_next_turn()
        try:
            if item is not None:
                self.items = chain((item,), self.items)
                self._time_per_turn = _TIME_PER_TURN
                async with open_flat_nursery() as nursery:
                    for number in range(1, min(at_most, _SENDERS) + 1):
                        nursery.start_soon(self._send)
                        if number % _STARTED_PER_STEP == 0:
                            await trio.lowlevel.checkpoint()
        finally:
            if self._raised is not None:
                try:
                    raise self._raised
                finally:
                    self._raised = None  # else it would refer to itself, by its traceback

    @trio.lowlevel.enable_ki_protection
    async def _send(self) -> None:
        """Send items until there are no more.

        In whatever order Trio runs the senders, the items stay in theirs: there is no
        checkpoint between getting an item and queueing up with it.
        """
        while True:  # noqa: ASYNC913  # each way on has a checkpoint
            item = self._next()
            if item is not None:
                await self.channel.send(item)
                self.note_sent()
            elif self._ended:
                return  # noqa: ASYNC910  # what has nothing to send need not wait
            else:
                await self._wait_for_the_next_turn()

    def _next(self) -> T | None:
        """Return the next item, or None if there are no more, or time is up."""
        item: T | None = None
        while item is None and self._time_left > 0:
            began = perf_counter()
            try:
                item = next(self.items)
            except StopIteration:
                self._ended = True
                break
            except Exception as error:  # noqa: BLE001  # see `send_all`
                self._raised = error
                self._ended = True
                break
            self._time_left -= perf_counter() - began
        return item

    async def _wait_for_the_next_turn(self) -> None:
        turn = self._turn
        await trio.lowlevel.checkpoint()
        if turn == self._turn:  # the first sender to run in it
            self._turn += 1
            self._time_left = self._time_per_turn
