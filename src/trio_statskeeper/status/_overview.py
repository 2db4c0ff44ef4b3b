"""The page of all targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import urlencode

import attrs

from trio_statskeeper._http._body import Blocks

from ._board import Cut
from ._document import END, JSON_PATH, PATH, badge, begin
from ._history import NONE, OUTCOMES
from ._intervals import ErrorCount
from ._markup import duration, escaped, isolated, seconds, share, utc
from ._plots import COLUMNS, area, columns, gaps, line, strip
from ._selection import Group, Row, Selection
from ._state import STATES, TargetState

# Of the small plots.
_STEP = 3
_WIDTH = COLUMNS * _STEP
_STRIP_HEIGHT = 20
_LINE_HEIGHT = 24

_STRETCHED = 'preserveAspectRatio="none"'

_GAPS = (
    f'<svg class="symbols" aria-hidden="true"><symbol id="gaps" {_STRETCHED} '
    f'viewBox="0 0 {_WIDTH} {_STRIP_HEIGHT}">{gaps(_STEP, _STRIP_HEIGHT)}</symbol></svg>'
)

# Errors that are shown with a target's name.
_ERRORS = 2

NAMES = {
    "down": "Down",
    "degraded": "Degraded",
    "stale": "Stale",
    "inconclusive": "Inconclusive",
    "up": "Up",
    "idle": "No runs",
}


@attrs.frozen
class View:
    """How a page was asked for."""

    text: str
    """The filter."""
    refreshes: bool
    refresh: int
    """Seconds after which it is to be loaded again."""
    any_pass: bool
    """Whether there is anything to be shown."""

    def address(self, path: str = PATH, **changes: str) -> str:
        """Return the address of a page, escaped."""
        parameters = {"filter": self.text, "refresh": "" if self.refreshes else "off"}
        query = urlencode(
            {name: text for name, text in (parameters | changes).items() if text},
            errors="replace",
        )
        return escaped(f"{path}?{query}" if query else path, 10**5)


def overview(selection: Selection, length: int, view: View, now: float) -> Blocks:
    """Yield the page of the targets that were selected, in short steps.

    Args:
      selection: the targets.
      length: how many intervals are kept of each target.
      view: how the page was asked for.
      now: seconds of Trio's clock.
    """
    yield [_top(selection, view).encode()]
    for group in selection.groups:
        slices = columns(length, group.cut.number)
        yield [_group_top(group, length, now).encode()]
        for row in group.take_rows():
            yield [_row(row, slices, length, view, now).encode()]
        yield [b"</tbody></table></section>"]
    yield [_bottom(selection, view).encode(), END]


def _top(selection: Selection, view: View) -> str:
    counts = selection.counts
    bad = ", ".join(
        f"{counts[state]} {NAMES[state].lower()}"
        for state in ("down", "degraded", "stale")
        if counts[state]
    )
    title = f"{bad} – status" if bad else "Status"
    return (
        f"{begin(title)}{_GAPS}<header><h1>Status</h1>{_counts(counts, view)}"
        f'<form action="{PATH}" role="search">'
        f'<label for="filter">Filter</label><input id="filter" type="search" name="filter" '
        f'value="{escaped(view.text, 10**5)}" placeholder="name, label, error or state" '
        'spellcheck="false">'
        f"{'' if view.refreshes else '<input type=hidden name=refresh value=off>'}"
        f"<button>Filter</button></form>{refresh_link(view)}</header><main>"
    )


def _counts(counts: Counter[str], view: View) -> str:
    items = (
        f'<li><a href="{view.address(filter=state)}">'
        f"{badge(state, f'<b>{counts[state]:,}</b> {NAMES[state].lower()}')}</a></li>"
        for state in STATES
        if counts[state]
    )
    return f'<ul class="counts">{"".join(items)}</ul>'


def refresh_link(view: View, **parameters: str) -> str:
    """Return what says when the page is loaded again, and a link to change that."""
    now, other, link = f"Refreshes every {view.refresh} s", "off", "Pause"
    if not view.refreshes:
        now, other, link = "Paused", "", "Refresh"
    href = view.address(refresh=other, **parameters)
    return f'<p class="refresh">{now} <a href="{href}">{link}</a></p>'


def _group_top(group: Group, length: int, now: float) -> str:
    cut = group.cut
    span = duration(length * cut.export_interval)
    states = ", ".join(
        f"{group.counts[state]:,} {NAMES[state].lower()}"
        for state in STATES
        if group.counts[state]
    )
    return (
        f'<section><div class="group"><h2>{isolated(cut.probe)} '
        f"<small>{isolated(cut.ptype)}</small></h2><p>{states}</p>{pass_of(cut, now)}</div>"
        '<table><thead><tr><th scope="col">State</th><th scope="col">Target</th>'
        f'<th scope="col" class="wide">Success, {span}</th>'
        '<th scope="col" class="number success">Now</th>'
        f'<th scope="col" class="wide">Latency, {span}</th>'
        '<th scope="col" class="number p50">p50</th>'
        '<th scope="col" class="number">p99</th>'
        '<th scope="col" class="number">For</th></tr></thead><tbody>'
    )


def pass_of(cut: Cut, now: float) -> str:
    """Return when the pass was that is shown."""
    if cut.is_silent(now):
        silent = duration(cut.time(now) - cut.timestamp)
        return f'<p class="silent">No export for {silent}: {utc(cut.timestamp)}</p>'
    return f"<p>{utc(cut.timestamp)}</p>"


def _row(row: Row, slices: Sequence[slice], length: int, view: View, now: float) -> str:
    target, cut = row.target, row.cut
    point = target.interval.point
    window = target.history.window(target.number, cut.number)
    outcomes = [max(window.outcomes[each]) for each in slices]
    return (
        f'<tr><td class="state">{badge(row.state, NAMES[row.state])}</td>'
        f'<th scope="row"><a href="{view.address(filter="", target=target.target_id)}">'
        f"{isolated(shown_name(target))}</a>{_errors(target.errors)}</th>"
        f'<td class="wide"><svg class="strip" viewBox="0 0 {_WIDTH} {_STRIP_HEIGHT}" '
        f"{_STRETCHED} "
        f'role="img" aria-label="failures in {target.bad_intervals} of {length} intervals">'
        f'{strip(outcomes, _STEP, _STRIP_HEIGHT)}<use href="#gaps"/></svg></td>'
        f'<td class="number success">{share(point.success)}</td>'
        f'<td class="wide">{_lines(window.p50, window.p99, slices)}</td>'
        f'<td class="number p50">{seconds(point.p50)}</td>'
        f'<td class="number p99">{seconds(point.p99)}</td>'
        f'<td class="number since">{duration(cut.time(now) - since(row))}</td></tr>'
    )


def shown_name(target: TargetState) -> str:
    """Return the name of a target; a link needs a text."""
    return target.name if target.name.strip() else "(no name)"


def since(row: Row) -> float:
    """Return since when a target is in its state, in Unix seconds."""
    return row.target.timestamp if row.state == "stale" else row.target.since


def _errors(errors: Iterable[ErrorCount]) -> str:
    recent = [error for error in errors if error.in_interval]
    if not recent:
        return ""
    shown = ", ".join(
        f"{isolated(error.kind, 40)} ×{error.in_interval:,}" for error in recent[:_ERRORS]
    )
    more = f", {len(recent) - _ERRORS} more" if len(recent) > _ERRORS else ""
    return f" <small>{shown}{more}</small>"


def _lines(p50: Sequence[float], p99: Sequence[float], slices: Sequence[slice]) -> str:
    highest = [max(p99[each]) for each in slices]
    top = max(highest)
    if top <= 0:
        return "" if top == NONE else "0"
    medians = [max(p50[each]) for each in slices]
    return (
        f'<svg class="lines" viewBox="0 0 {_WIDTH} {_LINE_HEIGHT}" {_STRETCHED} '
        f'aria-hidden="true">'
        f'<path class="p99" d="{area(highest, _STEP, _LINE_HEIGHT, top)}"/>'
        f'<path class="p50" d="{line(medians, _STEP, _LINE_HEIGHT, top)}"/></svg>'
    )


def _bottom(selection: Selection, view: View) -> str:
    notes: list[str] = []
    if not view.any_pass:
        notes.append(
            "No export has arrived. If this stays so, check that the <code>run</code> of "
            "the <code>StatusPage</code> is one of the outputs."
        )
    elif not selection.matching:
        notes.append(f'No target matches. <a href="{view.address(filter="")}">Show all</a>')
    if selection.shown < selection.matching:
        notes.append(
            f"The worst {selection.shown:,} of {selection.matching:,} targets are shown. "
            "The filter finds the others."
        )
    if selection.not_kept:
        notes.append(f"There is no room for {selection.not_kept:,} further targets.")
    json = view.address(JSON_PATH, refresh="")
    texts = "".join(f'<p class="note">{note}</p>' for note in notes)
    legend = success_legend() + latency_legend() if selection.shown else ""
    return f'{texts}</main><footer>{legend}<a href="{json}">JSON</a></footer>'


def success_legend() -> str:
    """Return what the bars mean."""
    return _legend(
        (strip([OUTCOMES.index(outcome)], 10, 10), "strip", text)
        for outcome, text in (
            ("up", "all runs succeeded"),
            ("degraded", "some failed"),
            ("down", "all failed"),
            ("inconclusive", "inconclusive"),
            ("idle", "no run ended"),
        )
    )


def latency_legend() -> str:
    """Return what the lines mean."""
    return _legend(
        (
            ('<path class="p50" d="M0 5h10"/>', "lines", "p50"),
            ('<path class="p99" d="M0 1h10v9h-10z"/>', "lines", "p99"),
        )
    )


def _legend(items: Iterable[tuple[str, str, str]]) -> str:
    parts = "".join(
        f'<li><svg class="key {kind}" viewBox="0 0 10 10" aria-hidden="true">{shape}</svg>'
        f"{text}</li>"
        for shape, kind, text in items
    )
    return f'<ul class="legend">{parts}</ul>'
