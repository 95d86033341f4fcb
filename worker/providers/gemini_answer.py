"""Gemini's answer: what each chunk says, as events.

A chunk is JSON with candidates, each with parts, of which several may come at once. What is translated is taken out of
it; what is left, and was not said before, is one `internal.provider` event in the chunk's own form.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import httpx2
import orjson

from worker.providers.failures import ProviderFailure, failed, request_id_of, retry_after_s
from worker.providers.provider import Counted, Finish, ProviderEvent, untranslated
from worker.providers.reading import parse

Said = ProviderEvent | Counted

STOP_REASONS = {
    "STOP": "end_turn",  # of an answer with calls: tool_use. A stop sequence that was met is not told apart.
    "MAX_TOKENS": "max_tokens",
    "CONTINUATION": "max_tokens",
    "SAFETY": "refusal",
    "RECITATION": "refusal",
    "BLOCKLIST": "refusal",
    "PROHIBITED_CONTENT": "refusal",
    "SPII": "refusal",
    "IMAGE_SAFETY": "refusal",
    "IMAGE_PROHIBITED_CONTENT": "refusal",
    "IMAGE_RECITATION": "refusal",
    "MODEL_ARMOR": "refusal",
    "ESCALATION": "refusal",
    "PUP_LIMITED_DISABLED": "refusal",
    "FINISH_REASON_UNSPECIFIED": "other",
    "LANGUAGE": "other",
    "OTHER": "other",
    "IMAGE_OTHER": "other",
    "NO_IMAGE": "other",
    "TOO_MANY_TOOL_CALLS": "other",
}
BAD_ANSWERS = {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE", "MISSING_THOUGHT_SIGNATURE"}
"""The model said nothing that could be used. Asked again, it mostly does."""

# Google's own, which read and change nothing; what has another type may be somebody else's.
_READING_TOOLS = {
    *("GOOGLE_SEARCH_WEB", "GOOGLE_SEARCH_IMAGE", "URL_CONTEXT", "GOOGLE_MAPS", "FILE_SEARCH", "MEDIA_PROCESSING"),
}
_CODE = "code_execution"
_CODE_ERRORS = {
    "OUTCOME_FAILED": ("failed", "The code failed."),
    "OUTCOME_DEADLINE_EXCEEDED": ("timeout", "The code ran for too long."),
}


class _Running(NamedTuple):
    """A tool that the provider runs."""

    call_id: str
    tool: str
    native_id: str | None
    began_s: float


class GeminiAnswer:
    """What must be remembered of an answer to read the rest of it; its text is not kept, unless it is not ASCII."""

    finish: Finish | None = None  # never said: what follows a finish reason (usage, grounding) has no end but the body's
    may_end = False
    has_effects = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._model: str | None = None
        self._reason: str | None = None
        self._details: dict[str, Any] = {}
        self._calls = _Calls()
        self._turn = _Turn()
        self._text = _Text()
        self._grounding = _Grounding()
        self._has_candidates = False

    def take(self, name: bytes, data: bytes) -> Iterable[Said]:
        """Read one server-sent event."""
        if data == b"[DONE]":  # some gateways', at every wire
            return
        said = parse(data)
        for chunk in said if type(said) is list else (said,):
            yield from self._chunk(chunk)

    def end(self) -> Finish:
        reason = STOP_REASONS.get(self._reason or "", "other")
        if not self._has_candidates:
            reason = "refusal"
        elif self._reason == "STOP" and self._calls.of_client:
            reason = "tool_use"
        return Finish(
            reason,
            counted(self._usage),
            self._reason,
            stop_details=self._details or None,
            model=self._model,
            native=self._turn.native(),
        )

    def _chunk(self, chunk: dict[str, Any]) -> Iterator[Said]:
        if error := chunk.get("error"):
            raise said_failure(error)
        rest: dict[str, Any] = {}
        for key, value in chunk.items():
            if key == "candidates":
                if left := (yield from self._candidates(value or ())):
                    rest[key] = left
            elif key == "usageMetadata":
                if value and value != self._usage:
                    self._usage = {**self._usage, **value}
                    yield Counted(counted(self._usage))
            elif self._is_new(key, value):
                rest[key] = value
        if "modelVersion" in rest:
            self._model = rest["modelVersion"]
        if rest:
            yield untranslated(self._name, rest)
        self._look_at_the_end(chunk)

    def _look_at_the_end(self, chunk: dict[str, Any]) -> None:
        feedback = chunk.get("promptFeedback")
        if not self._has_candidates and feedback and feedback.get("blockReason"):
            self._reason, self._details = feedback["blockReason"], feedback
            self.may_end = True
        if self._reason in BAD_ANSWERS:
            raise failed("provider_bad_answer", said=self._details.get("finishMessage") or self._reason)

    def _is_new(self, key: str, value: Any) -> bool:
        """Most of a chunk besides its parts says the same each time."""
        if key in self._told and self._told[key] == value:
            return False
        self._told[key] = value
        return True

    # -- candidates

    def _candidates(self, candidates: Iterable[dict[str, Any]]) -> Generator[Said, None, list[dict[str, Any]]]:
        rest = []
        for candidate in candidates:
            if candidate.get("index"):  # a second answer to the same; the first is the answer
                rest.append(candidate)
            elif left := (yield from self._candidate(candidate)):
                rest.append(left)
        return rest

    def _candidate(self, candidate: dict[str, Any]) -> Generator[Said, None, dict[str, Any]]:
        self._has_candidates = True
        rest: dict[str, Any] = {}
        for key, value in candidate.items():
            if key == "content":
                if left := (yield from self._content(value or {})):
                    rest[key] = left
            elif key == "groundingMetadata" and self._is_new(key, value):
                rest[key] = value
                yield from self._grounding.citations(value or {}, self._text, self._turn)
            elif key == "citationMetadata" and self._is_new(key, value):
                rest[key] = value
                yield from self._grounding.recited(value or {}, self._text)
            elif key == "logprobsResult" or (key not in ("index", "finishReason") and self._is_new(key, value)):
                rest[key] = value
        if reason := candidate.get("finishReason"):
            yield from self._finished(reason, candidate)
        return rest

    def _finished(self, reason: str, candidate: dict[str, Any]) -> Iterator[Said]:
        if reason == "STOP" and self._calls.is_open:
            raise failed("provider_bad_answer", said="A call's arguments are not complete.")
        yield from self._grounding.sources()
        self._reason = reason
        for key in ("finishMessage", "continuationToken"):
            if candidate.get(key):
                self._details[key] = candidate[key]
        if STOP_REASONS.get(reason) == "refusal" and candidate.get("safetyRatings"):
            self._details["safetyRatings"] = candidate["safetyRatings"]
        self.may_end = True

    # -- parts

    def _content(self, content: dict[str, Any]) -> Generator[Said, None, dict[str, Any]]:
        rest = {key: value for key, value in content.items() if key not in ("role", "parts")}
        parts = []
        for part in content.get("parts") or ():
            if "text" in part and len(part) == 1:  # nearly all are so
                yield from self._plain("text_delta", part["text"])
            elif left := (yield from self._part(part)):
                parts.append(left)
        if parts:
            rest["parts"] = parts
        return rest

    def _plain(self, kind: str, text: Any) -> Iterator[Said]:
        if type(text) is not str:
            raise TypeError("a text that is none")
        if not text:
            return
        self._turn.add_text(kind, len(text))
        if kind == "text_delta":
            self._text.add(text)
        yield kind, {"text": text}

    def _part(self, part: dict[str, Any]) -> Generator[Said, None, dict[str, Any]]:
        """Gives back what of it is not translated."""
        left = dict(part)
        if "text" in part:
            del left["text"]
            kind = "thinking_delta" if left.pop("thought", False) else "text_delta"
            if left:
                self._turn.begin_signed(kind, part)
            yield from self._plain(kind, part["text"])
            if left:
                self._turn.close()
        elif "functionCall" in part:
            del left["functionCall"]
            yield from self._calls.called(part["functionCall"] or {}, part, self._turn)
        else:
            self._turn.add(part)
            for key, reads in self._OTHERS.items():
                if key in part:
                    del left[key]
                    yield from reads(self, part[key])
            if "functionResponse" in part:  # somebody's function was run for the model
                self.has_effects = True
        return left

    def _code(self, code: dict[str, Any]) -> Iterator[Said]:
        args = {key: value for key, value in code.items() if key != "id"}
        yield from self._calls.started(_CODE, args, code.get("id"))

    def _code_result(self, result: dict[str, Any]) -> Iterator[Said]:
        yield from self._calls.ended(_CODE, result.get("id"), result, _CODE_ERRORS.get(result.get("outcome", "")))

    def _tool_call(self, call: dict[str, Any]) -> Iterator[Said]:
        if call.get("toolType") not in _READING_TOOLS:
            self.has_effects = True
        yield from self._calls.started(_tool_of(call), call.get("args") or {}, call.get("id"))

    def _tool_response(self, said: dict[str, Any]) -> Iterator[Said]:
        response = said.get("response")
        is_error = isinstance(response, dict) and bool(response.get("error"))
        error = ("failed", "The provider's tool failed.") if is_error else None
        yield from self._calls.ended(_tool_of(said), said.get("id"), response, error)

    _OTHERS = {  # noqa: RUF012  # a table, never changed
        "executableCode": _code,
        "codeExecutionResult": _code_result,
        "toolCall": _tool_call,
        "toolResponse": _tool_response,
    }


def _tool_of(call: dict[str, Any]) -> str:
    return str(call.get("toolType") or "tool").lower()


def counted(usage: dict[str, Any]) -> dict[str, Any]:
    """In common names. Gemini's counts overlap: what was read from a cache is part of the prompt."""

    def count(*names: str) -> int:
        return sum(n for name in names if type(n := usage.get(name)) is int)

    cached = count("cachedContentTokenCount")
    common = {
        "input_tokens": max(count("promptTokenCount", "toolUsePromptTokenCount") - cached, 0),
        "output_tokens": count("candidatesTokenCount", "thoughtsTokenCount"),
    }
    if "cachedContentTokenCount" in usage:
        common["cache_read_input_tokens"] = cached
    if "thoughtsTokenCount" in usage:
        common["thinking_tokens"] = count("thoughtsTokenCount")
    return {**common, "provider": usage} if usage else common


