"""Labels: texts, templates, and functions of the target."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from ._arguments import plain_str, quote
from ._endpoint import Endpoint

Label: TypeAlias = str | Callable[[Endpoint], str]
"""A label's value: a text, a template such as `@target.name@`, or a function."""

# The names that need no quotes in Prometheus. Two leading underscores are reserved:
# https://prometheus.io/docs/concepts/data_model/#metric-names-and-labels
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_TEMPLATE = re.compile(r"@target\.[^@]*@")
_TARGET_LABEL = re.compile(r"@target\.label\.([^@]+)@")


def validate_labels(
    labels: Mapping[str, Label], reserved: Iterable[str]
) -> Mapping[str, Label]:
    """Return a read-only copy of `labels`.

    Raises:
      TypeError: if a name is not a string, or a value is neither a string nor a function.
      ValueError: if a name is invalid, reserved or given twice, or a template is unknown.
    """
    valid: dict[str, Label] = {}
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
            raise ValueError(f"the label {name!r} is reserved; choose another name")
        if name in valid:
            raise ValueError(f"the label {name!r} is given twice")
        valid[name] = _validate_label(name, value)
    return MappingProxyType(valid)


def _validate_label(name: str, value: Label) -> Label:
    if callable(value):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"the label {name!r} must be a string or a function of the endpoint, "
            f"got {quote(value)}"
        )
    text = plain_str(value)
    if _TEMPLATE.search(text) and isinstance(_compile(text), str):
        raise ValueError(
            f"unknown template {quote(text)} for the label {name!r}: it must be "
            "@target.name@, @target.port@ or @target.label.KEY@, and nothing else; "
            "for other texts, give a function of the endpoint"
        )
    return text


def compile_labels(labels: Mapping[str, Label]) -> tuple[tuple[str, Label], ...]:
    """Return pairs of names and values, with a function for each template."""
    return tuple((name, _compile(label)) for name, label in labels.items())


def _compile(label: Label) -> Label:
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
