"""Following: one stream over as many connections as it takes.

What each answer of a server means, and when to come back, is decided here and nowhere else. Nothing here waits, reads
or asks what time it is by itself: `run` is a generator of steps, which a driver carries out (sync.py, asynchronous.py)
and answers. So both clients do the same, and so does a test in virtual time.

    step            what the driver does                                       it answers
    Pause(s)        waits
    Ask(why)        gets a token, for this reason, unless it has one
    Send(…)         sends a request, reads the head of its answer              Head
    READ            waits for the next piece of the body                       bytes; None at its end
    CLOSE           closes the connection, if one is open
    LOCATED         goes on: the address of what was started is known
    Event           hands it to the app, and goes on when that wants more

Where a step fails for now, the driver throws Lost into the generator, or Silent where a read had waited for too long.
What fails for good leaves the generator as a StreamError. At its end (StopIteration) the answer has ended.

States, as they follow each other in one try:

    paused → token → (after a gap: text) → head → body ─ ending → over
       ↑                                             └ anything else ┐
       └──────────── wait, or at once ───────────────────────────────┘

Races, and why they are none:
- A frame counts when its blank line is there. So the cursor is never ahead of what was folded, and a cut anywhere
  between is repaired by asking from the cursor.
- The app may leave at any event: the generator is closed there, and the driver closes the connection. The answer is
  that of the event which the app was given last, so `run` (or `follow(id, answer=…)`) goes on behind it.
- Nothing is read while the app works. What the server says then waits in the sockets, and a server that gives up on it
  (`too_slow`) is a cut like any other. The silence of that time is not the network's: only a read that waits is timed.
- Redis may forget a second in which a stream was cancelled. The ending is put back below what was read: the answer is
  read once more from the start, and the app, which has had more, is given nothing.
- A POST whose answer is lost may have started something: it is repeated with the same Idempotency-Key until a Location
  is known, and from then on there are only GETs.

`is_raw` is the same loop over the log's lines (lines.py): notices are handed to the app, and so is an ending below the
cursor. A gap ends nothing then, and there is no `text` in a try.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from lastevent.client.answer import Answer
from lastevent.client.errors import Lost, Silent, StreamError
from lastevent.client.folding import changed, fold
from lastevent.client.frames import Frame, Frames
from lastevent.client.lines import Line, Lines
from lastevent.events import Event

_log = logging.getLogger("lastevent")

SILENCE_S = 40.0
"""The server says something every 4 s, but proxies hold it back."""

_RETRY_MS = 1000
"""Until the server says another."""

_LEAST_RETRY_MS = 100
_LONGEST_RETRY_AFTER_S = 300.0
_LONGEST_WAIT_S = 30.0

_RENEWAL_S = 20.0
"""Less than a token lives: one that is over so soon is the same again, or no better."""

_WORTH_A_WARNING = 3
"""Tries in a row: a deploy is over by then, a wrong address is not. Warnings are seen without any setting up."""

_MOST_PROBLEM_BYTES = 65536

_ENDINGS = frozenset({"done", "error", "cancelled"})

_LATER = frozenset({408, 425, 429})
"""The 4xx that say so."""

_FOLDER = re.compile(r"[^?#]*/")
_ORIGIN = re.compile(r"([a-z][a-z\d+.-]*:)?[/\\]{2,}[^/\\?#]*", re.IGNORECASE)
_CALL = re.compile(r"(/events)?(?=$|[?#])")


class Pause(NamedTuple):
    seconds: float


class Ask(NamedTuple):
    why: str | None
    """None, `refused` or `expiring`."""


class Send(NamedTuple):
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None


class Head(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Its names know no case."""


class _Only(NamedTuple):
    name: str


READ = _Only("read")
CLOSE = _Only("close")
LOCATED = _Only("located")

Step = Pause | Ask | Send | _Only | Event
Steps = Generator[Step, Any, None]


class _AtOnce(Exception):
    """The next connection is made without a wait."""


@dataclass(frozen=True)
class Starting:
    """What is posted until the stream's address is known."""

    url: str
    body: Mapping[str, Any]
    idempotency_key: str


