"""What a follower of a session has been given (broker/live/ledger.py): a model of a session, its listing and its cuts.

Streams are created, listed up to a minute later, get events and end, while a viewer reads the listing, opens what it
is told to, is cut between any two of its frames, and comes back with the last id that it got.
"""

from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.vector import AT_END, MAX_BYTES, MAX_NAMED, SLACK_MS, Vector, parse
from broker.live.ledger import MOST_OPEN, Ledger, Listed

LISTED_AFTER_MS = SLACK_MS - 1000


@dataclass
class Stream:
    listed: Listed
    listed_at: int
    events: int = 1
    has_ended: bool = False
    is_owed: bool = False


@dataclass
class Session:
    numbers: Random
    is_busy: bool
    """More than a cursor can name begin in a minute; but each is listed at once. Else a cursor that leaves some out may
    lose one that is listed late."""
    now: int = 1_000_000
    streams: dict[str, Stream] = field(default_factory=dict)

    def create(self) -> None:
        if len(self.streams) == MAX_NAMED and not self.is_busy:
            return
        sid = f"{self.numbers.getrandbits(32):08x}"
        delay = self.numbers.choice([0, 0, 5, LISTED_AFTER_MS]) if not self.is_busy else 0
        self.streams[sid] = Stream(Listed(self.now, sid), self.now + delay)

    def change(self) -> None:
        running = [one for one in self.streams.values() if not one.has_ended]
        if running:
            one = self.numbers.choice(running)
            one.events += 1
            one.has_ended = self.numbers.random() < 0.4

    def listed(self) -> list[Listed]:
        found = [one.listed for one in self.streams.values() if one.listed_at <= self.now]
        self.numbers.shuffle(found)
        return found


class Viewer:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.got: dict[str, list[int]] = {}
        self.longest = 0
        self.connect(None)

    def connect(self, cursor: Vector | None) -> None:
        self.ledger = Ledger(cursor, self.session.now)
        self.open: set[str] = set()
        self.read()
        if cursor is None:
            for sid, stream in self.session.streams.items():
                stream.is_owed = not stream.has_ended
                assert stream.has_ended or stream.listed_at > self.session.now or sid in self.ledger.unfinished
        self.cursor = parse(self.ledger.vector().encode()) if cursor is None else cursor

    def read(self) -> None:
        for one, is_new in self.ledger.unknown(self.session.listed()):
            stream = self.session.streams[one.sid]
            if is_new or not stream.has_ended:
                self.ledger.wait(one)
            else:
                self.ledger.had_ended(one)
        self.ledger.has_read()

    def open_some(self) -> None:
        for sid in [*self.ledger.unfinished, *(one.sid for one in self.ledger.waiting)]:
            named = self.ledger.unfinished
            if sid not in self.open and len(self.open) < MOST_OPEN and (sid in named or len(named) < MOST_OPEN):
                cursor = self.ledger.open(sid)
                stream = self.session.streams[sid]
                if stream.has_ended and cursor and cursor == stream.events:
                    self.ledger.end(sid)
                else:
                    self.open.add(sid)

    def take_some(self) -> None:
        numbers = self.session.numbers
        for sid in numbers.sample(sorted(self.open), k=min(len(self.open), 3)):
            stream = self.session.streams[sid]
            at = self.ledger.unfinished[sid]
            last = numbers.randint(at, stream.events)
            for n in range(at + 1, last + 1):
                text = f"{self.ledger.vector().prefix(sid)}{n}"
                self.longest = max(self.longest, len(text))
                self.cursor = parse(text)
                self.got.setdefault(sid, []).append(n)
            self.ledger.given(sid, last)
            if stream.has_ended and last == stream.events:
                self.ledger.end(sid)
                self.open.discard(sid)

    def finish(self) -> None:
        while self.ledger.unfinished or self.ledger.waiting:
            self.open_some()
            self.take_some()


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([10, 2_000, 40_000]), st.booleans())
def test_whatever_is_cut_nothing_is_lost_doubled_or_out_of_order(
    seed: int, length: int, pause_ms: int, is_busy: bool
) -> None:
    session = Session(Random(seed), is_busy)
    for _ in range(session.numbers.randrange(6)):
        session.create()
        session.change()
    session.now += LISTED_AFTER_MS
    viewer = Viewer(session)
    for _ in range(length * 5):
        match session.numbers.randrange(10):
            case 0 | 1:
                session.create()
            case 2 | 3 | 4:
                session.change()
            case 5:
                session.now += session.numbers.randrange(pause_ms)
            case 6:
                viewer.read()
                viewer.open_some()
            case 7 | 8:
                viewer.open_some()
                viewer.take_some()
            case _:
                viewer.connect(viewer.cursor)
    for stream in session.streams.values():
        stream.has_ended = True
    session.now += SLACK_MS
    if session.numbers.random() < 0.5:
        viewer.connect(viewer.cursor)
    viewer.read()
    viewer.finish()
    came_later = {sid for sid, stream in session.streams.items() if stream.listed.created > 1_000_000 + LISTED_AFTER_MS}
    owed = {sid for sid, stream in session.streams.items() if stream.is_owed} | came_later
    for sid in owed:
        assert viewer.got.get(sid) == list(range(1, session.streams[sid].events + 1)), sid
    for sid, got in viewer.got.items():
        assert got == sorted(set(got)), sid
    assert viewer.longest <= MAX_BYTES


