"""Receiving all that waits in a channel at once."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from helpers import channel_of

from trio_statskeeper._receiving import receive_batch


async def test_a_batch_is_what_waits_in_order_up_to_a_limit():
    channel = channel_of(*"abcde")
    assert await receive_batch(channel, 3) == ["a", "b", "c"]
    assert await receive_batch(channel, 3) == ["d", "e"]
    with pytest.raises(trio.EndOfChannel):
        await receive_batch(channel, 3)


async def test_a_batch_has_what_blocked_senders_offer_in_the_same_turn():
    send, receive = trio.open_memory_channel[str](0)
    async with trio.open_nursery() as nursery:
        for item in "abc":
            nursery.start_soon(send.send, item)
            await trio.testing.wait_all_tasks_blocked()
        assert await receive_batch(receive, 10) == ["a", "b", "c"]
