"""What useChat and WorkflowChatTransport send, as a native request: UIMessage[] → messages (ai, `UIMessage`).

Fields of an app's own beside `messages` (`body` of its transport) are those of POST /v1/streams; others are ignored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from broker.dialects.parts import (
    Json,
    field,
    image_block,
    joined_system,
    of_type,
    refused,
    say,
    text_block,
    tool_result,
    tool_use,
)
from broker.log.event import encode_data

NATIVE = (
    *("model", "max_tokens", "tools", "tool_choice", "thinking", "effort", "stop_sequences", "temperature"),
    *("output_schema", "provider_options", "on_tool_effects", "agent", "show", "transform", "sentences", "language"),
    *("user_id", "metadata", "on_worker_loss", "abandon_after_s", "webhook"),
)
"""Fields that an app's body may have as POST /v1/streams has them; and `system`, which messages may add to."""

OF_THE_TRANSPORT = ("id", "messages", "trigger", "messageId")

THINKING = "thinking"

_SAYS_NOTHING = frozenset({"step-start", "reasoning", "reasoning-file", "source-url", "source-document", "custom"})
"""Parts of an answer that its model need not be told again. (Reasoning without its signature a provider refuses.)"""

_WITHOUT_RESULT = frozenset({"input-streaming", "input-available", "approval-requested", "approval-responded"})

MESSAGE_ID_CHARACTERS = 200


class Asked(NamedTuple):
    """`native`: a body for POST /v1/streams. `message_id`: of the assistant's message that the answer goes on with.
    `ignored`: names of fields that are none of ours.
    """

    native: Json
    message_id: str | None
    ignored: list[str]


def asked_of(body: Json, *, show: str | None = None) -> Asked:
    """`show`: what the address asks to see besides (`thinking`). Raises InvalidRequest, which names the field."""
    given = field(body, "messages", list, "")
    messages: list[Json] = []
    systems: list[str] = []
    for index, message in enumerate(given):
        where = f"messages[{index}]"
        _add(messages, systems, of_type(message, dict, where), where)
    native: Json = {name: body[name] for name in NATIVE if name in body}
    native["messages"] = [_plain(message) for message in messages]
    native |= _system(body.get("system"), joined_system(systems))
    if body.get("id") is not None:
        native["session_id"] = of_type(body["id"], str, "id")
    if "show" not in body and "agent" not in body and (show == THINKING or _thinks(body.get("thinking"))):
        native["show"] = [THINKING]
    known = {*NATIVE, *OF_THE_TRANSPORT, "system"}
    return Asked(native, _message_id(given), [name for name in body if name not in known])


def _add(messages: list[Json], systems: list[str], message: Json, where: str) -> None:
    role, parts = field(message, "role", str, where), field(message, "parts", list, where)
    placed = [(of_type(part, dict, at), at) for index, part in enumerate(parts) if (at := f"{where}.parts[{index}]")]
    match role:
        case "user":
            say(messages, "user", [block for part, at in placed for block in _of_user(part, at)])
        case "assistant":
            for step in _steps(placed):
                _add_step(messages, step)
        case "system":
            systems += [field(part, "text", str, at) for part, at in placed if part.get("type") == "text"]
        case _:
            raise refused(f"{where}.role", "it must be user, assistant or system")


Placed = tuple[Json, str]
"""A part, and where it is."""


def _of_user(part: Json, where: str) -> list[Json]:
    kind = field(part, "type", str, where)
    if kind == "text":
        return [text_block(part.get("text"), f"{where}.text")]
    if kind == "file":
        media_type = field(part, "mediaType", str, where)
        if media_type != "image" and not media_type.startswith("image/"):
            raise refused(f"{where}.mediaType", "only images can be passed on: no audio, no files")
        return [image_block(part.get("url"), f"{where}.url")]
    return _nothing(kind, where)


def _nothing(kind: str, where: str) -> list[Json]:
    """Of a part that a model need not see. What nobody here knows may be what was asked: that is refused."""
    if kind in _SAYS_NOTHING or kind.startswith("data-"):
        return []
    raise refused(f"{where}.type", "a part of this type cannot be passed on")


def _steps(placed: list[Placed]) -> list[list[Placed]]:
    """Parts of one request to a model each: between two, it was given its tools' results."""
    steps: list[list[Placed]] = [[]]
    for part, where in placed:
        if part.get("type") == "step-start":
            steps.append([])
        else:
            steps[-1].append((part, where))
    return steps


def _add_step(messages: list[Json], step: list[Placed]) -> None:
    said: list[Json] = []
    results: list[Json] = []
    for part, where in step:
        kind = field(part, "type", str, where)
        if kind == "text":
            text = field(part, "text", str, where)
            said += [text_block(text, where)] if text else []  # a provider refuses an empty one
        elif kind == "dynamic-tool":
            _add_call(said, results, field(part, "toolName", str, where), part, where)
        elif kind.startswith("tool-"):
            _add_call(said, results, kind.removeprefix("tool-"), part, where)
        else:
            said += _nothing(kind, where)
    say(messages, "assistant", said)
    say(messages, "user", results)


def _add_call(said: list[Json], results: list[Json], tool: str, part: Json, where: str) -> None:
    """With its result; without one (it was stopped before) a provider refuses it. What its provider or its agent ran
    is told by what it then said.
    """
    state = field(part, "state", str, where)
    if part.get("providerExecuted") is True or state in _WITHOUT_RESULT:
        return
    call_id = field(part, "toolCallId", str, where)
    match state:
        case "output-available":
            output = part.get("output")
            text, is_error = output if isinstance(output, str) else encode_data(output).decode(), False
        case "output-error":
            text, is_error = field(part, "errorText", str, where), True
        case "output-denied":
            text, is_error = "The call was not approved.", True
        case _:
            raise refused(f"{where}.state", "a call in this state cannot be passed on")
    args = part["input"] if part.get("input") is not None else part.get("rawInput")
    said.append(tool_use(call_id, tool, args, where))
    results.append(tool_result(call_id, text, where, is_error=is_error))


def _plain(message: Json) -> Json:
    """One text is a text: an agent's code that takes a text is given it so."""
    content: list[Json] = message["content"]
    is_text = len(content) == 1 and content[0]["type"] == "text"
    return {**message, "content": content[0]["text"]} if is_text else message


def _system(given: Any, of_messages: str | None) -> Json:
    if of_messages is None:
        return {} if given is None else {"system": given}
    if isinstance(given, list):
        return {"system": [*given, {"type": "text", "text": of_messages}]}
    return {"system": joined_system([of_type(given, str, "system") if given is not None else "", of_messages])}


def _thinks(thinking: Any) -> bool:
    return isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")


def _message_id(given: list[Any]) -> str | None:
    """It follows from the last message: an app sends an answer again with its tools' results in it."""
    if not given or given[-1]["role"] != "assistant" or given[-1].get("id") is None:
        return None
    where = f"messages[{len(given) - 1}].id"
    message_id = of_type(given[-1]["id"], str, where)
    if len(message_id) > MESSAGE_ID_CHARACTERS:
        raise refused(where, f"it may have {MESSAGE_ID_CHARACTERS} characters")
    return message_id