# ---- The turn, for the next one


class _Turn:
    """The parts that the next turn sends back: texts without a signature are joined, signed ones stay as they were."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Any]] = []
        self._open: tuple[str, dict[str, Any]] | None = None  # the part that grows: its kind, its reference

    def add_text(self, kind: str, characters: int) -> None:
        if self._open is None or self._open[0] != kind:
            self._begin(kind, {})
        assert self._open is not None
        self._open[1]["characters"] += characters

    def begin_signed(self, kind: str, part: dict[str, Any]) -> None:
        self._begin(kind, {key: value for key, value in part.items() if key not in ("text", "thought")})
        if not part["text"]:
            self._parts[-1]["text"] = ""

    def close(self) -> None:
        self._open = None

    def add(self, part: dict[str, Any]) -> None:
        self._open = None
        self._parts.append(part)

    def text_begins_at(self, index: int) -> int | None:
        """In characters of the answer's text, that of a part of these. None: it has no text that viewers see."""
        if index >= len(self._parts) or _reference(self._parts[index]) != "text":
            return None
        return sum(part["text"]["characters"] for part in self._parts[:index] if _reference(part) == "text")

    def native(self) -> list[dict[str, Any]] | None:
        is_one_text = len(self._parts) == 1 and self._parts[0].keys() == {"text"}
        return None if is_one_text or not self._parts else self._parts

    def _begin(self, kind: str, others: dict[str, Any]) -> None:
        is_text = kind == "text_delta"
        reference = {"$lastevent": "text" if is_text else "thinking", "characters": 0}
        self._parts.append({"text": reference, **({} if is_text else {"thought": True}), **others})
        self._open = kind, reference


