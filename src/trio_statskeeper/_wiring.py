"""The channels and tasks between probes and outputs, with a clean end.

Theory of operation
===================

`open_outputs` and `open_keeper` each run something in a task that outlives a block: the
outputs, or a keeper. The task is shielded from cancellation while the block runs, so
whatever ends the block does not end the task. When the block has ended, its input ends. The
task then has `grace` seconds to finish what is left, before it is cancelled.

The order of the end follows from nesting: the keeper's block is inside that of the outputs,
so the keeper has made its last export before the outputs are told that no more come.

If the task fails while the block runs, the block is cancelled. If both raise, what came
first is raised, and the other is logged. A Ctrl-C during the end cancels the task at once.
Trio raises it in the main task alone, so where the block is in another task, a second
Ctrl-C is not noticed there, and `grace` limits the end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Generic, Protocol, TypeVar, final

import attrs
import trio

from ._arguments import non_negative
from ._event_metrics import EventMetrics
from ._exceptions import is_cancellation, leaf_exceptions, without_cancellations
from ._fan_out import FanOut, Output, validate_outputs
from ._keeper import StatsKeeper
from ._log import logger
from ._nursery import choose, open_flat_nursery
from ._results import ProbeResult

T = TypeVar("T")

# How many results and exports are accepted before they are received.
_RESULTS_BUFFER = 100
_EXPORTS_BUFFER = 200

# An attribute of an exception: a Ctrl-C has cut an end short, so that of an outer block is,
# too.
_IN_HASTE = "_trio_statskeeper_in_haste"


def open_outputs(
    *outputs: Output, grace: float = 5.0
) -> AbstractAsyncContextManager[trio.MemorySendChannel[EventMetrics], None]:
    """Run outputs while a block runs, and let them finish when it ends.

        async with (
            open_outputs(prometheus.run, partial(write_lines, path="a.log")) as exports,
            open_keeper(keeper, exports) as results,
        ):
            await prober.run(results)

    An output is an async function of a channel, as for `fan_out`: none delays another. One
    that takes a `task_status` by keyword is waited for until it has started, so that a port
    that is taken raises before the block begins.

    However the block ends, the exports end with it, even if a clone of the channel is still
    open. Then each output has `grace` seconds to take what waits for it, and to return.
    Outputs that have not returned by then are cancelled, and each is logged. A Ctrl-C
    during the end cancels them at once.

    If an output raises, the block is cancelled, the other outputs still get the last
    exports, and then that exception is raised.

    Args:
      *outputs: one or more functions.
      grace: seconds from the end of the block to the cancellation of the outputs.

    Raises:
      TypeError: if an output can't be called, or `grace` is not a number.
      ValueError: if there is no output, or `grace` is negative or not finite.
      BaseException: what an output raised, not wrapped in a group.
    """
    validate_outputs("open_outputs", outputs)
    background = _Background(grace)

    @asynccontextmanager
    async def open_() -> AsyncGenerator[trio.MemorySendChannel[EventMetrics]]:
        send, receive = trio.open_memory_channel[EventMetrics](_EXPORTS_BUFFER)
        async with background.outlive(send, FanOut(receive, outputs, background.fail)):
            yield send

    return _Block(open_())


def open_keeper(
    keeper: StatsKeeper,
    exports: trio.MemorySendChannel[EventMetrics],
    grace: float = 5.0,
) -> AbstractAsyncContextManager[trio.MemorySendChannel[ProbeResult], None]:
    """Run a keeper while a block runs, and let it make a last export when the block ends.

        async with open_keeper(keeper, exports) as results:
            await prober.run(results)

    The keeper sends to a clone of `exports`, so several can share the outputs.

    However the block ends, the results end with it, even if a clone of the channel is still
    open: all that `send` accepted is in the last export. If that is not received within
    `grace` seconds, it is given up and logged. A Ctrl-C during the end gives it up at once.
    `flush_timeout` of the keeper has no effect.

    If the keeper raises, the block is cancelled, and that exception is raised.

    Args:
      keeper: a keeper that is not running.
      exports: what `open_outputs` returned, or any other channel. It stays open.
      grace: seconds from the end of the block to the cancellation of the keeper.

    Raises:
      TypeError: if `grace` is not a number.
      ValueError: if `grace` is negative or not finite.
      trio.BusyResourceError: if the keeper is running already.
      trio.ClosedResourceError: if `exports` is closed.
      BaseException: what `keeper.run` raises, not wrapped in a group.
    """
    background = _Background(grace)

    @asynccontextmanager
    async def open_() -> AsyncGenerator[trio.MemorySendChannel[ProbeResult]]:
        send, receive = trio.open_memory_channel[ProbeResult](_RESULTS_BUFFER)
        async with background.outlive(send, _KeeperRun(keeper, receive, exports.clone())):
            yield send

    return _Block(open_())


@final
@attrs.define(eq=False)
class _Block(AbstractAsyncContextManager[T, None], Generic[T]):
    """A context manager that Ctrl-C does not interrupt, but only its block.

    A Ctrl-C in the code of `contextlib` would leave the tasks of the block running.
    """

    _manager: AbstractAsyncContextManager[T, bool | None]

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What waits is shielded, for a limited time.
        await self._manager.__aexit__(exc_type, error, traceback)  # noqa: ASYNC102


class _Receiver(Protocol):
    """What receives from a channel in the background."""

    async def run(self, started: Callable[[], None]) -> None:
        """Receive until the channel ends. Call `started` when it has started."""
        ...

    def end(self) -> None:
        """End the channel now, even if clones of its sending end are open."""
        ...


@attrs.define(eq=False)
class _Background:
    """A task that outlives a block."""

    grace: float = attrs.field(validator=non_negative)
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _block: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _started: trio.Event = attrs.field(init=False, factory=trio.Event)
    _ended: trio.Event = attrs.field(init=False, factory=trio.Event)
    # What the task, its block and Ctrl-C raised, in this order of time.
    _raised: list[BaseException] = attrs.field(init=False, factory=list[BaseException])
    _in_haste: bool = attrs.field(init=False, default=False)

    def fail(self, error: BaseException) -> None:
        """Cancel the block, and have `error` raised when all has ended."""
        self._raised.append(without_cancellations(error))
        del error  # the Cancelled of the block refers to this frame
        self._block.cancel()

    @asynccontextmanager
    async def outlive(
        self, send: trio.MemorySendChannel[T], receiver: _Receiver
    ) -> AsyncGenerator[None]:
        """Run what receives from a channel; when the block has ended, end it.

        Args:
          send: the sending end of the channel. Closed when the block has ended.
          receiver: what runs in the background.
        """
        try:
            async with open_flat_nursery() as nursery:
                self._block = nursery.cancel_scope
                nursery.start_soon(self._run, receiver)
                await self._started.wait()
                await trio.lowlevel.checkpoint_if_cancelled()
                self._scope.shield = True
                try:
                    yield
                except BaseException as error:  # noqa: ASYNC103  # raised below
                    if is_cancellation(error):
                        raise
                    self._note_of_block(error)
                finally:
                    send.close()
                    receiver.end()
                    await self._finish()  # noqa: ASYNC102  # it is shielded
        except BaseException as error:  # noqa: ASYNC103  # raised below
            if not is_cancellation(error):
                self._raised.append(error)
            elif not self._raised:
                raise
        if self._raised:
            self._raise()

    @trio.lowlevel.enable_ki_protection
    async def _run(self, receiver: _Receiver) -> None:  # noqa: ASYNC910  # it runs long
        try:
            with self._scope:
                await receiver.run(self._started.set)
        except BaseException as error:  # noqa: ASYNC103  # raised by `outlive`
            if is_cancellation(error):
                raise
            self.fail(error)
        finally:
            self._ended.set()

    def _note_of_block(self, error: BaseException) -> None:
        # Nurseries within the block raise groups.
        leaves = [*leaf_exceptions(error)]
        self._in_haste = any(_IN_HASTE in vars(leaf) for leaf in leaves)
        # A task that fails closes its channel, and so makes those fail who send to it.
        ended = trio.BrokenResourceError, trio.Cancelled
        if not (self._raised and all(isinstance(leaf, ended) for leaf in leaves)):
            self._raised.append(without_cancellations(error))
        del leaves, error  # else they would refer to themselves, by their tracebacks

    async def _finish(self) -> None:  # noqa: ASYNC910  # the nursery has a checkpoint
        """Wait until the task has ended, or until it was cancelled and has ended."""
        grace = 0 if self._in_haste else self.grace
        self._scope.deadline = trio.current_time() + grace
        with trio.CancelScope(shield=True):  # noqa: ASYNC912  # see above
            while not self._ended.is_set():
                try:
                    await self._ended.wait()
                except KeyboardInterrupt as interrupt:
                    self._raised.append(interrupt)
                    self._in_haste = True
                    self._scope.cancel()

    def _raise(self) -> None:
        raised = choose(self._raised)
        if self._in_haste:
            vars(raised)[_IN_HASTE] = True
        context = raised.__context__
        try:
            raise raised
        finally:
            raised.__context__ = context  # without the block's Cancelled
            # Else they would refer to themselves, by their tracebacks.
            self._raised.clear()
            del raised, context


@attrs.define(eq=False)
class _KeeperRun:
    """A run of a keeper, until it is told that the results have ended."""

    keeper: StatsKeeper
    results: trio.MemoryReceiveChannel[ProbeResult]
    exports: trio.MemorySendChannel[EventMetrics]
    _receiving: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _ended: bool = attrs.field(init=False, default=False)

    async def run(self, started: Callable[[], None]) -> None:
        keeper = self.keeper
        with self.results, self.exports, self.exports.clone() as exports:
            try:
                with self._receiving:
                    await keeper.run_and_flush(self.results, exports, started, 0)
                if self._receiving.cancelled_caught:
                    send, no_results = trio.open_memory_channel[ProbeResult](0)
                    send.close()
                    await keeper.run_and_flush(no_results, self.exports, started, 0)
            except trio.Cancelled:
                if self._ended:
                    logger.warning(
                        "%s/%s: was cancelled before its last export was received",
                        keeper.ptype,
                        keeper.name,
                    )
                raise

    def end(self) -> None:
        """End the results now, even if clones of the sending end are open."""
        self._ended = True
        if self.results.statistics().open_send_channels:
            # What was sent is accepted. Sending after that raises BrokenResourceError.
            self._receiving.cancel()
