"""Nurseries that raise bare exceptions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import trio

from ._exceptions import leaf_exceptions
from ._log import logger
from ._values import quote


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
        chosen = min(others.exceptions, key=lambda error: isinstance(error, Exception))
        _log_others(others.exceptions, chosen)
    try:
        raise chosen
    finally:
        del others, chosen  # else they'd refer to themselves, by their tracebacks


# A function of its own: a loop variable would keep an exception alive that has this
# module's frame in its traceback.
def _log_others(raised: Sequence[BaseException], chosen: BaseException) -> None:
    """Log what is not raised; many tasks may have raised the same, though."""
    said = {quote(chosen)}
    for other in raised:
        text = quote(other)
        if text not in said:
            said.add(text)
            logger.error("%s was raised, too: %s", quote(chosen), text, exc_info=other)
