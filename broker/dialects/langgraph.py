"""LangGraph's SDKs: a stream as a run of a thread, in the words of LangGraph's server (langgraph-sdk 0.4,
@langchain/langgraph-sdk 1.15 and 2.0; runs and threads alone).

A frame is `event:`, `data:` and `id: N-k`: the k-th of event N's frames. What is sent depends on the modes that were
asked for, and `metadata`, `end` and `error` are sent in any. The last frame is `end` or `error`, always: without, the
SDKs ask for the run, and what they have not got by then is lost.

An attempt is a list of messages: `ai` ones, and behind each the `tool` messages of what its calls gave. Text behind a
result begins the next `ai` message. Ids are `run-<run>-<attempt>`, `run-<run>-<attempt>-2` and so on. A `restart` takes
all of them back in each mode's own way, and the next attempt has other ids: the SDKs put text behind the text that an
id has already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from broker.dialects import langgraph_messages as messages
from broker.dialects.fold import Facts, Text
from broker.dialects.sse import CONTENT_TYPE, HEARTBEAT, Gap
from broker.log.event import (
    CANCELLED,
    DONE,
    ERROR,
    GAP,
    QUEUED,
    RESTART,
    START,
    TEXT_DELTA,
    THINKING_DELTA,
    TOOL_ARGS_DELTA,
    Event,
    encode_data,
)

NAME = "langgraph"

VALUES, UPDATES, MESSAGES, TUPLE, CUSTOM = "values", "updates", "messages", "messages-tuple", "custom"
MODES = (VALUES, UPDATES, MESSAGES, TUPLE, CUSTOM)
OF_JOINED = (VALUES, TUPLE)
"""What is sent of a run that was started without modes, to whoever joins it without."""

AGENT, TOOLS = "agent", "tools"
"""The nodes of the graph that an answer looks like."""

PENDING, RUNNING, SUCCESS, FAILED, INTERRUPTED = "pending", "running", "success", "error", "interrupted"

STATUS = {"queued": PENDING, "running": RUNNING, DONE: SUCCESS, ERROR: FAILED, CANCELLED: INTERRUPTED}
"""A stream's state → its run's."""

EVERY_PARTIAL_CHARACTERS, PARTIALS_OF_A_TEXT = 4096, 64
"""`messages/partial` says the whole text each time. Of a short one each delta does; of a longer one only those behind
which it has grown by a 64th of what is beyond that, or a text of 16 MiB would be 600 GB."""

MAX_CALLS = 64
"""Calls of one `ai` message; the next one begins another. A state holds those of one message, and as many that still
wait for their result."""

_CHUNK = b'"additional_kwargs":{},"response_metadata":{},"type":"AIMessageChunk","name":null,"id":'
_NO_CALLS = b',"tool_calls":[],"invalid_tool_calls":[],"usage_metadata":null,"tool_call_chunks":[]}'

Json = dict[str, Any]


class TakenBack(bytes):
    """A payload of a gap. It has no id: a client that is cut behind it comes back with the one that is lost, and is
    told of the gap again. That of the state which says it would leave out what is between the attempt's beginning and
    there.
    """


def run_id_of(sid: str) -> str:
    """A stream's id as LangGraph writes ids: a UUID. Another id than ours stays as it is."""
    try:
        return str(UUID(hex=sid))
    except ValueError:
        return sid


def sid_of(run_id: str) -> str:
    """Of a run's id in either form."""
    try:
        return UUID(run_id).hex
    except ValueError:
        return run_id


@dataclass(frozen=True)
class LangGraph:
    """`modes`: of MODES. `shows_asked`: whether the reader may see what was asked; if not, a thread is its answer."""

    modes: frozenset[str] = frozenset(MODES)
    shows_asked: bool = True
    name: str = NAME
    content_type: str = CONTENT_TYPE
    heartbeat: bytes = HEARTBEAT
    end: bytes = b""
    merges: bool = False
    needs_request: bool = True

    def begin(self, facts: Facts) -> Run:
        return Run(facts, self.modes, shows_asked=self.shows_asked)

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        if isinstance(payload, TakenBack):
            return payload + b"\n"
        return b"%bid: %d-%d\n\n" % (payload, event_id, index)


