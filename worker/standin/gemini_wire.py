"""The Gemini streaming wire: chunks with a candidate's parts, each with the usage so far, the last with finishReason.

Its lines end in CRLF. An error in the middle is no event: it is the error's JSON, as it is, in lines of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from worker.standin.calling import Tool
from worker.standin.directives import Directives
from worker.standin.wire import (
    Citation,
    Refused,
    Request,
    Wire,
    asked_last,
    demand,
    list_of,
    object_of,
    objects,
    quoted,
    read_object,
    texts_of,
    tools_of,
    torn_quoted,
)

_PATH = re.compile(r"/v1(?:beta|alpha)?/models/([^/:?]+):(streamGenerateContent|generateContent)")
_STATUSES = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "Your API key does not have permission to use this model."),
    404: ("NOT_FOUND", "The requested resource is not found."),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details."),
    500: ("INTERNAL", "An internal error has occurred."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The request timed out."),
}
_STATUS_OF = {
    "overloaded_error": 503,
    "rate_limit_error": 429,
    "api_error": 500,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "invalid_request_error": 400,
    "timeout_error": 504,
}
_FINISH_REASONS = {"end_turn": "STOP", "tool_use": "STOP", "stop_sequence": "STOP", "refusal": "SAFETY"}
_SIGNATURE = "c3RhbmQtaW4="


class GeminiWire(Wire):
    PATH = _PATH
    LINE_END = "crlf"
    GARBAGE = b'data: {"candidates": [{"content":\n\n'

    def __init__(self, number: int, request: Request, asked: Directives) -> None:
        super().__init__(number, request, asked)
        self._thoughts = 0
        self._candidates = 0
        self._needs_signature = bool(asked.thinking)
        self._cited: list[Citation] = []
        self._grounding: dict[str, Any] = {}
        self._said: list[str] = []
        self._prompt = request.input_tokens + asked.cached
        self._whose = {"modelVersion": request.model, "responseId": f"standin-{number}"}

    @staticmethod
    def read_request(body: bytes, path: str, query: str) -> Request:
        return read_request(body, path, query)

    @staticmethod
    def refusal(number: int, refused: Refused, model: str) -> dict[str, Any]:
        return _error(refused.status, refused.message or (_not_found(model) if refused.status == 404 else ""))

    @staticmethod
    def models() -> dict[str, Any]:
        model = {
            "name": "models/gemini-stand-in",
            "version": "001",
            "displayName": "Stand-in, no model",
            "inputTokenLimit": 1048576,
            "outputTokenLimit": 65536,
            "supportedGenerationMethods": ["generateContent"],
        }
        return {"models": [model]}

    @staticmethod
    def whole(events: list[dict[str, Any]]) -> dict[str, Any] | None:
        parts: list[dict[str, Any]] = []
        for candidate in (one for said in events for one in said.get("candidates", [])):
            parts += candidate.get("content", {}).get("parts", [])
            if "finishReason" in candidate:
                content = {"parts": _joined(parts), "role": "model"}
                return {**events[-1], "candidates": [{**candidate, "content": content}]}
        return next((said for said in events if "promptFeedback" in said), None)

    def ping(self) -> bytes:
        return b"\n"  # the API has none; a comment would be a piece of JSON to its SDK

    def refuse_at_once(self) -> bytes:
        return self._chunk({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}})

    def thinking(self, text: str) -> bytes:
        self._thoughts += 1
        return self._parts({"text": text, "thought": True})

    def text(self, text: str) -> bytes:
        self._said.append(text)
        return self._text(quoted(text))

    def torn_text(self, text: str) -> bytes:
        return self._text(torn_quoted(text))

    def citation(self, index: int, citation: Citation) -> bytes:
        self._cited.append(citation)
        return b""

    def open_call(self, call: int, name: str, args: str) -> bytes:
        self._candidates += 1
        own_id = {"id": f"standin_{self._number}_{call}"} if self._asked.call_ids else {}
        function = {**own_id, "name": name, "args": json.loads(args)}
        return self._parts({"functionCall": function, **self._signature()})

    def call_args(self, call: int, piece: str) -> bytes:
        return b""

    def search(self, query: str, is_found: bool) -> Iterator[bytes]:
        if is_found:
            self._grounding = {"webSearchQueries": [query], "searchEntryPoint": {"renderedContent": "<div></div>"}}
        return iter(())

    def error(self, kind: str) -> bytes:
        error = _error(_STATUS_OF.get(kind, 500))
        return orjson.dumps(error, option=orjson.OPT_INDENT_2) + b"\n"

    def finish(self, stop_reason: str, output_tokens: int) -> bytes:
        candidate: dict[str, Any] = {
            "finishReason": _FINISH_REASONS.get(stop_reason, stop_reason.upper()),
            "index": 0,
        }
        if stop_reason != "refusal":
            candidate["content"] = {"parts": [{"text": "", **self._signature()}], "role": "model"}
        if grounding := self._grounded():
            candidate["groundingMetadata"] = grounding
        return self._chunk({"candidates": [candidate]})

    def _grounded(self) -> dict[str, Any]:
        if not self._cited:
            return self._grounding
        chunks = [{"web": {"uri": cited.url, "title": cited.title}} for cited in self._cited]
        supports = [
            {"segment": self._segment(cited), "groundingChunkIndices": [i]} for i, cited in enumerate(self._cited)
        ]
        return {**self._grounding, "groundingChunks": chunks, "groundingSupports": supports}

    def _segment(self, cited: Citation) -> dict[str, Any]:
        """In bytes of the text; as everywhere in this API, a zero is left out."""
        said = "".join(self._said)
        start, end = (len(said[:at].encode()) for at in (cited.start, cited.end))
        return {**({"startIndex": start} if start else {}), "endIndex": end, "text": cited.text}

    def _signature(self) -> dict[str, str]:
        """Of the thoughts: once, with what comes after them and is no text."""
        if not self._needs_signature:
            return {}
        self._needs_signature = False
        return {"thoughtSignature": _SIGNATURE}

    def _parts(self, part: dict[str, Any]) -> bytes:
        return self._chunk({"candidates": [{"content": {"parts": [part], "role": "model"}, "index": 0}]})

    def _text(self, text: bytes) -> bytes:
        self._candidates += 1
        return self._parts({"text": ""}).replace(b'"text":""', b'"text":' + text, 1)

    def _chunk(self, data: dict[str, Any]) -> bytes:
        return b"data: %b\n\n" % orjson.dumps({**data, "usageMetadata": self._usage(), **self._whose})

    def _usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = {"promptTokenCount": self._prompt}
        if self._candidates:
            usage["candidatesTokenCount"] = self._candidates
        usage["totalTokenCount"] = self._prompt + self._candidates + self._thoughts
        if self._asked.cached:
            usage["cachedContentTokenCount"] = self._asked.cached
        usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": self._prompt}]
        if self._thoughts:
            usage["thoughtsTokenCount"] = self._thoughts
        return usage


def _joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts of one kind that follow one another are one."""
    joined: list[dict[str, Any]] = []
    for part in parts:
        if joined and "text" in part and joined[-1].keys() == part.keys():
            joined[-1] = {**part, "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _error(status: int, message: str = "") -> dict[str, Any]:
    name, own = _STATUSES.get(status, _STATUSES[400 if status < 500 else 500])
    return {"error": {"code": status, "message": message or own, "status": name}}


def _not_found(model: str) -> str:
    return f"models/{model} is not found for API version v1beta." if model else ""


def read_request(body: bytes, path: str, query: str) -> Request:
    at = _PATH.fullmatch(path)
    assert at, "the server looked"
    is_streamed = at[2] == "streamGenerateContent"
    demand(not is_streamed or "alt=sse" in query.split("&"), "alt: this stand-in streams only events; it must be sse")
    request = read_object(body)
    contents = objects(request, "contents")
    user = [(i, _parts(content)) for i, content in enumerate(contents) if content.get("role", "user") == "user"]
    demand(bool(user), "contents: one must be the user's")
    message, results = asked_last(one for _, parts in user for one in _said(parts))
    return Request(
        at[1],
        message,
        input_tokens=1 + sum(len(_text_of(parts)) for _, parts in user) // 4,
        results=results,
        fields=request,
        is_streamed=is_streamed,
        tools=_tools(request),
        forced=_forced(request),
        stops=texts_of(object_of(request.get("generationConfig")).get("stopSequences")),
    )


def _said(parts: list[dict[str, Any]]) -> Iterator[tuple[bool, str]]:
    """What a tool said is the user's too."""
    results = [object_of(part["functionResponse"]) for part in parts if "functionResponse" in part]
    yield from ((True, orjson.dumps(result.get("response")).decode()) for result in results)
    if not results:
        yield False, _text_of(parts)


def _tools(request: dict[str, Any]) -> tuple[Tool, ...]:
    declared = [
        one for tool in list_of(request.get("tools")) for one in list_of(object_of(tool).get("functionDeclarations"))
    ]
    # The second is how the SDK writes the first.
    return tools_of(declared, "parametersJsonSchema", "parameters_json_schema", "parameters")


def _forced(request: dict[str, Any]) -> str:
    config = object_of(object_of(request.get("toolConfig")).get("functionCallingConfig"))
    names = texts_of(config.get("allowedFunctionNames"))
    return names[0] if names else str(config.get("mode", "")).lower()


def _parts(content: dict[str, Any]) -> list[dict[str, Any]]:
    parts = content.get("parts")
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _text_of(parts: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
