"""The body of an answer, as text or compressed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

# The text of a scrape: each iterable of blocks is prepared in a short step.
Blocks: TypeAlias = Iterator[Iterable[bytes]]

# Bytes that are compressed at once, in one or two tenths of a millisecond.
_COMPRESSED_AT_ONCE = 2**16

# The fastest level makes a page less than a tenth as long; the next ones take up to four
# times as long to save another sixth.
_LEVEL = 1

# gzip's format: the largest window, and 16.
_GZIP = 16 + zlib.MAX_WBITS

# Characters of an Accept-Encoding header that are looked at.
_MAX_HEADER = 1_000

# https://www.rfc-editor.org/rfc/rfc9110#section-12.4.2
_WEIGHT = re.compile(r"\s*q=(0(\.\d{0,3})?|1(\.0{0,3})?)\s*", re.ASCII)


def prefers_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header asks for gzip.

    https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3
    """
    if len(accept_encoding) > _MAX_HEADER:
        return False
    weights = dict[str, float]()
    for item in accept_encoding.lower().split(","):
        coding, has_weight, weight = item.partition(";")
        match = _WEIGHT.fullmatch(weight if has_weight else "q=1")
        weights[coding.strip()] = float(match[1]) if match else 0.0
    of_gzip = weights.get("gzip", weights.get("*", 0.0))
    return of_gzip > 0 and of_gzip >= weights.get("identity", 0.0)


def joined(blocks: Blocks, size: int) -> Iterator[bytes]:
    """Join blocks into pieces of about `size` bytes.

    Between short steps that complete no piece, it yields an empty one.
    """
    piece = bytearray()
    for some in blocks:
        for block in some:
            piece += block
            if len(piece) >= size:
                yield bytes(piece)
                piece.clear()
        yield b""
    yield bytes(piece)


def compressed(blocks: Blocks) -> Iterator[bytes]:
    """Compress blocks; each piece is prepared in a short step, and may be empty."""
    gzip = zlib.compressobj(_LEVEL, wbits=_GZIP)
    for piece in joined(blocks, _COMPRESSED_AT_ONCE):
        yield gzip.compress(piece)
    yield gzip.flush()
