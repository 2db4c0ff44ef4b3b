"""The dashboard of what the probes say of their targets."""

from __future__ import annotations

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models.common import VisibilityMode
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    VariableOption,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from panels import (
    DATA_SOURCE,
    TAG,
    colors,
    graph,
    new_dashboard,
    number,
    query,
    stacked,
    variable,
)

# What the variables select.
SELECTED = 'ptype=~"$ptype",probe=~"$probe",dst=~"$dst"'

# The labels that make a target, whichever machine probes it.
TARGET = "ptype, probe, dst"

# The share of the runs that may fail.
BUDGET = "(1 - $objective / 100)"


def rate(metric: str, window: str = "$__rate_interval") -> str:
    return f"rate({metric}{{{SELECTED}}}[{window}])"


def availability(window: str, by: str = "") -> str:
    success, total = (
        f"sum by ({by}) ({rate(metric, window)})"
        for metric in ("probe_success_total", "probe_total")
    )
    return f"{success} / {total}"


def quantile(q: float, window: str = "$__rate_interval", by: str = "") -> str:
    native = rate("probe_latency_seconds", window)
    classic = rate("probe_latency_seconds_bucket", window)
    of_native = f"sum by ({by}) ({native})"
    of_classic = f"sum by ({', '.join(filter(None, (by, 'le')))}) ({classic})"
    return f"histogram_quantile({q}, {of_native}) or histogram_quantile({q}, {of_classic})"


def numbers() -> tuple[stat.Panel, ...]:
    overall = availability("$__range")
    neutral = colors((None, "text"))
    return (
        number(
            "Availability",
            "The share of all conclusive runs that succeeded, in the time shown.",
            "percentunit",
            overall,
        )
        .decimals(3)
        .thresholds(neutral),
        number(
            "Error budget left",
            "Of the failures that the objective allows in the time shown.",
            "percentunit",
            f"1 - (1 - {overall}) / {BUDGET}",
        ).thresholds(colors((None, "red"), (0, "orange"), (0.5, "green"))),
        number(
            "p99 latency",
            "Of the successful runs in the time shown.",
            "s",
            quantile(0.99, "$__range"),
        ).thresholds(neutral),
        number(
            "Runs",
            "Conclusive runs in the time shown.",
            "short",
            f"sum(increase(probe_total{{{SELECTED}}}[$__range]))",
        ).thresholds(neutral),
    )


def states() -> timeseries.Panel:
    ratio = availability("5m", TARGET)
    runs = f"sum by ({TARGET}) ({rate('probe_total', '5m')})"
    of_state = {
        "up": (f"{ratio} > 0.9999", "green"),  # sums of floats are not exact
        "failing": (f"({ratio} > 0) <= 0.9999", "orange"),
        "down": (f"{ratio} == 0", "red"),
        "unknown": (f"{runs} == 0", "purple"),
    }
    panel = graph(
        "Targets by state",
        "By the runs of the last 5 minutes: all, some or none succeeded, or no run was "
        "conclusive.",
        "short",
        *(
            query(f"count({expr}) or vector(0)", state)
            for state, (expr, _) in of_state.items()
        ),
    )
    for state, (_, color) in of_state.items():
        fixed = {"mode": "fixed", "fixedColor": color}
        panel = panel.override_by_name(state, [DynamicConfigValue("color", fixed)])
    return stacked(panel)


def burn_rate() -> timeseries.Panel:
    return graph(
        "Burn rate of the error budget",
        "At 1, the budget lasts exactly as long as its period. The short window shows "
        "whether it still burns.",
        "short",
        *(
            query(
                f"(1 - {availability(window, 'ptype, probe')}) / {BUDGET}",
                f"{{{{ptype}}}}/{{{{probe}}}} {window}",
            )
            for window in ("5m", "1h")
        ),
    )


def latency_heatmap() -> heatmap.Panel:
    native = rate("probe_latency_seconds")
    classic = rate("probe_latency_seconds_bucket")
    buckets = query(f"sum({native}) or sum by (le) ({classic})", "{{le}}").ref_id("A")
    panel = heatmap.Panel().title("Latency").datasource(DATA_SOURCE).height(8).span(12)
    panel = panel.description("Successful runs per second, by latency.").calculate(False)
    panel = panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME))
    panel = panel.y_axis(heatmap.YAxisConfig().unit("s")).cell_gap(0).show_tooltip()
    return panel.with_target(buckets.format(PromQueryFormat.HEATMAP))


