"""A row, and why a value can't be added to it."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

from ._arguments import is_number, plain_number, quote
from ._results import Reason

Row: TypeAlias = list[Any]
"""The totals of a target: see `_rows`."""


class Rejected(Exception):
    """A result can't be added to the totals."""

    def __init__(self, reason: Reason, explanation: str) -> None:
        super().__init__(explanation)
        self.reason: Reason = reason

    def of_metric(self, name: object) -> Rejected:
        return Rejected(self.reason, f"metric {quote(name)}: {self}")


def accept_number(value: object, expected: str = "a number") -> int | float:
    """Return `value` as exactly an int or a float, or raise `Rejected`."""
    if not is_number(value):
        raise Rejected("kind", f"expected {expected}, got {quote(value)}")
    return plain_number(cast("float", value))
