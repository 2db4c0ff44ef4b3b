"""How a prober counts and logs the failures of its targets.

Every test runs on the mock clock.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest
import trio

from trio_statskeeper import (
    Endpoint,
    Inconclusive,
    Map,
    ProbeFailed,
    Prober,
    ProbeResult,
)
from trio_statskeeper._health import _MAX_KEYS, _MAX_LINES, _WINDOW
from trio_statskeeper._listing import _MAX_DELISTED
from trio_statskeeper.testing import Fail, ScriptedProbe, Succeed


async def probed(
    probe: Callable[[Endpoint], Awaitable[None]],
    seconds: float,
    targets: Any = ("a",),
    **options: Any,
) -> list[dict]:
    """Run a prober, and return the metrics of its runs."""
    listed = targets if callable(targets) else lambda: targets
    prober = Prober(
        probe,
        lambda: [Endpoint(key) for key in listed()],
        **({"interval": 1, "timeout": 0.5, "clock": trio.current_time} | options),
    )
    send, results = trio.open_memory_channel[ProbeResult](math.inf)
    with trio.move_on_after(seconds):
        await prober.run(send)
    return [dict(result.metrics()) async for result in results]


def raising(errors: Iterator[BaseException | None]) -> Callable[..., Awaitable[None]]:
    async def probe(endpoint: Endpoint) -> None:
        await trio.lowlevel.checkpoint()
        if error := next(errors):
            raise error

    return probe


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


# The key


def hidden(*errors: BaseException) -> OSError:
    """Return what Trio raises when these are what all attempts to connect raised."""
    error = OSError("all attempts to connect to a:80 failed")
    error.__cause__ = errors[0] if len(errors) == 1 else ExceptionGroup("all", errors)
    return error


def hiding_itself() -> OSError:
    error = OSError("all attempts to connect to a:80 failed")
    error.__cause__ = error
    return error


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
UNREACHABLE = OSError(errno.ENETUNREACH, "unreachable")


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (ValueError("x"), "ValueError"),
        (REFUSED, "ConnectionRefusedError"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "gaierror"),
        (UNREACHABLE, "OSError-ENETUNREACH"),
        (OSError("no errno"), "OSError"),
        (OSError(99_999, "an errno that is unknown here"), "OSError"),
        (OSError([], "an errno that is not a number"), "OSError"),
        (hidden(REFUSED), "ConnectionRefusedError"),
        (hidden(UNREACHABLE, REFUSED), "ConnectionRefusedError"),
        (hidden(REFUSED, UNREACHABLE), "ConnectionRefusedError"),
        (hidden(TimeoutError(), ConnectionResetError()), "ConnectionResetError"),
        (hidden(ConnectionResetError(), TimeoutError()), "ConnectionResetError"),
        (hidden(hidden(REFUSED)), "ConnectionRefusedError"),
        (ExceptionGroup("outer", [hidden(UNREACHABLE)]), "OSError-ENETUNREACH"),
        (hidden(ValueError()), "OSError"),
        (hiding_itself(), "OSError"),
        (ProbeFailed("status-503"), "status-503"),
        (ProbeFailed("no such page, 4 KB"), "no_such_page__4_KB"),
        (ProbeFailed("x" * 10_000), "x" * 100),
        (ExceptionGroup("outer", [ProbeFailed("first"), OSError("second")]), "first"),
        (Inconclusive("no route from here"), "no_route_from_here"),
        (ExceptionGroup("outer", [ExceptionGroup("inner", [Inconclusive("x")])]), "x"),
        (type("Bad\nname " + "x" * 10_000, (Exception,), {})(), "Bad_name_" + "x" * 91),
    ],
)
async def test_the_key_of_an_error_says_what_went_wrong(autojump_clock, error, key):
    (metrics,) = await probed(raising(itertools.repeat(error)), 0.99)
    assert metrics["error"] == Map("error", {key: 1})


COUNTS = ("total", "success", "failure", "timeouts", "inconclusive")


def caused_by(cause: BaseException, error: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def an_oserror(number: int) -> OSError:
    return OSError(number, "short of something")


SHORT_OF_FILES = an_oserror(errno.EMFILE)


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (Inconclusive("no-route"), "no-route"),
        (ExceptionGroup("", [Inconclusive("no-route"), OSError()]), "no-route"),
        (caused_by(SHORT_OF_FILES, Inconclusive("no-route")), "no-route"),
        (SHORT_OF_FILES, "OSError-EMFILE"),
        (an_oserror(errno.ENFILE), "OSError-ENFILE"),
        (an_oserror(errno.ENOBUFS), "OSError-ENOBUFS"),
        (an_oserror(errno.ENOMEM), "OSError-ENOMEM"),
        (hidden(REFUSED, SHORT_OF_FILES), "OSError-EMFILE"),
        (hidden(hidden(an_oserror(errno.ENOBUFS), UNREACHABLE)), "OSError-ENOBUFS"),
        (ExceptionGroup("", [hidden(SHORT_OF_FILES)]), "OSError-EMFILE"),
        (caused_by(hidden(SHORT_OF_FILES), ValueError()), "OSError-EMFILE"),
        (caused_by(SHORT_OF_FILES, ProbeFailed("connect")), "OSError-EMFILE"),
    ],
)
async def test_failures_of_this_machine_are_inconclusive(autojump_clock, error, key):
    (metrics,) = await probed(raising(itertools.repeat(error)), 0.99)
    assert [metrics[count] for count in COUNTS] == [0, 0, 0, 0, 1]
    assert metrics["error"] == Map("error", {key: 1})
    assert "latency" not in metrics


@pytest.mark.parametrize(
    "error",
    [
        ProbeFailed("full"),
        UNREACHABLE,
        socket.gaierror(errno.ENOMEM, "something else by the same number"),
        ExceptionGroup("", [ProbeFailed("first"), Inconclusive("second")]),
    ],
)
async def test_errors_that_the_target_may_have_caused_are_failures(autojump_clock, error):
    (metrics,) = await probed(raising(itertools.repeat(error)), 0.99)
    assert [metrics[count] for count in COUNTS] == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("kind", [ProbeFailed, Inconclusive])
async def test_metrics_of_an_exception_are_those_of_the_run(autojump_clock, kind):
    codes = Map("code", {"503": 1})
    error = kind("status-503", metrics={"resp-code": codes})
    (metrics,) = await probed(raising(itertools.repeat(error)), 0.99)
    assert metrics["resp-code"] == codes


@pytest.mark.parametrize("kind", [ProbeFailed, Inconclusive])
@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ({"metrics": {"total": 1}}, ValueError),
        ({"metrics": 7}, TypeError),
        ({"reason": 7}, TypeError),
        ({"__init__": lambda *_: None}, AttributeError),
    ],
)
async def test_a_broken_subclass_is_a_failure(autojump_clock, kind, attributes, error):
    broken = type("Broken", (kind,), attributes)("x")
    (metrics,) = await probed(raising(iter([broken])), 0.99)
    assert metrics["error"] == Map("error", {error.__name__: 1})
    assert [metrics[count] for count in COUNTS] == [1, 0, 1, 0, 0]


async def test_a_target_has_a_limited_number_of_keys_and_no_run_is_lost(
    autojump_clock, caplog
):
    def errors() -> Iterator[Exception]:
        for i in itertools.count():
            yield type(f"Error{i}", (Exception,), {})("x" * 10_000)

    listed = itertools.cycle([["a"], []])  # a target that comes and goes is not forgotten
    results = await probed(raising(errors()), 2_000, lambda: next(listed), interval=2)
    keys = [key for metrics in results for key in metrics["error"].values]
    of_classes = _MAX_KEYS - 1  # one is `timeout`
    assert keys[:of_classes] == [f"Error{i}" for i in range(of_classes)]
    assert keys[of_classes:] == ["other"] * (len(keys) - of_classes)
    assert {metrics["failure"] for metrics in results} == {1}
    assert len(caplog.records) == _MAX_KEYS  # `other` is news once
    assert max(len(record.getMessage()) for record in caplog.records) < 500


# The log


async def test_a_line_is_logged_when_a_target_begins_to_fail_and_when_it_recovers(
    autojump_clock, caplog
):
    caplog.set_level(logging.INFO)
    first, second, third = OSError("first"), OSError("second"), ValueError("a\nthird")
    script = [first, second, first, third, second, None, None, first, None]
    await probed(raising(iter(script)), 8.99)
    assert lines(caplog) == [
        "WARNING a: probe failed: OSError('first')",
        "WARNING a: probe failed: OSError('second')",
        r"WARNING a: probe failed: ValueError('a\nthird')",
        "INFO a: recovered after 5 failures",
        "WARNING a: probe failed: OSError('first')",
        "INFO a: recovered after 1 failure",
    ]
    assert not any(record.exc_info for record in caplog.records)


async def test_a_reason_is_logged_without_metrics_and_once(autojump_clock, caplog):
    errors = (ProbeFailed("status 503", metrics={"size": i}) for i in itertools.count())
    await probed(raising(errors), 3.99)
    assert lines(caplog) == ["WARNING a: probe failed: status 503"]


async def test_inconclusive_runs_are_logged_like_failures_and_so_is_their_end(
    autojump_clock, caplog
):
    caplog.set_level(logging.INFO)
    ours = Inconclusive("no route")
    script = [ours, ours, None, SHORT_OF_FILES, OSError("x"), ours, None, None]
    await probed(raising(iter(script)), 7.99)
    assert lines(caplog) == [
        "WARNING a: probe inconclusive: no route",
        "INFO a: recovered after 2 inconclusive runs",
        f"WARNING a: probe inconclusive: {SHORT_OF_FILES!r}",
        "WARNING a: probe failed: OSError('x')",
        "WARNING a: probe inconclusive: no route",
        "INFO a: recovered after 1 failure and 2 inconclusive runs",
    ]


async def test_many_inconclusive_targets_are_logged_with_few_lines(autojump_clock, caplog):
    keys = [f"target {i}" for i in range(200)]
    await probed(ScriptedProbe([Fail(SHORT_OF_FILES)]), _WINDOW + 0.01, keys, interval=5)
    assert len(caplog.records) == _MAX_LINES + 1


async def test_timeouts_are_logged_like_other_failures(autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    script = [Succeed(after=0.7), Succeed(after=0.8), Succeed()]
    await probed(ScriptedProbe(script), 2.99)
    assert lines(caplog) == [
        "WARNING a: probe failed: timed out after 0.5 s",
        "INFO a: recovered after 2 failures",
    ]


async def test_tracebacks_are_logged_at_debug_only(autojump_clock, caplog):
    caplog.set_level(logging.DEBUG)
    group = ExceptionGroup("two", [OSError("first"), ValueError("second")])
    await probed(raising(itertools.repeat(group)), 3.99)
    assert lines(caplog) == [
        "WARNING a: probe failed: OSError('first')",
        "DEBUG a: traceback",
    ]
    assert "ValueError: second" in caplog.text


async def test_a_cause_that_is_different_each_time_does_not_flood_the_log(
    autojump_clock, caplog
):
    errors = (OSError(f"from port {i}") for i in itertools.count())
    await probed(raising(errors), 100)
    assert len(caplog.records) < 10


async def test_a_failing_target_that_is_delisted_and_returns_is_logged_once(
    autojump_clock, caplog
):
    listed = itertools.cycle(["a", "b"])
    await probed(raising(itertools.repeat(OSError("x"))), 20, lambda: next(listed))
    assert sorted(lines(caplog)) == [
        "WARNING a: probe failed: OSError('x')",
        "WARNING b: probe failed: OSError('x')",
    ]


async def test_the_health_of_few_delisted_targets_is_remembered(autojump_clock):
    numbers = itertools.count()
    prober = Prober(
        raising(itertools.repeat(OSError("x"))),
        lambda: [Endpoint(f"{next(numbers)}") for _ in range(500)],
        interval=1,
        timeout=0.5,
        clock=trio.current_time,
    )
    send, _results = trio.open_memory_channel[ProbeResult](math.inf)
    with trio.move_on_after(3.99):
        await prober.run(send)
    assert len(prober._state.past._health) == _MAX_DELISTED


async def test_many_targets_that_fail_at_once_are_logged_with_few_lines(
    autojump_clock, caplog
):
    keys = [f"target {i}" for i in range(2_000)]
    failing = ScriptedProbe([Fail(OSError("down"))])
    await probed(failing, _WINDOW + 0.01, keys, interval=5, name="homepage")
    assert len(caplog.records) == _MAX_LINES + 1
    assert lines(caplog)[-1] == "WARNING prober homepage: 1980 more lines were held back"


async def test_lines_that_were_held_back_are_counted_in_one_line_and_later_ones_are_logged(
    autojump_clock, caplog
):
    keys = [f"target {i}" for i in range(100)]
    failing = ScriptedProbe([Fail(OSError("down"))] * 15 + [Fail(ValueError("else"))])
    await probed(failing, 16.5, keys)
    assert [line for line in lines(caplog) if "held back" in line] == [
        "WARNING prober: 80 more lines were held back"
    ] * 2
    assert len(caplog.records) == 2 * (_MAX_LINES + 1)


async def test_lines_below_the_log_level_do_not_count_as_held_back(autojump_clock, caplog):
    caplog.set_level(logging.ERROR, "trio_statskeeper")
    keys = [f"target {i}" for i in range(100)]
    await probed(ScriptedProbe([Fail(OSError("down"))]), 20, keys)
    assert caplog.records == []


async def test_a_line_is_one_line_and_short_whatever_target_and_error_are(
    autojump_clock, caplog
):
    class Strange(Exception):
        def __repr__(self) -> str:
            return "one\r\ntwo\x1b[31m" + "x" * 10_000

    await probed(raising(itertools.repeat(Strange())), 0.99, ["a\nb" + "c" * 10_000])
    (line,) = lines(caplog)
    assert len(line) < 500
    assert line.isprintable()


async def test_an_error_whose_repr_raises_is_logged(autojump_clock, caplog):
    class Mute(Exception):
        def __repr__(self) -> str:
            raise OSError("mute")

    (metrics,) = await probed(raising(itertools.repeat(Mute())), 0.99)
    assert metrics["error"] == Map("error", {"Mute": 1})
    (line,) = lines(caplog)
    assert line.startswith("WARNING a: probe failed: <")


async def test_a_log_handler_that_raises_does_not_end_the_prober(autojump_clock):
    def fail(record: logging.LogRecord) -> bool:
        raise OSError("the log is full")

    logger = logging.getLogger("trio_statskeeper")
    logger.addFilter(fail)
    try:
        results = await probed(raising(itertools.repeat(OSError("x"))), 2.99)
    finally:
        logger.removeFilter(fail)
    assert len(results) == 3


# Tracebacks


@attrs.frozen
class Frozen(Exception):
    text: str


def depth(error: BaseException) -> int:
    traceback, entries = error.__traceback__, 0
    while traceback is not None:
        traceback, entries = traceback.tb_next, entries + 1
    return entries


CAUSE = OSError("cause")
LEAF = ValueError("leaf")


async def raise_directly(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def raise_in_a_group(error: BaseException) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_directly, error)


async def raise_as_a_cause(error: BaseException) -> None:
    try:
        await raise_directly(error)
    except Exception as cause:
        raise LookupError from cause


async def raise_as_a_context(error: BaseException) -> None:
    try:
        await raise_directly(error)
    finally:
        raise LookupError


async def raise_as_time_is_up(error: BaseException) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise error


@pytest.mark.parametrize("error", [OSError("x"), Frozen("x")])
@pytest.mark.parametrize(
    "how",
    [
        raise_directly,
        raise_in_a_group,
        raise_as_a_cause,
        raise_as_a_context,
        raise_as_time_is_up,
    ],
)
async def test_an_exception_that_is_raised_repeatedly_does_not_grow(
    autojump_clock, how, error
):
    async def probe(endpoint: Endpoint) -> None:
        await how(error)

    assert len(await probed(probe, 20)) >= 19
    assert depth(error) == 0
