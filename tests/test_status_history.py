"""The ring in which the status page keeps a target's intervals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_statskeeper.status._history import (
    DEGRADED,
    DOWN,
    MISSING,
    NONE,
    UP,
    History,
    Point,
)

LENGTH = 6

# How much later than the one before a pass is, and what it was like.
passes = st.lists(
    st.tuples(st.integers(0, 15), st.integers(MISSING, DOWN), st.integers(0, 100)),
    min_size=1,
    max_size=30,
)


def point_of(outcome, number):
    return Point(outcome, number / 128, float(number), float(2 * number))


@given(passes, st.integers(0, 12))
def test_a_window_has_what_was_added_last_to_each_pass(added, further):
    history, model = History(LENGTH), {}
    number = 7
    for step, outcome, value in added:
        number += step
        history.add(number, point_of(outcome, value))
        model[number] = point_of(outcome, value)
    until = number + further
    window = history.window(number, until)
    expected = [model.get(n, Point(MISSING)) for n in range(until - LENGTH + 1, until + 1)]
    assert [*window.outcomes] == [point.outcome for point in expected]
    assert [*window.success] == [point.success for point in expected]
    assert [*window.p50] == [point.p50 for point in expected]
    assert [*window.p99] == [point.p99 for point in expected]


@given(passes)
def test_bad_intervals_are_counted_as_long_as_a_window_shows_them(added):
    history, model = History(LENGTH), {}
    number = 0
    for step, outcome, value in added:
        number += step
        history.add(number, point_of(outcome, value))
        model[number] = outcome
        shown = range(number - LENGTH + 1, number + 1)
        bad = sum(model.get(n, MISSING) >= DEGRADED for n in shown)
        assert history.bad_intervals == bad


@given(passes, st.integers(0, 8), st.integers(1, 15))
def test_a_window_of_an_older_pass_has_nothing_newer(added, back, longest):
    added = [(step % longest, *rest) for step, *rest in added]
    history, model = History(LENGTH), {}
    number = 0
    for step, outcome, value in added:
        number += step
        history.add(number, point_of(outcome, value))
        model[number] = outcome
    until = number - back
    window = history.window(until, until)
    for n, outcome in enumerate(window.outcomes, until - LENGTH + 1):
        # The oldest may have been overwritten meanwhile.
        assert outcome in {model.get(n, MISSING), MISSING}
        if back <= 4 and not any(step >= LENGTH for step, _, _ in added):
            assert outcome == model.get(n, MISSING)


def test_latencies_that_are_not_of_this_world_are_stored_as_far_as_they_can_be():
    history = History(LENGTH)
    history.add(1, Point(UP, 1.0, -5.0, 1e300))
    window = history.window(1, 1)
    assert window.p50[-1] == 0
    assert 1e29 < window.p99[-1] < 1e31
    assert window.p99[0] == NONE