def _reference(part: dict[str, Any]) -> Any:
    text = part.get("text")
    return text.get("$lastevent") if isinstance(text, dict) else None


# ---- Calls


class _Calls:
    def __init__(self) -> None:
        self.of_client = 0
        self._ids: set[str] = set()
        self._running: list[_Running] = []
        self._streamed: _Streamed | None = None

    @property
    def is_open(self) -> bool:
        return self._streamed is not None

    def called(self, call: dict[str, Any], part: dict[str, Any], turn: _Turn) -> Iterator[Said]:
        """The caller's tool, mostly whole at once; of Vertex, if asked so, argument by argument."""
        tool = call.get("name")
        if tool:
            self._streamed = None
            call_id = self._id(call.get("id"))
            self.of_client += 1
            native = {key: value for key, value in call.items() if key not in ("args", "partialArgs", "willContinue")}
            native["args"] = {"$lastevent": "input", "tool_call_id": call_id}
            turn.add({**part, "functionCall": native})
            yield "tool_start", {"tool_call_id": call_id, "tool": tool, "client": True}
            streamed = _Streamed(call_id, tool, call.get("args") or {})
        elif self._streamed is None:
            raise failed("provider_bad_answer", said="A call has no name.")
        else:
            streamed = self._streamed
        for one in call.get("partialArgs") or ():
            streamed.put(one)
        if call.get("willContinue"):
            self._streamed = streamed
            return
        self._streamed = None
        if not isinstance(streamed.args, dict):
            raise failed("provider_bad_answer", said="A call's arguments are not an object.")
        named = {"tool_call_id": streamed.call_id, "tool": streamed.tool}
        yield "tool_args_delta", {**named, "partial_json": orjson.dumps(streamed.args).decode()}
        yield "tool_args", {**named, "args": streamed.args, "complete": True}

    def started(self, tool: str, args: Any, native_id: str | None) -> Iterator[Said]:
        """The provider runs it."""
        call_id = self._id(native_id)
        self._running.append(_Running(call_id, tool, native_id, time.monotonic()))
        yield "tool_start", {"tool_call_id": call_id, "tool": tool}
        yield "tool_args", {"tool_call_id": call_id, "tool": tool, "args": args, "complete": True}

    def ended(self, tool: str, native_id: str | None, output: Any, error: tuple[str, str] | None) -> Iterator[Said]:
        """Of the call with its id, else of the first that runs."""
        found = next((one for one in self._running if one.tool == tool and one.native_id == native_id), None)
        found = found or next((one for one in self._running if one.tool == tool), None)
        if found is None:  # nobody said that it began
            yield from self.started(tool, {}, native_id)
            found = self._running[-1]
        self._running.remove(found)
        said = {
            "tool_call_id": found.call_id,
            "tool": tool,
            "duration_ms": round((time.monotonic() - found.began_s) * 1000),
            "output": output,
        }
        if error is None:
            yield "tool_end", said
        else:
            yield "tool_error", {**said, "code": error[0], "message": error[1]}

    def _id(self, given: Any) -> str:
        """The provider's, unless it gave none, or gave it before."""
        call_id = given if isinstance(given, str) and given else ""
        number = len(self._ids)
        while not call_id or call_id in self._ids:
            number += 1
            call_id = f"call_{number}"
        self._ids.add(call_id)
        return call_id


