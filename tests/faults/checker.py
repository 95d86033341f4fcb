"""Judges a run: what every viewer received and what the logs hold in the end, against design §1, G1 to G4 and G6.

It imports nothing of the product: it knows the guarantees, and Redis and the wire only as others have read them.
`check(run)` is the whole of it. Times are seconds since 1970 of the one clock that the machine has.

What is admitted (G6), and nothing else is: an event that a viewer received and the final log lacks, if Redis lost
data (a `Loss`) after it was written *and* nobody was left who could put it back:
- its writer was killed, drained, or stood still for a lease, around that loss
- its writer had lost the pen to a seizure (a cancel) before the loss
- for an ending that was seized: the process that seized it was gone, which only the faults can tell
- for a stream that vanished: nobody had claimed it yet
Even then the viewer must have been told (`gap`), unless it was past those events before they were lost, or had ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

BLOCK = 1_000_000
INTERNAL = "internal."
LEASE_S = 6.0
SILENCE_LIMIT_S = 10.0
TERMINAL = frozenset({"done", "error", "cancelled"})

HEALING_S = LEASE_S + 2.0
"""After a restart of Redis nothing is claimed for a lease; then the sweeper's second, and the claim."""

SPARED_S = 6.0
LONG_OUTAGE_S = 2.0
"""After an outage leases have run out whose owners live: for two heartbeats and a sweep nobody takes them."""

LATE_S = 60.0
"""How long after an event was written a slow viewer may receive it."""


# -- what a run consists of ------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An event as the final log has it; `t` in ms."""

    id: int
    kind: str
    data: str
    t: int


@dataclass(frozen=True)
class FinalStream:
    """A stream at the end of the run, read raw. `state` and `tail` are meta's; without meta, None."""

    sid: str
    entries: list[Entry]
    state: str | None
    tail: int | None


class Connected(NamedTuple):
    at: float
    last_event_id: int | None


class Received(NamedTuple):
    at: float
    id: int
    kind: str
    data: str


class Notice(NamedTuple):
    """`gap`."""

    at: float
    requested: int
    earliest: int
    reason: str


class Closed(NamedTuple):
    """A connection that had answered 200 is over; `complete`: with the final chunk."""

    at: float
    complete: bool


class Refused(NamedTuple):
    """Any other answer than 200, 204 too."""

    at: float
    status: int


@dataclass
class Transcript:
    """What happened to one viewer, in order. `finished`: it believes that it has seen the stream's end."""

    viewer: str
    sid: str
    items: list[Connected | Received | Notice | Closed | Refused] = field(default_factory=list)
    finished: bool = False
    is_public: bool = False
    """It asked for what end users see: everything but `internal.…`."""

    @property
    def received(self) -> Iterator[Received]:
        return (item for item in self.items if isinstance(item, Received))


class Told(NamedTuple):
    """What the caller of a cancel was answered."""

    at: float
    sid: str
    state: str
    last_event_id: int
    stopped_after: int


class Loss(NamedTuple):
    """Redis went away at `at`, came back at `until`, and has nothing that was written after `back_to`."""

    at: float
    until: float
    back_to: float


class Away(NamedTuple):
    """A process that was not there. `until` is when it went on: never (inf) if it was killed or has drained."""

    process: str
    at: float
    until: float


class Held(NamedTuple):
    """At `at`, this process held the pen of that base."""

    at: float
    process: str
    base: int


class Kill(NamedTuple):
    at: float
    process: str
    sids: list[str]


@dataclass
class History:
    """The faults, as far as they decide what is admitted. Outages: when Redis could not be written."""

    created: dict[str, float] = field(default_factory=dict)
    asked_again: set[str] = field(default_factory=set)
    """Streams whose creation was asked for more than once: nobody knows whether Redis lost an earlier one."""
    losses: list[Loss] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    workers_away: list[Away] = field(default_factory=list)
    servers_away: list[Away] = field(default_factory=list)
    cut_off: list[Away] = field(default_factory=list)
    """Workers that were there, and could write nothing or were answered nothing."""
    kills: list[Kill] = field(default_factory=list)
    held: dict[str, list[Held]] = field(default_factory=dict)
    is_roll_out: bool = False
    """Another release runs beside this one: one that takes meta's tail for the log's, which a heartbeat found there."""


