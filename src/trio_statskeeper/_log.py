"""The library's logger, which never raises."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any


class _SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that survives its handlers and filters.

    They are the program's own code, and may raise. A log line that can't be written must
    not end the task that logs. As `logging` itself does with most errors of handlers, such
    an exception is printed on standard error, unless `logging.raiseExceptions` is false.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stacklevel", 2)  # the caller, not this function
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:  # noqa: BLE001  # whatever a handler or filter raises
            if logging.raiseExceptions and sys.stderr:
                with suppress(Exception):
                    traceback.print_exc()


logger = _SafeLogger(logging.getLogger("trio_statskeeper"), None)
