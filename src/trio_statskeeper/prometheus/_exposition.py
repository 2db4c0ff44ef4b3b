"""What the formats of scrapes have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from trio_statskeeper._naming import Family, Kind
from trio_statskeeper._values import Value

# What the names of a family's samples begin with, and the type, for each kind.
SUFFIX_AND_TYPE: dict[Kind, tuple[str, str]] = {
    "counter": ("_total", "counter"),
    "info": ("_info", "gauge"),
    "gauge": ("", "gauge"),
    "histogram": ("", "histogram"),
}

Part: TypeAlias = tuple[Family, bool]
"""A family, and whether its `_created` samples are meant: in the text format, these are a
family of their own."""


class Exposition(Protocol):
    """How the samples of targets are rendered.

    The samples of a family must be adjacent, so each target has a *block* for each part.
    """

    @property
    def content_type(self) -> bytes: ...

    def parts(self, family: Family) -> Sequence[Part]:
        """Return the parts in which `family` is rendered."""
        ...

    def blocks(
        self,
        metrics: Iterable[tuple[Family, Value]],
        labels: Mapping[str, str],
        start_timestamp: float,
    ) -> Sequence[bytes]:
        """Render the metrics of a target: a block for each part of each family.

        A block may be empty.
        """
        ...

    def join(
        self, part: Part, columns: deque[tuple[bytes, ...]]
    ) -> Iterator[Sequence[bytes]]:
        """Yield the blocks of all targets with what precedes them, in short steps.

        Args:
          part: the part.
          columns: the blocks of some targets after others; it is emptied, so that blocks
            are freed in short steps, too.
        """
        ...
