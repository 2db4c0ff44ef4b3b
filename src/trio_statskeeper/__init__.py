"""The stats keeper of a Trio program: results of probes in, consistent totals out."""

from typing import TYPE_CHECKING

from ._distribution import Distribution, exponential_bounds
from ._endpoint import Endpoint
from ._event_metrics import EventMetrics
from ._exponential import ExponentialDistribution
from ._exponential_option import Exponential
from ._fan_out import Output, fan_out
from ._keeper import StatsKeeper
from ._keeper_statistics import KeeperStatistics
from ._labels import Label
from ._probe_errors import Inconclusive, ProbeFailed
from ._prober import Prober, ProberStatistics
from ._results import ProbeResult, Reason, Result
from ._runs import Probe
from ._values import Gauge, Map, Value, parse_value
from ._wiring import open_keeper, open_outputs

__all__ = [
    "Distribution",
    "Endpoint",
    "EventMetrics",
    "Exponential",
    "ExponentialDistribution",
    "Gauge",
    "Inconclusive",
    "KeeperStatistics",
    "Label",
    "Map",
    "Output",
    "Probe",
    "ProbeFailed",
    "ProbeResult",
    "Prober",
    "ProberStatistics",
    "Reason",
    "Result",
    "StatsKeeper",
    "Value",
    "exponential_bounds",
    "fan_out",
    "open_keeper",
    "open_outputs",
    "parse_value",
]

__version__: str

if not TYPE_CHECKING:  # pragma: no branch  # else any name would be valid

    def __getattr__(name: str) -> str:
        # Only on demand: importing importlib.metadata takes about 10 ms.
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415  # see above

            return version("trio-statskeeper")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
