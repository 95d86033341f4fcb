"""Every key has a life: after a test, each key must expire, or be one that its owner is known to remove.

A key without a life fills a production Redis slowly, which no other test notices.
"""

import re
from typing import Any

LEASES = "le:leases"

FOR_EVER = ("le:secret", "le:keys")
"""One of each: what it signed, and who was let in once, outlives every process."""

UNARCHIVED, ERASING, VIEWS = "le:unarchived", "le:erasing", "le:views"
DEEDS, ERASURES, WEBHOOKS = "le:deeds", "le:erasures", "le:webhooks"

# Keys whose members are removed by who works them off: a lease when its stream ends, a job by arq when it has run,
# a webhook when it is settled, the others by the archiver.
WORKED_OFF = frozenset({LEASES, "le:jobs", UNARCHIVED, ERASING, VIEWS, DEEDS, ERASURES, WEBHOOKS})
OF_AN_APP = "le:jobs:"
OF_A_PATH = "le:ds:"

TERMINAL_STATES = frozenset({"done", "error", "cancelled"})

# The braces are part of the key: a hash tag, so that a stream's keys share a cluster slot.
_OF_A_STREAM = re.compile(r"le:\{(?P<sid>[^{}]+)\}:(?P<what>log|meta|views|request|holders|inputs|crowd|producers)")


async def fail_on_leaked_keys(client: Any) -> None:
    """Raise AssertionError, naming the keys, if a key in the client's database would stay for ever.

    `client` is a redis.asyncio.Redis (or a fakeredis one) with decode_responses off.
    """
    leaked = [key async for key in _keys(client) if await _is_leaked(client, key)]
    assert not leaked, "keys without a TTL that nobody will remove: " + ", ".join(sorted(leaked))


async def _keys(client: Any) -> Any:
    async for raw in client.scan_iter(count=1000):
        yield raw.decode(errors="backslashreplace")


async def _is_leaked(client: Any, key: str) -> bool:
    # -1 is "no TTL"; -2 is "expired since the scan saw it".
    if await client.ttl(key) != -1 or key in WORKED_OFF or key.startswith(OF_AN_APP) or key in FOR_EVER:
        return False
    if key.startswith(OF_A_PATH):
        named = await client.hget(key, "sid")  # as long as a sweeper looks at it, or without an end in the archive
        return await client.zscore(LEASES, named.decode()) is None
    of_a_stream = _OF_A_STREAM.fullmatch(key)
    if of_a_stream and of_a_stream["what"] == "views":
        return await client.zscore(VIEWS, of_a_stream["sid"]) is None
    if of_a_stream and of_a_stream["what"] in ("request", "holders"):
        return not await _will_be_let_go(client, of_a_stream["sid"])
    return of_a_stream is None or not await _is_in_flight(client, of_a_stream["sid"])


async def _will_be_let_go(client: Any, sid: str) -> bool:
    """Each stream that holds this request for ever is in an index: who works that off lets go for it."""
    held = await client.zrangebyscore(f"le:{{{sid}}}:holders", "inf", "inf")
    indexes = (LEASES, UNARCHIVED, ERASING)
    found = [[await client.zscore(index, holder) is not None for index in indexes] for holder in held]
    return bool(found) and all(map(any, found))


async def _is_in_flight(client: Any, sid: str) -> bool:
    """A stream that still has to end, or to be archived: that sets the TTL, and an index makes sure that it comes."""
    if any([await client.zscore(index, sid) is not None for index in (UNARCHIVED, ERASING)]):
        return True
    if await client.zscore(LEASES, sid) is None:
        return False
    state = await client.hget(f"le:{{{sid}}}:meta", "state")
    return state is not None and state.decode() not in TERMINAL_STATES
