"""The dashboards: each query finds something that a real program exports, by any variable.

Two releases of Prometheus scrape the program: the older one stores classic histograms, the
newer one native histograms.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import trio
from real_servers import ROOT, Prometheus, free_port, get
from rule_cases import target

from trio_statskeeper import (
    Endpoint,
    Inconclusive,
    Prober,
    StatsKeeper,
    open_keeper,
    open_outputs,
)
from trio_statskeeper.prometheus import PrometheusExporter

FOLDER = ROOT / "dashboards"
DASHBOARDS = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
PROBES, _ = DASHBOARDS

# What Grafana sets.
BUILT_IN = {"__rate_interval": "30s", "__range": "1m"}


class Query(NamedTuple):
    panel: str
    expr: str
    legend: str


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())  # of a row


def queries(dashboard: dict[str, Any]) -> Iterator[Query]:
    for panel in panels(dashboard):
        for each in panel.get("targets", ()):
            yield Query(panel["title"], each["expr"], each.get("legendFormat", ""))


def api(server: Prometheus, what: str, **parameters: str) -> Any:
    status, body = get(server.port, f"/api/v1/{what}?{urlencode(parameters)}")
    assert status == 200, (parameters, body)
    return json.loads(body)["data"]


def labels(server: Prometheus, selector: str) -> list[dict[str, str]]:
    series: list[dict[str, str]] = api(server, "series", **{"match[]": selector})
    return series


def fill_in(text: str, values: dict[str, str]) -> str:
    """Replace the variables of `text`, as Grafana does; an unknown one is an error."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], text)


def values_of_variables(
    server: Prometheus, dashboard: dict[str, Any]
) -> dict[str, list[str]]:
    """Return the values of each variable, as they are put into queries; the usual first."""
    values = dict[str, list[str]]()
    for variable in dashboard["templating"]["list"]:
        name, query = variable["name"], variable["query"]
        if variable["type"] == "custom":
            usual = variable["current"]["value"]
            values[name] = [usual, *(set(query.split(",")) - {usual})]
        elif variable["type"] == "query":
            usual = {name: of_name[0] for name, of_name in values.items()}
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
            found = {each[label] for each in labels(server, fill_in(selector, usual))}
            assert found, query
            # Of several values, Grafana makes a regular expression in a PromQL string.
            escaped = (re.escape(value).replace("\\", "\\\\") for value in found)
            values[name] = [variable["allValue"], *escaped]
    return values


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from nodes(each)


def labels_in(parsed: Any) -> set[str]:
    """Return the names of all labels in a query, apart from those of its selectors."""
    grouping = (node.get("grouping") or () for node in nodes(parsed))
    matching = (node["labels"] for node in nodes(parsed) if "card" in node)
    return set(chain(*grouping, *matching))


