"""An output: OpenTelemetry's protocol (OTLP) over HTTP, to any collector.

`_exporter` has the options, `_delivery` says which exports are sent when, `_request` builds
requests from exports, and `_http` sends requests.
"""

from __future__ import annotations

from ._exporter import OTLPExporter

__all__ = ["OTLPExporter"]
