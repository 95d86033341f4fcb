"""Reading an answer of Anthropic's Messages API: its events as ours, and its content as the next turn needs it.

    message_start  (content_block_start content_block_delta… content_block_stop)…  message_delta message_stop

docs/PROVIDERS.md has the table of all its kinds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from broker.log.turn import literal
from worker.providers.failures import ProviderFailure, failed, shown
from worker.providers.provider import Counted, Finish, ProviderEvent, untranslated
from worker.providers.reading import count_of, object_of, parse

Event = dict[str, Any]
Said = ProviderEvent | Counted

STOP_REASONS = {
    "end_turn": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "model_context_window_exceeded": "max_tokens",
    "stop_sequence": "stop_sequence",
    "refusal": "refusal",
}
PAUSED = "pause_turn"
# The model was interrupted, perhaps in the middle of a call's arguments.
_CUT_SHORT = ("max_tokens", "model_context_window_exceeded", "refusal")

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")

# What our own kinds say of a block or an event; whatever else it says is kept beside them.
_TEXT = frozenset({"type", "text"})
_THINKING = frozenset({"type", "thinking"})
_CALL = frozenset({"type", "id", "name", "input"})
_RESULT = frozenset({"type", "tool_use_id", "content", "is_error"})
_MESSAGE_START = frozenset({"type", "message"})
_ENVELOPE = frozenset({"id", "type", "role", "model", "usage"})  # `done` says them, and content is not there yet
_MESSAGE_DELTA = frozenset({"type", "delta", "usage"})
_ENDING = frozenset({"stop_reason", "stop_sequence", "stop_details"})
_BARE = frozenset({"type", "index"})


class Answer:
    """What must be remembered of an answer to read the rest of it. Its text is not kept, only how long it is."""

    may_end = False
    goes_on = False

    def __init__(self, provider: str) -> None:
        self.finish: Finish | None = None
        self.has_effects = False
        self._provider = provider
        self._blocks: list[_Block] = []
        self._at: dict[int, _Block] = {}
        self._characters = 0  # of text so far
        self._calls: dict[str, tuple[str, float]] = {}  # a call → the tool, when it began
        self._model: str | None = None
        self._response_id: str | None = None
        self._usage: dict[str, Any] = {}
        self._ending: dict[str, Any] = {}

    def end(self) -> Finish:
        raise AssertionError("message_stop is the only end")

    def take(self, name: bytes, data: bytes) -> Iterable[Said]:
        """Read one server-sent event. Its name may be missing: gateways leave it out, and its data says it too."""
        if name == b"ping":
            return ()
        event = _parsed(name, data)
        kind = event.get("type") or name.decode()
        if kind == "content_block_delta":
            return self._delta(event)
        if name == b"error" or kind == "error" or (not kind and "error" in event):
            raise _failure(event)
        match kind:
            case "content_block_start":
                return self._start(event)
            case "content_block_stop":
                return self._stop(event)
            case "message_start":
                return self._begin(event)
            case "message_delta":
                return self._note_ending(event)
            case "message_stop":
                return self._finish(event)
            case "ping":
                return ()
        return (self._whole(event),)

    def _whole(self, event: Any) -> ProviderEvent:
        return untranslated(self._provider, event)

    # -- the message -----------------------------------------------------------------------------------

    def _begin(self, event: Event) -> Iterator[Said]:
        message = event["message"]
        self._model, self._response_id = message.get("model"), message.get("id")
        usage = message.get("usage")
        if self._count(usage):
            yield self._counted()
        if _says_more(event, _MESSAGE_START) or _says_more(message, _ENVELOPE) or _is_odd(usage):
            yield self._whole(event)

    def _note_ending(self, event: Event) -> Iterator[Said]:
        ending = event.get("delta") or {}
        self._ending.update((name, value) for name, value in ending.items() if value is not None)
        usage = event.get("usage")
        if self._count(usage):
            yield self._counted()
        if _says_more(event, _MESSAGE_DELTA) or _says_more(ending, _ENDING) or _is_odd(usage):
            yield self._whole(event)

    def _finish(self, event: Event) -> Iterator[Said]:
        for block in self._blocks:
            yield from self._close(block)
        if _says_more(event, _BARE):
            yield self._whole(event)
        reason = self._ending.get("stop_reason")
        if reason not in _CUT_SHORT and any(block.is_broken for block in self._blocks):
            raise failed("provider_bad_answer", "The model called a tool with arguments that are not a JSON object.")
        self.finish = Finish(
            STOP_REASONS.get(reason or "", "other"),
            self._counted().usage,
            provider_stop_reason=reason,
            stop_sequence=self._ending.get("stop_sequence"),
            stop_details=self._ending.get("stop_details"),
            model=self._model,
            response_id=self._response_id,
            native=self._native(),
            is_paused=reason == PAUSED,
        )

    def _native(self) -> list[Any] | None:
        content = [said for block in self._blocks if (said := block.native())]
        is_plain = not content or (len(content) == 1 and content[0].keys() == _TEXT)
        return None if is_plain else content

    def _count(self, usage: Any) -> bool:
        # Cumulative, so the latest holds; what the last one leaves out, the first one has said.
        self._usage.update((name, n) for name, n in object_of(usage).items() if n is not None)
        return bool(object_of(usage))

    def _counted(self) -> Counted:
        counts = {name: n for name in _COUNTS if (n := count_of(self._usage.get(name))) is not None}
        thinking = count_of(object_of(self._usage.get("output_tokens_details")).get("thinking_tokens"))
        if thinking is not None:
            counts["thinking_tokens"] = thinking
        return Counted({"input_tokens": 0, "output_tokens": 0, **counts, "provider": dict(self._usage)})

    # -- its blocks ------------------------------------------------------------------------------------

    def _start(self, event: Event) -> Iterator[Said]:
        block = self._open(event["index"], event["content_block"])
        said = block.said
        # By their endings, since there are many: server_tool_use, mcp_tool_use, web_search_tool_result …
        if block.kind.endswith("tool_use"):
            yield self._begin_call(block)
            known = _CALL
        elif block.kind.endswith("tool_result"):
            yield self._end_call(said)
            known = _RESULT
        elif block.kind == "text":
            # Empty today; the SDK would not lose it either.
            yield from self._say("text_delta", block, "text", said.get("text") or "")
            block.citations += said.get("citations") or []
            known = _TEXT
        elif block.kind == "thinking":
            yield from self._say("thinking_delta", block, "thinking", said.get("thinking") or "")
            known = _THINKING
        else:
            known = frozenset()
            if block.kind == "fallback":  # the rest is another model's
                self._model = said["to"]["model"]
        if _says_more(said, known):
            yield self._whole(event)

    def _open(self, index: int, said: Event) -> _Block:
        block = self._at[index] = _Block(said, self._characters)
        self._blocks.append(block)
        return block

    def _delta(self, event: Event) -> Iterable[Said]:
        delta = event["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            text = delta["text"]
            block = self._at.get(event["index"]) or self._open(event["index"], {"type": "text"})
            if len(delta) == 2 and type(text) is str and text:  # almost all events of an answer are such
                block.add("text", len(text))
                self._characters += len(text)
                return (("text_delta", {"text": text}),)
            return self._with_more(event, _TEXT, self._say(kind, block, "text", text))
        if kind == "thinking_delta":
            block = self._at.get(event["index"]) or self._open(event["index"], {"type": "thinking"})
            return self._with_more(event, _THINKING, self._say(kind, block, "thinking", delta["thinking"]))
        block = self._at[event["index"]]
        if kind == "input_json_delta":
            return self._add_args(event, block)
        block.take(delta)
        return (self._whole(event),)

    def _with_more(self, event: Event, known: frozenset[str], said: Iterator[Said]) -> Iterator[Said]:
        yield from said
        if _says_more(event["delta"], known):
            yield self._whole(event)

    def _say(self, kind: str, block: _Block, field: str, text: Any) -> Iterator[Said]:
        if type(text) is not str:
            raise TypeError(f"a {kind} without text")
        if text:
            block.add(field, len(text))
            if field == "text":
                self._characters += len(text)
            yield kind, {"text": text}

    def _stop(self, event: Event) -> Iterator[Said]:
        yield from self._close(self._at[event["index"]])
        if _says_more(event, _BARE):
            yield self._whole(event)

    def _close(self, block: _Block) -> Iterator[Said]:
        if block.is_open:
            block.is_open = False
            yield from block.cited(self._characters)
            if block.call_id:
                yield from self._whole_args(block)

    # -- calls of tools --------------------------------------------------------------------------------

    def _begin_call(self, block: _Block) -> ProviderEvent:
        block.call_id = self._new_id(block.said.get("id"))
        block.tool = block.said["name"]
        self._calls[block.call_id] = (block.tool, time.monotonic())
        event = {"tool_call_id": block.call_id, "tool": block.tool}
        return "tool_start", {**event, "client": True} if block.kind == "tool_use" else event

    def _new_id(self, own: Any) -> str:
        if own and own not in self._calls:
            return str(own)
        number = len(self._calls)
        while f"call_{number}" in self._calls:
            number += 1
        return f"call_{number}"

    def _add_args(self, event: Event, block: _Block) -> Iterator[Said]:
        piece = event["delta"]["partial_json"]
        if not block.call_id:
            yield self._whole(event)
        elif piece:
            block.pieces.append(piece)
            yield "tool_args_delta", {"tool_call_id": block.call_id, "tool": block.tool, "partial_json": piece}

    def _whole_args(self, block: _Block) -> Iterator[Said]:
        call = {"tool_call_id": block.call_id, "tool": block.tool}
        if not block.pieces and block.said.get("input"):  # said at once: gateways do
            block.pieces.append(orjson.dumps(block.said["input"]).decode())
            yield "tool_args_delta", {**call, "partial_json": block.pieces[0]}
        args = _object("".join(block.pieces))
        if args is None:
            block.is_broken = True  # which may be right, if the model had no tokens left
            return
        yield "tool_args", {**call, "args": args, "complete": True}
        if block.kind == "mcp_tool_use":  # from here on it runs
            self.has_effects = True

    def _end_call(self, result: Event) -> ProviderEvent:
        if result["type"] == "mcp_tool_result":
            self.has_effects = True
        call_id = result["tool_use_id"]
        tool, began = self._calls.get(call_id) or (result["type"].removesuffix("_tool_result"), time.monotonic())
        duration_ms = round((time.monotonic() - began) * 1000)
        ended = {"tool_call_id": call_id, "tool": tool, "duration_ms": duration_ms, "output": result.get("content")}
        failure = _tool_failure(result)
        return ("tool_error", {**ended, **failure}) if failure else ("tool_end", ended)


class _Block:
    """One content block. `said`: as it began, and what deltas set in it since; text and arguments are in the events."""

    def __init__(self, said: Event, began: int) -> None:
        self.kind: str = said["type"]
        self.said = said
        self.began = began  # after so many characters of text
        self.field = ""  # what its characters are: text, thinking
        self.characters = 0
        self.citations: list[Event] = []
        self.call_id = ""
        self.tool = ""
        self.pieces: list[str] = []
        self.is_open = True
        self.is_broken = False

    def add(self, field: str, characters: int) -> None:
        self.field = field
        self.characters += characters

    def take(self, delta: Event) -> None:
        """Of any other kind than text and arguments. It says a field whole: signature_delta, compaction_delta."""
        if delta["type"] == "citations_delta":
            self.citations.append(delta["citation"])
        else:
            self.said = {**self.said, **{name: value for name, value in delta.items() if name != "type"}}

    def cited(self, ends: int) -> Iterator[ProviderEvent]:
        """Its citations are of the whole block, which ends after so many characters of the answer's text."""
        for citation in self.citations:
            source = citation.get("source")
            yield (
                "citation",
                {
                    "url": citation.get("url") or (source if isinstance(source, str) and "://" in source else None),
                    "title": citation.get("title") or citation.get("document_title"),
                    "cited_text": citation.get("cited_text"),
                    "start": self.began,
                    "end": ends,
                },
            )

    def native(self) -> Event | None:
        """As the API takes it back. None: it does not take such a block."""
        if self.is_broken or (self.kind == "text" and not self.characters):
            return None
        said = {name: literal(value) for name, value in self.said.items()}
        if self.field:
            said[self.field] = {"$lastevent": self.field, "characters": self.characters}
        if self.kind == "text":
            said.pop("citations", None)
            if self.citations:
                said["citations"] = [literal(_to_send_back(citation)) for citation in self.citations]
        if self.call_id:
            said["id"] = self.call_id  # by which the caller's result names it
            said["input"] = {"$lastevent": "input", "tool_call_id": self.call_id}
        return said


