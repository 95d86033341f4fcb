"""Redis' own errors, translated at the border: the client of `connect` (connect.py) translates all that it raises.

Code that talks to Redis in another way (the subscription, arq) translates for itself. A translated error says what
Redis said, what that means, and what to do. An error that is in no table here is a mistake of ours, and stays as it is.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

import redis.exceptions

from broker.errors import LasteventError, RedisRefuses, RedisUnavailable, WrongType

AWAY = "Redis cannot be reached or cannot serve. Nothing is lost. Try again shortly."

# What Redis answers while it fails over, is busy or cannot write: a state that passes, some of them with an operator's
# help. redis-py makes classes of some, and removes the word from their message; `_said` puts it back.
_PASSING = {
    "LOADING": "Redis is reading its data into memory after a start. Try again shortly.",
    "BUSY ": "Redis is busy with a script for longer than its limit (busy-reply-threshold). Try again shortly.",
    "OOM": "Redis has no memory left (maxmemory) and takes no writes. Raise it, or wait until streams have left.",
    "MISCONF": "Redis cannot write to its disk and therefore takes no writes. Look at its disk and its log.",
    "READONLY": "This Redis is a replica and keeps no writes. Name the primary in LASTEVENT_REDIS_URL.",
    "MASTERDOWN": "This Redis is a replica without its primary. Name the primary in LASTEVENT_REDIS_URL.",
    "NOREPLICAS": "Redis has fewer replicas than min-replicas-to-write and takes no writes until they are back.",
    "TRYAGAIN": "Redis moves keys to another server at this moment. Try again shortly.",
    "UNBLOCKED": "Redis has become a replica. Try again shortly.",
    "max number of clients": "Redis has as many clients as it takes (maxclients). Raise it, or run fewer processes.",
}

_PERMISSIONS = "docs/OPERATIONS.md lists what the user of LASTEVENT_REDIS_URL must be allowed."
_CLUSTER = "This is a Redis Cluster, which Lastevent does not support. Use one primary, and Sentinel for failover."
_CREDENTIALS = "Check the user and the password in LASTEVENT_REDIS_URL."
_NO_COMMAND = (
    "Redis has no such command, or not in this form (an older release, a rename-command, or a proxy that leaves it "
    "out). Lastevent needs Redis 7.0 or newer, or Valkey, with all of its commands under their own names."
)

# What stays until an operator changes something. `_needed` names what was refused, where Redis says it.
_REFUSING = {
    "NOPERM": f"The user of LASTEVENT_REDIS_URL may not do this. {_PERMISSIONS}",
    # What NOPERM is within a script: of Redis 7.2 and Valkey, then of Redis 7.0.
    "ACL failure in script": f"The user of LASTEVENT_REDIS_URL may not do this. {_PERMISSIONS}",
    "The user executing the script": f"The user of LASTEVENT_REDIS_URL may not do this. {_PERMISSIONS}",
    "WRONGPASS": f"Redis does not accept the user or the password. {_CREDENTIALS}",
    "NOAUTH": f"Redis wants a password, and LASTEVENT_REDIS_URL has none that it accepts. {_CREDENTIALS}",
    "invalid password": f"Redis does not accept the password. {_CREDENTIALS}",
    "AUTH <password> called without": "LASTEVENT_REDIS_URL has a password, and Redis has none set. Set one there, "
    "or take it out of the address.",
    "Client sent AUTH, but no password": "LASTEVENT_REDIS_URL has a password, and Redis has none set.",
    "DENIED": "Redis is in protected mode: it has no password and serves its own machine alone. Set a password there.",
    "MOVED": _CLUSTER,
    "ASK ": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
    "unknown command": _NO_COMMAND,
    "Unknown command called from": _NO_COMMAND,  # within a script: Valkey, then Redis
    "Unknown Redis command called from": _NO_COMMAND,
    "unknown subcommand": _NO_COMMAND,
    "syntax error": _NO_COMMAND,  # of one that 7.0 understands: INFO with two sections, SET with NX and GET
    "DB index is out of range": "Redis has no database of the number that LASTEVENT_REDIS_URL names. Use 0.",
    "invalid DB index": "Redis has no database of the number that LASTEVENT_REDIS_URL names. Use 0.",
    "SELECT is not allowed": _CLUSTER,
    "NOPROTO": "This Redis does not speak the protocol that ?protocol= asks for. Take it out of LASTEVENT_REDIS_URL.",
}

_TLS = "Check its certificate (name, age, signer), and rediss:// and ?ssl_ca_certs= in LASTEVENT_REDIS_URL."

_WRONG_TYPE = (
    "Something else than Lastevent has written this key, and what it held is gone. Rename or delete it, and give "
    "Lastevent a Redis database of its own."
)

_IN_A_PIPELINE = re.compile(r"Command # \d+ .* of pipeline caused error: (?:\(['\"])?(.*?)(?:['\"],\))?", re.DOTALL)
"""How redis-py names which of several it was."""

# As redis-py names what it has removed from the message.
_CLASSES: dict[type[Exception], str] = {
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.AuthenticationError: "WRONGPASS",
    redis.exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
}


class translating_redis_errors:
    """A context in which Redis' errors become ours. (A class: a generator costs twice as much.)"""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception):
            raise_translated(error)


