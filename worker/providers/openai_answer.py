"""An answer of OpenAI's Responses API, event by event (docs/PROVIDERS.md has the table).

An answer is a list of items (a message, a call, reasoning …), each of which comes as `output_item.added`, deltas of its
parts, and `output_item.done`, whole; the end, `response.completed`, has all of them once more. What has been told is
not told again; but some servers leave out the deltas, or everything up to the end, so each step tells what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from worker.providers.failures import ProviderFailure, failed
from worker.providers.openai_items import (
    ARGUMENTS,
    CALLS,
    OWN_CALLS,
    PARTS,
    RESULTS,
    Item,
    Json,
    Part,
    bare,
    can_be_sent,
    citation_of,
    ended,
    id_of,
    is_clients,
    is_one_text,
    lengths_of,
    part_of,
    quoted,
    texts_in,
    tool_of,
    usage_of,
    with_references,
)
from worker.providers.provider import Counted, Finish, ProviderEvent, untranslated
from worker.providers.reading import parse, parse_or_fail

Told = Iterable[ProviderEvent | Counted]

# Events that say in steps, or once more, what their item says whole when it is done; and signs of life.
REPEATED = frozenset(
    (
        "keepalive",  # which no reference names, but long answers have
        "response.content_part.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
        "response.custom_tool_call_input.done",
        "response.code_interpreter_call_code.done",
        "response.web_search_call.in_progress",
        "response.web_search_call.searching",
        "response.web_search_call.completed",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
        "response.code_interpreter_call.in_progress",
        "response.code_interpreter_call.interpreting",
        "response.code_interpreter_call.completed",
        "response.image_generation_call.in_progress",
        "response.image_generation_call.generating",
        "response.image_generation_call.completed",
        "response.mcp_call.in_progress",
        "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.completed",
        "response.mcp_list_tools.failed",
        "response.shell_call_command.added",
        "response.shell_call_command.delta",
        "response.shell_call_command.done",
        "response.shell_call_output_content.delta",
        "response.shell_call_output_content.done",
    )
)
# Of a response: what only repeats the request, and what is told elsewhere.
_ECHO = frozenset(("instructions", "tools", "output", "usage", "error"))


class Answer:
    """What must be remembered of an answer to read the rest of it (reading.Answer)."""

    may_end = False
    goes_on = False

    def __init__(self, provider: str) -> None:
        self.finish: Finish | None = None
        self.has_effects = False
        self._provider = provider
        self._items: list[Item] = []
        self._by_id: dict[str, Item] = {}
        self._by_index: dict[int, Item] = {}
        self._call_ids: set[str] = set()
        self._waiting: set[str] = set()  # calls that the caller has to run
        self._texts = _Texts()
        self._has_broken_call = False
        self._told: Json = {}  # of the response

    def end(self) -> Finish:
        raise AssertionError("response.completed and its kin are the only end")

    def take(self, name: bytes, data: bytes) -> Told:
        """Read one server-sent event. By its own type: some servers leave out the names."""
        if data in (b"", b"[DONE]"):  # as Chat Completions end, and some servers all their answers
            return ()
        event = parse_or_fail(name, data)
        kind = event.get("type") or name.decode()
        if kind == "response.output_text.delta":
            return self._delta(event, "output_text")
        if kind in REPEATED:
            return ()
        taker = TAKERS.get(kind)
        if taker is not None:
            return taker(self, event)
        if kind == "error" or (not kind and event.get("error")):
            raise event_failure(event)
        return (untranslated(self._provider, event),)

    # -- texts

    def _delta(self, event: Json, kind: str) -> Told:
        part = part_of(self._item(event), kind, event)
        told = self._texts.show(part, event["delta"])
        if event.get("logprobs"):
            part.has_logprobs = True
            return (*told, untranslated(self._provider, event))
        return told

    def _text_done(self, event: Json, kind: str) -> Told:
        return self._rest(part_of(self._item(event), kind, event), event)

    def _part_done(self, event: Json) -> Told:
        kind = event["part"].get("type")
        if kind not in PARTS:
            return ()  # its item says it
        return self._rest(part_of(self._item(event), kind, event), event["part"])

    def _rest(self, part: Part, said: Json) -> Told:
        """Of a part that is complete: what has not been told of it."""
        text = said.get(PARTS[part.type][0]) or ""
        yield from self._texts.show(part, text[part.shown :])
        if said.get("logprobs") and not part.has_logprobs:
            part.has_logprobs = True
            yield untranslated(self._provider, {"type": part.type, "logprobs": said["logprobs"]})
        for annotation in (said.get("annotations") or [])[part.citations :]:
            yield from self._cite(part, annotation, {"type": part.type, "annotation": annotation})

    def _annotated(self, event: Json) -> Told:
        part = part_of(self._item(event), "output_text", event)
        return self._cite(part, event.get("annotation"), event)

    def _cite(self, part: Part, said: Any, event: Json) -> Told:
        part.citations += 1
        citation = citation_of(said, part.begins)
        if citation is not None:
            yield "citation", citation
        if citation is None or said.keys() - {"type", "url", "title", "start_index", "end_index"}:
            yield untranslated(self._provider, event)

    # -- items

    def _item(self, event: Json, kind: str = "") -> Item:
        """The item that an event is about. Of its two names some servers change the one, some repeat the other."""
        item_id, index = event.get("item_id"), event.get("output_index")
        item = self._by_id.get(item_id) if item_id else None
        if item is None:
            item = self._by_index.get(index) if index is not None else None
            if item is not None and kind and (item.whole is not None or item.type not in ("", kind)):
                item = None
        return item or self._new_item(kind, item_id, index)

    def _new_item(self, kind: str, item_id: Any, index: Any) -> Item:
        item = Item(kind)
        self._items.append(item)
        if item_id:
            self._by_id[item_id] = item
        if index is not None:
            self._by_index[index] = item
        return item

    def _item_added(self, event: Json) -> Told:
        said = event["item"]
        item = self._new_item(said["type"], said.get("id"), event.get("output_index"))
        return self._start(item, said) if item.type in CALLS else ()

    def _item_done(self, event: Json) -> Told:
        said = event["item"]
        item = self._item({**event, "item_id": said.get("id")}, said["type"])
        return self._complete(item, event) if item.whole is None else ()

    def _complete(self, item: Item, event: Json) -> Told:
        """`event`: output_item.done, or what the response's end says in its place."""
        said = item.whole = event["item"]
        kind = item.type = said["type"]
        if kind in ("message", "reasoning"):
            yield from self._texts_of(item, said)
        elif kind in CALLS:
            yield from self._call_done(item, said)
        elif kind in RESULTS:
            yield from self._result(said)
        else:
            yield untranslated(self._provider, event)

    def _texts_of(self, item: Item, said: Json) -> Told:
        for name, index, one in texts_in(said):
            if one.get("type") in PARTS:
                place = {"summary_index": index, "content_index": index}
                yield from self._rest(part_of(item, one["type"], place), one)
            else:
                yield untranslated(self._provider, {"type": said["type"], name: one})
        if said.get("encrypted_content"):
            sealed = {key: value for key, value in said.items() if key not in ("summary", "content")}
            yield untranslated(self._provider, {"type": "response.output_item.done", "item": sealed})

    # -- calls

    def _start(self, item: Item, said: Json) -> Told:
        """A call is told as soon as its tool is known."""
        tool = tool_of(said)
        if item.call_id or not tool:
            return
        item.tool, item.began = tool, time.monotonic()
        item.call_id = self._unique(id_of(said))
        data: Json = {"tool_call_id": item.call_id, "tool": tool}
        if is_clients(said):
            self._waiting.add(item.call_id)
            data["client"] = True
        yield "tool_start", data
        if item.pieces:  # that came before it was known whose they are
            yield self._args_delta(item, "".join(item.pieces))

    def _unique(self, said: str) -> str:
        call_id = said if said and said not in self._call_ids else f"call_{len(self._call_ids) + 1}"
        while call_id in self._call_ids:
            call_id += "_"
        self._call_ids.add(call_id)
        return call_id

    def _args(self, item: Item, piece: str) -> Told:
        if not piece:
            return ()
        item.pieces.append(piece)
        return (self._args_delta(item, piece),) if item.call_id else ()

    def _args_delta(self, item: Item, piece: str) -> ProviderEvent:
        return "tool_args_delta", {"tool_call_id": item.call_id, "tool": item.tool, "partial_json": piece}

    def _args_rest(self, item: Item, whole: str) -> Told:
        told = "".join(item.pieces)
        # Some servers write the whole in another way than its pieces, which are as good.
        return self._args(item, whole[len(told) :]) if whole.startswith(told) else ()

    def _piece(self, event: Json) -> Told:
        return self._args(self._item(event), event["delta"])

    def _quoted_piece(self, event: Json, opening: str) -> Told:
        """Of arguments that are no JSON but one text: they are told as JSON all the same, with the text as a string."""
        item = self._item(event)
        return self._args(item, ("" if item.pieces else opening) + quoted(event["delta"]))

    def _pieces_done(self, event: Json) -> Told:
        return self._args_rest(self._item(event), event.get("arguments") or "")

    def _mcp_runs(self, event: Json) -> Told:
        """From here on something may have changed elsewhere."""
        self.has_effects = True
        return self._pieces_done(event)

    def _call_done(self, item: Item, said: Json) -> Told:
        yield from self._start(item, said)
        if not item.call_id:
            raise ValueError("a call without a tool")
        if said.get("status") != "incomplete":
            yield from self._call_args(item, said)
        if item.type == "mcp_call":
            self.has_effects = True
        if item.type in OWN_CALLS:
            yield ended(item, said)

    def _call_args(self, item: Item, said: Json) -> Told:
        """The arguments, whole; first what the deltas did not say of them."""
        if item.type in ARGUMENTS:
            args = ARGUMENTS[item.type](said)
            if item.type in ("custom_tool_call", "code_interpreter_call"):
                yield from self._args_rest(item, orjson.dumps(args).decode())
        else:
            arguments = said.get("arguments") or ""
            yield from self._args_rest(item, arguments)
            try:
                args = parse(arguments.encode()) if arguments else {}
            except ValueError:  # cut off, perhaps: the answer's end tells
                self._has_broken_call = True
                item.whole = {**said, "status": "incomplete"}
                return
        yield "tool_args", {"tool_call_id": item.call_id, "tool": item.tool, "args": args, "complete": True}

    def _result(self, said: Json) -> Told:
        call_id = id_of(said)
        call = next((item for item in self._items if item.call_id == call_id), None)
        if call is None:
            call = Item(said["type"])
            call.call_id, call.tool = call_id, said["type"].removesuffix("_output").removesuffix("_call")
        self._waiting.discard(call_id)
        yield ended(call, said)

    # -- the response

    def _news(self, event: Json) -> Told:
        """What a response says of itself that it has not said before."""
        response = event["response"]
        news = {
            key: value
            for key, value in response.items()
            if key not in _ECHO and value is not None and self._told.get(key) != value
        }
        self._told |= news
        if news:
            yield untranslated(self._provider, {"type": event["type"], "response": news})

    def _fails(self, event: Json) -> Told:
        yield from self._news(event)
        if event["response"].get("usage"):
            yield Counted(usage_of(event["response"]["usage"]))
        raise event_failure({"error": event["response"].get("error") or {}})

    def _ends(self, event: Json) -> Told:
        response = event["response"]
        outcome = event["type"].removeprefix("response.")
        if response.get("status") in ("failed", "incomplete"):  # some servers have one word for every end
            outcome = response["status"]
        if outcome == "failed":
            yield from self._fails(event)
        yield from self._last_items(response, outcome)
        if self._has_broken_call and outcome == "completed":
            raise failed("provider_bad_answer", "The model called a tool with arguments that are not JSON.")
        yield from self._news({**event, "response": {**response, "items": [bare(item) for item in self._items]}})
        usage = usage_of(response.get("usage"))
        yield Counted(usage)
        details = response.get("incomplete_details")
        reason = (details or {}).get("reason") if outcome == "incomplete" else None
        self.finish = Finish(
            self._stop_reason(outcome, reason),
            usage,
            provider_stop_reason=reason or outcome,
            stop_details=details,
            model=response.get("model"),
            response_id=response.get("id") or self._told.get("id"),
            native=self._native(is_stored=response.get("store") is True),
        )

    def _last_items(self, response: Json, outcome: str) -> Told:
        """What has not been said of the output is said now. A call whose end nobody says has ended."""
        output = response.get("output") or []
        known = [self._by_id.get(said.get("id") or "") for said in output]
        are_known = set(known)
        others = [item for item in self._items if item not in are_known]
        in_order = []
        for said, item in zip(output, known, strict=True):
            if item is None:  # some servers change the ids
                item = next((one for one in others if one.type in ("", said["type"])), None)
                if item is not None:
                    others.remove(item)
            item = item or self._new_item(said["type"], said.get("id"), None)
            in_order.append(item)
            if item.whole is None:
                yield from self._complete(item, {"type": "response.output_item.done", "item": said})
        if len(in_order) == len(self._items):
            self._items = in_order
        for item in self._items:
            if item.whole is None and item.type == "function_call" and item.call_id:
                whole = {"call_id": item.call_id, "name": item.tool, "arguments": "".join(item.pieces)}
                yield from self._complete(item, {"item": {"type": item.type, "status": outcome, **whole}})

    def _stop_reason(self, outcome: str, reason: str | None) -> str:
        if outcome == "incomplete":
            return {"max_output_tokens": "max_tokens", "content_filter": "refusal"}.get(reason or "", "other")
        if self._texts.is_refusal:
            return "refusal"
        return "tool_use" if self._waiting else "end_turn"

    def _native(self, *, is_stored: bool) -> list[Json] | None:
        """The items that the next turn's input needs. None: one text and nothing else."""
        items = [item for item in self._items if item.whole is not None and can_be_sent(item.whole, is_stored)]
        while items and items[-1].type == "reasoning":  # which is refused without what came of it
            items.pop()
        if not items or (len(items) == 1 and is_one_text(items[0].whole or {})):
            return None
        refers = {kind for kind in ("text_delta", "thinking_delta") if self._texts.are_all_of(items, kind)}
        return [with_references(item, refers) for item in items]


