"""The seam between replay and live: viewers that are written to directly join, stall, resume and leave at any step.

The hub is given its messages by hand here, in place of its subscription: so a message may come late, be lost, or come
again, at any point of any viewer's way.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth import Grant
from broker.dialects.format import Format, Heartbeat
from broker.live.folded import Folded
from broker.live.hub import Hub
from broker.live.lane import EXTENSION, Lane, chunk
from broker.live.tail import follow
from broker.live.topic import Topic
from broker.log.access import AccessRecord, View
from broker.log.event import Event, encode_data, public
from broker.log.keys import Keys
from broker.log.steps import Claimed, Unsent
from broker.log.stream_log import StreamLog
from broker.tenants.enforcement import Enforcement
from broker.tenants.limits import TenantLimits
from broker.web.places import Places
from broker.web.viewer import Ended, EventsResponse, Viewers
from tests.rig.long import LONG
from tests.rig.streams import batch, ending, running, seize, text
from tests.rig.tally_dialect import FACTS, Tally, TallyFold

LIMIT_S = 10.0


class Wire(asyncio.Transport):
    """A connection that keeps what is written to it. Closed, it raises at a write, as uvloop's does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        assert not data.startswith(b"0\r\n"), "an empty chunk is the end of a body"
        if self.is_closed:
            raise RuntimeError("the handler is closed")
        self.body += data

    def is_closing(self) -> bool:
        return self.is_closed

    @property
    def ids(self) -> list[int]:
        """Each event's, though a dialect says several things of one."""
        return [int(found) for found in re.findall(rb"id: ([0-9]+)(?:-0)?\n", self.body)]


def lane(form: Format | Folded = Format.EXACT, turns: int = 8) -> tuple[Lane, Wire]:
    wire = Wire()
    heartbeat = b": ping\n" if isinstance(form, Folded) else form.render_heartbeat(Heartbeat())
    lane = Lane(wire, form, heartbeat, is_paused=False)
    lane.turns = turns
    return lane, wire


def said(first: int, *words: str, kind: str = "text_delta") -> bytes:
    return "\n".join(f"{n}\n0\n{kind}\n{word}" for n, word in enumerate(words, first)).encode()


def kept_back(first: int, *words: str) -> bytes:
    return said(first, *words, kind="internal.note")


# -- a topic and its live viewers ----------------------------------------------------------------------------


@pytest.fixture
def topic() -> Topic:
    topic = Topic("sid")
    topic.reset(version=1)
    return topic


async def carried(topic: Topic, lane: Lane, cursor: int) -> asyncio.Task[int]:
    task = asyncio.create_task(topic.carry(lane, cursor))
    await asyncio.sleep(0)
    return task


async def test_live_viewers_are_written_the_next_events_in_one_chunk(topic: Topic) -> None:
    (one, wire), (other, other_wire) = lane(), lane(Format.NDJSON)
    tasks = [await carried(topic, one, 4), await carried(topic, other, 4)]
    written = topic.publish([said(5, "a"), said(6, "b", "c")])
    assert wire.ids == [5, 6, 7]
    assert wire.body == chunk(b"".join(b"event: text_delta\ndata: %c\nid: %d\n\n" % (n + 92, n) for n in (5, 6, 7)))
    assert other_wire.body.count(b'"event":"text_delta"') == 3
    assert written == len(wire.body) + len(other_wire.body)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()


async def test_what_live_viewers_have_seen_is_not_written_again(topic: Topic) -> None:
    viewer, wire = lane()
    task = await carried(topic, viewer, 7)
    topic.publish([said(5, "a", "b", "c")])
    topic.publish([said(8, "d")])
    assert wire.ids == [8]
    task.cancel()


