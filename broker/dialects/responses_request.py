"""The body of POST /v1/responses as the body of POST /v1/streams. Pure functions.

What would change the answer, and cannot be had, is refused by its name; what cannot hurt is left out, and named in
`ignored`; what nobody here knows is left out as well, since clients send new fields every month. `echo` is what the
response repeats (responses.py), which is never what was not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from broker.dialects.parts import (
    Json,
    field,
    function_tool,
    image_block,
    joined_system,
    joined_texts,
    of_type,
    refused,
    text_block,
    tool_result,
    tool_use,
)

ECHO_BYTES = 4096
"""A response repeats a field of this size at most; a longer one it calls absent. It stands in meta, and thrice in each
reader's stream.
"""

METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512
"""What OpenAI takes."""

_REFUSED = {
    "conversation": "there are no conversations here; give the earlier items, or a previous_response_id",
    "prompt": "there are no stored prompts here; give the instructions and the input",
}
_IGNORED = (
    *("top_p", "service_tier", "safety_identifier", "truncation", "include", "max_tool_calls", "stream_options"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "context_management", "moderation"),
    *("presence_penalty", "frequency_penalty"),
)
_LOGPROBS = "message.output_text.logprobs"

_TEXTS = ("input_text", "output_text", "text")
_DROPPED = frozenset(
    {
        *("reasoning", "mcp_call", "mcp_list_tools", "web_search_call", "file_search_call", "code_interpreter_call"),
        *("image_generation_call", "compaction"),
    }
)
"""Items of an earlier answer that no model needs, or takes back: thoughts without their signature, and what somebody
else's tools have done.
"""

_CHOICES = {"auto": "auto", "none": "none", "required": "any"}

_KINDS = ("msg", "rs", "fc", "mcp")


class Asked(NamedTuple):
    """`body`: for CreateStream. `kept`: see Said (service/streams.py)."""

    body: Json
    model: str
    echo: Json
    kept: Json | None
    is_streamed: bool
    is_background: bool
    ignored: list[str]


class Former(NamedTuple):
    """What came before: `messages` as the next request gives them to a model, and the system prompt among them, which
    is not the instructions: those are each request's own.
    """

    messages: list[Json]
    system: str | None
    session: str


def sid_of(response_id: str) -> str:
    """Of `resp_…`; a stream's own id is one too."""
    return response_id.removeprefix("resp_")


def sid_of_item(item_id: str) -> str | None:
    """The stream that an item of ours came from; None: it is none of ours."""
    kind, _, rest = item_id.partition("_")
    sid, _, index = rest.rpartition("_")
    return sid if kind in _KINDS and sid and index.isdecimal() else None


def previous(asked: Json) -> str | None:
    """The stream of the response that this one goes on from."""
    given = asked.get("previous_response_id")
    return None if given is None else sid_of(of_type(given, str, "previous_response_id"))


def referred(asked: Json) -> list[str]:
    """The streams whose answers the input refers to by the ids of their items."""
    given = asked.get("input")
    items = given if isinstance(given, list) else []
    return list(dict.fromkeys(_referred(item, f"input[{at}]") for at, item in enumerate(items) if _is_reference(item)))


def _is_reference(item: Any) -> bool:
    # Without a type too: that is how OpenAI's own types have it.
    return isinstance(item, dict) and (
        item.get("type") == "item_reference" or (item.get("type") is None and "role" not in item and "id" in item)
    )


def _referred(item: Json, where: str) -> str:
    sid = sid_of_item(field(item, "id", str, where))
    if sid is None:
        raise refused(f"{where}.id", "no response of this server has such an item")
    return sid


def to_native(
    asked: Json,
    *,
    answers: Mapping[str, Json],
    former: Former | None,
    shows_thinking: bool,
    abandon_after_s: float | None,
) -> Asked:
    """`answers`: to each of `referred`, the assistant's message. `former`: of `previous`, if there is one.

    Raises InvalidRequest, whose message begins with the place.
    """
    model = field(asked, "model", str, "")
    for name, why in _REFUSED.items():
        if asked.get(name) is not None:
            raise refused(name, why)
    _require_no_logprobs(asked)
    is_background = _flag(asked, "background")
    body: Json = {"model": model}
    echo: Json = {"background": True} if is_background else {}
    kept = _say(asked, body, echo, answers, former)
    for translate in (_limits, _tools, _choice, _reasoning, _format, _names):
        translate(asked, body, echo)
    if shows_thinking:
        body["show"] = ["thinking"]
    if not is_background and abandon_after_s:
        body["abandon_after_s"] = abandon_after_s  # most of those who call so never come back
    ignored = [name for name in _IGNORED if asked.get(name) not in (None, [], {})]
    return Asked(body, model, echo, kept, _flag(asked, "stream"), is_background, ignored)