class _Streamed:
    """A call whose arguments come value by value, each with its place in them (Vertex; RFC 9535)."""

    def __init__(self, call_id: str, tool: str, args: Any) -> None:
        self.call_id = call_id
        self.tool = tool
        self.args = args
        self._continues: set[str] = set()  # paths of texts that are not complete

    def put(self, one: dict[str, Any]) -> None:
        path = one["jsonPath"]
        *way, last = _steps(path)
        into = self.args
        for step, following in zip(way, [*way[1:], last], strict=True):
            into = _inside(into, step, [] if isinstance(following, int) else {})
        value = _value_of(one)
        if path in self._continues and isinstance(value, str):
            value = _inside(into, last, "") + value
            self._continues.discard(path)
        _set(into, last, value)
        if one.get("willContinue"):
            self._continues.add(path)


_STEP = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,6})\]|\['((?:[^'\\]|\\.)*)'\]|\["((?:[^"\\]|\\.)*)"\]""")


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    at = 1
    while path.startswith("$") and at < len(path) and (found := _STEP.match(path, at)):
        name, index, quoted, double = found.groups()
        quoted = quoted if quoted is not None else double
        steps.append(int(index) if index else name or re.sub(r"\\(.)", r"\1", quoted or ""))
        at = found.end()
    if at != len(path) or not steps:
        raise failed("provider_bad_answer", said="An argument has a place that is not understood.")
    return steps


