"""The status page: what it looks like, as HTML and as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from status_pages import (
    Document,
    as_json,
    ask,
    begin,
    document,
    export,
    feed,
    latency,
    names,
    target,
)

from trio_statskeeper.status import StatusPage, _selection
from trio_statskeeper.status._markup import (
    duration,
    escaped,
    seconds,
    share,
    shortened,
    utc,
)
from trio_statskeeper.status._plots import area, columns, line, strip

UP = {"total": 4, "success": 4}
DEGRADED = {"total": 4, "success": 2, "error": {"timeout": 2}}
DOWN = {"total": 4, "success": 0, "error": {"ConnectionRefusedError": 3, "timeout": 1}}

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "]]>--></style><b>",
    "&lt;&#60;",
    "\u202egnp.exe",
    "שלום עולם",
    "a\x00b\x1b[31m\x7f\n",
    "\ud800",
    "\ufffe\U0010ffff",
    "x" * 10_000,
    "\u202e" * 10_000,
    "<" * 10_000,
    "",
]


async def page_of(*exports):
    page = StatusPage()
    await feed(page, *exports)
    return page


async def test_the_worst_targets_come_first_by_probe(autojump_clock):
    page = await page_of(
        export(10, "a", **UP, labels={"probe": "calm"}),
        export(10, "b", **UP),
        export(10, "c", **DEGRADED),
        export(10, "e", **DOWN),
        export(10, "d", **DOWN),
        export(10, "f"),
        export(10, "g", inconclusive=1),
    )
    assert await names(page) == ["d", "e", "c", "g", "b", "f", "a"]
    found = await document(page)
    assert found.texts("h2") == ["homepage http", "calm http"]
    assert [text.split()[0] for text in found.texts("td", **{"class": "state"})] == [
        *["Down", "Down", "Degraded", "Inconclusive", "Up", "No", "Up"]
    ]
    assert found.texts("title") == ["2 down, 1 degraded – status"]


async def test_of_targets_in_one_state_those_that_failed_most_come_first(autojump_clock):
    page = await page_of(export(10, "a", **UP), export(10, "b", **DEGRADED))
    recovered = {"total": 8, "success": 6}
    await feed(page, export(20, "a", total=8, success=8), export(20, "b", **recovered))
    assert await names(page) == ["b", "a"]


async def test_a_row_has_what_happened_last(autojump_clock):
    page = await page_of(
        export(10, "a", **UP, error={"old": 9}, latency=latency(0.25)),
        export(20, "a", total=8, success=5, error={"old": 9, "reset": 2, "timeout": 1}),
    )
    await trio.sleep(4)
    [row] = (await document(page)).texts("tr")[1:]
    assert row == "Degraded a reset ×2, timeout ×1 25 % – – 4 s"


async def test_more_errors_than_fit_are_counted(autojump_clock):
    page = await page_of(export(10, total=9, success=0, error={"x": 4, "y": 3, "z": 2}))
    [row] = (await document(page)).texts("tr")[1:]
    assert "x ×4, y ×3, 1 more" in row


async def test_all_words_of_a_filter_must_be_found(autojump_clock):
    page = await page_of(
        export(10, "web-1", **UP, labels={"rack": "r1"}),
        export(10, "web-2", **DOWN, labels={"rack": "r2"}),
        export(10, "db-1", **UP, labels={"rack": "r2"}),
    )
    assert await names(page, filter="WEB") == ["web-2", "web-1"]
    assert await names(page, filter="rack=r2") == ["web-2", "db-1"]
    assert await names(page, filter="r2  web") == ["web-2"]
    assert await names(page, filter="down") == ["web-2"]
    assert await names(page, filter="connectionrefused") == ["web-2"]
    assert await names(page, filter="nowhere") == []
    assert "No target matches" in (await ask(page, filter="nowhere"))[2]
    assert await names(page, query="") == ["web-2", "db-1", "web-1"]
    json_status = await as_json(page, filter="rack=r2")
    assert [each["target"] for each in json_status["targets"]] == ["web-2", "db-1"]


@pytest.mark.parametrize("text", HOSTILE[:9])
async def test_a_filter_is_shown_as_it_was_typed(autojump_clock, text):
    page = await page_of(export(10, **UP))
    [field] = (await document(page, query=f"filter={quoted(text)}")).all(
        "input", id="filter"
    )
    assert field.attributes["value"] == visible(text)


def quoted(text):
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


def visible(text):
    # Of a query, lone surrogates can't be decoded.
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return re.sub(
        r"[\x00-\x1f\x7f\u202e\ufffe\U0010ffff]",
        lambda match: repr(match[0])[1:-1].replace("\\n", "\\x0a"),
        text,
    )


async def test_a_page_of_nothing_says_what_to_check(autojump_clock):
    _, _, text = await ask(StatusPage())
    assert "No export has arrived" in text


async def test_of_many_targets_the_worst_are_shown(autojump_clock, monkeypatch):
    monkeypatch.setattr(_selection, "_MAX_ROWS", 20)
    monkeypatch.setattr(_selection, "_WORST_ROWS", 10)
    exports = [export(10, f"{n:03}", **(DOWN if n % 90 == 1 else UP)) for n in range(20)]
    page = await page_of(*exports)
    assert len(await names(page)) == 20
    await feed(
        page, *[export(10, f"z{n}", **UP, labels={"probe": "z"}) for n in range(300)]
    )
    assert await names(page) == ["001", "000", *(f"{n:03}" for n in range(2, 10))]
    _, _, text = await ask(page)
    assert "The worst 10 of 320 targets are shown" in text
    assert len((await as_json(page))["targets"]) == 320


async def test_targets_without_room_are_told(autojump_clock, monkeypatch):
    monkeypatch.setattr("trio_statskeeper.status._board._MAX_TARGETS", 1)
    page = await page_of(export(10, "a", **UP), export(10, "b", **UP))
    assert "There is no room for 1 further targets" in (await ask(page))[2]


async def test_a_target_has_a_page_of_its_own(autojump_clock):
    page = await page_of(
        export(10, "a", **UP, latency=latency(0.25), labels={"rack": "r1"}),
        export(
            20, "a", start_timestamp=15, **DOWN, latency=latency(0.5), labels={"rack": "r1"}
        ),
    )
    [link] = [each for each in (await document(page)).all("a") if each.text == "a"]
    status, _, text = await ask(page, query=link.attributes["href"].partition("?")[2])
    found = Document(text)
    assert status == 200
    assert found.texts("h1") == ["a"]
    assert found.texts("title") == ["down: a"]
    assert "down: a" in found.texts("title")
    tables = found.texts("tr")
    assert "ConnectionRefusedError 3 3" in tables
    assert "rack r1" in tables
    labels = [each.attributes["aria-label"] for each in found.all("svg", role="img")]
    assert labels == [
        "Failures in 1 of 2 intervals with runs",
        "Latency: the p99 was up to 500 ms, the p50 up to 500 ms",
    ]
    assert found.all("path", **{"class": "reset"})


@pytest.mark.parametrize(
    "parameters",
    [
        {"target": "web:80"},
        {"target": "web:80", "probe": "homepage"},
        {"target": "web:80", "probe": "homepage", "ptype": "http"},
    ],
)
async def test_a_target_is_found_by_its_name(autojump_clock, parameters):
    page = await page_of(export(10, "web:80", **UP), export(10, "b", **UP))
    assert (await document(page, **parameters)).texts("h1") == ["web:80"]


async def test_a_target_without_latencies_has_no_plot_of_them(autojump_clock):
    page = await page_of(export(10, **UP))
    assert (await document(page, target="a")).texts("h2") == ["Success", "Labels"]


async def test_inconclusive_runs_are_counted_if_there_are_any(autojump_clock):
    page = await page_of(export(10, **UP, inconclusive=3))
    assert "Inconclusive in total" in (await document(page, target="a")).texts("dt")


async def test_a_target_without_a_name_has_a_link_all_the_same(autojump_clock):
    page = await page_of(export(10, " ", **UP))
    assert await names(page) == ["(no name)"]


async def test_a_page_is_made_in_steps_of_a_target(autojump_clock):
    page = await page_of(*[export(10, f"target-{n}", **DOWN) for n in range(100)])
    for path in "/status", "/status.json":
        answer = await begin(page, path)
        steps = [b"".join(blocks) for blocks in answer.blocks]
        assert max(step.count(b"target-") for step in steps) <= 2


async def test_a_name_that_several_targets_have_shows_all_of_them(autojump_clock):
    page = await page_of(
        export(10, "a", **UP, labels={"zone": "x"}),
        export(10, "a", **UP, labels={"zone": "y"}),
        export(10, "b", **UP),
    )
    assert await names(page, target="a") == ["a", "a"]


@pytest.mark.parametrize(
    "parameters",
    [{"target": "b"}, {"target": "a", "probe": "x"}, {"target": "a", "ptype": ""}],
)
async def test_an_unknown_target_is_not_found(autojump_clock, parameters):
    page = await page_of(export(10, "a", **UP))
    status, _, text = await ask(page, **{"ptype": "http"} | parameters)
    if "ptype" not in parameters:
        assert status == 404
        assert Document(text).texts("h1") == ["No such target"]
    status, _, text = await ask(page, "/status.json", target="b")
    assert (status, json.loads(text)) == (404, {"version": 1, "error": "no such target"})


async def test_nothing_but_the_own_style_is_allowed(autojump_clock):
    page = await page_of(export(10, "a", **DOWN, latency=latency(1.0)))
    for parameters in {}, {"target": "a"}, {"target": "b"}:
        _, headers, text = await ask(page, **parameters)
        found = Document(text)
        [style] = found.all("style")
        digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
        assert headers[b"Content-Security-Policy"].decode() == (
            f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        )
        assert headers[b"X-Content-Type-Options"] == b"nosniff"
        assert headers[b"Cache-Control"] == b"no-store"
        assert headers[b"Content-Type"] == b"text/html; charset=utf-8"
        assert not re.search(r"\bstyle=|<script|<img|<iframe|@import|url\(", text)
        ids = {element.attributes.get("id") for element in found.elements}
        for element in found.elements:
            assert not [name for name in element.attributes if name.startswith("on")]
            for name in "href", "action", "src":
                address = element.attributes.get(name, "/status")
                assert address.startswith("/status") or address[1:] in ids
    _, headers, _ = await ask(page, "/status.json")
    assert headers[b"Content-Type"] == b"application/json"
    assert headers[b"X-Content-Type-Options"] == b"nosniff"


async def test_hostile_labels_are_shown_as_text(autojump_clock):
    benign = await page_of(*[export(10, str(n), **DOWN) for n in range(len(HOSTILE))])
    page = await page_of(
        *[
            export(
                10,
                text,
                total=4,
                error={text: 3, "timeout": 1},
                labels={"rack": str(number)},
            )
            for number, text in enumerate(HOSTILE)
        ]
    )
    expected, found = await document(benign), await document(page)
    # Each bdi of them has the same place, and nothing else has come.
    assert [each.tag for each in found.elements] == [each.tag for each in expected.elements]
    shown = {each.text for each in found.all("bdi")}
    assert "<script>alert(1)</script>" in shown
    assert "\\u202egnp.exe" in shown
    assert "שלום עולם" in shown
    assert "a\\x00b\\x1b[31m\\x7f\\x0a" in shown
    assert "\\ud800" in shown
    assert max(len(text) for text in shown) < 80 * 7


async def test_all_of_a_long_label_is_on_the_page_of_its_target(autojump_clock):
    for text in HOSTILE:
        page = await page_of(export(10, text, total=1, error={text: 1}))
        [found] = (await as_json(page))["targets"]
        assert found["target"] == text
        answer = await begin(page, query=f"target={found['id']}")
        pieces = [b"".join(parts) for parts in answer.blocks]
        # Pieces are made in short steps.
        assert max(map(len, pieces)) < 16_000
        assert [escaped(text, 10**6)] * 2 == [
            each
            for each in re.findall("<bdi>(.*?)</bdi>", b"".join(pieces).decode())
            if each == escaped(text, 10**6)
        ][:2]


@given(st.text(st.characters()))
def test_any_text_is_one_text_in_html(text):
    found = Document(f"<bdi>{escaped(text)}</bdi>")
    assert len(found.elements) == 1
    assert found.elements[0].text.isprintable() or "\u200d" in text or "\u200c" in text
    if text.isprintable() and len(text) <= 80:
        assert found.elements[0].text == text


async def test_a_page_is_loaded_again_at_the_rate_of_exports(autojump_clock):
    for interval, refresh in (0.1, b"10"), (10, b"10"), (12.5, b"13"), (3600, b"60"):
        page = await page_of(export(10, **UP, export_interval=interval))
        for parameters in {}, {"target": "a"}:
            _, headers, text = await ask(page, **parameters)
            assert headers[b"Refresh"] == refresh
            assert f"Refreshes every {refresh.decode()} s" in text


async def test_loading_again_can_be_paused(autojump_clock):
    page = await page_of(export(10, **UP))
    for parameters in {"filter": "a&b"}, {"target": "a"}:
        found = await document(page, **parameters)
        [pause] = [each for each in found.all("a") if each.text == "Pause"]
        query = pause.attributes["href"].partition("?")[2]
        _, headers, text = await ask(page, query=query)
        assert b"Refresh" not in headers
        paused = Document(text)
        assert paused.texts("h1") == found.texts("h1")
        [refresh] = [each for each in paused.all("a") if each.text == "Refresh"]
        query = refresh.attributes["href"].partition("?")[2]
        _, headers, text = await ask(page, query=query)
        assert b"Refresh" in headers
        assert Document(text).texts("h1") == found.texts("h1")
    [hidden] = Document((await ask(page, refresh="off"))[2]).all("input", name="refresh")
    assert hidden.attributes["value"] == "off"


async def test_json_has_the_names_that_are_documented(autojump_clock):
    page = await page_of(
        export(10, **DOWN, labels={"rack": "\ud800"}, latency=latency(0.5))
    )
    status = await as_json(page)
    assert status == {
        "version": 1,
        "keepers": [
            {
                "ptype": "http",
                "probe": "homepage",
                "timestamp": 10,
                "export_interval": 10,
                "silent": False,
                "targets": {
                    "down": 1,
                    "degraded": 0,
                    "stale": 0,
                    "inconclusive": 0,
                    "up": 0,
                    "idle": 0,
                },
            }
        ],
        "not_kept": 0,
        "targets": [
            {
                "id": status["targets"][0]["id"],
                "target": "a",
                "probe": "homepage",
                "ptype": "http",
                "labels": {
                    "ptype": "http",
                    "probe": "homepage",
                    "dst": "a",
                    "rack": "\ud800",
                },
                "state": "down",
                "since": 10,
                "timestamp": 10,
                "start_timestamp": 0,
                "interval": {
                    "total": 4,
                    "success": 0,
                    "inconclusive": 0,
                    "outcome": "down",
                    "success_ratio": 0,
                    "p50_seconds": pytest.approx(0.5),
                    "p99_seconds": pytest.approx(0.5),
                },
                "totals": {"total": 4, "success": 0, "inconclusive": 0},
                "errors": [
                    {"kind": "ConnectionRefusedError", "interval": 3, "total": 3},
                    {"kind": "timeout", "interval": 1, "total": 1},
                ],
                "bad_intervals": 1,
            }
        ],
    }
    detail = await as_json(page, target="a")
    assert detail.keys() == {"version", "target", "history"}
    assert detail["target"] == status["targets"][0]
    assert detail["history"].keys() == {
        "until",
        "step_seconds",
        "outcome",
        "success_ratio",
        "p50_seconds",
        "p99_seconds",
    }
    assert detail["history"]["outcome"] == ["missing"] * 359 + ["down"]
    assert detail["history"]["p50_seconds"][0] is None


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (-1.0, "–"),
        (0.0, "0 µs"),
        (0.000_000_2, "0.2 µs"),
        (0.000_12, "120 µs"),
        (0.012_345, "12.3 ms"),
        (0.999_9, "1000 ms"),
        (1.0, "1 s"),
        (59.96, "60 s"),
        (12_345.0, "12300 s"),
        (1e30, "1e+30 s"),
    ],
)
def test_latencies_have_three_digits(number, text):
    assert seconds(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (-1.0, "–"),
        (0.0, "0 %"),
        (1e-9, "0.1 %"),
        (0.5, "50 %"),
        (0.99999, "99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_is_all_or_nothing_only_if_it_is(number, text):
    assert share(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (10**9, "11,574 d")],
)
def test_durations_are_in_the_largest_unit_that_fits(number, text):
    assert duration(number) == text


def test_a_time_beyond_calendars_is_a_number():
    assert "2001-09-09 01:46:40 UTC" in utc(1e9)
    assert utc(1e18) == "1000000000000000000"


def test_long_texts_lose_their_middle():
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert shortened("abcde", 5) == "abcde"


def test_small_plots_move_by_a_column_when_its_intervals_are_over():
    # Columns are of 6 passes each, whose numbers have the same sixth.
    window = range(360)
    for until in range(1000, 1013):
        numbers = [until - 359 + index for index in window]
        parts = [numbers[each] for each in columns(360, until)]
        assert [number for part in parts for number in part] == numbers
        assert all(len({number // 6 for number in part}) == 1 for part in parts)
    assert columns(3, 7) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_plots_have_a_gap_where_there_is_nothing():
    assert line([1.0, 1.0, -1.0, 2.0, 1.0], 3, 12, 2.0) == "M0 6h6M9 1h3V6h3"
    assert area([1.0, -1.0, 2.0], 3, 12, 2.0) == "M0 12V6h3V12zM6 12V1h3V12z"
    assert strip([0, 2, 2, 5, 2], 3, 10) == (
        '<path class="up" d="M3 6h6V10h-6zM12 6h3V10h-3z"/>'
        '<path class="down" d="M9 0h3V10h-3z"/>'
    )


async def test_a_stale_target_says_since_when(autojump_clock):
    page = await page_of(export(10, "a", **UP))
    await trio.sleep(60)
    found = await target(page)
    assert (found["state"], found["since"]) == ("stale", 10)
    text = (await ask(page))[2]
    assert "No export for 60 s" in text
