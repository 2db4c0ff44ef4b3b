"""The statistics of keepers and probers themselves, as exports."""

from __future__ import annotations

import time
from unittest.mock import Mock

import attrs
import pytest
import trio
from helpers import Result, make_keeper, running

from trio_statskeeper import (
    Gauge,
    KeeperStatistics,
    Map,
    Prober,
    ProberStatistics,
    StatsKeeper,
    _self_metrics,
)
from trio_statskeeper._naming import Families
from trio_statskeeper._self_metrics import HELP, self_metrics, validate_observed


async def probe(endpoint):
    await trio.sleep_forever()


def make_prober(**options):
    return Prober(probe, list, interval=1, timeout=1, **options)


async def test_a_keepers_statistics_are_metrics_of_the_same_names(autojump_clock):
    keeper = make_keeper(["a", "a"])
    async with running(keeper) as run:
        for deltas in {"total": 1}, {"total": -1}, {"total": -2}, {3: 1}:
            run.send(Result("a", deltas))
        await trio.sleep(1.5)
        export = self_metrics(keeper)
    assert export.labels == {"ptype": "http", "probe": "homepage"}
    rejected = export.metrics["results_rejected"]
    assert rejected.name == "reason"
    assert {r: n for r, n in rejected.values.items() if n} == {"negative": 2, "type": 1}
    assert {n: v for n, v in export.metrics.items() if n != "results_rejected"} == {
        "results_accepted": 1,
        "passes": 1,
        "exports_sent": 1,
        "ticks_missed": 0,
        "duplicate_targets": 2,
        "targets_expired": 0,
        "targets_tracked": Gauge(1),
        "clock_behind_seconds": Gauge(0.0),
    }


def test_reasons_that_have_not_occurred_are_zero():
    # What an alert waits for is an increase.
    assert self_metrics(make_keeper()).metrics["results_rejected"] == Map(
        "reason",
        {
            "error": 0,
            "type": 0,
            "kind": 0,
            "bounds": 0,
            "negative": 0,
            "not-finite": 0,
            "overflow": 0,
            "map-name": 0,
            "map-keys": 0,
            "metrics": 0,
            "unlisted": 0,
        },
    )


def test_a_probers_statistics_are_metrics_too():
    export = self_metrics(make_prober(name="homepage"))
    assert export.labels == {"probe": "homepage"}
    assert export.metrics == {
        "prober_results_sent": 0,
        "prober_runs_late": 0,
        "prober_runs_missed": 0,
        "prober_runs_stuck": Gauge(0),
        "prober_duplicate_targets": 0,
        "prober_targets": Gauge(0),
        "prober_running": Gauge(0),
        "prober_loop_lag_seconds": Gauge(0),
    }


def test_the_statistics_of_a_keepers_prober_have_the_labels_of_the_keepers():
    keeper = make_keeper()
    prober = Prober(probe, keeper, interval=1, timeout=1)
    assert self_metrics(prober).labels == self_metrics(keeper).labels
    assert validate_observed([keeper, prober]) == (keeper, prober)


def test_they_count_from_the_import():
    before = time.time()
    export = self_metrics(make_keeper())
    assert 0 < export.start_timestamp <= before <= export.timestamp <= time.time()


@pytest.mark.parametrize("of", [make_keeper(), make_prober()])
def test_their_timestamps_increase_even_if_the_clock_goes_back(of, monkeypatch):
    now = time.time() + 1
    timestamps = []
    for reading in (0, now, now, now - 7200, now + 1):
        monkeypatch.setattr(_self_metrics, "time", Mock(**{"time.return_value": reading}))
        timestamps.append(self_metrics(of).timestamp)
    start = self_metrics(of).start_timestamp
    expected = [start + 0.001, now, now + 0.001, now + 0.002, now + 1]
    assert timestamps == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("of", [make_keeper(), make_prober()])
def test_each_metric_has_a_help_text_and_a_unique_name(of):
    export = self_metrics(of)
    assert export.metrics.keys() <= HELP.keys()
    resolved = Families("statskeeper_", HELP).resolve(export, 0)
    assert [family.key[0] for family, _ in resolved.metrics] == [*export.metrics]


def test_each_help_text_belongs_to_a_metric():
    keeper = {field.name for field in attrs.fields(KeeperStatistics)}
    prober = {f"prober_{field.name}" for field in attrs.fields(ProberStatistics)}
    assert {name.removesuffix("_seconds") for name in HELP} == keeper | prober


def test_keepers_and_probers_of_different_names_can_be_told_apart():
    keepers = [StatsKeeper("http", name, list) for name in ("a", "b")]
    both = [*keepers, StatsKeeper("dns", "a", list), make_prober(), make_prober(name="a")]
    assert validate_observed(iter(both)) == tuple(both)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ([make_keeper(), make_keeper()], "two StatsKeepers called 'homepage'"),
        ([make_prober(), make_prober()], "two Probers called ''"),
    ],
)
def test_those_with_equal_labels_are_refused(of, message):
    with pytest.raises(
        ValueError, match=f"the statistics of {message} can't be told apart"
    ):
        validate_observed(of)


def test_anything_else_than_a_keeper_or_prober_is_refused():
    with pytest.raises(TypeError, match="must be keepers and probers, got 'keeper'"):
        validate_observed(["keeper"])
