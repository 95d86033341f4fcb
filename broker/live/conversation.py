"""A conversation that one viewer follows: which of its streams are opened, from where, and when. Without HTTP.

How it is used, by a body of SSE or NDJSON (web/conversation.py) as by a socket:

    ledger = Ledger(start, now_ms)             # start: a Vector, or None at the first time
    conversation = Conversation(roster, ledger, look_up, seats, follows=True)
    await conversation.begin()                 # at the first time, before it is told `at`. Raises RedisUnavailable
    async for told in conversation.run():      # one task; cancel it (or aclose) to leave
        Opened(sid, cursor, meta, is_in_redis) # say `stream`, then give its events after `cursor`, to its end
        Missing(sid, reason)                   # say `gap` {"stream", "reason"}: there is nothing (more) of it

and its user says what became of them, at any time, from the same loop:

    conversation.given(sid, n)                 # events up to n have been written
    conversation.ended(sid)                    # its terminal event has been written: another may be opened
    conversation.again(sid)                    # it broke off (StreamNotFound while it was followed): look it up anew
    conversation.rests(sid)                    # with `follows` false: that was its backlog
    conversation.vector                        # the cursor as it is now: Vector(at, named)

`at` of a socket's `ok` and `stream` is `conversation.vector.at`, read when the notice is written. Its client sends
`cursors: {"at": T, "streams": {id: n}}`, which vector.from_json reads. `run` ends when nothing can come any more: with
`follows` false, or of a fixed set of streams (`roster` None), when each of them has ended.

At most MOST_OPEN are open; the others wait in the order of their creation. The races, and why each is closed:
- a stream is created, and listed some time later: what is not named and at most a minute older than `at` is new. The
  stream that is listed late is found when its listing speaks, or the next time
- one is listed between the look and the subscription: a subscription that was made anew speaks, and so does the clock,
  every LOOK_S
- `at` passes a new stream: it is named (-0) in that very step (ledger.py), without an await in between
- a cut between `at` and a stream's first event: it is named, and followed from 0
- it ended, or left Redis for the archive, while the viewer was away: named ones are looked up by their ids, whatever
  the listing says, and new ones by theirs; the archiver leaves the listing alone
- the viewer was away for longer than listings last: the archive's listing, once
- more than ROSTER streams began meanwhile: a viewer that comes back reads all since its `at`
- it is erased, or its retention is over: `Missing`
- a worker dies, and another takes over; Redis is rolled back: that is the tail's (tail.py), and a stream that is known
  here is not given again when its writer puts it back
- a stream is put back that nobody here had heard of: listed again, and followed if it runs
- the look-up fails for a while (Redis heals, the archive is away): the stream waits, and `at` with it
- another Redis' clock is behind: new streams are older than `at`. Who is here follows them as those that were put back;
  who comes back follows those that run
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple, Protocol

from broker.dialects.vector import Vector
from broker.errors import ArchiveDamaged, ArchiveUnavailable, StoreUnavailable, StreamExpired, StreamNotFound
from broker.live.ledger import MOST_OPEN, Ledger
from broker.live.roster import Roster
from broker.log.meta import Meta

logger = logging.getLogger(__name__)

LOOK_S = 10.0
"""The listing is read so often in any case: Redis' channels promise nothing."""

RETRY_S = 1.0

EXPIRED = "expired"


class Seen(Protocol):
    """What a look-up finds."""

    @property
    def meta(self) -> Meta: ...
    @property
    def is_in_redis(self) -> bool: ...


class Opened(NamedTuple):
    sid: str
    cursor: int
    meta: Meta
    is_in_redis: bool


class Missing(NamedTuple):
    sid: str
    reason: str


Told = Opened | Missing


class Seats(Protocol):
    """The places of the streams that are open: each counts as a viewer."""

    async def take(self, sid: str) -> bool:
        """Whether there was one. Raises StoreUnavailable."""

    def free(self, sid: str) -> None:
        """It is taken at the moment. Not called for those that are open when the viewer leaves."""


