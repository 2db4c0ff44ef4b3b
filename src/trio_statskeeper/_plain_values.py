"""Frozen objects that can be pickled and copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

import attrs

K = TypeVar("K")
V = TypeVar("V")


class PlainValue:
    """Base of attrs classes that pickle and copy rebuild by calling the constructor.

    So an unpickled object is validated like any other. Read-only mappings, which Python
    can't pickle, are pickled as dicts.
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
    """Return a read-only copy of `mapping`."""
    return MappingProxyType(dict(mapping))
