"""When the alerts of rules/ fire, and when they must not.

Values are in promtool's notation, one a minute: `0+12x3` is 0 12 24 36, `_x3` is three
scrapes without a sample, and `stale` ends a series:

    https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/
"""

from __future__ import annotations

from typing import NamedTuple

Series = dict[str, str]
"""Values by name and labels."""

DAYS = 86_400  # seconds


class Case(NamedTuple):
    name: str
    alert: str
    at: str
    series: Series
    summary: str | None = None
    """Of the alert that fires; None: none does."""


def own(metric: str, values: str, instance: str = "p1", **labels: str) -> Series:
    """Return a series of a program, with the labels of its only keeper."""
    program = {"job": "probes", "instance": instance}
    labels = program | {"ptype": "http", "probe": "web"} | labels
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return {f"{metric}{{{pairs}}}": values}


def target(total: str, success: str, inconclusive: str = "0x9999", **labels: str) -> Series:
    labels = {"dst": "a:443"} | labels
    return {
        **own("probe_total", total, **labels),
        **own("probe_success_total", success, **labels),
        **own("probe_inconclusive_total", inconclusive, **labels),
    }


def up(values: str, job: str = "probes") -> Series:
    return {f'up{{job="{job}",instance="p1"}}': values}


def exported(values: str, **labels: str) -> Series:
    return own("statskeeper_last_export_timestamp_seconds", values, **labels)


def ticks(missed: str) -> Series:
    passes = own("statskeeper_passes_total", "0+6x60")
    return {**passes, **own("statskeeper_ticks_missed_total", missed)}


def runs(missed: str) -> Series:
    sent = own("statskeeper_prober_results_sent_total", "0+1200x60")
    return {**sent, **own("statskeeper_prober_runs_missed_total", missed)}


def rejected(values: str) -> Series:
    return own("statskeeper_results_rejected_total", values, reason="kind")


DOWN = "ProbeTargetDown"
FAST, SLOW = "ProbeErrorBudgetBurnsFast", "ProbeErrorBudgetBurnsSlowly"
FAST_SUMMARY = "a:443 fails too often: its error budget will soon be used up"
SLOW_SUMMARY = "a:443 fails now and then: its error budget will be used up"
UNKNOWN = "ProbeTargetUnknown"
UNKNOWN_SUMMARY = "it is unknown whether a:443 is up"
GONE = "ProberGone"

