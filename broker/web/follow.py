"""What every follow of a stream begins with, on a connection of its own or on a socket: the order of its checks, and
where its events come from.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import NamedTuple

from broker import gauges, traces
from broker.auth import Grant
from broker.dialects.format import Form
from broker.errors import StreamNotFound, TokenExpired
from broker.live.lane import Lane
from broker.live.tail import Step, follow, replay
from broker.log.event import is_terminal
from broker.log.readable import ReadableLog
from broker.service.streams import Found
from broker.web.tier import Tier

Steps = Callable[[Lane | None], AsyncGenerator[Step, None]]


class Begun(NamedTuple):
    """A stream that may be followed. `cursor`: the event after which it begins; `is_latest`: because the caller asked
    for what comes from now on.
    """

    found: Found
    log: ReadableLog
    cursor: int
    is_latest: bool

    @property
    def has_ended(self) -> bool:
        """The viewer has the terminal event already."""
        return has_ended_at(None if self.is_latest else self.cursor, self.found.meta.state, self.found.meta.tail)


def require_time_left(grant: Grant) -> None:
    """A connection with this token would be cut at once, and again each second. Raises TokenExpired."""
    if grant.token and grant.token.cuts_at <= time.time():
        raise TokenExpired("The token expires now. Get a new one.")


def require_session(grant: Grant, session: str) -> None:
    """Raises StreamNotFound for one that a token does not name: for this caller it does not exist."""
    if grant.token and grant.token.sessions is not None and session not in grant.token.sessions:
        raise StreamNotFound("There is no session with this id.")


async def begin(
    tier: Tier,
    grant: Grant,
    sid: str,
    resume_at: Callable[[], int | None],
    log_of: Callable[[Found], Awaitable[ReadableLog]],
) -> Begun:
    """The checks of a follow behind those of its grant, in their order. `resume_at`: its cursor; None at the latest
    event. `log_of`: waits for masks, which may take long.

    Raises Draining, TooManyViewers, RateLimited, BadCursor, StreamNotFound, StreamExpired, Forbidden, MasksTooSlow and
    what passes.
    """
    await tier.require_place(grant, sid)
    cursor = resume_at()
    # Where the log ends now is asked for only if it is needed: a follow begins with one call of Redis.
    found = await tier.streams.look_up_content(sid, grant, at_tail=cursor is None or traces.are_kept())
    return Begun(found, await log_of(found), found.meta.tail if cursor is None else cursor, cursor is None)


def steps_of(
    tier: Tier,
    found: Found,
    grant: Grant,
    log: ReadableLog,
    sid: str,
    cursor: int,
    form: Form,
    *,
    follows: bool = True,
    heartbeat_s: float | None = None,
) -> Steps:
    """A stream that Redis has is followed. One that the archive has is at its end, and so is what is read masked."""
    if follows and found.is_in_redis and not grant.is_masked:
        return partial(follow, tier.log, tier.hub, sid, cursor, form=form, heartbeat_s=heartbeat_s)
    return lambda _: replay(log, sid, cursor)


def count_connect(tier: Tier, sid: str, cursor: int, *, is_in_redis: bool) -> str:
    """Where the viewer's first events are: what a reconnect storm would ask for."""
    source = _where_from(tier, sid, cursor, is_in_redis=is_in_redis)
    gauges.connects.labels(source).inc()
    return source


def _where_from(tier: Tier, sid: str, cursor: int, *, is_in_redis: bool) -> str:
    if not is_in_redis:
        return "archive"
    if cursor == 0:
        return "start"
    return "ring" if tier.hub.has(sid, cursor) else "log"


def has_ended_at(cursor: int | None, state: str, tail: int) -> bool:
    """The viewer has the terminal event already: 204 makes a browser's EventSource stop reconnecting."""
    return is_terminal(state) and (cursor is None or cursor == tail)
