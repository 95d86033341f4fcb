"""What of a conversation one viewer has been given: the state behind its cursor (dialects/vector.py). No I/O.

A stream is unknown, then one of these, and never unknown again while this viewer is here:
- waiting    it is to be given, and is not open yet. `at` does not pass it
- named      it is not at its end: `n` is the last event given (0: none yet). A stream becomes named, as 0, in the step
             in which `at` passes it: from then on every cursor names it
- ended      it was given to its end, or had ended before this viewer first came
- not shown  it is not this caller's. Cursors do not name it: its id is nobody's business

`at` is the creation of the newest stream that it has passed, not the time: of two Redis servers' clocks neither need be
right, and a viewer that waits for a week has a cursor that says since when.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from broker.dialects.vector import AT_END, MAX_BYTES, MAX_NAMED, SLACK_MS, Vector

MOST_OPEN = 32
"""Streams that are named at a time, but for those that have ended; so many are open."""

REMEMBERED = 10_000
"""Streams whose end a connection remembers. One that Redis loses and its writer puts back is not given again."""


class Listed(NamedTuple):
    """A stream in a session's listing. They compare in the order of creation (ms)."""

    created: int
    sid: str


class Ledger:
    """`start`: the viewer's cursor; None: it comes for the first time. `now_ms`: Redis' clock, read before the listing.

    `is_fixed`: the streams are those that `start` names, and no others: all of them stay named.
    """

    def __init__(self, start: Vector | None, now_ms: int, *, is_fixed: bool = False) -> None:
        self.at = start.at if start else 0
        named = start.named if start else {}
        self.unfinished: dict[str, int] = {sid: n for sid, n in named.items() if n is not AT_END}
        self.waiting: list[Listed] = []
        self._is_fixed = is_fixed
        self.is_first = start is None
        self._clock_went_back = start is not None and now_ms < start.at
        self._is_cut = start is not None and start.is_cut
        self._left_out = Listed(0, "")  # what is left out is no newer than this
        self._has_read = False
        self._created: dict[str, int] = {}
        self._ended = [sid for sid, n in named.items() if n is AT_END]
        self._known = dict.fromkeys(named)
        self._newest = start.at if start else now_ms

    # -- what the listing says ---------------------------------------------------------------------------------

    @property
    def reads_from(self) -> int:
        """Up to a minute before it, and whatever is newer, a listing may have what is unknown here."""
        return self.at if self._has_read else self._newest

    def unknown(self, listed: Iterable[Listed]) -> list[tuple[Listed, bool]]:
        """Those that the viewer has not been told of, oldest first; and of each whether it is new: given also if it has
        ended. Of the others those that run are given: one that was put back, or that ran when this viewer came.
        """
        listed = sorted(listed)
        self._created |= {one.sid: one.created for one in listed if one.sid in self._known}
        oldest_new = Listed(self.at - SLACK_MS, "")
        if not self._has_read:
            if not self._is_fixed:
                # What the listing has lost may be put back: it stays named for as long as it could be new, in the
                # cursor's order, so that what is left out stays older than what is named.
                first = self.at - len(self._ended)
                self._created = {**{sid: first + n for n, sid in enumerate(self._ended)}, **self._created}
            self._ended.sort(key=self._age)
            if self._is_cut and self._ended:
                self._left_out = self._age(self._ended[0])
                oldest_new = max(oldest_new, self._left_out)
            if not self.is_first and not self._clock_went_back:
                self._remember(*(one for one in listed if one <= oldest_new))
            is_new = not self.is_first
        else:
            is_new = True
        return [(one, is_new and one > oldest_new) for one in listed if one.sid not in self._known]

    def has_read(self) -> None:
        """All that the listing had is taken in. What comes from now on has come while the viewer was here."""
        self._has_read = True
        self._pass()

    def wait(self, one: Listed) -> None:
        """It is to be given. One that `at` does not hold back is named at once, if a cursor has room for its name."""
        self._remember(one)
        is_passed = one.created <= self.at - SLACK_MS or (self.is_first and not self._has_read)
        if is_passed and len(self.unfinished) < MOST_OPEN:
            self.unfinished.setdefault(one.sid, 0)
        else:
            self.waiting.append(one)
            self.waiting.sort()

    def had_ended(self, one: Listed) -> None:
        """It is not to be given, and need not be looked at again."""
        self._remember(one)
        self._end(one.sid)
        self._pass()

    def not_shown(self, one: Listed) -> None:
        self._remember(one)
        self._pass()

    # -- what is given -----------------------------------------------------------------------------------------

    def open(self, sid: str) -> int:
        """It is given from now on, after the event whose id is returned."""
        self.waiting = [one for one in self.waiting if one.sid != sid]
        n = self.unfinished.setdefault(sid, 0)
        self._pass()
        return n

    def given(self, sid: str, n: int) -> None:
        if sid in self.unfinished:
            self.unfinished[sid] = n

    def end(self, sid: str) -> None:
        """It has been given to its end, or there is nothing of it."""
        self.waiting = [one for one in self.waiting if one.sid != sid]
        self.unfinished.pop(sid, None)
        self._end(sid)
        self._pass()

    def hide(self, sid: str) -> None:
        self.waiting = [one for one in self.waiting if one.sid != sid]
        self.unfinished.pop(sid, None)
        self._pass()

    def vector(self) -> Vector:
        """Where the viewer stands."""
        ended = self._ended
        while not self._fits(ended):
            self._left_out = self._age(ended[0])
            ended = ended[1:]
        self._ended = ended
        is_cut = bool(ended) and self._left_out.created > self.at - SLACK_MS
        return Vector(self.at, {**dict.fromkeys(ended, AT_END), **self.unfinished}, is_cut)

    def _fits(self, ended: Sequence[str]) -> bool:
        parts = [*ended, *self.unfinished]
        # A part of ours has 33 bytes and its id; 16 digits more are the greatest id that the last one may get.
        size = sum(map(len, parts)) + sum(len(str(n)) + 2 for n in self.unfinished.values()) + 3 * len(ended)
        return not ended or (len(parts) < MAX_NAMED and size <= MAX_BYTES - 40)

    # ----------------------------------------------------------------------------------------------------------

    def _age(self, sid: str) -> Listed:
        return Listed(self._created.get(sid, 0), sid)

    def _remember(self, *some: Listed) -> None:
        for one in some:
            self._known[one.sid] = None
            self._created[one.sid] = one.created
            self._newest = max(self._newest, one.created)
        while len(self._known) > REMEMBERED:
            sid = next(iter(self._known))
            del self._known[sid]
            self._created.pop(sid, None)

    def _end(self, sid: str) -> None:
        if sid not in self._ended and (self._is_fixed or self._age(sid) >= self._left_out):
            self._ended.append(sid)

    def _pass(self) -> None:
        """Go on to the newest stream that nothing waits before."""
        if self._is_fixed or (self.is_first and not self._has_read):
            return
        held = self.waiting[0].created - 1 if self.waiting else self._newest
        self.at = max(self.at, min(self._newest, held))
        self._ended = sorted(
            (sid for sid in self._ended if self._created.get(sid, 0) > self.at - SLACK_MS), key=self._age
        )
