"""One answer of the Chat Completions wire, as OpenAI and those compatible with it stream it.

The wire has many dialects, and few of them tell which they are. What each rule here is for is named beside it; the
bytes are in tests/worker/corpus. What has no kind of ours goes to `internal.provider`, but what every chunk repeats
(id, model, …) only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from broker.log.turn import literal
from worker.providers.chat_calls import Calls
from worker.providers.failures import STATUSES, ProviderFailure, failed
from worker.providers.provider import Counted, Finish, ProviderEvent, untranslated
from worker.providers.reading import count_of, parse_or_fail

CHUNK = "chat.completion.chunk"

STOPS = {
    "stop": "end_turn",
    "eos": "end_turn",
    "eos_token": "end_turn",  # TGI
    "end_turn": "end_turn",
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "model_length": "max_tokens",  # Mistral
    "model_context_window_exceeded": "max_tokens",  # Zhipu
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "tool_use": "tool_use",
    "stop_sequence": "stop_sequence",  # TGI
    "content_filter": "refusal",
    "sensitive": "refusal",  # Zhipu
    "refusal": "refusal",
}
"""finish_reason → stop_reason; any other is `other`."""

FAILED = {
    "error": "provider_error",  # OpenRouter
    "network_error": "provider_error",  # Zhipu
    "insufficient_system_resource": "provider_overloaded",  # DeepSeek
    "abort": "provider_cut",  # vLLM, SGLang: the server gave the answer up
}
"""A finish_reason that is no end of an answer."""

_UNSAID: tuple[Any, ...] = (None, "", [], {})
_SAID_ONCE = ("id", "created", "object")  # gateways make a new id for each chunk
_NOISE = "obfuscation"  # random characters that hide how long a chunk is, and nothing else
_REASONING_TEXTS = ("reasoning", "reasoning_content", "reasoning_text")
_REASONING = frozenset({*_REASONING_TEXTS, "reasoning_details"})
_CHANGE_ONLY = ("content_filter_results",)  # Azure says it with each chunk


class ChatAnswer:
    """What must be remembered of an answer to read the rest of it; its text is not kept."""

    may_end = False
    goes_on = False
    has_effects = False

    def __init__(self, provider: str, *, choices: int = 1, ends_by_done: bool = False) -> None:
        """`choices`: how many were asked for. `ends_by_done`: `[DONE]` without any finish_reason is an end."""
        self.finish: Finish | None = None
        self._provider = provider
        self._has_choices = choices > 1
        self._ends_by_done = ends_by_done
        self._told: dict[str, Any] = {}  # what chunks repeat, as it was told last
        self._index: Any = None  # of the choice that is the answer
        self._message = _Message()
        self._calls = Calls()
        self._citations: set[bytes] = set()
        self._usage: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0}
        self._model: str | None = None
        self._reason: str | None = None
        self._stop_sequence: str | None = None

    # ---- A chunk

    def take(self, name: bytes, data: bytes) -> Iterable[ProviderEvent | Counted]:
        if data.startswith(b"[DONE]"):
            return self._done()
        if not data.strip():  # a sign of life
            return ()
        chunk = parse_or_fail(name, data)
        if chunk.get("error") or chunk.get("object") == "error" or name == b"error":
            raise said_failure(chunk.get("error") or chunk)
        said: list[ProviderEvent | Counted] = []
        rest: dict[str, Any] = {}
        told = self._told
        for key, value in chunk.items():
            if value is not None and key != "choices" and told.get(key) != value:
                self._tell(key, value, said, rest)
        choices = chunk.get("choices")
        if choices and (left := self._choices(choices, chunk.get("id"), said)):
            rest["choices"] = left
        if rest:
            said.append(untranslated(self._provider, rest))
        return said

    def _tell(self, key: str, value: Any, said: list[ProviderEvent | Counted], rest: dict[str, Any]) -> None:
        """What a chunk says beside its choices, and the one before it did not."""
        if key == "usage":
            self._count(value, said)
        if key == _NOISE or (key in _SAID_ONCE and (key in self._told or not value)):
            return
        self._told[key] = value
        if (
            (key == "usage" and isinstance(value, dict))
            or (key == "object" and value == CHUNK)
            or (key == "model" and not value)
        ):
            return
        if key == "model":
            self._model = str(value)
        if key == "x_groq" and isinstance(value, dict) and "usage" not in self._told:
            self._count(value.get("usage"), said)
        rest[key] = value

    def _choices(
        self, choices: list[dict[str, Any]], chunk_id: Any, said: list[ProviderEvent | Counted]
    ) -> list[dict[str, Any]]:
        """Translate the one that is the answer, in whatever place; what is left of it, and the others."""
        if self._index is None:
            self._index = 0 if self._has_choices else min(choice.get("index") or 0 for choice in choices)
        rest: list[dict[str, Any]] = []
        is_found = False
        for choice in choices:
            if is_found or self._is_another(choice, chunk_id):
                rest.append(choice)
                continue
            is_found = True
            if left := self._choice(choice, said):
                rest.append(left)
        return rest

    def _choice(self, choice: dict[str, Any], said: list[ProviderEvent | Counted]) -> dict[str, Any] | None:
        """Translate it; what is left of it."""
        if error := choice.get("error"):  # OpenRouter, once
            raise said_failure(error)
        left: dict[str, Any] = {}
        delta = choice.get("delta")
        if delta is None:  # a server that cannot stream sends its answer so, in one piece
            delta = choice.get("message")
        if delta:
            unknown = self._delta(delta, said)
            if unknown:
                left["delta"] = unknown
        for key, value in choice.items():
            if value is None or key in ("delta", "index"):
                continue
            if key == "finish_reason":
                self._end(value, choice)
            elif key == "message":
                if choice.get("delta") is not None and not _repeats(value, choice["delta"]):
                    left[key] = value
            elif key == "usage":  # Moonshot
                self._count(value, said)
            elif value not in _UNSAID and not (key in _CHANGE_ONLY and self._told.get(key) == value):
                if key in _CHANGE_ONLY:
                    self._told[key] = value
                if key in ("stop_reason", "matched_stop") and isinstance(value, str):  # vLLM, SGLang
                    self._stop_sequence = value
                left[key] = value
        if choice.get("finish_reason"):
            self.goes_on = self.goes_on or (self.may_end and delta is not None and _goes_on(delta))
            self.may_end = True
            said.extend(self._calls.settle(at_the_end=False))
        elif self.may_end and delta and _goes_on(delta):
            self.may_end = False  # some servers say "stop" with each chunk
        return {"index": choice.get("index", 0), **left} if left else None

    def _is_another(self, choice: dict[str, Any], chunk_id: Any) -> bool:
        """Choices of one answer have one id. Foundry Local counts chunks in `index`, with another id for each."""
        return (choice.get("index") or 0) != self._index and (self._has_choices or chunk_id == self._told.get("id"))

    # ---- A delta

    def _delta(self, delta: dict[str, Any], said: list[ProviderEvent | Counted]) -> dict[str, Any]:
        """What it says; gives back what there is no kind for."""
        left: dict[str, Any] = {}
        if not _REASONING.isdisjoint(delta):
            self._think(delta, said, left)  # first: a chunk may have the end of the one and the beginning of the other
        for key, value in delta.items():
            if key == "content" and type(value) is str:
                if value:
                    self._message.add("text", len(value))
                    said.append(("text_delta", {"text": value}))
            elif value in _UNSAID or key in _REASONING or (key == "role" and value == "assistant"):
                continue
            elif key == "content":
                self._parts(value, said, left)
            elif key == "refusal":
                self._say("refusal", value, said)
            elif key == "tool_calls":
                for piece in value:
                    self._call(piece, said, left)
            elif key == "function_call":  # before there were tools
                self._call({"index": key, "type": key, "function": value}, said, left)
            elif key == "annotations":
                for annotation in value:
                    self._annotation(annotation, said, left)
            else:
                self._message.keep(key, value)
                left[key] = value
        return left

    def _think(self, delta: dict[str, Any], said: list[ProviderEvent | Counted], left: dict[str, Any]) -> None:
        """vLLM has renamed `reasoning_content` to `reasoning`, and says both for a while; OpenRouter says the text of
        `reasoning_details` as `reasoning` too.
        """
        details = delta.get("reasoning_details") or []
        said_as = {key: delta[key] for key in _REASONING_TEXTS if delta.get(key)}
        key, text = next(iter(said_as.items()), ("reasoning", None))
        left.update((other, said) for other, said in said_as.items() if said != text)
        said_there = "".join(str(detail.get("text") or detail.get("summary") or "") for detail in details)
        text = text or said_there
        if text:
            if type(text) is not str:
                raise TypeError("reasoning without text")
            self._message.think(key, text)
            said.append(("thinking_delta", {"text": text}))
        self._message.detail(details, said_there == (text or ""))
        told = [detail for detail in details if said_there != text or not _is_text_only(detail)]
        if told:
            left["reasoning_details"] = told

    def _parts(self, content: Any, said: list[ProviderEvent | Counted], left: dict[str, Any]) -> None:
        """Mistral's reasoning models say a list: thinking, text, references."""
        if type(content) is not list:
            raise TypeError("content that is neither text nor a list")
        self._message.has_parts = True
        for part in content:
            kind = part.get("type")
            if kind == "text" and set(part) == {"type", "text"}:
                self._say("text", part["text"], said)
            elif kind == "thinking" and (text := _thought(part)) is not None:
                self._say("thinking", text, said)
            else:
                self._message.add_part(part)
                left.setdefault("content", []).append(part)

    def _say(self, what: str, text: Any, said: list[ProviderEvent | Counted]) -> None:
        if type(text) is not str:
            raise TypeError(f"a {what} without text")
        if text:
            self._message.add(what, len(text))
            said.append(("thinking_delta" if what == "thinking" else "text_delta", {"text": text}))

    def _call(self, piece: dict[str, Any], said: list[ProviderEvent | Counted], left: dict[str, Any]) -> None:
        events, unknown = self._calls.take(piece)
        said.extend(events)
        if unknown:
            left.setdefault("tool_calls", []).append(unknown)

    def _annotation(
        self, annotation: dict[str, Any], said: list[ProviderEvent | Counted], left: dict[str, Any]
    ) -> None:
        once = orjson.dumps(annotation)
        if once in self._citations:  # some repeat them all with each chunk
            return
        self._citations.add(once)
        cited = annotation.get("url_citation") or annotation
        if annotation.get("type") == "url_citation":
            said.append(("citation", {ours: _typed(cited.get(name), kind) for ours, name, kind in _CITED}))
        if annotation.get("type") != "url_citation" or set(cited) - _CITATION:
            left.setdefault("annotations", []).append(annotation)

    # ---- Its end

    def _end(self, reason: Any, choice: dict[str, Any]) -> None:
        if not reason:  # Ollama said "" with each chunk
            return
        if reason in FAILED:
            raise failed(FAILED[reason], said=f"finish_reason: {reason} {choice.get('native_finish_reason') or ''}")
        if self._reason is None or reason != "stop":  # "stop" after "tool_calls" or "length" says less than they did
            self._reason = str(reason)

    def _done(self) -> Iterable[ProviderEvent | Counted]:
        """`[DONE]` alone is no end: gateways say it also of an answer that broke behind them."""
        if self._reason is None and not self._ends_by_done:
            raise failed(
                "provider_cut",
                "The model provider's answer ended before it was complete.",
                said="[DONE] without any finish_reason",
            )
        events = list(self._calls.settle(at_the_end=True))
        self.finish = self.end()
        return events

    def end(self) -> Finish:
        stop_reason = self._stop_reason()
        if stop_reason not in ("max_tokens", "refusal") and (what := self._calls.fault()):
            raise failed("provider_bad_answer", what)
        return Finish(
            stop_reason,
            self._usage,
            provider_stop_reason=self._reason,
            stop_sequence=self._stop_sequence if stop_reason == "stop_sequence" else None,
            model=self._model,
            response_id=self._told.get("id"),
            native=self._message.native(list(self._calls.whole())),
        )

    def _stop_reason(self) -> str:
        stop_reason = STOPS.get(self._reason or "", "other")
        if self._calls.any:  # Ollama says "stop"
            return "tool_use" if stop_reason == "end_turn" or self._reason is None else stop_reason
        if stop_reason == "tool_use":  # there is nothing to go on with
            return "end_turn"
        if stop_reason == "end_turn" and self._message.is_refusal:
            return "refusal"
        return "stop_sequence" if stop_reason == "end_turn" and self._stop_sequence else stop_reason

    def _count(self, usage: Any, said: list[ProviderEvent | Counted]) -> None:
        """Cumulative where it comes with each chunk, so the latest holds; but nothing counted is no count."""
        if not isinstance(usage, dict) or not any(type(count) is int and count for count in usage.values()):
            return
        self._usage = disjoint(usage)
        said.append(Counted(self._usage))