@dataclass
class Run:
    streams: list[FinalStream]
    transcripts: list[Transcript]
    told: list[Told] = field(default_factory=list)
    history: History = field(default_factory=History)


# -- what the checker answers ----------------------------------------------------------------------------


class Finding(NamedTuple):
    rule: str
    sid: str
    viewer: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: stream {self.sid}{self.viewer and f', viewer {self.viewer}'}: {self.what}"


class Silence(NamedTuple):
    """From a worker's death to the next event: as it was, and without the time nobody could have written."""

    sid: str
    raw_s: float
    own_s: float


LOST, BEHIND_ENDING, DOUBLED, REORDERED, CHANGED = (
    "lost",
    "behind its ending",
    "doubled",
    "reordered",
    "changed its meaning",
)
ENDING, HOLE, NOTICE, VANISHED = "wrong ending", "hole", "wrong notice", "vanished"
STRANDED, REFUSED, SILENT, TOLD = "stranded viewer", "refused", "silence", "told otherwise"
SHOWN = "shown to end users"
RULES = (
    LOST,
    BEHIND_ENDING,
    DOUBLED,
    REORDERED,
    CHANGED,
    ENDING,
    HOLE,
    NOTICE,
    VANISHED,
    STRANDED,
    REFUSED,
    SILENT,
    TOLD,
    SHOWN,
)


@dataclass
class Verdict:
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """How often each rule was broken, in events where it is about events."""
    admitted: Counter[str] = field(default_factory=Counter)
    """Events that are gone though a viewer saw them, by the reason that design G6 admits."""
    admitted_sids: set[str] = field(default_factory=set)
    silences: list[Silence] = field(default_factory=list)

    def find(self, rule: str, sid: str, viewer: str, what: str, times: int = 1) -> None:
        self.findings.append(Finding(rule, sid, viewer, what))
        self.counts[rule] += times

    def admit(self, sid: str, reason: str, times: int = 1) -> None:
        self.admitted[reason] += times
        self.admitted_sids.add(sid)

    def longest_silence(self) -> Silence:
        return max(self.silences, key=lambda silence: silence.own_s, default=Silence("", 0.0, 0.0))

    def longest_raw_silence_s(self) -> float:
        return max((silence.raw_s for silence in self.silences), default=0.0)


def check(run: Run, *, silence_limit_s: float = SILENCE_LIMIT_S) -> Verdict:
    verdict = Verdict()
    streams = {stream.sid: stream for stream in run.streams if stream.entries or stream.state is not None}
    watched: dict[str, list[Transcript]] = {sid: [] for sid in streams}
    for transcript in run.transcripts:
        watched.setdefault(transcript.sid, []).append(transcript)
    for sid, transcripts in watched.items():
        told = [answer for answer in run.told if answer.sid == sid]
        _Stream(sid, streams.get(sid), transcripts, told, run.history, verdict).check()
    for silence in _silences(run):
        verdict.silences.append(silence)
        if silence.own_s > silence_limit_s:
            what = f"{silence.own_s:.1f} s from its worker's death to its next event (in all {silence.raw_s:.1f} s)"
            verdict.find(SILENT, silence.sid, "", what)
    return verdict


# -- one stream ------------------------------------------------------------------------------------------


