"""An agent's call beside everything else that can happen to its stream: worker/agents/journal.py and calls.py.

One call, the same in each attempt (the same key). Its tool acts outside: Redis cannot take that back. Each worker that
claims the stream reads its log, and goes on from what it finds:

    begins → confirmed → runs the tool → ends → confirmed → uses the result

A worker that goes away at any of these steps is replaced, and may come back. What is admitted, and said in
ARCHITECTURE: Redis loses what it had confirmed to a writer, and the writer is not there to put it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.protocol.model import ALL_RULES, TOOL_RESULT, Rules, Stream
from tests.protocol.search import Bounds, Search, Violation, Worker, World, _with

START, UNKNOWN = "tool_start", "tool_error"

FORGOTTEN = "forgotten"
"""What a writer was told is in the log is not, and it was not there to put it back."""


class Mine(NamedTuple):
    """A worker's part. `found`: '', 'begun', or the result that the log had at its claim: who made it, or 'unknown'.

    `did`: '', 'begun', 'ran', 'ended', 'used'. `came_after`: the call had been finished by then.
    """

    found: str = ""
    did: str = ""
    came_after: bool = False


class Calls(NamedTuple):
    """`runs`: who ran the tool, in order. `used`: the results that anybody has used."""

    mine: tuple[Mine, ...]
    runs: str = ""
    used: frozenset[str] = frozenset()


class CallSearch(Search):
    def __init__(self, bounds: Bounds, without: Rules = ALL_RULES, *, excuses: bool = True) -> None:
        super().__init__(bounds, without, check_kept_attempt)
        self._excuses = excuses

    def first(self) -> World:
        return super().first()._replace(calls=Calls(tuple(Mine() for _ in range(self.bounds.workers))))

    def _claim(self, w: World, n: int, me: Worker) -> Iterator[tuple[str, World]]:
        for move, after in super()._claim(w, n, me):
            if after.workers[n].pen:
                assert after.stream
                others = [other for other in w.workers if other is not me]
                if any(_is_gone(other) and _has_lost(other, after.stream) for other in others):
                    after = after._replace(admitted=after.admitted | {FORGOTTEN})
                finished = any(_has_ended(other) for other in others)
                after = _did(after, n, Mine(_found(after.stream), "", finished))
            yield move, after

    def _writer_moves(self, w: World, n: int, me: Worker) -> Iterator[tuple[str, World]]:
        yield from super()._writer_moves(w, n, me)
        if not me.vanished:
            yield from self._call(w, n, me, w.calls.mine[n])

    def _call(self, w: World, n: int, me: Worker, mine: Mine) -> Iterator[tuple[str, World]]:
        match mine.did:
            case "":
                if self._may_begin(mine.found):
                    yield from self._say(w, n, me, START, mine._replace(did="begun"))
                elif mine.found == "begun":
                    yield from self._say(w, n, me, UNKNOWN, mine._replace(did="used"), uses="unknown")
                else:
                    yield f"{me.name} uses what it found", self._used(w, n, mine, mine.found)
            case "begun" if me.acked or not self._has("begun before it runs"):
                yield f"{me.name} runs the tool", self._ran(w, n, me, mine)
            case "ran":
                yield from self._say(w, n, me, TOOL_RESULT, mine._replace(did="ended"))
            case "ended" if _has_ended(me) or not self._has("ended before it is used"):
                yield f"{me.name} uses its result", self._used(w, n, mine, me.name)

    def _may_begin(self, found: str) -> bool:
        if found == "begun":
            return self.bounds.idempotent or not self._has("an unknown call is not run again")
        return not found or not self._has("a finished call is not run again")

    def _say(
        self, w: World, n: int, me: Worker, kind: str, mine: Mine, *, uses: str = ""
    ) -> Iterator[tuple[str, World]]:
        w = self._used(w, n, mine, uses) if uses else _did(w, n, mine)
        said = me._replace(written=me.written + 1, kinds=(*me.kinds, kind))
        yield f"{me.name} writes {kind}, which is not sent yet", _with(w, n, said)
        yield from self._send(w, n, said, f"writes {kind}")
        yield from self._extend(w, n, said, f"writes {kind}")

    def _ran(self, w: World, n: int, me: Worker, mine: Mine) -> World:
        calls = w.calls._replace(runs=w.calls.runs + me.name)
        w = _did(w._replace(calls=calls), n, mine._replace(did="ran"))
        if mine.came_after and not self._is_excused(w):
            raise Violation("J1: a finished call runs again", f"{me.name} runs the tool", w)
        if len(calls.runs) > 1 and not (self.bounds.idempotent or self._is_excused(w)):
            raise Violation("J2: a call runs twice, and it is not idempotent", f"{me.name} runs the tool", w)
        return w

    def _used(self, w: World, n: int, mine: Mine, result: str) -> World:
        calls = w.calls._replace(used=w.calls.used | {result})
        w = _did(w._replace(calls=calls), n, mine._replace(did="used"))
        if len(calls.used) > 1 and not self._is_excused(w):
            raise Violation(f"J3: one call, and its results {sorted(calls.used)} were used", "a result is used", w)
        return w

    def _is_excused(self, w: World) -> bool:
        return self._excuses and bool(w.admitted & {FORGOTTEN, "revenant"})


def check_kept_attempt(w: World) -> None:
    """`kept` is the attempt of the last progress in the log; MAX_ATTEMPTS counts from there."""
    if not w.stream:
        return
    by = [event.data[8] for _, event in w.stream.log if event.is_progress]
    attempt = next(me.attempt for me in w.workers if me.name == by[-1]) if by else 0
    if w.stream.kept != attempt:
        raise Violation(f"J4: attempt {attempt} made the last progress, and {w.stream.kept} is kept")


def _found(stream: Stream) -> str:
    found = ""
    for _, event in stream.log:
        if event.kind == TOOL_RESULT:
            return event.data[8]
        if event.kind == UNKNOWN:
            return "unknown"
        if event.kind == START:
            found = "begun"
    return found


def _is_gone(me: Worker) -> bool:
    return me.was_away or me.was_superseded


def _has_lost(me: Worker, stream: Stream) -> bool:
    return any(entry not in stream.log for entry in me.acknowledged)


def _has_ended(me: Worker) -> bool:
    return TOOL_RESULT in me.kinds[: me.acked]


def _did(w: World, n: int, mine: Mine) -> World:
    mines = w.calls.mine
    return w._replace(calls=w.calls._replace(mine=(*mines[:n], mine, *mines[n + 1 :])))
