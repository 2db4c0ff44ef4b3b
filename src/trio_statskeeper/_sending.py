"""Sending many items per turn of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from time import perf_counter
from typing import Generic, TypeVar, final

import attrs
import trio

from ._nursery import open_flat_nursery

T = TypeVar("T")

# Seconds per step for getting items. Probes stay precise if a step takes a millisecond.
_TIME_PER_STEP = 0.0005

# Once the channel is full: the tasks that wait in `send` with one item each, how many of
# them start per step, and the seconds for getting items in all of their short steps of one
# turn of the scheduler.
_SENDERS = 100
_STARTED_PER_STEP = 25
_TIME_PER_TURN = 0.001


async def send_all(
    channel: trio.MemorySendChannel[T],
    items: Iterator[T | None],
    at_most: int,
    note_sent: Callable[[], None],
) -> None:
    """Send items in order, as many per turn of the scheduler as are received.

    A sender that needs a turn for each item is slow in a busy loop. So items are sent in
    one step while the channel has room. Once it is full, or if it has no buffer, many tasks
    wait with one item each: a receiver that takes all waiting items gets that many at once.

    Args:
      channel: the channel to send to.
      items: the items. It is advanced for at most a millisecond per turn, so it yields None
        after work that produced no item.
      at_most: the maximum number of items.
      note_sent: called for each item that was received or buffered.

    Raises:
      BaseException: what `items` raised, an `Exception` only after all items before it were
        received, or what `send` raises.
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
                    self._raised = None  # avoids a reference cycle through the traceback

    @trio.lowlevel.enable_ki_protection
    async def _send(self) -> None:
        """Send items until there are no more.

        The items stay in order, however Trio orders the senders: there is no checkpoint
        between getting an item and waiting with it.
        """
        while True:  # noqa: ASYNC913  # each path has a checkpoint
            item = self._next()
            if item is not None:
                await self.channel.send(item)
                self.note_sent()
            elif self._ended:
                return  # noqa: ASYNC910  # without an item, nothing to wait for
            else:
                await self._wait_for_the_next_turn()

    def _next(self) -> T | None:
        """Return the next item, or None if there are no more, or the time is up."""
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
