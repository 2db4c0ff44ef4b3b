r"""The alphabet of cloudprober's lines: escaped texts, and numbers.

Separators, unprintable characters and backslashes within a name, key or string are escaped
as in Python's literals (`\x20`, `\u2028`, `\\`). Ordinary text stays as it is. So a reader
may split a line at spaces, commas and colons without knowing about escapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache, lru_cache

from ._arguments import quote

_ESCAPE = re.compile(
    r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))"
)
_NAN = re.compile(r"[+-]?nan", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:[0-9]++((?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+)|(Inf))")


def escape(text: str, separators: str) -> str:
    """Escape a name or key, which must contain neither `separators` nor white space."""
    if _search_unusual(separators)(text) is None:
        return text
    return _escape(text, " " + separators)


@lru_cache(maxsize=1000)
def escape_name(name: str, separators: str) -> str:
    """Escape the name of a label, metric or map, which many targets share."""
    return escape(name, separators)


@cache
def _search_unusual(separators: str) -> Callable[[str], object]:
    """Return a function that searches for characters that may need to be escaped.

    Most texts have none. Looking at each character takes longer than the rest of a line.
    """
    return re.compile(rf"[{re.escape(separators)}\\]|[^!-~]").search


def _escape(text: str, special: str) -> str:
    return "".join(
        char
        if char.isprintable() and char not in special and char != "\\"
        else escape_char(char)
        for char in text
    )


def escape_char(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return r"\\"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def unescape(text: str) -> str:
    """Undo `escape`. A backslash that does not begin an escape stays as it is."""
    return _ESCAPE.sub(
        lambda match: match[1] or chr(int(match[2] or match[3] or match[4], 16)), text
    )


def format_string(text: str) -> str:
    """Return the text of a string: between quotes, escaped."""
    return f'"{_escape(text, chr(34))}"'


def format_number(number: float) -> str:
    """Return the text of a number: floats in full, without an exponent."""
    if isinstance(number, int):
        return str(number)
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    return _format_float(number)


def format_short(number: float) -> str:
    """Return the text of a finite float; an integral float without its fraction.

    cloudprober writes numbers that can only be floats like this.
    """
    return _format_float(number).removesuffix(".0")


def _format_float(number: float) -> str:
    """Return the shortest digits that read back as this float, without an exponent."""
    digits = repr(number)
    if "e" not in digits:
        return digits
    digits = format(Decimal(digits), "f")
    return digits if "." in digits else f"{digits}.0"


def parse_number(text: str) -> int | float:
    """Read an int or float back; infinity only where it is spelled out.

    Raises:
      ValueError: if `text` is not a number, or a number beyond the largest float.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        if _NAN.fullmatch(text):
            raise ValueError(f"a value can't be NaN: {quote(text)}")
        raise ValueError(f"not a number, string, map or distribution: {quote(text)}")
    number = float(text)
    if math.isinf(number) and not match[2]:
        raise ValueError(f"beyond the largest float: {quote(text)}")
    return int(text) if match[1] == "" else number


def parse_integer(text: str) -> int:
    """Read an integer back.

    Raises:
      ValueError: if `text` is not an integer.
    """
    number = parse_number(text)
    if isinstance(number, float):
        raise ValueError(f"not an integer: {quote(text)}")  # noqa: TRY004
    return number
