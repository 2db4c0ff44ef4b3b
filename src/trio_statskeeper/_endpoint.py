"""Endpoints: the targets, as a sequence or as a function that returns them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import final

import attrs
import trio

from ._arguments import plain_str, quote
from ._plain_values import PlainValue

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
        raise TypeError(f"a port must be an integer or None, got {quote(value)}")
    if not 0 <= value <= _MAX_PORT:
        raise ValueError(f"a port must be from 0 to {_MAX_PORT}, got {quote(value)}")
    return int(value)


# Most targets have no labels. Sharing this saves a third of an endpoint's memory.
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


def _labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels must be a mapping, got {quote(labels)}")
    copy = {plain_str(name): plain_str(value) for name, value in labels.items()}
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

    Args:
      name: a host name, an address, a URL or any other name.
      port: the port, if it is part of the target's identity.
      labels: further properties of the target, for labels of exports; a read-only copy.

    Raises:
      TypeError: if the name or a label is not a string, or the port is not an integer.
      ValueError: if the name is empty, or the port is not from 0 to 65535.
    """

    name: str = attrs.field(converter=_name)

    port: int | None = attrs.field(default=None, converter=_port)

    labels: Mapping[str, str] = attrs.field(
        factory=dict[str, str], converter=_labels, hash=False
    )

    key: str = attrs.field(
        init=False, eq=False, repr=False, default=attrs.Factory(_key, takes_self=True)
    )
    """The target's identity, and the label `dst` of its exports.

    Without a port, the key is the name. With a port, it is `name:port`, or `[name]:port` if
    the name contains colons, like an IPv6 address.
    """


def targets_function(
    targets: Callable[[], Iterable[Endpoint]] | Sequence[Endpoint],
) -> Callable[[], Iterable[Endpoint]]:
    """Return a function that returns the targets: `targets` itself if it is a function.

    A sequence is copied, so later changes have no effect.

    Raises:
      TypeError: if `targets` is neither a function nor a sequence of Endpoints.
    """
    if callable(targets):
        return targets
    unchecked: object = targets
    if isinstance(unchecked, str) or not isinstance(unchecked, Sequence):
        raise TypeError(
            "targets must be a sequence of Endpoints, or a function without arguments "
            f"that returns them, got {quote(targets)}"
        )
    endpoints = tuple(validate_endpoint(each) for each in targets)
    return lambda: endpoints


@trio.lowlevel.disable_ki_protection
def endpoints_of(targets: Callable[[], Iterable[Endpoint]]) -> list[Endpoint]:
    """Return a copy of the iterable that `targets` returns.

    Ctrl-C can interrupt `targets`, even an endless loop in it.
    """
    endpoints = targets()
    if not isinstance(endpoints, Iterable):
        raise TypeError(f"targets must return Endpoints, got {quote(endpoints)}")
    return list(endpoints)


def validate_endpoint(endpoint: Endpoint) -> Endpoint:
    """Return `endpoint`, an item of the user's targets.

    Raises:
      TypeError: if it is not an Endpoint.
    """
    if not isinstance(endpoint, Endpoint):
        raise TypeError(f"targets must be Endpoints, got {quote(endpoint)}")
    return endpoint
