"""One exports channel to many outputs.

Theory of operation
===================

Each output has a queue of what it still has to get, with the newest export of each series,
and a channel whose buffer holds the first of that queue. The queue is what counts: an
export is removed from it only when the output has taken it from the buffer.

An output that keeps up empties the buffer each time, so that exports go through in batches.
When an output lags, newer exports replace those in the queue. If one of them is in the
buffer, all that is there is taken back, by a clone of the output's end, and the buffer is
filled again from the queue: what an output receives is never old.

A task for each output waits until there is room in a full buffer, and fills it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from operator import is_
from time import perf_counter
from typing import TypeAlias

import attrs
import trio

from ._event_metrics import EventMetrics
from ._log import logger
from ._newest import Newest, arrival_of, when_gone
from ._nursery import open_flat_nursery

# What an output is: an async function that receives exports until they end.
Output: TypeAlias = Callable[[trio.MemoryReceiveChannel[EventMetrics]], Awaitable[object]]

# Exports in the channel of an output, which can take them all in one scheduler turn. Taking
# them back and filling it again takes about a quarter of a millisecond per lagging output.
_BUFFER = 200

# Exports that are dropped between two checkpoints: freeing many at once takes long.
_DROPPED_BATCH = 500

# Seconds of receiving between two checkpoints.
_STEP = 0.0005


@trio.lowlevel.enable_ki_protection
async def fan_out(
    exports: trio.MemoryReceiveChannel[EventMetrics], *outputs: Output
) -> None:
    """Run several outputs, none of which delays the others or the keeper.

        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(fan_out, exports_receive, prometheus.run, write_lines)

    An output is an async function of a channel, from which it receives each export until
    they end. An output that lags gets, when it comes back, the newest export of each
    target: those in between are skipped, and so are targets that have not come for three
    export intervals.

    When `exports` ends, each output gets what it still has to get, then its channel ends,
    and `fan_out` returns when all outputs have returned. An output that returns or closes
    its channel before that gets no more exports, which is logged, and the others go on.
    When no output receives any more, `fan_out` closes `exports`.

    What an output raises is raised, and cancels the others.

    Args:
      exports: what a keeper sends. Closed on return.
      *outputs: one or more functions.

    Raises:
      ValueError: if there is no output; `exports` is not closed then.
    """
    if not outputs:
        raise ValueError("fan_out needs at least one output, got none")
    feeds: list[_Feed] = []
    receiving = trio.CancelScope()
    with exports:
        async with open_flat_nursery() as nursery:
            for output in outputs:
                send, receive = trio.open_memory_channel[EventMetrics](_BUFFER)
                feed = _Feed(send, receive.clone(), feeds, receiving)
                feeds.append(feed)
                nursery.start_soon(_run, output, receive, feed, name=output)
                nursery.start_soon(feed.run)
            with receiving:
                await _receive(exports, feeds)
            exports.close()  # now, as the outputs may take their time to return
            for feed in feeds:
                feed.end()


async def _run(
    output: Output, exports: trio.MemoryReceiveChannel[EventMetrics], feed: _Feed
) -> None:
    feed.name = trio.lowlevel.current_task().name
    try:
        with exports:
            await output(exports)
        feed.stop("returned")
    finally:
        feed.close()  # if it raised, that says enough


@trio.lowlevel.enable_ki_protection
async def _receive(
    exports: trio.MemoryReceiveChannel[EventMetrics], feeds: list[_Feed]
) -> None:
    """Pass on all that waits, again and again, until no more comes."""
    async for received in exports:
        export = received
        pause_at = perf_counter() + _STEP
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                arrival = arrival_of(export)
                for feed in feeds:
                    feed.waiting.put(export, arrival)
                if perf_counter() >= pause_at:
                    break
                export = exports.receive_nowait()
        for feed in feeds.copy():
            if feed in feeds:
                feed.wake()
            if perf_counter() >= pause_at:
                await trio.lowlevel.checkpoint()
                pause_at = perf_counter() + _STEP


@attrs.define(eq=False)
class _Feed:
    """What an output still has to get, and the channel that takes it there."""

    _send: trio.MemorySendChannel[EventMetrics]
    _recall: trio.MemoryReceiveChannel[EventMetrics]
    """A clone of the output's end."""
    _active: list[_Feed]
    """Those that still get exports, this one among them."""
    _receiving: trio.CancelScope
    """To be cancelled when no output receives any more."""

    name: str = attrs.field(init=False, default="")
    waiting: Newest = attrs.field(init=False, factory=Newest)
    # When it took an export, or there was none to take, and whether that is long ago.
    _taken_at: float = attrs.field(init=False, factory=trio.current_time)
    _is_stuck: bool = attrs.field(init=False, default=False)
    # The first of what waits, as they were put into the channel.
    _offered: deque[EventMetrics] = attrs.field(init=False, factory=deque[EventMetrics])
    _idle: trio.lowlevel.ParkingLot = attrs.field(
        init=False, factory=trio.lowlevel.ParkingLot
    )

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:  # noqa: ASYNC910  # it waits until the end
        """Fill the channel whenever there is room, until the end."""
        with self._send, self._recall, suppress(trio.ClosedResourceError):
            try:
                while self in self._active:
                    further = self.fill()
                    if further:
                        self._offered.append(further[0])
                        await self._send.send(further[0])
                    elif len(self.waiting) > len(self._offered):
                        await trio.lowlevel.checkpoint()  # those in between were stale
                    elif self.waiting.ended:
                        return  # noqa: ASYNC910  # it has waited for that
                    else:
                        await self._idle.park()
            finally:
                self.close()
                while len(self.waiting):
                    self.waiting.drop(_DROPPED_BATCH)
                    await trio.lowlevel.cancel_shielded_checkpoint()

    def wake(self) -> None:
        """Have the channel filled: by `run` in a step of its own, or now if it can't."""
        if self._idle:
            self._idle.unpark()
        else:
            self.fill()

    def fill(self) -> list[EventMetrics]:
        """Put the first of what waits into the channel; return the next if it is full."""
        channel = self._send.statistics()
        if channel.open_receive_channels == 1:
            self.stop("closed its channel")
            return []
        untaken = channel.current_buffer_used + channel.tasks_waiting_send
        taken = len(self._offered) - untaken
        self._note_taken(taken, untaken)
        self.waiting.done([self._offered.popleft() for _ in range(taken)])
        first = self.waiting.first(_BUFFER + 1)
        if len(first) < untaken or not all(map(is_, self._offered, first)):
            # One was replaced, or is stale.
            for _ in range(untaken):
                self._recall.receive_nowait()
            self._offered.clear()
        with suppress(trio.WouldBlock):
            for export in first[len(self._offered) :]:
                self._send.send_nowait(export)
                self._offered.append(export)
        if len(self.waiting) > len(self._offered):
            self._idle.unpark()
        return first[len(self._offered) :]

    def _note_taken(self, taken: int, untaken: int) -> None:
        """Log an output that takes nothing for three export intervals, and its recovery."""
        now = trio.current_time()
        if taken or not untaken:
            self._taken_at = now
            if self._is_stuck:
                self._is_stuck = False
                logger.info("%s: recovered", self.name)
        elif not self._is_stuck and when_gone(self._offered[0], self._taken_at) < now:
            self._is_stuck = True
            logger.warning(
                "%s: takes no exports; the newest of each target wait", self.name
            )

    def end(self) -> None:
        """Say that no more exports come."""
        self.waiting.end()
        self._idle.unpark()

    def stop(self, why: str) -> None:
        """Keep nothing more for the output, if it has not got everything."""
        if self in self._active:
            waiting = len(self.waiting)
            self.close()
            logger.warning(
                "%s: %s before it had all exports; %d are dropped",
                self.name,
                why,
                waiting,
            )
            if not self._active:
                self._receiving.cancel()

    def close(self) -> None:
        """Drop what waits, and pass on nothing more."""
        if self in self._active:
            self._active.remove(self)
        self._send.close()
        self._offered.clear()
        self.end()
