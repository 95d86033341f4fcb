"""The stand-in calls the tools of a request: as asked, or by a guess, over several turns, read by each real SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import reduce
from typing import Any

import anthropic
import httpx2
import jsonschema_rs
import openai
import pytest
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from tests.worker.sdk_clients import SdkClients
from worker.agents.transform import React, Tags, transformed
from worker.providers.provider import Finish, Said
from worker.standin.calling import Tool, arguments, guessed
from worker.standin.directives import Directives, read_directives, without_directives
from worker.standin.server import StandIn

WIRES = ["anthropic", "responses", "chat", "gemini"]
FAST = "rate=0 ttft_ms=0 tokens=30"
FIND = Tool(
    "find_order",
    "Find an order by its number.",
    {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
)
REFUND = Tool(
    "refund",
    "Refund an order.",
    {
        "type": "object",
        "properties": {
            "order_id": {"type": "string"},
            "cents": {"type": "integer", "exclusiveMinimum": 0, "maximum": 50_000},
            "note": {"type": "string"},
        },
        "required": ["order_id", "cents"],
    },
)
NOW = Tool("now", "What time it is.", {"type": "object", "properties": {}})
TOOLS = [FIND, REFUND, NOW]


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


Called = list[tuple[str, dict[str, Any]]]


class Conversation:
    """A loop over one wire, with its SDK: what it says, and what it calls, which gets a result."""

    def __init__(self, clients: SdkClients, wire: str, message: str, **fields: Any) -> None:
        self.clients = clients
        self.fields = fields
        self.ask = getattr(self, wire)
        self.said: Any = [{"role": "user", "content": message}]
        if wire == "gemini":
            self.said = [genai_types.Content(role="user", parts=[genai_types.Part(text=message)])]

    async def turns(self) -> tuple[list[Called], str]:
        """The calls of each turn, and the last turn's text."""
        turns: list[Called] = []
        while True:
            text, calls = await self.ask()
            if not calls:
                return turns, text
            turns.append(calls)
            assert len(turns) < 5, "it does not end"

    async def anthropic(self) -> tuple[str, Called]:
        tools: Any = [{"name": t.name, "description": t.description, "input_schema": t.schema} for t in TOOLS]
        async with self.clients.anthropic.messages.stream(
            model="m", max_tokens=9, messages=self.said, tools=tools, **self.fields
        ) as stream:
            message = await stream.get_final_message()
        calls = [block for block in message.content if block.type == "tool_use"]
        assert message.stop_reason == ("tool_use" if calls else "end_turn")
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": f"{call.name} is done"} for call in calls]
        self.said += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        text = "".join(block.text for block in message.content if block.type == "text")
        return text, [(call.name, dict(call.input)) for call in calls]

    async def responses(self) -> tuple[str, Called]:
        tools: Any = [
            {"type": "function", "name": t.name, "description": t.description, "parameters": t.schema, "strict": False}
            for t in TOOLS
        ]
        async with self.clients.openai.responses.stream(
            model="m", input=self.said, tools=tools, **self.fields
        ) as stream:
            response = await stream.get_final_response()
        calls = [item for item in response.output if item.type == "function_call"]
        self.said += [item.model_dump(exclude={"parsed_arguments"}) for item in response.output]
        self.said += [
            {"type": "function_call_output", "call_id": call.call_id, "output": f"{call.name} is done"}
            for call in calls
        ]
        return response.output_text, [(call.name, json.loads(call.arguments)) for call in calls]

    async def chat(self) -> tuple[str, Called]:
        tools: Any = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.schema}}
            for t in TOOLS
        ]
        async with self.clients.openai.chat.completions.stream(
            model="m", messages=self.said, tools=tools, **self.fields
        ) as stream:
            choice = (await stream.get_final_completion()).choices[0]
        calls = choice.message.tool_calls or []
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        self.said.append(choice.message.model_dump(exclude={"parsed"}))
        self.said += [
            {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} is done"} for call in calls
        ]
        called = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
        return choice.message.content or "", called

    async def gemini(self) -> tuple[str, Called]:
        declared = [
            genai_types.FunctionDeclaration(
                name=t.name, description=t.description, parameters_json_schema=dict(t.schema)
            )
            for t in TOOLS
        ]
        config = genai_types.GenerateContentConfig(
            tools=[genai_types.Tool(function_declarations=declared)],
            automatic_function_calling=genai_types.AutomaticFunctionCallingConfig(disable=True),
            **self.fields,
        )
        parts: list[genai_types.Part] = []
        stream = await self.clients.gemini.models.generate_content_stream(model="m", contents=self.said, config=config)
        async for chunk in stream:
            for candidate in chunk.candidates or []:
                parts += (candidate.content.parts if candidate.content else None) or []
        calls = [part.function_call for part in parts if part.function_call]
        results = [
            genai_types.Part(
                function_response=genai_types.FunctionResponse(
                    id=call.id, name=call.name, response={"output": f"{call.name} is done"}
                )
            )
            for call in calls
        ]
        self.said += [genai_types.Content(role="model", parts=parts), genai_types.Content(role="user", parts=results)]
        called = [(str(call.name), dict(call.args or {})) for call in calls]
        return "".join(part.text or "" for part in parts if not part.thought), called


