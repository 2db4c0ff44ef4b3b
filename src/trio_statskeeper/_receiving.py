"""Receiving all that waits in a channel at once."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

import trio

T = TypeVar("T")


@trio.lowlevel.enable_ki_protection
async def receive_batch(channel: trio.MemoryReceiveChannel[T], at_most: int) -> list[T]:
    """Wait for an item; return it and those that wait behind it, in their order.

    A reader that needs a scheduler turn for each item lags in a busy loop. The number of
    turns must not grow with the number of items.

    Args:
      channel: where the items come from.
      at_most: how many to return at most, so that the caller can process them in one step.

    Raises:
      trio.EndOfChannel: if nothing waits and all senders have closed.
    """
    batch = [await channel.receive()]
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while len(batch) < at_most:
            batch.append(channel.receive_nowait())
    return batch
