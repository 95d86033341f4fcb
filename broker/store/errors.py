"""Redis' own errors, translated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis.exceptions

from broker.errors import RedisUnavailable

# Redis says these while it fails over, is busy or cannot write to its disk: a state that passes. So are OOM, READONLY
# and LOADING, but redis-py makes classes of them and takes the word off the message.
_PASSING_REPLIES = (
    "MASTERDOWN",
    "MISCONF",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
    "BUSY",
)


def is_passing(error: Exception) -> bool:
    """Whether a Redis error says that it cannot serve just now, rather than that the command was wrong."""
    lost = redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | redis.exceptions.WatchError
    if isinstance(error, lost | OSError | TimeoutError):  # WatchError: the connection that arq watched by broke
        return True
    return isinstance(error, redis.exceptions.OutOfMemoryError | redis.exceptions.ReadOnlyError) or (
        isinstance(error, redis.exceptions.ResponseError) and str(error).startswith(_PASSING_REPLIES)
    )


@contextmanager
def from_redis() -> Iterator[None]:
    """Translate Redis' errors, at the border."""
    try:
        yield
    except Exception as error:
        if not is_passing(error):
            raise
        raise RedisUnavailable(
            "Redis cannot be reached or cannot serve. Nothing is lost; try again shortly."
        ) from error
