"""SpeakingWriter: writes a stream whose text is also told in sentences (`"sentences": true`).

A sentence follows the delta that made it certain, before anything else is written, and so in the same append: the log
never has one without the other, but at the end of a batch. It is an event as any other: it has an id, counts against a
stream's limits, and is there for whoever resumes.

States of a text: said (a delta is in the log) → certain (its sentence is). What ends it early:
- the speaker waits for something else (WAITS): the listener gets what there is, before that
- the ending: likewise. In a stream that is full only the ending fits, and the rest stays unspoken
- `restart`: what was said is void. Sentences begin at index 0 again, with what is said again
- another writes the ending (a cancel, a worker that is gone for good): the rest stays unspoken; /text has it
- a takeover: `restart`, by another writer, which begins anew
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from broker.errors import StreamLimit
from broker.log.event import RESTART, SENTENCE, TERMINAL, TEXT_DELTA
from broker.log.steps import Claimed
from broker.log.turn import TOOL_START
from broker.log.writer import GroupCommit, StreamWriter
from worker.sentences import Sentence, Sentences

WAITS = frozenset({TOOL_START, "approval_request", "agent_start", "input"})
"""Kinds before which a speaker has come to a stop, or after which somebody else is heard."""


class SpeakingWriter(StreamWriter):
    """Of one stream, under one pen. Only the text of the answer is spoken, no sub-agent's."""

    def __init__(self, commit: GroupCommit, claimed: Claimed) -> None:
        super().__init__(commit, claimed)
        self._language = claimed.meta.language or "en"
        self._sentences = Sentences(self._language)

    def write(self, kind: str, data: dict[str, Any]) -> int:
        """Returns the id of the event itself. Raises as StreamWriter's."""
        if kind in TERMINAL:
            with suppress(StreamLimit):
                self._tell(self._sentences.end())
        elif kind in WAITS:
            self._tell(self._sentences.end())
        elif kind == RESTART:
            self._sentences = Sentences(self._language)
        event_id = super().write(kind, data)
        if kind == TEXT_DELTA and isinstance(text := data.get("text"), str):
            self._tell(self._sentences.take(text))
        return event_id

    def _tell(self, sentences: Iterable[Sentence]) -> None:
        for sentence in sentences:
            super().write(SENTENCE, sentence)