async def probe_flaky_targets(port: int) -> None:
    """Have runs of each target that succeed, fail, and are inconclusive."""
    runs = 0

    async def probe(_: Endpoint) -> None:
        nonlocal runs
        runs += 1
        await trio.sleep(0.001)
        if runs % 5 == 0:
            raise ConnectionRefusedError
        if runs % 7 == 0:
            raise Inconclusive("no route from here")

    targets = [Endpoint("127.0.0.1", 80), Endpoint("a.example")]
    keepers = [
        StatsKeeper("tcp", name, targets, export_interval=0.2) for name in ("x", "y")
    ]
    probers = [Prober(probe, keeper, interval=0.1, timeout=1) for keeper in keepers]
    exporter = PrometheusExporter(port, statistics_of=[*keepers, *probers])
    async with (
        open_outputs(exporter.run) as exports,
        open_keeper(keepers[0], exports) as results,
        open_keeper(keepers[1], exports) as other_results,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(probers[0].run, results)
        nursery.start_soon(probers[1].run, other_results)


@pytest.fixture
async def scraped(prometheus_programs, newer_prometheus, tmp_path_factory, nursery):
    """Two releases of Prometheus that have scraped a program, with variables' values."""
    port = free_port()
    nursery.start_soon(probe_flaky_targets, port)
    releases = {prometheus_programs[0]: "", newer_prometheus: "native-histograms"}
    servers = [
        Prometheus(
            program,
            tmp_path_factory.mktemp("prometheus"),
            [f"127.0.0.1:{port}"],
            "500ms",
            features=features,
        )
        for program, features in releases.items()
    ]
    latencies = ("probe_latency_seconds_count", "histogram_count(probe_latency_seconds)")
    with servers[0], servers[1]:
        for server, latency in zip(servers, latencies, strict=True):
            # Samples of all targets, enough for a rate.
            enough = f"count(count_over_time({latency}[1m:500ms]) > 4) == 4"
            await trio.to_thread.run_sync(server.wait_for, enough, bool)
        yield servers
        nursery.cancel_scope.cancel()


def check_series(server: Prometheus, dashboard: dict[str, Any]) -> None:
    values = values_of_variables(server, dashboard)
    usual = BUILT_IN | {name: of_name[0] for name, of_name in values.items()}
    for panel, expr, legend in queries(dashboard):
        filled_in = {
            fill_in(expr, usual | {name: value})
            for name, of_name in values.items()
            for value in of_name
        }
        for query in filled_in:
            found = api(server, "query", query=query)["result"]
            assert found, (panel, query)
            wanted = set(re.findall(r"{{(\w+)}}", legend))
            native = {"le"} if "histogram" in found[0] else set[str]()
            assert wanted - native <= found[0]["metric"].keys(), (panel, query)


def check_names(servers: list[Prometheus], dashboard: dict[str, Any]) -> None:
    usual = values_of_variables(servers[0], dashboard)
    filled_in = BUILT_IN | {name: of_name[0] for name, of_name in usual.items()}
    for panel, expr, _ in queries(dashboard):
        parsed = api(servers[1], "parse_query", query=fill_in(expr, filled_in))
        exported_labels = set[str]()
        for node in nodes(parsed):
            if node.get("type") in {"vectorSelector", "matrixSelector"}:
                exported = set(chain(*chain(*(labels(s, node["name"]) for s in servers))))
                assert exported, (panel, node["name"])
                matched = {matcher["name"] for matcher in node["matchers"]}
                assert matched <= exported, (panel, node["name"], matched - exported)
                exported_labels |= exported
        assert labels_in(parsed) <= exported_labels, (panel, expr)


async def test_each_query_gives_series_and_has_only_names_that_are_exported(scraped):
    for dashboard in DASHBOARDS:
        for server in scraped:
            await trio.to_thread.run_sync(check_series, server, dashboard)
        await trio.to_thread.run_sync(check_names, scraped, dashboard)


STATES = (
    target("0+12x20", "0+12x20", dst="a")
    | target("0+12x20", "0+11x20", dst="b")
    | target("0+12x20", "0+11x20", dst="c")
    | target("0+12x20", "7x20", dst="d")
    | target("9x20", "9x20", "0+12x20", dst="e")
    | target("0+12x9 stale", "0+12x9 stale", dst="delisted")
)
ONE_OF_2000_FAILS = target("0+2000x20", "0+1999x20")


@pytest.mark.parametrize(
    ("series", "panel", "legend", "value"),
    [
        (STATES, "Targets by state", "up", 1),
        (STATES, "Targets by state", "failing", 2),
        (STATES, "Targets by state", "down", 1),
        (STATES, "Targets by state", "unknown", 1),
        (ONE_OF_2000_FAILS, "Availability", "", 0.9995),
        (ONE_OF_2000_FAILS, "Error budget left", "", 0.5),
        (
            ONE_OF_2000_FAILS,
            "Burn rate of the error budget",
            "{{ptype}}/{{probe}} 5m",
            0.5,
        ),
    ],
)
def test_a_panel_shows(promtool_test, series, panel, legend, value):
    variables = {"ptype": ".*", "probe": ".*", "dst": ".*", "objective": "99.9"}
    [expr] = [
        fill_in(query.expr, {"__range": "10m", **variables})
        for query in queries(PROBES)
        if (query.panel, query.legend) == (panel, legend)
    ]
    samples = [{"labels": "{}", "value": value}]
    query = {
        "expr": f"round(sum({expr}), 1e-6)",
        "eval_time": "17m",
        "exp_samples": samples,
    }
    status, output = promtool_test(series, "1m", {}, promql_expr_test=[query])
    assert status == 0, output


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard["uid"])
def test_panels_and_their_queries_can_be_told_apart(dashboard):
    ids = [panel["id"] for panel in panels(dashboard)]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    for panel in panels(dashboard):
        ref_ids = [query["refId"] for query in panel.get("targets", ())]
        assert len({*ref_ids} - {""}) == len(ref_ids), panel["title"]


def test_the_files_are_what_the_script_writes(tmp_path):
    for path in FOLDER.glob("*.py"):
        shutil.copy(path, tmp_path)
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True)
    written = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert written == {path.name: path.read_text() for path in FOLDER.glob("*.json")}