CASES = (
    Case("every run fails", DOWN, "10m", target("0+12x20", "7x20"), "a:443 is down"),
    Case("a target fails from its first run on", DOWN, "33m",
         target("_x29 1+12x20", "_x29 0x20"), "a:443 is down"),
    Case("a program restarts, and the target is still down", DOWN, "20m",
         target("9000+12x16 1+12x20", "7x16 0x20"), "a:443 is down"),
    Case("a target has only just been listed", DOWN, "30m",
         target("_x29 1+12x20", "_x29 0x20")),
    Case("some runs succeed", DOWN, "20m", target("0+12x30", "0+1x30")),
    Case("all runs are inconclusive", DOWN, "20m", target("9x30", "9x30", "0+12x30")),
    Case("it can be reached from another machine", DOWN, "20m",
         target("0+12x30", "7x30") | target("0+12x30", "0+12x30", instance="p2")),
    Case("a program restarts, and the target is up", DOWN, "20m",
         target("9000+12x17 1+12x20", "9000+12x17 1+12x20")),
    Case("a target that was down is delisted", DOWN, "26m",
         target("0+12x19 stale", "7x19 stale")),
    Case("Prometheus comes back after an hour", DOWN, "70m",
         target("0+12x9 _x59 900+12x9", "0+12x9 _x59 900+12x9")),

    # 50 runs a minute.
    Case("2 % fail for an hour", FAST, "460m",
         target("0+50x500", "0+50x399 20000+49x100"), FAST_SUMMARY),
    Case("0.8 % fail for hours", FAST, "7h",
         target("0+500x450", "0+496x450"), FAST_SUMMARY),
    Case("much failed while Prometheus was down, and still does", FAST, "75m",
         target("0+50x9 _x59 3550+50x20", "0+50x9 _x59 500+49x20"), FAST_SUMMARY),
    Case("0.4 % fail", FAST, "7h", target("0+500x450", "0+498x450")),
    Case("failures of an hour ago are over", FAST, "95m",
         target("0+50x110", "0+50x49 2450x9 2500+50x60")),
    Case("failures of ten minutes ago are over", FAST, "420m",
         target("0+50x500", "0+50x399 19990+40x9 20400+50x60")),
    Case("one of 60 runs an hour fails", FAST, "70m",
         target("0+1x90", "0+1x66 66+1x30")),
    Case("a new target fails twice", FAST, "65m",
         target("_x59 1+5x60", "_x59 0+4x1 10+5x60")),
    Case("a target has only just been listed", FAST, "60m",
         target("_x59 1+5x60", "_x59 0x60")),

    # At a scrape every five minutes.
    Case("0.15 % fail for three days", SLOW, "73h",
         target("0+2000x900", "0+1997x900"), SLOW_SUMMARY),
    Case("0.3 % fail for some hours only", SLOW, "73h",
         target("0+2000x900", "0+2000x799 1600000+1994x100")),
    Case("it is over", SLOW, "73h",
         target("0+2000x900", "0+1990x799 1592000+2000x100")),
    Case("a target fails while it starts", SLOW, "13h",
         target("_x100 1+60x900", "_x100 0x1 60+60x900")),
    Case("one of 864 runs fails", SLOW, "73h",
         target("0+1x900", "0+1x829 829+1x70")),

    Case("all runs are inconclusive", UNKNOWN, "20m",
         target("9x30", "9x30", "0+12x30"), UNKNOWN_SUMMARY),
    Case("the totals stand still", UNKNOWN, "20m", target("9x30", "9x30"), UNKNOWN_SUMMARY),
    Case("a target is down", UNKNOWN, "20m", target("0+12x30", "9x30")),
    Case("a target moves to another machine", UNKNOWN, "30m",
         target("0+12x14 180x20", "0+12x14 180x20")
         | target("_x14 0+12x20", "_x14 0+12x20", instance="p2")),
    Case("a target is delisted", UNKNOWN, "25m",
         target("0+12x14 180x1 stale", "0+12x14 180x1 stale")),

    Case("9 days are left", "ProbeCertificateNotRenewed", "90m",
         own("probe_cert_expiry", f"{9 * DAYS}-60x120", dst="a:443"),
         "the certificate of a:443 has not been renewed"),
    Case("20 days are left", "ProbeCertificateNotRenewed", "90m",
         own("probe_cert_expiry", f"{20 * DAYS}-60x120", dst="a:443")),
    Case("it is renewed soon", "ProbeCertificateNotRenewed", "20m",
         own("probe_cert_expiry", f"{9 * DAYS}x30 {90 * DAYS}x90", dst="a:443")),
    Case("it has expired", "ProbeCertificateExpires", "10m",
         own("probe_cert_expiry", "-60-60x20", dst="a:443"),
         "the certificate of a:443 expires within two days"),
    Case("9 days are left", "ProbeCertificateExpires", "10m",
         own("probe_cert_expiry", f"{9 * DAYS}-60x20", dst="a:443")),

    Case("a program ends", "ProberDown", "20m",
         up("1x9 0x20") | exported("600+60x9 stale"), "the prober p1 is down"),
    Case("a program restarts", "ProberDown", "12m",
         up("1x9 0x2 1x20") | exported("600+60x9 stale _x2 780+60x9")),
    Case("a program of another kind ends", "ProberDown", "20m",
         up("1x9 0x20", job="other") | exported("600+60x30")),

    Case("a program is no longer to be scraped", GONE, "25m",
         exported("600+60x9 stale"), "nothing exports the probe http/web any more"),
    Case("another machine takes over", GONE, "25m",
         exported("600+60x9 stale") | exported("_x9 1200+60x20", instance="p2")),
    Case("a program has just ended", GONE, "15m", exported("600+60x9 stale")),
    Case("it was removed two hours ago", GONE, "130m", exported("600+60x9 stale")),
    Case("Prometheus comes back after 50 minutes", GONE, "65m",
         exported("600+60x9 _x49 4200+60x20")),

    Case("nothing exports", "ProbersAbsent", "15m", up("1x20"), "no prober is scraped"),
    Case("one of two programs exports", "ProbersAbsent", "20m",
         exported("600+60x30") | exported("600+60x3 stale", instance="p2")),
    Case("Prometheus has just started", "ProbersAbsent", "3m", exported("_x5 600+60x30")),

    Case("the newest export is old", "KeeperStalled", "20m",
         exported("600+60x9 1140x20"), "the keeper http/web no longer exports"),
    Case("exports come once a minute", "KeeperStalled", "20m", exported("600+60x30")),
    Case("a program has just started", "KeeperStalled", "10m",
         exported("_x9 600x1 660+60x9")),
    Case("a program is down", "KeeperStalled", "16m", exported("600+60x9 stale")),

    Case("no run ends", "ProberStalled", "30m",
         own("statskeeper_prober_results_sent_total", "0+12x9 108x30"),
         "the prober http/web no longer probes"),
    Case("a program has just started", "ProberStalled", "10m",
         own("statskeeper_prober_results_sent_total", "_x9 0x1 12+12x9")),
    Case("a run ends every five minutes", "ProberStalled", "39m",
         own("statskeeper_prober_results_sent_total", "0x4 1x4 2x4 3x4 4x4 5x4 6x4 7x4")),

    Case("a fifth is inconclusive", "ProbeRunsInconclusive", "20m",
         target("0+8x30", "0+8x30", "0+2x30"),
         "the prober p1 can't tell whether targets are up"),
    Case("the loop stood still once", "ProbeRunsInconclusive", "17m",
         target("0+8x30", "0+8x30", "0x14 9x30")),

    Case("a run is stuck", "ProbeRunsStuck", "20m",
         own("statskeeper_prober_runs_stuck", "0x2 1x30"),
         "1 run(s) of http/web are stuck"),
    Case("runs are stuck for some minutes", "ProbeRunsStuck", "8m",
         own("statskeeper_prober_runs_stuck", "0x2 1x8 0x30")),

    Case("5 % are missed", "ProbeRunsMissed", "20m", runs("0+60x30"),
         "the prober http/web can't keep up"),
    Case("a machine was suspended for a minute", "ProbeRunsMissed", "14m",
         runs("0x11 1200x30")),

    Case("one result is rejected", "ProbeResultsRejected", "20m", rejected("0x14 1x30"),
         "http/web rejects results: kind"),
    Case("none is", "ProbeResultsRejected", "20m", rejected("0x30")),
    Case("that was an hour ago", "ProbeResultsRejected", "90m", rejected("0x14 1x100")),

    Case("half of the ticks are missed", "KeeperTicksMissed", "20m", ticks("0+6x30"),
         "the keeper http/web exports too rarely"),
    Case("a machine was suspended for a minute", "KeeperTicksMissed", "14m",
         ticks("0x11 6x30")),

    Case("the clock was set back by an hour", "ProberClockBehind", "10m",
         own("statskeeper_clock_behind_seconds", "3600-60x30"),
         "the clock of p1 was set back"),
    Case("NTP corrects it", "ProberClockBehind", "8m",
         own("statskeeper_clock_behind_seconds", "0x4 2x4 0x9")),
)  # fmt: skip

RECORDED = {
    # Labels and value of `target:probe_success:ratio_rate5m`.
    "it adds up what two machines saw": (
        target("0+12x20", "0+12x20") | target("0+12x20", "0+6x20", instance="p2"),
        0.75,
    ),
    "inconclusive runs are in neither": (target("0+4x20", "0+3x20", "0+9x20"), 0.75),
    "a restart is no failure": (target("900+12x7 0+12x20", "900+12x7 0+12x20"), 1),
    "without a run there is none": (target("9x20", "9x20"), None),
}
