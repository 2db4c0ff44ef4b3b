"""What the tests of the status page share: exports, and answers without HTTP."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from urllib.parse import urlencode

import attrs
from helpers import channel_of

from trio_statskeeper import EventMetrics, ExponentialDistribution, Map
from trio_statskeeper._http._connection import Request
from trio_statskeeper._pacing import Step
from trio_statskeeper.status._page import resources_of

LABELS = {"ptype": "http", "probe": "homepage", "dst": "a"}

# Elements that have no end.
VOID = {"meta", "input", "path", "circle", "use", "link"}


def export(at, dst="a", *, labels=None, error=None, **rest):
    """Return an export that ends its pass; the rest are its attributes, or its metrics."""
    labels = LABELS | {"dst": dst} | (labels or {})
    others = {"start_timestamp": 0, "export_interval": 10, "latency_unit": 1}
    others = {name: rest.pop(name, default) for name, default in others.items()}
    ends_pass = rest.pop("ends_pass", True)
    metrics = {name: value for name, value in rest.items() if value is not None}
    if error is not None:
        metrics["error"] = Map("error", error)
    others |= {"labels": labels, "metrics": metrics, "ends_pass": ends_pass}
    return EventMetrics(float(at), **others)


def latency(*samples):
    return ExponentialDistribution.of(samples)


async def feed(page, *exports):
    """Have the page receive exports one after the other."""
    for each in exports:
        await page.run(channel_of(each))


async def ask(page, path="/status", query="", **parameters):
    """Return the status, the headers and the text of an answer."""
    answer = await begin(page, path, query or urlencode(parameters))
    text = b"".join(part for parts in answer.blocks for part in parts).decode()
    return answer.status, dict(answer.headers), text


async def begin(page, path="/status", query=""):
    """Return an answer whose blocks are not made yet."""
    return await resources_of(page)[path](Step(), Request("GET", path, query, ()))


async def as_json(page, **parameters):
    _, _, text = await ask(page, "/status.json", **parameters)
    return json.loads(text)


async def target(page, dst="a", **parameters):
    """Return what the JSON of all targets has of one."""
    status = await as_json(page, **parameters)
    [found] = [each for each in status["targets"] if each["target"] == dst]
    return found


async def history(page, dst="a", last=5):
    """Return the newest of the intervals: outcome, success, p50 and p99."""
    found = (await as_json(page, target=dst))["history"]
    names = "outcome", "success_ratio", "p50_seconds", "p99_seconds"
    return [*zip(*(found[name][-last:] for name in names), strict=True)]


@attrs.define
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    """Its text, and that of all elements within."""


class Document(HTMLParser):
    """A page; its elements must be closed in the right order."""

    def __init__(self, text):
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag
        if tag in {"th", "td"}:
            self.handle_data(" ")

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def all(self, tag, **attributes):
        return [
            element
            for element in self.elements
            if element.tag == tag
            and all(element.attributes.get(name) == attributes[name] for name in attributes)
        ]

    def texts(self, tag, **attributes):
        return [" ".join(element.text.split()) for element in self.all(tag, **attributes)]


async def document(page, **parameters):
    _, _, text = await ask(page, **parameters)
    return Document(text)


async def names(page, **parameters):
    """Return the names of the targets, in the order of the page."""
    found = (await document(page, **parameters)).all("a")
    return [
        element.text for element in found if "target=" in (element.attributes["href"] or "")
    ]