def quantiles() -> timeseries.Panel:
    return graph(
        "Latency quantiles",
        "Of the successful runs. The lag of the programs' loops adds to them.",
        "s",
        *(query(quantile(q), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)),
    ).fill_opacity(0)


def errors() -> timeseries.Panel:
    return stacked(
        graph(
            "Errors by kind",
            "Failed and inconclusive runs per second.",
            "ops",
            query(f"sum by (error) ({rate('probe_error_total')})", "{{error}}"),
        )
    )


def runs() -> timeseries.Panel:
    return graph(
        "Runs per second",
        "Inconclusive runs say nothing about their target.",
        "ops",
        query(f"sum by (ptype, probe) ({rate('probe_total')})", "{{ptype}}/{{probe}}"),
        query(f"sum({rate('probe_inconclusive_total')})", "inconclusive"),
    )


def target_table() -> table.Panel:
    columns = {
        "A": ("availability", "percentunit", availability("$__range", TARGET)),
        "B": ("runs per second", "short", f"sum by ({TARGET}) ({rate('probe_total')})"),
        "C": ("median latency", "s", quantile(0.5, "$__range", TARGET)),
        "D": ("p99 latency", "s", quantile(0.99, "$__range", TARGET)),
    }
    panel = table.Panel().title("Targets").datasource(DATA_SOURCE).height(12).span(24)
    panel = panel.description("Over the time shown. Choose a target to see it alone.")
    for ref_id, (name, unit, expr) in columns.items():
        of_table = prometheus.Dataquery().format(PromQueryFormat.TABLE).instant()
        panel = panel.with_target(of_table.expr(expr).ref_id(ref_id))
        panel = panel.override_by_name(name, [DynamicConfigValue("unit", unit)])
    names = {f"Value #{ref_id}": name for ref_id, (name, *_) in columns.items()}
    organized = {"excludeByName": {"Time": True}, "renameByName": names}
    for transformation, options in (("merge", {}), ("organize", organized)):
        panel = panel.with_transformation(
            DataTransformerConfig(transformation, options=options)
        )
    parameters = (
        "var-dst=${__value.raw:percentencode}",
        "${datasource:queryparam}",
        "${__url_time_range}",
    )
    link = {"title": "Only this target", "url": f"/d/{TAG}-probes?{'&'.join(parameters)}"}
    panel = panel.override_by_name("dst", [DynamicConfigValue("links", [link])])
    worst_first = common.TableSortByFieldState().display_name("availability").desc(False)
    return panel.sort_by([worst_first])


def state_timeline() -> statetimeline.Panel:
    panel = statetimeline.Panel().title("Availability of each target").unit("percentunit")
    panel = panel.datasource(DATA_SOURCE).height(12).span(24)
    panel = panel.show_value(VisibilityMode.NEVER).merge_values(True)
    panel = panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    panel = panel.thresholds(colors((None, "red"), (0.0001, "orange"), (0.9999, "green")))
    return panel.with_target(
        query(availability("5m", TARGET), "{{probe}} {{dst}}").ref_id("A")
    )


def probes() -> dashboard.Dashboard:
    usual = VariableOption(selected=True, text="99.9", value="99.9")
    objective = dashboard.CustomVariable("objective").label("Objective (%)").current(usual)
    new = (
        new_dashboard("probes", "Probes", "What the probes say of their targets.")
        .with_variable(variable("ptype", "probe_total").label("Type"))
        .with_variable(variable("probe", 'probe_total{ptype=~"$ptype"}').label("Probe"))
        .with_variable(
            variable("dst", 'probe_total{ptype=~"$ptype",probe=~"$probe"}').label("Target")
        )
        .with_variable(objective.values("99,99.5,99.9,99.95,99.99"))
    )
    panels: tuple[stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel, ...] = (
        *numbers(),
        states(),
        burn_rate(),
        latency_heatmap(),
        quantiles(),
        errors(),
        runs(),
        target_table(),
    )
    for panel_id, panel in enumerate(panels, 1):
        new = new.with_panel(panel.id(panel_id))
    each = dashboard.Row("Each target").collapsed(True).id(len(panels) + 1)
    return new.with_row(each.with_panel(state_timeline().id(len(panels) + 2)))
