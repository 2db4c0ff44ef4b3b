"""The dashboard of the programs that probe."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from panels import graph, new_dashboard, query, variable

# What the variables select.
SELECTED = 'job=~"$job",instance=~"$instance"'

LAST_EXPORT = "statskeeper_last_export_timestamp_seconds"

# A keeper or a prober of a program, in legends.
OF = "{{instance}} {{ptype}}/{{probe}}"


def own(metric: str, what: str = "") -> prometheus.Dataquery:
    return query(f"statskeeper_{metric}{{{SELECTED}}}", f"{OF} {what}".rstrip())


def own_rate(metric: str, what: str) -> prometheus.Dataquery:
    expr = f"rate(statskeeper_{metric}_total{{{SELECTED}}}[$__rate_interval])"
    return query(expr, f"{OF} {what}")


def panels() -> tuple[timeseries.Panel, ...]:
    return (
        graph(
            "Programs up",
            "1 if the last scrape succeeded.",
            "short",
            query(f"up{{{SELECTED}}}", "{{instance}}"),
        ),
        graph(
            "Seconds since the last export",
            "More than the export interval: the keeper has stalled, or clocks differ.",
            "s",
            query(f"time() - {LAST_EXPORT}{{{SELECTED}}}", OF),
        ),
        graph(
            "Targets",
            "That have totals, and that are probed now.",
            "short",
            own("targets_tracked", "tracked"),
            own("prober_targets", "probed"),
        ),
        graph(
            "Changes of the targets",
            "Per second: targets that expired after they were delisted, and targets that a "
            "list had twice.",
            "ops",
            own_rate("targets_expired", "expired"),
            own_rate("duplicate_targets", "duplicate in the keeper"),
            own_rate("prober_duplicate_targets", "duplicate in the prober"),
        ),
        graph(
            "Results",
            "Per second: sent by the prober, added to the totals by the keeper.",
            "ops",
            own_rate("prober_results_sent", "sent"),
            own_rate("results_accepted", "accepted"),
        ),
        graph(
            "Rejected results",
            "Per second, by reason. The log says which target and value.",
            "ops",
            own_rate("results_rejected", "{{reason}}"),
        ),
        graph(
            "Runs late and missed",
            "Per second. The prober waits for max_concurrent, or the loop is busy.",
            "ops",
            own_rate("prober_runs_late", "late"),
            own_rate("prober_runs_missed", "missed"),
        ),
        graph(
            "Runs in progress",
            "Stuck runs ignore that their timeout is over.",
            "short",
            own("prober_running", "running"),
            own("prober_runs_stuck", "stuck"),
        ),
        graph(
            "Lag of the loop",
            "How late the prober woke up last. It adds to the latencies.",
            "s",
            own("prober_loop_lag_seconds"),
        ),
        graph(
            "Clock behind",
            "How far a clock that was set back is behind the newest timestamp.",
            "s",
            own("clock_behind_seconds"),
        ),
        graph(
            "Passes and missed ticks",
            "Per second. A tick is missed while the pass before is still in progress.",
            "ops",
            own_rate("passes", "passes"),
            own_rate("ticks_missed", "missed ticks"),
        ),
        graph(
            "Exports",
            "Of single targets, per second.",
            "ops",
            own_rate("exports_sent", "exports"),
        ),
    )


def programs() -> dashboard.Dashboard:
    instances = f'{LAST_EXPORT}{{job=~"$job"}}'
    new = (
        new_dashboard("programs", "Probers and keepers", "How the programs do that probe.")
        .with_variable(variable("job", LAST_EXPORT).label("Job"))
        .with_variable(variable("instance", instances).label("Instance"))
    )
    for panel_id, panel in enumerate(panels(), 1):
        new = new.with_panel(panel.id(panel_id))
    return new
