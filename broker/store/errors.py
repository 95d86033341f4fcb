"""Redis' own errors, translated at the border: the client of `connect` (connect.py) translates all that it raises.

Code that talks to Redis in another way (the subscription, arq) translates for itself.
"""

from __future__ import annotations

import redis.exceptions

from broker.errors import RedisUnavailable

# Redis answers with these while it fails over, is busy or cannot write to its disk: a state that passes. OOM, READONLY
# and LOADING pass too, but redis-py makes them classes and removes the word from the message.
_PASSING_REPLIES = (
    "MASTERDOWN",
    "MISCONF",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
    "BUSY",
)


def is_passing(error: Exception) -> bool:
    """Whether an error means that Redis temporarily cannot serve, rather than that the command was wrong."""
    lost = redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | redis.exceptions.WatchError
    if isinstance(error, lost | OSError | TimeoutError):  # WatchError: the connection on which arq used WATCH broke
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
    """Raises RedisUnavailable for a passing error. Returns for any other."""
    if is_passing(error):
        raise RedisUnavailable(
            "Redis cannot be reached or cannot serve. Nothing is lost. Try again shortly."
        ) from error
