"""What all pages have in common: the head, the style, and the headers of HTTP."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from trio_statskeeper._http._connection import Header

from ._markup import escaped
from ._state import STATES

PATH = "/status"
JSON_PATH = "/status.json"

_LINES = files("trio_statskeeper.status").joinpath("status.css").read_text("utf-8")

_STYLE = "".join(line.strip() for line in _LINES.splitlines())

_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()

# No script is run, and no style applied but the page's own, whatever a label has.
# https://www.w3.org/TR/CSP3/
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)

_SAFE: tuple[Header, ...] = (
    (b"Vary", b"Accept-Encoding"),
    (b"Cache-Control", b"no-store"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Content-Security-Policy", _POLICY.encode()),
)

HTML: tuple[Header, ...] = ((b"Content-Type", b"text/html; charset=utf-8"), *_SAFE)
JSON: tuple[Header, ...] = ((b"Content-Type", b"application/json"), *_SAFE)

# Each state has a shape of its own.
_SHAPES = {
    "up": '<circle cx="8" cy="8" r="7"/><path class="mark" d="M4.5 8.3l2.4 2.4 4.6-5"/>',
    "degraded": '<path d="M8 .8 15.6 14.6H.4z"/>'
    '<path class="mark" d="M8 5.5v4.2M8 12v.6"/>',
    "down": '<path d="M4.7 0h6.6L16 4.7v6.6L11.3 16H4.7L0 11.3V4.7z"/>'
    '<path class="mark" d="M5 5l6 6M11 5l-6 6"/>',
    "inconclusive": '<path d="M8 0l8 8-8 8-8-8z"/>'
    '<path class="mark" d="M6 6.4c0-2.6 4-2.6 4-.2C10 8 8 7.6 8 9.4M8 11.6v.5"/>',
    "stale": '<path class="hollow" d="M8 1.5a6.5 6.5 0 1 0 .1 0M8 4.5V8l2.5 2"/>',
    "idle": '<circle class="hollow" cx="8" cy="8" r="6" stroke-dasharray="2.5 2.2"/>',
}

_ICONS = "".join(
    f'<symbol id="{state}" viewBox="0 0 16 16">{shape}</symbol>'
    for state, shape in _SHAPES.items()
)

_HEAD = (
    '<meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f"<style>{_STYLE}</style>"
)

assert _SHAPES.keys() == {*STATES}


def begin(title: str) -> str:
    """Return the beginning of a page, up to what its body shows."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{_HEAD}<title>{escaped(title)}</title>'
        f'</head><body><svg class="symbols" aria-hidden="true">{_ICONS}</svg>'
    )


END = b"</body></html>\n"


def badge(state: str, text: str) -> str:
    """Return the icon of a state, and a text."""
    return (
        f'<span class="badge {state}"><svg class="icon" aria-hidden="true">'
        f'<use href="#{state}"/></svg>{text}</span>'
    )
