"""Basic authentication, with hashes of passwords.

https://www.rfc-editor.org/rfc/rfc7617
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from functools import partial

import attrs
import trio

from trio_statskeeper._arguments import quote, validate_items

# scrypt's costs: 16 MiB, and some 50 milliseconds.
_LOG2_N, _R, _P = 14, 8, 1

# Bytes that scrypt may take, and how often in a row.
_MAX_MEMORY = 2**26
_MAX_P = 16

# Bytes; shorter ones are not safe, and hardly a hash of another program.
_MIN_SALT = 8
_MIN_DIGEST = 16

# How many wrong passwords are remembered. A scraper with an old one tries again and again.
_MAX_REJECTED = 100

# How many passwords that were not checked yet are remembered: some that were turned away in
# the last minutes, so that they are checked when they come again.
_MAX_ASKED = 5_000

# The format of passlib and others: https://github.com/P-H-C/phc-string-format
_HASH = re.compile(
    r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,4}),p=(\d{1,4})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)",
    re.ASCII,
)


def hash_password(password: str) -> str:
    """Return a salted hash of a password, for `PrometheusExporter(users=...)`.

    The hash is by scrypt, and says so: `$scrypt$ln=14,r=8,p=1$SALT$HASH`.

    This blocks for some 50 milliseconds: hash passwords before the program runs, not in it.

    Args:
      password: any text.

    Raises:
      TypeError: if `password` is not a string.
    """
    if not isinstance(password, str):
        raise TypeError(f"password must be a string, got {type(password).__name__}")
    scrypt = _Scrypt(_LOG2_N, _R, _P, secrets.token_bytes(16))
    salt, digest = (
        base64.b64encode(part).decode().rstrip("=")
        for part in (scrypt.salt, scrypt.digest(password.encode(), 32))
    )
    return f"$scrypt$ln={_LOG2_N},r={_R},p={_P}${salt}${digest}"


def validate_users(users: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return a read-only copy of users and hashes of their passwords.

    No error shows a value, which may be a password by mistake.

    Raises:
      TypeError: if `users` is not a mapping of strings to strings.
      ValueError: if it is empty, or a name or hash is not valid.
    """
    if users is None:
        return None
    if not isinstance(users, Mapping):
        raise TypeError(f"users must be a mapping or None, got {type(users).__name__}")
    if not users:
        raise ValueError("users must not be empty; None disables authentication")
    validated = validate_items("user", users, _validate_hash)
    for name in validated:
        if ":" in name or not name.isprintable():
            raise ValueError(f"user {quote(name)}: the name must be printable, without ':'")
    return validated


