"""Frozen objects that can be pickled and copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
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
        arguments: list[object] = []
        keywords: dict[str, object] = {}
        for field in fields:
            if not field.init:
                continue
            value = getattr(self, field.name)
            if isinstance(value, MappingProxyType):
                value = dict(cast("Mapping[Any, Any]", value))
            if field.kw_only:
                keywords[field.name] = value
            else:
                arguments.append(value)
        return partial(kind, **keywords) if keywords else kind, tuple(arguments)


def read_only(mapping: Mapping[K, V]) -> Mapping[K, V]:
    """Return a read-only copy of `mapping`."""
    return MappingProxyType(dict(mapping))
