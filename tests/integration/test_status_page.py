"""The status page in a real browser."""

from __future__ import annotations

import math
import os
from contextlib import asynccontextmanager

import pytest
import real_servers
import trio
from selenium import webdriver
from selenium.webdriver.common.by import By

from trio_statskeeper import EventMetrics, ExponentialDistribution, Map
from trio_statskeeper.status import StatusPage, _page

SIZES = [(1280, 900), (800, 1000), (360, 740)]
SCHEMES = ["light", "dark"]

HOSTILE = [
    "<script>document.title='hacked'</script>",
    "\"'><img src=x onerror=document.title='hacked'>",
    "</style></svg></title><b>bold",
    "\u202egnp.exe \u2066isolated",
    "שלום עולם: مرحبا",
    "control\x00\x07\x1b[2J\r\n\x85characters",
    "lone \ud800 surrogate",
    "&lt;already&gt; &amp;escaped;",
    "a" * 10_000,
    "\u0301" * 10_000,
]


@pytest.fixture(scope="module")
def browser():
    chromium = real_servers.find_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium.browser)
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # root can't have one
    options.add_argument("--disable-dev-shm-usage")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    env = {**os.environ, **chromium.env}
    service = webdriver.ChromeService(str(chromium.driver), env=env)
    with webdriver.Chrome(options, service) as browser:
        yield browser


@pytest.fixture(scope="module")
def axe():
    return real_servers.find_axe()


def look(browser, size, scheme):
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", metrics | {"mobile": width < 600}
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def an_hour(names):
    """Yield the exports of an hour, in which two of the targets fail at times."""
    latencies = dict.fromkeys(names, ExponentialDistribution(0))
    failures = dict.fromkeys(names, 0)
    for number in range(1, 361):
        for index, name in enumerate(names):
            if index == 1 and number > 350:
                failures[name] += 5
            elif index == 2 and number % 60 > 56:
                failures[name] += 2
            base = 0.01 * (2 + math.sin(number / 20 + index))
            samples = [base, base * 1.3, base * 2]
            latencies[name] = latencies[name].merge(ExponentialDistribution.of(samples))
            metrics = {
                "total": 5 * number,
                "success": 5 * number - failures[name],
                "error": Map("error", {"ConnectionRefusedError": failures[name]}),
                "latency": latencies[name],
            }
            yield export(10 * number, name, metrics, f"probe-{index % 2}", index >= 4)


def export(seconds, name, metrics, probe="homepage", ends_pass=True):
    labels = {"ptype": "http", "probe": probe, "dst": name, "rack": "r1"}
    start = 1.7e9
    return EventMetrics(start + seconds, start, labels, metrics, ends_pass=ends_pass)


@asynccontextmanager
async def serving(*exports):
    """Serve a page of exports; yield its address, and a channel for further ones."""
    page = StatusPage(0)
    async with trio.open_nursery() as nursery:
        # Without a buffer, lest newer exports take the places of older ones.
        send, receive = trio.open_memory_channel[EventMetrics](0)
        host, port = await nursery.start(page.run, receive)
        for each in exports:
            await send.send(each)
        yield f"http://{host}:{port}/status", send
        nursery.cancel_scope.cancel()


NAMES = [f"service-{number}.example.com:443" for number in range(6)]

QUERIES = {
    "all": "",
    "filtered": "?filter=probe-1&refresh=off",
    "nothing": "?filter=nothing",
    "one": f"?target={NAMES[1]}",
    "unknown": "?target=unknown",
}

OVERFLOWS = "return document.documentElement.scrollWidth > window.innerWidth"

AXE = """
const done = arguments[arguments.length - 1];
axe.run().then(results => done(results.violations.map(
    each => [each.id, each.nodes.map(node => node.html.slice(0, 200))])));
"""


async def test_the_pages_are_usable_by_all_at_each_size_in_light_and_dark(
    browser, axe, tmp_path
):
    def check(address):
        problems = {}
        for scheme in SCHEMES:
            for size in SIZES:
                look(browser, size, scheme)
                for name, query in QUERIES.items():
                    browser.get(address + query)
                    case = f"{name}-{size[0]}-{scheme}"
                    assert browser.save_screenshot(tmp_path / f"{case}.png")
                    if browser.execute_script(OVERFLOWS):
                        problems[f"{case} overflows"] = True
                    # Layouts matter at each size, but colours only in each scheme.
                    if scheme == "light" or size == SIZES[0]:
                        browser.execute_script(axe)
                        if found := browser.execute_async_script(AXE):
                            problems[case] = found
        return problems

    async with serving(*an_hour(NAMES), export(3600, "", {})) as (address, _):
        assert await trio.to_thread.run_sync(check, address) == {}


async def test_whatever_labels_have_is_shown_as_text(browser):
    def check(address):
        look(browser, SIZES[-1], "light")
        browser.get_log("browser")
        browser.get(address)
        assert not browser.execute_script(OVERFLOWS)
        names = browser.find_elements(By.CSS_SELECTOR, "tbody th a")
        links = {name.text: name.get_attribute("href") for name in names}
        assert links.keys() >= {HOSTILE[0], "\\u202egnp.exe \\u2066isolated", HOSTILE[4]}
        for link in links.values():
            browser.get(link)
            assert browser.title.startswith("down: ")
            assert browser.execute_script("return document.scripts.length") == 0
            assert not browser.execute_script(OVERFLOWS)
        assert browser.get_log("browser") == []
        browser.get(links["a" * 40 + "…" + "a" * 39])
        shown = browser.find_elements(By.CSS_SELECTOR, "section td bdi")
        assert "a" * 10_000 in [each.text for each in shown]

    exports = [
        export(10, text, {"total": 1, "error": Map("error", {text: 1})}) for text in HOSTILE
    ]
    async with serving(*exports) as (address, _):
        await trio.to_thread.run_sync(check, address)


async def test_a_page_that_is_left_open_shows_each_pass_where_its_reader_is(
    browser, monkeypatch
):
    def begin(address):
        look(browser, SIZES[0], "light")
        browser.get(address)
        browser.execute_script("window.scrollTo(0, 300)")
        return state()

    def state():
        return browser.execute_script("""return {
            scrolled: window.scrollY,
            addresses: history.length,
            rows: document.querySelectorAll('tbody tr').length,
            up: document.querySelectorAll('tbody .badge.up').length,
            time: document.querySelector('time').textContent,
        }""")

    loads = 0
    answer = StatusPage.answer

    async def count(*args):
        nonlocal loads
        loads += 1
        return await answer(*args)

    monkeypatch.setattr(StatusPage, "answer", count)
    refresh = 3
    monkeypatch.setattr(_page, "_refresh", lambda _: refresh)
    async with serving() as (address, send):
        for number in range(1, 12):
            for index in range(40):
                counts = {"total": number, "success": number}
                name = f"target-{index}"
                await send.send(export(10 * number, name, counts, ends_pass=index == 39))
            if number == 1:
                before = await trio.to_thread.run_sync(begin, address)
                refresh = 0
            goal = loads + 10
            while loads < goal:
                await trio.sleep(0.01)
        refresh = 3600
        await trio.sleep(0.5)
        after = await trio.to_thread.run_sync(state)
    assert loads > 100
    shown = {"scrolled": 300, "rows": 40, "up": 40}
    assert before == before | shown
    assert after == before | {"time": "2023-11-14 22:15:10 UTC"}