_CITED: tuple[tuple[str, str, type], ...] = (
    ("url", "url", str),
    ("title", "title", str),
    ("cited_text", "content", str),
    ("start", "start_index", int),
    ("end", "end_index", int),
)
_CITATION = {"type", *(name for _, name, _ in _CITED)}


def _typed(value: Any, kind: type) -> Any:
    return value if type(value) is kind else None


def _thought(part: dict[str, Any]) -> str | None:
    """Of a part {"type": "thinking", "thinking": [{"type": "text", "text": …}]}; None if there is more in it."""
    said = part.get("thinking")
    if set(part) - {"type", "thinking", "closed"}:
        return None
    if isinstance(said, str):
        return said
    if isinstance(said, list) and all(isinstance(one, dict) and set(one) == {"type", "text"} for one in said):
        return "".join(one["text"] for one in said)
    return None


def _is_text_only(detail: dict[str, Any]) -> bool:
    """There is no more in it than what viewers were shown and what each piece of it repeats."""
    said = {key for key, value in detail.items() if value not in _UNSAID}
    return said <= {"type", "text", "summary", "format", "index", "id"} and bool(said & {"text", "summary"})


def _repeats(message: Any, delta: Any) -> bool:
    """Foundry Local and Azure say a delta again as a `message`."""
    return isinstance(message, dict) and all(
        value in _UNSAID or delta.get(key) == value for key, value in message.items() if key != "role"
    )


