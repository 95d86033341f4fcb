"""The events of Anthropic's wire, and what is made of them: shared by its provider's tests."""

from __future__ import annotations

from typing import Any

import orjson

from broker.log.event import Event
from broker.log.turn import message as message_of
from worker.providers.anthropic import AnthropicProvider
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Counted, Finish

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}


def begin(**message: Any) -> dict[str, Any]:
    usage = {"input_tokens": 7, "output_tokens": 1}
    return {
        "type": "message_start",
        "message": {"id": "msg_1", "model": "claude-x-20260101", "usage": usage, **message},
    }


def block(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def text(index: int, *texts: str, **fields: Any) -> list[dict[str, Any]]:
    deltas = [delta(index, "text_delta", text=one) for one in texts]
    return [block(index, "text", text="", **fields), *deltas, stop(index)]


def call(index: int, call_id: str, *pieces: str, kind: str = "tool_use", **fields: Any) -> list[dict[str, Any]]:
    deltas = [delta(index, "input_json_delta", partial_json=piece) for piece in pieces]
    return [block(index, kind, id=call_id, name="look", input={}, **fields), *deltas, stop(index)]


def end(reason: str | None = "end_turn", **fields: Any) -> list[dict[str, Any]]:
    ending = {"stop_reason": reason, "stop_sequence": None, **fields}
    return [{"type": "message_delta", "delta": ending, "usage": {"output_tokens": 5}}, {"type": "message_stop"}]


THOUGHT = [
    block(0, "thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="Hm. "),
    delta(0, "thinking_delta", thinking="Yes."),
    delta(0, "signature_delta", signature="c2ln"),
    stop(0),
]
SEARCH = [
    *call(0, "srv_1", '{"query": "x"}', kind="server_tool_use"),
    block(
        1, "web_search_tool_result", tool_use_id="srv_1", content=[{"type": "web_search_result", "url": "https://a/"}]
    ),
    stop(1),
]


async def said(provider: AnthropicProvider, model: str = "some-model", **request: Any) -> tuple[list[Any], Finish]:
    *events, finish = [event async for event in provider.stream(model, {**ASKED, **request})]
    assert isinstance(finish, Finish)
    return [event for event in events if not isinstance(event, Counted)], finish


async def failure(provider: AnthropicProvider, **request: Any) -> tuple[list[Any], ProviderFailure]:
    events: list[Any] = []
    try:
        async for event in provider.stream("some-model", {**ASKED, **request}):
            events.append(event)  # noqa: PERF401  # a comprehension would lose them with the failure
    except ProviderFailure as failure:
        return [event for event in shown(events) if not isinstance(event, Counted)], failure
    raise AssertionError("it did not fail")


def shown(events: list[Any]) -> list[Any]:
    return [event for event in events if event[0] != "internal.provider"]


def internal(events: list[Any]) -> list[Any]:
    return [event[1]["event"] for event in events if event[0] == "internal.provider"]


def turn_of(events: list[Any], finish: Finish, model: str = "some-model") -> dict[str, Any]:
    """The assistant's message, as the log gives it."""
    turn = {"turn": 0, "provider": "anthropic", "model": model, "native": finish.native}
    written = [*events, ("internal.turn", turn)] if finish.native is not None else events
    return message_of(Event(i, kind, orjson.dumps(data), 0) for i, (kind, data) in enumerate(written, 1))