class _Stream:
    def __init__(
        self,
        sid: str,
        final: FinalStream | None,
        transcripts: list[Transcript],
        told: list[Told],
        history: History,
        verdict: Verdict,
    ) -> None:
        self.sid = sid
        self.final = final
        self.entries = final.entries if final else []
        self.log = {entry.id: entry for entry in self.entries}
        self.public_log = {id: entry for id, entry in self.log.items() if not entry.kind.startswith(INTERNAL)}
        self.transcripts = transcripts
        self.told = told
        self.history = history
        self.verdict = verdict
        self.admission = _Admission(self)

    def check(self) -> None:
        self._check_meanings()
        if self.final is None:
            self._check_vanished()
            return
        self._check_order_and_holes()
        self._check_ending()
        for transcript in self.transcripts:
            _Viewer(self, transcript).check()
        self._check_answers()

    def find(self, rule: str, what: str, times: int = 1, viewer: str = "") -> None:
        self.verdict.find(rule, self.sid, viewer, what, times)

    def _check_meanings(self) -> None:
        """G1: an id names the same event to everybody, also one that is gone."""
        meaning: dict[int, tuple[str, str]] = {entry.id: (entry.kind, entry.data) for entry in self.entries}
        changed: set[int] = set()
        for transcript in self.transcripts:
            for event in transcript.received:
                known = meaning.setdefault(event.id, (event.kind, event.data))
                if known != (event.kind, event.data) and event.id not in changed:
                    changed.add(event.id)
                    what = f"event {event.id} is {event.kind} {event.data} here, and elsewhere {known[0]} {known[1]}"
                    self.find(CHANGED, what, viewer=transcript.viewer)

    def _check_vanished(self) -> None:
        reason = self.admission.of_vanished()
        seen = {event.id for transcript in self.transcripts for event in transcript.received}
        if reason:
            self.verdict.admit(self.sid, reason, max(1, len(seen)))
        else:
            self.find(VANISHED, f"it was created, and is gone with the {len(seen)} events that were seen of it")

    def _check_order_and_holes(self) -> None:
        """G1: dense, but for the jumps of a pen that changed hands."""
        if not self.entries or self.entries[0].id != 1 or self.entries[0].kind != "queued":
            self.find(HOLE, f"the log begins with {self.entries[:1]}, not with event 1, queued")
        for before, after in pairwise(self.entries):
            if after.id <= before.id:
                self.find(REORDERED, f"the log has {after.id} behind {before.id}")
            elif after.id != before.id + 1 and not self._is_new_pen(before, after):
                self.find(HOLE, f"the log has {after.id} ({after.kind}) behind {before.id} ({before.kind})")

    def _is_new_pen(self, before: Entry, after: Entry) -> bool:
        if after.id % BLOCK != 1:
            return False
        if after.kind == "restart" or after.kind in TERMINAL:
            return True
        # A first claim under another boot of Redis jumps too: an earlier claim may be among what was lost.
        created = self.entries[0].t / 1000
        may_be_another = self.sid in self.history.asked_again or any(at >= created - 1 for at in self.history.restarts)
        return before.id == 1 and after.kind == "start" and may_be_another

    def _check_ending(self) -> None:
        """G3: exactly one, the last; and the state bears its name."""
        assert self.final
        endings = [at for at, entry in enumerate(self.entries) if entry.kind in TERMINAL]
        if not endings:
            self.find(ENDING, f"no ending; its state is {self.final.state}")
            return
        first, last = self.entries[endings[0]], self.entries[-1]
        if len(endings) > 1:
            ids = [self.entries[at].id for at in endings]
            self.find(ENDING, f"a second ending: {ids}", len(endings) - 1)
        if (after := len(self.entries) - 1 - endings[0]) > len(endings) - 1:
            self.find(ENDING, f"{after} events after the ending {first.id}")
        if self.final.state != last.kind:
            self.find(ENDING, f"its state is {self.final.state}, and the log ends with {last.kind} {last.id}")
        if self.final.tail != last.id:
            self.find(ENDING, f"meta says that its tail is {self.final.tail}, and the log ends at {last.id}")

    def _check_answers(self) -> None:
        """G6: what the caller of a cancel was told stays true."""
        for answer in self.told:
            entry = self.log.get(answer.last_event_id)
            if entry and entry.kind == answer.state and entry is self.entries[-1]:
                self._check_stopped_after(answer)
            elif reason := self.admission.of(Received(answer.at, answer.last_event_id, answer.state, "")):
                self.verdict.admit(self.sid, reason)
            else:
                self.find(TOLD, f"a cancel was answered {answer.state} {answer.last_event_id}, which is not its ending")

    def _check_stopped_after(self, answer: Told) -> None:
        before = self.entries[-2].id if len(self.entries) > 1 else 0
        may_be_lost = any(loss.until >= self.history.created.get(self.sid, 0.0) for loss in self.history.losses)
        if answer.stopped_after != before and not may_be_lost and not self.history.is_roll_out:
            self.find(TOLD, f"a cancel was answered stopped_after {answer.stopped_after}; the log says {before}")


# -- one viewer of it ------------------------------------------------------------------------------------