def _goes_on(delta: dict[str, Any]) -> bool:
    return any(delta.get(key) not in _UNSAID for key in ("content", "tool_calls", *_REASONING_TEXTS))


# ---- What goes back with the next turn


class _Message:
    """The assistant's message as the provider wants it back. Text is referred to (broker/log/turn.py)."""

    has_parts = False

    def __init__(self) -> None:
        self._parts: list[list[Any]] = []  # [what, characters] or ["part", itself], in the order they came
        self._thinking = 0
        self._thought_in = "reasoning_content"
        self._details: list[dict[str, Any]] = []
        self._details_are_thinking = True
        self._kept: dict[str, Any] = {}

    @property
    def is_refusal(self) -> bool:
        return any(what == "refusal" for what, _ in self._parts)

    def add(self, what: str, characters: int) -> None:
        if self._parts and self._parts[-1][0] == what:
            self._parts[-1][1] += characters
        else:
            self._parts.append([what, characters])

    def add_part(self, part: Any) -> None:
        self._parts.append(["part", part])

    def think(self, field: str, text: str) -> None:
        self._thought_in = field
        self._thinking += len(text)

    def keep(self, key: str, value: Any) -> None:
        """Gemini's signature of a text, and the name of an audio that the provider keeps."""
        if key == "extra_content":
            self._kept[key] = value
        elif key == "audio" and isinstance(value, dict) and value.get("id"):
            self._kept[key] = {"id": value["id"]}

    def detail(self, details: list[dict[str, Any]], is_thinking: bool) -> None:
        """OpenRouter's, which must go back as they came; a text comes in pieces, each with all that describes it."""
        self._details_are_thinking &= is_thinking
        for detail in details:
            last = self._details[-1] if self._details else None
            if last is not None and _continues(detail, last):
                text = _text_key(detail)
                joined = (last.get(text) or "") + (detail.get(text) or "")
                last.update({key: value for key, value in detail.items() if value is not None})
                last[text] = joined
            else:
                self._details.append(dict(detail))

    def native(self, calls: list[dict[str, Any]]) -> dict[str, Any] | None:
        """None: it is one text and nothing else."""
        if not (calls or self._details or self._kept or self.has_parts or self.is_refusal):
            return None
        message: dict[str, Any] = {"role": "assistant", **self._said()}
        if self._details:
            message["reasoning_details"] = list(self._detail_references())
        elif self._thinking and calls:
            # DeepSeek and Kimi refuse calls without the thinking before them; DeepSeek once refused it anywhere else.
            message[self._thought_in] = _reference("thinking", self._thinking)
        legacy = [call["function"] for call in calls if call["type"] == "function_call"]
        if legacy:
            message["function_call"] = legacy[0]
        elif calls:
            message["tool_calls"] = calls
        return {**message, **_literally(self._kept)}

    def _said(self) -> dict[str, Any]:
        if self.has_parts or len(self._parts) > 1:
            return {"content": [_part(what, value) for what, value in self._parts]}
        if not self._parts:
            return {"content": None}
        ((what, characters),) = self._parts
        text = _reference("text", characters)
        return {"content": None, "refusal": text} if what == "refusal" else {"content": text}

    def _detail_references(self) -> Iterator[dict[str, Any]]:
        for detail in self._details:
            text = _text_key(detail)
            if self._details_are_thinking and detail.get(text):
                yield {**_literally(detail), text: _reference("thinking", len(detail[text]))}
            else:
                yield _literally(detail)


