"""The helpers for tests of programs with a keeper."""

from __future__ import annotations

import math

import pytest
import trio
from attrs.exceptions import FrozenInstanceError

from trio_statskeeper import Endpoint, EventMetrics, Inconclusive, ProbeFailed
from trio_statskeeper.testing import (
    Fail,
    Hang,
    ScriptedProbe,
    Succeed,
    by_metric,
    receive_exports,
)

A, B = Endpoint("a"), Endpoint("b", port=80)


def export(target: str, **metrics) -> EventMetrics:
    return EventMetrics(1519084040, 0, {"dst": target}, metrics)


async def send_every_second(exports: trio.MemorySendChannel[EventMetrics], count: int):
    """Send exports with a total of 1, 2, 3 ... and leave the channel open."""
    for total in range(1, count + 1):
        await trio.sleep(1)
        await exports.send(export("a", total=total))


# receive_exports


async def test_exactly_as_many_exports_are_received_as_asked_for(autojump_clock):
    send, receive = trio.open_memory_channel[EventMetrics](10)
    await send_every_second(send, 5)
    assert by_metric(await receive_exports(receive, 3)) == {"total": {"a": [1, 2, 3]}}
    assert by_metric(await receive_exports(receive, 2)) == {"total": {"a": [4, 5]}}


async def test_exports_that_have_not_arrived_yet_are_waited_for(autojump_clock):
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_every_second, send, 59)
        assert len(await receive_exports(receive, 59)) == 59
    assert trio.current_time() == 59


async def test_exports_that_do_not_arrive_in_time_are_an_error_that_shows_those_that_did(
    autojump_clock,
):
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_every_second, send, 2)
        with pytest.raises(AssertionError) as caught:
            await receive_exports(receive, 3, timeout=2.5)
    assert str(caught.value) == (
        "2 of 3 exports came within 2.5 seconds\n"
        "  1519084040 labels=dst=a total=1\n"
        "  1519084040 labels=dst=a total=2"
    )
    assert trio.current_time() == 2.5


async def test_a_minute_is_waited_for_exports_unless_told_otherwise(autojump_clock):
    _send, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.raises(AssertionError, match="0 of 1 exports came within 60"):
        await receive_exports(receive, 1)
    assert trio.current_time() == 60


async def test_exports_that_end_too_early_are_an_error_that_shows_those_that_arrived(
    autojump_clock,
):
    send, receive = trio.open_memory_channel[EventMetrics](1)
    await send_every_second(send, 1)
    send.close()
    with pytest.raises(AssertionError) as caught:
        await receive_exports(receive, 2)
    assert str(caught.value) == (
        "1 of 2 exports came before the channel's end\n  1519084040 labels=dst=a total=1"
    )
    assert trio.current_time() == 1


@pytest.mark.parametrize("count", [0, -1])
async def test_at_least_one_export_is_asked_for(count):
    _send, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.raises(ValueError, match=f"at least 1, got {count}"):
        await receive_exports(receive, count)


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_timeout_is_not_negative_nor_nan(timeout):
    _send, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.raises(ValueError, match=r"non-negative|NaN"):
        await receive_exports(receive, 1, timeout=timeout)


# by_metric


def test_exports_are_arranged_by_metric_then_by_target_in_their_order():
    exports = [
        export("b", total=7),
        export("a", total=1, version="v1"),
        export("a", total=3, version="v2"),
    ]
    assert by_metric(exports) == {
        "total": {"b": [7], "a": [1, 3]},
        "version": {"a": ["v1", "v2"]},
    }


def test_no_exports_have_no_metrics():
    assert by_metric(iter([])) == {}


# ScriptedProbe


async def test_a_scripted_probe_does_one_step_per_call_and_then_repeats_the_last(
    autojump_clock,
):
    probe = ScriptedProbe([Succeed(), Succeed({"size": 1}), Succeed({"size": 2})])
    returned = [await probe(A) for _ in range(4)]
    assert returned == [None, {"size": 1}, {"size": 2}, {"size": 2}]


async def test_each_endpoint_follows_the_script_from_its_beginning(autojump_clock):
    probe = ScriptedProbe([Succeed({"size": 1}), Succeed({"size": 2})])
    returned = [await probe(endpoint) for endpoint in (A, A, B, Endpoint("a"), B)]
    assert [metrics["size"] for metrics in returned] == [1, 2, 1, 2, 2]


