"""An output: the newest totals of all targets, for Prometheus to scrape.

Theory of operation
===================

Rendering all targets during a scrape would hold up the loop, and the probes with it. A
thread would not help, because it shares the GIL. Instead, the samples of a target are
rendered when its export arrives: a *block* of bytes for each metric, in the format that was
asked for last. When the last export of a pass is rendered, the pass becomes the *cut* that
scrapes show. A scrape takes the cut of each keeper, in constant time, and joins the blocks
family by family. No step of either takes more than about a millisecond.

Rendering is most of the work. In a busy loop, where steps are rare, exports arrive faster
than short steps can render them. Exports are therefore received first, as many as wait. The
newest export of each target waits to be rendered; scrapes show the last cut meanwhile, or
what was rendered, if passes begin to overlap.

A collector, for a `prometheus_client` registry, makes its samples from the cuts each time,
in the thread that calls it.

`_exporter` has the exporter, `_page` what there is to scrape, and `_cut` what is shown of
each keeper. `_exposition` says what `_text_format` and `_protobuf_format` have in common;
`_samples` has the samples of a value, and `_client_model` the messages of protobuf.
`trio_statskeeper._http` answers requests.
"""

from __future__ import annotations

from trio_statskeeper._http._basic_auth import hash_password

from ._exporter import PrometheusExporter

__all__ = ["PrometheusExporter", "hash_password"]
