"""`help()` on a public name explains all that it takes."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

import trio_statskeeper
from trio_statskeeper import lines, otlp, prometheus, status, testing


def public_objects(module: ModuleType):
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if name[0] != "_"
        and str(getattr(value, "__module__", "")).startswith(module.__name__)
    ]
    return [getattr(module, name) for name in names]


def callables():
    for module in (trio_statskeeper, lines, otlp, prometheus, status, testing):
        for public in public_objects(module):
            if inspect.isfunction(public):
                yield public
            # Nobody but the library makes statistics.
            elif inspect.isclass(public) and not public.__name__.endswith("Statistics"):
                yield public
                for name, method in inspect.getmembers(public, callable):
                    # `open_keeper` alone calls `run_and_flush`.
                    if name[0] != "_" and name in vars(public) and name != "run_and_flush":
                        yield method


def parameters_of(public):
    if inspect.isclass(public) and getattr(public, "_is_protocol", False):
        return []
    return [name for name in inspect.signature(public).parameters if name != "self"]


@pytest.mark.parametrize(
    "public", list(callables()), ids=lambda public: public.__qualname__
)
def test_each_parameter_is_in_the_docstring(public):
    documentation = inspect.getdoc(public) or ""
    missing = [
        name
        for name in parameters_of(public)
        if not re.search(rf"\b{name}\b", documentation)
    ]
    assert missing == []


@pytest.mark.parametrize(
    "public",
    [
        trio_statskeeper.StatsKeeper,
        trio_statskeeper.Prober,
        trio_statskeeper.EventMetrics,
        trio_statskeeper.Endpoint,
        prometheus.PrometheusExporter,
        otlp.OTLPExporter,
    ],
)
def test_help_on_a_class_says_what_each_argument_is(public):
    documentation = inspect.getdoc(public)
    arguments = documentation.partition("\nArgs:\n")[2].partition("\n\n")[0]
    names = re.findall(r"^  (\w+): ", arguments, re.MULTILINE)
    assert names == parameters_of(public)
