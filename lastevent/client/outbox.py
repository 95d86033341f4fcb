"""What a producer has said, what of it is unsent, and what an answer means. No I/O and no clock: producer.py drives it.

An `Outbox` keeps every event of one stream until the end, encoded. Event n of it has the id n + 2: event 1 is the
server's `queued`. `confirmed` counts those that the log has, as far as answers say; it may go back.

States

    writing   → ending    the ending was said; nothing can be said after it
    ending    → settling  an answer has confirmed it. It is sent again 3 and 10 s later: Redis may lose its last second
                          in a crash, and nobody but us has kept the ending (docs/API.md, "Producing from outside")
    settling  → over      both were answered, or nothing was for a minute
    settling  → ending    the log had lost more than the ending: it is written again, and settles again
    any       → failed    another process writes, the stream has ended, the key is refused: nothing more is sent
    writing   → spoilt    the server takes no event such as this one (422, 413). What is unsent is dropped, and an
                          ending can still be said

Races

- An answer is lost, or says 503: the events may be in the log or not. The same events are sent again under the same
  ids, exactly these: had more been added to them, a refusal of the new ones (422) would look like one of all.
- Redis comes back with less. An append then says `append_gap`, a heartbeat a last id below ours: from there all is
  sent again, so all is kept.
- Redis loses the ending alone, and we have an answer that it is there. Only sending it again finds out.
- A second process with our epoch: the log compares what it has under an id with what comes, and refuses (409).
- An ending within 4 s after a restart of Redis is 503: a lost ending may be about to come back. It waits, and
  what stands before it in its batch does too.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

FIRST = 2
"""The id of a producer's first event."""

BATCH_EVENTS = 500
BATCH_BYTES = 256 * 1024
"""A body may have 1 MiB (LASTEVENT_MAX_BODY_BYTES)."""

MOST_UNSENT = 2000
HEARTBEAT_S = 8.0
"""Of silence. The lease is 30 s: three of them may be lost."""

AGAIN_S = (3.0, 10.0)
"""How long after it was confirmed the ending is sent again."""

SETTLING_LIMIT_S = 60.0
"""A confirmed ending whose repetition nobody answers is left at that."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 8.0
LONGEST_RETRY_AFTER_S = 300.0

ENDINGS = frozenset(["done", "error", "cancelled"])

_KIND = re.compile(r"[a-z][a-z0-9_.]{0,63}", re.ASCII)
_NOT_YOURS = {
    **dict.fromkeys(["queued", "restart"], "only the server writes it"),
    **dict.fromkeys(
        ["gap", "ping", "token_expiring", "presence", "stream", "over", "hello", "ok", "refused"],
        "it is the name of a notice, which has no id",
    ),
    **dict.fromkeys(["open", "close", "end", "message"], "client libraries have it for themselves"),
}
_WAIT = frozenset([408, 425, 429])
_SPOILT = frozenset([413, 422])


class Refusal(NamedTuple):
    """Why nothing more can be written. `code` is the server's."""

    code: str
    status: int
    """Of HTTP; 0: none."""
    detail: str


class Answer(NamedTuple):
    """What a server said. `body`: of a JSON object, else empty."""

    status: int
    body: Mapping[str, Any] = {}
    retry_after_s: float = 0.0
    content: bytes = b""


@dataclass(frozen=True)
class Send:
    """A request that is to be made now. `count` 0: a heartbeat."""

    call: str
    """`events` or `heartbeat`."""
    content: bytes
    at: int
    """How many events stand before the first of these."""
    count: int
    why: str | None
    """`refused`: by another token than before."""


@dataclass(frozen=True)
class Wait:
    """Until something is said, or for so long. None: until something is said."""

    seconds: float | None