def _inside(into: Any, step: str | int, empty: Any) -> Any:
    has = step < len(into) if isinstance(step, int) else step in into
    if not has:
        _set(into, step, empty)
    return into[step]


def _set(into: Any, step: str | int, value: Any) -> None:
    if isinstance(step, int) and step == len(into):
        into.append(value)
    else:
        into[step] = value  # a list's index further on raises: lists do not grow by what somebody says


def _value_of(one: dict[str, Any]) -> Any:
    for key in ("stringValue", "numberValue", "boolValue"):
        if key in one:
            return one[key]
    return None if "nullValue" in one else ""


# ---- Grounding


class _Text:
    """Gemini counts a text in bytes of UTF-8, viewers in characters. Of ASCII, which is the same, nothing is kept."""

    def __init__(self) -> None:
        self._bytes = 0
        self._characters = 0
        self._begins: list[int] = []  # in bytes, of each piece that is not ASCII
        self._pieces: list[tuple[int, bytes]] = []  # (where it begins in characters, the piece)

    def add(self, text: str) -> None:
        if text.isascii():
            self._bytes += len(text)
        else:
            encoded = text.encode()
            self._begins.append(self._bytes)
            self._pieces.append((self._characters, encoded))
            self._bytes += len(encoded)
        self._characters += len(text)

    def bytes_before(self, characters: int) -> int:
        """The other way about."""
        low, high = 0, self._bytes
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if (self.characters(middle) or 0) < characters else (low, middle)
        return low

    def characters(self, offset: Any) -> int | None:
        """How many characters the text's first bytes are. None: it has not so many."""
        if type(offset) is not int or not 0 <= offset <= self._bytes:
            return None
        at = bisect_right(self._begins, offset) - 1
        if at < 0:
            return offset
        before, piece = self._pieces[at]
        inside = offset - self._begins[at]
        if inside <= len(piece):
            return before + len(piece[:inside].decode(errors="ignore"))
        return before + len(piece.decode()) + inside - len(piece)


class _Grounding:
    def __init__(self) -> None:
        self._sources: list[dict[str, Any]] = []
        self._said: set[tuple[Any, ...]] = set()
        self._has_supports = False

    def citations(self, metadata: dict[str, Any], text: _Text, turn: _Turn) -> Iterator[Said]:
        """Of each passage, each of its sources. Metadata may be said again, and more of it."""
        self._sources = metadata.get("groundingChunks") or self._sources
        for support in metadata.get("groundingSupports") or ():
            segment = support.get("segment") or {}
            start, end = _span(segment, text, turn)
            for index in support.get("groundingChunkIndices") or ():
                if 0 <= index < len(self._sources):
                    self._has_supports = True
                    yield from self._citation(_source(self._sources[index]), segment.get("text"), start, end)

    def sources(self) -> Iterator[Said]:
        """All of them, where the provider did not say which passage is from which."""
        if not self._has_supports:
            for source in self._sources:
                yield from self._citation(_source(source), None, None, None)

    def recited(self, metadata: dict[str, Any], text: _Text) -> Iterator[Said]:
        """The two APIs have a name each for the same."""
        for one in metadata.get("citations") or metadata.get("citationSources") or ():
            start, end = text.characters(one.get("startIndex") or 0), text.characters(one.get("endIndex"))
            yield from self._citation((one.get("uri"), one.get("title")), None, start, end)

    def _citation(self, source: tuple[Any, Any], cited: Any, start: int | None, end: int | None) -> Iterator[Said]:
        one = (*source, cited, start, end)
        if one not in self._said:
            self._said.add(one)
            yield "citation", dict(zip(("url", "title", "cited_text", "start", "end"), one, strict=True))


