"""Hypothesis strategies: any valid value, and texts that are hard to write in a line."""

from __future__ import annotations

import sys

import attrs
from hypothesis import reject
from hypothesis import strategies as st

from trio_statskeeper import (
    Distribution,
    EventMetrics,
    ExponentialDistribution,
    Gauge,
    Map,
)
from trio_statskeeper._exponential_mapping import bucket_start, highest_index, lowest_index

LARGEST = sys.float_info.max
LARGEST_WHOLE = int(LARGEST)

# What separates, quotes or escapes in a line, what can't be printed, and what reorders it.
_SPECIAL = (
    " \\\"',:;=|@+-.019aefxuU\t\n\r\0\x7f\x85\xa0"
    "\u200f\u202e\u2028\ufeff\ud83d\ude00\U0010ffff"
)
_LOOK_LIKE_ESCAPES = [r"\x20", r"\\x2c", r"\u2028", r"\ud83d", r"\U0001f600", '" a="']

characters = st.characters() | st.sampled_from(_SPECIAL)
texts = st.text(characters, max_size=20) | st.lists(
    characters | st.sampled_from(_LOOK_LIKE_ESCAPES), max_size=5
).map("".join)

counts = st.integers(0, LARGEST_WHOLE) | st.floats(0, LARGEST)
finite = st.integers(-LARGEST_WHOLE, LARGEST_WHOLE) | st.floats(-LARGEST, LARGEST)
gauges = st.builds(Gauge, finite | st.floats(allow_nan=False))
maps = st.builds(Map, texts, st.dictionaries(texts, counts, max_size=5))
bounds = st.lists(st.floats(-LARGEST, LARGEST), min_size=1, max_size=8, unique=True).map(
    sorted
)


_ONE = st.just(1.0)
factors = st.sampled_from([1.0, 1000.0, 1e9, 1 / 60]) | st.floats(1e-12, 1e12)


@st.composite
def distributions(draw, bounds=bounds):
    drawn = draw(bounds)
    buckets = len(drawn) + 1
    whole = st.integers(0, 2**64)
    return Distribution(
        drawn, draw(st.lists(whole, min_size=buckets, max_size=buckets)), draw(finite)
    )


@st.composite
def exponentials(draw, factors=_ONE):
    scale = draw(st.integers(-10, 20))
    whole = st.integers(0, 2**64 - 1)
    factor = draw(factors)
    arguments = {"zero_count": draw(whole), "sum": draw(finite), "factor": factor}
    for sign in "positive", "negative":
        lowest, highest = lowest_index(scale), highest_index(scale)
        offset = draw(st.integers(lowest, highest) | st.integers(-5, 5))
        offset = min(max(lowest, offset), highest)
        room = min(8, highest - offset + 1)
        arguments[f"{sign}_offset"] = offset
        arguments[f"{sign}_counts"] = draw(st.lists(whole, max_size=room))
    try:
        distribution = ExponentialDistribution(scale, **arguments)
    except ValueError:
        reject()  # beyond the largest float, because of the factor
    if not distribution.count or draw(st.booleans()):
        return distribution
    starts = [0.0] if distribution.zero_count else []
    for sign in -1, 1:
        name = "positive" if sign > 0 else "negative"
        counts = getattr(distribution, f"{name}_counts")
        first = getattr(distribution, f"{name}_offset")
        indexes = (first, first + len(counts) - 1) if counts else ()
        starts += [sign * factor * bucket_start(index, scale) for index in indexes]
    if any(start and not 1e-300 < abs(start) <= LARGEST for start in starts):
        return distribution  # rounded, a start may be far from its bucket
    return attrs.evolve(distribution, min=min(starts), max=max(starts))


def values(texts=texts):
    """Return a strategy of everything that a metric can be."""
    return counts | texts | gauges | maps | distributions() | exponentials(factors)


def exports(strings=texts):
    """Return a strategy of exports whose strings are of that strategy."""
    return st.builds(
        EventMetrics,
        # Up to eighteen digits: far beyond any Unix time.
        st.floats(-1e17, 1e17),
        start_timestamp=finite,
        labels=st.dictionaries(texts, texts, max_size=4),
        metrics=st.dictionaries(texts, values(strings), max_size=4),
        latency_unit=st.floats(1e-9, 1),
        export_interval=st.floats(0.001, 1000),
    )


@st.composite
def damaged(draw, originals):
    """Return a strategy of texts that differ in one or a few places from `originals`."""
    text = draw(originals)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 10, len(text))))
        inserted = draw(st.text(characters, max_size=3) | st.just(text[start:end] * 2))
        text = text[:start] + inserted + text[end:]
    return text