@pytest.mark.parametrize(
    "message", [said(9, "a"), said(7, "a", "b"), said(1_000_001, "a"), said(8, "{}", kind="done")], ids=str
)
async def test_whatever_else_than_the_next_events_lets_all_go_with_the_cursor_they_have(
    topic: Topic, message: bytes
) -> None:
    (one, wire), (other, _) = lane(), lane(Format.COMPACT)
    tasks = [await carried(topic, one, 7), await carried(topic, other, 7)]
    topic.publish([message])
    assert [await task for task in tasks] == [7, 7]
    assert wire.body == b""
    topic.publish([said(8, "a")])
    assert wire.body == b"", "who was let go is written to by its own task"


async def test_a_broken_subscription_lets_all_go(topic: Topic) -> None:
    viewer, _ = lane()
    task = await carried(topic, viewer, 7)
    topic.publish([said(8, "a")])
    topic.reset(version=0)
    assert await task == 8


async def test_a_viewer_whose_connection_is_full_leaves_with_what_was_written_to_it(topic: Topic) -> None:
    (full, wire), (quick, other_wire) = lane(), lane()

    def pausing(data: bytes) -> None:
        wire.write(data)
        full.pause()

    full.write = pausing  # type: ignore[method-assign, assignment]  # as a transport does that has too much
    leaves, stays = await carried(topic, full, 4), await carried(topic, quick, 4)
    topic.publish([said(5, "a")])
    topic.publish([said(6, "b")])
    assert await leaves == 5
    assert (wire.ids, other_wire.ids) == ([5], [5, 6])
    stays.cancel()


async def test_a_lost_connection_costs_the_others_nothing(topic: Topic) -> None:
    lanes = [lane() for _ in range(8)]
    tasks = [await carried(topic, viewer, 4) for viewer, _ in lanes]
    for viewer, wire in lanes[::2]:
        wire.is_closed = True
        viewer.lose()
    topic.publish([said(5, "a")])
    assert [wire.ids for _, wire in lanes] == [[], [5]] * 4
    for task in tasks:
        task.cancel()


async def test_a_write_that_fails_ends_one_viewer_and_no_other(topic: Topic, caplog: pytest.LogCaptureFixture) -> None:
    lanes = [lane() for _ in range(8)]
    tasks = [await carried(topic, viewer, 4) for viewer, _ in lanes]
    lost = []
    for viewer, wire in lanes[::2]:
        wire.is_closed = True  # and nobody has said so
        viewer.on_lost = lambda viewer=viewer: lost.append(viewer)
    topic.publish([said(5, "a")])
    topic.publish([said(6, "b")])
    assert [wire.ids for _, wire in lanes] == [[], [5, 6]] * 4
    assert len(lost) == 4
    assert caplog.text.count("a viewer could not be written to") == 4
    for task in tasks:
        task.cancel()


async def test_only_who_stands_where_the_live_ones_stand_may_join_them(topic: Topic) -> None:
    assert topic.can_carry(9)
    viewer, _ = lane()
    task = await carried(topic, viewer, 7)
    assert [topic.can_carry(cursor) for cursor in (6, 7, 8)] == [False, True, False]
    topic.publish([said(8, "a")])
    assert topic.can_carry(8)
    task.cancel()


async def test_a_viewer_ahead_of_the_stream_does_not_keep_the_others_from_the_lane(topic: Topic) -> None:
    ahead, _ = lane()
    task = await carried(topic, ahead, 100_000)
    topic.publish([said(5, "a")])
    assert await task == 100_000
    assert not topic.can_carry(100_000)
    assert topic.can_carry(5)


async def test_one_wheel_breaks_the_silence_of_all_live_viewers(topic: Topic) -> None:
    (one, wire), (other, other_wire), (often, often_wire) = lane(), lane(Format.NDJSON), lane(turns=3)
    tasks = [await carried(topic, viewer, 4) for viewer in (one, other, often)]
    wrote = [topic.turn() > 0 for _ in range(8)]
    assert wrote == [turn in (3, 6, 8) for turn in range(1, 9)]
    assert (wire.body, other_wire.body) == (chunk(b": ping\n"), chunk(b"\n"))
    assert often_wire.body == 2 * chunk(b": ping\n"), "each as often as it asked"
    topic.publish([said(5, "a")])
    assert not any(topic.turn() for _ in range(2)), "whoever is sent events needs no sign of life"
    topic.publish([said(5, "a")])
    assert topic.turn() > 0, "what they had already is none"
    for task in tasks:
        task.cancel()


