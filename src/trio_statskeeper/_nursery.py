"""Nurseries that raise bare exceptions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import trio

from ._arguments import quote
from ._exceptions import leaf_exceptions
from ._log import logger


@asynccontextmanager
async def open_flat_nursery() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery that wraps nothing in a group.

    If tasks raise several, one is raised: the first that is no Exception (but, say, a
    KeyboardInterrupt), or else the first. The others are logged.

    Open it, and start tasks in it, only under `trio.lowlevel.enable_ki_protection`: Trio
    does not protect `start_soon`, and a Ctrl-C within it leaves half a task behind, for
    which the nursery waits without end.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        chosen = next(leaf_exceptions(group))  # tasks may have nurseries, too
        others = group.split(trio.Cancelled)[1]
    else:
        return
    if others is not None:
        chosen = choose(others.exceptions)
    context = chosen.__context__
    try:
        raise chosen
    finally:
        chosen.__context__ = context  # without the Cancelled of what waited in the body
        # Else they would refer to themselves, by their tracebacks.
        del others, chosen, context


# A function of its own: a loop variable would keep an exception alive that has this
# module's frame in its traceback.
def choose(raised: Sequence[BaseException]) -> BaseException:
    """Return the first that is not an Exception, or else the first; log the others."""
    chosen = min(raised, key=lambda error: isinstance(error, Exception))
    said = {quote(chosen)}
    for other in raised:
        text = quote(other)
        if text not in said:
            said.add(text)
            logger.error("%s was raised, too: %s", quote(chosen), text, exc_info=other)
    return chosen
