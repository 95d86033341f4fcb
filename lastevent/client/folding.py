"""The answer as its events tell it. Pure: no network, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lastevent.client.answer import NOBODY, Answer
from lastevent.client.partial import partial
from lastevent.events import Event

_ARGS_FROM = 64
"""Characters of arguments at which they are first parsed; then at each doubling: each time would be quadratic."""

_OTHER = 100

_RUNNING = "running"

_Data = Mapping[str, Any]
_Change = dict[str, Any]


def fold(answer: Answer, event: Event) -> Answer:
    """The answer after this event. One that says nothing new leaves the answer itself."""
    number = event.id
    if number is None:
        if event.kind == "gap" and not answer.incomplete:
            return changed(answer, {"incomplete": True})
        return answer
    if number <= answer.cursor or answer.ending is not None:
        return answer
    change = _CHANGES.get(event.kind)
    if change is None:
        said = {"id": number, "event": event.kind, "data": event.data}
        return changed(answer, {"other": (*answer.other, said)[-_OTHER:], "cursor": number})
    data = event.data
    after = change(answer, data if isinstance(data, dict) else {})
    after["cursor"] = number
    return changed(answer, after)


def changed(answer: Answer, change: Mapping[str, Any]) -> Answer:
    """Three times as fast as dataclasses.replace, at each event."""
    after = object.__new__(Answer)
    fields = after.__dict__
    fields.update(answer.__dict__)
    fields.update(change)
    return after


def _text_of(data: _Data) -> str:
    """An external producer may write any shape; the server's `/text` takes what is no text for none."""
    text = data.get("text")
    return text if isinstance(text, str) else ""


def _started(before: Answer, data: _Data) -> _Change:
    attempt = data.get("attempt", before.attempt)
    return {"state": _RUNNING, "attempt": attempt, "model": data.get("model"), "agent": data.get("agent")}


def _restarted(before: Answer, data: _Data) -> _Change:
    """What the person said stays: nobody says it again."""
    return {**_NOTHING, "attempt": data.get("attempt", before.attempt), "restarts": before.restarts + 1}


_NOTHING: _Change = {
    "text": "",
    "thinking": "",
    "tools": (),
    "status": None,
    "usage": None,
    "agents": NOBODY,
    "citations": (),
    "approvals": (),
    "sentences": (),
    "other": (),
}
"""What an attempt has said before it has said anything."""


def _tool(change: Callable[[_Data, _Data], _Change]) -> Callable[[Answer, _Data], _Change]:
    """A change of the tool with this call's id; never of the one at some place or with some name."""

    def changes(answer: Answer, data: _Data) -> _Change:
        number = data.get("tool_call_id")
        rest = {name: value for name, value in data.items() if name not in ("tool_call_id", "tool")}
        tools = list(answer.tools)
        at = next((at for at, tool in enumerate(tools) if tool.get("id") == number), len(tools))
        if at == len(tools):
            tools.append({"id": number, "name": data.get("tool"), "state": _RUNNING, "json": ""})
        tools[at] = {**tools[at], **change(tools[at], rest)}
        return {"tools": tuple(tools)}

    return changes


def _grown(before: _Data, data: _Data) -> _Change:
    piece = data.get("partial_json")
    said = before.get("json", "")
    whole = said + (piece if isinstance(piece, str) else "")
    parse_at = max(_ARGS_FROM, 1 << len(said).bit_length())
    return {"json": whole, "args": partial(whole)} if len(whole) >= parse_at else {"json": whole}


def _parsed(tool: _Data) -> _Change:
    return {"args": partial(tool["json"])} if tool.get("json") and not tool.get("complete") else {}


def _agent(change: Callable[[_Data, _Data], _Change]) -> Callable[[Answer, _Data], _Change]:
    def changes(answer: Answer, data: _Data) -> _Change:
        name = str(data.get("agent"))
        rest = {name: value for name, value in data.items() if name != "agent"}
        before = answer.agents.get(name, {"state": _RUNNING, "text": ""})
        return {"agents": {**answer.agents, name: {**before, **change(before, rest)}}}

    return changes


def _added(name: str) -> Callable[[Answer, _Data], _Change]:
    return lambda answer, data: {name: (*getattr(answer, name), data)}


def _ended(state: str) -> Callable[[Answer, _Data], _Change]:
    """Of a tool that the caller must run there is no `tool_end`: its arguments are whole now."""

    def changes(answer: Answer, data: _Data) -> _Change:
        change = {
            "state": state,
            "ending": data,
            "error": data if state == "error" else None,
            "usage": data.get("usage"),
            "status": None,
        }
        if any(tool.get("state") == _RUNNING and tool.get("json") for tool in answer.tools):
            change["tools"] = tuple(
                {**tool, **_parsed(tool)} if tool.get("state") == _RUNNING else tool for tool in answer.tools
            )
        return change

    return changes


_CHANGES: dict[str, Callable[[Answer, _Data], _Change]] = {
    "queued": lambda before, data: {"state": "queued"},
    "start": _started,
    "text_delta": lambda before, data: {"state": _RUNNING, "text": before.text + _text_of(data), "status": None},
    "thinking_delta": lambda before, data: {"thinking": before.thinking + _text_of(data)},
    "status": lambda before, data: {"status": data.get("message")},
    "tool_start": _tool(lambda before, data: {**data, "state": _RUNNING}),
    "tool_args_delta": _tool(_grown),
    "tool_args": _tool(lambda before, data: {"args": data.get("args"), "complete": data.get("complete")}),
    "tool_progress": _tool(lambda before, data: {"progress": data}),
    "tool_end": _tool(lambda before, data: {**_parsed(before), **data, "state": "done"}),
    "tool_error": _tool(lambda before, data: {**_parsed(before), **data, "state": "error"}),
    "agent_start": _agent(lambda before, data: {**data, "state": _RUNNING}),
    "agent_text_delta": _agent(lambda before, data: {"text": before.get("text", "") + _text_of(data)}),
    "agent_end": _agent(lambda before, data: {**data, "state": "error" if data.get("code") else "done"}),
    "citation": _added("citations"),
    "approval_request": _added("approvals"),
    "sentence": _added("sentences"),
    "input": _added("inputs"),
    "restart": _restarted,
    "done": _ended("done"),
    "error": _ended("error"),
    "cancelled": _ended("cancelled"),
}
"""Kind → what it changes."""
