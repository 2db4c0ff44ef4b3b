"""What a keeper exports of a row: its totals with labels."""

from __future__ import annotations

import attrs

from ._arguments import plain_str, quote
from ._endpoint import Endpoint
from ._event_metrics import EventMetrics, unchecked_event_metrics
from ._labels import Label, compile_labels
from ._row import Row
from ._rows import metrics, start_timestamp


@attrs.frozen
class ExportBuilder:
    """Makes the exports of a keeper."""

    ptype: str
    probe: str
    additional_labels: tuple[tuple[str, Label], ...] = attrs.field(converter=compile_labels)
    latency_unit: float
    export_interval: float

    def build(
        self, endpoint: Endpoint, row: Row, timestamp: float, stale: float
    ) -> EventMetrics | None:
        """Return an export, or None if it would have no metrics.

        Args:
          endpoint: the target.
          row: its totals.
          timestamp: the instant of the totals.
          stale: gauges and strings not updated since this running time are omitted.

        Raises:
          TypeError: if the function of a label does not return a string.
        """
        totals = metrics(row, stale)
        if not totals:
            return None
        labels = {"ptype": self.ptype, "probe": self.probe, "dst": endpoint.key}
        for name, label in self.additional_labels:
            value = label if isinstance(label, str) else label(endpoint)
            if not isinstance(value, str):
                raise TypeError(
                    f"the function of label {name!r} must return a string, "
                    f"got {quote(value)} for {endpoint.key!r}"
                )
            labels[name] = plain_str(value)
        return unchecked_event_metrics(
            timestamp,
            start_timestamp(row),
            labels,
            totals,
            self.latency_unit,
            self.export_interval,
        )
