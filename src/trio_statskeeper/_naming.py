"""Metric families: the names of metrics in monitoring systems.

A family, in Prometheus' terms, is all samples of one name, with one kind and one help text:

    https://prometheus.io/docs/instrumenting/exposition_formats/#comments-help-text-and-type-information

Receivers of OTLP translate names to Prometheus' by these rules:

    https://github.com/open-telemetry/opentelemetry-collector-contrib/tree/main/pkg/translator/prometheus
    https://github.com/prometheus/otlptranslator

A name is split into words of ASCII letters and digits, which are joined by single
underscores. The word "total" is removed from the name of a counter, and "_total" appended.
A unit is appended unless it is one of the words. The names here are not changed by these
rules, so a metric has the same name whether it is scraped or sent by OTLP. If two metrics,
or two kinds of one metric, would share a name, the first has the name, and the other is
skipped and logged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, TypeAlias, assert_never

import attrs

from ._arguments import quote
from ._conflating import stale_at
from ._distribution import Distribution
from ._event_metrics import EventMetrics
from ._exponential import ExponentialDistribution
from ._log import logger
from ._seconds import in_seconds, is_in_latency_unit
from ._unchecked_exponential import without_factor
from ._values import Gauge, Map, Value

Kind: TypeAlias = Literal["counter", "info", "gauge", "histogram"]


@attrs.frozen
class _Traits:
    """What families of one kind have in common."""

    suffixes: tuple[str, ...]
    """What the names of samples add to the family's name."""
    help: str
    is_cumulative: bool


_KINDS: dict[Kind, _Traits] = {
    "counter": _Traits(("_total", "_created"), "Sum of {} over all probe runs", True),
    "info": _Traits(("_info",), "Newest {}", False),
    "gauge": _Traits((), "Newest {}", False),
    "histogram": _Traits(
        ("_bucket", "_sum", "_count", "_created"),
        "Distribution of {} over all probe runs",
        True,
    ),
}

_WORD = re.compile("[a-zA-Z0-9]+")

# New families after which unused ones are forgotten.
_PURGE_INTERVAL = 1_000

# Problems that are logged.
_MAX_LOGGED = 1_000

# A metric, its kind, and the name of the map if it is one.
_Key: TypeAlias = tuple[str, Kind, str | None]


@attrs.define(eq=False)
class Family:
    """The names of one metric, and what else is common to its values."""

    key: _Key
    label: str | None
    """The label in which the samples of one target differ, or that has a string's value."""
    in_seconds: bool
    """Whether its values are converted from the latency unit to seconds."""
    name: str
    """Prometheus' name, without the suffixes of samples: `probe_latency_seconds`."""
    otlp_name: str
    """OpenTelemetry's name, without the unit: `probe_latency`."""
    help: str
    used_until: float = 0.0
    """When the last of its series becomes stale, in seconds of Trio's clock."""

    @property
    def kind(self) -> Kind:
        return self.key[1]

    @property
    def is_cumulative(self) -> bool:
        """Whether its values count from a start: a counter or a histogram."""
        return _KINDS[self.kind].is_cumulative

    @property
    def names(self) -> tuple[str, ...]:
        # The OpenTelemetry name of one metric may be the Prometheus name of another.
        suffixes = _KINDS[self.kind].suffixes
        names = (self.name, self.otlp_name, *(self.name + suffix for suffix in suffixes))
        return tuple(dict.fromkeys(names))

    @property
    def sample_names(self) -> frozenset[str]:
        """The names of its samples in Prometheus, and its own."""
        suffixes = _KINDS[self.kind].suffixes
        return frozenset((self.name, *(self.name + suffix for suffix in suffixes)))

    def __str__(self) -> str:
        return f"{quote(self.key[0])}, a {self.kind}"


@attrs.frozen
class Resolved:
    """An export by the names of monitoring systems."""

    labels: dict[str, str]
    metrics: list[tuple[Family, Value]]
    stale_at: float
    """When its series become stale without a newer export, in seconds of Trio's clock."""


