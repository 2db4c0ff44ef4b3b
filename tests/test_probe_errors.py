"""The exceptions that probes raise; test_health.py tests how probers handle them."""

from __future__ import annotations

import copy
import pickle
from enum import StrEnum

import pytest

from trio_statskeeper import Inconclusive, ProbeFailed


class Reason(StrEnum):
    FULL = "full"


pytestmark = pytest.mark.parametrize("kind", [ProbeFailed, Inconclusive])


def test_it_says_its_reason_and_has_no_metrics_unless_given(kind):
    error = kind("full")
    assert (error.reason, dict(error.metrics), str(error)) == ("full", {}, "full")
    assert type(kind(Reason.FULL).reason) is str


def test_its_metrics_are_a_read_only_copy(kind):
    given = {"size": 5}
    error = kind("full", metrics=given)
    given["size"] = 6
    assert error.metrics == {"size": 5}
    with pytest.raises(TypeError):
        error.metrics["size"] = 7


def pickled(error: Exception) -> Exception:
    return pickle.loads(pickle.dumps(error))  # it is the test's own


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_copies_and_pickles_are_the_same_again(kind, again):
    error = kind("full", metrics={"size": 5})
    error.add_note("note")
    other = again(error)
    assert type(other) is kind
    assert (other.reason, other.metrics) == ("full", {"size": 5})
    assert (other.args, other.__notes__) == (error.args, ["note"])


def test_its_repr_is_how_to_make_it(kind):
    assert repr(kind("full")) == f"{kind.__name__}('full')"
    with_metrics = kind("full", metrics={"size": 5})
    assert repr(with_metrics) == f"{kind.__name__}('full', metrics={{'size': 5}})"


@pytest.mark.parametrize("reason", [503, None, b"full", ["full"]])
def test_a_reason_that_is_not_a_string_is_refused(kind, reason):
    with pytest.raises(TypeError, match="reason must be a string, got"):
        kind(reason)


def test_an_empty_reason_is_refused(kind):
    with pytest.raises(ValueError, match="reason can't be empty"):
        kind("")


@pytest.mark.parametrize("metrics", [5, "size", [("size", 5)]])
def test_metrics_that_are_not_a_mapping_are_refused(kind, metrics):
    with pytest.raises(TypeError, match="must be a mapping or None, got"):
        kind("full", metrics=metrics)


def test_metrics_that_the_prober_itself_counts_are_refused(kind):
    with pytest.raises(ValueError, match=r"can't add the metrics \['total', 'error'\]"):
        kind("full", metrics={"error": 1, "size": 5, "total": 1})