class World(NamedTuple):
    """What is asked of the outside; a test has one of its own. Seconds."""

    now: Callable[[], float]
    """Monotonic."""
    wall: Callable[[], float]
    """Since 1970: only for a Retry-After that is a date."""
    random: Callable[[], float]
    """From 0 to 1."""
    sleep: Callable[[float], Any]
    """For so many seconds; of the asynchronous client it is awaited."""


class Following:
    def __init__(
        self,
        world: World,
        *,
        url: str | None = None,
        starting: Starting | None = None,
        answer: Answer | None = None,
        is_behind_cursor: bool = False,
        is_raw: bool = False,
        is_renewable: bool = False,
        patience_s: float | None = None,
        on_lost: Callable[[StreamError], None] | None = None,
    ) -> None:
        """`url` of the stream's events, or `starting`.

        `is_behind_cursor`: what stands before the answer's cursor is nobody's wish. `is_raw`: events are given as the
        log has them, and notices too; nothing is made of a gap. `is_renewable`: Ask gives another token if there is a
        reason. `on_lost` hears of each connection that was lost, before the next try.
        """
        self.url = url
        self.answer = answer or Answer()
        self._starting = starting
        self._world = world
        self._is_raw = is_raw
        self._is_renewable = is_renewable
        self._patience_s = patience_s
        self._on_lost = on_lost

        self._given = self.answer.cursor if is_behind_cursor else 0
        """The last id, also where the answer is read once more from the beginning."""
        self._snapshot_at: float = self._given
        """What precedes this id was not read as events. Infinity: of what follows there is only the ending."""
        self._lacks_text = False
        self._is_read = False  # from no cursor for a second time

        self._tries = 0  # connections in a row that brought no new event, and did not stand for long either
        self._retry_s = _RETRY_MS / 1000
        self._due_at = 0.0  # the next try, by our own patience
        self._not_before = 0.0  # and by the server's word
        self._opened_at = self._heard_at = 0.0
        self._lost_at: float | None = None  # the first loss since the last event

        self._why: str | None = None
        self._is_refused = False  # the last token; this one is another
        self._renewable_at = 0.0

    @property
    def id(self) -> str:
        """Of the stream. It is the last part of its address."""
        path = urlsplit(self.url or "").path.removesuffix("/events")
        return unquote(path.rpartition("/")[2])

    def run(self) -> Steps:
        """Every event behind the cursor, to the ending. Raises StreamError."""
        while not self.answer.has_ended:
            cursor = self.answer.cursor
            lost: Lost | StreamError | None = None
            try:
                yield from self._pause()
                yield from self._connect()
            except _AtOnce:
                pass
            except _Refused as refused:
                lost = refused.error
            except Lost as error:
                lost = error
            yield CLOSE
            if self.answer.cursor > cursor or self._heard_at - self._opened_at > _LONGEST_WAIT_S:
                self._tries, self._lost_at = 0, None
            if lost:
                self._plan(lost)

    def _plan(self, lost: Lost | StreamError) -> None:
        """A mere answer is no progress: a server that drains says 200, and cuts at once. Raises StreamError `lost`."""
        now = self._world.now()
        wait = min(self._retry_s * 2 ** min(self._tries, 32), _LONGEST_WAIT_S) * (1 + self._world.random()) / 2
        self._tries += 1
        self._due_at = now + wait
        error = lost if isinstance(lost, StreamError) else StreamError("lost", 0, str(lost))
        self._lost_at = now if self._lost_at is None else self._lost_at
        if self._patience_s is not None:
            last = self._lost_at + self._patience_s
            if now >= last or self._not_before > last:
                raise StreamError("lost", error.status, f"{error}; gave up after {self._patience_s:g} s") from error
            self._due_at = min(self._due_at, last)
        level = logging.WARNING if self._tries >= _WORTH_A_WARNING else logging.INFO
        _log.log(level, "%s: %s; try %d in %.1f s", self._name(), error, self._tries + 1, self._wait_s())
        if self._on_lost:
            self._on_lost(error)

    def _name(self) -> str:
        """For a log: without the query, in which there may be a token, and without a password."""
        url = self.url or (self._starting.url if self._starting else "")
        return shown(url.partition("?")[0])

    def _wait_s(self) -> float:
        return max(self._due_at, self._not_before) - self._world.now()

    def _pause(self) -> Steps:
        wait_s = self._wait_s()
        if wait_s > 0:
            self._heard_at = self._opened_at
            yield Pause(wait_s)

    def _connect(self) -> Steps:
        self._opened_at = self._heard_at = self._world.now()
        yield Ask(self._why)
        self._why = None
        if self._lacks_text:
            yield from self._read_text()
        yield from self._open()
        yield from self._read()

    def _open(self) -> Steps:
        cursor = self.answer.cursor
        media_type = "application/x-ndjson" if self._is_raw else "text/event-stream"
        headers = {"Accept": media_type}
        if cursor:
            headers["Last-Event-ID"] = str(cursor)
        url = self.url
        if url is not None:
            head = yield Send("GET", url if self._is_raw else _compact(url), headers)
        else:
            starting = self._starting
            assert starting
            headers |= {"Idempotency-Key": starting.idempotency_key, "Content-Type": "application/json"}
            head = yield Send("POST", starting.url, headers, to_json(starting.body))
        yield from self._judge(head)
        is_stream = head.headers.get("Content-Type", "").lower().startswith(media_type)
        if url is None and self._locate(head, is_stream):
            yield LOCATED
        if not is_stream:
            if url != self.url:
                raise _AtOnce
            raise _Refused(StreamError("not_a_stream", head.status, "what answers is no stream"))  # a captive portal

    def _judge(self, head: Head) -> Steps:
        """Raises at each answer that is none."""
        status = head.status
        if status == 204:
            self._reread(StreamError("no_ending", 204, "the server has nothing more, and said no ending"))
        if 200 <= status < 300:
            self._is_refused = False
            return
        after_s = retry_after_s(head.headers.get("Retry-After", ""), self._world.wall())
        if after_s > 0:
            self._not_before = self._world.now() + min(after_s, _LONGEST_RETRY_AFTER_S)
        error = refusal(status, (yield from self._body(_MOST_PROBLEM_BYTES, is_whole=False)))
        if error.code == "bad_cursor":
            self._reread(error)
        if status == 401 and self._is_renewable and not self._is_refused:
            self._is_refused = True
            self._why = "refused"
            raise _AtOnce
        if 400 <= status < 500 and status not in _LATER:
            self._fail(error)
        if 300 <= status < 400:
            error = StreamError("not_a_stream", status, f"HTTP {status}, to {head.headers.get('Location', 'nowhere')}")
        raise _Refused(error)

    def _reread(self, error: StreamError) -> None:
        """The server knows nothing behind our cursor, and we know no ending.

        Behind a snapshot there is only that one; else the text was lost.
        """
        if self._snapshot_at and self._snapshot_at == self.answer.cursor:
            self._snapshot_at = float("inf")
            self._snapshot(self.answer.text, self.answer.cursor - 1)
        else:
            if self._is_read:
                self._fail(error)
            self._is_read = True
            self.answer = Answer()
        raise _AtOnce

    def _fail(self, error: StreamError) -> None:
        if error.status == 410:  # erased: nothing of it is kept here either
            self.answer = Answer()
        raise error

    def _locate(self, head: Head, is_stream: bool) -> bool:
        """Whether the stream's address is known now. Only the path of it counts: another host would get the token."""
        location = head.headers.get("Location")
        if not location:
            if is_stream:
                self._fail(StreamError("no_location", head.status, "the answer to the start has no Location"))
            return False
        assert self._starting
        path = _ORIGIN.sub("", location, count=1) if _ORIGIN.match(location) else location
        base = (_ORIGIN if path.startswith("/") else _FOLDER).match(self._starting.url)
        self.url = beside((base[0] if base else "") + path, "events")
        return True

    def _read(self) -> Steps:
        frames = Lines() if self._is_raw else Frames()
        now = self._world.now
        while True:
            piece = yield READ
            if piece is None:
                raise Lost("the connection was cut")
            self._heard_at = now()
            try:
                for frame in frames.push(piece):
                    event = self._take(frame)
                    if event:
                        yield event
                    if self.answer.ending is not None:
                        return
            except ValueError:
                raise Lost("what was said is no JSON") from None
            finally:
                if frames.retry_ms is not None:
                    self._retry_s = max(frames.retry_ms, _LEAST_RETRY_MS) / 1000

    def _take(self, frame: Frame | Line) -> Event | None:
        """The event, if the app has not had it; a notice, if it wants them."""
        event = Event.received(*frame)
        before = self.answer
        self.answer = fold(before, event)
        if event.id is None:
            self._notice(event)
            return event if self._is_raw and self._snapshot_at != float("inf") else None
        if self.answer is before:
            return self._ending_below(event) if event.kind in _ENDINGS else None
        if event.id <= self._given:
            return None
        self._given = event.id
        return event

    def _ending_below(self, event: Event) -> Event:
        """The log ends before our cursor: what stood there is lost, and was seen. Redis may forget a second."""
        if not self._is_raw:
            self._reread(StreamError("no_ending", 200, "the server has an ending before what was read"))
        assert event.id is not None
        self.answer = fold(changed(self.answer, {"cursor": event.id - 1}), event)
        return event

    def _notice(self, event: Event) -> None:
        if event.kind == "gap" and not self._is_raw:
            self._lacks_text = True  # it has what follows on this connection too
            if self._snapshot_at == float("inf"):
                return  # nothing need stand right before an ending
            if self._snapshot_at and self._snapshot_at == self.answer.cursor:
                raise Lost("there is a gap behind the text too")
            raise _AtOnce
        now = self._world.now()
        if event.kind == "token_expiring" and self._is_renewable and now >= self._renewable_at:
            self._renewable_at = now + _RENEWAL_S
            self._why = "expiring"
            raise _AtOnce

    def _read_text(self) -> Steps:
        assert self.url
        head = yield Send("GET", beside(self.url, "text"), {})
        yield from self._judge(head)
        text = yield from self._body()
        cursor = head.headers.get("Last-Event-ID", "")
        if not cursor.isdecimal() or not int(cursor):
            raise _Refused(StreamError("not_a_stream", head.status, "what answers is no text of a stream"))
        yield CLOSE
        self._snapshot_at = int(cursor)
        self._lacks_text = False
        self._snapshot(text.decode(errors="replace"), int(cursor))

    def _snapshot(self, text: str, cursor: int) -> None:
        change = {"state": "running", "text": text, "cursor": cursor, "incomplete": True}
        self.answer = changed(self.answer, change)

    def _body(self, most: float = float("inf"), is_whole: bool = True) -> Generator[Step, Any, bytes]:
        """What is left of the body. Raises Lost where it is cut, unless half of it will do."""
        until = self._world.now() + SILENCE_S
        pieces: list[bytes] = []
        try:
            while (piece := (yield READ)) is not None:
                pieces.append(piece)
                most -= len(piece)
                if most < 0:
                    break
                if self._world.now() > until:
                    raise Silent("the answer took too long")
        except Silent:
            raise
        except Lost:
            if is_whole:
                raise
        return b"".join(pieces)


class _Refused(Exception):
    """For now, and by these words."""

    def __init__(self, error: StreamError) -> None:
        super().__init__(str(error))
        self.error = error


def refusal(status: int, body: bytes) -> StreamError:
    """What an answer that is none says (RFC 9457)."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        problem = None
    said = problem if isinstance(problem, dict) else {}
    message = said.get("detail") or said.get("title") or f"HTTP {status}"
    return StreamError(str(said.get("code", "not_a_stream")), status, str(message), str(said.get("title") or ""))


def retry_after_s(value: str, wall: float) -> float:
    """Seconds, or a date (RFC 9110, 10.2.3). 0: nothing that is understood."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - wall
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0


def shown(url: str) -> str:
    """An address without the name and the password that may be in it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def beside(url: str, call: str) -> str:
    """The address of another call of the same stream."""
    return _CALL.sub(f"/{call}", url, count=1)


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _compact(url: str) -> str:
    if re.search(r"[?&]compact=", url):
        return url
    return f"{url}{'&' if '?' in url else '?'}compact=1"
