"""Targets, and the labels that depend on them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias, final

import attrs
import trio

from ._arguments import plain_str, quote
from ._plain_values import PlainValue

Label: TypeAlias = "str | Callable[[Endpoint], str]"
"""A label's value: a text, a template as `@target.name@`, or a function of the target."""

# As Prometheus defines it; names with two leading underscores are its own.
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_TEMPLATE = re.compile(r"@target\.[^@]*@")
_TARGET_LABEL = re.compile(r"@target\.label\.([^@]+)@")

_MAX_PORT = 65_535


def _name(value: str) -> str:
    name = plain_str(value)
    if not name:
        raise ValueError("an endpoint's name can't be empty")
    return name


def _port(value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a port must be a whole number or None, got {quote(value)}")
    if not 0 <= value <= _MAX_PORT:
        raise ValueError(f"a port must be from 0 to {_MAX_PORT}, got {quote(value)}")
    return int(value)


# Most targets have none: they share it, which is a third of an endpoint's memory.
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


def _labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    copy = {plain_str(name): plain_str(value) for name, value in dict(labels).items()}
    return MappingProxyType(copy) if copy else _NO_LABELS


def _key(endpoint: Endpoint) -> str:
    if endpoint.port is None:
        return endpoint.name
    if ":" in endpoint.name and not endpoint.name.startswith("["):
        return f"[{endpoint.name}]:{endpoint.port}"
    return f"{endpoint.name}:{endpoint.port}"


@final
@attrs.frozen
class Endpoint(PlainValue):
    """A target: something that is probed.

    Raises:
      TypeError: if the name or a label is no string, or the port no whole number.
      ValueError: if the name is empty or the port not from 0 to 65535.
    """

    name: str = attrs.field(converter=_name)
    """A host name, address, URL: whatever names the target."""

    port: int | None = attrs.field(default=None, converter=_port)
    """The port, if the target is known by one."""

    labels: Mapping[str, str] = attrs.field(
        factory=dict[str, str], converter=_labels, hash=False
    )
    """What else is known of the target; a read-only copy."""

    key: str = attrs.field(
        init=False, eq=False, repr=False, default=attrs.Factory(_key, takes_self=True)
    )
    """The target's identity, and the label `dst` of its exports.

    It is the name, `name:port` where there is a port, and `[name]:port` where there is a
    port and the name has colons, as an IPv6 address has.
    """


def targets_function(
    targets: Callable[[], Iterable[Endpoint]] | Sequence[Endpoint],
) -> Callable[[], Iterable[Endpoint]]:
    """Return a function that returns the targets: `targets` itself, if it is a function.

    A sequence is copied: later changes to it have no effect.

    Raises:
      TypeError: if `targets` is neither, or an item is not an Endpoint.
    """
    if callable(targets):
        return targets
    unchecked: object = targets
    if isinstance(unchecked, str) or not isinstance(unchecked, Sequence):
        raise TypeError(
            "targets must be a sequence of Endpoints, or a function without arguments "
            f"that returns them, got {quote(targets)}"
        )
    endpoints = tuple(checked_endpoint(each) for each in targets)
    return lambda: endpoints


@trio.lowlevel.disable_ki_protection
def endpoints_of(targets: Callable[[], Iterable[Endpoint]]) -> list[Endpoint]:
    """Return a list of what `targets` returns: the user may change theirs at any time.

    Ctrl-C can end `targets` even if it loops endlessly.
    """
    endpoints = targets()
    if not isinstance(endpoints, Iterable):
        raise TypeError(f"targets must return Endpoints, got {quote(endpoints)}")
    return list(endpoints)


def checked_endpoint(endpoint: Endpoint) -> Endpoint:
    """Return `endpoint`, which `targets` of the user's own gave, if it is one."""
    if not isinstance(endpoint, Endpoint):
        raise TypeError(f"targets must be Endpoints, got {quote(endpoint)}")
    return endpoint


def checked_labels(
    labels: Mapping[str, Label], reserved: Iterable[str]
) -> Mapping[str, Label]:
    """Return a read-only copy of `labels`.

    Raises:
      TypeError: if a name is no string, or a value neither a string nor callable.
      ValueError: if a name is invalid, reserved or given twice, or a template unknown.
    """
    checked: dict[str, Label] = {}
    if not isinstance(labels, Mapping):
        raise TypeError(f"additional_labels must be a mapping, got {quote(labels)}")
    for name, value in labels.items():
        if not isinstance(name, str):
            raise TypeError(f"a label's name must be a string, got {quote(name)}")
        if not _LABEL_NAME.fullmatch(name):
            raise ValueError(
                f"{quote(name)} is not a valid label name: it must match "
                f"{_LABEL_NAME.pattern}"
            )
        if name in reserved:
            raise ValueError(f"the label {name!r} is reserved; name yours otherwise")
        if name in checked:
            raise ValueError(f"the label {name!r} is given twice")
        checked[name] = _checked_label(name, value)
    return MappingProxyType(checked)


def _checked_label(name: str, value: Label) -> Label:
    if callable(value):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"the label {name!r} must be a string or a function of the endpoint, "
            f"got {quote(value)}"
        )
    text = plain_str(value)
    if _TEMPLATE.search(text) and isinstance(_compiled(text), str):
        raise ValueError(
            f"unknown template {quote(text)} for the label {name!r}: it must be "
            "@target.name@, @target.port@ or @target.label.KEY@, and nothing besides; "
            "for anything else give a function of the endpoint"
        )
    return text


def compiled_labels(labels: Mapping[str, Label]) -> tuple[tuple[str, Label], ...]:
    """Return pairs of names and values, with each template replaced by its function."""
    return tuple((name, _compiled(label)) for name, label in labels.items())


def _compiled(label: Label) -> Label:
    if not isinstance(label, str):
        return label
    if label == "@target.name@":
        return lambda endpoint: endpoint.name
    if label == "@target.port@":
        return lambda endpoint: "" if endpoint.port is None else str(endpoint.port)
    if target_label := _TARGET_LABEL.fullmatch(label):
        key = target_label[1]
        return lambda endpoint: endpoint.labels.get(key, "")
    return label
