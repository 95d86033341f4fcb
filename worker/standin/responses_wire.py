"""The OpenAI Responses streaming wire:

response.created response.in_progress  response.output_item.added … response.output_item.done  …  response.completed

Each event has a sequence number; an item is announced, streamed in pieces, then said once more whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from worker.standin import openai_errors
from worker.standin.directives import Directives
from worker.standin.wire import (
    Citation,
    Refused,
    Request,
    Wire,
    asked_last,
    demand,
    event,
    forced_of,
    list_of,
    object_of,
    objects,
    quoted,
    read_object,
    text_of,
    tools_of,
    torn_quoted,
)

_INCOMPLETE = {"max_tokens": "max_output_tokens", "refusal": "content_filter", "content_filter": "content_filter"}
_SERVER = "house"
_TOOL = {"name": "read_thermometer", "description": "", "input_schema": {"type": "object"}, "annotations": None}


class ResponsesWire(Wire):
    PATH = re.compile("/v1/responses")
    REQUEST_ID = b"x-request-id"
    INTERLEAVES = True
    GARBAGE = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":\n\n'

    def __init__(self, number: int, request: Request, asked: Directives) -> None:
        super().__init__(number, request, asked)
        self._created_at = int(time.time())
        self._sequence = -1
        self._output: list[dict[str, Any]] = []  # each item as it was last said
        self._said: list[str] = []  # the pieces of the item that is open
        self._annotations: list[dict[str, Any]] = []
        self._opened_calls: dict[int, int] = {}  # call → its item's index in the output
        self._before = self._after = b""  # of a delta of the item that is open

    @staticmethod
    def read_request(body: bytes, path: str, query: str) -> Request:
        return read_request(body)

    @staticmethod
    def refusal(number: int, refused: Refused, model: str) -> dict[str, Any]:
        return openai_errors.refusal(refused, model)

    @staticmethod
    def models() -> dict[str, Any]:
        return openai_errors.MODELS

    @staticmethod
    def whole(events: list[dict[str, Any]]) -> dict[str, Any] | None:
        ends = {"response.completed", "response.incomplete", "response.failed"}
        return next((said["response"] for said in events if said["type"] in ends), None)

    def ping(self) -> bytes:
        return self._event("keepalive")  # which no reference names, but long answers have

    def begin(self) -> bytes:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def open_thinking(self) -> bytes:
        added = self._add({"id": self._id("rs"), "type": "reasoning", "summary": [], **self._encrypted()})
        self._open_deltas("response.reasoning_summary_text.delta", {"summary_index": 0})
        part = {"type": "summary_text", "text": ""}
        return added + self._event_of_item("response.reasoning_summary_part.added", part=part, summary_index=0)

    def thinking(self, text: str) -> bytes:
        return self._delta(text)

    def close_thinking(self) -> bytes:
        part = {"type": "summary_text", "text": "".join(self._said)}
        return (
            self._event_of_item("response.reasoning_summary_text.done", text=part["text"], summary_index=0)
            + self._event_of_item("response.reasoning_summary_part.done", part=part, summary_index=0)
            + self._done(summary=[part])
        )

    def open_text(self) -> bytes:
        item = {"id": self._id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        added = self._add(item)
        if self._asked.refuse:
            self._open_deltas("response.refusal.delta", {"content_index": 0})
        else:
            self._open_deltas("response.output_text.delta", {"content_index": 0, "logprobs": []})
        return added + self._event_of_item("response.content_part.added", part=self._part(""), content_index=0)

    def text(self, text: str) -> bytes:
        return self._delta(text)

    def torn_text(self, text: str) -> bytes:
        return self._delta(f"{text}\ud83d", torn_quoted(text))

    def citation(self, index: int, citation: Citation) -> bytes:
        annotation = {
            "type": "url_citation",
            "url": citation.url,
            "title": citation.title,
            "start_index": citation.start,
            "end_index": citation.end,
        }
        self._annotations.append(annotation)
        return self._event_of_item(
            "response.output_text.annotation.added", annotation=annotation, annotation_index=index, content_index=0
        )

    def close_text(self) -> bytes:
        said = "".join(self._said)
        part = self._part(said)
        if self._asked.refuse:
            done = self._event_of_item("response.refusal.done", refusal=said, content_index=0)
        else:
            done = self._event_of_item("response.output_text.done", text=said, logprobs=[], content_index=0)
        return (
            done
            + self._event_of_item("response.content_part.done", part=part, content_index=0)
            + self._done(status="incomplete" if self._asked.max else "completed", content=[part])
        )

    def open_call(self, call: int, name: str, args: str) -> bytes:
        self._opened_calls[call] = len(self._output)
        return self._add(
            {
                "id": self._id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "arguments": "",
                "call_id": f"call_standin_{self._number}_{call}",
                "name": name,
            }
        )

    def call_args(self, call: int, piece: str) -> bytes:
        return self._event_of_item("response.function_call_arguments.delta", self._opened_calls[call], delta=piece)

    def close_call(self, call: int, args: str) -> bytes:
        at = self._opened_calls[call]
        done = self._event_of_item(
            "response.function_call_arguments.done", at, arguments=args, name=self._output[at]["name"]
        )
        return done + self._done(at, status="completed", arguments=args)

    def search(self, query: str, is_found: bool) -> Iterator[bytes]:
        action = {"type": "search", "query": query}
        yield self._add({"id": self._id("ws"), "type": "web_search_call", "status": "in_progress", "action": action})
        yield self._event_of_item("response.web_search_call.in_progress")
        yield self._event_of_item("response.web_search_call.searching")
        if is_found:
            yield self._event_of_item("response.web_search_call.completed")
        yield self._done(status="completed" if is_found else "failed")

    def mcp_call(self, args: str, output: str) -> Iterator[bytes]:
        yield self._add({"id": self._id("mcpl"), "type": "mcp_list_tools", "server_label": _SERVER, "tools": []})
        yield self._event_of_item("response.mcp_list_tools.in_progress")
        yield self._event_of_item("response.mcp_list_tools.completed")
        yield self._done(tools=[_TOOL])
        call = {"id": self._id("mcp"), "type": "mcp_call", "status": "in_progress", "name": _TOOL["name"]}
        nothing_yet = {"server_label": _SERVER, "arguments": "", "output": None, "error": None}
        yield self._add({**call, **nothing_yet, "approval_request_id": None})
        yield self._event_of_item("response.mcp_call.in_progress")
        yield self._event_of_item("response.mcp_call_arguments.delta", delta=args)
        yield self._event_of_item("response.mcp_call_arguments.done", arguments=args)
        yield self._event_of_item("response.mcp_call.completed")
        yield self._done(status="completed", arguments=args, output=output)

    def error(self, kind: str) -> bytes:
        error = openai_errors.error_of(kind)
        if self._asked.flat_error:
            return self._event("error", code=error["code"], message=error["message"], param=None)
        return self._event("error", error=error)  # where the reference shows it flat

    def finish(self, stop_reason: str, output_tokens: int) -> bytes:
        usage = self._usage(output_tokens)
        if stop_reason == "failed":
            error = {"code": "server_error", "message": "The model failed to generate a response."}
            return self._event("response.failed", response=self._response("failed", error=error))
        if stop_reason in _INCOMPLETE and not self._asked.refuse:
            details = {"reason": _INCOMPLETE[stop_reason]}
            response = self._response("incomplete", incomplete_details=details, usage=usage)
            return self._event("response.incomplete", response=response)
        response = self._response("completed", completed_at=int(time.time()), usage=usage)
        return self._event("response.completed", response=response)

    # -- events ------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return event({"type": kind, **fields, "sequence_number": self._sequence})

    def _event_of_item(self, kind: str, at: int = -1, **fields: Any) -> bytes:
        """Of the output's item at this index; the last one."""
        at %= len(self._output)
        return self._event(kind, **fields, item_id=self._output[at]["id"], output_index=at)

    def _add(self, item: dict[str, Any]) -> bytes:
        self._said = []
        self._output.append(item)
        return self._event("response.output_item.added", item=item, output_index=len(self._output) - 1)

    def _done(self, at: int = -1, **changes: Any) -> bytes:
        at %= len(self._output)
        self._output[at] = {**self._output[at], **changes}
        return self._event("response.output_item.done", item=self._output[at], output_index=at)

    def _open_deltas(self, kind: str, fields: dict[str, Any]) -> None:
        # A delta differs from the one before only in its text and its number: the rest is made once.
        at = len(self._output) - 1
        same = {"type": kind, **fields, "item_id": self._output[at]["id"], "output_index": at, "delta": ""}
        self._before, _, self._after = event(same).rpartition(b'""')

    def _delta(self, text: str, encoded: bytes = b"") -> bytes:
        self._sequence += 1
        self._said.append(text)
        number = b',"sequence_number":%d' % self._sequence
        return b"%b%b%b%b" % (self._before, encoded or quoted(text), number, self._after)

    # -- parts -------------------------------------------------------------------------------------------------

    def _id(self, kind: str) -> str:
        return f"{kind}_standin_{self._number}_{len(self._output)}"

    def _encrypted(self) -> dict[str, str]:
        included = self._request.fields.get("include")
        is_wanted = isinstance(included, list) and "reasoning.encrypted_content" in included
        return {"encrypted_content": "c3RhbmQtaW4="} if is_wanted else {}

    def _part(self, said: str) -> dict[str, Any]:
        if self._asked.refuse:
            return {"type": "refusal", "refusal": said}
        return {"type": "output_text", "text": said, "annotations": list(self._annotations), "logprobs": []}

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        input_tokens = self._request.input_tokens + self._asked.cached
        return {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": self._asked.cached, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": min(self._asked.thinking, output_tokens)},
            "total_tokens": input_tokens + output_tokens,
        }

    def _response(self, status: str, **changes: Any) -> dict[str, Any]:
        return {
            "id": f"resp_standin_{self._number}",
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": self._request.fields.get("max_output_tokens"),
            "max_tool_calls": None,
            "model": self._request.model,
            "output": list(self._output) if status != "in_progress" else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": self._request.fields.get("store", True),
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "metadata": {},
            **changes,
        }


def read_request(body: bytes) -> Request:
    request = read_object(body)
    model = request.get("model")
    if not isinstance(model, str):
        raise Refused(400, "Missing required parameter: 'model'.")
    given = request.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else objects(request, "input")
    user = [i for i, item in enumerate(items) if item.get("role") == "user"]
    demand(bool(user), "input: one must be the user's")
    message, results = asked_last(one for item in items for one in _said(item))
    choice = request.get("tool_choice")
    return Request(
        model,
        message,
        input_tokens=1 + sum(len(text_of(items[i].get("content"))) for i in user) // 4,
        results=results,
        fields=request,
        is_streamed=request.get("stream") is True,
        tools=tools_of(
            (t for t in list_of(request.get("tools")) if object_of(t).get("type") == "function"), "parameters"
        ),
        forced=forced_of(object_of(choice).get("name") or choice),
    )


def _said(item: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    if item.get("role") == "user":
        yield False, text_of(item.get("content"))
    elif str(item.get("type")).endswith("_output"):
        yield True, text_of(item.get("output"))
