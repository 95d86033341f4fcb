"""A run as LangGraph's SDKs ask for it → a start as POST /v1/streams takes it (docs/API.md). Pure.

What a graph would be configured with stands in `config.configurable`, or in `context`: there is no graph here, so their
fields are those of a start. What would change the answer and cannot be had is refused; what cannot hurt is ignored, and
named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from broker.dialects import langgraph_messages as messages
from broker.dialects.langgraph import MODES
from broker.dialects.langgraph_messages import Asked, Json
from broker.dialects.parts import field, function_tool, of_type, refused

CONFIGURED = frozenset(
    {
        *("model", "system", "max_tokens", "temperature", "tools", "tool_choice", "thinking", "effort"),
        *("stop_sequences", "output_schema", "provider_options", "on_tool_effects", "transform", "show"),
        *("user_id", "on_worker_loss", "sentences", "language"),
    }
)
"""Fields of a start that `config.configurable` and `context` may hold, as docs/API.md has them."""

NO_AGENT = frozenset({"agent", "lastevent"})
"""What an assistant may be called that is none: the model answers. Templates of LangGraph's call theirs `agent`."""

ABANDON_AFTER_S = 30
"""Of `on_disconnect: "cancel"`: a client that was cut comes back within some 20 s (five tries, up to 6 s apart), and
must find its run."""

_REFUSED = ("command", "interrupt_before", "interrupt_after", "after_seconds")
_IGNORED = (
    *("feedback_keys", "stream_subgraphs", "on_completion", "checkpoint_during", "durability", "if_not_exists"),
    *("strict_resume", "langsmith_tracer"),
)
_KNOWN = frozenset(
    {
        *("assistant_id", "input", "config", "context", "metadata", "stream_mode", "stream_resumable", "webhook"),
        *("checkpoint", "checkpoint_id", "multitask_strategy", "on_disconnect"),
        *_REFUSED,
    }
)

STRATEGIES = ("reject", "enqueue", "interrupt", "rollback")

_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class AskedRun(NamedTuple):
    """`start`: the body of POST /v1/streams. `echo`, `kept`: what the stream keeps of the run. `ignored`: fields that
    were given and change nothing."""

    start: Json
    model: str
    echo: Json
    kept: Json
    ignored: list[str]


def modes_of(given: Any, where: str = "stream_mode") -> tuple[str, ...]:
    """Of a body or of a query: a name, or a list of them; in a query also JSON lists, and both (the SDK 2.0 repeats its
    own way behind that of a Location). () if there are none.

    Raises InvalidRequest.
    """
    names: list[Any] = []
    for one in [given] if isinstance(given, str) else of_type(given or [], list, where):
        names += _json_list(one, where) if isinstance(one, str) and one.startswith("[") else [one]
    names = [name for name in names if name != ""]  # as langgraph-sdk of Python says that it wants none
    for name in names:
        if name not in MODES:
            raise refused(where, f"only {', '.join(MODES)}: there is no graph whose other modes could be told")
    return tuple(dict.fromkeys(names))


def _json_list(text: str, where: str) -> list[Any]:
    try:
        return of_type(orjson.loads(text), list, where)
    except orjson.JSONDecodeError:
        raise refused(where, "it is no JSON list") from None


def asked_run(body: Json, before: Sequence[Asked], parent: str | None) -> AskedRun:
    """`before`: what the thread held. `parent`: the checkpoint that this is. Raises InvalidRequest."""
    for name in _REFUSED:
        if body.get(name) not in (None, [], ""):
            raise refused(name, "there is no graph to be interrupted or resumed, and no schedule")
    assistant = field(body, "assistant_id", str, "")
    start, ignored = _configured(body)
    start |= _answering(assistant)
    asked = _asked(body.get("input"), before, start)
    if body.get("metadata") is not None:
        start["metadata"] = body["metadata"]
    if body.get("webhook") is not None:
        start["webhook"] = {"url": body["webhook"]}
    if _one_of(body, "on_disconnect", ("continue", "cancel")) == "cancel":
        start["abandon_after_s"] = ABANDON_AFTER_S
    modes = modes_of(body.get("stream_mode"))
    echo: Json = {"assistant_id": assistant, "stream_mode": list(modes)}
    if parent is not None:
        echo["parent"] = parent
    kept = {"messages": [one.kept() for one in asked]}
    model = start.get("model")
    return AskedRun(start, model if isinstance(model, str) else "", echo, kept, ignored + _ignored(body))