class _Viewer:
    """G2: walks through what one viewer got."""

    def __init__(self, stream: _Stream, transcript: Transcript) -> None:
        self.stream = stream
        self.log = stream.public_log if transcript.is_public else stream.log
        self.transcript = transcript
        self.seen: set[int] = set()
        self.last: Received | None = None
        self.connected_at = 0.0
        self.notice: Notice | None = None
        self.kept_cursor = 0
        """The last event received that the log still has."""
        self.excused: list[tuple[int, int]] = []

    def check(self) -> None:
        for item in self.transcript.items:
            match item:
                case Connected():
                    self._connected(item)
                case Received():
                    self._received(item)
                case Notice():
                    self._notified(item)
                case Closed():
                    self._closed(item)
                case Refused():
                    self._refused(item)
        self._check_losses()
        if not self.transcript.finished:
            self.find(STRANDED, f"it never saw the end; its last event is {self.last and self.last.id}")

    def find(self, rule: str, what: str, times: int = 1) -> None:
        self.stream.find(rule, what, times, self.transcript.viewer)

    @property
    def has_ended(self) -> bool:
        return self.last is not None and self.last.kind in TERMINAL

    def _connected(self, item: Connected) -> None:
        if item.last_event_id != (self.last and self.last.id):
            raise ValueError(f"{self.transcript.viewer} is no fair viewer: it presents {item.last_event_id}")
        self.connected_at = item.at

    def _received(self, event: Received) -> None:
        if event.id in self.seen:
            self.find(DOUBLED, f"event {event.id} came twice")
        elif self.last and self.has_ended and not self._was_lost(self.last):
            self.find(ENDING, f"event {event.id} ({event.kind}) after the ending {self.last.id}")
        elif self.last and event.id < self.last.id and not self._is_ending_alone(event):
            self.find(REORDERED, f"event {event.id} came after {self.last.id}")
        self._check_notice(event)
        if self.transcript.is_public and event.kind.startswith(INTERNAL):
            self.find(SHOWN, f"event {event.id} is {event.kind}, which is for operators")
        if self.notice and event.id != self._next_visible(self.notice.earliest):
            self.find(NOTICE, f"gap said that {self.notice.earliest} follows, but {event.id} did")
        self.seen.add(event.id)
        self.last, self.notice = event, None
        if event.id in self.log:
            self.kept_cursor = max(self.kept_cursor, event.id)

    def _next_visible(self, id: int) -> int:
        """`gap` names an event of the log, which the viewer's audience may not see."""
        if id in self.log or id not in self.stream.log:
            return id
        return min((later for later in self.log if later > id), default=id)

    def _was_lost(self, event: Received) -> bool:
        return event.id not in self.log

    def _is_ending_alone(self, event: Received) -> bool:
        """Below the cursor only the ending is sent, and only if the log has nothing at the cursor or after it."""
        assert self.last
        return event.kind in TERMINAL and self._was_lost(self.last)

    def _check_notice(self, event: Received) -> None:
        """Who goes on from an event that was lost is told so first."""
        last = self.last
        if not last or self.notice or not self._was_lost(last) or event.id not in self.log:
            return
        if not self._went_on_before_it_was_lost(event):
            self.find(NOTICE, f"it went on from {last.id}, which is lost, to {event.id}, and was not told")

    def _went_on_before_it_was_lost(self, event: Received) -> bool:
        t = self.log[event.id].t / 1000  # a healed event keeps its first time
        return any(t <= loss.at and self.connected_at <= loss.until for loss in self.stream.history.losses)

    def _notified(self, notice: Notice) -> None:
        last = self.last.id if self.last else 0
        has_hidden_behind = self.transcript.is_public and notice.requested > last  # how far its connection had come
        if notice.requested != last and not has_hidden_behind:
            self.find(NOTICE, f"gap said that it had asked for what follows {notice.requested}")
        elif notice.requested in self.stream.log or notice.requested == 0:
            self.find(NOTICE, f"gap ({notice.reason}) said that {notice.requested} is lost, but it is in the log")
        self.excused.append((self.kept_cursor, notice.requested))
        self.notice = notice

    def _closed(self, item: Closed) -> None:
        self.notice = None  # who is cut behind a notice asks again, and is told again
        if item.complete and not self.has_ended:
            self.find(STRANDED, f"its answer ended properly after {self.last and self.last.id}, which is no ending")

    def _refused(self, item: Refused) -> None:
        if item.status == 204:
            if not self.has_ended:
                self.find(STRANDED, f"204, though its last event, {self.last and self.last.id}, is no ending")
        else:
            self.find(REFUSED, f"it was answered {item.status}, which ends an EventSource for good")

    def _check_losses(self) -> None:
        ends_in_log = self.has_ended and self.last is not None and not self._was_lost(self.last)
        missing = [
            id
            for id in self.log
            if id not in self.seen and (ends_in_log or id < self.kept_cursor) and not self._is_excused(id)
        ]
        late = [id for id in missing if self._was_written_after_its_ending(id)]
        if late:
            what = f"{_ranges(late)} were written below the ending {self.last and self.last.id} after it had been seen"
            self.find(BEHIND_ENDING, what, len(late))
        if missing := sorted({*missing} - {*late}):
            self.find(LOST, f"it never got {_ranges(missing)}, and was not told", len(missing))
        self._check_ghosts()

    def _was_written_after_its_ending(self, id: int) -> bool:
        """Redis lost the ending, a writer that did not know of it went on, and then the ending was put back."""
        ending = self.last
        return self.has_ended and ending is not None and id < ending.id and self.log[id].t / 1000 > ending.at

    def _is_excused(self, id: int) -> bool:
        """Written below a cursor that was lost, after it: by an older pen, when Redis had lost the newer one."""
        passed = next((event for event in self.transcript.received if event.id > id), None)
        is_below_lost_cursor = any(low < id < requested for low, requested in self.excused)
        return is_below_lost_cursor and passed is not None and self.log[id].t / 1000 >= passed.at

    def _check_ghosts(self) -> None:
        """Events that it received and that the log does not have."""
        unexplained = []
        for event in self.transcript.received:
            if self._was_lost(event):
                if reason := self.stream.admission.of(event):
                    self.stream.verdict.admit(self.stream.sid, reason)
                else:
                    unexplained.append(event.id)
        if unexplained:
            what = f"it received {_ranges(unexplained)}, which the log has lost, though somebody could put it back"
            self.find(LOST, what, len(unexplained))