def test_a_new_stream_is_named_in_the_step_in_which_the_cursor_passes_it() -> None:
    ledger = Ledger(Vector(1_000_000, {}), 1_000_500)
    [(one, is_new)] = ledger.unknown([Listed(1_000_400, "a")])
    assert is_new
    ledger.wait(one)
    ledger.has_read()
    assert ledger.vector() == Vector(1_000_399, {})
    ledger.open("a")
    assert ledger.vector() == Vector(1_000_400, {"a": 0})


def test_ended_streams_are_named_for_a_minute_and_the_oldest_go_first() -> None:
    ledger = Ledger(None, 1_000_000)
    ledger.has_read()
    for n in range(50):
        one = Listed(1_000_000 + n, f"s{n:02}")
        ledger.wait(one)
        ledger.open(one.sid)
        ledger.end(one.sid)
    assert list(ledger.vector().named) == [f"s{n:02}" for n in range(11, 50)]
    assert ledger.vector().is_cut
    resumed = Ledger(ledger.vector(), 1_000_100)
    listed = [Listed(1_000_000 + n, f"s{n:02}") for n in range(50)]
    assert resumed.unknown(listed) == []
    later = Listed(1_000_049 + SLACK_MS, "later")
    ledger.wait(later)
    ledger.open("later")
    assert ledger.vector() == Vector(later.created, {"later": 0})


def test_what_ends_after_younger_ones_were_left_out_does_not_bring_them_back() -> None:
    ledger = Ledger(None, 1_000_000)
    ledger.has_read()
    listed = [Listed(1_000_000 + n, f"s{n:02}") for n in range(50)]
    for one in listed:
        ledger.wait(one)
        ledger.open(one.sid)
        if one.created > 1_000_000:
            ledger.end(one.sid)
    ledger.vector()
    ledger.end("s00")
    assert "s00" not in ledger.vector().named
    assert Ledger(ledger.vector(), 1_000_100).unknown(listed) == []


def test_one_that_is_put_back_is_given_if_it_runs_and_nobody_here_had_it() -> None:
    ledger = Ledger(Vector(1_000_000, {}), 1_000_000)
    ledger.unknown([Listed(10, "given")])
    ledger.has_read()
    assert ledger.unknown([Listed(10, "given"), Listed(20, "back")]) == [(Listed(20, "back"), False)]
    ledger.wait(Listed(20, "back"))
    assert ledger.vector() == Vector(1_000_000, {"back": 0})


def test_one_that_was_given_and_is_put_back_later_is_not_given_again() -> None:
    """Redis falls back; the viewer is cut before the stream is listed again."""
    one = Listed(1_000_000, "one")
    ledger = Ledger(Vector(one.created, {"one": AT_END}), one.created + 10)
    assert ledger.unknown([]) == []
    ledger.has_read()
    assert ledger.vector().named == {"one": AT_END}
    again = Ledger(ledger.vector(), one.created + 20)
    assert again.unknown([one]) == []


def test_of_more_than_a_cursor_can_name_none_comes_twice_after_a_loss() -> None:
    many = [Listed(1_000_000 + n * 700, f"{n * 7919 % 1000:03d}") for n in range(MAX_NAMED + 5)]
    ledger = Ledger(Vector(many[0].created - 1, {}), many[-1].created)
    _give(ledger, many)
    lost = Ledger(ledger.vector(), many[-1].created + 1)
    later = Listed(many[-1].created + 500, "later")
    _give(lost, [later])
    back = Ledger(lost.vector(), later.created + 1).unknown([*many, later])
    assert not [one for one, is_new in back if is_new]


def _give(ledger: Ledger, listed: list[Listed]) -> None:
    """All that are new, to their ends."""
    for one, _ in ledger.unknown(listed):
        ledger.wait(one)
    ledger.has_read()
    for one in listed:
        ledger.open(one.sid)
        ledger.end(one.sid)


def test_behind_another_servers_clock_what_runs_is_given() -> None:
    ledger = Ledger(Vector(9_000_000, {}), 1_000_000)
    assert ledger.unknown([Listed(1_000_000, "a")]) == [(Listed(1_000_000, "a"), False)]
