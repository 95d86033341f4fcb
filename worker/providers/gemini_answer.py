"""Gemini's answer: what each chunk says, as events.

A chunk is JSON with candidates, each with parts, of which several may come at once. What is translated is taken out of
it; what is left, and was not said before, is one `internal.provider` event in the chunk's own form.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any

from broker.log.turn import literal
from worker.providers.failures import failed
from worker.providers.gemini_calls import Calls
from worker.providers.gemini_failures import said_failure
from worker.providers.gemini_grounding import Grounding, Text
from worker.providers.gemini_turn import Turn
from worker.providers.provider import Counted, Finish, ProviderEvent, untranslated
from worker.providers.reading import count_of, parse

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


class GeminiAnswer:
    """What must be remembered of an answer to read the rest of it; its text is not kept, unless it is not ASCII."""

    finish: Finish | None = None  # what follows a finish reason (usage, grounding) has no end but the body's
    may_end = False
    goes_on = False
    has_effects = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._reason: str | None = None
        self._details: dict[str, Any] = {}
        self._calls = Calls()
        self._turn = Turn()
        self._text = Text()
        self._grounding = Grounding()
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
        self._calls.leave_out_of(self._turn)
        return Finish(
            reason,
            counted(self._usage),
            self._reason,
            stop_details=self._details or None,
            model=self._told.get("modelVersion"),
            response_id=self._told.get("responseId"),
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
            elif key == "usageMetadata" and isinstance(value, dict | None):
                if value and value != self._usage:
                    self._usage = {**self._usage, **value}
                    yield Counted(counted(self._usage))
            elif self._is_new(key, value):
                rest[key] = value
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
        if self.may_end and any(part != {"text": ""} for part in (candidate.get("content") or {}).get("parts") or ()):
            self.goes_on = True
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
        if "functionCall" in part and "text" in part:  # it has one or the other, says the API; some gateways' have both
            text, part = part["text"], {key: value for key, value in part.items() if key != "text"}
            yield from self._plain("thinking_delta" if part.get("thought") else "text_delta", text)
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
            self._turn.add({name: literal(value) for name, value in part.items()})
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
        return sum(count_of(usage.get(name)) or 0 for name in names)

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