class Conversation:
    """`look_up`: a stream that still has its content, as this caller may see it: raises StreamNotFound, StreamExpired,
    or what passes. `roster` None: the streams are those that the ledger's start names.
    """

    def __init__(
        self,
        roster: Roster | None,
        ledger: Ledger,
        look_up: Callable[[str], Awaitable[Seen]],
        seats: Seats,
        *,
        follows: bool = True,
    ) -> None:
        self._roster = roster
        self._ledger = ledger
        self._look_up = look_up
        self._seats = seats
        self._follows = follows and roster is not None
        self._open: set[str] = set()
        self._resting: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._woken = asyncio.Event()
        self._has_heard = True
        self._clock = asyncio.get_running_loop().time
        self._read_at_s = self._clock()

    @property
    def vector(self) -> Vector:
        return self._ledger.vector()

    @property
    def is_over(self) -> bool:
        """Nothing is open, nor will be."""
        is_at_rest = self._ledger.unfinished.keys() <= self._resting and not self._ledger.waiting
        return is_at_rest and not self._follows and not self._has_heard

    async def begin(self) -> None:
        """Take in what there is: from then on the vector names what runs. Raises RedisUnavailable."""
        if self._roster:
            await self._take_in(self._roster)

    def given(self, sid: str, n: int) -> None:
        self._ledger.given(sid, n)

    def ended(self, sid: str) -> None:
        self._close(sid)
        self._ledger.end(sid)
        self._woken.set()

    def again(self, sid: str) -> None:
        self._close(sid)
        self._not_before[sid] = self._clock() + RETRY_S
        self._woken.set()

    def rests(self, sid: str) -> None:
        self._close(sid)
        self._resting.add(sid)
        self._woken.set()

    def _close(self, sid: str) -> None:
        if sid in self._open:
            self._open.discard(sid)
            self._seats.free(sid)

    async def run(self) -> AsyncGenerator[Told, None]:
        async with AsyncExitStack() as stack:
            if self._roster is None:
                self._has_heard = False
            elif self._follows:
                stack.enter_context(self._roster.listen(self._hear))
                self._has_heard = True  # whoever listened before us was told of the subscription
            while not self.is_over:
                self._woken.clear()
                is_behind = not await self._read()
                for sid in self._candidates():
                    if not self._has_room(sid) or not await self._take_seat(sid):
                        break
                    if told := await self._open_one(sid):
                        yield told
                    elif sid in self._not_before:
                        is_behind = True
                await self._rest(RETRY_S if is_behind or self._not_before else LOOK_S)

    def _hear(self) -> None:
        self._has_heard = True
        self._woken.set()

    async def _rest(self, longest_s: float) -> None:
        if self.is_over:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._woken.wait()
        if self._follows and self._clock() - self._read_at_s >= LOOK_S:
            self._has_heard = True

    # -- the listing -------------------------------------------------------------------------------------------

    async def _read(self) -> bool:
        """Take in what the listing has, if it has spoken. False: it cannot be read just now."""
        if not self._has_heard or self._roster is None:
            return True
        try:
            await self._take_in(self._roster)
        except (StoreUnavailable, ArchiveUnavailable):
            self._has_heard = True
            return False
        return True

    async def _take_in(self, roster: Roster) -> None:
        self._has_heard = False
        unknown = self._ledger.unknown(await roster.read(self._ledger.reads_from))
        runs = await roster.running([one.sid for one, is_new in unknown if not is_new])
        for one, is_new in unknown:
            if is_new or runs.get(one.sid, False):
                self._ledger.wait(one)
            elif one.sid in runs:
                self._ledger.had_ended(one)
            else:
                self._ledger.not_shown(one)
        self._ledger.has_read()
        self._read_at_s = self._clock()

    # -- what is opened ----------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[str]:
        now_s = self._clock()
        ledger = self._ledger
        for sid in [*ledger.unfinished, *(one.sid for one in ledger.waiting)]:
            if sid not in self._open | self._resting and self._not_before.get(sid, 0.0) <= now_s:
                yield sid

    def _has_room(self, sid: str) -> bool:
        """A cursor has no room for more names, either."""
        named = self._ledger.unfinished
        return len(self._open) < MOST_OPEN and (sid in named or len(named) < MOST_OPEN)

    async def _take_seat(self, sid: str) -> bool:
        try:
            return await self._seats.take(sid)
        except StoreUnavailable:
            return False

    async def _open_one(self, sid: str) -> Told | None:
        """What is to be said of it, with its seat taken if it is opened. None: nothing, or not now."""
        told: Told | None = None
        try:
            told = await self._looked_up(sid)
        finally:
            if isinstance(told, Opened):
                self._open.add(sid)
            else:
                self._seats.free(sid)
        return told

    async def _looked_up(self, sid: str) -> Told | None:
        is_named = sid in self._ledger.unfinished
        self._not_before.pop(sid, None)
        try:
            found = await self._look_up(sid)
        except (StoreUnavailable, ArchiveUnavailable):
            self._not_before[sid] = self._clock() + RETRY_S
            return None
        except StreamNotFound:
            # It was this viewer's when it was named. One that is only listed may be another's, which is not shown.
            if not is_named:
                self._ledger.hide(sid)
                return None
            return self._miss(sid, EXPIRED)
        except StreamExpired:
            return self._miss(sid, EXPIRED)
        except ArchiveDamaged as damaged:
            logger.exception("stream %s: it is left out of a conversation", sid)
            return self._miss(sid, damaged.code)
        cursor = self._ledger.open(sid)
        if found.meta.has_ended and cursor and cursor == found.meta.tail:
            self._ledger.end(sid)
            return None
        return Opened(sid, cursor, found.meta, found.is_in_redis)

    def _miss(self, sid: str, reason: str) -> Missing:
        self._ledger.end(sid)
        return Missing(sid, reason)
