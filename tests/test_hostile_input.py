"""Bad input from files, networks and probes is read, rejected or refused as documented."""

from __future__ import annotations

import gc
import json
import math
import sys
import tracemalloc
from contextlib import suppress
from time import thread_time

import httpx2
import pytest
import trio
from helpers import Result, channel_of, make_keeper, one, running, serve
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from prometheus_client.parser import text_string_to_metric_families

from trio_statskeeper import Distribution, Endpoint, EventMetrics, Gauge, Map, parse_value
from trio_statskeeper._naming import Families
from trio_statskeeper.lines import from_json, to_json, write_lines
from trio_statskeeper.otlp._request import Request
from trio_statskeeper.prometheus import PrometheusExporter

READERS = {"line": EventMetrics.parse, "json": from_json}
WRITERS = {"line": str, "json": to_json}
FORMATS = list(READERS)


# The parsers: all that comes out is an export, or a ValueError

SPECIAL = (
    "\0\t\n\r\x1b\x7f\x85\xa0\u200f\u2028\ufeff\ud800\udfff\U0010ffff \"'\\{}[]|:;,=+-.0eIN"
)

VALID = EventMetrics(
    1519084040,
    0,
    {"ptype": "http", "a=b,c": 'd e"\\'},
    {
        "total": 3,
        "time": 1e-7,
        "up to": Gauge(-math.inf),
        "said": 'x" y="z\\x20',
        "resp-code": Map("code: ", {"2,0": 1, "\u2603": 2.5}),
        "latency": Distribution([-0.5, 2], [2, 1, 0], 1.25),
    },
)


def changed(text):
    """Return all texts that differ from `text` in one character, or lack its end."""
    for at in range(len(text) + 1):
        before, after = text[:at], text[at:]
        yield before
        yield before + after[1:]
        for char in SPECIAL:
            yield before + char + after
            yield before + char + after[1:]


@pytest.mark.parametrize("form", FORMATS)
def test_a_line_with_one_changed_character_is_read_or_raises_a_value_error(form):
    read, write = READERS[form], WRITERS[form]
    for text in changed(write(VALID)):
        with suppress(ValueError):
            export = read(text)
            assert read(write(export)) == export


NUMBERS = st.one_of(
    st.from_regex(r"\A[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,9})?\Z"),
    st.builds("{}{}".format, st.sampled_from("+- 0"), st.integers().map(abs)),
    st.integers(300, 320).map(lambda size: "9" * size),
    st.sampled_from(["1_0", "0x1", "inf", "Infinity", "nan", "\u0661", "1e", ".5", "5."]),
    st.sampled_from([f"1e{'9' * 4_000}", f"1e-{'9' * 4_000}", f"0.{'0' * 4_000}1"]),
)


@given(NUMBERS)
def test_a_number_of_any_size_is_read_exactly_or_refused(text):
    with suppress(ValueError):
        number = parse_value(text)
        assert number == (int(text) if isinstance(number, int) else float(text))
        assert isinstance(number, int) or math.isfinite(number)


@pytest.mark.parametrize("digits", [309, 100_000])
@pytest.mark.parametrize(
    "place",
    [
        "{} labels=",
        "5 labels= a=map:code,200:{}",
        "5 labels= a=dist:sum:{}|count:1|lb:-Inf,1|bc:1,0",
        "5 labels= a=dist:sum:1|count:{}|lb:-Inf,1|bc:1,0",
        "5 labels= a=dist:sum:1|count:1|lb:-Inf,{}|bc:1,0",
        "5 labels= a=dist:sum:1|count:1|lb:-Inf,1|bc:{},0",
    ],
)
def test_numbers_beyond_the_largest_float_are_refused_in_lines(place, digits):
    with pytest.raises(ValueError) as caught:
        EventMetrics.parse(place.format("9" * digits))
    assert len(str(caught.value)) < 600


def json_with(metric):
    return to_json(EventMetrics(5, 0, {}, {"x": 0})).replace('{"x":0}', f'{{"x":{metric}}}')


