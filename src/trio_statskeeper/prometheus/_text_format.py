"""Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import final

import attrs

from trio_statskeeper._distribution import Distribution
from trio_statskeeper._naming import Family
from trio_statskeeper._values import Value

from ._exposition import SUFFIX_AND_TYPE, Part
from ._samples import Classic, Sample, classic, created_samples, samples

_NOT_FINITE = {"inf": "+Inf", "-inf": "-Inf"}


@final
@attrs.frozen(eq=False)  # so it hashes fast
class TextFormat:
    """The text format."""

    created: bool
    """Whether it has `_created` samples."""
    buckets_per_power: int
    """Buckets of an exponential distribution per power of two."""

    content_type = b"text/plain; version=0.0.4; charset=utf-8"

    def parts(self, family: Family) -> list[Part]:
        if self.created and family.is_cumulative:
            return [(family, False), (family, True)]
        return [(family, False)]

    def blocks(
        self,
        metrics: Iterable[tuple[Family, Value]],
        labels: Mapping[str, str],
        start_timestamp: float,
    ) -> list[bytes]:
        blocks: list[bytes] = []
        pairs = _label_pairs(labels)
        for family, value in metrics:
            shown = classic(family, value, self.buckets_per_power)
            blocks.append(_block(family, pairs, shown))
            if self.created and family.is_cumulative:
                created = created_samples(value, start_timestamp)
                blocks.append(_lines(family, pairs, created))
        return blocks

    def join(
        self, part: Part, columns: deque[tuple[bytes, ...]]
    ) -> Iterator[Sequence[bytes]]:
        heading = _heading(*part)
        while columns:
            column = columns.popleft()
            if heading and any(column):  # a map may be empty
                yield [heading]
                heading = b""
            yield column


def _block(family: Family, labels: str, value: Classic) -> bytes:
    """Return the lines of a target's value.

    Args:
      family: the family of the value.
      labels: the labels of the target, by `_label_pairs`.
      value: the value.
    """
    if not isinstance(value, Distribution):
        return _lines(family, labels, samples(value))
    between = _between_labels(family.name, value.bounds, bool(labels))
    counts = [*accumulate(value.bucket_counts)]
    text = labels.replace("%", "%%").join(between)
    return (text % (*counts, _number(value.sum), counts[-1])).encode()


# The lines of a histogram differ between targets by labels and numbers alone.
@lru_cache
def _between_labels(name: str, bounds: tuple[float, ...], has_labels: bool) -> list[str]:
    comma = "," if has_labels else ""
    ends = [f'{comma}le="{le}"}} %s\n' for le in (*map(repr, bounds), "+Inf")]
    starts = [f"{name}_bucket{{"] * len(ends)
    starts += f"{name}_sum{{", f"{name}_count{{"
    ends += "} %s\n", "} %s\n"
    return [a + b for a, b in zip(["", *ends], [*starts, ""], strict=True)]


def _lines(family: Family, labels: str, samples_of_value: list[Sample]) -> bytes:
    """Return the lines of the samples of one value."""
    name = family.name
    further = f"{labels},{family.label}" if labels else family.label
    texts = [
        f"{name}{suffix}{{{labels}}} {_number(number)}\n"
        if text is None
        else f'{name}{suffix}{{{further}="{_escaped(text)}"}} {_number(number)}\n'
        for suffix, text, number in samples_of_value
    ]
    return "".join(texts).encode()


def _heading(family: Family, created: bool) -> bytes:
    """Return the lines that precede a family, or its `..._created` samples."""
    suffix, kind = ("_created", "gauge") if created else SUFFIX_AND_TYPE[family.kind]
    name = family.name + suffix
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()


def _label_pairs(labels: Mapping[str, str]) -> str:
    """Return labels as they stand between braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(number: float) -> str:
    text = repr(number)
    return _NOT_FINITE.get(text, text)
