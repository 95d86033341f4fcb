"""Requests: each is kept once in Redis, under the first stream that had it; `regenerate` refers to it.

A request of 1 MB that is run again 2,000 times takes 1 MB. A stream's meta names the stream whose request it is
(`request_of`), and that one's `holders` name the streams that need it, each until a time. Both keys live as long as the
last holder (prelude.lua), so a request is there as long as any stream that refers to it, and no longer.

A stream's way as a holder. Its own request is written, and held, in the step that creates it. Another's lies on another
slot, so there the steps are apart:
  hold, FOR_NOW_S at most          before the stream exists: no stream is without its request
  create (or restore)
  hold until it lets go            once it exists
  an entry in le:leases            (Index.add) so a sweeper looks at it, whoever died where
  let go, when its keys will end   by the sweeper, or the archiver once the archive has it; repeated until it is done
  let go at once                   with its erasure: by who erases, and again by the sweeper

Races and failure points:
- a process dies after it has stored a large request, and before it creates the stream: as if it had held it
- a process dies after the first hold: nobody needs that request, and it goes within FOR_NOW_S
- it dies between create and the second hold, or Redis loses that: the stream has its request for FOR_NOW_S, or as long
  as another holds it. A worker claims within seconds, and when the stream ends, letting go prolongs the hold. A stream
  that stayed queued for longer ends with an error that says so
- a slow process holds, until it lets go, what has ended and let go meanwhile: the entry in le:leases follows, and the
  sweeper lets go again
- `regenerate` while the only holder is erased: either its hold comes first, and the request stays for the new stream,
  or it finds no request and is refused
- Redis loses the request together with all of its streams: a worker of one puts it back with its stream (`restore`)
- no worker looks for as long as an ended stream's keys live: without an archive a hold ends by itself, when the stream
  would leave the listings (LISTING_SLACK_S); with one, no stream leaves before the archiver has come
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from broker.log import script
from broker.log.keys import LISTING_SLACK_S, Keys
from broker.log.meta import Meta
from broker.log.script import Call, Scripts

FOR_NOW_S = 3600
"""Longer than any process stands still between two steps, and short for a request that is to be erased."""


IN_A_STEP_BYTES = 2**20
STORED = b"stored"
"""What stands for a request that has been stored. No request is that: it is no JSON."""


class Requests:
    def __init__(self, redis: Redis, keys: Keys, scripts: Scripts, *, retention_s: float, is_archived: bool) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = scripts
        self._retention_ms = round(retention_s * 1000)
        self.held_ms = None if is_archived else self._retention_ms + LISTING_SLACK_S * 1000
        """How long a stream holds its request, unless it lets go before. None: until it does."""

    async def of(self, meta: Meta) -> Meta:
        """The meta together with its stream's request. An external stream has none, and an erased one none any more."""
        if meta.request_of is None or meta.erased is not None:
            return meta
        text = await self._redis.get(self._keys.stream(meta.request_of).request)
        return meta if text is None else meta.with_request(text.decode())

    async def of_each(self, metas: Sequence[Meta]) -> list[Meta]:
        """As `of`, for many in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for meta in metas:
                pipe.get(self._keys.stream(meta.request_of or "").request)
            texts = await pipe.execute()
        pairs = zip(metas, texts, strict=True)
        return [meta.with_request(text.decode()) if text and meta.erased is None else meta for meta, text in pairs]

    async def store(self, sid: str, request: bytes) -> bytes:
        """What `create` is given of a request. One of megabytes is stored before, for FOR_NOW_S: on its
        way through a script it is copied, and nobody else is served meanwhile (0.1 s for 32 MiB, a third by SET).
        """
        if len(request) <= IN_A_STEP_BYTES:
            return request
        await self._redis.set(self._keys.stream(sid).request, request, nx=True, ex=FOR_NOW_S)
        return STORED

    async def hold_for_now(self, request_of: str, sid: str, request: str = "") -> bool:
        """Before a stream exists that shares this request. `request`: to put it back. False: it is gone."""
        [is_there] = await self._scripts.run(script.hold(request_of, sid, FOR_NOW_S * 1000, request))
        return bool(is_there)

    async def hold(self, request_of: str, sid: str) -> None:
        await self._scripts.run(self.holding(request_of, sid))

    def holding(self, request_of: str, sid: str) -> Call:
        """The step that holds it until the stream lets go. An entry of the stream in le:leases must follow."""
        return script.hold(request_of, sid, self.held_ms)

    def letting_go(self, sid: str, meta: Meta) -> list[Call]:
        """The step, if there is one, for a stream that has ended: from now on its keys have their retention, or, if it
        was erased, no content."""
        if meta.erased is not None:  # its tombstone may be an older release's, which does not say whose request it was
            return [script.let_go(meta.request_of or sid, sid, 0)]
        return [] if meta.request_of is None else [script.let_go(meta.request_of, sid, self._retention_ms)]

    async def let_go(self, sid: str, meta: Meta) -> None:
        await self._scripts.run_each(self.letting_go(sid, meta))
