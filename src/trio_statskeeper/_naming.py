"""Metric families: what metrics are called in the monitoring systems that we export to.

A family is what Prometheus calls so: all samples of one name, of one kind, with one help
text.

Receivers of OTLP turn names into Prometheus' own by rules of their own, which these are:

    https://github.com/open-telemetry/opentelemetry-collector-contrib/tree/main/pkg/translator/prometheus
    https://github.com/prometheus/otlptranslator

A name is split into words of ASCII letters and digits, which are joined by single
underscores. A counter's loses the word "total" wherever it stands, and ends in "_total". A
unit is appended unless it is one of the words already. Names are given out in a form that
these rules leave alone, so a metric has one name whether it is scraped or sent by OTLP. Two
metrics, or two kinds of one metric, that would share a name are found before anything is
sent: the first has the name, and the other is left out and logged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import lru_cache
from typing import Literal, TypeAlias

import attrs

from ._arguments import plain_number, quote
from ._conflating import stale_at
from ._event_metrics import EventMetrics
from ._log import logger
from ._values import (
    Distribution,
    Gauge,
    Map,
    Value,
    unchecked_distribution,
    validate_bounds,
)

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "info"]

# What the samples of a family add to its name. The name itself is taken, too.
_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "counter": ("_total", "_created"),
    "gauge": (),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "info": ("_info",),
}

_HELP: dict[Kind, str] = {
    "counter": "Sum of {} over all probe runs",
    "gauge": "Newest {}",
    "histogram": "Distribution of {} over all probe runs",
    "info": "Newest {}",
}

_WORD = re.compile("[a-zA-Z0-9]+")

# How many families there may be before those out of use are looked for, and of how many
# problems it is remembered that they were logged.
_MEMORY = 1_000

# A metric, its kind, and the name of the map if it is one.
_Key: TypeAlias = tuple[str, Kind, str | None]


@attrs.define(eq=False)
class Family:
    """What the values of one metric are called."""

    key: _Key
    label: str | None
    """The label by which a family's samples of one target differ, or that has the text."""
    in_seconds: bool
    """Whether its values are to be converted from the latency unit to seconds."""
    name: str
    """Prometheus' name, without what the samples add to it: `probe_latency_seconds`."""
    otlp_name: str
    """OpenTelemetry's name, of which the unit is no part: `probe_latency`."""
    help: str
    used_until: float = 0.0
    """When the last of its series will be gone."""

    @property
    def kind(self) -> Kind:
        return self.key[1]

    @property
    def names(self) -> tuple[str, ...]:
        # OpenTelemetry's may be another metric's with its unit, and that without.
        suffixes = _SUFFIXES[self.kind]
        names = (self.name, self.otlp_name, *(self.name + suffix for suffix in suffixes))
        return tuple(dict.fromkeys(names))

    def __str__(self) -> str:
        return f"{quote(self.key[0])}, a {self.kind}"


@attrs.frozen
class Resolved:
    """An export in the terms of the monitoring systems."""

    labels: dict[str, str]
    metrics: list[tuple[Family, Value]]
    stale_at: float
    """When its series are gone unless they come again, in seconds of Trio's clock."""


@attrs.define(eq=False)
class Families:
    """The families in use, and the names that they take."""

    prefix: str
    help: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """Help texts by metric, for those that have one of their own."""

    _families: dict[_Key, Family] = attrs.field(init=False, factory=dict[_Key, Family])
    _holders: dict[str, Family] = attrs.field(init=False, factory=dict[str, Family])
    _purge_at: int = attrs.field(init=False, default=_MEMORY)
    _logged: set[str] = attrs.field(init=False, factory=set[str])

    def resolve(self, export: EventMetrics, now: float) -> Resolved:
        """Find the families of an export's metrics; leave out and log those that clash."""
        metrics: list[tuple[Family, Value]] = []
        labels = {
            label_name(name): valid_text(value) for name, value in export.labels.items()
        }
        fresh_until = stale_at(export, now)
        if len(labels) < len(export.labels):
            self.log_skipped(f"labels, two of them of one name: {[*export.labels]}")
            return Resolved(labels, metrics, fresh_until)
        for metric, value in export.metrics.items():
            key = _key(metric, value)
            family = self._families.get(key)
            if family is None:
                family = self._new_family(key, now)
                if family is None:
                    continue
            family.used_until = max(family.used_until, fresh_until)
            if family.label in labels:
                self.log_skipped(f"{family}: the target has a label {family.label}, too")
                continue
            try:
                if family.in_seconds and export.latency_unit != 1:
                    value = in_seconds(value, export.latency_unit)  # noqa: PLW2901
                value = _valid(value)  # noqa: PLW2901
            except ValueError as error:
                self.log_skipped(f"{family}: {error}")
                continue
            metrics.append((family, value))
        return Resolved(labels, metrics, fresh_until)

    def _new_family(self, key: _Key, now: float) -> Family | None:
        family = _family(self.prefix, key, self.help.get(key[0]))
        if not _WORD.search(key[0]):
            # It would get the name of `total`, or of another such metric.
            self.log_skipped(f"{family}: its name has no ASCII letter or digit")
            return None
        if len(self._families) >= self._purge_at:
            for idle in [f for f in self._families.values() if f.used_until <= now]:
                self._forget(idle)
            self._purge_at = len(self._families) + _MEMORY
        for name in family.names:
            holder = self._holders.get(name)
            if holder is None:
                continue
            if holder.used_until > now:
                self.log_skipped(f"{family}: its name, {name}, is that of {holder}")
                return None
            self._forget(holder)
        self._families[key] = family
        self._holders.update(dict.fromkeys(family.names, family))
        return family

    def _forget(self, family: Family) -> None:
        del self._families[family.key]
        for name in family.names:
            del self._holders[name]

    def log_skipped(self, what: str, detail: str = "") -> None:
        """Log what is not exported: each problem once, and only so many."""
        if what not in self._logged and len(self._logged) < _MEMORY:
            self._logged.add(what)
            logger.warning("not exported: %s%s", what, detail)
            if len(self._logged) == _MEMORY:
                logger.warning("not exported: further problems are not logged")


