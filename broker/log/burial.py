"""The end of a shared stream that nobody deletes: its life is over, or no path names it.

It is carried out by whoever finds it so, a server or a sweeper, and may be repeated at any point: the path loses it
first, its content goes last.
"""

from __future__ import annotations

from broker.log.event import CANCELLED, OURSELVES, encode_data
from broker.log.meta import Meta
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog


async def bury(log: StreamLog, seizures: Seizures, sid: str, meta: Meta) -> None:
    """Raises StreamNotFound if it is gone, LogHealing, or RedisUnavailable."""
    if meta.path is not None:
        await log.paths.remove(meta.tenant, meta.path, sid)
    if not meta.has_ended:
        await seizures.seize(sid, CANCELLED, encode_data({"reason": "expired", "by": OURSELVES}))
    now_ms = await log.now_ms()
    if log.is_archived:  # the order comes first: the archiver, which carries it out, waits for the tombstone
        await log.redis.zadd(log.keys.erasing, {sid: now_ms})
    [found] = await log.read_meta(sid)
    if found and found.erased is None:
        await log.erase(sid, found, now_ms, by=OURSELVES)