def _flag(asked: Json, name: str) -> bool:
    return asked.get(name) is not None and of_type(asked[name], bool, name)


def _require_no_logprobs(asked: Json) -> None:
    include = asked.get("include")
    if asked.get("top_logprobs") or (isinstance(include, list) and _LOGPROBS in include):
        raise refused("top_logprobs" if asked.get("top_logprobs") else "include", "there are no logprobs here")


def _echoed(echo: Json, name: str, value: Any) -> None:
    is_long = isinstance(value, str) and len(value) > ECHO_BYTES  # to encode 32 MiB takes a while
    if not is_long and len(orjson.dumps(value)) <= ECHO_BYTES:
        echo[name] = value


# ---- What is said


def _say(asked: Json, body: Json, echo: Json, answers: Mapping[str, Json], former: Former | None) -> Json | None:
    messages, said = (former.messages.copy(), [former.system or ""]) if former else ([], [])
    given = asked.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        said += _items(field(asked, "input", list, ""), messages, answers)
    if not messages:
        raise refused("input", "there is no message of a user in it")
    system = joined_system(said)
    instructions = asked.get("instructions")
    if instructions is not None:
        _echoed(echo, "instructions", of_type(instructions, str, "instructions"))
    if whole := joined_system([instructions or "", system or ""]):
        body["system"] = whole
    body["messages"] = messages
    if former:
        body["session_id"] = former.session
        echo["previous_response_id"] = asked["previous_response_id"]
    return {"system": system} if instructions else None


def _items(items: list[Any], messages: list[Json], answers: Mapping[str, Json]) -> Iterator[str]:
    """Adds what they say to `messages`; yields what is said in the roles system and developer."""
    told: set[str] = set()
    blocks = (block for answer in answers.values() for block in answer["content"])
    calls = {block["id"] for block in blocks if block.get("type") == "tool_use"}
    for index, item in enumerate(items):
        where = f"input[{index}]"
        of_type(item, dict, where)
        if _is_reference(item):
            if (sid := _referred(item, where)) not in told and answers[sid]["content"]:
                messages.append(answers[sid])
            told.add(sid)
            continue
        kind = "message" if item.get("type") is None else of_type(item["type"], str, f"{where}.type")
        if kind == "message":
            yield from _message(item, messages, where)
        elif kind == "function_call" and field(item, "call_id", str, where) in calls:
            pass  # the AI SDK refers to an answer by its text or thoughts, and gives the calls besides
        elif kind in _SAID:
            role, block = _SAID[kind](item, where)
            _add(messages, role, [block])
        elif kind not in _DROPPED:
            raise refused(f"{where}.type", "items of this type cannot be given here")


def _message(item: Json, messages: list[Json], where: str) -> Iterator[str]:
    role = field(item, "role", str, where)
    content, at = item.get("content"), f"{where}.content"
    if role in ("system", "developer"):
        yield joined_texts(content, at, _TEXTS)
    elif role not in ("user", "assistant"):
        raise refused(f"{where}.role", "it is user, assistant, system or developer")
    elif isinstance(content, str) and role == "user":
        messages.append({"role": role, "content": content})
    else:
        parts = [{"type": "output_text", "text": content}] if isinstance(content, str) else of_type(content, list, at)
        blocks = [_part(part, f"{at}[{index}]") for index, part in enumerate(parts)]
        _add(messages, role, [block for block in blocks if block.get("text") != ""])


def _add(messages: list[Json], role: str, blocks: list[Json]) -> None:
    """An answer's items are one message, and so are the results of its calls: providers want those in the one after
    it. What a user says stands by itself.
    """
    last = messages[-1] if messages else None
    if last and last["role"] == role and "native" not in last and _goes_on(last["content"], role, blocks):
        last["content"] += blocks
    elif blocks:
        messages.append({"role": role, "content": blocks})


def _goes_on(content: Any, role: str, blocks: list[Json]) -> bool:
    if not isinstance(content, list):
        return False
    return role == "assistant" or all(one.get("type") == "tool_result" for one in (*content[-1:], *blocks))


