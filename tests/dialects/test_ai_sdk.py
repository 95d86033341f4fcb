"""The AI SDK's chunks: what each event becomes, and that a fold is a function of its events."""

from __future__ import annotations

import itertools
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.ai_sdk import AiSdk, Version
from broker.dialects.fold import Facts, step
from broker.dialects.sse import Gap
from broker.log.event import Event, encode_data, merge_deltas

SID = "a" * 32
FACTS = Facts(SID, "chat", "m", 0, {}, {})
CALL = {"tool_call_id": "c1", "tool": "find"}
OWN = {**CALL, "client": True}
THEIRS = {"providerExecuted": True, "dynamic": True}
START, TEXT = ("start", {"attempt": 1}), ("text_delta", {"text": "Hi"})

Told = tuple[str, Any]


def log(*told: Told) -> list[Event]:
    return [Event(n, kind, encode_data(data), 0) for n, (kind, data) in enumerate(told, start=1)]


def chunks(*told: Told, ui: Version = 7, facts: Facts = FACTS) -> list[list[Any]]:
    """Of each event."""
    fold = AiSdk(ui=ui).begin(facts)
    return [[orjson.loads(chunk) for chunk in fold.step(event)] for event in log(*told)]


def types(*told: Told, ui: Version = 7) -> list[str]:
    return [chunk["type"] for said in chunks(*told, ui=ui) for chunk in said]


def test_an_answer_begins_with_its_message_and_a_step_and_always_finishes() -> None:
    assert chunks(
        ("queued", {}), START, TEXT, ("done", {"stop_reason": "end_turn", "usage": {"output_tokens": 1}})
    ) == [
        [{"type": "start", "messageId": f"msg_{SID}"}],
        [{"type": "start-step"}],
        [{"type": "text-start", "id": "t1"}, {"type": "text-delta", "id": "t1", "delta": "Hi"}],
        [
            {"type": "text-end", "id": "t1"},
            {
                "type": "data-done",
                "data": {"stop_reason": "end_turn", "usage": {"output_tokens": 1}},
                "transient": True,
            },
            {"type": "finish-step"},
            {"type": "finish", "finishReason": "stop"},
        ],
    ]


def test_text_and_thinking_are_parts_whose_ids_are_never_used_again() -> None:
    thought = ("thinking_delta", {"text": "Hm"})
    said = chunks(thought, TEXT, TEXT, thought, TEXT)
    assert [[(chunk["type"], chunk.get("id")) for chunk in each] for each in said] == [
        [("start-step", None), ("reasoning-start", "r1"), ("reasoning-delta", "r1")],
        [("reasoning-end", "r1"), ("text-start", "t2"), ("text-delta", "t2")],
        [("text-delta", "t2")],
        [("text-end", "t2"), ("reasoning-start", "r3"), ("reasoning-delta", "r3")],
        [("reasoning-end", "r3"), ("text-start", "t4"), ("text-delta", "t4")],
    ]


def test_what_some_readers_take_for_a_line_break_stays_escaped_and_other_fields_hurt_nothing() -> None:
    fold = AiSdk().begin(FACTS)
    texts = ["a\u2028b\u2029c\x85d", 'quote " \\ \n', "🚲"]
    for more in ({}, {"at": 1}):
        for event in log(*(("text_delta", {"text": text, **more}) for text in texts)):
            payload = fold.step(event)[-1]
            assert not any(each in payload.decode() for each in "\u2028\u2029\x85\n")
            assert orjson.loads(payload)["delta"] in texts


def test_a_citation_is_a_source_within_an_open_text() -> None:
    cited = ("citation", {"url": "https://example.com", "title": None, "cited_text": "x"})
    assert chunks(TEXT, cited, TEXT)[1] == [
        {"type": "source-url", "sourceId": "s2", "url": "https://example.com"},
        {"type": "data-citation", "data": cited[1], "transient": True},
    ]
    assert types(TEXT, cited, TEXT, ("done", {}))[-5:-3] == ["text-delta", "text-end"]
    assert chunks(TEXT, cited, ("done", {}))[2][0] == {"type": "text-end", "id": "t1"}


def test_other_kinds_are_data_that_no_message_keeps() -> None:
    [said] = chunks(("app.order_seen", {"n": 1}))
    assert said == [{"type": "data-app-order_seen", "data": {"n": 1}, "transient": True}]


