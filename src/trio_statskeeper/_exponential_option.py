"""The option that asks for an exponential distribution."""

from __future__ import annotations

from typing import final

import attrs

from ._arguments import quote

# OpenTelemetry's default. For samples of up to 1,000 times the least, there are 16 buckets
# from one power of two to the next, each 4.4 % wide.
DEFAULT_MAX_BUCKETS = 160

# With more, counting a sample outside of the buckets there are would take too long.
_MAX_MAX_BUCKETS = 1_000


def validate_max_buckets(number: int) -> int:
    """Return the argument `max_buckets`.

    Raises:
      TypeError: if it is not an integer.
      ValueError: if it is not from 2 to 1,000.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"max_buckets must be an integer, got {quote(number)}")
    if not 2 <= number <= _MAX_MAX_BUCKETS:
        raise ValueError(
            f"max_buckets must be from 2 to {_MAX_MAX_BUCKETS:,}, got {quote(number)}"
        )
    return number


@final
@attrs.frozen
class Exponential:
    """Ask for an exponential distribution: `distributions={"latency": Exponential()}`.

    Args:
      max_buckets: how many buckets the positive samples of a target may take, and how many
        the negative ones: from 2 to 1,000. With twice as many, quantiles are twice as
        precise.

    Raises:
      TypeError: if `max_buckets` is not an integer.
      ValueError: if `max_buckets` is not from 2 to 1,000.
    """

    max_buckets: int = attrs.field(
        default=DEFAULT_MAX_BUCKETS, converter=validate_max_buckets
    )
