"""What a keeper reports about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs

from ._plain_values import PlainValue, read_only


def _counts(counts: Mapping[str, int]) -> Mapping[str, int]:
    return read_only(counts)


@final
@attrs.frozen
class KeeperStatistics(PlainValue):
    """What a `StatsKeeper` has done since it was made."""

    results_accepted: int
    """Results that were added to the totals."""

    results_rejected: Mapping[str, int] = attrs.field(converter=_counts, hash=False)
    """Results that could not be added, by reason:

    - `error`: `target` or `metrics()` raised, or does not conform to `ProbeResult`
    - `type`: an object that is not a value of a metric
    - `kind`: a metric changed the kind of its values
    - `bounds`: a distribution changed its bounds
    - `negative`: a counter would decrease
    - `not-finite`: a number was NaN or infinite
    - `overflow`: the total would exceed the largest float
    - `map-name`: a map changed its name, or has the name of a label
    - `map-keys`: a map would exceed `max_map_keys`
    - `metrics`: the target would exceed `max_metrics`
    - `unlisted`: there are `max_unlisted` targets that were never listed
    """

    passes: int
    """Passes that were completed, including a last pass."""

    exports_sent: int
    """EventMetrics that were sent."""

    ticks_missed: int
    """Ticks that were skipped because the previous pass took too long. Each is counted when
    it is missed, so the number rises while an output is stuck."""

    duplicate_targets: int
    """Targets with the key of an earlier target, summed over all calls of `targets`."""

    targets_expired: int
    """Targets whose totals were dropped after they were not listed for `expire_after`."""

    targets_tracked: int
    """Targets with totals."""

    clock_behind: float
    """Seconds that `clock` was behind the newest timestamp when it was last read, or 0.0.
    It is mostly > 0 because the clock was set back."""