class _Texts:
    """What has been shown of an answer's texts: how many characters, and of which parts, in their order."""

    def __init__(self) -> None:
        self.is_refusal = False
        self._order: dict[str, list[Part]] = {"text_delta": [], "thinking_delta": []}
        self._last: Part | None = None
        self._shown = 0  # characters of text_delta
        self._can_be_referred_to = {"text_delta": True, "thinking_delta": True}

    def show(self, part: Part, text: Any) -> tuple[ProviderEvent, ...]:
        if type(text) is not str:
            raise TypeError("a delta without text")
        if not text:
            return ()
        kind = part.kind
        part.shown += len(text)
        if part is not self._last:
            text = self._turn_to(part, text)
        if kind == "text_delta":
            self._shown += len(text)
        return ((kind, {"text": text}),)

    def _turn_to(self, part: Part, text: str) -> str:
        self._last = part
        order = self._order[part.kind]
        if order and order[-1] is part:  # only thinking came between, or only text
            return text
        if part in order:
            self._can_be_referred_to[part.kind] = False
            return text
        order.append(part)
        part.begins = self._shown
        self.is_refusal = self.is_refusal or part.type == "refusal"
        if part.kind == "thinking_delta" and len(order) > 1:  # the parts of a summary are paragraphs
            self._can_be_referred_to[part.kind] = False
            return "\n\n" + text
        return text

    def are_all_of(self, items: list[Item], kind: str) -> bool:
        """A reference is to the next characters of what was shown, so they must be all of it, in its order."""
        shown = [part.shown for part in self._order[kind]]
        return self._can_be_referred_to[kind] and shown == [
            length for item in items for length in lengths_of(item, kind)
        ]


