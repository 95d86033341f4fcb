"""What an agent's model is asked: instructions and tools first and in one order, then all that was said.

A turn goes back to the model that said it in its own form, as it said it: signatures and encrypted thoughts are refused
if they are altered, missing or another's. To any other model it is text, calls and results. Every call has a result,
whatever became of it: a history without one is refused now and ever after.

What comes first stays the same from turn to turn, so that providers find it in their caches. Where a provider wants to
be asked for that, it is asked, unless the agent's `options` say None instead: `{"anthropic": {"cache_control": None}}`,
`{"openai": {"prompt_cache_key": None}}`. A server of the models file is asked for nothing that it may not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from broker.log.event import TEXT_DELTA, THINKING_DELTA, Event, encode_data
from broker.log.turn import NATIVE_BLOCKS, REFERENCE, TOOL_ARGS, TOOL_START, TURN, literal, message
from worker.agents.journal import Finished
from worker.providers.chain import Target
from worker.providers.provider import Finish, ProviderEvent

Json = dict[str, Any]

INTERRUPTED, PAUSED = "interrupted", "paused"
"""Why a turn stopped that is not the last one, though it calls nothing: a person said something, or its provider waits
for it to be sent back."""

EPHEMERAL = {"type": "ephemeral"}


class Call(NamedTuple):
    """`native_id`: the model's name for it, which its result must have. None: it was said in text (in_text.py), perhaps
    with a `fault`: why it cannot be run, for the model.
    """

    id: str
    name: str
    args: Any
    native_id: str | None
    fault: str = ""


class SaidTurn(NamedTuple):
    """A turn that is whole, as `internal.turn` says it. `inputs`: how many the agent had been given before it."""

    number: int
    provider: str
    form: str
    model: str
    stop_reason: str
    text: str
    calls: Sequence[Call]
    native: Any
    """In the provider's own form, complete; None if it is the text alone."""
    inputs: int

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> SaidTurn:
        """From the data of an `internal.turn`."""
        return cls(
            number=said["turn"],
            calls=[Call(**call) for call in said["calls"]],
            native=_without_marks(said["native"]),
            **{name: said[name] for name in ("provider", "form", "model", "stop_reason", "text", "inputs")},
        )

    def written(self) -> Json:
        """As `read` takes it."""
        data = self._asdict()
        number, native = data.pop("number"), data.pop("native")
        calls = [{name: value for name, value in call._asdict().items() if value != ""} for call in self.calls]
        return {"turn": number, **data, "calls": calls, "native": _marked(native)}

    def text_alone(self) -> SaidTurn:
        return self._replace(calls=(), native=None)

    def message_for(self, target: Target) -> Json:
        is_own = (self.provider, self.model) == (_provider(target), target.model)
        if self.native is None or not is_own:
            return {"role": "assistant", "content": self._for_any_model()}
        native = {"provider": self.provider, "model": self.model}
        if self.form == NATIVE_BLOCKS:
            return {"role": "assistant", "content": self.native, "native": native}
        return {"role": "assistant", "content": self._for_any_model(), "native": {**native, "content": self.native}}

    def _for_any_model(self) -> list[Json]:
        text = [{"type": "text", "text": self.text}] if self.text.strip() else []
        calls = [call for call in self.calls if call.native_id is not None]
        return [
            *text,
            *({"type": "tool_use", "id": call.native_id, "name": call.name, "input": call.args} for call in calls),
        ]


def _marked(native: Any) -> Any:
    """What looks like a reference (broker/log/turn.py) is marked as none: a tool's arguments may be any JSON."""
    if isinstance(native, list):
        return [literal(one) for one in native]
    return {name: literal(one) for name, one in native.items()} if isinstance(native, dict) else native


def _without_marks(native: Any) -> Any:
    if isinstance(native, list):
        return [_without_mark(one) for one in native]
    return {name: _without_mark(one) for name, one in native.items()} if isinstance(native, dict) else native


def _without_mark(value: Any) -> Any:
    return value["value"] if isinstance(value, dict) and value.get(REFERENCE) == "literal" else value


def whole_turn(
    number: int,
    target: Target,
    finish: Finish,
    said: Sequence[ProviderEvent],
    calls: Sequence[Call],
    inputs: int,
    *,
    written: str | None = None,
) -> SaidTurn:
    """`said`: by the provider, all of it. `written`: what the model wrote, where that was transformed."""
    reason = PAUSED if finish.is_paused else finish.stop_reason
    native = _resolved(target, finish.native, said if written is None else ())
    text = text_of(said) if written is None else written
    return SaidTurn(number, _provider(target), target.form, target.model, reason, text, calls, native, inputs)


def interrupted_turn(number: int, target: Target, text: str, inputs: int) -> SaidTurn:
    """Without its calls, which had not begun, and without its thoughts, which nobody signed."""
    return SaidTurn(number, _provider(target), target.form, target.model, INTERRUPTED, text, (), None, inputs)


def text_of(said: Iterable[ProviderEvent]) -> str:
    return "".join(data["text"] for kind, data in said if kind == TEXT_DELTA)