def strategy_of(body: Json) -> str:
    """What a run asks for that finds another one running."""
    return _one_of(body, "multitask_strategy", STRATEGIES) or "enqueue"


def checkpoint_of(body: Json) -> str | None:
    """From which state of the thread a run goes on; None: the last one. Raises InvalidRequest."""
    named = body.get("checkpoint_id")
    if named is None and body.get("checkpoint") is not None:
        named = of_type(body["checkpoint"], dict, "checkpoint").get("checkpoint_id")
    return None if named is None else of_type(named, str, "checkpoint_id")


def _one_of(body: Json, name: str, words: tuple[str, ...]) -> str | None:
    word = body.get(name)
    if word is not None and word not in words:
        raise refused(name, f"one of {', '.join(words)}")
    return word if isinstance(word, str) else None


def _answering(assistant: str) -> Json:
    if "/" in assistant:
        return {"model": assistant}
    if assistant in NO_AGENT:
        return {}
    if not _AGENT.fullmatch(assistant):
        raise refused("assistant_id", 'the name of an agent, a model (provider/name), or "agent" for the default model')
    return {"agent": assistant}


def _configured(body: Json) -> tuple[Json, list[str]]:
    config = of_type(body.get("config") or {}, dict, "config")
    places: dict[str, Mapping[str, Any]] = {
        "config.configurable": of_type(config.get("configurable") or {}, dict, "config.configurable"),
        "context": of_type(body.get("context") or {}, dict, "context"),
    }
    start: Json = {}
    ignored = [f"config.{name}" for name in config if name != "configurable"]
    for where, given in places.items():
        start |= {name: value for name, value in given.items() if name in CONFIGURED and value is not None}
        ignored += [f"{where}.{name}" for name in given if name not in CONFIGURED]
    if isinstance(tools := start.get("tools"), list):
        start["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    thinking = start.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") != "disabled":
        start.setdefault("show", ["thinking"])
    return start, ignored


def _tool(tool: Any, where: str) -> Any:
    """LangChain's convert_to_openai_tool makes the form of OpenAI; any other is a start's own."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        return tool
    return function_tool(function.get("name"), function.get("description"), function.get("parameters"), where)


def _asked(given: Any, before: Sequence[Asked], start: Json) -> list[Asked]:
    """The run's messages, and in `start` what it is asked with."""
    asked = list(before)
    if given is not None:
        state = of_type(given, dict, "input")
        if "messages" not in state and "agent" in start:
            start["input"] = state
            return []
        if others := [name for name in state if name != "messages"]:
            raise refused(f"input.{others[0]}", "a thread's state is its messages")
        if (said := state.get("messages")) is None:
            raise refused("input.messages", "it is missing")
        _merge(asked, messages.asked(said, "input.messages"))
    if not asked:
        raise refused("input", "give messages: the thread has none")
    start["messages"] = [one.message for one in asked]
    return asked


def _merge(asked: list[Asked], new: Sequence[Asked]) -> None:
    """As LangGraph's `add_messages`: one that has the id of another takes its place; the others come behind."""
    at = {one.shown[0]["id"]: number for number, one in enumerate(asked) if len(one.shown) == 1}
    for one in new:
        known = at.get(one.shown[0]["id"]) if len(one.shown) == 1 and one.shown[0]["id"] else None
        if known is None:
            asked.append(one)
        elif _said(asked[known]) != _said(one):  # else the thread's own: it has what its provider needs
            asked[known] = one


def _said(one: Asked) -> Any:
    return [(shown["type"], shown["content"], shown.get("tool_calls")) for shown in one.shown]


def _ignored(body: Json) -> list[str]:
    given = (name for name in body if body[name] is not None and body[name] is not False)
    return [name for name in given if name in _IGNORED or name not in _KNOWN]
