"""Receiving many items in each turn of the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import trio

from ._event_metrics import EventMetrics
from ._pacing import Step

T = TypeVar("T")


@trio.lowlevel.enable_ki_protection
async def receive_batch(channel: trio.MemoryReceiveChannel[T], at_most: int) -> list[T]:
    """Wait for an item; return it and those that wait behind it, in order.

    A receiver that needs a turn of the scheduler for each item lags in a busy loop.

    Args:
      channel: where the items come from.
      at_most: the most items to return: what the caller can process in one step.

    Raises:
      trio.EndOfChannel: if nothing waits and all senders have closed.
    """
    batch = [await channel.receive()]
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while len(batch) < at_most:
            batch.append(channel.receive_nowait())
    return batch


class Inbox(Protocol):
    """Where exports wait until they are processed."""

    @property
    def waiting(self) -> object:
        """What waits; false if nothing does."""
        ...

    def use(self, clock: trio.abc.Clock) -> None: ...

    def put(self, export: EventMetrics) -> None: ...


@trio.lowlevel.enable_ki_protection
async def process_all(
    exports: trio.MemoryReceiveChannel[EventMetrics],
    inbox: Inbox,
    process_first: Callable[[], None],
) -> None:
    """Receive exports, as many as wait, and process them in short steps, until they end.

    Processing takes longer than receiving, so in a busy loop exports wait in the inbox
    rather than in the channel.

    Args:
      exports: closed on return.
      inbox: where exports wait. Those that wait when this is cancelled are left there.
      process_first: processes the export that has waited longest.
    """
    inbox.use(trio.lowlevel.current_clock())
    with exports, suppress(trio.EndOfChannel):
        while True:
            if inbox.waiting:
                await trio.lowlevel.checkpoint()
            else:
                inbox.put(await exports.receive())
            step = Step()
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while not step.is_half_over:
                    inbox.put(exports.receive_nowait())
            while inbox.waiting:
                process_first()
                if step.is_over:
                    break
    await trio.lowlevel.checkpoint()
