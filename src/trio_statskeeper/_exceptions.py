"""Groups of exceptions, and exceptions that are raised again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import trio


def leaf_exceptions(error: BaseException) -> Iterator[BaseException]:
    """Go through the exceptions of a group, and of groups within it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaf_exceptions(inner)
    else:
        yield error


def is_cancellation(error: BaseException) -> bool:
    """Return whether `error` is Cancelled, or a group of nothing else."""
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaf_exceptions(error))


def without_cancellations(error: BaseException) -> BaseException:
    """Return `error`; if it is a group, without each Cancelled in it, unless that is all.

    Where an exception is raised after the end of the scope that was cancelled, nothing
    would take the Cancelled out of the group.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    cancelled, others = group.split(trio.Cancelled)
    return group if cancelled is None or others is None else others


def causes(error: BaseException) -> Iterator[BaseException]:
    """Go through an exception and its causes (`raise … from`), and theirs.

    Groups count as the exceptions that they hold. A cause that refers back is not repeated.
    """
    seen = set[int]()
    rest = [error]
    while rest:
        for each in leaf_exceptions(rest.pop()):
            if id(each) not in seen:
                seen.add(id(each))
                yield each
                if each.__cause__ is not None:
                    rest.append(each.__cause__)


def forget_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an exception, and of all that it refers to.

    An exception that is raised again and again, such as a constant of a module, gets longer
    by each traceback, and keeps alive what the frames in it held.
    """
    seen = set[int]()
    rest = [error]
    while rest:
        each = rest.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        # Not by assignment, which an exception that is a frozen dataclass refuses.
        BaseException.with_traceback(each, None)
        if isinstance(each, BaseExceptionGroup):
            rest.extend(cast("BaseExceptionGroup[BaseException]", each).exceptions)
        rest.extend(e for e in (each.__cause__, each.__context__) if e is not None)