async def test_what_is_internal_is_written_to_those_who_may_see_it(topic: Topic) -> None:
    carriers = {form: lane(form) for form in Format}
    tasks = [await carried(topic, one, 4) for one, _ in carriers.values()]
    topic.publish([kept_back(5, "a")])
    topic.publish([said(6, '{"text":"b"}') + b"\n" + kept_back(7, "c", "d") + b"\n" + said(9, '{"text":"e"}')])
    topic.publish([kept_back(10, "f")])
    topic.reset(version=0)
    assert [await task for task in tasks] == [10] * len(tasks), "all are at the same place"
    seen = {form: (b"internal" in wire.body, one.wrote) for form, (one, wire) in carriers.items()}
    assert seen == {form: (False, (6, 9)) if form.is_public else (True, (5, 10)) for form in Format}
    for (_, wire), (_, other) in ((carriers[form], carriers[form.for_public]) for form in Format if not form.is_public):
        assert other.body
        assert len(other.body) < len(wire.body)


async def test_who_is_written_nothing_leaves_without_a_range(topic: Topic) -> None:
    viewer, wire = lane(Format.PUBLIC_EXACT)
    task = await carried(topic, viewer, 4)
    topic.publish([kept_back(5, "a", "b")])
    topic.release_lane(viewer)
    assert await task == 6
    assert (viewer.wrote, wire.body) == (None, b"")
    task = await carried(topic, viewer, 6)
    topic.publish([said(7, "c")])
    topic.publish([kept_back(8, "d")])
    viewer.pause()
    assert await task == 8
    assert viewer.wrote == (7, 7)


async def test_a_sign_of_life_is_due_by_what_a_viewer_was_sent_and_not_by_what_others_were(topic: Topic) -> None:
    (owner, wire), (user, user_wire) = lane(turns=3), lane(Format.PUBLIC_EXACT, turns=3)
    tasks = [await carried(topic, viewer, 0) for viewer in (owner, user)]
    for n in range(1, 7):
        topic.publish([kept_back(n, "a")])
        topic.turn()
    assert user_wire.body == 2 * chunk(b": ping\n")
    assert b"ping" not in wire.body
    for task in tasks:
        task.cancel()


async def test_a_viewer_whose_connection_went_before_it_was_served_is_never_carried() -> None:
    """Its task could learn of it too late: after it had joined the live ones, with a connection that is closed."""
    redis = fakeredis.FakeAsyncRedis()
    limits, bounds = TenantLimits(redis, Keys().limits), dict.fromkeys(("limit", "per_stream", "per_token"), 10)
    places = Places(**bounds, per_subject=10, limits=limits, enforcement=Enforcement())
    viewers = Viewers(AccessRecord(redis, Keys(), retention_s=1, is_archived=False), places, stall_s=1)
    dead, wire = lane()
    dead.lose()
    scope = {"type": "http", "method": "GET", "extensions": {EXTENSION: lambda *_: dead}}

    async def never(_: object) -> AsyncIterator[None]:
        raise AssertionError("it was served")
        yield

    async def ignore(_: object) -> None:
        pass

    view = View("a", {})
    response = EventsResponse(viewers, never, Format.EXACT, heartbeat=b": ping\n", view=view, grant=Grant("t"))  # type: ignore[arg-type]
    await response(scope, ignore, ignore)
    assert dead.continuation
    await dead.continuation(ignore)
    assert viewers.ended[Ended.LEFT] == 1
    assert wire.body == b""


# -- every step of every viewer ------------------------------------------------------------------------------


