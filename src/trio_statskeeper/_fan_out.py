"""From one channel of exports to many outputs.

Theory of operation
===================

Each output has a conflating queue, with the newest export of each series that it has not
received, and a channel whose buffer has the first exports of that queue. An export stays in
the queue until the output has received it from the buffer.

An output that keeps up empties the buffer each time, so exports are passed on in batches.
When an output lags, newer exports replace those in the queue. If one of these is in the
buffer, the whole buffer is taken back, by a clone of the output's end, and filled again
from the queue: an output never receives an outdated export.

A task for each output waits until a full buffer has room, and fills it.
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

from ._arguments import quote
from ._conflating import ConflatingQueue, arrival_of, stale_at
from ._event_metrics import EventMetrics
from ._exceptions import is_cancellation
from ._log import logger
from ._nursery import open_flat_nursery
from ._pacing import Step

# An async function that receives exports until they end.
Output: TypeAlias = Callable[[trio.MemoryReceiveChannel[EventMetrics]], Awaitable[object]]

# Exports in the channel of an output, which can receive them all in one turn of the
# scheduler. Taking them back and filling the buffer again takes about a quarter of a
# millisecond per lagging output.
_BUFFER_SIZE = 200

# Exports that are dropped between two checkpoints: freeing many at once stalls the loop.
_DROPPED_BATCH = 500


def validate_outputs(of: str, outputs: Sequence[Output]) -> None:
    """Raise a ValueError if there is no output, a TypeError if one can't be called."""
    if not outputs:
        raise ValueError(f"{of} needs at least one output, got none")
    for output in outputs:
        if not callable(output):
            raise TypeError(
                "an output must be an async function of a receive channel, such as "
                f"`write_lines` or an exporter's `run`, got {quote(output)}"
            )


@trio.lowlevel.enable_ki_protection
async def fan_out(  # noqa: ASYNC128  # it passes `started` on
    exports: trio.MemoryReceiveChannel[EventMetrics],
    *outputs: Output,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run several outputs, none of which delays the others or the keeper.

        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(fan_out, exports_receive, prometheus.run, write_lines)

    An output is an async function of a channel, from which it receives exports until they
    end. An output that lags receives only the newest export of each target. Older exports
    are skipped, and so are targets without an export for three of their export intervals.

    When `exports` ends, each output receives what is left for it, and then its channel
    ends. `fan_out` returns when all outputs have returned. An output that returns or closes
    its channel earlier receives no more exports, which is logged, and the others continue.
    When no output is left, `fan_out` closes `exports`.

    If an output raises an exception, the others are cancelled, and it is raised.

    Args:
      exports: what a keeper sends. Closed on return.
      *outputs: one or more functions.
      task_status: for `nursery.start`: started when all outputs have started. Outputs with
        a parameter `task_status` report that themselves.

    Raises:
      TypeError: if an output can't be called; `exports` is not closed then.
      ValueError: if there is no output; `exports` is not closed then, either.
    """
    validate_outputs("fan_out", outputs)
    await FanOut(exports, outputs).run(task_status.started)


@attrs.define(eq=False)
class FanOut:
    """A run of `fan_out`."""

    exports: trio.MemoryReceiveChannel[EventMetrics]
    outputs: Sequence[Output]
    fail: Callable[[BaseException], None] | None = None
    """Called with what an output raises, if the others should continue. None: the
    exception is raised."""

    # Those of outputs that still receive exports.
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
                    send, receive = trio.open_memory_channel[EventMetrics](_BUFFER_SIZE)
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
        """End the exports now, even if their senders are open."""
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
            feed.started()  # if it has not reported that
            feed.stop("returned")
        except BaseException as error:  # noqa: ASYNC103  # `fail` has it raised
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
        """Pass on all exports that wait, until they end."""
        async for received in self.exports:
            export = received
            step = Step()
            for feed in self._active:
                feed.settle()  # so that no newer export replaces a received one
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
        """Receive what waits, after `_receive` was cancelled."""
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
    except (TypeError, ValueError):  # not every callable has a signature
        return False
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


@attrs.define(eq=False)
class _Feed:
    """What an output has not received yet, and its channel."""

    _send: trio.MemorySendChannel[EventMetrics]
    recall: trio.MemoryReceiveChannel[EventMetrics]
    """A clone of the output's end of the channel, to take back what it has not received."""
    _active: list[_Feed]
    """The feeds that still receive exports, this one among them."""
    _receiving: trio.CancelScope
    """Cancelled when no feed is active."""

    name: str = attrs.field(init=False, default="")
    has_started: trio.Event = attrs.field(init=False, factory=trio.Event)
    waiting: ConflatingQueue = attrs.field(init=False, factory=ConflatingQueue)
    # When the output last received an export, or had none to receive, and whether that is
    # too long ago.
    _taken_at: float = attrs.field(init=False, factory=trio.current_time)
    _is_stuck: bool = attrs.field(init=False, default=False)
    # Exports that waited when the feed was closed, without those in the channel.
    _dropped: int = attrs.field(init=False, default=0)
    # The first exports of the queue, as they were put into the channel.
    _offered: deque[EventMetrics] = attrs.field(init=False, factory=deque[EventMetrics])
    _idle: trio.lowlevel.ParkingLot = attrs.field(
        init=False, factory=trio.lowlevel.ParkingLot
    )

    def started(self, _: object = None) -> None:
        """Note that the output has started; has the signature of `trio.TaskStatus`."""
        self.has_started.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:  # noqa: ASYNC910  # it waits until the end
        """Fill the channel whenever it has room, until the end."""
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
        """How many exports the output did not receive, after `close`."""
        return self._dropped + self.recall.statistics().current_buffer_used

    def wake(self) -> None:
        """Have the channel filled: by `run` if it is idle, and otherwise now."""
        if self._idle:
            self._idle.unpark()
        else:
            self.fill()

    def fill(self) -> list[EventMetrics]:
        """Put the first exports into the channel; if it is full, return those left over."""
        if self._send.statistics().open_receive_channels == 1:
            self.stop("closed its channel")
            return []
        untaken = self.settle()
        first = self.waiting.first(_BUFFER_SIZE + 1)
        if len(first) < untaken or not all(map(is_, self._offered, first)):
            # One of those in the channel was replaced, or is stale.
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
        """Remove what the output has received; return how many are left in the channel."""
        channel = self._send.statistics()
        untaken = channel.current_buffer_used + channel.tasks_waiting_send
        taken = len(self._offered) - untaken
        self._note_taken(taken, untaken)
        self.waiting.done([self._offered.popleft() for _ in range(taken)])
        return untaken

    def _note_taken(self, taken: int, untaken: int) -> None:
        """Log if the output is stuck for three export intervals, and its recovery."""
        now = trio.current_time()
        if taken or not untaken:
            self._taken_at = now
            if self._is_stuck:
                self._is_stuck = False
                logger.info("%s: recovered", self.name)
        elif not self._is_stuck and stale_at(self._offered[0], self._taken_at) < now:
            self._is_stuck = True
            logger.warning(
                "%s: receives no exports; keeping the newest of each target", self.name
            )

    def end(self) -> None:
        """Note that no more exports come."""
        self.waiting.end()
        self._idle.unpark()

    def stop(self, why: str) -> None:
        """Close the feed of an output that ended early, and log that."""
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
        """Drop what waits, and stop passing on exports."""
        if self in self._active:
            self._active.remove(self)
            self.settle()
            in_channel = self.recall.statistics().current_buffer_used
            self._dropped = len(self.waiting) - in_channel
        self._send.close()
        self._offered.clear()
        self.end()