TAKERS: dict[str, Callable[[Answer, Json], Told]] = {
    "response.created": Answer._news,
    "response.queued": Answer._news,
    "response.in_progress": Answer._news,
    "response.output_item.added": Answer._item_added,
    "response.output_item.done": Answer._item_done,
    "response.content_part.done": Answer._part_done,
    "response.output_text.delta": lambda answer, event: answer._delta(event, "output_text"),
    "response.output_text.done": lambda answer, event: answer._text_done(event, "output_text"),
    "response.output_text.annotation.added": Answer._annotated,
    "response.refusal.delta": lambda answer, event: answer._delta(event, "refusal"),
    "response.refusal.done": lambda answer, event: answer._text_done(event, "refusal"),
    "response.reasoning_summary_text.delta": lambda answer, event: answer._delta(event, "summary_text"),
    "response.reasoning_summary_text.done": lambda answer, event: answer._text_done(event, "summary_text"),
    "response.reasoning_text.delta": lambda answer, event: answer._delta(event, "reasoning_text"),
    "response.reasoning_text.done": lambda answer, event: answer._text_done(event, "reasoning_text"),
    "response.function_call_arguments.delta": Answer._piece,
    "response.function_call_arguments.done": Answer._pieces_done,
    "response.mcp_call_arguments.delta": Answer._piece,
    "response.mcp_call_arguments.done": Answer._mcp_runs,
    "response.mcp_call.completed": Answer._mcp_runs,
    "response.mcp_call.failed": Answer._mcp_runs,
    "response.custom_tool_call_input.delta": lambda answer, event: answer._quoted_piece(event, '"'),
    "response.code_interpreter_call_code.delta": lambda answer, event: answer._quoted_piece(event, '{"code":"'),
    "response.completed": Answer._ends,
    "response.incomplete": Answer._ends,
    "response.failed": Answer._fails,
}

