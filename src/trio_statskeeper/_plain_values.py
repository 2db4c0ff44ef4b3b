"""Frozen objects as plain values: what pickle and copy make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

import attrs

K = TypeVar("K")
V = TypeVar("V")


class PlainValue:
    """Base of attrs classes that pickle and copy rebuild by the constructor.

    So what is unpickled is checked like anything that a caller makes. Read-only mappings,
    which Python can't pickle, travel as dicts.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        kind = type(self)
        fields = cast("tuple[attrs.Attribute[Any], ...]", attrs.fields(cast("Any", kind)))
        values = (getattr(self, field.name) for field in fields if field.init)
        return kind, tuple(
            dict(cast("Mapping[Any, Any]", value))
            if isinstance(value, MappingProxyType)
            else value
            for value in values
        )


def read_only(mapping: Mapping[K, V]) -> Mapping[K, V]:
    """Return a copy of `mapping` that can't be changed."""
    return MappingProxyType(dict(mapping))