# -- what design G6 admits -------------------------------------------------------------------------------


class _Admission:
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._history = stream.history
        self._known: dict[int, str] = {}

    def of(self, event: Received) -> str:
        """Why this event, received and not in the final log, may be lost; "" if it may not."""
        if event.id not in self._known:
            losses = (loss for loss in self._history.losses if loss.back_to <= event.at <= loss.at + LATE_S)
            self._known[event.id] = next(filter(None, (self._reason(event, loss) for loss in losses)), "")
        return self._known[event.id]

    def _reason(self, event: Received, loss: Loss) -> str:
        writers = self._writers(event.id)
        if self._had_gone(writers, loss):
            return f"Redis lost it, and {'its writer' if writers else 'a worker, perhaps its writer,'} had gone"
        if self._was_seized(event, loss):
            return "Redis lost it, and its writer had lost the pen to a seizure"
        if _is_seized(event) and any(_overlaps(away, loss) for away in self._history.servers_away):
            return "Redis lost an ending, and who seized it had gone"
        return ""

    def of_vanished(self) -> str:
        created = self._history.created.get(self._stream.sid)
        for loss in self._history.losses:
            if created is not None and loss.back_to <= created and (reason := self._reason_to_vanish(loss)):
                return reason
        return ""

    def _reason_to_vanish(self, loss: Loss) -> str:
        events = [event for transcript in self._stream.transcripts for event in transcript.received]
        claimed = [event for event in events if event.kind != "queued" and not _is_seized(event)]
        if not claimed and not self._history.held.get(self._stream.sid):
            return "Redis lost a stream that nobody had claimed"
        if any(_is_seized(event) for event in events) or self._stream.told:
            return "Redis lost a stream whose writer had lost the pen to a seizure"
        last = max(claimed, key=lambda event: event.id, default=None)
        if self._had_gone(self._writers(last.id if last else 2), loss):
            return "Redis lost a stream, and its writer had gone"
        return ""

    def _writers(self, id: int) -> set[str] | None:
        """Who held the pen that wrote this id; None if nobody looked at the time, so that it may be any worker."""
        held = self._history.held.get(self._stream.sid, [])
        return {pen.process for pen in held if _block(pen.base) == _block(id)} or None

    def _had_gone(self, writers: set[str] | None, loss: Loss) -> bool:
        return any(
            _overlaps(away, loss) for away in self._history.workers_away if writers is None or away.process in writers
        )

    def _was_seized(self, event: Received, loss: Loss) -> bool:
        """Its writer was fenced before the loss, by a seizure that the log has, or that somebody saw or was told of."""
        return any(_block(id) > _block(event.id) and at <= loss.until for id, at in self._seizures())

    def _seizures(self) -> Iterator[tuple[int, float]]:
        stream = self._stream
        events = [Received(entry.t / 1000, entry.id, entry.kind, "") for entry in stream.entries[-1:]]
        events += (event for transcript in stream.transcripts for event in transcript.received)
        yield from ((event.id, event.at) for event in events if _is_seized(event))
        yield from ((answer.last_event_id, answer.at) for answer in stream.told)