def _part(part: Any, where: str) -> Json:
    kind = of_type(part, dict, where).get("type")
    if kind in _TEXTS:
        return text_block(part.get("text"), f"{where}.text")
    if kind == "refusal":
        return text_block(part.get("refusal"), f"{where}.refusal")
    if kind == "input_image":
        if part.get("image_url") is None:
            raise refused(f"{where}.file_id", "there are no files here; give an image_url")
        return image_block(part["image_url"], f"{where}.image_url")
    raise refused(f"{where}.type", "only texts and images can be given here: no files, no audio")


def _call(item: Json, where: str) -> tuple[str, Json]:
    call_id = field(item, "call_id", str, where)
    return "assistant", tool_use(call_id, field(item, "name", str, where), field(item, "arguments", str, where), where)


def _result(item: Json, where: str) -> tuple[str, Json]:
    call_id, output = field(item, "call_id", str, where), item.get("output")
    if not isinstance(output, str):
        at = f"{where}.output"
        output = [_part(part, f"{at}[{index}]") for index, part in enumerate(of_type(output, list, at))]
    return "user", tool_result(call_id, output, where)


_SAID: dict[str, Callable[[Json, str], tuple[str, Json]]] = {"function_call": _call, "function_call_output": _result}


# ---- How


def _limits(asked: Json, body: Json, echo: Json) -> None:
    if (limit := asked.get("max_output_tokens")) is not None:
        if of_type(limit, int, "max_output_tokens") < 1:
            raise refused("max_output_tokens", "it must be 1 at least")
        body["max_tokens"] = echo["max_output_tokens"] = limit
    if (temperature := asked.get("temperature")) is not None:
        if not isinstance(temperature, float):
            of_type(temperature, int, "temperature")
        body["temperature"] = echo["temperature"] = float(temperature)


def _tools(asked: Json, body: Json, echo: Json) -> None:
    given = of_type(asked.get("tools") or [], list, "tools")
    native, echoed = [], []
    for index, tool in enumerate(given):
        where = f"tools[{index}]"
        if of_type(tool, dict, where).get("type") != "function":
            raise refused(f"{where}.type", "only functions can be given here: a tool that the caller runs")
        made = function_tool(tool.get("name"), tool.get("description"), tool.get("parameters"), where)
        native.append(made)
        shown = {"type": "function", "name": made["name"], "description": made.get("description")}
        echoed.append({**shown, "parameters": made["input_schema"], "strict": tool.get("strict")})
    if native:
        body["tools"] = native
        _echoed(echo, "tools", echoed)


def _choice(asked: Json, body: Json, echo: Json) -> None:
    given, is_parallel = asked.get("tool_choice"), asked.get("parallel_tool_calls")
    if is_parallel is not None:
        of_type(is_parallel, bool, "parallel_tool_calls")
    if "tools" not in body:
        if given not in (None, "auto", "none"):
            raise refused("tool_choice", "there are no tools to choose from")
        return
    choice = _chosen(given)
    if is_parallel is False:
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
        echo["parallel_tool_calls"] = False
    if choice:
        body["tool_choice"] = choice
    if given is not None:
        echo["tool_choice"] = given


def _chosen(given: Any) -> Json:
    if given is None:
        return {}
    if isinstance(given, str) and given in _CHOICES:
        return {"type": _CHOICES[given]}
    if isinstance(given, dict) and given.get("type") == "function":
        return {"type": "tool", "name": field(given, "name", str, "tool_choice")}
    raise refused("tool_choice", "it is auto, none, required, or a function by its name")


def _reasoning(asked: Json, body: Json, echo: Json) -> None:
    """Thoughts are shown if a summary of them is asked for."""
    given = asked.get("reasoning")
    if given is None:
        return
    effort = of_type(given, dict, "reasoning").get("effort")
    summary = given.get("summary") or given.get("generate_summary")
    if effort is not None:
        body["effort"] = of_type(effort, str, "reasoning.effort")
    if summary is not None:
        of_type(summary, str, "reasoning.summary")
        body["show"] = ["thinking"]
        if effort != "none":
            body["thinking"] = {"type": "adaptive"}
    echo["reasoning"] = {"effort": effort, "summary": summary}