class _Call:
    __slots__ = ("args", "index", "is_open", "name", "value")

    def __init__(self, name: str, index: int, *, is_open: bool) -> None:
        self.name = name
        self.index = index
        self.is_open = is_open  # a result is to come
        self.args = Text()
        self.value: Any = None  # the arguments, once they are whole

    def copy(self) -> _Call:
        copy = _Call(self.name, self.index, is_open=self.is_open)
        copy.args, copy.value = self.args.copy(), self.value
        return copy


class _Turn:
    """An `ai` message that may still grow, and what its calls gave so far."""

    __slots__ = ("calls", "head", "id", "is_complete", "next_partial", "results", "size", "tail", "text", "thinking")

    def __init__(self, message_id: str) -> None:
        self.id = message_id
        self.text, self.thinking = Text(), Text()
        self.size = self.next_partial = 0
        self.calls: dict[str, _Call] = {}
        self.results = Text()  # as JSON, each with a comma behind it
        self.is_complete = False
        """Whether it was said to be."""
        self.head, self.tail = b"", b""

    def copy(self) -> _Turn:
        copy = _Turn(self.id)
        copy.text, copy.thinking = self.text.copy(), self.thinking.copy()
        copy.size, copy.next_partial = self.size, self.next_partial
        copy.calls = {call_id: call.copy() for call_id, call in self.calls.items()}
        copy.results, copy.is_complete = self.results.copy(), self.is_complete
        copy.head, copy.tail = self.head, self.tail
        return copy