def _literally(said: dict[str, Any]) -> dict[str, Any]:
    return {name: literal(value) for name, value in said.items()}


def _part(what: str, value: Any) -> Any:
    if what == "part":
        return literal(value)
    if what == "thinking":
        return {"type": what, what: [{"type": "text", "text": _reference(what, value)}]}
    return {"type": what, what: _reference("text", value)}


def _reference(what: str, characters: int) -> dict[str, Any]:
    return {"$lastevent": what, "characters": characters}


def _text_key(detail: dict[str, Any]) -> str:
    return "summary" if detail.get("type") == "reasoning.summary" else "text"


def _continues(detail: dict[str, Any], last: dict[str, Any]) -> bool:
    same = all(detail.get(key) == last.get(key) for key in ("type", "index"))
    return same and detail.get("type") in ("reasoning.text", "reasoning.summary")


# ---- Counting


def disjoint(usage: dict[str, Any]) -> dict[str, Any]:
    """The wire's counts in the common form (provider.py, Counted): what came from or went into a cache is not input."""
    prompt, completion = _number(usage, "prompt_tokens"), _number(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details") or {}
    cached = _first_number(
        (details, "cached_tokens"),
        (usage, "prompt_cache_hit_tokens"),  # DeepSeek
        (usage, "cached_tokens"),  # Moonshot
        (usage, "cache_read_input_tokens"),
    )
    written = _first_number((details, "cache_write_tokens"), (usage, "cache_creation_input_tokens"))
    thinking = _first_number(
        (usage.get("completion_tokens_details") or {}, "reasoning_tokens"), (usage, "reasoning_tokens")
    )
    if thinking and _number(usage, "total_tokens") == prompt + completion + thinking:  # xAI counts it beside
        completion += thinking
    counts = {"input_tokens": max(prompt - (cached or 0) - (written or 0), 0)}
    if cached is not None:
        counts["cache_read_input_tokens"] = cached
    if written is not None:
        counts["cache_creation_input_tokens"] = written
    counts["output_tokens"] = completion
    if thinking is not None:
        counts["thinking_tokens"] = thinking
    return {**counts, "provider": usage}


def _number(counts: dict[str, Any], name: str) -> int:
    return _first_number((counts, name)) or 0


def _first_number(*places: tuple[Any, str]) -> int | None:
    for counts, name in places:
        if isinstance(counts, dict) and (count := count_of(counts.get(name))) is not None:
            return count
    return None


# ---- Failing

# The words of OpenAI and others for what went wrong: an error's `code`, its `type`, or OpenRouter's `error_type`.
ERROR_CODES = {
    "insufficient_quota": "provider_refused",  # a 429 that will not pass by waiting
    "billing_hard_limit_reached": "provider_refused",
    "rate_limit_exceeded": "provider_rate_limited",
    "rate_limit_error": "provider_rate_limited",
    "rate_limit_reached_error": "provider_rate_limited",  # Moonshot
    "requests": "provider_rate_limited",
    "tokens": "provider_rate_limited",
    "invalid_api_key": "provider_unauthorized",
    "authentication_error": "provider_unauthorized",
    "permission_error": "provider_unauthorized",
    "overloaded_error": "provider_overloaded",
    "engine_overloaded_error": "provider_overloaded",  # Moonshot
    "server_is_overloaded": "provider_overloaded",
    "server_overloaded": "provider_overloaded",
    "overloaded": "provider_overloaded",
    "provider_overloaded": "provider_overloaded",
    "server_error": "provider_error",
    "api_error": "provider_error",
    "model_not_found": "provider_refused",
    "context_length_exceeded": "provider_refused",
    "content_filter": "provider_refused",
    "content_policy_violation": "provider_refused",
    "invalid_request_error": "provider_refused",
    "badrequesterror": "provider_refused",  # vLLM, SGLang
    "notfounderror": "provider_refused",
}
MOVES_ON = ("insufficient_quota", "billing_hard_limit_reached", "model_not_found", "notfounderror")
"""It is this server's account or its list of models that is at fault: the next of a chain may do."""


def words_of(error: Any) -> list[str]:
    """What an error object calls itself, the exact first."""
    if not isinstance(error, dict):
        return []
    metadata = error.get("metadata")
    inner = metadata.get("error_type") if isinstance(metadata, dict) else None
    return [word.lower() for word in (error.get("code"), inner, error.get("type")) if isinstance(word, str)]


def said_failure(error: Any) -> ProviderFailure:
    """An error in the middle of a stream, after HTTP said 200."""
    words = words_of(error)
    known = [word for word in words if word in ERROR_CODES]
    status = _status(error)
    if known:
        code = ERROR_CODES[known[0]]
    elif status is not None:
        code = STATUSES.get(status, "provider_error" if status >= 500 else "provider_refused")
    else:
        code = "provider_error"
    said = error.get("message") if isinstance(error, dict) else error
    moves_on = status == 404 or any(word in MOVES_ON for word in words)
    return failed(code, said=said if isinstance(said, str) else None, status=status, moves_on=moves_on)


def _status(error: Any) -> int | None:
    """Most servers give the HTTP status that it would have been."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    return code if type(code) is int and 400 <= code < 600 else None