def _overlaps(away: Away, loss: Loss) -> bool:
    """It was gone when the loss was to be made good. What is lost was written after `back_to`, so it lived then."""
    begin, end = loss.back_to, loss.until + HEALING_S
    if away.until == float("inf"):
        return begin <= away.at <= end
    return away.until - away.at >= LEASE_S and away.at <= end and away.until >= begin


def _is_seized(event: Received) -> bool:
    return event.kind in TERMINAL and event.id % BLOCK == 1


def _block(id: int) -> int:
    return (id - 1) // BLOCK


# -- G4: silence after a worker's death ------------------------------------------------------------------


def _silences(run: Run) -> Iterator[Silence]:
    history = run.history
    signs = _signs_of_life(run)
    for kill in history.kills:
        for sid in kill.sids:
            until = _next_pen_at(signs.get(sid, []), kill.at)
            if until and not any(kill.at < other.at < until and sid in other.sids for other in history.kills):
                excused_s = _overlap(kill.at, until, [*_unwritable(history), *_stops_of_heirs(history, sid, kill)])
                yield Silence(sid, until - kill.at, until - kill.at - excused_s)


def _unwritable(history: History) -> Iterator[tuple[float, float]]:
    for begin, end in history.outages:
        yield begin, end + (SPARED_S if end - begin > LONG_OUTAGE_S else 0.0)
    for at in history.restarts:
        yield at, at + HEALING_S


def _stops_of_heirs(history: History, sid: str, kill: Kill) -> Iterator[tuple[float, float]]:
    """A worker that was stopped, or cut off, just when it had taken the stream over."""
    heirs = {held.process for held in history.held.get(sid, []) if held.at > kill.at} - {kill.process}
    for away in (*history.workers_away, *history.cut_off):
        if away.process in heirs and away.until < float("inf"):
            yield away.at, away.until


def _signs_of_life(run: Run) -> dict[str, list[tuple[int, float, str]]]:
    """What there was of each stream, and when: by the log, or by the first who received what the log has lost."""
    signs: dict[str, dict[int, tuple[float, str]]] = {}
    for transcript in run.transcripts:
        of_stream = signs.setdefault(transcript.sid, {})
        for event in transcript.received:
            if event.id not in of_stream or event.at < of_stream[event.id][0]:
                of_stream[event.id] = event.at, event.kind
    for stream in run.streams:
        signs.setdefault(stream.sid, {}).update((entry.id, (entry.t / 1000, entry.kind)) for entry in stream.entries)
    return {sid: [(id, at, kind) for id, (at, kind) in sorted(seen.items())] for sid, seen in signs.items()}


def _next_pen_at(signs: list[tuple[int, float, str]], killed_at: float) -> float | None:
    """When the next pen wrote; None if the killed worker had finished, or nobody ever wrote again."""
    before = [id for id, at, _ in signs if at <= killed_at]
    if not before:
        return None
    # What was on its way under the old pen may still arrive, its ending too.
    pen = _block(before[-1])
    if any(kind in TERMINAL for id, _, kind in signs if _block(id) == pen):
        return None
    return min((at for id, at, _ in signs if _block(id) > pen and at > killed_at), default=None)


def _overlap(begin: float, end: float, intervals: Iterable[tuple[float, float]]) -> float:
    merged: list[tuple[float, float]] = []
    for a, b in sorted(intervals):
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return sum(max(0.0, min(end, b) - max(begin, a)) for a, b in merged)


def _ranges(ids: Iterable[int]) -> str:
    """3, 7-9."""
    runs: list[list[int]] = []
    for id in sorted(ids):
        if runs and id == runs[-1][1] + 1:
            runs[-1][1] = id
        else:
            runs.append([id, id])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