def _format(asked: Json, body: Json, echo: Json) -> None:
    text = asked.get("text")
    given = None if text is None else of_type(text, dict, "text").get("format")
    if given is None or of_type(given, dict, "text.format").get("type") == "text":
        return
    if given.get("type") != "json_schema":
        raise refused("text.format.type", "it is text or json_schema")
    body["output_schema"] = field(given, "schema", dict, "text.format")
    named = {"type": "json_schema", "name": field(given, "name", str, "text.format")}
    described = {"description": given.get("description"), "schema": body["output_schema"]}
    _echoed(echo, "text", {"format": {**named, **described, "strict": given.get("strict") is True}})


def _names(asked: Json, body: Json, echo: Json) -> None:
    if (user := asked.get("user")) is not None:
        body["user_id"] = echo["user"] = of_type(user, str, "user")
    if metadata := asked.get("metadata"):
        if len(of_type(metadata, dict, "metadata")) > METADATA_PAIRS:
            raise refused("metadata", f"at most {METADATA_PAIRS} pairs")
        if not all(_is_pair(*pair) for pair in metadata.items()):
            raise refused("metadata", f"names of {METADATA_KEY} characters, texts of {METADATA_VALUE} at most")
        body["metadata"] = echo["metadata"] = metadata


def _is_pair(name: str, value: Any) -> bool:
    return len(name) <= METADATA_KEY and isinstance(value, str) and len(value) <= METADATA_VALUE


# ---- What was asked, once more


def former_of(request: Json, answer: Json, session: str, *, is_ours: bool) -> Former:
    """`request`: the former stream's. `is_ours`: it was started in this dialect.

    Raises InvalidRequest if it has no messages: an agent was given its input.
    """
    if not (messages := request.get("messages")):
        raise refused("previous_response_id", "an agent has answered it, which was given no messages")
    system = request.get("system")
    if is_ours and (kept := request.get("echo")) is not None:
        system = kept["system"]
    elif isinstance(system, list):
        system = joined_system(block["text"] for block in system if isinstance(block.get("text"), str))
    return Former([*messages, *([answer] if answer["content"] else [])], system, session)


def input_items(request: Mapping[str, Any], sid: str) -> list[Json]:
    """What a stream was asked, as items: of any stream, however it was started."""
    items: list[Json] = []
    for message in request.get("messages") or []:
        items += _items_of(message)
    named = enumerate(items)
    return [{"id": f"{_prefix(item)}_{sid}_in_{index}", **item} for index, item in named]


def _prefix(item: Json) -> str:
    return {"message": "msg", "function_call": "fc"}.get(item["type"], "fco")


def _items_of(message: Json) -> Iterator[Json]:
    content = message["content"]
    blocks: Sequence[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    is_answer = message["role"] == "assistant"
    parts: list[Json] = []
    for block in blocks:
        if (made := _item_of(block)) is None:
            parts += _parts_of(block, is_answer=is_answer)
            continue
        yield from _said_in(message["role"], parts)
        parts = []
        yield made
    yield from _said_in(message["role"], parts)


def _said_in(role: str, parts: list[Json]) -> Iterable[Json]:
    return [{"type": "message", "role": role, "status": "completed", "content": parts}] if parts else []


def _item_of(block: Json) -> Json | None:
    if block.get("type") == "tool_use":
        arguments = orjson.dumps(block.get("input")).decode()
        named = {"call_id": block.get("id"), "name": block.get("name"), "arguments": arguments}
        return {"type": "function_call", "status": "completed", **named}
    if block.get("type") == "tool_result":
        content = block.get("content")
        texts = (
            [one.get("text") for one in content or [] if isinstance(one, dict)] if not isinstance(content, str) else []
        )
        output = content if isinstance(content, str) else "".join(text for text in texts if isinstance(text, str))
        called = {"call_id": block.get("tool_use_id"), "output": output}
        return {"type": "function_call_output", "status": "completed", **called}
    return None


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = [one for one in content or [] if isinstance(one, dict)]
    return "".join(text for block in blocks if isinstance(text := block.get("text"), str))


def _parts_of(block: Json, *, is_answer: bool) -> list[Json]:
    """What a message can show of it; nothing of a thought, and of what this dialect has no word for."""
    if block.get("type") == "text":
        if is_answer:
            return [{"type": "output_text", "text": block.get("text"), "annotations": []}]
        return [{"type": "input_text", "text": block.get("text")}]
    source = block.get("source")
    if block.get("type") == "image" and isinstance(source, dict):
        of_data = f"data:{source.get('media_type')};base64,{source.get('data')}"
        url = source.get("url") if source.get("type") == "url" else of_data
        return [{"type": "input_image", "image_url": url, "detail": "auto"}]
    return []
