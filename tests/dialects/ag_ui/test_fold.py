"""Each event in AG-UI's words."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.ag_ui import MOST_CALLS, MOST_OPEN, MOST_REASONINGS, AgUi, AgUiFold
from broker.dialects.fold import Facts, Fold, step
from broker.dialects.sse import Gap
from broker.log.event import Event, encode_data
from tests.dialects.ag_ui.logs import AGAIN, ASKED, BEGUN, DONE, FACTS, LOGS, SID, TOOLS, events, found_in, whole


def said(log: list[tuple[str, Any]], facts: Facts = FACTS) -> list[dict[str, Any]]:
    fold: Fold = AgUi().begin(facts)
    return [orjson.loads(payload) for event in events(log) for payload in step(fold, event)]


def types(log: list[tuple[str, Any]]) -> list[str]:
    return [one["type"] for one in said(log)]


def test_a_frame_has_its_id_before_its_data_as_tanstack_reads_it() -> None:
    assert AgUi().frame(b"{}", 29_030_000_000_001, 3) == b"id: 29030000000001-3\ndata: {}\n\n"


def test_an_answer_is_a_run_with_reasoning_and_text() -> None:
    first, *_, last = told = said(LOGS["plain"])
    assert [one["type"] for one in told if one["type"] != "CUSTOM"] == [
        "RUN_STARTED",
        *("REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT"),
        *("REASONING_MESSAGE_END", "REASONING_END"),
        *("TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"),
        "RUN_FINISHED",
    ]
    assert (first["threadId"], first["runId"]) == ("thread-1", "run-1")
    assert last["outcome"] == {"type": "success"}
    assert last["usage"] == [{"inputTokens": 7, "outputTokens": 9, "totalTokens": 16}]
    assert last["metadata"] == {"lastevent": {"stop_reason": "end_turn"}}
    assert (
        "".join(one["delta"] for one in told if one["type"] == "TEXT_MESSAGE_CONTENT") == "Ich fahre 🚲 mit\u0085Rad."
    )


def test_what_some_reader_takes_for_a_line_break_is_escaped() -> None:
    body = whole(events(LOGS["plain"]))
    assert not any(mark in body for mark in ("\u2028".encode(), "\u2029".encode(), "\u0085".encode()))


def test_other_kinds_are_custom_under_a_name_with_a_namespace() -> None:
    custom = {one["name"]: one["value"] for one in said(LOGS["tools"]) if one["type"] == "CUSTOM"}
    assert custom["lastevent.status"] == {"message": "Reading …"}
    assert custom["app.note"] == {"n": 1}


def test_a_call_that_its_caller_runs_is_pending_and_others_have_a_result() -> None:
    told = said(LOGS["tools"])
    results = {one["toolCallId"]: one["content"] for one in told if one["type"] == "TOOL_CALL_RESULT"}
    assert results == {"c1": '{"found":[1,2]}', "c3": "no money"}
    assert told[-1]["outcome"] == {"type": "success", "pendingToolCallIds": ["c2", "c4"]}
    args = [one["delta"] for one in told if one["type"] == "TOOL_CALL_ARGS"]
    assert args == ['{"q":', '"where?"}', '{"q":"when?"}']


def test_a_restart_takes_back_what_was_said_and_its_reasoning_is_named_and_empty() -> None:
    told = said([*BEGUN, AGAIN, *BEGUN[1:], DONE])
    at = [one["type"] for one in told].index("MESSAGES_SNAPSHOT")
    assert told[at]["messages"] == [*ASKED, {"id": f"{SID}-r0", "role": "reasoning", "content": ""}]
    assert told[at - 1]["type"] == "TEXT_MESSAGE_END"
    assert told[at + 1] == {"type": "CUSTOM", "name": "lastevent.restart", "value": AGAIN[1]}
    starts = [one["messageId"] for one in told if one["type"].endswith("_MESSAGE_START")]
    assert starts == [f"{SID}-r0", f"{SID}-1-1", f"{SID}-r0", f"{SID}-2-1"]


def test_a_call_that_is_said_again_after_a_restart_has_another_id() -> None:
    told = said([*BEGUN, *TOOLS[:3], AGAIN, *TOOLS[:3], DONE])
    starts = [one["toolCallId"] for one in told if one["type"] == "TOOL_CALL_START"]
    results = [one["toolCallId"] for one in told if one["type"] == "TOOL_CALL_RESULT"]
    assert starts == results == ["c1", "c1-2"]


def test_of_a_stream_that_others_started_the_conversation_is_its_requests_and_nothing_of_the_system() -> None:
    asked = {"system": "secret", "messages": [
        {"role": "system", "content": "secret"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image", "source": {}}]},
        {"role": "assistant", "content": "Yes?"},
    ]}  # fmt: skip
    told = said([*BEGUN, AGAIN], FACTS._replace(echo={}, request=asked))
    [snapshot] = [one for one in told if one["type"] == "MESSAGES_SNAPSHOT"]
    assert [(one["role"], one["content"]) for one in snapshot["messages"][:2]] == [
        ("user", "Hi"),
        ("assistant", "Yes?"),
    ]
    assert told[0]["runId"] == SID
    assert "secret" not in str(told)


def test_an_error_and_a_cancel_close_what_is_open() -> None:
    assert types(LOGS["error"])[-3:] == ["TOOL_CALL_START", "TOOL_CALL_END", "RUN_ERROR"]
    assert said(LOGS["error"])[-1] == {"type": "RUN_ERROR", "message": "It broke.", "code": "provider_error"}
    assert said(LOGS["cancelled"])[-1]["outcome"] == {"type": "cancelled"}


def test_a_gap_forgets_the_cursor_and_takes_everything_back() -> None:
    dialect = AgUi()
    fold = dialect.begin(FACTS)
    for event in events(BEGUN):
        fold.step(event)
    notice, snapshot = (dialect.frame(payload, 7, n) for n, payload in enumerate(fold.gap(Gap(7, 9, "log_lost_tail"))))
    assert notice.startswith(b'id: \ndata: {"type":"CUSTOM","name":"lastevent.gap"')
    assert snapshot.startswith(b'id: 0-1\ndata: {"type":"MESSAGES_SNAPSHOT"')


@pytest.mark.parametrize("name", LOGS)
def test_from_every_event_a_copy_says_the_same(name: str) -> None:
    log = events(LOGS[name], jump=1_000_000)
    dialect = AgUi()
    fold: Fold = dialect.begin(FACTS)
    copies: list[tuple[Fold, list[bytes]]] = []
    for event in log:
        copies.append((fold.copy(), []))
        fold.step(event)
        for copy, rest in copies:
            rest += [dialect.frame(payload, event.id, n) for n, payload in enumerate(step(copy, event))]
    body = whole(log)
    assert all(body.endswith(b"".join(rest)) for _, rest in copies)
    assert all(copy.number == fold.number for copy, _ in copies)


@pytest.mark.parametrize("name", LOGS)
async def test_the_validator_finds_nothing(name: str) -> None:
    assert await found_in(whole(events(LOGS[name]))) == []


def test_what_a_state_holds_is_bounded_however_much_a_producer_writes() -> None:
    many = MOST_CALLS + 10
    calls: list[tuple[str, Any]] = [("tool_start", {"tool_call_id": f"c{n}", "tool": "find"}) for n in range(many)]
    assert types(calls).count("TOOL_CALL_START") == MOST_OPEN
    ends = [("tool_end", {"tool_call_id": f"c{n}"}) for n in range(many)]
    assert types([one for pair in zip(calls, ends, strict=True) for one in pair]).count("TOOL_CALL_START") == MOST_CALLS
    turns = [("thinking_delta", {"text": "x"}), ("text_delta", {"text": "y"})] * (MOST_REASONINGS + 10)
    told = said([*turns, AGAIN])
    assert len({one["messageId"] for one in told if one["type"] == "REASONING_START"}) == MOST_REASONINGS
    [snapshot] = [one for one in told if one["type"] == "MESSAGES_SNAPSHOT"]
    assert len(snapshot["messages"]) == len(ASKED) + MOST_REASONINGS


KINDS = sorted({kind for log in LOGS.values() for kind, _ in log} - {"queued"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.text(max_size=3) | st.sampled_from(["c1", "c2", "find"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
NAMES = (
    "text",
    "tool_call_id",
    "tool",
    "partial_json",
    "args",
    "client",
    "output",
    "message",
    "code",
    "usage",
    "result",
)
TOKENS = st.dictionaries(st.sampled_from(["input_tokens", "output_tokens", "cache_read_input_tokens"]), VALUES)
DATA = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4) | VALUES | TOKENS.map(lambda usage: {"usage": usage})


@given(st.lists(st.tuples(st.sampled_from(KINDS), DATA), max_size=12))
def test_whatever_a_producer_writes_is_said_in_valid_json_or_not_at_all(log: list[tuple[str, Any]]) -> None:
    fold = AgUiFold(FACTS)
    open_ids: set[tuple[str, str]] = set()
    for at, (kind, data) in enumerate([("queued", {}), *log], 1):
        for payload in fold.step(Event(at, kind, encode_data(data), at)):
            assert b"\n" not in payload
            one = orjson.loads(payload)
            what, _, phase = one["type"].rpartition("_")
            place = (what, str(one.get("messageId") or one.get("toolCallId")))
            if phase in ("START", "CONTENT", "ARGS", "END") and what != "RUN":
                what = "TOOL_CALL" if phase == "ARGS" else what
                place = (what, place[1])
                assert (place in open_ids) != (phase == "START")
                open_ids = (
                    {*open_ids, place} if phase == "START" else open_ids - {place} if phase == "END" else open_ids
                )
            if one["type"] in ("RUN_FINISHED", "RUN_ERROR", "MESSAGES_SNAPSHOT"):
                assert not open_ids


def test_who_may_not_see_what_was_asked_is_told_nothing_of_it_by_a_snapshot() -> None:
    asked = {"messages": [{"role": "user", "content": "planted"}], "echo": {"messages": [{"id": "1", "x": "planted"}]}}
    facts = Facts("a" * 32, "s", "m", 0, {"thread_id": "t", "run_id": "r"}, asked)
    said = {shows: _restarted(AgUi(shows_request=shows), facts) for shows in (True, False)}
    assert b"planted" in said[True]
    assert b"planted" not in said[False]
    assert not AgUi(shows_request=False).needs_request


def _restarted(dialect: AgUi, facts: Facts) -> bytes:
    """The core gives a dialect the request only if it needs it."""
    fold = dialect.begin(facts if dialect.needs_request else facts._replace(request={}))
    events = [Event(1, "queued", b"{}", 0), Event(2, "text_delta", b'{"text":"a"}', 0), Event(3, "restart", b"{}", 0)]
    return b"".join(payload for event in events for payload in fold.step(event))
