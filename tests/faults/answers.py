"""Whether each log has what its provider said: the stand-in's words are a function of the prompt.

The checker compares viewers with the log; an answer that was read wrong would be the same to all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice

from tests.faults.checker import Entry, FinalStream
from tests.faults.plan import StreamPlan
from worker.standin.words import words

NOT_UNDERSTOOD = "provider_bad_answer"
COMPRESSED = "compressed"


def misread(streams: list[FinalStream], plans: Mapping[str, StreamPlan]) -> Iterator[str]:
    for stream in streams:
        plan = plans.get(stream.sid)
        if plan and not plan.acts and stream.entries:
            for what in _misread(stream.entries, plan):
                yield f"misread: stream {stream.sid} ({plan.wire or 'as the API speaks'}): {what}"


def _misread(entries: list[Entry], plan: StreamPlan) -> Iterator[str]:
    """Of the last attempt: what is said again after a restart begins with it."""
    last = max((at for at, entry in enumerate(entries) if entry.kind == "restart"), default=0)
    texts = [json.loads(entry.data)["text"] for entry in entries[last:] if entry.kind == "text_delta"]
    expected = list(islice(words(plan.prompt), plan.tokens))
    if texts != expected[: len(texts)]:
        yield "its text is not what the provider said"
    ending = entries[-1]
    if ending.kind == "done" and len(texts) != plan.tokens:
        yield f"it is done after {len(texts)} of {plan.tokens} deltas"
    if ending.kind == "done" and plan.wire == COMPRESSED:
        yield "it is done, though nobody unpacks its answer"
    if ending.kind == "error" and plan.wire != COMPRESSED and json.loads(ending.data)["code"] == NOT_UNDERSTOOD:
        yield "its answer was not understood"