class Viewer:
    """Serves a stream to a wire as viewer.py does; `send` waits while the connection takes no more."""

    def __init__(self, log: StreamLog, hub: Hub, sid: str, cursor: int, form: Format | Folded) -> None:
        self.cursor = cursor
        self.form = form
        self.lane, self.wire = lane(form)
        self.has_left = False
        self._room = asyncio.Event()
        self._room.set()
        self.task = asyncio.create_task(self._serve(log, hub, sid))

    @property
    def has_got(self) -> int:
        return max(self.wire.ids, default=self.cursor)

    @property
    def is_stalled(self) -> bool:
        return not self._room.is_set()

    def stall(self) -> None:
        self._room.clear()
        self.lane.pause()

    def resume(self) -> None:
        self._room.set()
        self.lane.is_paused = False

    def leave(self) -> None:
        self.has_left = self.wire.is_closed = True
        self.lane.lose()
        self.task.cancel()

    async def _serve(self, log: StreamLog, hub: Hub, sid: str) -> None:
        async for step in follow(log, hub, sid, self.cursor, self.lane, form=self.form):
            await self._room.wait()
            if step is not None:
                assert not isinstance(step, tuple), "nothing is lost here: no gap"
                form = self.form
                if body := form.written(step).body if isinstance(form, Folded) else step.render(form):
                    self.wire.write(chunk(body))


def said_by_tally(events: Sequence[Event]) -> list[tuple[int, bytes]]:
    """(event id, frame): what one fold over all of them says."""
    dialect, fold = Tally(), TallyFold()
    return [
        (event.id, dialect.frame(payload, event.id, index))
        for event in public(events)
        for index, payload in enumerate(fold.step(event))
    ]


