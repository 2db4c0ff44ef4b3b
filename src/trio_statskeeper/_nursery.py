"""Nurseries that raise bare exceptions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import cast

import trio

from ._log import logger


@asynccontextmanager
async def open_flat_nursery() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery that wraps nothing in a group.

    If tasks raise several, one is raised: the first that is no Exception (but, say, a
    KeyboardInterrupt), or else the first. Those of other classes are logged.

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
        for other in (e for e in others.exceptions if type(e) is not type(chosen)):
            logger.error("another exception in the same nursery", exc_info=other)
    try:
        raise chosen
    finally:
        del others, chosen  # else they'd refer to themselves, by their tracebacks


def leaf_exceptions(error: BaseException) -> Iterator[BaseException]:
    """Go through the exceptions of a group, and of groups within it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaf_exceptions(inner)
    else:
        yield error