async def test_a_scripted_probe_records_when_it_was_called_and_for_which_endpoint(
    autojump_clock,
):
    probe = ScriptedProbe([Succeed(after=0.5), Succeed(after=2)])
    for endpoint in (A, B, A, A):
        await probe(endpoint)
    assert probe.calls == [(0, "a"), (0.5, "b:80"), (1, "a"), (3, "a")]


@pytest.mark.parametrize(
    "error",
    [
        OSError("refused"),
        KeyboardInterrupt(),
        ProbeFailed("full"),
        Inconclusive("no route"),
    ],
)
async def test_a_step_that_fails_raises_its_error_after_its_time(autojump_clock, error):
    probe = ScriptedProbe([Fail(error, after=0.25)])
    for end in (0.25, 0.5):
        with pytest.raises(type(error)) as caught:
            await probe(A)
        assert caught.value is error
        assert trio.current_time() == end


async def test_a_step_that_fails_with_a_class_raises_a_new_error_each_time(autojump_clock):
    probe = ScriptedProbe([Fail(OSError)])
    with pytest.raises(OSError) as first:
        await probe(A)
    with pytest.raises(OSError) as second:
        await probe(A)
    assert first.value is not second.value


async def test_a_step_that_hangs_can_only_be_cancelled(autojump_clock):
    with trio.move_on_after(1_000_000) as scope:
        await ScriptedProbe([Hang()])(A)
    assert scope.cancelled_caught


@pytest.mark.parametrize("step", [Succeed(), Fail(OSError), Hang()])
async def test_each_step_lets_others_run(autojump_clock, step):
    with trio.move_on_after(0) as scope:
        await ScriptedProbe([step])(A)
    assert scope.cancelled_caught


def test_changing_the_mapping_given_to_a_step_does_not_change_its_metrics():
    given = {"size": 1}
    step = Succeed(given)
    given["size"] = 2
    assert step == Succeed({"size": 1})


def test_steps_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Succeed().after = 1


def test_equal_steps_hash_alike():
    assert hash(Succeed({"size": 1})) == hash(Succeed({"size": 1}))


@pytest.mark.parametrize("after", [-1, math.nan, math.inf])
@pytest.mark.parametrize("step", [Succeed, lambda after: Fail(OSError, after=after)])
def test_a_step_takes_a_finite_time(step, after):
    with pytest.raises(ValueError, match=f"after must be finite .* got {after!r}"):
        step(after=after)


@pytest.mark.parametrize("after", ["1", None, True])
@pytest.mark.parametrize("step", [Succeed, lambda after: Fail(OSError, after=after)])
def test_the_time_of_a_step_is_a_number(step, after):
    with pytest.raises(TypeError, match=f"after must be a number, got {after!r}"):
        step(after=after)


@pytest.mark.parametrize("metrics", [1, "size", [("size", 1)]])
def test_the_metrics_of_a_step_are_a_mapping(metrics):
    with pytest.raises(TypeError, match="metrics must be a mapping or None, got"):
        Succeed(metrics)


@pytest.mark.parametrize("error", ["refused", None, int])
def test_a_step_fails_with_an_exception(error):
    with pytest.raises(TypeError, match=r"such as OSError\('refused'\), got"):
        Fail(error)


def test_a_script_is_not_empty():
    with pytest.raises(ValueError, match="at least one step"):
        ScriptedProbe([])


@pytest.mark.parametrize("script", [Hang(), None, {Hang()}])
def test_a_script_is_a_sequence(script):
    with pytest.raises(TypeError, match="script must be a sequence of steps"):
        ScriptedProbe(script)


@pytest.mark.parametrize("step", [Hang, None, "hang", {"size": 1}])
def test_a_script_consists_of_steps(step):
    with pytest.raises(TypeError, match="a step must be a Succeed, Fail or Hang"):
        ScriptedProbe([Succeed(), step])


def test_changing_the_list_given_as_a_script_does_not_change_it():
    given = [Succeed()]
    probe = ScriptedProbe(given)
    given.append(Hang())
    assert probe.script == (Succeed(),)
