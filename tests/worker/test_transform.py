"""Models that act in text: what they write becomes thinking, text and calls, however it is cut into deltas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.event import Event as Written
from broker.log.event import encode_data
from broker.log.turn import message as message_of
from worker.agents.react import _LONGEST_LABEL
from worker.agents.transform import Call, React, Tags, Transform, stopping, transform_of, transformed
from worker.providers.chain import Target
from worker.providers.provider import Counted, Finish, Said

Event = tuple[str, dict[str, Any]]

TOOLS = {
    "search": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    "refund": {"type": "object", "properties": {"order_id": {"type": "string"}, "cents": {"type": "integer"}}},
    "wait": {"type": "object", "properties": {"seconds": {"type": "integer"}}, "required": ["seconds"]},
    "now": {"type": "object", "properties": {}},
}


def react() -> Transform:
    return React(TOOLS)


def tags(*names: str) -> Callable[[], Transform]:
    return lambda: Tags(names or ("think", "tool"), TOOLS)


def run(transform: Transform, pieces: Iterable[str], *, is_whole: bool = True) -> list[Event]:
    events = [event for piece in pieces for event in transform.take(piece)] + transform.end(is_whole=is_whole)
    merged: list[Event] = []
    for kind, data in events:
        if merged and kind.endswith("_delta") and merged[-1][0] == kind:
            merged[-1] = kind, {"text": merged[-1][1]["text"] + data["text"]}
        else:
            merged.append((kind, data))
    return merged


def of(events: Iterable[Event], kind: str) -> str:
    return "".join(data["text"] for name, data in events if name == kind)


def read(make: Callable[[], Transform], text: str) -> tuple[str, str, list[tuple[str, dict[str, Any]]], list[str]]:
    """(thinking, text, calls, faults), the same whole and character by character."""
    transform, slowly = make(), make()
    events = run(transform, [text])
    assert run(slowly, text) == events
    assert slowly.calls == transform.calls
    assert slowly.said == transform.said
    calls = [(call.name, call.args) for call in transform.calls if not call.fault]
    told = [(data["tool"], data["args"]) for kind, data in events if kind == "tool_args"]
    assert told == calls
    faults = [call.fault for call in transform.calls if call.fault]
    return of(events, "thinking_delta"), of(events, "text_delta"), calls, faults


# -- ReAct -----------------------------------------------------------------------------------------------------

SEARCH = ("search", {"query": "Oslo"})

REACT: dict[str, tuple[str, tuple[str, str, list[Any]]]] = {
    "an action": (
        'Thought: I look.\nAction: search\nAction Input: {"query": "Oslo"}',
        ("I look.", "", [SEARCH]),
    ),
    "an answer": (
        "Thought: I know.\nFinal Answer: It rains.\nAction: is a word.",
        ("I know.", "It rains.\nAction: is a word.", []),
    ),
    "no label": ("It rains.\nIn Oslo: a lot.", ("", "It rains.\nIn Oslo: a lot.", [])),
    "a plain text for the only parameter": ("Action: search\nAction Input: Oslo\n", ("", "", [SEARCH])),
    "a text in quotes": ('Action: search\nAction Input: "Oslo"', ("", "", [SEARCH])),
    "a number for the only parameter": ("Action: wait\nAction Input: 5", ("", "", [("wait", {"seconds": 5})])),
    "a block of code": ('Action: search\nAction Input:\n```json\n{"query":\n "Oslo"}\n```\n', ("", "", [SEARCH])),
    "the paper's form": ("Thought 1: I look.\nAction 1: search[Oslo]\n", ("I look.", "", [SEARCH])),
    "the paper's end": (
        "Thought 2: I know.\nAction 2: Finish[It [really] rains]",
        ("I know.", "It [really] rains", []),
    ),
    "bold, and code": ("**Thought:** I look.\n**Action**: `search`\n**Action Input:** Oslo", ("I look.", "", [SEARCH])),
    "another case, CRLF": ("THOUGHT: I look.\r\nACTION: search\r\naction input: Oslo\r\n", ("I look.\r", "", [SEARCH])),
    "no arguments": ("Action: now", ("", "", [("now", {})])),
    "no arguments, though there is a place": ("Action: now\nAction Input: \n", ("", "", [("now", {})])),
    "two at once": (
        "Action: search\nAction Input: Oslo\nAction: now\nAction Input: {}",
        ("", "", [SEARCH, ("now", {})]),
    ),
    "no action": ("Thought: Done.\nAction: None\nFinal Answer: 42", ("Done.", "42", [])),
    "a label within a line": ("Final Answer: Write Action: search", ("", "Write Action: search", [])),
    "a label within a thought": ("Thought: my Action: none\nAnswer: 42", ("my Action: none", "42", [])),
    "what nearly is a label": (
        "Thought: a\nAction\nActions: b\n**Thoughtful\n Final: c\nAnswer: d",
        ("a\nAction\nActions: b\n**Thoughtful\n Final: c", "d", []),
    ),
    "blanks around": ("\n\n  Thought:   a\n\n\n   Final Answer:\n\n b 🌧\n", ("a\n\n", "b 🌧\n", [])),
    "an unknown tool": ("Action: fly\nAction Input: to Oslo", ("", "", [("fly", {"input": "to Oslo"})])),
    "labels in arguments": (
        'Action: search\nAction Input: {"query": "Thought: Action: x"}',
        ("", "", [("search", {"query": "Thought: Action: x"})]),
    ),
}


@pytest.mark.parametrize("what", REACT)
def test_react_is_read(what: str) -> None:
    text, expected = REACT[what]
    assert read(react, text) == (*expected, [])


INVENTED = {
    "an observation": "Observation: It rains.\nThought: I know.\nFinal Answer: It rains.",
    "a numbered observation": "Observation 1: It rains.",
    "a thought": "Thought: It rains, surely.\nAction: search\nAction Input: Bergen",
    "an answer": "Final Answer: It rains.",
}


@pytest.mark.parametrize("what", INVENTED)
def test_a_model_that_does_not_wait_for_a_result_is_cut(what: str) -> None:
    called = "Thought: I look.\nAction: search\nAction Input: Oslo"
    text = f"{called}\n{INVENTED[what]}"
    assert read(react, text) == ("I look.", "", [SEARCH], [])
    transform = react()
    events = run(transform, [text, "and more"])
    assert transform.is_cut
    assert transform.said == called
    assert [data["event"]["type"] for kind, data in events if kind == "internal.provider"] == ["cut"]


FAULTY = {
    "half of an object": 'Action: search\nAction Input: {"query": "Oslo"',
    "something behind the object": 'Action: search\nAction Input: {"query": "Oslo"} I wait.',
    "NaN": 'Action: wait\nAction Input: {"seconds": NaN}',
    "a text for two parameters": "Action: refund\nAction Input: A17",
    "no name": "Action Input: Oslo",
    "a list": "Action: refund\nAction Input: [1]",
}


@pytest.mark.parametrize("what", FAULTY)
def test_an_action_that_cannot_be_read_is_a_fault_for_the_model_and_nothing_for_viewers(what: str) -> None:
    thinking, text, calls, faults = read(react, FAULTY[what])
    assert (thinking, text, calls) == ("", "", [])
    assert [fault.partition(":")[0] for fault in faults] == ["This call was not run"]


def test_a_thought_that_leads_nowhere_is_a_fault_for_the_model() -> None:
    assert read(react, "Thought: It is 42.")[3] == [
        "Write an Action with its Action Input, or your answer behind Final Answer:."
    ]


# -- tags ------------------------------------------------------------------------------------------------------

CALL = '<tool>{"name": "search", "args": {"query": "Oslo"}}</tool>'

TAGS: dict[str, tuple[str, tuple[str, str, list[Any]]]] = {
    "a thought, a text and a call": (
        f"<think>\nI look.</think>\n\nOne moment. {CALL}",
        ("I look.", "One moment. ", [SEARCH]),
    ),
    "arguments by another name": (
        '<tool>{"name": "search", "arguments": {"query": "Oslo"}}</tool>',
        ("", "", [SEARCH]),
    ),
    "JSON within JSON": (
        '<tool>{"name": "search", "arguments": "{\\"query\\": \\"Oslo\\"}"}</tool>',
        ("", "", [SEARCH]),
    ),
    "no arguments": ('<tool>\n{"name": "now"}\n</tool>', ("", "", [("now", {})])),
    "a block of code": ('<tool>\n```json\n{"name": "now"}\n```\n</tool>', ("", "", [("now", {})])),
    "several calls, and text behind": (f"{CALL}\n{CALL} So far.", ("", "So far.", [SEARCH, SEARCH])),
    "any case": (f"<Think>a</THINK>{CALL.replace('tool', 'TOOL')}", ("a", "", [SEARCH])),
    "a call within a thought": (f"<think>perhaps {CALL}?</think>No.", (f"perhaps {CALL}?", "No.", [])),
    "a thought within a thought": ("<think>a<think>b</think>c</think>d", ("a<think>b", "cd", [])),
    "a thought that does not end": ("a<think>b</thin", ("b</thin", "a", [])),
    "a call whose end was swallowed": (f"a{CALL.removesuffix('</tool>')}", ("", "a", [SEARCH])),
    "an end without a beginning": ("so I think.</think>It rains.", ("", "so I think.It rains.", [])),
    "other tags": (
        "<b>1 < 2</b> <thinker> <tools/> </ tool> <",
        ("", "<b>1 < 2</b> <thinker> <tools/> </ tool> <", []),
    ),
    "a tag within a tag": ("<<think>a</</think>b", ("a</", "<b", [])),
    "an end within a string": (
        r'<tool>{"name": "search", "args": {"query": "\"</tool> 🌧 \\"}}</tool>!',
        ("", "!", [("search", {"query": '"</tool> 🌧 \\'})]),
    ),
    "CRLF": (
        '<think>\r\na\r\n</think>\r\nb\r\n<tool>\r\n{"name":\r\n"now"}\r\n</tool>',
        ("a\r\n", "b\r\n", [("now", {})]),
    ),
}


@pytest.mark.parametrize("what", TAGS)
def test_tags_are_read(what: str) -> None:
    text, expected = TAGS[what]
    assert read(tags(), text) == (*expected, [])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "search Oslo",
        "{'name': 'search'}",
        '{"args": {}}',
        '{"name": 5}',
        '{"name": "search", "args": [1]}',
        '{"name": "search", "args": {}} x',
        '["search"]',
        '{"name": "search", "args": {"query": NaN}}',
        '{"name": "sea\nrch"}',
    ],
)
def test_a_call_in_tags_that_cannot_be_read_is_a_fault_for_the_model_and_nothing_for_viewers(body: str) -> None:
    thinking, text, calls, faults = read(tags(), f"a<tool>{body}</tool>b")
    assert (thinking, text, calls) == ("", "ab", [])
    assert [fault.partition(":")[0] for fault in faults] == ["This call was not run"]


def test_a_string_that_is_not_closed_takes_no_more_than_its_line() -> None:
    assert read(tags(), '<tool>{"name": "x}</tool> a\nb</tool>c')[:2] == ("", "c")


def test_names_of_tags_are_those_that_say_what_is_in_them() -> None:
    assert read(tags("reasoning", "tool_call"), '<reasoning>a</reasoning><tool_call>{"name":"now"}</tool_call>') == (
        *("a", "", [("now", {})]),
        [],
    )
    assert read(tags("think"), CALL) == ("", CALL, [], [])
    with pytest.raises(ValueError, match=r"tags: 'b' is none of function_call, .*"):
        Tags(["think", "b"], {})


# -- any text --------------------------------------------------------------------------------------------------

PIECES = [
    *(
        "Thought:",
        "Action:",
        "Action Input:",
        "Observation:",
        "Final Answer:",
        "**Action 1**:",
        "search",
        "Finish[",
        "]",
    ),
    *("\n", "\r\n", " ", "*", "**", ":", "Action", "Final ", '{"query": "x"}', '{"', "```json\n", "```", "None", "1"),
    *(
        "<think>",
        "</think>",
        "<tool>",
        "</tool>",
        "<TOOL>",
        "<",
        "</",
        ">",
        '{"name": "now"}',
        '"',
        "\\",
        "a",
        "🌧",
        "é",
    ),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)


@pytest.mark.parametrize("make", [react, tags()], ids=["react", "tags"])
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=12), is_whole=st.booleans())
def test_any_cutting_of_a_text_gives_the_same(
    make: Callable[[], Transform], text: str, cuts: list[int], is_whole: bool
) -> None:
    whole, slowly, cut = make(), make(), make()
    at = sorted({0, *(min(place, len(text)) for place in cuts), len(text)})
    events = run(whole, [text], is_whole=is_whole)
    assert run(slowly, text, is_whole=is_whole) == events
    assert run(cut, (text[a:b] for a, b in pairwise(at)), is_whole=is_whole) == events
    assert whole.calls == slowly.calls == cut.calls
    assert whole.said == slowly.said == cut.said
    assert text.startswith(whole.said)


@pytest.mark.parametrize(
    ("make", "longest"), [(react, _LONGEST_LABEL), (tags(), len("</think>"))], ids=["react", "tags"]
)
@given(text=TEXTS)
def test_no_more_than_the_longest_marker_is_held_back(make: Callable[[], Transform], text: str, longest: int) -> None:
    transform = make()
    for character in text:
        transform.take(character)
        assert len(transform._pending) <= longest


def test_a_text_without_a_marker_is_shown_at_once() -> None:
    assert react().take("Hello, world. It") == [("text_delta", {"text": "Hello, world. It"})]
    assert tags()().take("1 < 2 and <b") == [("text_delta", {"text": "1 < 2 and <b"})]
    transform = tags()()
    assert transform.take("see <thi") == [("text_delta", {"text": "see "})]
    assert transform.take("s>") == [("text_delta", {"text": "<this>"})]


# -- a turn ----------------------------------------------------------------------------------------------------


def test_ids_of_calls_are_unique_in_a_stream() -> None:
    turns = [React(TOOLS, turn) for turn in (0, 1)]
    for transform in turns:
        run(transform, ["Action: now\nAction: now"])
    assert len({call.id for transform in turns for call in transform.calls}) == 4


@pytest.mark.parametrize("make", [react, tags()], ids=["react", "tags"])
def test_of_a_model_that_was_cut_off_the_last_call_is_not_run(make: Callable[[], Transform]) -> None:
    text = "Action: search\nAction Input: Os" if make is react else '<tool>{"name": "now"}'
    transform = make()
    events = run(transform, [text], is_whole=False)
    assert transform.calls == []
    assert [data["event"]["type"] for _, data in events] == ["unfinished_call"]


def test_a_transform_is_made_as_its_agent_announces_it() -> None:
    assert transform_of(None, TOOLS) is None
    assert isinstance(transform_of("react", TOOLS), React)
    assert isinstance(transform_of({"tags": ["think"]}, TOOLS), Tags)
    with pytest.raises(ValueError, match=r"transform: it is neither"):
        transform_of({"tags": "think"}, TOOLS)


def test_results_go_back_in_the_words_of_the_model() -> None:
    results = [(Call("1", "now", {}), "12:00"), (Call("2", "search", {}), "rain")]
    assert react().observation(results) == "Observation: 12:00\nObservation: rain"
    assert tags()().observation(results[:1]) == '<tool_result>{"name":"now","result":"12:00"}</tool_result>'


@pytest.mark.parametrize("make", [react, tags()], ids=["react", "tags"])
def test_a_model_is_told_of_its_tools_in_text(make: Callable[[], Transform]) -> None:
    told = make().instructions([("wait", "Wait a while."), ("now", "The time.")])
    assert all(words in told for words in ("wait", "Wait a while.", '"seconds"', "The time."))


def target(name: str, form: str) -> Target:
    return Target(name, None, "m", name, form)  # type: ignore[arg-type]  # nobody asks it


def test_the_provider_stops_the_model_itself_where_its_wire_can() -> None:
    request = {"messages": [], "stop_sequences": ["END"]}
    stopped = {**request, "stop_sequences": ["END", "\nObservation:"]}
    for name, form in (("anthropic/x", "anthropic"), ("gemini/x", "gemini"), ("vllm/x", "openai-chat")):
        assert stopping(request, react(), target(name, form)) == stopped
        assert stopping(request, tags()(), target(name, form)) == request
    for name, form in (("openai/x", "openai"), ("openai-chat/x", "openai-chat")):
        assert stopping(request, react(), target(name, form)) == request
    full = {"stop_sequences": list("abcd")}
    assert stopping(full, react(), target("vllm/x", "openai-chat")) == full


# -- at a provider's stream ------------------------------------------------------------------------------------


async def told(transform: Transform, *said: Said) -> list[Said]:
    async def provider() -> AsyncGenerator[Said, None]:
        for one in said:
            yield one

    return [one async for one in transformed(provider(), transform)]


def delta(text: str, kind: str = "text_delta") -> Event:
    return kind, {"text": text}


async def test_what_is_no_text_passes_and_calls_end_the_turn() -> None:
    counted = Counted({"input_tokens": 3})
    thought = delta("hm", "thinking_delta")
    said = await told(
        react(),
        thought,
        delta("Action: now"),
        counted,
        Finish("stop_sequence", {"a": 1}, stop_sequence="\nObservation:"),
    )
    start, args = said[2:4]
    assert said[:2] == [thought, counted]
    assert start == ("tool_start", {"tool_call_id": "text_0_0", "tool": "now", "client": True})
    assert args == ("tool_args", {"tool_call_id": "text_0_0", "tool": "now", "args": {}, "complete": True})
    assert said[4:] == [Finish("tool_use", {"a": 1})]


@pytest.mark.parametrize("reason", ["end_turn", "max_tokens", "refusal"])
async def test_without_a_call_a_turn_ends_as_it_ended(reason: str) -> None:
    assert await told(tags()(), delta("a"), Finish(reason, {})) == [delta("a"), Finish(reason, {})]


async def test_a_model_that_invents_is_asked_no_further() -> None:
    is_open = True

    async def provider() -> AsyncGenerator[Said, None]:
        nonlocal is_open
        try:
            yield Counted({"input_tokens": 3, "provider": {}})
            yield delta("Action: now\nObservation: noon.")
            raise AssertionError("it was asked further")
        finally:
            is_open = False

    said = [one async for one in transformed(provider(), react())]
    assert not is_open
    assert said[-1] == Finish("tool_use", {"input_tokens": 3})  # which is not all of it: `provider` is missing


async def test_a_turn_in_its_providers_form_holds_what_the_model_wrote() -> None:
    text = "<think>b</think>c" + CALL
    native = [
        {"type": "thinking", "thinking": {"$lastevent": "thinking", "characters": 1}, "signature": "s"},
        {"type": "text", "text": {"$lastevent": "text", "characters": 8}},
        {"type": "text", "text": {"$lastevent": "text", "characters": len(text) - 8}},
        {"$lastevent": "literal", "value": {"$lastevent": "text"}},
    ]
    *events, finish = await told(
        tags()(), delta("a", "thinking_delta"), delta(text), Finish("end_turn", {}, native=native)
    )
    assert isinstance(finish, Finish)
    assert finish.native == [
        {"type": "thinking", "thinking": "a", "signature": "s"},
        {"type": "text", "text": text[:8]},
        {"type": "text", "text": text[8:]},
        native[3],
    ]
    turn = {"turn": 0, "provider": "p", "form": "p", "model": "m", "native": finish.native}
    all_said: Any = [*events, ("internal.turn", turn)]
    written = [Written(number, kind, encode_data(data), 0) for number, (kind, data) in enumerate(all_said)]
    assert message_of(written)["native"]["content"][:3] == finish.native[:3]
