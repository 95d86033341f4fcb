"""Redis' own errors, translated at the border: by the client that `connect` gives (connect.py), for whatever it does.

What speaks to Redis by other ways (the subscription, arq) translates for itself.
"""

from __future__ import annotations

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


class translating_redis_errors:
    """A context in which Redis' passing errors become RedisUnavailable. (A class: a generator costs twice as much.)"""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception):
            raise_if_passing(error)


def raise_if_passing(error: Exception) -> None:
    """Raises RedisUnavailable."""
    if is_passing(error):
        raise RedisUnavailable(
            "Redis cannot be reached or cannot serve. Nothing is lost. Try again shortly."
        ) from error
