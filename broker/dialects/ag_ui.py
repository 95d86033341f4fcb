"""AG-UI (ag-ui.com, specification 1.0; @ag-ui/client, and TanStack AI, which speaks it): an answer as a run's events.

A payload is an event's JSON. Its frame begins with its id: TanStack AI takes an `id:` for that of the next `data:`.

Ids of messages: <stream>-<attempt>-<n>, and of reasoning <stream>-r<n>. A `restart` takes back what was said by a
snapshot of the messages that there were when the run began. @ag-ui/client keeps reasoning that a snapshot does not
name, so it is named, and empty, and the next attempt fills the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from broker.dialects.fold import Facts
from broker.dialects.said import counts_of
from broker.dialects.sse import CONTENT_TYPE, HEARTBEAT, Gap
from broker.log.event import CANCELLED, DONE, ERROR, QUEUED, RESTART, TEXT_DELTA, THINKING_DELTA, Event, encode_data

NAME = "ag-ui"

OWN = "lastevent."
"""Before the kinds of ours that have no event there: names have a namespace, and a producer's kinds have their own."""


MOST_CALLS, MOST_OPEN, MOST_REASONINGS = 4096, 256, 256
"""Calls of an attempt, those without a result at once, and its reasoning messages. Further calls are not told, and
further reasoning goes on in the last message: a producer may write 150,000 of each. A state holds the calls, and a
snapshot names the messages.
"""


class TakenBack(bytes):
    """A payload of a gap. The client forgets where it was: what it has seen comes again, and it drops ids that it has
    seen. Then it stands at the beginning.
    """


_CALL_ENDS = frozenset({"tool_end", "tool_error"})