def _to_send_back(citation: Event) -> Event:
    return {name: value for name, value in citation.items() if name != "file_id"}  # which the API says, and refuses


def _parsed(name: bytes, data: bytes) -> Event:
    """Raises ValueError or TypeError for what cannot be understood, unless nobody need understand it."""
    try:
        event = parse(data)
    except ValueError:
        if not name or name.startswith((b"message_", b"content_block_")):
            raise
        return {"type": name.decode(errors="replace"), "data": data.decode(errors="replace")}
    if not isinstance(event, dict):
        raise TypeError("an event that is no object")
    return event


def _says_more(said: Event, known: frozenset[str]) -> bool:
    return any(name not in known and value not in (None, "", []) for name, value in said.items())


def _is_odd(usage: Any) -> bool:
    return bool(usage) and not isinstance(usage, dict)


def _object(args: str) -> dict[str, Any] | None:
    try:
        parsed = parse(args.encode()) if args else {}
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


# ---- Failing


def _tool_failure(result: Event) -> dict[str, str] | None:
    """Why a tool of the provider's own, or of an MCP server's, failed. None: it did not."""
    content = result.get("content")
    said = content if isinstance(content, dict) else {}
    if said.get("error_code") or str(said.get("type")).endswith("_error"):
        code = str(said.get("error_code") or "tool_failed")
        return {"code": code, "message": shown(str(said.get("error_message") or f"The tool failed: {code}."))}
    if said.get("return_code"):
        return {"code": "exit_code", "message": f"The command ended with exit code {said['return_code']}."}
    if result.get("is_error") is True:
        texts = content if isinstance(content, list) else [{"text": content}]
        text = " ".join(str(block.get("text") or "") for block in texts)
        return {"code": "tool_failed", "message": shown(text) or "The tool failed."}
    return None


# The API's error types, in a refusal's body or in an `error` event (https://docs.anthropic.com/en/api/errors).
ERROR_TYPES = {
    "overloaded_error": "provider_overloaded",
    "rate_limit_error": "provider_rate_limited",
    "api_error": "provider_error",
    "timeout_error": "provider_error",
    "authentication_error": "provider_unauthorized",
    "permission_error": "provider_unauthorized",
    "invalid_request_error": "provider_refused",
    "not_found_error": "provider_refused",
    "request_too_large": "provider_refused",
    "billing_error": "provider_refused",
}
# Of a chain the next model may do: this one is not there, or this server has not paid for it.
MOVE_ON = ("not_found_error", "billing_error")


def _failure(event: Event) -> ProviderFailure:
    error = event.get("error", event)
    kind, said = (error.get("type"), error.get("message")) if isinstance(error, dict) else (None, error)
    request_id = event.get("request_id")
    return failed(
        ERROR_TYPES.get(str(kind), "provider_error"),
        said=said or event.get("data"),
        request_id=shown(request_id)[:100] if isinstance(request_id, str) else None,
        moves_on=kind in MOVE_ON,
    )