@pytest.fixture(scope="module")
async def clients(standin: StandIn) -> AsyncIterator[SdkClients]:
    made = SdkClients(standin.base_url)
    yield made
    await made.close()


# -- as asked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("how", ["", "parallel=1 args_piece=3 thinking=2"])
async def test_tools_are_called_turn_after_turn_as_asked(clients: SdkClients, wire: str, how: str) -> None:
    message = (
        'Please! [[call=find_order:{"order_id": "A[[17]]", "more": [{"a": "é"}, 2]} call=now then '
        f"call=refund:{{}} then {FAST} {how}]]"
    )
    turns, text = await Conversation(clients, wire, message).turns()
    assert turns == [
        [("find_order", {"order_id": "A[[17]]", "more": [{"a": "é"}, 2]}), ("now", {})],
        [("refund", {})],
    ]
    said = "find_order is done {} and {}now is done {} and {}refund is done"
    assert text.startswith(f"The tools said {quoted(said, wire)}. This is a stand-in")


def quoted(said: str, wire: str) -> str:
    results = said.split(" {} and {}")
    told = [json.dumps({"output": one}, separators=(",", ":")) for one in results] if wire == "gemini" else results
    return " and ".join(f"“{one}”" for one in told)


@pytest.mark.parametrize("wire", WIRES)
async def test_arguments_that_are_not_given_come_from_the_message_by_the_tools_schema(
    clients: SdkClients, wire: str
) -> None:
    message = f"Give 500 back for B-12 [[call=refund {FAST}]]"
    assert (await Conversation(clients, wire, message).turns())[0] == [[("refund", {"order_id": "B-12", "cents": 500})]]


async def test_a_tool_that_the_request_does_not_have_may_be_called(clients: SdkClients) -> None:
    turns, _ = await Conversation(clients, "anthropic", f'[[call=gone:{{"a":1}} call=gone {FAST}]]').turns()
    assert turns == [[("gone", {"a": 1}), ("gone", {})]]


def test_a_call_survives_in_a_text_and_what_is_no_json_is_no_arguments() -> None:
    read = read_directives('x [[tokens=3 call=a.b-c:{"x": "]] [["} rate=5]] y [[call=d then call=e:{"n": NaN}]]')
    assert (read.tokens, read.rate) == (3, 5)
    assert read.plan == ((("a.b-c", '{"x":"]] [["}'), ("d", None)), (("e", None),))
    assert read_directives("[[call= call=: call=a:[1] then]] [[then]]") == Directives()
    assert read_directives('[[call=a:{"x": "' + "[" * 99 + '"}]]').plan != ()
    deep = '{"a":' * 5_000
    assert read_directives(f"[[call=a:{deep}]]").plan == ((("a", None),),)


def test_what_is_asked_is_no_part_of_what_is_said() -> None:
    assert without_directives('Hello [[call=a:{"x": "[[1]]"}]]there[[ [[').split() == ["Hello", "there[[", "[["]


@pytest.mark.parametrize("wire", WIRES)
async def test_before_its_calls_a_turn_says_nothing_unless_it_is_asked_to(clients: SdkClients, wire: str) -> None:
    # pydantic-ai's run_stream takes the first text for the answer, and Anthropic takes no empty one back.
    silent = Conversation(clients, wire, f"[[call=now {FAST}]]")
    assert (await silent.ask())[0] == ""
    if wire == "anthropic":
        assert [block.type for block in silent.said[1]["content"]] == ["tool_use"]
    assert (await Conversation(clients, wire, f"[[call=now before=3 {FAST}]]").ask())[0] == "This is a"


# -- by a guess ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
async def test_with_a_guess_the_tool_is_called_that_shares_words_with_the_message(
    clients: SdkClients, wire: str
) -> None:
    turns, text = await Conversation(clients, wire, f"Where is my order A17? [[guess=1 {FAST}]]").turns()
    assert turns == [[("find_order", {"order_id": "A17"})]]
    assert text.startswith(f"The tools said {quoted('find_order is done', wire)}.")


