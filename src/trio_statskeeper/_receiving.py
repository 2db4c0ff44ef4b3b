"""Receiving in batches."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

import trio

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
