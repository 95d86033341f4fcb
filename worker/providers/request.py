"""What translating a request shares: the neutral request's parts, each with its place in it.

A place (`messages[3].content[0]`) is what a refusal names. Values are never repeated: they are a person's words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from worker.providers.failures import invalid_input

_T = TypeVar("_T")
_NAMES = {str: "a string", list: "a list", dict: "an object", int: "a number", bool: "true or false"}

NO_ARGUMENTS = {"type": "object", "properties": {}}


class Block(NamedTuple):
    place: str
    kind: str
    """text image document tool_use tool_result thinking redacted_thinking, or what else the caller sent."""
    data: dict[str, Any]


class Turn(NamedTuple):
    place: str
    role: str
    """user assistant system"""
    blocks: list[Block]
    native: dict[str, Any] | None
    """Of an assistant's message from GET {id}/message: provider, model, and content in the provider's own form."""


class Source(NamedTuple):
    """Where an image or a document is."""

    kind: str
    """base64 url text"""
    data: str
    media_type: str
    """"" if it was not said, as for a url."""

    @property
    def url(self) -> str:
        """As a URL of its own; a url as it is."""
        return self.data if self.kind == "url" else f"data:{self.media_type};base64,{self.data}"


class Tool(NamedTuple):
    """One that the caller runs: a function."""

    place: str
    name: str
    description: str | None
    schema: dict[str, Any]


def turns(request: dict[str, Any]) -> Iterator[Turn]:
    """The request's messages; each call of a tool in them has a result. Raises ProviderFailure (invalid_input)."""
    for index, message in answered(field(request, "messages", list, "")):
        place = f"messages[{index}]"
        role = field(of_type(message, dict, place), "role", str, place)
        if role not in ("user", "assistant", "system"):
            raise invalid_input(f"{place}.role is none of user, assistant, system.")
        native = of_type(message.get("native") or {}, dict, f"{place}.native") or None
        yield Turn(place, role, blocks(message.get("content"), f"{place}.content"), native)


NO_RESULT = "There is no result: the call was not run, or nobody knows whether it was."


def answered(messages: list[Any]) -> Iterator[tuple[int, Any]]:
    """The messages with their indices, and before the one after a call that has no result such a result. Providers
    refuse a history with such a call, now and ever after.
    """
    for index, message in enumerate(messages):
        if index and (calls := _without_result(messages, index - 1)):
            yield index, {"role": "user", "content": list(map(_no_result, calls))}
        yield index, message


def _no_result(call: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": NO_RESULT, "is_error": True}


def _without_result(messages: list[Any], at: int) -> list[str]:
    """The calls in a message that none of the user's messages after it answers."""
    called = _ids(messages[at], "assistant", "tool_use", "id")
    if not called:
        return []
    given: set[str] = set()
    for message in messages[at + 1 :]:
        if not (isinstance(message, dict) and message.get("role") == "user"):
            break
        given.update(_ids(message, "user", "tool_result", "tool_use_id"))
    return [one for one in called if one not in given]


def _ids(message: Any, role: str, kind: str, name: str) -> list[str]:
    content = message.get("content") if isinstance(message, dict) and message.get("role") == role else None
    found = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    return [block[name] for block in found if block.get("type") == kind and isinstance(block.get(name), str)]


def blocks(content: Any, place: str) -> list[Block]:
    """A text counts as one block of text, at the place of the text itself; no content as none."""
    if content is None:
        return []
    if isinstance(content, str):
        return [Block(place, "text", {"type": "text", "text": content})]
    found = []
    for index, block in enumerate(of_type(content, list, place)):
        at = f"{place}[{index}]"
        found.append(Block(at, field(of_type(block, dict, at), "type", str, at), block))
    return found


def is_own(native: dict[str, Any] | None, provider: str, model: str) -> bool:
    """The message was said by this very model: only then what is signed or encrypted in it is understood again."""
    return native is not None and native.get("provider") == provider and native.get("model") == model


def text_of(block: Block) -> str:
    return field(block.data, "text", str, block.place)


def system_text(request: dict[str, Any]) -> str | None:
    """The system prompt as one text: its blocks, with a blank line between them."""
    found = blocks(request.get("system"), "system")
    for block in found:
        if block.kind != "text":
            raise cannot_take(block)
    return "\n\n".join(map(text_of, found)) or None


def source_of(block: Block) -> Source:
    """Of an image or a document block."""
    place = f"{block.place}.source"
    source = field(block.data, "source", dict, block.place)
    kind = field(source, "type", str, place)
    if kind == "url":
        return Source(kind, field(source, "url", str, place), "")
    if kind in ("base64", "text"):
        media_type = source.get("media_type") or ("text/plain" if kind == "text" else "")
        if not media_type:
            raise invalid_input(f"{place}.media_type is missing.")
        return Source(kind, field(source, "data", str, place), of_type(media_type, str, f"{place}.media_type"))
    raise invalid_input(f"{place} is of a type that this provider cannot be given.")


def tools(request: dict[str, Any]) -> Iterator[Tool | Block]:
    """In their order: the caller's as Tool, the provider's own, which have another `type`, as Block."""
    for index, tool in enumerate(of_type(request.get("tools") or [], list, "tools")):
        place = f"tools[{index}]"
        kind = of_type(tool, dict, place).get("type")
        if kind is None or (kind == "custom" and "input_schema" in tool):  # Anthropic's name for the same
            description = tool.get("description")
            yield Tool(
                place,
                field(tool, "name", str, place),
                None if description is None else of_type(description, str, f"{place}.description"),
                of_type(
                    tool.get("input_schema") or {"type": "object", "properties": {}}, dict, f"{place}.input_schema"
                ),
            )
        else:
            yield Block(place, of_type(kind, str, f"{place}.type"), tool)


def input_of(block: Block) -> dict[str, Any]:
    """A call's arguments, as any provider takes them: some models call a tool with a text or a list."""
    given = block.data.get("input")
    return given if isinstance(given, dict) else {} if given is None else {"input": given}


def cannot_take(block: Block) -> Exception:
    return invalid_input(f"{block.place} is of a type that this provider cannot be given.")


def field(data: dict[str, Any], name: str, kind: type[_T], place: str) -> _T:
    at = f"{place}.{name}" if place else name
    if name not in data:
        raise invalid_input(f"{at} is missing.")
    return of_type(data[name], kind, at)


def of_type(value: Any, kind: type[_T], place: str) -> _T:
    if not isinstance(value, kind):
        raise invalid_input(f"{place} is not {_NAMES[kind]}.")
    return value
