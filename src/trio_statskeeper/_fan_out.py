"""One exports channel to many outputs."""

from __future__ import annotations

import logging

import attrs
import trio

from ._event_metrics import EventMetrics
from ._newest import Newest
from ._nursery import open_flat_nursery

_logger = logging.getLogger("trio_statskeeper")


@trio.lowlevel.enable_ki_protection
async def fan_out(
    exports: trio.MemoryReceiveChannel[EventMetrics],
    *outputs: trio.MemorySendChannel[EventMetrics],
) -> None:
    """Send each export to several outputs, none of which delays the others or the keeper.

        nursery.start_soon(keeper.run, results_receive, exports_send)
        nursery.start_soon(fan_out, exports_receive, to_prometheus, to_lines)

    An output that lags behind gets, when it comes back, the newest export of each target:
    those in between are left out, and so are targets that have not come for three export
    intervals. Give the outputs channels without a buffer, for what a buffer holds gets old.

    An output that closes its channel leaves, which is logged, and the others go on. When
    all have left, `fan_out` closes `exports` and returns. When `exports` ends, each output
    gets what it still has to get, its channel is closed, and `fan_out` returns when that is
    done for all of them.

    Args:
      exports: what a keeper sends. Closed on return.
      *outputs: one or more channels. Closed on return.

    Raises:
      ValueError: if there is no output; `exports` is not closed then.
    """
    if not outputs:
        raise ValueError("fan_out needs at least one output, got none")
    queues = [_Queue(output) for output in outputs]
    with exports:
        async with open_flat_nursery() as nursery:
            for queue in queues:
                nursery.start_soon(_deliver, queue, queues, nursery.cancel_scope)
            async for export in exports:
                for queue in queues:
                    queue.put(export)
            for queue in queues:
                queue.waiting.end()


@trio.lowlevel.enable_ki_protection
async def _deliver(  # noqa: ASYNC910  # delivering has checkpoints, failing too
    queue: _Queue, queues: list[_Queue], all_of_it: trio.CancelScope
) -> None:
    """Deliver until the end, or until the output has left; the last one ends it all."""
    try:
        await queue.deliver()
    except trio.BrokenResourceError:
        queues.remove(queue)
        _logger.warning("an output has left; %d still get exports", len(queues))
        if not queues:
            all_of_it.cancel()


@attrs.define(eq=False)
class _Queue:
    """What an output still has to get."""

    output: trio.MemorySendChannel[EventMetrics]
    waiting: Newest = attrs.field(init=False, factory=Newest)
    _offered: EventMetrics | None = attrs.field(init=False, default=None)
    _offer: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)

    def put(self, export: EventMetrics) -> None:
        self.waiting.put(export)
        if self._offered is not None and self.waiting.head() is not self._offered:
            # It was replaced, or is gone: whoever comes back is to get nothing old.
            self._offer.cancel()

    async def deliver(self) -> None:
        """Send what waits, until no more comes."""
        with self.output:
            while True:
                await self.waiting.wait()
                self._offered = self.waiting.head()
                if self._offered is None:
                    return
                with trio.CancelScope() as self._offer:
                    await self.output.send(self._offered)
                    self.waiting.done([self._offered])
                self._offered = None
