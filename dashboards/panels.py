"""What the panels of the dashboards have in common.

Latencies may be classic or native histograms: a query asks for both, and the one that
Prometheus does not have is empty. If it has both, the native one is shown.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

TAG = "trio-statskeeper"
DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def query(expr: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).range()


def graph(
    title: str, description: str, unit: str, *queries: prometheus.Dataquery
) -> timeseries.Panel:
    panel = timeseries.Panel().title(title).description(description).unit(unit)
    panel = panel.datasource(DATA_SOURCE).height(8).span(12).min(0).fill_opacity(10)
    for ref_id, each in zip("ABCD", queries, strict=False):
        panel = panel.with_target(each.ref_id(ref_id))
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    stacking = common.StackingConfig().mode(StackingMode.NORMAL)
    return panel.stacking(stacking).fill_opacity(40).line_width(0)


def colors(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Return the colors of values from each step on."""
    thresholds = [Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(thresholds)


def number(title: str, description: str, unit: str, expr: str) -> stat.Panel:
    panel = stat.Panel().title(title).description(description).unit(unit)
    panel = panel.datasource(DATA_SOURCE).height(4).span(6)
    return panel.with_target(query(expr).instant().ref_id("A"))


def variable(label: str, metric: str) -> dashboard.QueryVariable:
    """Return a variable that selects values of a label, by default all, and none at all."""
    every = VariableOption(selected=True, text="All", value="$__all")
    found = dashboard.QueryVariable(label).query(f"label_values({metric}, {label})")
    found = found.datasource(DATA_SOURCE).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    found = found.sort(VariableSort.ALPHABETICAL_ASC)
    return found.multi(True).include_all(True).all_value(".*").current(every)


def new_dashboard(name: str, title: str, description: str) -> dashboard.Dashboard:
    new = dashboard.Dashboard(title).uid(f"{TAG}-{name}").description(description)
    new = new.tags([TAG]).time("now-6h", "now").refresh("1m").timezone("browser")
    link = dashboard.DashboardLink(TAG).type(DashboardLinkType.DASHBOARDS).tags([TAG])
    new = new.link(link.keep_time(True).as_dropdown(True))
    data_source = dashboard.DatasourceVariable("datasource").label("Data source")
    return new.with_variable(data_source.type("prometheus"))