class AgUiFold:
    """`_open`: what is being said: "text", "reasoning" or nothing. `_anchor`: the message that a call belongs to.
    `_calls`: those without a result, by id: whether the arguments are complete. `_seen`: the calls of this attempt,
    `_used`: of those before. What an agent has done stays done, and is said again: under another id, for within a run
    no id names two. States share all of these: they are replaced, and never changed.
    """

    __slots__ = (
        *("number", "is_over", "_facts", "_attempt", "_messages", "_reasonings", "_most_reasonings"),
        *("_open", "_open_id", "_anchor", "_calls", "_clients", "_with_args", "_seen", "_used"),
    )

    def __init__(self, facts: Facts) -> None:
        self.number = 0
        self.is_over = False
        self._facts = facts
        self._attempt = 1
        self._messages = 0
        self._reasonings = 0
        self._most_reasonings = 0
        self._used: frozenset[str] = frozenset()
        self._seen: frozenset[str] = frozenset()
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._open, self._open_id = "", b""
        self._anchor = b""
        self._calls: dict[str, bool] = {}
        self._clients: frozenset[str] = frozenset()
        self._with_args: frozenset[str] = frozenset()
        if len(self._used) < MOST_CALLS:
            self._used |= self._seen
        self._seen = frozenset()

    def copy(self) -> AgUiFold:
        copy = AgUiFold.__new__(AgUiFold)
        for name in AgUiFold.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy

    # -- events ------------------------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[bytes]:
        payloads = self._said(event)
        self.number += len(payloads)
        return payloads

    def _said(self, event: Event) -> list[bytes]:
        kind = event.kind
        if kind == TEXT_DELTA:
            return self._text(event.data)
        if kind == THINKING_DELTA:
            return self._thinking(event.data)
        if kind == QUEUED:
            return [self._run(b"RUN_STARTED", b',"timestamp":%d' % event.t)]
        if kind == DONE:
            return self._done(_object(event.data), event.t)
        if kind == CANCELLED:
            outcome = b',"outcome":{"type":"cancelled"},"timestamp":%d' % event.t
            return [*self._closed(), self._run(b"RUN_FINISHED", outcome)]
        if kind == ERROR:
            return self._error(_object(event.data))
        if kind == RESTART:
            return self._restart(event.data)
        if kind == "tool_start":
            return self._tool_start(_object(event.data))
        if kind == "tool_args_delta":
            data = _object(event.data)
            return self._args(data, data.get("partial_json"))
        if kind == "tool_args":
            return self._whole_args(_object(event.data))
        if kind in _CALL_ENDS:
            return self._tool_end(_object(event.data))
        return [_custom(kind if "." in kind else OWN + kind, event.data)]

    def opening(self) -> list[bytes]:
        """For a viewer that begins at a `restart`."""
        return [self._run(b"RUN_STARTED", b"")]

    def gap(self, gap: Gap) -> list[bytes]:
        """What it has of this run is taken back, and the attempt that there is follows from its beginning."""
        return [TakenBack(_custom(OWN + "gap", orjson.dumps(gap._asdict()))), TakenBack(self._snapshot())]

    # -- what is said ------------------------------------------------------------------------------------------------

    def _text(self, data: bytes) -> list[bytes]:
        text = _object(data).get("text")
        if not isinstance(text, str) or not text:
            return []
        opening: list[bytes] = []
        if self._open != "text":
            opening = self._pause()
            self._open, self._open_id = "text", self._next_message()
            self._anchor = self._open_id
            opening.append(b'{"type":"TEXT_MESSAGE_START","messageId":"%b","role":"assistant"}' % self._open_id)
        delta = b'{"type":"TEXT_MESSAGE_CONTENT","messageId":"%b","delta":%b}' % (self._open_id, encode_data(text))
        return [*opening, delta] if opening else [delta]

    def _thinking(self, data: bytes) -> list[bytes]:
        text = _object(data).get("text")
        if not isinstance(text, str) or not text:
            return []
        opening: list[bytes] = []
        if self._open != "reasoning":
            opening = self._pause()
            index = min(self._reasonings, MOST_REASONINGS - 1)
            self._open, self._open_id = "reasoning", self._reasoning_id(index)
            self._reasonings += 1
            self._most_reasonings = max(self._most_reasonings, index + 1)
            opening += [
                b'{"type":"REASONING_START","messageId":"%b"}' % self._open_id,
                b'{"type":"REASONING_MESSAGE_START","messageId":"%b","role":"reasoning"}' % self._open_id,
            ]
        delta = b'{"type":"REASONING_MESSAGE_CONTENT","messageId":"%b","delta":%b}' % (self._open_id, encode_data(text))
        return [*opening, delta]

    def _pause(self) -> list[bytes]:
        """What is being said ends."""
        was_open, self._open = self._open, ""
        if was_open == "text":
            return [b'{"type":"TEXT_MESSAGE_END","messageId":"%b"}' % self._open_id]
        if was_open == "reasoning":
            return [
                b'{"type":"REASONING_MESSAGE_END","messageId":"%b"}' % self._open_id,
                b'{"type":"REASONING_END","messageId":"%b"}' % self._open_id,
            ]
        return []

    def _next_message(self) -> bytes:
        self._messages += 1
        return b"%b-%d-%d" % (self._facts.sid.encode(), self._attempt, self._messages)

    def _reasoning_id(self, index: int) -> bytes:
        return b"%b-r%d" % (self._facts.sid.encode(), index)

    # -- tools -------------------------------------------------------------------------------------------------------

    def _tool_start(self, data: dict[str, Any]) -> list[bytes]:
        call, tool = data.get("tool_call_id"), data.get("tool")
        if not (isinstance(call, str) and call and _is_name(tool)) or call in self._seen:
            return []
        if len(self._seen) == MOST_CALLS or len(self._calls) == MOST_OPEN:
            return []
        self._calls = {**self._calls, call: False}
        self._seen |= {call}
        if data.get("client") is True:
            self._clients |= {call}
        parent = b',"parentMessageId":"%b"' % self._anchor if self._anchor else b""
        names = (self._call(call), _text(tool), parent)
        return [*self._pause(), b'{"type":"TOOL_CALL_START","toolCallId":%b,"toolCallName":%b%b}' % names]

    def _args(self, data: dict[str, Any], delta: Any) -> list[bytes]:
        call = data.get("tool_call_id")
        if not isinstance(call, str) or self._calls.get(call, True) or not _is_name(delta):
            return []
        self._with_args |= {call}
        return [b'{"type":"TOOL_CALL_ARGS","toolCallId":%b,"delta":%b}' % (self._call(call), _text(delta))]

    def _whole_args(self, data: dict[str, Any]) -> list[bytes]:
        call = data.get("tool_call_id")
        if not isinstance(call, str) or self._calls.get(call, True):
            return []
        args: list[bytes] = []
        if call not in self._with_args and "args" in data:
            args = self._args(data, encode_data(data["args"]).decode())
        return [*args, *self._end_args(call)]

    def _end_args(self, call: str) -> list[bytes]:
        if self._calls[call]:
            return []
        self._calls = {**self._calls, call: True}
        return [b'{"type":"TOOL_CALL_END","toolCallId":%b}' % self._call(call)]

    def _tool_end(self, data: dict[str, Any]) -> list[bytes]:
        """Where results are not shown it is empty: that there is one says that nobody needs to run it."""
        call = data.get("tool_call_id")
        if not isinstance(call, str) or call not in self._calls:
            return []
        ended = self._end_args(call)
        self._calls = {other: is_whole for other, is_whole in self._calls.items() if other != call}
        self._clients -= {call}
        given = next((data[name] for name in ("output", "message", "code") if name in data), "")
        content = given if isinstance(given, str) else encode_data(given).decode()
        self._anchor = b""
        names = (self._next_message(), self._call(call), _text(content))
        result = b'{"type":"TOOL_CALL_RESULT","messageId":"%b","toolCallId":%b,"content":%b,"role":"tool"}' % names
        return [*self._pause(), *ended, result]

    def _call_id(self, call: str) -> str:
        return f"{call}-{self._attempt}" if call in self._used else call

    def _call(self, call: str) -> bytes:
        return _text(self._call_id(call))

    # -- endings -----------------------------------------------------------------------------------------------------

    def _closed(self) -> list[bytes]:
        """All that is open ends."""
        return [*self._pause(), *(end for call in self._calls for end in self._end_args(call))]

    def _done(self, data: dict[str, Any], t: int) -> list[bytes]:
        closed = self._closed()
        outcome: dict[str, Any] = {"type": "success"}
        if self._clients:
            outcome["pendingToolCallIds"] = [self._call_id(call) for call in self._calls if call in self._clients]
        more: dict[str, Any] = {"outcome": outcome, "timestamp": t}
        if "result" in data:
            more["result"] = data["result"]
        if usage := _usage(data):
            more["usage"] = [usage]
        if isinstance(reason := data.get("stop_reason"), str):
            more["metadata"] = {"lastevent": {"stop_reason": reason}}
        return [*closed, self._run(b"RUN_FINISHED", b"," + encode_data(more)[1:-1])]

    def _error(self, data: dict[str, Any]) -> list[bytes]:
        code, message = data.get("code"), data.get("message")
        code = code if isinstance(code, str) and code else "internal_error"
        message = message if isinstance(message, str) and message else code
        error = b'{"type":"RUN_ERROR","message":%b,"code":%b}' % (_text(message), _text(code))
        return [*self._closed(), error]

    def _restart(self, data: bytes) -> list[bytes]:
        taken_back = [*self._closed(), self._snapshot()]
        self._attempt += 1
        self._messages = self._reasonings = 0
        self._begin_attempt()
        return [*taken_back, _custom(OWN + RESTART, data)]

    def _snapshot(self) -> bytes:
        """The conversation without what this run has said."""
        empty = [
            {"id": self._reasoning_id(index).decode(), "role": "reasoning", "content": ""}
            for index in range(self._most_reasonings)
        ]
        messages = [*messages_before(self._facts), *empty]
        return b'{"type":"MESSAGES_SNAPSHOT","messages":%b}' % encode_data(messages)

    def _run(self, kind: bytes, more: bytes) -> bytes:
        ids = (kind, _text(thread_id(self._facts)), _text(run_id(self._facts)), more)
        return b'{"type":"%b","threadId":%b,"runId":%b%b}' % ids


