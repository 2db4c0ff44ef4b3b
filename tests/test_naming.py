"""Metric families: what metrics are called in the systems that we export to."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts, values

from trio_statskeeper import (
    Distribution,
    EventMetrics,
    ExponentialDistribution,
    Gauge,
    Map,
)
from trio_statskeeper._naming import Families, label_name, valid_text

HISTOGRAM = Distribution.of([3], [1, 2])


def export(metrics, labels=None, unit=1.0, interval=10.0):
    labels = {"dst": "a"} if labels is None else labels
    return EventMetrics(0, 0, labels, metrics, unit, interval)


def resolve(metrics, families=None, now=0.0, **options):
    """Return what each metric is called."""
    families = Families("probe_") if families is None else families
    resolved = families.resolve(export(metrics, **options), now).metrics
    return {family.key[0]: family for family, _ in resolved}


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("success", 1, ("counter", "success", "success", None)),
        ("success", 1.5, ("counter", "success", "success", None)),
        ("x_total", 1, ("counter", "x", "x_total", None)),
        ("resp-code", Map("c", {}), ("counter", "resp_code", "resp_code", "c")),
        ("m", Map("код", {}), ("counter", "m", "m", "key")),
        ("m", Map("a-b", {}), ("counter", "m", "m", "a_b")),
        ("size", Gauge(1), ("gauge", "size", "size", None)),
        ("x_total", Gauge(1), ("gauge", "x_total", "x_total", None)),
        ("size", HISTOGRAM, ("histogram", "size", "size", "le")),
        ("tls-v", "1", ("info", "tls_v", "tls_v_info", "tls_v")),
        ("latency", 1, ("counter", "latency_seconds", "latency", None)),
        ("x-latency", Gauge(1), ("gauge", "x_latency_seconds", "x_latency", None)),
        ("latency", HISTOGRAM, ("histogram", "latency_seconds", "latency", "le")),
        ("latency", Map("c", {}), ("counter", "latency_seconds", "latency", "c")),
        ("latency", "low", ("info", "latency", "latency_info", "latency")),
        ("xlatency", 1, ("counter", "xlatency", "xlatency", None)),
        ("é:1", 1, ("counter", "1", "1", None)),
        ("-resp--code_", 1, ("counter", "resp_code", "resp_code", None)),
        ("total-a-total-b", 1, ("counter", "a_b", "a_b", None)),
        ("total-x", Gauge(1), ("gauge", "total_x", "total_x", None)),
        (
            "seconds-latency",
            Gauge(1),
            ("gauge", "seconds_latency", "seconds_latency", None),
        ),
    ],
)
def test_each_metric_is_named_after_its_kind(metric, value, expected):
    family = resolve({metric: value})[metric]
    kind, name, otlp_name, label = expected
    assert (family.kind, family.label) == (kind, label)
    assert (family.name, family.otlp_name) == (f"probe_{name}", f"probe_{otlp_name}")


def test_distributions_of_either_kind_are_one_family():
    families = Families("probe_")
    explicit = resolve({"latency": HISTOGRAM}, families)
    exponential = resolve({"latency": ExponentialDistribution.of([3])}, families)
    assert explicit == exponential


def test_the_metric_total_is_not_called_total_total():
    family = resolve({"total": 1})["total"]
    assert (family.name, family.otlp_name) == ("probe", "probe_total")
    assert "probe_total" in family.names


@pytest.mark.parametrize(
    ("metric", "value", "help_text"),
    [
        ("success", 1, "Sum of success over all probe runs."),
        ("latency", 1, "Sum of latency over all probe runs, in seconds."),
        ("latency", HISTOGRAM, "Distribution of latency over all probe runs, in seconds."),
        ("size", Gauge(1), "Newest size."),
        ("version", "1", "Newest version."),
        ("x\ud83d", "1", r"Newest x\ud83d."),
    ],
)
def test_each_family_has_a_help_text(metric, value, help_text):
    assert resolve({metric: value})[metric].help == help_text


def test_a_help_text_can_be_given():
    families = Families("probe_", {"success": "What went well"})
    assert resolve({"success": 1}, families)["success"].help == "What went well."


def test_only_latency_metrics_are_converted_to_seconds():
    metrics = {
        "latency": Distribution.of([3, 4], [1, 3]),
        "a-latency": 3,
        "b_latency": Map("c", {"x": 3}),
        "c-latency": Gauge(3),
        "d-latency": "3",
        "total": 3,
        "size": Distribution.of([3], [1, 3]),
    }
    resolved = Families("probe_").resolve(export(metrics, unit=0.1), 0)
    assert [value for _, value in resolved.metrics] == [
        Distribution([0.1, 0.3], [0, 1, 1], 0.7),
        0.3,
        Map("c", {"x": 0.3}),
        Gauge(0.3),
        "3",
        3,
        Distribution.of([3], [1, 3]),
    ]


def test_values_in_seconds_are_not_converted():
    metrics = {"latency": HISTOGRAM, "a-latency": 3}
    resolved = Families("probe_").resolve(export(metrics), 0)
    assert [value for _, value in resolved.metrics] == [HISTOGRAM, 3]
    assert resolved.metrics[0][1] is HISTOGRAM


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (1e300, 1e300),
        (Gauge(1e300), 1e300),
        (Map("c", {"x": 1e300}), 1e300),
        (Distribution([1], [0, 1], 1e300), 1e300),
        (ExponentialDistribution(0, zero_count=1, sum=1e300), 1e300),
        (Distribution([1, 1e300], [0, 1, 0], 1), 1e300),
        (Distribution([1e-200, 2e-200], [0, 1, 0], 1), 1e-200),
    ],
)
def test_values_too_large_for_floats_in_seconds_are_skipped_and_logged(value, unit, caplog):
    metrics = {"latency": value, "total": 1}
    assert resolve(metrics, unit=unit).keys() == {"total"}
    (message,) = caplog.messages
    assert message.startswith("not exported: 'latency', a ")
    assert message.endswith(("in seconds, it is too large for a float", "after 0.0"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a-b": 1}, {"a_b": 1}),
        ({"x": 1}, {"x_total": 1}),
        ({"x": 1}, {"x": Gauge(1)}),
        ({"x": Gauge(1)}, {"x": 1}),
        ({"x": 1}, {"x": Map("c", {})}),
        ({"x": Map("c", {})}, {"x": Map("d", {})}),
        ({"x": "text"}, {"x": Gauge(1)}),
        ({"x": "text"}, {"x_info": Gauge(1)}),
        ({"latency": HISTOGRAM}, {"latency": 1}),
        ({"latency": HISTOGRAM}, {"latency_seconds": 1}),
        ({"x": HISTOGRAM}, {"x_sum": Gauge(1)}),
        ({"x": HISTOGRAM}, {"x_count": Gauge(1)}),
        ({"x": HISTOGRAM}, {"x_bucket": Gauge(1)}),
        ({"x": HISTOGRAM}, {"x_created": Gauge(1)}),
        ({"x_count": Gauge(1)}, {"x": HISTOGRAM}),
    ],
)
def test_of_two_metrics_that_would_share_a_name_the_first_has_it(first, second, caplog):
    families = Families("probe_")
    (metric,) = second
    for _ in range(2):
        assert resolve(first, families)
        assert not resolve(second, families)
        assert resolve({**second, "good": 1}, families).keys() == {"good"}
    # Once, not at each export.
    (message,) = caplog.messages
    assert message.startswith(f"not exported: {metric!r}, a")
    assert "its name probe_" in message
    assert message.endswith(
        f" belongs to {next(iter(first))!r}, a {resolve(first)[next(iter(first))].kind}"
    )


def test_integers_and_floats_are_of_one_kind():
    families = Families("probe_")
    assert resolve({"x": 1}, families)["x"] is resolve({"x": 1.5}, families)["x"]


def test_a_name_is_free_again_when_its_last_series_is_stale():
    families = Families("probe_")
    resolve({"x": 1}, families, now=0, labels={"dst": "a"}, interval=10)
    resolve({"x": 1}, families, now=5, labels={"dst": "b"}, interval=10)
    assert not resolve({"x": Gauge(1)}, families, now=34.9)
    assert resolve({"x": Gauge(1)}, families, now=35)["x"].kind == "gauge"
    assert not resolve({"x": 1}, families, now=35)


def test_a_shorter_interval_does_not_free_a_name_that_a_longer_one_keeps():
    families = Families("probe_")
    resolve({"x": 1}, families, interval=100)
    resolve({"x": 1}, families, interval=1)
    assert not resolve({"x": Gauge(1)}, families, now=299)


def test_unused_families_are_forgotten():
    families = Families("probe_")
    for number in range(10_000):
        resolve({f"x{number}": 1}, families, now=number, interval=1)
    assert len(families._families) <= 1_010
    assert len(families._holders) == 3 * len(families._families)


def test_families_in_use_are_kept_however_many():
    families = Families("probe_")
    metrics = {f"x{number}": 1 for number in range(3_000)}
    first = resolve(metrics, families)
    assert resolve(metrics, families) == first


@pytest.mark.parametrize(
    ("metric", "value"),
    [("m", Map("dst", {})), ("m", Map("d-st", {})), ("zone", "x"), ("le", HISTOGRAM)],
)
def test_a_metric_whose_label_the_target_has_is_skipped(metric, value, caplog):
    labels = {"dst": "a", "d_st": "b", "zone": "c", "le": "d"}
    assert resolve({metric: value, "total": 1}, labels=labels).keys() == {"total"}
    (message,) = caplog.messages
    assert message.startswith(f"not exported: {metric!r}, a")
    assert "the target has the same label" in message


def test_a_target_with_two_labels_of_one_name_is_skipped(caplog):
    labels = {"a-b": "1", "a_b": "2"}
    assert not resolve({"total": 1}, labels=labels)
    assert caplog.messages == [
        "not exported: two labels would have one name: ['a-b', 'a_b']"
    ]


@pytest.mark.parametrize("value", [1, Gauge(1), HISTOGRAM, "x", Map("c", {})])
@pytest.mark.parametrize("metric", ["", "ошибки", "_-_"])
def test_a_metric_without_letters_or_digits_in_its_name_is_skipped(metric, value, caplog):
    assert resolve({metric: value, "total": 1}).keys() == {"total"}
    (message,) = caplog.messages
    assert message.startswith(f"not exported: {metric!r}, a ")
    assert message.endswith(": its name has no ASCII letter or digit")


def test_the_number_of_logged_problems_is_limited(caplog):
    families = Families("probe_")
    for _ in range(2):
        for number in range(1_002):
            resolve({f"x{number}": Map("dst", {})}, families)
    assert len(caplog.messages) == 1_001
    assert caplog.messages[-1] == "not exported: further problems are not logged"


def test_of_two_names_that_differ_only_by_a_unit_the_first_is_exported(caplog):
    # In OpenTelemetry, the unit is no part of the name.
    assert resolve({"a-latency": 1, "a.latency": 1}).keys() == {"a-latency"}
    assert "its name probe_a_latency belongs to 'a-latency'" in caplog.messages[0]


def test_a_map_whose_keys_become_equal_is_skipped(caplog):
    metrics = {"m": Map("c", {"\ud83d": 1, "\\ud83d": 2}), "n": Map("c", {"\ud83d": 1})}
    resolved = Families("probe_").resolve(export(metrics), 0)
    assert [value for _, value in resolved.metrics] == [Map("c", {"\\ud83d": 1})]
    assert caplog.messages == ["not exported: 'm', a counter: two keys become equal"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("zone", "zone"),
        ("_zone9", "zone9"),
        ("9zone", "key_9zone"),
        ("a-b.c:d é", "a_b_c_d"),
        ("", "key"),
        ("__name__", "name"),
        ("зона", "key"),
        ("\u0663", "key"),
    ],
)
def test_label_names_are_allowed_by_prometheus_and_unchanged_by_receivers_of_otlp(
    name, allowed
):
    assert label_name(name) == allowed


@pytest.mark.parametrize("text", ["", "plain", 'é"\n\\', "\0", "\U0001f600"])
def test_valid_text_is_not_changed(text):
    assert valid_text(text) == text


def test_lone_surrogates_are_escaped():
    assert valid_text("é\ud83d") == r"é\ud83d"


def test_labels_are_sanitized():
    labels = {"dst": "\ud83d", "9-x": "y"}
    resolved = Families("probe_").resolve(export({}, labels=labels), 0)
    assert resolved.labels == {"dst": r"\ud83d", "key_9_x": "y"}


def test_a_series_is_stale_after_three_intervals():
    assert Families("probe_").resolve(export({}, interval=10), 5).stale_at == 35


def received_name(family):
    """Return what a receiver of OTLP that follows Prometheus' naming makes of a name."""
    words = [word for word in re.split("[^a-zA-Z0-9]", family.otlp_name) if word]
    if family.in_seconds and "seconds" not in words:
        words.append("seconds")
    if family.kind == "counter":
        if "total" in words:
            words.remove("total")
        words.append("total")
    return "_".join(words)


def scraped_name(family):
    return family.name + {"counter": "_total", "info": "_info"}.get(family.kind, "")


# Names of words that receivers of OTLP treat in a way of their own.
names = st.lists(
    st.sampled_from(["total", "seconds", "latency", "info", "x", "9", "é", ""]), max_size=4
).flatmap(lambda words: st.sampled_from("-_.").map(lambda by: by.join(words)))


@given(
    st.lists(st.dictionaries(names | texts, values(), max_size=5), max_size=5),
    st.floats(1e-9, 1e9),
)
def test_any_metric_has_one_unique_name_in_prometheus_and_by_otlp(exports, unit):
    families = Families("probe_")
    found = set()
    for metrics in exports:
        for family, _ in families.resolve(export(metrics, unit=unit), 0).metrics:
            found.add(family)
    names = [name for family in found for name in family.names]
    assert len(set(names)) == len(names)
    for family in found:
        assert scraped_name(family) in family.names
        assert received_name(family) == scraped_name(family)