# ---- Failing

# The API's error codes and types, in a refusal's body, in an `error` event or in a response that failed.
ERRORS = {
    "server_error": "provider_error",
    "timeout": "provider_error",
    "vector_store_timeout": "provider_error",
    "rate_limit_exceeded": "provider_rate_limited",
    "rate_limit_error": "provider_rate_limited",
    "slow_down": "provider_overloaded",
    "server_is_overloaded": "provider_overloaded",
    "server_overloaded": "provider_overloaded",
    "overloaded_error": "provider_overloaded",
    "invalid_api_key": "provider_unauthorized",
    "authentication_error": "provider_unauthorized",
    "permission_error": "provider_unauthorized",
    "insufficient_quota": "provider_refused",
    "billing_hard_limit_reached": "provider_refused",
    "billing_not_active": "provider_refused",
    "model_not_found": "provider_refused",
    "data_residency_mismatch": "provider_refused",
    "invalid_request_error": "provider_refused",
    "invalid_prompt": "provider_refused",
    "context_length_exceeded": "provider_refused",
    "content_policy_violation": "provider_refused",
    "bio_policy": "provider_refused",
    "misalignment_policy_violation": "provider_refused",
    "unsupported_image_media_type": "provider_refused",
    "failed_to_download_image": "provider_refused",
}
MOVE_ON = frozenset(
    {
        *("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "model_not_found"),
        *("data_residency_mismatch",),
    }
)
"""The account's fault, not the request's: of a chain the next model may do."""


def event_failure(event: Json) -> ProviderFailure:
    """Of an `error` event, or of what else says that it is one: flat, or in an `error` of its own."""
    error = event.get("error") or event
    if not isinstance(error, dict):
        return failed("provider_error", said=error)
    names = [name for name in (error.get("code"), error.get("type")) if isinstance(name, str)]
    is_image = any("image" in name for name in names)  # a dozen codes, none of which comes right by another try
    code = next(
        (ERRORS[name] for name in names if name in ERRORS), "provider_refused" if is_image else "provider_error"
    )
    return failed(code, said=error.get("message"), moves_on=not MOVE_ON.isdisjoint(names))
