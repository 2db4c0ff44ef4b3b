"""Pieces of HTML: texts, numbers and times."""

from __future__ import annotations

import html
from datetime import UTC, datetime

from trio_statskeeper._text import escape_char

from ._history import NONE

# Characters of a name that are shown where it is one of many.
SHORT = 80

# Not printable, but part of words in Persian and many scripts of India, and of emoji.
_JOINERS = "\u200c\u200d"


def shortened(text: str, length: int) -> str:
    """Return `text` without its middle if it is too long: a URL's ends matter most."""
    end = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def escaped(text: str, length: int = SHORT) -> str:
    """Return a text as HTML: shortened, and with control characters escaped as in Python.

    These include those that change the direction of what follows, and lone surrogates,
    which UTF-8 lacks.
    """
    text = shortened(text, length)
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() or char in _JOINERS else escape_char(char)
            for char in text
        )
    return html.escape(text)


def isolated(text: str, length: int = SHORT) -> str:
    """Return a text as HTML, whose direction does not change that of what surrounds it."""
    return f"<bdi>{escaped(text, length)}</bdi>"


def seconds(number: float) -> str:
    """Return a latency with three digits."""
    if number == NONE:
        return "–"
    factor, unit = 1e6, "µs"
    if number >= 1:
        factor, unit = 1, "s"
    elif number >= 0.001:
        factor, unit = 1e3, "ms"
    digits = f"{number * factor:.3g}"
    return (
        f"{float(digits):.0f} {unit}"
        if number < 1e6 and "e" in digits
        else f"{digits} {unit}"
    )


def share(number: float) -> str:
    """Return a share of runs in per cent: 0 % and 100 % only if it is exactly that."""
    if number == NONE:
        return "–"
    if 0 < number < 1:
        number = min(max(number, 0.001), 0.999)
    return f"{number * 100:.3g} %"


def duration(number: float) -> str:
    """Return a number of seconds, in the largest unit that fits."""
    number = max(round(number), 0)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if number >= 2 * length:
            return f"{number // length:,} {unit}"
    return f"{number} s"


def utc(timestamp: float) -> str:
    """Return a `time` element for Unix seconds."""
    try:
        at = datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):  # not a time that calendars have
        return escaped(f"{timestamp:.0f}")
    text = f"{at:%Y-%m-%d %H:%M:%S}"
    return f'<time datetime="{text.replace(" ", "T")}Z">{text} UTC</time>'