class Run:
    """The fold of one run. `status`, `error`: of the run, as its routes tell them."""

    __slots__ = (
        *("_asked", "_attempt", "_before", "_facts", "_finished", "_input", "_last", "_late", "_modes", "_more"),
        *("_most", "_run_id", "_said", "_turn", "error", "is_over", "number", "status"),
    )

    def __init__(self, facts: Facts, modes: frozenset[str], *, shows_asked: bool) -> None:
        self.number = 0
        self.is_over = False
        self._facts = facts
        self._modes = modes
        self._run_id = run_id_of(facts.sid)
        self._asked = _shown_of(facts, self._run_id)
        shown = (encode_data(one) for of_one in self._asked for one in of_one)
        self._input = b",".join(shown) if shows_asked else b""
        self._before = _state_before(facts.request) if shows_asked else {}
        self._attempt = 1
        self._said = 0  # messages of this attempt
        self._most = 1  # messages of any attempt
        self._finished = Text()  # of which turns are over, as JSON, each with a comma behind it
        self._late: dict[str, str] = {}  # calls of those that have no result yet → the tool's name
        self._turn: _Turn | None = None
        self._last: Json = {}  # what the ending adds to the last `ai` message
        self._more: Json = {}  # what it adds to the values
        self.status = PENDING
        self.error: Json | None = None

    def copy(self) -> Run:
        copy = object.__new__(Run)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._finished, copy._late = self._finished.copy(), dict(self._late)
        copy._turn = self._turn and self._turn.copy()
        return copy

    # -- what a thread holds ---------------------------------------------------------------------------------------

    @property
    def request(self) -> Mapping[str, Any]:
        return self._facts.request

    @property
    def parent(self) -> str | None:
        """The checkpoint that the run began with; None: an empty thread, or a stream that another dialect started."""
        parent = self._facts.echo.get("parent")
        return parent if isinstance(parent, str) else None

    @property
    def asked(self) -> list[list[Json]]:
        """What the thread showed when the run began, the run's input among it: of each message of the request."""
        return self._asked

    def answer(self) -> list[Json]:
        """The messages of the attempt that there is."""
        said: list[Json] = orjson.loads(b"[" + self._answer().rstrip(b",") + b"]")
        return said

    def values(self) -> bytes:
        """The thread's state as JSON."""
        said = self._input + b"," + self._answer() if self._input else self._answer()
        more = b"".join(b"," + encode_data(name) + b":" + encode_data(value) for name, value in self._more.items())
        before = b"".join(encode_data(name) + b":" + encode_data(value) + b"," for name, value in self._before.items())
        return b'{%b"messages":[%b]%b}' % (before, said.rstrip(b","), more)

    def _answer(self) -> bytes:
        """JSON, with a comma behind each message."""
        return (str(self._finished) + (self._whole_turn(self._turn) if self._turn else "")).encode()

    def _whole_turn(self, turn: _Turn) -> str:
        return f"{encode_data(self._ai(turn)).decode()},{turn.results}"

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[bytes]:
        kind = event.kind
        data = orjson.loads(event.data)
        if not isinstance(data, dict):
            data = {"data": data}
        if kind == TEXT_DELTA:
            return self._speak(data.get("text"))
        if "agent" in data and kind in _OF_A_MESSAGE:  # of an agent that the answering one asks
            return self._custom(kind, data)
        say = _STEPS.get(kind)
        return say(self, data) if say else self._custom(kind, data)

    def opening(self) -> list[bytes]:
        return [self._metadata(), *self._values()]

    def gap(self, gap: Gap) -> list[bytes]:
        """Its viewer may have had any attempt: this state is seldom the one that it had. So all are taken back."""
        most = max(self._most, self._said)
        ids = [self._id(number, attempt) for attempt in range(1, self._attempt + 1) for number in range(1, most + 1)]
        taken_back = self._take_back(ids)
        self._begin_attempt(self._attempt)
        return [TakenBack(one) for one in (*taken_back, *self.opening(), *self._custom(GAP, gap._asdict()))]

    def _queued(self, _: Json) -> list[bytes]:
        return self.opening()

    def _start(self, data: Json) -> list[bytes]:
        self.status = RUNNING
        return self._custom(START, data)

    def _restart(self, data: Json) -> list[bytes]:
        taken_back = self._take_back([self._id(number + 1) for number in range(self._said)])
        self._begin_attempt(self._attempt + 1)
        return [self._metadata(), *taken_back, *self._values(), *self._custom(RESTART, data)]

    def _speak(self, text: Any) -> list[bytes]:
        if not isinstance(text, str) or not text:
            return []
        turn, said = self._speaking()
        turn.text.add(text)
        turn.size += len(text)
        if MESSAGES in self._modes:
            said += self._partial(turn)
        if TUPLE in self._modes:
            said.append(turn.head + encode_data(text) + turn.tail)
        return said

    def _think(self, data: Json) -> list[bytes]:
        text = data.get("text")
        if not isinstance(text, str) or not text:
            return []
        turn, said = self._speaking()
        turn.thinking.add(text)
        turn.size += len(text)
        if MESSAGES in self._modes:
            said += self._partial(turn)
        return said + self._chunk(turn, additional_kwargs={"reasoning_content": text})

    def _tool_start(self, data: Json) -> list[bytes]:
        call_id, name = data.get("tool_call_id"), data.get("tool")
        if not isinstance(call_id, str) or not isinstance(name, str):
            return []
        turn, said = self._speaking(calls=True)
        if call_id in turn.calls:
            return said
        call = turn.calls[call_id] = _Call(name, len(turn.calls), is_open=data.get("client") is not True)
        return said + self._called(turn, call, "", call_id)

    def _tool_args_delta(self, data: Json) -> list[bytes]:
        turn, call_id, piece = self._turn, data.get("tool_call_id"), data.get("partial_json")
        if turn is None or not isinstance(call_id, str) or call_id not in turn.calls or not isinstance(piece, str):
            return []
        turn.calls[call_id].args.add(piece)
        return self._called(turn, turn.calls[call_id], piece)

    def _tool_args(self, data: Json) -> list[bytes]:
        turn, call_id, value = self._turn, data.get("tool_call_id"), data.get("args")
        if turn is None or not isinstance(call_id, str) or call_id not in turn.calls or not isinstance(value, dict):
            return []
        call = turn.calls[call_id]
        call.value = value
        if call.args:
            return []
        call.args.add(whole := encode_data(value).decode())
        return self._called(turn, call, whole)

    def _tool_end(self, data: Json) -> list[bytes]:
        return self._result(data, data.get("output", ""), "success")

    def _tool_error(self, data: Json) -> list[bytes]:
        return self._result(data, data.get("message") or data.get("code") or "", "error")

    def _result(self, data: Json, output: Any, status: str) -> list[bytes]:
        call_id, turn = data.get("tool_call_id"), self._turn
        if not isinstance(call_id, str):
            return []
        call = turn.calls.get(call_id) if turn else None
        name = call.name if call else self._late.pop(call_id, None)
        if name is None:
            return []
        content = output if isinstance(output, str) else encode_data(output).decode()
        more = {"tool_call_id": call_id, "artifact": None, "status": status, "name": name}
        message = messages.plain("tool", content, self._next_id(), **more)
        encoded = encode_data(message)
        said: list[bytes] = []
        if turn and call:
            call.is_open = False
            said += self._complete(turn)
        (turn.results if turn and call else self._finished).add(encoded.decode() + ",")
        return said + self._whole(message, encoded, TOOLS)

    def _done(self, data: Json) -> list[bytes]:
        said: list[bytes] = []
        if not self._said:
            _, said = self._speaking()
        self.status = SUCCESS
        model = data.get("model") if isinstance(data.get("model"), str) else self._facts.model
        self._last = {
            "response_metadata": {"finish_reason": data.get("stop_reason"), "model_name": model},
            "usage_metadata": _usage(data.get("usage")),
        }
        if "result" in data:
            self._more = {**self._more, "result": data["result"]}
        if self._turn:
            self._structure(data)
            said += self._chunk(self._turn, chunk_position="last", **self._last)
            said += self._complete(self._turn)
        return [*said, *self._values(), self._end()]

    def _failed(self, data: Json) -> list[bytes]:
        self.status = FAILED
        self.error = {"error": _word(data.get("code")) or "internal_error", "message": _word(data.get("message"))}
        return [*self._values(), _payload(b"error", encode_data(self.error))]

    def _cancelled(self, _: Json) -> list[bytes]:
        self.status = INTERRUPTED
        return [*self._values(), self._end()]

    def _structure(self, data: Json) -> None:
        """`structured_response`, as LangChain's agents call it: the answer that a schema asked for."""
        assert self._turn
        if self._facts.request.get("output_schema") is None or "schema_violation" in data:
            return
        try:
            structured = orjson.loads(str(self._turn.text))
        except orjson.JSONDecodeError:
            return
        self._more = {**self._more, "structured_response": structured}

    # -- turns -----------------------------------------------------------------------------------------------------

    def _speaking(self, *, calls: bool = False) -> tuple[_Turn, list[bytes]]:
        """The `ai` message that what comes belongs to, and what is said if it is a new one."""
        turn = self._turn
        if turn and not turn.results and not (calls and len(turn.calls) >= MAX_CALLS):
            return turn, []
        self._finish()
        turn = self._turn = _Turn(self._next_id())
        turn.head = b'event: messages\ndata: [{"content":'
        turn.tail = b",%b%b%b,%b]\n" % (_CHUNK, encode_data(turn.id), _NO_CALLS, self._about(AGENT))
        return turn, self._announce(turn.id, AGENT)

    def _finish(self) -> None:
        if self._turn:
            self._finished.add(self._whole_turn(self._turn))
            self._late.update({call_id: call.name for call_id, call in self._turn.calls.items() if call.is_open})
            self._late = dict(list(self._late.items())[-MAX_CALLS:])
        self._turn = None

    def _begin_attempt(self, attempt: int) -> None:
        self._attempt, self._most = attempt, max(self._most, self._said)
        self._said, self._finished, self._late, self._turn = 0, Text(), {}, None
        self._last, self._more = {}, {}

    def _next_id(self) -> str:
        self._said += 1
        return self._id(self._said)

    def _id(self, number: int, attempt: int = 0) -> str:
        of_attempt = f"run-{self._run_id}-{attempt or self._attempt}"
        return of_attempt if number == 1 else f"{of_attempt}-{number}"

    def _ai(self, turn: _Turn) -> Json:
        calls, unread = [], []
        for call_id, call in turn.calls.items():
            args, text = call.value, str(call.args)
            if args is None:
                args = _object_in(text)
            if args is None:
                broken = {"name": call.name, "args": text, "id": call_id, "error": None, "type": "invalid_tool_call"}
                unread.append(broken)
            else:
                calls.append({"name": call.name, "args": args, "id": call_id, "type": "tool_call"})
        more: Json = {"usage_metadata": None, **self._last, "invalid_tool_calls": unread}
        if turn.thinking:
            more["additional_kwargs"] = {"reasoning_content": str(turn.thinking)}
        return messages.ai(str(turn.text), turn.id, calls, **more)

    # -- what is said ----------------------------------------------------------------------------------------------

    def _about(self, node: str) -> bytes:
        about: Json = {"run_id": self._run_id, "thread_id": self._facts.session, "langgraph_node": node}
        if isinstance(assistant := self._facts.echo.get("assistant_id"), str):
            about["assistant_id"] = assistant
        return encode_data({**about, "langgraph_step": 1 if node == AGENT else 2, "run_attempt": self._attempt})

    def _metadata(self) -> bytes:
        return _payload(b"metadata", encode_data({"run_id": self._run_id, "attempt": self._attempt}))

    def _values(self) -> list[bytes]:
        return [_payload(b"values", self.values())] if VALUES in self._modes else []

    def _end(self) -> bytes:
        return _payload(b"end", encode_data({"run_id": self._run_id, "status": self.status}))

    def _custom(self, kind: str, data: Json) -> list[bytes]:
        return [_payload(b"custom", encode_data({**data, "event": kind}))] if CUSTOM in self._modes else []

    def _announce(self, message_id: str, node: str) -> list[bytes]:
        if MESSAGES not in self._modes:
            return []
        about = b'{%b:{"metadata":%b}}' % (encode_data(message_id), self._about(node))
        return [_payload(b"messages/metadata", about)]

    def _partial(self, turn: _Turn) -> list[bytes]:
        if turn.size < turn.next_partial:
            return []
        turn.next_partial = turn.size + max(0, turn.size - EVERY_PARTIAL_CHARACTERS) // PARTIALS_OF_A_TEXT
        return [_payload(b"messages/partial", b"[" + encode_data(self._ai(turn)) + b"]")]

    def _called(self, turn: _Turn, call: _Call, args: str, call_id: str | None = None) -> list[bytes]:
        """`call_id`: with a call's first piece, which has its name too."""
        said: list[bytes] = []
        if MESSAGES in self._modes:
            turn.size += len(args)
            said += self._partial(turn)
        piece = {"name": call.name if call_id else None, "args": args, "id": call_id, "index": call.index}
        return said + self._chunk(turn, tool_call_chunks=[{**piece, "type": "tool_call_chunk"}])

    def _chunk(self, turn: _Turn, **more: Any) -> list[bytes]:
        if TUPLE not in self._modes:
            return []
        chunk = messages.ai("", turn.id, **{"usage_metadata": None, "tool_call_chunks": [], **more})
        chunk["type"] = "AIMessageChunk"
        return [_payload(b"messages", b"[%b,%b]" % (encode_data(chunk), self._about(AGENT)))]

    def _complete(self, turn: _Turn) -> list[bytes]:
        """The message is whole: it says so, once."""
        if turn.is_complete:
            return []
        turn.is_complete = True
        encoded = encode_data(self._ai(turn))
        said = []
        if MESSAGES in self._modes:
            said.append(_payload(b"messages/complete", b"[" + encoded + b"]"))
        return said + self._update(AGENT, encoded)

    def _whole(self, message: Json, encoded: bytes, node: str) -> list[bytes]:
        """A message that comes whole."""
        said = self._announce(message["id"], node)
        if MESSAGES in self._modes:
            said.append(_payload(b"messages/complete", b"[" + encoded + b"]"))
        if TUPLE in self._modes:
            said.append(_payload(b"messages", b"[%b,%b]" % (encoded, self._about(node))))
        return said + self._update(node, encoded)

    def _update(self, node: str, encoded: bytes) -> list[bytes]:
        if UPDATES not in self._modes:
            return []
        return [_payload(b"updates", b'{%b:{"messages":[%b]}}' % (encode_data(node), encoded))]

    def _take_back(self, ids: Sequence[str]) -> list[bytes]:
        """These messages, in the way of each mode: emptied, or removed (LangGraph's RemoveMessage)."""
        removed = [encode_data(messages.plain("remove", "", message_id)) for message_id in ids]
        said: list[bytes] = []
        if MESSAGES in self._modes:
            emptied = (encode_data(messages.ai("", message_id)) for message_id in ids)
            said += [_payload(b"messages/partial", b"[" + one + b"]") for one in emptied]
        if TUPLE in self._modes:
            said += [_payload(b"messages", b"[%b,%b]" % (one, self._about(AGENT))) for one in removed]
        return said + (self._update(AGENT, b",".join(removed)) if removed else [])


