"""What every wire has: a request that is read, and an answer's events, each as its bytes.

`Wire` is the contract: reply.py says what comes when and how fast, a wire how it looks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import orjson

from worker.standin.calling import Tool, told_results
from worker.standin.directives import Directives


class Request(NamedTuple):
    model: str
    message: str  # the last of the user's: the directives stand in it
    input_tokens: int
    results: tuple[str, ...] = ()
    """What tools have said since that message."""
    pauses: int = 0
    """How many paused turns are behind that message."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """The whole request."""
    tools: tuple[Tool, ...] = ()
    """The functions that may be called."""
    forced: str = ""
    """Which of them must be: none, any, or a name."""
    stops: tuple[str, ...] = ()
    """Its stop sequences."""
    is_streamed: bool = True

    @property
    def has_tool_results(self) -> bool:
        """The tools that the message asks for were called already."""
        return bool(self.results)


class Citation(NamedTuple):
    url: str
    title: str
    text: str
    start: int  # in characters of the answer's text
    end: int


class Refused(Exception):
    """The request gets this status instead of an answer; without a message and a kind, the API's own for it."""

    def __init__(
        self, status: int, message: str = "", headers: Iterable[tuple[bytes, bytes]] = (), kind: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)
        self.kind = kind


class Wire:
    """One answer's bytes. Each event is asked for once, in the order in which it is sent.

    What a wire has no bytes for is empty.
    """

    PATH: ClassVar[re.Pattern[str]]
    """Of a request for an answer."""
    OVERLOADED: ClassVar[int] = 503
    """The status by which this API says that it has too much to do."""
    REQUEST_ID: ClassVar[bytes] = b""
    """The header with the request's id."""
    LINE_END: ClassVar[str] = "lf"
    INTERLEAVES: ClassVar[bool] = False
    """Whether pieces of several calls' arguments may alternate."""
    PAUSES: ClassVar[bool] = False
    """Whether a turn may stop before its end, for the client to send it back."""
    GARBAGE: ClassVar[bytes]

    def __init__(self, number: int, request: Request, asked: Directives) -> None:
        self._number = number
        self._request = request
        self._asked = asked

    @staticmethod
    def read_request(body: bytes, path: str, query: str) -> Request:
        """`Refused` if the API would not take it."""
        raise NotImplementedError

    @staticmethod
    def refusal(number: int, refused: Refused, model: str) -> dict[str, Any]:
        """The body of an answer with an error's status."""
        raise NotImplementedError

    @staticmethod
    def models() -> dict[str, Any]:
        """The list of the API's models, by which a client may check its key."""
        raise NotImplementedError

    @classmethod
    def request_id(cls, number: int) -> list[tuple[bytes, bytes]]:
        return [(cls.REQUEST_ID, b"req_standin_%d" % number)] if cls.REQUEST_ID else []

    @staticmethod
    def whole(events: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The answer to a request that wants no stream, of the events that it would have been. None: it has no end."""
        raise NotImplementedError

    def ping(self) -> bytes:
        return b": keep-alive\n\n"

    def begin(self) -> bytes:
        return b""

    def refuse_at_once(self) -> bytes:
        """The whole answer, where a refusal has nothing else in it."""
        return b""

    def open_thinking(self) -> bytes:
        return b""

    def thinking(self, text: str) -> bytes:
        raise NotImplementedError

    def close_thinking(self) -> bytes:
        return b""

    def open_text(self) -> bytes:
        return b""

    def text(self, text: str) -> bytes:
        raise NotImplementedError

    def torn_text(self, text: str) -> bytes:
        """A text delta that ends in half of a surrogate pair."""
        raise NotImplementedError

    def citation(self, index: int, citation: Citation) -> bytes:
        raise NotImplementedError

    def close_text(self) -> bytes:
        return b""

    def open_call(self, call: int, name: str, args: str) -> bytes:
        raise NotImplementedError

    def call_args(self, call: int, piece: str) -> bytes:
        raise NotImplementedError

    def close_call(self, call: int, args: str) -> bytes:
        return b""

    def search(self, query: str, is_found: bool) -> Iterator[bytes]:
        """A search that the provider ran itself."""
        return iter(())

    def mcp_call(self, args: str, output: str) -> Iterator[bytes]:
        """A tool of an MCP server that the provider called itself."""
        return iter(())

    def error(self, kind: str) -> bytes:
        """The event that ends an answer instead of `finish`. Kinds are Anthropic's words."""
        raise NotImplementedError

    def finish(self, stop_reason: str, output_tokens: int) -> bytes:
        """Stop reasons are Anthropic's words, or of this wire only."""
        raise NotImplementedError


def demand(holds: bool, complaint: str) -> None:
    if not holds:
        raise Refused(400, complaint)


def read_object(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except ValueError:
        raise Refused(400, "The request body is not valid JSON") from None
    demand(isinstance(request, dict), "The request body must be a JSON object")
    assert isinstance(request, dict)
    return request


def objects(request: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A field that must be a list of objects, and not empty."""
    given = request.get(name)
    if not isinstance(given, list) or not given:
        raise Refused(400, f"{name}: at least one message is required")
    demand(all(isinstance(entry, dict) for entry in given), f"{name}: every message must be an object")
    return given


def asked_last(said: Iterable[tuple[bool, str]]) -> tuple[str, tuple[str, ...]]:
    """(the last message that is a person's, the results behind it) of what the user's side has said: (whether it is a
    tool's result, text) each.
    """
    message, results = "", []
    for is_result, text in said:
        if is_result:
            results.append(text)
        elif told := told_results(text):
            results += told
        else:
            message, results = text, []
    return message, tuple(results)


def tools_of(given: Iterable[Any], *schema: str) -> tuple[Tool, ...]:
    """`given`: what should be objects with a name each. `schema`: the fields one of which has it."""
    return tuple(
        Tool(tool["name"], str(tool.get("description") or ""), object_of(_first_of(tool, schema)))
        for tool in given
        if isinstance(tool, dict) and isinstance(tool.get("name"), str)
    )


def _first_of(fields: dict[str, Any], names: Iterable[str]) -> Any:
    return next((fields[name] for name in names if fields.get(name)), None)


def forced_of(choice: Any) -> str:
    """OpenAI's tool_choice, or the name in it."""
    return {"required": "any"}.get(choice, choice) if isinstance(choice, str) else ""


def list_of(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def object_of(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def texts_of(given: Any) -> tuple[str, ...]:
    """Of one or several."""
    return tuple(text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str) and text)


def text_of(content: Any) -> str:
    """The texts of a string, or of a list of whatever has one."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(b["text"] for b in blocks if isinstance(b, dict) and isinstance(b.get("text"), str))


def stop_sequence_of(given: Any) -> str:
    """The first of a request's stop sequences."""
    first = given[0] if isinstance(given, list) and given else given
    return first if isinstance(first, str) else "END"


@lru_cache(maxsize=8192)  # few words, repeated often: a delta costs a look-up instead of an encoding
def quoted(text: str) -> bytes:
    return orjson.dumps(text)


def torn_quoted(text: str) -> bytes:
    # The standard library's encoder, because orjson refuses to write what this is for.
    return json.dumps(f"{text}\ud83d").encode()


def events_of(body: bytes) -> list[dict[str, Any]]:
    """Of a stream's body, those that are JSON."""
    found = []
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            with suppress(ValueError):
                found.append(orjson.loads(line[6:]))
    return found


def event(data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), encoded(data))


def encoded(data: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:  # it quotes a torn text
        return json.dumps(data).encode()
