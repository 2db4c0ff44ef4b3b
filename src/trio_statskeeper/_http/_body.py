"""The body of an answer, as text or compressed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

# The text of a scrape: each iterable of blocks is prepared in a short step.
Blocks: TypeAlias = Iterator[Iterable[bytes]]

# Bytes that are compressed at once, in about a tenth of a millisecond.
_COMPRESSED_AT_ONCE = 2**15

# The fastest level makes a page less than a tenth as long; the next ones take up to four
# times as long to save another sixth.
_LEVEL = 1

# gzip's format: the largest window, and 16.
_GZIP = 16 + zlib.MAX_WBITS


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