class World:
    """A stream, a hub, what was published and has not come yet, and viewers."""

    def __init__(self, log: StreamLog, claimed: Claimed) -> None:
        self.log = log
        self.claimed = claimed
        self.hub = Hub(log.redis, log.keys)
        self.channel = log.keys.stream(claimed.sid).live.encode()
        self.folded = Folded(claimed.sid, Tally(), FACTS)
        self.tally = TallyFold()  # of what was appended
        self.tail = self.public_tail = self.tally_tail = 1
        self.tally.step(Event(1, "queued", b"{}", 0))
        self.coming: deque[bytes] = deque()
        self.came: list[bytes] = []
        self.viewers: list[Viewer] = []
        self.is_subscribed = False

    async def step(self, action: str, n: int) -> None:
        here = [viewer for viewer in self.viewers if not viewer.has_left]
        match action:
            case "append":
                await self.append(1 + n % 3)
            case "deliver" if self.coming:
                self.deliver(self.coming.popleft())
            case "lose" if self.coming:
                self.coming.popleft()
            case "repeat" if self.came:
                self.deliver(self.came[n % len(self.came)])
            case "break":
                self.coming.clear()
                self.is_subscribed = False
                for topic in self.hub._topics.values():
                    topic.reset(version=0)
            case "subscribe":
                self.subscribe()
            case "join":
                form = (Format.EXACT, Format.PUBLIC_EXACT, self.folded)[n % 3]
                self.viewers.append(Viewer(self.log, self.hub, self.claimed.sid, n % (self.tail + 1), form))
            case "stall" if here:
                here[n % len(here)].stall()
            case "resume" if here:
                here[n % len(here)].resume()
            case "leave" if here:
                here[n % len(here)].leave()
            case "quiet":
                await self.quiet(by_subscription=n % 2 == 0)
            case "wait":
                for _ in range(n):
                    await asyncio.sleep(0)

    async def append(self, count: int) -> None:
        first, self.tail = self.tail + 1, self.tail + count
        kinds = {n: "internal.note" if n % 8 in (3, 4, 5, 7) else "text_delta" for n in range(first, self.tail + 1)}
        self.public_tail = max((n for n, kind in kinds.items() if kind == "text_delta"), default=self.public_tail)
        for n, kind in kinds.items():
            if kind == "text_delta" and self.tally.step(Event(n, kind, b'{"text":"a"}', 0)):
                self.tally_tail = n
        await self.log.append(batch(self.claimed, first, *(Unsent(kind, b'{"text":"a"}') for kind in kinds.values())))
        self.coming.append(b"\n".join(said(n, '{"text":"a"}', kind=kind) for n, kind in kinds.items()))

    async def quiet(self, *, by_subscription: bool) -> None:
        """Whatever was lost, a new subscription or the next event brings everybody who reads to the tail."""
        if not by_subscription and self.is_subscribed:
            await self.append(1)
        while self.coming:
            self.deliver(self.coming.popleft())
        if by_subscription or not self.is_subscribed:
            self.subscribe()
        async with asyncio.timeout(LIMIT_S):
            # Every turn of the loop counts here.
            while any(  # noqa: ASYNC110
                v.has_got < self.last_shown(v) for v in self.viewers if not (v.has_left or v.is_stalled)
            ):
                await asyncio.sleep(0)

    def last_shown(self, viewer: Viewer) -> int:
        if isinstance(viewer.form, Folded):
            return self.tally_tail
        return self.public_tail if viewer.form.is_public else self.tail

    def deliver(self, message: bytes) -> None:
        self.came.append(message)
        self.hub.take([b"message", self.channel, message])

    def subscribe(self) -> None:
        self.is_subscribed = True
        self.hub.take([b"subscribe", self.channel, 1])

    async def end(self, *, by_seizure: bool) -> None:
        """The ending comes, by the writer or (a new pen's block of ids) by a cancel; the last subscription holds."""
        if by_seizure:
            ended = await seize(self.log, self.claimed.sid, "cancelled", encode_data({}))
            self.coming.append(said(ended.last_event_id, "{}", kind="cancelled"))
        else:
            await self.log.append(batch(self.claimed, self.tail + 1, *text("x"), ending()))
            self.coming.append(said(self.tail + 1, '{"text":"x"}') + b"\n" + said(self.tail + 2, "{}", kind="done"))
        self.subscribe()
        while self.coming:
            self.deliver(self.coming.popleft())
        for viewer in self.viewers:
            viewer.resume()
        async with asyncio.timeout(LIMIT_S):
            for viewer in self.viewers:
                with suppress(asyncio.CancelledError):
                    await viewer.task

    async def check(self) -> None:
        everything = await self.log.read_all(self.claimed.sid)
        for viewer in self.viewers:
            if isinstance(viewer.form, Folded):
                frames = [
                    (event_id, frame) for event_id, frame in said_by_tally(everything) if event_id > viewer.cursor
                ]
                expected = list(dict.fromkeys(event_id for event_id, _ in frames))
                told = re.findall(rb"data: [0-9 ]+\nid: [0-9-]+\n\n", viewer.wire.body)
                assert told == [frame for _, frame in frames][: len(told)]
            else:
                expected = [event.id for event in viewer.form.shown(everything) if event.id > viewer.cursor]
            assert set(viewer.lane.wrote or ()) <= set(expected)
            if viewer.has_left:
                assert viewer.wire.ids == expected[: len(viewer.wire.ids)]
            else:
                assert viewer.wire.ids == expected


_ACTIONS = st.sampled_from(
    # Most of what happens is ordinary; joining is frequent, since each viewer is another chance.
    ["append"] * 4
    + ["deliver"] * 5
    + ["join"] * 3
    + ["wait"] * 6
    + ["stall", "resume", "leave"] * 2
    + ["subscribe", "lose", "repeat", "break", "quiet"]
)


@settings(max_examples=500 if LONG else 80, deadline=None)
@given(st.lists(st.tuples(_ACTIONS, st.integers(0, 12)), max_size=60), st.booleans())
def test_viewers_that_join_stall_resume_and_leave_at_every_step_get_every_event_once(
    steps: list[tuple[str, int]], by_seizure: bool
) -> None:
    async def play() -> None:
        async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as client:
            log = StreamLog(client, Keys())
            world = World(log, await running(log))
            for action, n in [("join", 0), ("join", 1), ("join", 2), ("wait", 1), ("quiet", 0), *steps]:
                await world.step(action, n)
            await world.end(by_seizure=by_seizure)
            await world.check()

    asyncio.run(play())