@pytest.mark.parametrize(
    ("message", "tool"),
    [
        ("Where is A17?", FIND),
        ("A refund for order A17, please", REFUND),
        ("Tell me the time", NOW),
        ("Orders, all of them", FIND),
        ("Hello there", None),
        ("What is this about?", None),
        ("[[call=now]] refund", REFUND),
    ],
)
def test_a_guess_goes_by_words_or_else_by_an_id(message: str, tool: Tool | None) -> None:
    assert guessed(message, TOOLS) == tool


def test_what_a_request_demands_of_its_tools_counts_more() -> None:
    assert guessed("Where is order A17?", TOOLS, "none") is None
    assert guessed("Hello there", TOOLS, "any") == FIND
    assert guessed("Where is order A17?", TOOLS, "now") == NOW


DEMANDS: list[tuple[str, Any]] = [
    ("anthropic", {"type": "tool", "name": "now"}),
    ("responses", {"type": "function", "name": "now"}),
    ("chat", {"type": "function", "function": {"name": "now"}}),
    ("gemini", {"function_calling_config": {"mode": "ANY", "allowed_function_names": ["now"]}}),
]


@pytest.mark.parametrize(("wire", "choice"), DEMANDS, ids=WIRES)
async def test_each_wire_has_its_own_words_for_a_demand(clients: SdkClients, wire: str, choice: Any) -> None:
    name = "tool_config" if wire == "gemini" else "tool_choice"
    demand = {name: genai_types.ToolConfig(**choice) if wire == "gemini" else choice}
    turns, _ = await Conversation(clients, wire, f"Order A17 [[guess=1 {FAST}]]", **demand).turns()
    assert turns == [[("now", {})]]


SCHEMAS: list[tuple[dict[str, Any], str, Any]] = [
    ({"type": "string"}, "Look for “three wise men”", "three wise men"),
    ({"enum": ["celsius", "kelvin"]}, "in Kelvin, please", "kelvin"),
    ({"const": 5}, "", 5),
    ({"type": ["null", "integer"], "minimum": 10}, "3 of them", 10),
    ({"type": "number", "exclusiveMaximum": 1}, "3", 0.99),
    ({"type": "integer"}, "9" * 400, 2**53),
    ({"type": "boolean"}, "", False),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, "7", [7, 7]),
    ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Place"}]}, "the weather in Oslo", {"city": "Oslo"}),
    (
        {"$ref": "#/$defs/Tree"},
        "x",
        reduce(lambda tree, _: {"tree": tree}, range(8), None),
    ),
    ({"type": "string", "format": "date"}, "on 2026-03-04", "2026-03-04"),
    ({"type": "string", "format": "email"}, "", "somebody@example.com"),
    ({"type": "string", "minLength": 12, "maxLength": 12}, "short", "shortxxxxxxx"),
    ({"type": "STRING"}, "", "something"),
    ({"$ref": "#/nowhere", "minimum": "x"}, "a", "a"),
]
DEFINITIONS = {
    "Place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "Tree": {"type": "object", "properties": {"tree": {"$ref": "#/$defs/Tree"}}, "required": ["tree"]},
}


@pytest.mark.parametrize(("schema", "message", "value"), SCHEMAS)
def test_an_argument_is_what_its_schema_asks_for(schema: dict[str, Any], message: str, value: Any) -> None:
    whole = {"type": "object", "properties": {"it": schema}, "required": ["it"], "$defs": DEFINITIONS}
    args = json.loads(arguments(whole, message))
    assert args == {"it": value}
    if not any(unusual in json.dumps(schema) for unusual in ("Tree", "STRING", "nowhere")):
        assert jsonschema_rs.is_valid(whole, args)


# -- in text ---------------------------------------------------------------------------------------------------------


async def acted(clients: SdkClients, messages: list[Any], transform: Any, **fields: Any) -> tuple[list[Any], Finish]:
    """What an agent has of a turn in text."""

    async def said() -> AsyncIterator[Said]:
        async with clients.anthropic.messages.stream(model="m", max_tokens=9, messages=messages, **fields) as stream:
            async for text in stream.text_stream:
                yield "text_delta", {"text": text}
            message = await stream.get_final_message()
        yield Finish(str(message.stop_reason), {})

    *events, finish = [one async for one in transformed(said(), transform)]  # type: ignore[arg-type]
    assert isinstance(finish, Finish)
    return events, finish


