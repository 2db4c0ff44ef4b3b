"""Why targets fail: in one word for the metric `error`, and in one line for the log."""

from __future__ import annotations

import errno
import logging
import math
import re

import attrs
import trio

from ._arguments import quote
from ._exceptions import causes, leaf_exceptions
from ._log import logger
from ._probe_errors import Inconclusive, ReasonedError

TIMEOUT = "timeout"
"""The key of runs that took too long."""

# Keys of a target; what fails in yet another way is counted by `_OTHER`.
_MAX_KEYS = 30
_OTHER = "other"

# Characters of a key, and of each part of a line.
_MAX_KEY = 100
_MAX_PART = 200

# Keys and causes of a failing target that are logged, before only new keys are.
_MAX_SAID = 10

# Lines that a prober logs in so many seconds.
_MAX_LINES = 20
_WINDOW = 10.0

# How often an error may hide another. No more: an error may even hide itself.
_MAX_HIDDEN = 3

# What this machine, not the target, has run out of: file descriptors, buffers, memory.
# Errors of the network are not here. They are mostly the target's, or routing's; and where
# a name has an IPv6 address that this machine has no use for, such as ::1 in a container,
# they come beside what the target said.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_NOT_IN_KEYS = re.compile(r"[^\w.-]")


def cause_of(error: BaseException) -> BaseException:
    """Return the first exception of a group, and of an OSError what it hides.

    A shortage of this machine's comes before what was raised from it.

    When all addresses of a host refuse a connection, Trio raises an OSError that says only
    that, from those of the addresses. Which of these is returned does not depend on their
    order: a class of its own (ConnectionRefusedError) comes before a mere errno
    (ENETUNREACH, when this machine has no IPv6), then the alphabet decides.
    """
    cause = next(leaf_exceptions(error))
    if isinstance(cause, Inconclusive):
        return cause
    if shortage := next(filter(_is_shortage, causes(cause)), None):
        return shortage
    for _ in range(_MAX_HIDDEN):
        if type(cause) is not OSError or cause.errno is not None or not cause.__cause__:
            break
        hidden = [e for e in leaf_exceptions(cause.__cause__) if isinstance(e, OSError)]
        if not hidden:
            break
        cause = min(hidden, key=lambda e: (type(e) is OSError, _name(e)))
    return cause


def _is_shortage(error: BaseException) -> bool:
    # Not a subclass: in a gaierror, the same numbers say something else.
    return type(error) is OSError and error.errno in _SHORTAGES


def is_inconclusive(cause: BaseException) -> bool:
    """Return whether a run that ended by this says nothing about its target."""
    return isinstance(cause, Inconclusive) or _is_shortage(cause)


def _name(error: BaseException) -> str:
    """Return what kind of error it is: its class, or OSError-ENETUNREACH and the like."""
    name = error.reason if isinstance(error, ReasonedError) else type(error).__name__
    if type(error) is OSError and isinstance(error.errno, int):
        symbol = errno.errorcode.get(error.errno)
        name = f"{name}-{symbol}" if symbol else name
    return _NOT_IN_KEYS.sub("_", name)[:_MAX_KEY]


def describe(error: BaseException) -> str:
    """Return an exception's reason, or its repr. Its class may be the user's own."""
    if isinstance(error, ReasonedError):
        return error.reason
    try:
        return repr(error)
    except Exception:  # noqa: BLE001  # whatever its repr does, it is not what went wrong
        return quote(error)


@attrs.define(eq=False)
class Health:
    """Whether a target fails, and what has been said about it."""

    failures: int = 0
    """Since the newest success."""
    inconclusive: int = 0
    """Runs that were inconclusive for a reason of their own, since the newest success."""
    _keys: set[str] = attrs.field(factory=lambda: {TIMEOUT})
    """The keys by which its errors are counted."""
    _said: set[int] = attrs.field(factory=set[int])
    """Hashes of the keys and lines that were logged since the newest success."""

    def key(self, cause: BaseException) -> str:
        """Return the key by which such an error is counted."""
        name = _name(cause)
        if name not in self._keys:
            if len(self._keys) == _MAX_KEYS:
                return _OTHER
            self._keys.add(name)
        return name

    def is_news(self, key: str, line: str) -> bool:
        """Return whether to log a line; the next one like it is not news."""
        hashes = {hash(key), hash(line)}
        news = hashes - self._said
        if hash(key) not in news and len(self._said) >= _MAX_SAID:
            return False
        self._said |= news
        return bool(news)

    def recover(self) -> str:
        """Start afresh upon a success; return what came before it, "" if nothing did."""
        counts = {"failure": self.failures, "inconclusive run": self.inconclusive}
        self.failures = self.inconclusive = 0
        self._said.clear()
        return " and ".join(
            f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items() if count
        )


@attrs.define(eq=False)
class HealthLog:
    """Logs when targets begin to fail, why, and when they recover; a few lines a time."""

    prober: str = ""
    """The prober's name."""
    _since: float = -math.inf
    """The time of the first of `_lines`."""
    _lines: int = 0
    _held_back: int = 0

    def failed(
        self,
        target: str,
        health: Health,
        key: str,
        cause: str,
        error: BaseException | None = None,
    ) -> None:
        """Count a failure, and log it if it is news."""
        health.failures += 1
        self._say_news(target, health, key, f"probe failed: {cause}", error)

    def inconclusive(
        self, target: str, health: Health, key: str, cause: str, error: BaseException
    ) -> None:
        """Count a run that was inconclusive, and log it if it is news."""
        health.inconclusive += 1
        self._say_news(target, health, key, f"probe inconclusive: {cause}", error)

    def succeeded(self, target: str, health: Health) -> None:
        """Log that the target is healthy again, if it was not."""
        if before := health.recover():
            self._say(logging.INFO, target, f"recovered after {before}")

    def tell_held_back(self, *, at_once: bool = False) -> None:
        """Log how many lines were held back, when it is time to or `at_once`."""
        if self._held_back and (at_once or self._is_over()):
            subject = f"prober {self.prober}" if self.prober else "prober"
            _log(logging.WARNING, subject, f"{self._held_back} more lines were held back")
            self._held_back = 0

    def _say_news(
        self, target: str, health: Health, key: str, line: str, error: BaseException | None
    ) -> None:
        if health.is_news(key, line):
            self._say(logging.WARNING, target, line, error)

    def _say(
        self, level: int, target: str, what: str, error: BaseException | None = None
    ) -> None:
        if not logger.isEnabledFor(level):
            return
        self.tell_held_back()
        if self._is_over():
            self._since = trio.current_time()
            self._lines = 0
        if self._lines == _MAX_LINES:
            self._held_back += 1
            return
        self._lines += 1
        _log(level, target, what)
        if error is not None:
            _log(logging.DEBUG, target, "traceback", error)

    def _is_over(self) -> bool:
        return trio.current_time() - self._since >= _WINDOW


def _log(level: int, subject: str, what: str, error: BaseException | None = None) -> None:
    logger.log(level, "%s: %s", _in_line(subject), _in_line(what), exc_info=error)


def _in_line(text: str) -> str:
    """Return `text` shortened, and without what would break the line."""
    if len(text) > _MAX_PART:
        text = f"{text[: _MAX_PART - 1]}…"
    return "".join(char if char.isprintable() else " " for char in text)