def _source(chunk: dict[str, Any]) -> tuple[Any, Any]:
    """(url, title) of web, retrievedContext, maps, image, or what comes."""
    for said in chunk.values():
        if isinstance(said, dict):
            return said.get("uri") or said.get("sourceUri"), said.get("title")
    return None, None


def _span(segment: dict[str, Any], text: _Text, turn: _Turn) -> tuple[int | None, int | None]:
    """In characters of the answer's text. A segment's bytes count from the beginning of its part."""
    before = 0
    if index := segment.get("partIndex"):
        begins_at = turn.text_begins_at(index)
        if begins_at is None:
            return None, None
        before = text.bytes_before(begins_at)
    start = text.characters(before + (segment.get("startIndex") or 0))
    end = text.characters(before + segment["endIndex"]) if "endIndex" in segment else None
    return (start, end) if end is not None else (None, None)


# ---- Failing

# google.rpc.Code (https://ai.google.dev/gemini-api/docs/troubleshooting), and the statuses that stand for them.
_STATUSES = {
    "RESOURCE_EXHAUSTED": "provider_rate_limited",
    "UNAVAILABLE": "provider_overloaded",
    "UNAUTHENTICATED": "provider_unauthorized",
    "PERMISSION_DENIED": "provider_unauthorized",
    "INVALID_ARGUMENT": "provider_refused",
    "FAILED_PRECONDITION": "provider_refused",
    "OUT_OF_RANGE": "provider_refused",
    "NOT_FOUND": "provider_refused",
    "ALREADY_EXISTS": "provider_refused",
    "UNIMPLEMENTED": "provider_refused",
    "INTERNAL": "provider_error",
    "UNKNOWN": "provider_error",
    "DATA_LOSS": "provider_error",
    "ABORTED": "provider_error",
    "CANCELLED": "provider_error",
    "DEADLINE_EXCEEDED": "provider_error",
}
_NUMBERS = {
    **{400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"},
    **{408: "DEADLINE_EXCEEDED", 409: "ABORTED", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED"},
    **{500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED", 529: "UNAVAILABLE"},
}
_BAD_KEYS = {"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "ACCESS_TOKEN_EXPIRED", "ACCESS_TOKEN_TYPE_UNSUPPORTED"}


def said_failure(error: Any, status: int | None = None, headers: httpx2.Headers | None = None) -> ProviderFailure:
    """Of an error object, in the stream or (`status`, `headers`) in a refusal, whatever it looks like."""
    said: dict[str, Any] = error if isinstance(error, dict) else {}
    number = said.get("code") or status
    word = said.get("status")
    if word not in _STATUSES:
        default = "INTERNAL" if status is None or status >= 500 else "INVALID_ARGUMENT"
        word = _NUMBERS.get(number, default) if isinstance(number, int) else default
    details = [one for one in said.get("details") or () if isinstance(one, dict)]
    code = "provider_unauthorized" if any(one.get("reason") in _BAD_KEYS for one in details) else _STATUSES[word]
    if status is not None and status < 400:
        code = "provider_bad_answer"
    return failed(
        code,
        said=said.get("message"),
        status=status,
        request_id=request_id_of(headers) if headers is not None else None,
        retry_after_s=_wait_s(details, headers),
        moves_on=word == "NOT_FOUND",
    )


def _wait_s(details: list[dict[str, Any]], headers: httpx2.Headers | None) -> float | None:
    """`retryDelay` is "34s" or "34.07s"."""
    for one in details:
        if isinstance(delay := one.get("retryDelay"), str):
            return retry_after_s(delay.removesuffix("s"))
    return retry_after_s(headers.get("retry-after")) if headers is not None else None


def errors_of(data: bytes) -> Iterator[Any]:
    """The error objects in a body that is no stream of events: alone, or elements of a list."""
    try:
        said = parse(data)
    except ValueError:
        return
    for one in said if isinstance(said, list) else [said]:
        if isinstance(one, dict) and one.get("error"):
            yield one["error"]
