"""The rules in rules/: what promtool and real Prometheis make of them."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from real_servers import ROOT, Prometheus, free_port, get
from rule_cases import CASES, RECORDED

from trio_statskeeper import Endpoint, Gauge, Prober, StatsKeeper, open_keeper, open_outputs
from trio_statskeeper.prometheus import PrometheusExporter

RULES = [ROOT / "rules" / name for name in ("availability.yml", "alerts.yml")]
GROUPS = [
    "probe-availability",
    "probe-availability-of-days",
    "probe-targets",
    "probe-programs",
]


@pytest.fixture
def run_rules(promtool_test):
    """Return what promtool says of a test of the rules with these series."""

    def run(series, interval="1m", **tests):
        rules = {
            "rule_files": [str(path) for path in RULES],
            # Else it differs from run to run.
            "group_eval_order": GROUPS,
        }
        return promtool_test(series, interval, rules, **tests)

    return run


def test_each_alert_is_explained_and_has_cases_in_which_it_fires_and_does_not():
    alerts = set(re.findall(r"- alert: (\w+)", RULES[1].read_text()))
    how_to = (ROOT / "docs/how-to/alerts.md").read_text()
    assert set(re.findall(r"^\| `(\w+)`", how_to, re.MULTILINE)) == alerts
    assert {case.alert for case in CASES if case.summary is not None} == alerts
    assert {case.alert for case in CASES if case.summary is None} == alerts


def test_promtool_finds_no_fault(promtool):
    status, output = promtool("check", "rules", "--lint-fatal", *RULES)
    assert (status, output.count("SUCCESS")) == (0, len(RULES)), output


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.name}")
def test_an_alert_fires_exactly_when_it_should(run_rules, case):
    # Without expectations, promtool shows the alerts that fire, with all their texts.
    alert = {"alertname": case.alert, "eval_time": case.at, "exp_alerts": []}
    interval = "5m" if case.alert == "ProbeErrorBudgetBurnsSlowly" else "1m"
    status, output = run_rules(case.series, interval, alert_rule_test=[alert])
    if case.summary is None:
        assert status == 0, output
    else:
        assert status == 1, output
        assert output.count("alertname=") == 1, output
        assert f'summary="{case.summary}"' in output


@pytest.mark.parametrize("name", RECORDED)
def test_availability(run_rules, name):
    series, ratio = RECORDED[name]
    labels = '{job="probes",ptype="http",probe="web",dst="a:443"}'
    samples = [] if ratio is None else [{"labels": labels, "value": ratio}]
    rounded = "round(target:probe_success:ratio_rate5m, 0.0001)"
    query = {"expr": rounded, "eval_time": "15m", "exp_samples": samples}
    status, output = run_rules(series, promql_expr_test=[query])
    assert status == 0, output


MINUTES = {"m": 1, "h": 60, "d": 24 * 60}


def faster(rules: str) -> str:
    """Return the rules with all durations divided by 60: `[5m]` becomes `[5s]`."""
    return re.sub(
        r"\b(\d+)([mhd])\b", lambda found: f"{int(found[1]) * MINUTES[found[2]]}s", rules
    )


@pytest.fixture
def faster_prometheis(prometheus_programs, newer_prometheus, tmp_path_factory):
    """Two releases of Prometheus that scrape a port, and evaluate faster rules."""
    port = free_port()
    servers = []
    for program in (prometheus_programs[0], newer_prometheus):
        folder = tmp_path_factory.mktemp("prometheus")
        (folder / "rules").mkdir()
        for path in RULES:
            (folder / "rules" / path.name).write_text(faster(path.read_text()))
        servers.append(Prometheus(program, folder, [f"127.0.0.1:{port}"], "500ms"))
    with servers[0], servers[1]:
        yield port, servers


@asynccontextmanager
async def listening(port):
    async with trio.open_nursery() as nursery:
        hang_up = trio.SocketStream.aclose
        await nursery.start(partial(trio.serve_tcp, hang_up, port, host="127.0.0.1"))
        yield
        nursery.cancel_scope.cancel()


async def probe(endpoint):
    await (await trio.open_tcp_stream(endpoint.name, endpoint.port)).aclose()
    return {"cert-expiry": Gauge(90 * 86_400)}


async def test_target_down_fires_and_resolves_with_a_real_server(faster_prometheis):
    port, prometheis = faster_prometheis

    async def wait_for(expr, condition):
        for prometheus in prometheis:
            await trio.to_thread.run_sync(prometheus.wait_for, expr, condition)

    endpoint = Endpoint("127.0.0.1", free_port())
    down = f'ALERTS{{alertname="ProbeTargetDown",dst="{endpoint.key}"}}'
    keeper = StatsKeeper("tcp", "web", [endpoint], export_interval=0.2)
    prober = Prober(probe, keeper, interval=0.1, timeout=1)
    exporter = PrometheusExporter(port, statistics_of=[keeper, prober])
    async with (
        open_outputs(exporter.run) as exports,
        open_keeper(keeper, exports) as results,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(prober.run, results)
        async with listening(endpoint.port):
            await wait_for("target:probe_success:ratio_rate5m == 1", bool)
            for prometheus in prometheis:
                assert prometheus.query(down) == []
        await wait_for(f'{down[:-1]},alertstate="firing"}}', bool)
        async with listening(endpoint.port):
            await wait_for(down, lambda alerts: not alerts)
        nursery.cancel_scope.cancel()
    for prometheus in prometheis:
        data = json.loads(get(prometheus.port, "/api/v1/rules")[1])["data"]
        rules = [rule for group in data["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}
        for rule in rules:
            for metric in re.findall(r"\b(?:probe|statskeeper)_\w+\b(?!:)", rule["query"]):
                assert prometheus.query(f"last_over_time({metric}[1m])"), metric
            if rule["type"] == "alerting":
                assert rule["annotations"].keys() == {"summary", "description", "runbook"}
                assert rule["labels"]["severity"] in {"critical", "warning"}