def _key(metric: str, value: Value) -> _Key:
    if isinstance(value, Map):
        return metric, "counter", value.name
    if isinstance(value, Distribution):
        return metric, "histogram", None
    if isinstance(value, Gauge):
        return metric, "gauge", None
    return metric, "info" if isinstance(value, str) else "counter", None


def _family(prefix: str, key: _Key, help_text: str | None) -> Family:
    metric, kind, map_name = key
    words = _WORD.findall(prefix + metric)
    otlp_words = words
    if help_text is None:
        help_text = _HELP[kind].format(valid_text(metric))
    label = None if map_name is None else label_name(map_name)
    in_seconds = kind != "info" and (
        metric == "latency" or metric.endswith(("-latency", "_latency"))
    )
    if kind == "counter":
        # Of several, some receivers remove only the first.
        words = [word for word in words if word != "total"]
        # Where names are taken as they are, `probe_total` is better than `probe`.
        otlp_words = [*words, "total"] if otlp_words[-1] == "total" else words
    elif kind == "histogram":
        label = "le"
    elif kind == "info":
        label = label_name(metric)
        otlp_words = [*words, "info"]
    if in_seconds:
        help_text += ", in seconds"
        if "seconds" not in words:
            words = [*words, "seconds"]
    name, otlp_name = "_".join(words), "_".join(otlp_words)
    return Family(key, label, in_seconds, name, otlp_name, f"{help_text}.")


@lru_cache
def label_name(name: str) -> str:
    """Return `name` as Prometheus allows it, and as receivers of OTLP leave it."""
    name = "_".join(_WORD.findall(name))
    if name == "":
        return "key"
    return f"key_{name}" if name[0].isdigit() else name


def valid_text(text: str) -> str:
    """Return `text` itself, or with lone surrogates, which UTF-8 does not have, escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def _valid(value: Value) -> Value:
    """Return `value` with texts that UTF-8 has.

    Raises:
      ValueError: if two keys of a map can't be told apart then.
    """
    if isinstance(value, str):
        return valid_text(value)
    if not isinstance(value, Map) or valid_text(keys := "".join(value.values)) is keys:
        return value
    values = {valid_text(key): number for key, number in value.values.items()}
    if len(values) < len(value.values):
        raise ValueError("two keys become equal")
    return Map(value.name, values)


def in_seconds(value: Value, unit: float) -> Value:
    """Return `value`, which is in units of so many seconds, in seconds.

    Raises:
      ValueError: if floats can't hold it, or tell its bounds apart.
    """
    if isinstance(value, Map):
        return Map(value.name, {k: _product(n, unit) for k, n in value.values.items()})
    if isinstance(value, Distribution):
        bounds = _bounds_in_seconds(value.bounds, unit)
        total = _product(value.sum, unit)
        return unchecked_distribution(bounds, value.bucket_counts, total)
    if isinstance(value, Gauge):
        return Gauge(_product(value.value, unit))
    return value if isinstance(value, str) else _product(value, unit)


@lru_cache
def _bounds_in_seconds(bounds: tuple[float, ...], unit: float) -> tuple[float, ...]:
    return validate_bounds(_product(bound, unit) for bound in bounds)


# Of any two floats, whatever the program's own context is.
_EXACTLY = Context(prec=1_000, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


def _product(number: float, unit: float) -> float:
    # As reckoned by hand: 3 * 0.1 is 0.3, not 0.30000000000000004.
    decimals = (Decimal(repr(plain_number(factor))) for factor in (number, unit))
    product = float(_EXACTLY.multiply(*decimals))
    if not math.isfinite(product) and not (number and math.isinf(number)):
        raise ValueError("in seconds, it is beyond what floats can hold")
    return product
