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
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from inspect import signature
from operator import is_
from typing import Any, TypeAlias, cast

import attrs
import trio

from ._conflating import ConflatingQueue, arrival_of, stale_at
from ._event_metrics import EventMetrics
from ._exceptions import is_cancellation
from ._log import logger
from ._nursery import open_flat_nursery
from ._pacing import Step

# What an output is: an async function that receives exports until they end.
Output: TypeAlias = Callable[[trio.MemoryReceiveChannel[EventMetrics]], Awaitable[object]]

# Exports in the channel of an output, which can take them all in one scheduler turn. Taking
# them back and filling it again takes about a quarter of a millisecond per lagging output.
_BUFFER = 200

# Exports that are dropped between two checkpoints: freeing many at once takes long.
_DROPPED_BATCH = 500


@trio.lowlevel.enable_ki_protection
async def fan_out(  # noqa: ASYNC128  # it hands `started` on
    exports: trio.MemoryReceiveChannel[EventMetrics],
    *outputs: Output,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
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
      task_status: for `nursery.start`, told when all outputs have started: those that take
        a `task_status`, too, have said so.

    Raises:
      ValueError: if there is no output; `exports` is not closed then.
    """
    if not outputs:
        raise ValueError("fan_out needs at least one output, got none")
    await FanOut(exports, outputs).run(task_status.started)


@attrs.define(eq=False)
class FanOut:
    """A run of `fan_out`."""

    exports: trio.MemoryReceiveChannel[EventMetrics]
    outputs: Sequence[Output]
    fail: Callable[[BaseException], None] | None = None
    """Called with what an output raises, if the others are to go on until the exports end.
    None: it is raised."""

    # Those that still get exports.
    _active: list[_Feed] = attrs.field(init=False, factory=list["_Feed"])
    _receiving: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _ended: bool = attrs.field(init=False, default=False)

    @trio.lowlevel.enable_ki_protection
    async def run(self, started: Callable[[], None]) -> None:
        """Run the outputs until the exports end and all outputs have returned.

        Args:
          started: called when all outputs have started.
        """
        feeds: list[_Feed] = []
        with self.exports:
            async with open_flat_nursery() as nursery:
                for output in self.outputs:
                    send, receive = trio.open_memory_channel[EventMetrics](_BUFFER)
                    feed = _Feed(send, receive.clone(), self._active, self._receiving)
                    feeds.append(feed)
                    self._active.append(feed)
                    nursery.start_soon(self._run_output, output, receive, feed, name=output)
                    nursery.start_soon(feed.run)
                nursery.start_soon(self._report_start, feeds, started)
                with self._receiving:
                    await self._receive()
                self._ended = True
                self._drain()
                self.exports.close()  # now, as the outputs may take their time to return
                for feed in feeds:
                    feed.end()

    def end(self) -> None:
        """End the exports now, whoever could still send some."""
        self._ended = True
        if self.exports.statistics().open_send_channels:
            self._receiving.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _report_start(  # noqa: ASYNC910  # waiting is a checkpoint
        self, feeds: Sequence[_Feed], started: Callable[[], None]
    ) -> None:
        for feed in feeds:
            await feed.has_started.wait()
        started()

    @trio.lowlevel.enable_ki_protection
    async def _run_output(  # noqa: ASYNC910  # the output has checkpoints
        self,
        output: Output,
        exports: trio.MemoryReceiveChannel[EventMetrics],
        feed: _Feed,
    ) -> None:
        feed.name = trio.lowlevel.current_task().name
        try:
            with exports:
                await _call(output, exports, feed)
            feed.started()  # if it has not said so
            feed.stop("returned")
        except BaseException as error:  # noqa: ASYNC103  # raised by whoever is told
            feed.close()
            cancelled = is_cancellation(error)
            if cancelled and self._ended:
                logger.warning(
                    "%s: was cancelled before it returned; %d exports that it had not "
                    "taken are dropped",
                    feed.name,
                    feed.untaken,
                )
            if cancelled or self.fail is None:
                raise
            self.fail(error)
        finally:
            feed.recall.close()

    @trio.lowlevel.enable_ki_protection
    async def _receive(self) -> None:
        """Pass on all that waits, again and again, until no more comes."""
        async for received in self.exports:
            export = received
            step = Step()
            for feed in self._active:
                feed.settle()  # so that no newer export takes the place of a taken one
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    self._put(export)
                    if step.is_over:
                        break
                    export = self.exports.receive_nowait()
            for feed in self._active.copy():
                if feed in self._active:
                    feed.wake()
                await step.pause_if_over()

    def _drain(self) -> None:
        """Take what waits, if `_receive` was cancelled."""
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self._put(self.exports.receive_nowait())

    def _put(self, export: EventMetrics) -> None:
        arrival = arrival_of(export)
        for feed in self._active:
            feed.waiting.put(export, arrival)


@trio.lowlevel.disable_ki_protection
async def _call(
    output: Output, exports: trio.MemoryReceiveChannel[EventMetrics], feed: _Feed
) -> None:
    if _takes_task_status(output):
        await cast("Any", output)(exports, task_status=feed)
    else:
        feed.started()
        await output(exports)


def _takes_task_status(output: Output) -> bool:
    try:
        parameter = signature(output).parameters.get("task_status")
    except (TypeError, ValueError):  # not every callable tells
        return False
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


@attrs.define(eq=False)
class _Feed:
    """What an output still has to get, and the channel that takes it there."""

    _send: trio.MemorySendChannel[EventMetrics]
    recall: trio.MemoryReceiveChannel[EventMetrics]
    """A clone of the output's end, to be closed when the output has returned."""
    _active: list[_Feed]
    """Those that still get exports, this one among them."""
    _receiving: trio.CancelScope
    """To be cancelled when no output receives any more."""

    name: str = attrs.field(init=False, default="")
    has_started: trio.Event = attrs.field(init=False, factory=trio.Event)
    waiting: ConflatingQueue = attrs.field(init=False, factory=ConflatingQueue)
    # When it took an export, or there was none to take, and whether that is long ago.
    _taken_at: float = attrs.field(init=False, factory=trio.current_time)
    _is_stuck: bool = attrs.field(init=False, default=False)
    # How many waited when it was closed, beside those in the channel.
    _dropped: int = attrs.field(init=False, default=0)
    # The first of what waits, as they were put into the channel.
    _offered: deque[EventMetrics] = attrs.field(init=False, factory=deque[EventMetrics])
    _idle: trio.lowlevel.ParkingLot = attrs.field(
        init=False, factory=trio.lowlevel.ParkingLot
    )

    def started(self, _: object = None) -> None:
        """Be told that the output has started, as a `trio.TaskStatus` is."""
        self.has_started.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:  # noqa: ASYNC910  # it waits until the end
        """Fill the channel whenever there is room, until the end."""
        with self._send, suppress(trio.ClosedResourceError):
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

    @property
    def untaken(self) -> int:
        """How many exports the output did not take, once this is closed."""
        return self._dropped + self.recall.statistics().current_buffer_used

    def wake(self) -> None:
        """Have the channel filled: by `run` in a step of its own, or now if it can't."""
        if self._idle:
            self._idle.unpark()
        else:
            self.fill()

    def fill(self) -> list[EventMetrics]:
        """Put the first of what waits into the channel; return the next if it is full."""
        if self._send.statistics().open_receive_channels == 1:
            self.stop("closed its channel")
            return []
        untaken = self.settle()
        first = self.waiting.first(_BUFFER + 1)
        if len(first) < untaken or not all(map(is_, self._offered, first)):
            # One was replaced, or is stale.
            for _ in range(untaken):
                self.recall.receive_nowait()
            self._offered.clear()
        with suppress(trio.WouldBlock):
            for export in first[len(self._offered) :]:
                self._send.send_nowait(export)
                self._offered.append(export)
        if len(self.waiting) > len(self._offered):
            self._idle.unpark()
        return first[len(self._offered) :]

    def settle(self) -> int:
        """Remove what the output has taken; return how many are offered and not taken."""
        channel = self._send.statistics()
        untaken = channel.current_buffer_used + channel.tasks_waiting_send
        taken = len(self._offered) - untaken
        self._note_taken(taken, untaken)
        self.waiting.done([self._offered.popleft() for _ in range(taken)])
        return untaken

    def _note_taken(self, taken: int, untaken: int) -> None:
        """Log an output that takes nothing for three export intervals, and its recovery."""
        now = trio.current_time()
        if taken or not untaken:
            self._taken_at = now
            if self._is_stuck:
                self._is_stuck = False
                logger.info("%s: recovered", self.name)
        elif not self._is_stuck and stale_at(self._offered[0], self._taken_at) < now:
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
            self.close()
            logger.warning(
                "%s: %s before it had all exports; %d are dropped",
                self.name,
                why,
                self.untaken,
            )
            if not self._active:
                self._receiving.cancel()

    def close(self) -> None:
        """Drop what waits, and pass on nothing more."""
        if self in self._active:
            self._active.remove(self)
            self.settle()
            in_channel = self.recall.statistics().current_buffer_used
            self._dropped = len(self.waiting) - in_channel
        self._send.close()
        self._offered.clear()
        self.end()
