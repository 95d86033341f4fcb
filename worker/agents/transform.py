"""Models that act in text, at a provider's stream: what the model writes becomes thinking, text and calls.

react               Thought: …  Action: name  Action Input: {…}  Observation: …  Final Answer: …      react.py
tags(think, tool)   <think>…</think> and <tool>{"name": …, "args" or "arguments": {…}}</tool>          tags.py
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from broker.log.event import TEXT_DELTA, THINKING_DELTA
from broker.log.turn import REFERENCE
from worker.agents.acting import Call, Transform
from worker.agents.react import React
from worker.agents.tags import Tags
from worker.providers.chain import Target
from worker.providers.provider import Counted, Finish, Said

__all__ = ["Call", "React", "Tags", "Transform", "stopping", "transform_of", "transformed"]

CITATION = "citation"
CUT_OFF = frozenset({"max_tokens", "refusal"})
"""Stop reasons after which the last call may be half of one."""
MOST_STOPS = 4
"""Of more stop sequences in a request, some providers refuse it."""


def transform_of(said: Any, tools: Mapping[str, Mapping[str, Any]], turn: int = 0) -> Transform | None:
    """By how an agent announces it: None, "react" or {"tags": […]}. Raises ValueError for anything else."""
    if said is None:
        return None
    if said == "react":
        return React(tools, turn)
    if (
        isinstance(said, dict)
        and isinstance(names := said.get("tags"), list)
        and all(isinstance(n, str) for n in names)
    ):
        return Tags(names, tools, turn)
    raise ValueError('transform: it is neither "react" nor {"tags": [names]}.')


def stopping(request: dict[str, Any], transform: Transform, target: Target) -> dict[str, Any]:
    """The request, with what makes the provider itself stop a model that is about to invent a result.

    Responses has no such thing, and OpenAI's reasoning models refuse it on Chat: there a cut has to do.
    """
    takes_it = target.form in ("anthropic", "gemini") or (
        target.form == "openai-chat" and target.name.partition("/")[0] != "openai-chat"
    )
    own = request.get("stop_sequences") or []
    if not (takes_it and transform.stop_sequences) or len(own) + len(transform.stop_sequences) > MOST_STOPS:
        return request
    return {**request, "stop_sequences": [*own, *transform.stop_sequences]}


async def transformed(said: AsyncGenerator[Said, None], transform: Transform) -> AsyncGenerator[Said, None]:
    """A provider's stream with its text transformed.

    The model is cut by closing the provider's stream. Then its Finish is ours, with what had been counted until then.
    """
    counted: dict[str, Any] = {}
    thinking: list[str] = []
    async with aclosing(said):
        async for one in said:
            if isinstance(one, Finish):
                for event in transform.end(is_whole=one.stop_reason not in CUT_OFF):
                    yield event
                yield _finish(one, transform, "".join(thinking))
                return
            if isinstance(one, Counted):
                counted = one.usage
            elif one[0] == TEXT_DELTA:
                for event in transform.take(one[1]["text"]):
                    yield event
                if transform.is_cut:
                    yield Finish("tool_use", {name: count for name, count in counted.items() if name != "provider"})
                    return
                continue
            elif one[0] == THINKING_DELTA:
                thinking.append(one[1]["text"])
            elif one[0] == CITATION:  # its places are those of the text as the model wrote it
                one = CITATION, {**one[1], "start": None, "end": None}
            yield one


def _finish(finish: Finish, transform: Transform, thinking: str) -> Finish:
    if finish.native is not None:
        finish = finish._replace(native=_spelled_out(finish.native, {"text": transform.said, "thinking": thinking}))
    if transform.calls and finish.stop_reason not in CUT_OFF:
        return finish._replace(stop_reason="tool_use", stop_sequence=None)
    return finish


def _spelled_out(native: Any, texts: Mapping[str, str]) -> Any:
    """A turn in its provider's form refers to the texts of events, which are no longer what the model wrote."""
    places = dict.fromkeys(texts, 0)

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return [of(one) for one in value]
        if not isinstance(value, dict) or value.get(REFERENCE) == "literal":
            return value
        name = str(value.get(REFERENCE))
        if name in texts:
            start = places[name]
            places[name] += value["characters"]
            return texts[name][start : places[name]]
        return {key: of(one) for key, one in value.items()}

    return of(native)