@dataclass(frozen=True, slots=True)
class AgUi:
    name: str = NAME
    content_type: str = CONTENT_TYPE
    heartbeat: bytes = HEARTBEAT
    end: bytes = b""
    merges: bool = False
    shows_request: bool = True
    """Whether a snapshot has what was asked: not for who may not see a record's request."""

    @property
    def needs_request(self) -> bool:
        return self.shows_request

    def begin(self, facts: Facts) -> AgUiFold:
        return AgUiFold(facts)

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        if isinstance(payload, TakenBack):
            return b"id: %b\ndata: %b\n\n" % (b"0-%d" % index if index else b"", payload)
        return b"id: %d-%d\ndata: %b\n\n" % (event_id, index, payload)


# -- what was before the run -------------------------------------------------------------------------------------------


def thread_id(facts: Facts) -> str:
    return str(facts.echo.get("thread_id") or facts.session)


def run_id(facts: Facts) -> str:
    """As its client called it; of a stream that no client of AG-UI started it is the stream's."""
    return str(facts.echo.get("run_id") or facts.sid)


def messages_before(facts: Facts) -> list[Any]:
    """The conversation that the run answers: as its client sent it, or else what its user and its models said."""
    kept = facts.request.get("echo")
    if isinstance(kept, dict) and isinstance(kept.get("messages"), list) and facts.echo:
        return list(kept["messages"])
    asked = facts.request.get("messages")
    messages = []
    for index, message in enumerate(asked if isinstance(asked, list) else ()):
        role, content = message.get("role"), _plain(message.get("content"))
        if role in ("user", "assistant") and content:
            messages.append({"id": f"{facts.sid}-m{index}", "role": role, "content": content})
    return messages


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    texts = [block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


# -- JSON --------------------------------------------------------------------------------------------------------------


def _object(data: bytes) -> dict[str, Any]:
    value = orjson.loads(data)
    return value if isinstance(value, dict) else {}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _text(value: Any) -> bytes:
    return encode_data(value)


def _custom(name: str, data: bytes) -> bytes:
    return b'{"type":"CUSTOM","name":%b,"value":%b}' % (_text(name), data)


def _usage(data: dict[str, Any]) -> dict[str, Any]:
    """TokenUsage: input with what was cached, which is named beside it."""
    counts = counts_of(data)
    if counts is None:
        return {}
    usage: dict[str, Any] = {
        "inputTokens": counts.all_input,
        "outputTokens": counts.output,
        "totalTokens": counts.all_input + counts.output,
    }
    more = {
        "cachedInputTokens": counts.cache_read,
        "cacheWriteInputTokens": counts.cache_creation,
        "reasoningTokens": counts.thinking,
    }
    usage |= {name: count for name, count in more.items() if count}
    return usage | {"model": data["model"]} if isinstance(data.get("model"), str) else usage