def test_a_tool_of_the_page_is_its_own_and_any_other_was_run_elsewhere() -> None:
    pieces = [("tool_args_delta", {**CALL, "partial_json": piece}) for piece in ('{"q":', "1}")]
    assert chunks(("tool_start", OWN), *pieces, ("tool_args", {**CALL, "args": {"q": 1}, "complete": True})) == [
        [{"type": "start-step"}, {"type": "tool-input-start", "toolCallId": "c1", "toolName": "find"}],
        [{"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '{"q":'}],
        [{"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": "1}"}],
        [{"type": "tool-input-available", "toolCallId": "c1", "toolName": "find", "input": {"q": 1}}],
    ]
    progress = ("tool_progress", {**CALL, "message": "half"})
    ended = ("tool_end", {**CALL, "duration_ms": 1, "output": [1]})
    assert chunks(START, ("tool_start", {**CALL, "title": "Finding"}), progress, ended)[1:] == [
        [{"type": "tool-input-start", "toolCallId": "c1", "toolName": "find", **THEIRS, "title": "Finding"}],
        [
            {"type": "tool-input-available", "toolCallId": "c1", "toolName": "find", "input": None, **THEIRS},
            {
                "type": "tool-output-available",
                "toolCallId": "c1",
                "output": {"message": "half"},
                **THEIRS,
                "preliminary": True,
            },
        ],
        [{"type": "tool-output-available", "toolCallId": "c1", "output": [1], **THEIRS}],
    ]


def test_a_tool_that_failed_says_why_as_far_as_viewers_may_know() -> None:
    for data, why in (({"code": "timeout"}, "timeout"), ({"code": "failed", "message": "No."}, "No."), ({}, "failed")):
        last = chunks(("tool_start", CALL), ("tool_error", {**CALL, **data}))[-1][-1]
        assert last == {"type": "tool-output-error", "toolCallId": "c1", "errorText": why, **THEIRS}


def test_a_call_of_which_nobody_told_the_beginning_begins_with_what_is_told() -> None:
    ended = ("tool_end", {**CALL, "output": 1})
    assert types(ended) == ["start-step", "tool-input-start", "tool-input-available", "tool-output-available"]


def test_at_the_end_open_calls_have_what_came_of_their_input() -> None:
    piece = ("tool_args_delta", {**CALL, "partial_json": '{"q": 1'})
    for more, whole in (("}", {"q": 1}), ("", '{"q": 1')):
        told = [("tool_start", OWN), piece, ("tool_args_delta", {**CALL, "partial_json": more}), ("done", {})]
        assert chunks(*told)[-1][0]["input"] == whole
    for kind in ("error", "cancelled"):
        assert "tool-input-available" not in types(("tool_start", OWN), piece, (kind, {}))


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        *[("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool-calls")],
        *[("refusal", "content-filter"), ("model_context_window_exceeded", "length"), ("other", "other")],
        *[("nobody's", "other"), (None, "other"), (["a"], "other")],
    ],
)
def test_why_it_stopped(stop_reason: Any, finish_reason: str) -> None:
    assert chunks(("done", {"stop_reason": stop_reason}))[-1][-1] == {"type": "finish", "finishReason": finish_reason}


def test_an_error_and_a_cancel_finish_too() -> None:
    error = {"code": "provider_error", "message": "It broke.", "recoverable": True}
    assert chunks(TEXT, ("error", error))[-1] == [
        {"type": "text-end", "id": "t1"},
        {"type": "data-error", "data": error, "transient": True},
        {"type": "error", "errorText": "It broke."},
        {"type": "finish", "finishReason": "error"},
    ]
    assert chunks(TEXT, ("cancelled", {"reason": "enough"}))[-1][2:] == [
        {"type": "finish-step"},
        {"type": "abort", "reason": "enough"},
        {"type": "finish", "finishReason": "other"},
    ]
    assert types(("error", {"code": "x"}))[-2:] == types(("error", 7))[-2:] == ["error", "finish"]


RESTART = ("restart", {"attempt": 2, "reason": "worker_lost"})


def test_a_restart_resets_the_step_which_stays_open() -> None:
    told = (START, TEXT, ("tool_start", CALL), RESTART, START, TEXT, ("done", {}))
    assert chunks(*told)[3] == [
        {"type": "reset-step"},
        {"type": "data-restart", "data": RESTART[1], "transient": True},
    ]
    assert types(*told)[7:9] == ["text-start", "text-delta"]
    assert types(RESTART) == ["data-restart"], "there is nothing to take back"
    fold = AiSdk().begin(FACTS)
    for event in log(("queued", {}), *told[:4]):
        fold.step(event)
    assert [orjson.loads(chunk)["type"] for chunk in fold.opening()] == ["start", "start-step"]


@pytest.mark.parametrize("ui", [5, 6])
def test_older_versions_get_a_mark_that_stays(ui: Version) -> None:
    said = chunks(START, TEXT, RESTART, START, ui=ui)
    assert said[2:] == [
        [{"type": "text-end", "id": "t1"}, {"type": "finish-step"}, {"type": "data-restart", "data": RESTART[1]}],
        [{"type": "start-step"}],
    ]


def test_ai_5_gets_an_input_whole() -> None:
    piece, args = ("tool_args_delta", {**CALL, "partial_json": "{}"}), ("tool_args", {**CALL, "args": {}})
    assert types(START, ("tool_start", OWN), piece, args, ui=5) == ["start-step", "tool-input-available"]
    ended = ("tool_end", CALL)
    assert types(("tool_start", CALL), ended, ui=5)[1:] == ["tool-input-available", "tool-output-available"]


def test_an_answer_that_goes_on_with_a_message_keeps_its_id() -> None:
    facts = FACTS._replace(echo={"message_id": "m7"})
    assert chunks(("queued", {}), facts=facts) == [[{"type": "start", "messageId": "m7"}]]