@pytest.mark.parametrize("form", ["react", "tags"])
async def test_a_loop_over_a_model_that_acts_in_text(clients: SdkClients, form: str) -> None:
    asked = f'[[say={form} call=find_order:{{"order_id":"A17"}} call=now then call=refund:{{"cents":5}} {FAST}]]'
    messages: list[Any] = [{"role": "user", "content": asked}]
    called, text = [], ""
    for turn in range(3):
        transform = React({}, turn) if form == "react" else Tags(["think", "tool"], {}, turn)
        events, finish = await acted(clients, messages, transform)
        called.append([(call.name, call.args) for call in transform.calls])
        assert finish.stop_reason == ("tool_use" if transform.calls else "end_turn")
        text = "".join(data["text"] for kind, data in events if kind == "text_delta")
        thinking = "".join(data["text"] for kind, data in events if kind == "thinking_delta")
        assert thinking.strip() in ("I call find_order and now.", "I call refund.", "I know enough.")
        observation = transform.observation([(call, f"{call.name} is done") for call in transform.calls])
        messages += [{"role": "assistant", "content": transform.said}, {"role": "user", "content": observation}]
    assert called == [[("find_order", {"order_id": "A17"}), ("now", {})], [("refund", {"cents": 5})], []]
    assert "refund is done" in text


async def test_an_invented_observation_is_cut_or_stopped_at(clients: SdkClients) -> None:
    messages = [{"role": "user", "content": f"[[say=react call=now invent=1 {FAST}]]"}]
    cut, stopped = React({}), React({})
    events, _ = await acted(clients, messages, cut)
    assert cut.is_cut
    assert "text_delta" not in {kind for kind, _ in events}
    _, finish = await acted(clients, messages, stopped, stop_sequences=list(React.stop_sequences))
    assert not stopped.is_cut
    assert finish.stop_reason == "tool_use"
    assert [call.name for call in cut.calls] == [call.name for call in stopped.calls] == ["now"]


# -- without a stream ------------------------------------------------------------------------------------------------


async def at_once(clients: SdkClients, wire: str, message: str) -> tuple[str, str, Called, Any]:
    """(text, thinking, calls, stop reason) of an answer that is no stream."""
    said: Any = [{"role": "user", "content": message}]
    if wire == "anthropic":
        answer: Any = await clients.anthropic.messages.create(model="m", max_tokens=9, messages=said)
        of = {kind: [b for b in answer.content if b.type == kind] for kind in ("text", "thinking", "tool_use")}
        text, thinking = of["text"][0].text, of["thinking"][0].thinking
        return text, thinking, [(call.name, call.input) for call in of["tool_use"]], answer.stop_reason
    if wire == "responses":
        answer = await clients.openai.responses.create(model="m", input=said)
        calls = [(i.name, json.loads(i.arguments)) for i in answer.output if i.type == "function_call"]
        return answer.output_text, answer.output[0].summary[0].text, calls, answer.status
    if wire == "chat":
        answer = (await clients.openai.chat.completions.create(model="m", messages=said)).choices[0]
        calls = [(c.function.name, json.loads(c.function.arguments)) for c in answer.message.tool_calls]
        return answer.message.content, answer.message.reasoning_content, calls, answer.finish_reason
    answer = await clients.gemini.models.generate_content(model="m", contents=message)
    parts = answer.candidates[0].content.parts
    text, thinking = ("".join(p.text or "" for p in parts if bool(p.thought) == is_it) for is_it in (False, True))
    calls = [(p.function_call.name, p.function_call.args) for p in parts if p.function_call]
    return text, thinking, calls, answer.candidates[0].finish_reason.value


@pytest.mark.parametrize("wire", WIRES)
async def test_a_request_without_a_stream_gets_the_same_at_once(clients: SdkClients, wire: str) -> None:
    message = f'[[call=now call=gone:{{"a":[1]}} before=3 thinking=3 piece=1 gzip=1 {FAST}]]'
    stops = {"anthropic": "tool_use", "responses": "completed", "chat": "tool_calls", "gemini": "STOP"}
    expected = ("This is a", "A stand-in does", [("now", {}), ("gone", {"a": [1]})], stops[wire])
    assert await at_once(clients, wire, message) == expected


@pytest.mark.parametrize("fault", ["error_at=1", "end_at=1", "cut_at=1"])
@pytest.mark.parametrize("wire", WIRES)
async def test_half_of_an_answer_is_none_where_there_is_no_stream(clients: SdkClients, wire: str, fault: str) -> None:
    errors = (anthropic.APIError, openai.APIError, genai_errors.APIError, httpx2.TransportError)
    with pytest.raises(errors):
        await at_once(clients, wire, f"[[{fault} {FAST}]]")