@pytest.mark.parametrize("digits", [309, 100_000])
@pytest.mark.parametrize(
    "metric",
    [
        '{{"gauge":{}}}',
        '{{"map":"code","values":{{"200":{}}}}}',
        '{{"bounds":[1],"bucket_counts":[1,0],"sum":{}}}',
        '{{"bounds":[1],"bucket_counts":[{},0],"sum":1}}',
        '{{"bounds":[{}],"bucket_counts":[1,0],"sum":1}}',
    ],
)
def test_numbers_beyond_the_largest_float_are_refused_in_json(metric, digits):
    with pytest.raises(ValueError) as caught:
        from_json(json_with(metric.format("9" * digits)))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[1,{"b":[', "]}]")]
)
@pytest.mark.parametrize("place", ["labels", "metrics", "timestamp", "further"])
def test_json_of_any_depth_is_refused(place, opening, closing):
    fields = json.loads(to_json(VALID))
    limit = sys.getrecursionlimit()
    for depth in (
        2,
        10,
        *range(limit // 3 - 20, limit // 3),
        *range(limit - 60, limit + 5),
    ):
        text = json.dumps(fields | {place: "HERE"})
        nested = opening * depth + "1" + closing * depth
        with pytest.raises(ValueError):
            from_json(text.replace('"HERE"', nested))


# The parsers: time

LENGTH = 25_000
TIMES_LONGER = 8
ROUNDS = 5


def repeated(text, begin="", end=""):
    """Return a function of a length that returns a text of about that length."""
    return lambda length: begin + text * (length // len(text)) + end


def numbered(text, begin="", end="", separator=""):
    """Return the same for texts that differ by a number."""

    def of_length(length):
        count = length // (len(text.format(100_000)) + len(separator))
        return begin + separator.join(text.format(n) for n in range(count)) + end

    return of_length


def distribution(length):
    count = length // 10
    bounds, counts = ",".join(map(str, range(count))), ",".join("1" * (count + 1))
    return f"5 labels= a=dist:sum:1|count:{count + 1}|lb:-Inf,{bounds}|bc:{counts}"


def json_distribution(length):
    bounds = list(range(length // 10))
    metric = {"bounds": bounds, "bucket_counts": [1, *bounds], "sum": 1}
    return json_with(json.dumps(metric))


METRICS, TEXT = "5 labels= ", '5 labels= a="'
LINES = {
    "no metric": repeated("x"),
    "a label without an equals sign": repeated("x", "5 labels="),
    "equals signs in a label": repeated("=", "5 labels="),
    "equals signs in a metric": repeated("=", METRICS),
    "equals signs in a text": repeated("=", TEXT, '"'),
    "labels": numbered("n{}=v", "5 labels=", separator=","),
    "equal labels": repeated("a=b,", "5 labels="),
    "metrics": numbered(" n{}=1", "5 labels="),
    "equal metrics": repeated(" a=1", "5 labels="),
    "texts": numbered(' n{}="v w"', "5 labels="),
    "texts of quotes": numbered(' n{}=""""', "5 labels="),
    "a text of quotes": repeated('"', TEXT, '"'),
    "a text of quotes without end": repeated('"x', TEXT),
    "a text of quotes before spaces": repeated('" ', TEXT),
    "a text of quotes after spaces": repeated(' "x', TEXT, '"'),
    "a text of spaces": repeated(" ", TEXT, '"'),
    "a text of spaces without end": repeated(" ", TEXT),
    "texts without end": numbered(' n{}="v', "5 labels="),
    "backslashes in a text": repeated("\\", TEXT, '"'),
    "halves of escapes": repeated("\\x2", TEXT, '"'),
    "escapes": repeated("\\x20", TEXT, '"'),
    "backslashes in a name": repeated("\\", METRICS, "=1"),
    "backslashes in a label": repeated("\\", "5 labels=a="),
    "backslashes in a map": repeated("\\", METRICS + "a=map:", ",k:1"),
    "digits": repeated("1", METRICS + "a="),
    "zeros": repeated("0", METRICS + "a="),
    "decimals": repeated("1", METRICS + "a=0."),
    "an exponent": repeated("1", METRICS + "a=1e"),
    "digits of the timestamp": repeated("1", "", " labels="),
    "digits of a count": repeated(
        "1", METRICS + "a=dist:sum:1|count:", "|lb:-Inf,1|bc:1,0"
    ),
    "long numbers": numbered(f" n{{}}={'7' * 4_000}", "5 labels="),
    "a map": numbered("k{}:1", METRICS + "a=map:code,", separator=","),
    "a map of one key": repeated("k:1,", METRICS + "a=map:code,"),
    "a map of colons": repeated(":", METRICS + "a=map:code,"),
    "a map of commas": repeated(",", METRICS + "a=map:code"),
    "a map of long numbers": numbered(
        f"k{{}}:{'7' * 300}", METRICS + "a=map:code,", separator=","
    ),
    "a distribution": distribution,
    "a distribution of commas": repeated(
        ",", METRICS + "a=dist:sum:1|count:1|lb:-Inf,", "|bc:1"
    ),
    "bars": repeated("|", METRICS + "a=dist:sum:1"),
    "counts of counts": repeated("|count:1", METRICS + "a=dist:sum:1"),
}
JSONS = {
    "nothing": repeated(" "),
    "nesting": repeated("["),
    "nesting in an export": lambda length: json_with(repeated('{"a":[')(length)),
    "nested and closed": lambda length: json_with("[" * length + "]" * length),
    "digits": lambda length: json_with("1" * length),
    "decimals": lambda length: json_with("0." + "1" * length),
    "an exponent": lambda length: json_with("1e" + "1" * length),
    "a text": lambda length: json_with(json.dumps("x" * length)),
    "a text of escapes": lambda length: json_with(json.dumps('"\\\n\0' * (length // 8))),
    "a text of surrogates": lambda length: json_with(json.dumps("\ud800" * (length // 6))),
    "a text without end": lambda length: json_with('"' + "\\\\" * length),
    "halves of escapes": lambda length: json_with('"' + "\\u00" * length + '"'),
    "a map": numbered('"k{}":1', '{"a":{"map":"c","values":{', "}}}", ","),
    "a map in an export": lambda length: json_with(
        numbered('"k{}":1', '{"map":"c","values":{', "}}", ",")(length)
    ),
    "a map of one key": lambda length: json_with(
        repeated('"k":1,', '{"map":"c","values":{', '"k":1}}')(length)
    ),
    "a distribution": json_distribution,
    "an array": lambda length: json_with(repeated("1,", "[", "1]")(length)),
    "metrics": numbered('"n{}":1', '{"metrics":{', "}}", ","),
    "unknown fields": numbered('"n{}":1', "{", "}", ","),
}


def seconds(function, text):
    begun = thread_time()
    with suppress(ValueError):
        function(text)
    return thread_time() - begun


@pytest.fixture
def no_collector():
    """Have no time measured that the garbage collector takes, which grows with all else."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("form", FORMATS)
def test_a_line_of_more_than_two_million_characters_is_refused(form):
    read = READERS[form]
    written = WRITERS[form](EventMetrics(1.0, 0.0, {}, {"text": ""}))
    padding = "x" * (2**21 - len(written))
    longest = written.replace('""', f'"{padding}"')
    assert read(longest).metrics == {"text": padding}
    with pytest.raises(ValueError, match="2,097,153 characters: at most 2,097,152"):
        read(longest.replace("xx", "xxx", 1))


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        pytest.param(form, shape, id=f"{form}: {name}")
        for form, shapes in (("line", LINES), ("json", JSONS))
        for name, shape in shapes.items()
    ],
)
@pytest.mark.usefixtures("no_collector")
def test_the_time_to_read_a_line_grows_linearly_with_its_length(form, shape):
    read = READERS[form]
    short, long = shape(LENGTH), shape(LENGTH * TIMES_LONGER)
    took_short = took_long = math.inf
    for _ in range(ROUNDS):
        # What is refused at first sight takes less time than can be told from noise.
        visible = seconds(list, short)
        took_short = min(took_short, max(seconds(read, short), visible))
        took_long = min(took_long, seconds(read, long))
        if took_long < 2 * TIMES_LONGER * took_short:
            return
    pytest.fail(
        f"{took_long / took_short:.1f} times as long for {TIMES_LONGER} times as much"
    )


# Texts, from the keeper through each output

ODD_CHARACTERS = [
    *map(chr, range(0x21)),
    *map(chr, range(0x7F, 0xA1)),
    *'"\\,=:{}#',
    *"\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2028\u2029",
    *"\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069",
    *"\ufeff\ufff9\uffff\U000e0001\U0010ffff",
    # No high one before a low one: JSON would take them for the halves of a character.
    *"\udc00\udfff\ud800\udbff",
]
ODD_TEXTS = [
    *ODD_CHARACTERS,
    "".join(ODD_CHARACTERS),
    "\u202egnp.exe\u202c \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    '"} 1\nprobe_total{dst="forged"} 7\n# EOF',
    "5 labels=dst=forged total=7\n6 labels=dst=forged total=8",
    "x" * 100_000,
    "".join(ODD_CHARACTERS) * 900,
]
MANY_KEYS = {f"key {number}": number for number in range(1_000)}


def exports_of(results, **options):
    """Return what a keeper exports that is fed with `results`."""

    async def main():
        send, receive = trio.open_memory_channel(math.inf)
        await make_keeper(**options).run(channel_of(*results), send)
        return [export async for export in receive]

    return trio.run(main)


@pytest.fixture(scope="module")
def odd_exports():
    endpoints = [Endpoint(text, labels={"note": text}) for text in ODD_TEXTS]
    results = [
        # The number keeps apart what Prometheus does not allow in names.
        Result(
            text, {f"{number}{text}": 1, "seen": Map("text", {text: 2}), "said": text[:200]}
        )
        for number, text in enumerate(ODD_TEXTS)
    ]
    many = Result(ODD_TEXTS[0], {"many": Map("key", MANY_KEYS)})
    return exports_of(
        [*results, many],
        targets=lambda: endpoints,
        additional_labels={"note": "@target.label.note@"},
    )


@pytest.mark.parametrize("form", FORMATS)
async def test_an_export_with_any_texts_is_one_line_and_reads_back_equal(
    odd_exports, tmp_path, form
):
    assert len(odd_exports) == len(ODD_TEXTS)
    path = tmp_path / "metrics.log"
    await write_lines(channel_of(*odd_exports), path, json=form == "json")
    lines = path.read_bytes().decode().splitlines()
    # splitlines ends a line at characters that only some take for an end, too.
    assert lines == path.read_bytes().decode().split("\n")[:-1]
    for export, line in zip(odd_exports, lines, strict=True):
        read = READERS[form](line)
        assert (read.labels, read.metrics) == (export.labels, export.metrics)


def shown(text):
    """Return `text` as Prometheus and OTLP have it: escaped, if it is not Unicode."""
    return text.encode(errors="backslashreplace").decode()


async def page(exporter):
    """Return the page that a scrape gets."""
    async with (
        trio.open_nursery() as nursery,
        httpx2.AsyncClient(trust_env=False) as client,
    ):
        host, port = await serve(nursery, exporter)
        response = await client.get(f"http://{host}:{port}/metrics", timeout=60)
        assert response.status_code == 200
        nursery.cancel_scope.cancel()
    return response.text


async def scraped(exports):
    """Return the samples of a scrape as a parser reads them: by name, then by labels."""
    exporter = PrometheusExporter(0)
    await exporter.run(channel_of(*exports))
    found = {}
    for family in text_string_to_metric_families(await page(exporter)):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in series
            series[labels] = sample.value
    return found


async def test_a_scrape_can_be_parsed_and_has_all_texts(odd_exports, caplog):
    found = await scraped(odd_exports)
    assert len(found) == len(ODD_TEXTS) + len(["seen", "said", "many", "last export"])
    assert sum(len(series) for name, series in found.items() if name[6].isdigit()) == len(
        ODD_TEXTS
    )
    for text in ODD_TEXTS:
        labels = {"ptype": "http", "probe": "homepage", "dst": shown(text)}
        labels["note"] = shown(text)
        seen = frozenset((labels | {"text": shown(text)}).items())
        assert found["probe_seen_total"][seen] == 2
        said = frozenset((labels | {"said": shown(text[:200])}).items())
        assert found["probe_said_info"][said] == 1
    many = {dict(labels)["key"]: n for labels, n in found["probe_many_total"].items()}
    assert many == MANY_KEYS
    assert not caplog.messages


def sent(exports):
    """Return the metrics of a request as a parser reads them, by name."""
    request, families = Request({}), Families("probe_")
    for export in exports:
        for _ in request.add(export, families, now=0.0):
            pass
    message = ExportMetricsServiceRequest.FromString(request.serialize())
    metrics = {}
    for of_resource in message.resource_metrics:  # one for each part of a large request
        for metric in of_resource.scope_metrics[0].metrics:
            metrics.setdefault(metric.name, type(metric)()).MergeFrom(metric)
    return metrics


def points(metric, attribute):
    return {
        each.value.string_value: point
        for point in (metric.sum.data_points or metric.gauge.data_points)
        for each in point.attributes
        if each.key == attribute
    }


async def test_a_request_can_be_parsed_and_has_all_texts(odd_exports, caplog):
    metrics = sent(odd_exports)
    assert len(metrics) == len(ODD_TEXTS) + len(["seen", "said", "many"])
    texts = set(map(shown, ODD_TEXTS))
    seen = metrics["probe_seen"]
    for attribute in "dst", "note", "text":
        assert points(seen, attribute).keys() == texts
    assert {point.as_int for point in points(seen, "text").values()} == {2}
    said = points(metrics["probe_said_info"], "said")
    assert said.keys() == {shown(text[:200]) for text in ODD_TEXTS}
    many = points(metrics["probe_many"], "key")
    assert {key: point.as_int for key, point in many.items()} == MANY_KEYS
    assert not caplog.messages


# Integers, from the keeper through each output

INTEGERS = [2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]


@pytest.fixture(scope="module")
def integer_exports():
    def results(number):
        for part in (number - 1, 1):
            yield Result(
                str(number),
                {
                    "size": part,
                    "code": Map("code", {"200": part}),
                    "free": Gauge(-number),
                    "time": Distribution([1], [part, 0], 0),
                },
            )

    return exports_of(
        [result for number in INTEGERS for result in results(number)],
        targets=[str(number) for number in INTEGERS],
    )


def test_integers_add_up_exactly(integer_exports):
    assert [export.metrics for export in integer_exports] == [
        {
            "size": number,
            "code": Map("code", {"200": number}),
            "free": Gauge(-number),
            "time": Distribution([1], [number, 0], 0),
        }
        for number in INTEGERS
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_integers_are_exact_in_lines(integer_exports, form):
    for export in integer_exports:
        read = READERS[form](WRITERS[form](export)).metrics
        free = Gauge(read["free"]) if form == "line" else read["free"]
        assert repr({**read, "free": free}) == repr(dict(export.metrics))


async def test_integers_are_exact_on_the_page(integer_exports):
    found = await scraped(integer_exports)
    for name, sign in {
        "probe_size_total": 1,
        "probe_code_total": 1,
        "probe_free": -1,
        "probe_time_count": 1,
    }.items():
        assert {dict(labels)["dst"]: value for labels, value in found[name].items()} == {
            str(number): sign * number for number in INTEGERS
        }


def test_integers_are_exact_in_requests_up_to_64_bits(integer_exports):
    metrics = sent(integer_exports)
    for name, sign in {"probe_size": 1, "probe_code": 1, "probe_free": -1}.items():
        of_target = points(metrics[name], "dst")
        for number in INTEGERS:
            point, value = of_target[str(number)], sign * number
            if -(2**63) <= value < 2**63:
                assert point.as_int == value
            else:
                assert point.as_double == float(value)
    counts = [point.count for point in metrics["probe_time"].histogram.data_points]
    assert counts == [number for number in INTEGERS if number < 2**64]


# Results that can't be accepted


class Unprintable(Exception):
    def __repr__(self):
        raise OSError

    __str__ = __repr__


class Breaking(dict):
    def items(self):
        yield from super().items()
        raise OSError


class Raising:
    """A result of which a part raises an exception."""

    def __init__(self, part, error):
        self.part, self.error = part, error

    @property
    def target(self):
        if self.part == "target":
            raise self.error
        return "a"

    def metrics(self):
        if self.part == "metrics":
            raise self.error
        return {"total": 1}


RAISED = {
    "OSError": OSError("again"),
    "RecursionError": RecursionError(),
    "MemoryError": MemoryError(),
    "StopIteration": StopIteration(),
    "a group": ExceptionGroup("two", [OSError(), ExceptionGroup("one", [KeyError()])]),
    "UnicodeError": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "\ud800\n"),
    "WouldBlock": trio.WouldBlock(),
    "EndOfChannel": trio.EndOfChannel(),
    "an unprintable exception": Unprintable(),
}

BEFORE = {
    "total": 1,
    "version": "v1",
    "free": Gauge(7),
    "code": Map("code", {"200": 1}),
    "time": Distribution([1, 2], [1, 0, 0], 0.5),
}


def bad_results():
    """Return results that are rejected with the reason `error`, by what is wrong."""
    raising = {
        f"{part} raises {name}": Raising(part, error)
        for part in ("target", "metrics")
        for name, error in RAISED.items()
    }
    targets = {
        f"the target {target!r}": Result(target, {"total": 1})
        for target in (None, b"a", 5, ["a"], Endpoint("a"))
    }
    metrics = {
        "nothing": None,
        "a number": 5,
        "a text": "total",
        "pairs": [("total", 1)],
        "an iterator": iter({"total": 1}),
        "a class": dict,
        "a dict that breaks": Breaking(total=1, version="v2"),
        "a dict that breaks after a new name": Breaking(total=1, new=1),
    }
    return raising | targets | {what: Result("a", told) for what, told in metrics.items()}


@pytest.mark.parametrize("what", bad_results())
async def test_a_bad_result_is_rejected_and_changes_no_total(autojump_clock, caplog, what):
    keeper = make_keeper(["a", "b"])
    async with running(keeper) as run:
        run.send(Result("a", BEFORE), bad_results()[what], one("b"))
        await trio.sleep(1.5)
        run.send(one("a"))
        await trio.sleep(1)
        exported = [export.metrics for export in run.received()]
    assert exported == [BEFORE, {"total": 1}, BEFORE | {"total": 2}, {"total": 1}]
    statistics = keeper.statistics()
    assert (statistics.results_accepted, statistics.results_rejected) == (3, {"error": 1})
    assert statistics.targets_tracked == 2
    assert ["(error: 1)" in message for message in caplog.messages] == [True]


async def test_a_mutable_result_is_read_each_time_that_it_is_sent(
    autojump_clock,
):
    told = iter(
        [{"total": 1}, {"total": "1"}, None, {"total": 2, "new": {}}, {"total": -1}, {}]
    )

    class Fickle:
        target = "a"

        def metrics(self):
            return next(told)

    fickle = Fickle()
    keeper = make_keeper()
    async with running(keeper) as run:
        # One more than it can tell.
        run.send(*[fickle] * 7, one("a"))
        await trio.sleep(1.5)
        (export,) = run.received()
    assert export.metrics == {"total": 2}
    assert keeper.statistics().results_accepted == 3
    assert keeper.statistics().results_rejected == {
        "kind": 1,
        "error": 2,
        "type": 1,
        "negative": 1,
    }


# More targets and keys than there should be


async def test_results_of_unlisted_targets_beyond_the_limit_are_counted(
    autojump_clock,
):
    keeper = make_keeper(max_unlisted=1_000)
    async with running(keeper, buffer=100) as run:
        for number in range(100_000):
            await run.results.send(one(f"target {number}"))
        await run.results.send(one("a"))
        await trio.sleep(1.5)
        assert [export.labels["dst"] for export in run.received()] == ["a"]
    statistics = keeper.statistics()
    assert statistics.targets_tracked == statistics.results_accepted == 1_001
    assert statistics.results_rejected == {"unlisted": 99_000}


async def test_targets_that_are_not_tracked_take_no_memory(autojump_clock):
    taken = []
    tracemalloc.start()
    try:
        async with running(make_keeper(max_unlisted=1_000), buffer=100) as run:
            for block in range(4):
                taken.append(tracemalloc.get_traced_memory()[0])
                for number in range(2_000):
                    await run.results.send(one(f"target {block} {number}"))
    finally:
        tracemalloc.stop()
    before, full, *_, after = taken
    assert after - full < (full - before) / 2


async def test_a_map_that_grows_by_a_key_each_time_stops_at_the_limit(autojump_clock):
    keeper = make_keeper(max_map_keys=200)
    async with running(keeper) as run:
        for number in range(300):
            counts = {f"key {number}": 1, "every time": 1}
            run.send(Result("a", {"seen": Map("key", counts)}))
        run.send(Result("a", {"seen": Map("key", {"key 7": 1})}))
        await trio.sleep(1.5)
        (export,) = run.received()
    counts = {f"key {number}": 1 for number in range(199)}
    assert export.metrics["seen"].values == counts | {"key 7": 2, "every time": 199}
    assert keeper.statistics().results_rejected == {"map-keys": 101}
    assert keeper.statistics().results_accepted == 200
