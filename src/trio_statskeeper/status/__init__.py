"""An output: a page for browsers, with the state of each target and its recent history.

Theory of operation
===================

The totals of an export are compared with those before: the *interval* between them is what
the page shows. A target's intervals are kept in a ring of compact arrays (`_history`), in
which each pass of its keeper has a slot. All else that is known of a target is a
`TargetState`, which never changes: the next export makes a new one.

At the end of a pass, its keeper's *cut* is replaced, in constant time: a snapshot of the
states. A page is made from the cuts at one instant, in steps of less than a millisecond,
while further exports arrive.

`_page` has the output, `_board` the targets, `_intervals` and `_state` what is computed
from exports, `_selection` which targets a page shows, `_overview` and `_detail` the pages,
`_plots` and `_markup` their pieces, and `_document` their style and headers.
"""

from __future__ import annotations

from trio_statskeeper._http._basic_auth import hash_password

from ._page import StatusPage

__all__ = ["StatusPage", "hash_password"]