def _validate_hash(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the hash must be a string, got {type(text).__name__}")
    _Hash.parse(text)
    return text


@attrs.frozen
class _Scrypt:
    """A hash function: https://www.rfc-editor.org/rfc/rfc7914."""

    log2_n: int
    r: int
    p: int
    salt: bytes

    @property
    def cost(self) -> int:
        return self.r * self.p << self.log2_n

    def digest(self, password: bytes, size: int) -> bytes:
        return hashlib.scrypt(
            password,
            salt=self.salt,
            n=1 << self.log2_n,
            r=self.r,
            p=self.p,
            maxmem=2 * _MAX_MEMORY,
            dklen=size,
        )


@attrs.frozen
class _Hash:
    """The hash of a password."""

    scrypt: _Scrypt
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> _Hash:
        """Parse what `hash_password` returns.

        Raises:
          ValueError: if it is something else, or takes too much memory or time.
        """
        match = _HASH.fullmatch(text)
        if match is None:
            raise ValueError("its password must be given as a hash by hash_password()")
        log2_n, r, p = map(int, match.groups()[:3])
        if not (
            1 <= log2_n < 16 * r and 1 <= p <= _MAX_P and 128 * r << log2_n <= _MAX_MEMORY
        ):
            raise ValueError(
                f"scrypt must take at most 64 MiB (128 * r * 2**ln bytes), ln must be >= 1 "
                f"and < 16 * r, and p must be from 1 to {_MAX_P}, "
                f"got ln={log2_n},r={r},p={p}"
            )
        try:
            salt, digest = (
                base64.b64decode(part + "=" * (-len(part) % 4))
                for part in match.groups()[3:]
            )
        except ValueError as error:
            raise ValueError(f"its hash is damaged: {error}") from None
        if len(salt) < _MIN_SALT or len(digest) < _MIN_DIGEST:
            raise ValueError(
                f"its hash must have >= {_MIN_SALT} bytes of salt and >= {_MIN_DIGEST} "
                f"bytes of digest, got {len(salt)} and {len(digest)}"
            )
        return cls(_Scrypt(log2_n, r, p, salt), digest)

    def matches(self, password: bytes) -> bool:
        digest = self.scrypt.digest(password, len(self.digest))
        # In constant time, although scrypt leaves an attacker nothing to learn from it.
        return hmac.compare_digest(digest, self.digest)


def _parse_users(users: Mapping[str, str]) -> dict[bytes, _Hash]:
    return {name.encode(): _Hash.parse(text) for name, text in users.items()}


class TooManyChecks(Exception):
    """So many passwords wait to be checked that one more is not."""


@attrs.define(eq=False)
class BasicAuth:
    """Decides by the Authorization header whether a request is allowed.

    A password is checked in a thread, one at a time. The result is remembered, as a digest
    with a key of this process. An unknown user takes as long as the costliest hash.

    Someone who tries many passwords must not keep out a client that has the right one. Only
    half of the checks that may wait are for new passwords. The others are for those that
    were there before: a client repeats its own, but to repeat a wrong one is of no use.

    Args:
      users: names, and hashes of their passwords.
      max_checks: how many requests wait for a check at a time, >= 2.
    """

    _users: Mapping[bytes, _Hash] = attrs.field(converter=_parse_users)
    _max_checks: int
    _key: bytes = attrs.field(init=False, factory=partial(secrets.token_bytes, 32))
    # There is one password for each user.
    _accepted: set[bytes] = attrs.field(init=False, factory=set[bytes])
    # The oldest come first.
    _rejected: dict[bytes, None] = attrs.field(init=False, factory=dict[bytes, None])
    # Digests that have no result yet; the oldest come first.
    _asked: dict[bytes, None] = attrs.field(init=False, factory=dict[bytes, None])
    _checks: int = attrs.field(init=False, default=0)
    _checking: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    # A check that was cancelled still runs.
    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )

    async def allows(self, authorization: str) -> bool:
        """Return whether the header has the name and the password of a user.

        Raises:
          TooManyChecks: if too many requests wait for a check.
        """
        credentials = _credentials(authorization)
        if credentials is None:
            return False  # noqa: ASYNC910  # the answer has a checkpoint
        digest = hashlib.blake2b(credentials, key=self._key).digest()
        if digest not in self._accepted and digest not in self._rejected:
            self._begin_check(digest)
            try:
                async with self._checking:
                    await self._check(credentials, digest)
            finally:
                self._checks -= 1
        return digest in self._accepted  # noqa: ASYNC910  # so here

    def _begin_check(self, digest: bytes) -> None:
        is_new = digest not in self._asked
        if is_new:
            if len(self._asked) >= _MAX_ASKED:
                del self._asked[next(iter(self._asked))]
            self._asked[digest] = None
        if self._checks >= (self._max_checks // 2 if is_new else self._max_checks):
            raise TooManyChecks
        self._checks += 1

    async def _check(self, credentials: bytes, digest: bytes) -> None:
        if digest in self._accepted or digest in self._rejected:
            return  # noqa: ASYNC910  # another request was faster; getting the lock had one
        name, _, password = credentials.partition(b":")
        user = self._users.get(name)
        costliest = max(self._users.values(), key=lambda hash_: hash_.scrypt.cost)
        matches = await trio.to_thread.run_sync(
            (user or costliest).matches,
            password,
            thread_name="checking a password",
            abandon_on_cancel=True,
            limiter=self._limiter,
        )
        self._asked.pop(digest, None)
        if matches and user is not None:
            self._accepted.add(digest)
            return
        if len(self._rejected) >= _MAX_REJECTED:
            del self._rejected[next(iter(self._rejected))]
        self._rejected[digest] = None


def _credentials(authorization: str) -> bytes | None:
    """Return user and password, with a colon between them."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except ValueError:
        return None