def calls_in(said: Iterable[ProviderEvent]) -> Iterator[Call]:
    """The calls that are for us to run, those of them that are complete."""
    names: dict[str, str] = {}
    for kind, data in said:
        if kind == TOOL_START and data.get("client") is True:
            names[data["tool_call_id"]] = data["tool"]
        elif kind == TOOL_ARGS and data.get("complete") is True and data["tool_call_id"] in names:
            call_id = data["tool_call_id"]
            yield Call(call_id, names.pop(call_id), data.get("args"), call_id)


def _resolved(target: Target, native: Any, said: Sequence[ProviderEvent]) -> Any:
    """Without references to events: another attempt's log has other ones."""
    if native is None:
        return None
    turn = {"provider": _provider(target), "form": target.form, "model": target.model, "native": native}
    found = message(Event(0, kind, encode_data(data), 0) for kind, data in [*_joined(said), (TURN, turn)])
    return found["content"] if target.form == NATIVE_BLOCKS else found["native"]["content"]


def _joined(said: Iterable[ProviderEvent]) -> list[ProviderEvent]:
    """A long answer has 100,000 deltas, and each would be encoded and decoded."""
    joined: list[ProviderEvent] = []
    pieces: list[str] = []
    for kind, data in said:
        if kind in (TEXT_DELTA, THINKING_DELTA):
            if not (pieces and joined[-1][0] == kind):
                _close(joined, pieces)
                joined.append((kind, data))
            pieces.append(data["text"])
        else:
            _close(joined, pieces)
            joined.append((kind, data))
    _close(joined, pieces)
    return joined


def _close(joined: list[ProviderEvent], pieces: list[str]) -> None:
    if pieces:
        joined[-1] = joined[-1][0], {"text": "".join(pieces)}
        pieces.clear()


# ---- All that was said


class History:
    """`messages`: what the caller asked, in the neutral form."""

    def __init__(self, messages: Sequence[Json]) -> None:
        self._said: list[Json | SaidTurn] = list(messages)
        self._asked = len(messages)

    def add_turn(self, turn: SaidTurn) -> None:
        self._said.append(turn)

    def add_results(self, results: Sequence[Json]) -> None:
        self._add_to_users(results)

    def add_input(self, data: Mapping[str, Any]) -> None:
        """What a person, or a program, said meanwhile."""
        text = data["text"] if "text" in data else orjson.dumps(data.get("data")).decode()
        self._add_to_users([{"type": "text", "text": text}])

    def messages_for(self, target: Target) -> list[Json]:
        messages = [one.message_for(target) if isinstance(one, SaidTurn) else one for one in self._said]
        return [one for one in messages if one.get("content") != []]  # an interrupted turn may have said nothing

    def _add_to_users(self, blocks: Sequence[Json]) -> None:
        """One message for all: results come first in it, and nothing may stand between them and their calls."""
        last = self._said[-1] if len(self._said) > self._asked else None
        if isinstance(last, dict):
            self._said[-1] = {**last, "content": [*last["content"], *blocks]}
        else:
            self._said.append({"role": "user", "content": list(blocks)})


def told(outcome: Finished) -> str:
    """What a model reads of it: a text as it is, anything else as JSON."""
    if (error := outcome.error) is not None:
        return f"{error['code']}: {error['message']}" if error.get("message") else error["code"]
    return outcome.result if isinstance(outcome.result, str) else orjson.dumps(outcome.result).decode()


def result_of(call: Call, outcome: Finished) -> Json:
    result = {"type": "tool_result", "tool_use_id": call.native_id, "content": told(outcome)}
    return result if outcome.error is None else {**result, "is_error": True}


# ---- The request


class Asker(NamedTuple):
    """Of an agent, what is the same in each of its requests. `tools`: as it announced them."""

    name: str
    instructions: str
    tools: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    max_tokens: int

    def request_for(self, target: Target, history: History, *, may_call: bool = True) -> Json:
        """`may_call`: False leaves the tools where they are, for the cache's sake and since some providers refuse calls
        in a history without them, and has none of them called.
        """
        provider, options = _provider(target), self._options(target)
        mark = {"cache_control": options["cache_control"]} if options.get("cache_control") is not None else {}
        request: Json = {"max_tokens": self.max_tokens}
        if self.instructions:
            request["system"] = [{"type": "text", "text": self.instructions, **mark}]
        if tools := [_declared(tool) for tool in self.tools]:
            request["tools"] = [*tools[:-1], {**tools[-1], **mark}]
            if not may_call:
                request["tool_choice"] = {"type": "none"}
        if options := {name: value for name, value in options.items() if value is not None}:
            request["provider_options"] = {provider: options}
        return {**request, "messages": history.messages_for(target)}

    def _options(self, target: Target) -> Json:
        given = self.options.get(_provider(target))
        ours: Json = {}
        if target.base_url is None and target.form == NATIVE_BLOCKS:
            ours = {"cache_control": EPHEMERAL}
        elif target.base_url is None and target.form in ("openai", "openai-chat"):
            ours = {"prompt_cache_key": self.name}
        return {**ours, **(given if isinstance(given, dict) else {})}


def _declared(tool: Mapping[str, Any]) -> Json:
    described = {"description": tool["description"]} if tool.get("description") else {}
    return {"name": tool["name"], **described, "input_schema": tool["input_schema"]}


def _provider(target: Target) -> str:
    return target.name.partition("/")[0]
