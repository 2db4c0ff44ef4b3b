"""The page of one target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trio_statskeeper._http._body import Blocks

from ._document import END, JSON_PATH, PATH, badge, begin
from ._history import DEGRADED, DOWN, IDLE, MISSING, Window
from ._intervals import ErrorCount
from ._markup import duration, escaped, isolated, seconds, share, utc
from ._overview import (
    NAMES,
    View,
    latency_legend,
    pass_of,
    refresh_link,
    shown_name,
    since,
    success_legend,
)
from ._plots import area, line, strip
from ._selection import Row
from ._state import TargetState

# Of the large plots: pixels of an interval, and of the height.
_STEP = 2
_STRIP_HEIGHT = 100
_LINE_HEIGHT = 240

_ERRORS = (
    b'<section><h2>Errors</h2><table class="plain"><thead><tr><th scope="col">Kind</th>'
    b'<th scope="col" class="number">Now</th>'
    b'<th scope="col" class="number">In total</th></tr></thead><tbody>'
)
_LABELS = (
    b'<section><h2>Labels</h2><table class="plain"><thead><tr>'
    b'<th scope="col">Name</th><th scope="col">Value</th></tr></thead><tbody>'
)

# Characters of a text that are escaped in a step.
_PIECE = 1000


def detail(row: Row, length: int, view: View, now: float) -> Blocks:
    """Yield the page of a target, in short steps.

    Args:
      row: the target.
      length: how many intervals are kept of it.
      view: how the page was asked for.
      now: seconds of Trio's clock.
    """
    target, cut = row.target, row.cut
    name = shown_name(target)
    yield [begin(f"{NAMES[row.state].lower()}: {name}").encode()]
    parameters = {"filter": "", "target": target.target_id}
    yield [
        (
            f'<header><nav><a href="{view.address(filter="")}">← All targets</a></nav>'
            f"<h1>{isolated(name)}</h1>"
            f'<p class="now">{badge(row.state, NAMES[row.state])} '
            f"for {duration(cut.time(now) - since(row))}, since {utc(since(row))}</p>"
            f"{refresh_link(view, **parameters)}</header><main>"
        ).encode()
    ]
    window = target.history.window(target.number, cut.number)
    span = length * cut.export_interval
    resets = [number - cut.number + length - 1 for number in target.resets]
    yield [_facts(target).encode()]
    yield [_success(window, resets, span).encode()]
    yield [_latency(window, resets, span).encode()]
    yield from _errors(target.errors)
    yield from _labels(target.labels)
    address = view.address(JSON_PATH, refresh="", **parameters)
    yield [
        f'{pass_of(cut, now)}</main><footer><a href="{address}">JSON</a></footer>'.encode(),
        END,
    ]


def missing() -> Blocks:
    """Yield the page for a target that is not known."""
    yield [
        begin("No such target").encode(),
        (
            "<header><h1>No such target</h1></header><main><p>It may have been dropped, "
            "because it was not exported for ten export intervals. "
            f'<a href="{PATH}">All targets</a></p></main>'
        ).encode(),
        END,
    ]


def _facts(target: TargetState) -> str:
    interval, totals = target.interval, target.totals
    facts = {
        "Success now": share(interval.point.success),
        "p50 now": seconds(interval.point.p50),
        "p99 now": seconds(interval.point.p99),
        "Runs now": f"{interval.total:,}",
        "Runs in total": f"{totals.total:,}",
        "Failed in total": f"{totals.total - totals.success:,}",
    }
    if totals.inconclusive:
        facts["Inconclusive in total"] = f"{totals.inconclusive:,}"
    items = "".join(
        f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _success(window: Window, resets: Iterable[int], span: float) -> str:
    width = len(window.outcomes) * _STEP
    outcomes = window.outcomes
    runs = width // _STEP - outcomes.count(MISSING) - outcomes.count(IDLE)
    bad = outcomes.count(DEGRADED) + outcomes.count(DOWN)
    label = f"Failures in {bad} of {runs} intervals with runs"
    bars = strip(outcomes, _STEP, _STRIP_HEIGHT)
    return (
        "<section><h2>Success</h2>"
        f'<div class="plot"><svg class="strip" viewBox="0 0 {width} {_STRIP_HEIGHT}" '
        f'preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{bars}{_reset_lines(resets, _STRIP_HEIGHT)}"
        f"</svg>{_times(span)}</div>{success_legend()}</section>"
    )


def _latency(window: Window, resets: Iterable[int], span: float) -> str:
    top = max(window.p99)
    if top <= 0:
        return ""
    width = len(window.p99) * _STEP
    grid = "".join(f"M0 {y}h{width}" for y in (1, _LINE_HEIGHT // 2, _LINE_HEIGHT - 1))
    medians = seconds(max(window.p50))
    label = f"Latency: the p99 was up to {seconds(top)}, the p50 up to {medians}"
    return (
        '<section><h2>Latency</h2><div class="plot scaled">'
        f"<ul><li>{seconds(top)}</li><li>{seconds(top / 2)}</li><li>0</li></ul>"
        f'<svg class="lines" viewBox="0 0 {width} {_LINE_HEIGHT}" '
        f'preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path class="grid" d="{grid}"/>'
        f'<path class="p99" d="{area(window.p99, _STEP, _LINE_HEIGHT, top)}"/>'
        f'<path class="p50" d="{line(window.p50, _STEP, _LINE_HEIGHT, top)}"/>'
        f"{_reset_lines(resets, _LINE_HEIGHT)}</svg>{_times(span)}</div>"
        f"{latency_legend()}</section>"
    )


def _reset_lines(resets: Iterable[int], height: int) -> str:
    path = "".join(f"M{index * _STEP} 0v{height}" for index in resets if index >= 0)
    return f'<path class="reset" d="{path}"/>' if path else ""


def _times(span: float) -> str:
    return (
        f'<ul class="times"><li>{duration(span)} ago</li>'
        f"<li>{duration(span / 2)} ago</li><li>now</li></ul>"
    )


def _errors(errors: Sequence[ErrorCount]) -> Blocks:
    if not errors:
        return
    yield [_ERRORS]
    for error in errors:
        yield [b'<tr><th scope="row">']
        yield from _whole(error.kind)
        yield [
            (
                f'</th><td class="number">{error.in_interval:,}</td>'
                f'<td class="number">{error.in_total:,}</td></tr>'
            ).encode()
        ]
    yield [b"</tbody></table></section>"]


def _labels(labels: Mapping[str, str]) -> Blocks:
    yield [_LABELS]
    for name, text in labels.items():
        yield [f'<tr><th scope="row">{isolated(name)}</th><td>'.encode()]
        yield from _whole(text)
        yield [b"</td></tr>"]
    yield [b"</tbody></table></section>"]


def _whole(text: str) -> Blocks:
    """Yield a text of any length as HTML."""
    yield [b"<bdi>"]
    for begins in range(0, len(text), _PIECE):
        yield [escaped(text[begins : begins + _PIECE], _PIECE).encode()]
    yield [b"</bdi>"]