_STEPS: Mapping[str, Callable[[Run, Json], list[bytes]]] = {
    QUEUED: Run._queued,
    START: Run._start,
    RESTART: Run._restart,
    THINKING_DELTA: Run._think,
    "tool_start": Run._tool_start,
    TOOL_ARGS_DELTA: Run._tool_args_delta,
    "tool_args": Run._tool_args,
    "tool_end": Run._tool_end,
    "tool_error": Run._tool_error,
    DONE: Run._done,
    ERROR: Run._failed,
    CANCELLED: Run._cancelled,
}

_OF_A_MESSAGE = frozenset({THINKING_DELTA, "tool_start", TOOL_ARGS_DELTA, "tool_args", "tool_end", "tool_error"})


def _payload(name: bytes, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n" % (name, data)


def _shown_of(facts: Facts, run_id: str) -> list[list[Json]]:
    """What the thread shows of each message of the request. Those that nobody has named are named by their place."""
    asked = facts.request.get("messages")
    kept = facts.request.get("echo")
    known = kept.get("messages") if isinstance(kept, dict) else None
    asked, known = (list_ if isinstance(list_, list) else [] for list_ in (asked, known))
    made: list[list[Json]] = []
    for number, message in enumerate(asked):
        given = known[number] if number < len(known) and isinstance(known[number], list) else []
        if given and all(isinstance(one, dict) for one in given):
            made.append(given)
        else:
            made.append(messages.shown(message, given))
    _name(made, run_id)
    return made


def _name(shown: Iterable[list[Json]], run_id: str) -> None:
    for number, message in enumerate(one for of_one in shown for one in of_one):
        if message.get("id") is None:
            message["id"] = f"{run_id}-{number}"


def _state_before(asked: Mapping[str, Any]) -> Json:
    """What an agent was given beside messages is part of the thread's state."""
    given = asked.get("input")
    return {name: value for name, value in given.items() if name != "messages"} if isinstance(given, dict) else {}


def _usage(usage: Any) -> Json | None:
    if not isinstance(usage, dict):
        return None
    counted = {name: count if type(count := usage.get(name)) is int else 0 for name in _COUNTS}
    read, created = counted["cache_read_input_tokens"], counted["cache_creation_input_tokens"]
    asked = counted["input_tokens"] + read + created
    answered = counted["output_tokens"]
    return {
        "input_tokens": asked,
        "output_tokens": answered,
        "total_tokens": asked + answered,
        "input_token_details": {"cache_read": read, "cache_creation": created},
    }


_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")


def _object_in(text: str) -> Any:
    """Arguments in pieces; None: they are no JSON object (yet)."""
    if not text.strip():
        return {}
    try:
        args = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return args if isinstance(args, dict) else None


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""