def test_a_gap_takes_back_where_nothing_is_counted_and_ends_where_chunks_are() -> None:
    fold = AiSdk().begin(FACTS)
    for event in log(START, TEXT):
        fold.step(event)
    assert [orjson.loads(chunk)["type"] for chunk in fold.gap(Gap(2, 1, "x"))] == ["reset-step", "data-restart"]
    assert not fold.is_over
    counted = AiSdk(merges=False).begin(FACTS)
    assert [orjson.loads(chunk)["type"] for chunk in counted.gap(Gap(2, 1, "x"))] == ["error", "finish"]
    assert counted.is_over


# -- a fold is a function ------------------------------------------------------------------------------------------

KINDS = (
    *("queued", "start", "status", "text_delta", "thinking_delta", "citation", "tool_start", "tool_args_delta"),
    *("tool_args", "tool_progress", "tool_end", "tool_error", "restart", "done", "error", "cancelled", "app.x"),
)
WORDS = st.sampled_from(["", "a", '"\\\n', "\u2028", "c1", "c2", "find"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    ["text", "tool_call_id", "tool", "args", "partial_json", "client", "output", "message", "code", "title", "url"]
)
DATA = VALUES | st.dictionaries(FIELDS, VALUES) | st.just({**CALL, "partial_json": "{", "args": 1, "client": True})
EVENTS = st.lists(st.tuples(st.sampled_from(KINDS), DATA), max_size=30)
DIALECTS = [AiSdk(merges, ui) for merges in (True, False) for ui in (5, 6, 7)]


@given(EVENTS, st.sampled_from(DIALECTS))
def test_whatever_an_event_holds_a_client_is_given_chunks_that_it_can_take(told: list[Told], dialect: AiSdk) -> None:
    fold, client = dialect.begin(FACTS), Client()
    for event in log(*told):
        payloads = fold.step(event)
        for payload in payloads:
            assert b"\n" not in payload
            client.take(orjson.loads(payload))
        assert fold.number == client.count


@given(EVENTS, st.sampled_from(DIALECTS))
def test_a_copy_goes_on_as_the_first_and_neither_touches_the_other(told: list[Told], dialect: AiSdk) -> None:
    events = log(*told)
    fold = dialect.begin(FACTS)
    said, copies = [], [fold.copy()]
    for event in events:
        said.append(fold.step(event))
        copies.append(fold.copy())
    for at, copy in enumerate(copies):
        assert [step(copy, event) for event in events[at:]] == said[at:]
        assert copy.number == fold.number


def test_merged_text_leads_to_the_same_state() -> None:
    numbers = random.Random("merged")
    told = [(numbers.choice(("text_delta", "thinking_delta")), {"text": str(n)}) for n in range(40)]
    events = log(*told)
    apart, merged = AiSdk().begin(FACTS), AiSdk().begin(FACTS)
    for event in events:
        apart.step(event)
    for event in merge_deltas(events):
        merged.step(event)
    [end] = log(("done", {}))
    assert apart.step(end) == merged.step(end)


class Client:
    """What ai 5, 6 and 7 ask of a stream (processUIMessageStream): without it they end with an error."""

    def __init__(self) -> None:
        self.count = 0
        self._open: set[str] = set()
        self._begun: set[str] = set()
        self._calls: set[str] = set()

    def take(self, chunk: dict[str, Any]) -> None:
        self.count += 1
        match chunk["type"].partition("-"):
            case ("text" | "reasoning", _, "start"):
                assert chunk["id"] not in self._begun
                self._begun.add(chunk["id"])
                self._open.add(chunk["id"])
            case ("text" | "reasoning", _, "delta"):
                assert chunk["id"] in self._open
                assert isinstance(chunk["delta"], str)
            case ("text" | "reasoning", _, "end"):
                self._open.remove(chunk["id"])
            case ("tool", _, "input-start" | "input-available"):
                assert isinstance(chunk["toolName"], str)
                self._calls.add(chunk["toolCallId"])
            case ("tool", _, _):
                assert chunk["toolCallId"] in self._calls
                assert isinstance(chunk.get("errorText", ""), str)
            case ("reset", _, "step"):
                self._open.clear()
                self._calls.clear()
            case ("error", _, _):
                assert isinstance(chunk["errorText"], str)
            case ("finish", _, ""):
                assert not self._open
            case ("data", _, kind):
                assert kind
            case (kind, _, rest):
                known = ("start-", "start-step", "finish-step", "source-url", "abort-")
                assert f"{kind}-{rest}" in known


def test_a_hundred_calls_cost_their_state_nothing_once_they_have_ended() -> None:
    fold = AiSdk().begin(FACTS)
    told = itertools.chain.from_iterable(
        (("tool_start", {**CALL, "tool_call_id": str(n)}), ("tool_end", {**CALL, "tool_call_id": str(n)}))
        for n in range(100)
    )
    for event in log(*told):
        fold.step(event)
    assert fold._tools == {}
