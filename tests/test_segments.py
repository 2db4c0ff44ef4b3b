"""The dict whose snapshots take no time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_statskeeper import _segments
from trio_statskeeper._segments import SegmentedDict


class Series(frozenset):
    """A series whose hash can be chosen."""

    def __hash__(self):
        (label,) = self
        return label[0]


hashes = st.integers(-(2**61), 2**61) | st.integers(-3, 3)
keys = st.builds(lambda *label: Series([label]), hashes, st.sampled_from("ab"))
changes = st.lists(st.tuples(keys, st.integers() | st.none()), max_size=60)


@given(changes, st.integers(0, 60), st.integers(1, 4))
def test_it_is_a_dict_whose_snapshots_do_not_change(changes, snapshot_at, size):
    _segments._SEGMENT_SIZE = size
    segmented, model = SegmentedDict(), {}
    snapshot, then = segmented.snapshot(), {}
    for number, (series, value) in enumerate(changes):
        if number == snapshot_at:
            snapshot, then = segmented.snapshot(), model.copy()
        if value is not None:
            segmented.set(series, value)
            model[series] = value
        elif series in model:
            assert segmented.remove(series) == model.pop(series)
        assert segmented.get(series) == model.get(series)
        assert len(segmented) == len(model)
    listed = [item for segment in snapshot for item in segment.items()]
    assert len(listed) == len(then)
    assert dict(listed) == then
    now = [item for items in segmented.items() for item in items]
    assert len(now) == len(model)
    assert dict(now) == model


def test_segments_stay_small_however_many_keys():
    segmented = SegmentedDict()
    for number in range(20_000):
        segmented.set(frozenset({("dst", str(number))}), number)
    sizes = [len(segment) for segment in segmented.snapshot()]
    assert sum(sizes) == 20_000
    assert max(sizes) <= 250
    assert sum(len(segmented.segment(n)) for n in range(len(sizes))) == 20_000


def test_keys_of_one_hash_stay_in_one_segment():
    class Key:
        def __hash__(self) -> int:
            return 7

    keys = [Key() for _ in range(600)]
    segmented = SegmentedDict()
    for number, key in enumerate(keys):
        segmented.set(key, number)
    assert [segmented.get(key) for key in keys] == [*range(600)]