class Waits:
    """Between tries that nobody took: 0.1 s, doubled up to 8 s, half of it random. `Retry-After` is the least."""

    def __init__(self, random: Callable[[], float] = random.random) -> None:
        self._random = random
        self._tries = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        longest_s: float = min(FIRST_WAIT_S * 2**self._tries, LONGEST_WAIT_S)
        self._tries = min(self._tries + 1, 10)
        return max(longest_s * (0.5 + self._random() / 2), min(at_least_s, LONGEST_RETRY_AFTER_S))

    def begin_anew(self) -> None:
        self._tries = 0


def is_passing(status: int) -> bool:
    """Whether the same request may be taken later. A 2xx that is none of ours is a portal's, or a proxy's."""
    return 200 <= status < 300 or status in _WAIT or status >= 500


class Outbox:
    """The events of one stream, of which `kept` are in its log already: those of a process before this one."""

    def __init__(
        self, epoch: int, now: float, kept: Iterable[bytes] = (), random: Callable[[], float] = random.random
    ) -> None:
        """`kept`: encoded, from id 2 on; empty are those that this process may not see."""
        self._epoch = epoch
        self._events = list(kept)
        self.confirmed = len(self._events)
        self.refusal: Refusal | None = None
        self.has_ended = False
        """The ending was said."""
        self.spoilt_by: Refusal | None = None
        """Why what was unsent is dropped."""
        self._repeated: int | None = None
        """Of how many events an answer is missing. They are sent again as they were."""
        self._batch_events = BATCH_EVENTS
        self._heard_at = now
        self._waits = Waits(random)
        self._not_before = now
        self._settled_at: float | None = None
        self._again: list[float] = []
        self._token_is_refused = False

    # -- what is said --------------------------------------------------------------------------------------

    def add(self, event: bytes, *, is_ending: bool = False) -> None:
        self._events.append(event)
        self.has_ended |= is_ending

    @property
    def last_id(self) -> int:
        """Of what was said, whether it is in the log yet or not."""
        return len(self._events) + FIRST - 1

    @property
    def unsent(self) -> int:
        return len(self._events) - self.confirmed

    @property
    def is_full(self) -> bool:
        return self.unsent >= MOST_UNSENT

    @property
    def is_confirmed(self) -> bool:
        """The log has it all, the ending too, or never will."""
        return self.refusal is not None or (self.has_ended and self._settled_at is not None)

    @property
    def is_over(self) -> bool:
        return self.refusal is not None or (self._settled_at is not None and not self._again and not self.unsent)

    @property
    def trouble(self) -> Refusal | None:
        """Why nothing can be said any more, but perhaps an ending."""
        return self.refusal or self.spoilt_by

    def fail(self, code: str, status: int, detail: str) -> None:
        self.refusal = Refusal(code, status, detail)

    def silent_s(self, now: float) -> float:
        """For how long no server has taken what is unsent."""
        return now - self._heard_at

    # -- what is done --------------------------------------------------------------------------------------

    def next(self, now: float) -> Send | Wait | None:
        """What is to be done now. None: nothing any more."""
        if self._settled_at is not None and now - self._settled_at > SETTLING_LIMIT_S:
            self._again.clear()
        if self.unsent and not all(self._events[self.confirmed : self.confirmed + 1]):
            self.fail("log_lost_tail", 0, "Redis has lost events of a process before this one, which cannot be read.")
        if self.is_over:
            return None
        if now < self._not_before:
            return Wait(self._not_before - now)
        if self.unsent:
            return self._batch(self.confirmed)
        if self._again:
            return self._batch(len(self._events) - 1) if now >= self._again[0] else Wait(self._again[0] - now)
        return self._heartbeat_if_due(now)

    def answered(self, sent: Send, answer: Answer, now: float) -> None:
        """What the answer to `sent` means."""
        status, body = answer.status, answer.body
        code = str(body.get("code", ""))
        tail = body.get("last_event_id")
        if status == 200 and isinstance(tail, int):
            self._is_heard(now)
            self._confirm(sent, tail, now)
        elif code == "append_gap" and isinstance(tail, int) and FIRST - 1 <= tail < sent.at + FIRST - 1:
            self._is_heard(now)
            self._go_back(tail)
        elif status == 401 and not self._token_is_refused:
            self._token_is_refused = True
        elif status in _SPOILT:
            self._is_heard(now)
            self._split_or_spoil(sent, code, status, str(body.get("detail", "")))
        elif is_passing(status):
            self._wait(sent, now, answer.retry_after_s)
        else:
            # A gap that is none of ours: somebody has written without numbers.
            code = "writer_superseded" if code == "append_gap" else code or "unexpected_answer"
            self.fail(code, status, str(body.get("detail") or f"The server answered {status}."))

    def unanswered(self, sent: Send, now: float) -> None:
        """No network, no server, or an answer that broke off."""
        self._wait(sent, now, 0.0)

    def _batch(self, at: int) -> Send:
        most = self._repeated or self._batch_events
        size = count = 0
        for event in self._events[at : at + most]:
            size += len(event) + 1
            if count and size > BATCH_BYTES and self._repeated is None:
                break
            count += 1
        first, events = at + FIRST, b",".join(self._events[at : at + count])
        content = b'{"epoch":%d,"first":%d,"events":[%b]}' % (self._epoch, first, events)
        return Send("events", content, at, count, self._why)

    @property
    def _why(self) -> str | None:
        return "refused" if self._token_is_refused else None

    def _heartbeat_if_due(self, now: float) -> Send | Wait:
        due_s = self._heard_at + HEARTBEAT_S - now
        if due_s > 0:
            return Wait(due_s)
        return Send("heartbeat", b'{"epoch":%d}' % self._epoch, len(self._events), 0, self._why)

    def _is_heard(self, now: float) -> None:
        self._heard_at = self._not_before = now
        self._waits.begin_anew()
        self._repeated = None
        self._token_is_refused = False

    def _confirm(self, sent: Send, tail: int, now: float) -> None:
        if not sent.count:
            if tail < self.confirmed + FIRST - 1:
                self._go_back(tail)
            return
        self.confirmed = max(self.confirmed, sent.at + sent.count)
        if self.has_ended and self.confirmed == len(self._events):
            if self._settled_at is None:
                self._settled_at = now
                self._again = [now + after_s for after_s in AGAIN_S]
            else:
                self._again = [at for at in self._again if at > now]

    def _go_back(self, tail: int) -> None:
        """The log has nothing behind `tail`."""
        self.confirmed = max(0, tail - FIRST + 1)
        self._settled_at = None
        self._again.clear()

    def _split_or_spoil(self, sent: Send, code: str, status: int, detail: str) -> None:
        if status == 413 and sent.count > 1:
            self._batch_events = sent.count // 2
            return
        if not sent.count or (self.has_ended and self.unsent == 1):
            self.fail(code, status, detail)  # an ending that is refused cannot be replaced by another one
            return
        self.spoilt_by = Refusal(code, status, detail)
        self.has_ended = False  # a `done` behind what is missing would not be true
        del self._events[self.confirmed :]

    def _wait(self, sent: Send, now: float, at_least_s: float) -> None:
        self._repeated = sent.count or None
        self._not_before = now + self._waits.next_s(at_least_s)


def encoded(kind: str, data: Mapping[str, Any]) -> bytes:
    """An event as it is sent. Raises ValueError for a kind that no producer may write, and for what is not JSON."""
    if not _KIND.fullmatch(kind):
        raise ValueError(f"An event's kind is a-z, then up to 63 of a-z, 0-9, _ and ., not {kind[:80]!r}.")
    if kind in _NOT_YOURS:
        raise ValueError(f"No producer writes events of kind {kind!r}: {_NOT_YOURS[kind]}. Choose another name.")
    text = json.dumps({"event": kind, "data": dict(data)}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()