def raise_translated(error: Exception) -> None:
    """Raises what an error means: RedisUnavailable, RedisRefuses or WrongType. Returns for any other."""
    if meaning := translated(error):
        raise meaning from error


def translated(error: Exception, *, key: str = "") -> LasteventError | None:
    """What an error means, in our words. None: a mistake of ours, or no error of Redis. `key`: what was asked about."""
    if isinstance(error, LasteventError):
        return error
    for cause in _causes(error):
        if isinstance(cause, redis.exceptions.RedisError) and (meaning := _meaning(_said(cause), key)):
            return meaning
    if wrong := _tls_error(error):
        return RedisRefuses(f"There is no TLS with Redis ({wrong}). {_TLS}")
    if isinstance(error, redis.exceptions.InvalidResponse):
        return RedisUnavailable("What answers at LASTEVENT_REDIS_URL does not speak its protocol. Check it.")
    lost = redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | redis.exceptions.WatchError
    # WatchError: the connection on which arq used WATCH broke.
    return RedisUnavailable(AWAY) if isinstance(error, lost | OSError | TimeoutError) else None


def cause_of(error: Exception) -> str:
    """For a line in a log: what Redis said, in our words, or the kind of the error."""
    meaning = translated(error)
    return type(error.__cause__ or error).__name__ if meaning is None or str(meaning) == AWAY else str(meaning)


def _meaning(said: str, key: str) -> LasteventError | None:
    if said.startswith("WRONGTYPE"):
        named = f"The key {key}" if key else "A key"
        return WrongType(f"{named} in Redis is not of the type that Lastevent gives it. {_WRONG_TYPE}")
    if words := _words(said, _REFUSING):
        needed = _needed(said)
        return RedisRefuses(f"Redis refuses {needed}. {words}" if needed else words)
    if words := _words(said, _PASSING):
        return RedisUnavailable(f"{words} Nothing is lost.")
    return None


def _said(error: Exception) -> str:
    """What Redis said, with its first word, unless that is ERR."""
    text = str(error)
    if found := _IN_A_PIPELINE.fullmatch(text):
        text = found[1]
    text = text.removeprefix("Transaction discarded because of: ")  # so EXEC passes on why
    if text.startswith("Authentication required"):  # redis-py has one class for this and for WRONGPASS
        return f"NOAUTH {text}"
    word = _CLASSES.get(type(error))
    return f"{word} {text}" if word else text


def _words(said: str, meanings: dict[str, str]) -> str | None:
    return next((words for start, words in meanings.items() if said.startswith(start)), None)


def _needed(said: str) -> str | None:
    """What was refused, as far as Redis names it. Never a caller's key or value."""
    if found := re.search(r"'([A-Za-z|]{1,40})' (?:sub)?command|(?:sub)?command '([A-Za-z|]{1,40})'", said):
        return f"the command {(found[1] or found[2]).upper()}"
    if found := re.search(r"access .*\b(channel|key)s?\b|(publish to the channel)", said):
        return f"a {found[1] or 'channel'}"
    return "a command" if "command" in said else None


def _tls_error(error: BaseException) -> str | None:
    """What is wrong with TLS, where that is the cause."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message or "the certificate is not valid"
        if isinstance(cause, ssl.SSLError):
            return (cause.reason or "no TLS").lower().replace("_", " ")
    return None


# redis-py wraps what fails while a connection is made, once with `from` and once without.
def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