@attrs.define(eq=False)
class Families:
    """The families in use, and the names that they hold."""

    prefix: str
    help: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """Help texts by metric, instead of generated ones."""

    _families: dict[_Key, Family] = attrs.field(init=False, factory=dict[_Key, Family])
    _holders: dict[str, Family] = attrs.field(init=False, factory=dict[str, Family])
    _purge_at: int = attrs.field(init=False, default=_PURGE_INTERVAL)
    _logged: set[str] = attrs.field(init=False, factory=set[str])

    def resolve(self, export: EventMetrics, now: float) -> Resolved:
        """Return the families of an export's metrics; skip and log metrics that clash."""
        metrics: list[tuple[Family, Value]] = []
        labels = {
            label_name(name): valid_text(value) for name, value in export.labels.items()
        }
        fresh_until = stale_at(export, now)
        if len(labels) < len(export.labels):
            self.log_skipped(f"two labels would have one name: {[*export.labels]}")
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
                self.log_skipped(f"{family}: the target has the same label {family.label}")
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
            # It would have the name of `total`, or of another such metric.
            self.log_skipped(f"{family}: its name has no ASCII letter or digit")
            return None
        if len(self._families) >= self._purge_at:
            for idle in [f for f in self._families.values() if f.used_until <= now]:
                self._forget(idle)
            self._purge_at = len(self._families) + _PURGE_INTERVAL
        for name in family.names:
            holder = self._holders.get(name)
            if holder is None:
                continue
            if holder.used_until > now:
                self.log_skipped(f"{family}: its name {name} belongs to {holder}")
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
        """Log what is not exported, once for each `what`, within a limit."""
        if what not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(what)
            logger.warning("not exported: %s%s", what, detail)
            if len(self._logged) == _MAX_LOGGED:
                logger.warning("not exported: further problems are not logged")


def _key(metric: str, value: Value) -> _Key:
    match value:
        case int() | float():
            return metric, "counter", None
        case str():
            return metric, "info", None
        case Gauge():
            return metric, "gauge", None
        case Map():
            return metric, "counter", value.name
        case Distribution() | ExponentialDistribution():
            return metric, "histogram", None
        case _:
            assert_never(value)


def _family(prefix: str, key: _Key, help_text: str | None) -> Family:
    metric, kind, map_name = key
    words = _WORD.findall(prefix + metric)
    otlp_words = words
    if help_text is None:
        help_text = _KINDS[kind].help.format(valid_text(metric))
    label = None if map_name is None else label_name(map_name)
    in_seconds = kind != "info" and is_in_latency_unit(metric)
    match kind:
        case "counter":
            # Some receivers remove only the first "total" of several.
            words = [word for word in words if word != "total"]
            # Where names are kept as they are, `probe_total` is better than `probe`.
            otlp_words = [*words, "total"] if otlp_words[-1] == "total" else words
        case "info":
            label = label_name(metric)
            otlp_words = [*words, "info"]
        case "gauge":
            pass
        case "histogram":
            label = "le"
        case _:
            assert_never(kind)
    if in_seconds:
        help_text += ", in seconds"
        if "seconds" not in words:
            words = [*words, "seconds"]
    name, otlp_name = "_".join(words), "_".join(otlp_words)
    return Family(key, label, in_seconds, name, otlp_name, f"{help_text}.")


@lru_cache
def label_name(name: str) -> str:
    """Return a label name that Prometheus allows and receivers of OTLP do not change."""
    name = "_".join(_WORD.findall(name))
    if name == "":
        return "key"
    return f"key_{name}" if name[0].isdigit() else name


def valid_text(text: str) -> str:
    """Return `text`, with lone surrogates escaped: UTF-8 can't encode them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def _valid(value: Value) -> Value:
    """Return `value` with texts that UTF-8 can encode, and buckets of the factor 1.

    Raises:
      ValueError: if two keys of a map become equal.
    """
    match value:
        case str():
            return valid_text(value)
        case Map():
            return _valid_map(value)
        case ExponentialDistribution():
            return without_factor(value)
        case int() | float() | Gauge() | Distribution():
            return value
        case _:
            assert_never(value)


def _valid_map(value: Map) -> Map:
    if valid_text(keys := "".join(value.values)) is keys:
        return value
    values = {valid_text(key): number for key, number in value.values.items()}
    if len(values) < len(value.values):
        raise ValueError("two keys become equal")
    return Map(value.name, values)
