"""What a stream says as a response: numbers, items, the whole response; from wherever it is folded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.fold import Fold, step
from broker.dialects.responses import NUMBERS, ResponseFold, Responses
from broker.dialects.sse import Gap
from broker.log.event import Event, encode_data
from tests.dialects.responses.logs import BEGUN, CALL, CALLED, DONE, FACTS, LOGS, RESTART, SID, USAGE, log, words

Frame = dict[str, Any]
EVERY_LOG = pytest.mark.parametrize("events", LOGS.values(), ids=LOGS.keys())


def begun(**echo: Any) -> ResponseFold:
    return Responses(shows_request=True).begin(FACTS._replace(echo=echo))


def frames_of(payloads: Iterable[bytes]) -> list[Frame]:
    """Each in its form: one `event:`, one `data:`, a blank line, and nothing that a reader takes for another line."""
    frames = []
    for payload in payloads:
        text = payload.decode()
        event, data, *rest = text.split("\n")
        assert rest == ["", ""]
        assert len(text.splitlines()) == 3
        frame = json.loads(data.removeprefix("data: "))
        assert event == f"event: {frame['type']}"
        frames.append(frame)
    return frames


def told(events: Iterable[Event], **echo: Any) -> list[Frame]:
    fold = begun(**echo)
    return frames_of(payload for event in events for payload in fold.step(event))


def types(frames: Iterable[Frame]) -> list[str]:
    return [frame["type"].removeprefix("response.") for frame in frames]


def text_of(response: Frame) -> str:
    items = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in items for part in item["content"])


# ---- Numbers


@EVERY_LOG
def test_numbers_are_dense_and_jump_where_ids_do(events: list[Event]) -> None:
    fold, last, block = begun(), -1, 0
    for event in events:
        numbers = [frame["sequence_number"] for frame in frames_of(fold.step(event))]
        if not event.is_terminal and (event.id - 1) // 1_000_000 > block:
            block = (event.id - 1) // 1_000_000
            last = NUMBERS * block - 1
        assert numbers == [*range(last + 1, last + 1 + len(numbers))]
        last += len(numbers)
        assert fold.number == last + 1


def test_a_writer_that_says_no_restart_begins_a_block_too() -> None:
    """Redis has lost all that the one before had said."""
    frames = told(log([BEGUN[0], BEGUN[1], *words("a"), DONE], [1]))
    assert [frame["sequence_number"] for frame in frames][:3] == [0, 9 * NUMBERS, 9 * NUMBERS + 1]


def test_a_producer_that_goes_on_behind_a_loss_begins_a_block_too() -> None:
    """It keeps no numbers, and is not told: nothing is taken back."""
    numbers = [frame["sequence_number"] for frame in told(log([*BEGUN, *words("a", "b"), DONE], [3]))]
    assert numbers == [*range(5), *range(9 * NUMBERS, 9 * NUMBERS + 5)]


def test_an_ending_by_seizure_does_not_jump() -> None:
    assert told(LOGS["cancelled"])[-1]["sequence_number"] == len(told(LOGS["cancelled"])) - 1


def test_numbers_never_go_back_where_a_writer_said_more_than_its_block() -> None:
    fold = begun()
    fold.number = 10**6
    [_, frame] = [*fold.step(LOGS["plain"][1]), *fold.step(Event(2_000_001, "text_delta", b'{"text":"a"}', 1))][:2]
    assert frames_of([frame])[0]["sequence_number"] > 10**6


# ---- The state


@EVERY_LOG
def test_from_wherever_it_goes_on_it_says_the_same(events: list[Event]) -> None:
    whole = begun()
    said = [whole.step(event) for event in events]
    for cut in range(len(events)):
        fold = begun()
        for event in events[:cut]:
            fold.step(event)
        copy = fold.copy()
        assert [copy.step(event) for event in events[cut:]] == said[cut:]
        assert [fold.step(event) for event in events[cut:]] == said[cut:]  # nothing of the copy's is its


@EVERY_LOG
def test_the_response_as_it_is_is_that_of_the_last_frame_that_has_one(events: list[Event]) -> None:
    fold = begun()
    for event in events:
        frames = frames_of(fold.step(event))
        if frames and "response" in frames[-1]:
            assert frames[-1]["response"] == fold.response()


def test_copies_share_their_texts() -> None:
    fold = begun()
    for event in LOGS["plain"][:4]:
        fold.step(event)
    copy = fold.copy()
    assert fold._text
    assert copy._text
    assert copy._text.text._parts is fold._text.text._parts


# ---- Items


@EVERY_LOG
def test_every_item_that_is_added_is_done_once_at_an_index_of_its_own(events: list[Event]) -> None:
    frames = told(events)
    added = [frame for frame in frames if frame["type"] == "response.output_item.added"]
    done = [frame for frame in frames if frame["type"] == "response.output_item.done"]
    assert [frame["output_index"] for frame in added] == [*range(len(added))]
    assert sorted(frame["output_index"] for frame in done) == [*range(len(added))]
    ids = {frame["output_index"]: frame["item"]["id"] for frame in added}
    assert all(ids[frame["output_index"]] == frame["item"]["id"] for frame in done)
    assert all(frame["item_id"] == ids[frame["output_index"]] for frame in frames if "item_id" in frame)


@EVERY_LOG
def test_deltas_are_what_the_item_has_when_it_is_done(events: list[Event]) -> None:
    texts: dict[str, str] = {}
    for frame in told(events):
        if frame["type"].endswith(".delta"):
            texts[frame["item_id"]] = texts.get(frame["item_id"], "") + frame["delta"]
        elif frame["type"] == "response.output_item.done":
            item = frame["item"]
            [part] = item.get("content") or item.get("summary") or [{"text": item.get("arguments")}]
            assert texts.get(item["id"], "") == part["text"]


def test_a_plain_answer() -> None:
    frames = told(LOGS["plain"])
    assert types(frames) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 4,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    last = frames[-1]["response"]
    assert (last["status"], text_of(last)) == ("completed", "Oslo is\u2028fine\x85.")
    assert last["id"] == f"resp_{SID}"
    assert (last["created_at"], last["completed_at"]) == (1_795_251_158, 1_795_251_158)


def test_in_the_background_it_is_queued_first() -> None:
    frames = told(LOGS["plain"], background=True)
    assert types(frames)[:3] == ["created", "queued", "in_progress"]
    assert [frame["response"]["status"] for frame in frames[:3]] == ["queued", "queued", "in_progress"]


def test_thoughts_and_texts_take_turns_as_items() -> None:
    last = told(LOGS["thinking"])[-1]["response"]
    assert [item["type"] for item in last["output"]] == ["reasoning", "message", "reasoning"]
    assert last["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]


def test_a_callers_tool_is_a_function_call_and_another_a_call_that_has_run() -> None:
    last = told(LOGS["tools"])[-1]["response"]
    message, call, other, after = last["output"]
    assert (call["type"], call["call_id"], call["arguments"]) == ("function_call", "call_1", '{"city": "Oslo"}')
    assert (other["type"], other["name"], other["output"], other["error"]) == (
        "mcp_call",
        "search",
        '{"found":2}',
        None,
    )
    assert text_of(last) == "I look.Now"
    assert {item["status"] for item in (message, call, other, after)} == {"completed"}


def test_arguments_that_come_at_once_are_a_delta_too() -> None:
    frames = told(log([*BEGUN, CALLED[0], CALLED[3], DONE]))
    assert types(frames)[3:6] == [
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert frames[4]["arguments"] == '{"city":"Oslo"}'


def test_a_tool_that_failed_says_so() -> None:
    _, failed = told(LOGS["two open calls"])[-1]["response"]["output"]
    assert failed["status"] == "failed"
    assert failed["error"] == {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "failed"}]}


# ---- Taken back


def test_a_restart_ends_what_is_open_and_the_response_has_the_last_attempt_alone() -> None:
    frames = told(LOGS["a takeover within calls"])
    void = [frame["item"] for frame in frames if frame["type"] == "response.output_item.done"][:3]
    assert [(item["type"], item["status"]) for item in void] == [
        ("message", "completed"),
        ("function_call", "incomplete"),
        ("mcp_call", "incomplete"),
    ]
    last = frames[-1]["response"]
    assert text_of(last) == "y"
    assert not {item["id"] for item in void} & {item["id"] for item in last["output"]}


def test_what_was_not_said_to_its_end_is_never_called_done() -> None:
    frames = told(log([*BEGUN, *CALLED[:2], *RESTART, DONE]))
    assert "function_call_arguments.done" not in types(frames)


def test_a_call_whose_id_comes_again_has_another_for_the_caller() -> None:
    frames = told(log([*BEGUN, *CALLED, *RESTART, *CALLED, DONE]))
    added = [frame["item"]["call_id"] for frame in frames if frame["type"] == "response.output_item.added"]
    assert added == ["call_1", "call_1.1"]


# ---- Endings


@pytest.mark.parametrize(
    ("stop_reason", "status", "reason"),
    [
        ("end_turn", "completed", None),
        ("stop_sequence", "completed", None),
        ("tool_use", "completed", None),
        ("other", "completed", None),
        ("max_tokens", "incomplete", "max_output_tokens"),
        ("model_context_window_exceeded", "incomplete", "max_output_tokens"),
        ("refusal", "incomplete", "content_filter"),
    ],
)
def test_stop_reasons(stop_reason: str, status: str, reason: str | None) -> None:
    last = told(log([*BEGUN, *words("a"), ("done", {"stop_reason": stop_reason})]))[-1]
    assert last["type"] == f"response.{status}"
    assert last["response"]["status"] == status
    assert last["response"]["output"][0]["status"] == status
    assert last["response"]["incomplete_details"] == (reason and {"reason": reason})


@pytest.mark.parametrize(
    ("code", "theirs"),
    [
        ("provider_cut", "server_error"),
        ("provider_rate_limited", "rate_limit_exceeded"),
        ("provider_refused", "invalid_prompt"),
    ],
)
def test_errors(code: str, theirs: str) -> None:
    last = told(log([*BEGUN, *words("a"), ("error", {"code": code, "message": "Why."})]))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": theirs, "message": f"{code}: Why.", "type": theirs, "param": None}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_cancel_is_incomplete_with_a_status_of_its_own() -> None:
    last = told(LOGS["cancelled"])[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
    assert last["response"]["incomplete_details"] == {"reason": "cancelled"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_usage_has_each_token_where_they_have_it() -> None:
    assert told(LOGS["plain"])[-1]["response"]["usage"] == {
        "input_tokens": 15,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 19,
    }
    assert told(LOGS["empty"])[-1]["response"]["usage"] is None


def test_a_gap_is_an_error_in_both_forms_that_clients_know_and_the_end() -> None:
    fold = begun()
    fold.step(LOGS["plain"][0])
    [frame] = frames_of(fold.gap(Gap(3, 0, "log_lost_tail")))
    assert (frame["type"], frame["code"], frame["error"]["code"]) == ("error", "log_lost_tail", "log_lost_tail")
    assert fold.is_over


# ---- What is repeated of the request


def test_who_may_not_inspect_sees_nothing_of_the_request() -> None:
    echo = {"instructions": "a secret", "metadata": {"a": "b"}, "temperature": 0.5, "background": True, "no": "such"}
    shown = Responses(shows_request=True).begin(FACTS._replace(echo=echo)).response()
    hidden = Responses().begin(FACTS._replace(echo=echo)).response()
    assert (shown["instructions"], shown["metadata"], shown["temperature"]) == ("a secret", {"a": "b"}, 0.5)
    assert (hidden["instructions"], hidden["metadata"], hidden["temperature"]) == (None, {}, 0.5)
    assert shown.keys() == hidden.keys()
    assert "no" not in shown


# ---- Strange shapes

_KINDS = st.sampled_from(
    [
        *("queued", "start", "restart", "text_delta", "thinking_delta", "tool_start", "tool_args_delta", "tool_args"),
        *("tool_end", "tool_error", "done", "error", "cancelled", "status", "citation", "anything.else"),
    ]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "call_1", "end_turn", "max_tokens", "x\u2028y\x85"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "text"]), inner, max_size=2),
    max_leaves=4,
)
_NAMES = st.sampled_from(
    [
        *("text", "tool_call_id", "tool", "client", "partial_json", "args", "complete", "output", "code", "message"),
        *("stop_reason", "usage", "attempt", "agent"),
    ]
)
_COUNTS = st.fixed_dictionaries({}, optional=dict.fromkeys((*USAGE, "thinking_tokens"), _VALUES))
_OF_A_CALL = st.fixed_dictionaries(
    {"tool_call_id": st.sampled_from(["call_1", "call_2"]), "tool": st.just("t")},
    optional={"client": st.booleans(), "args": _VALUES, "complete": st.just(True), "output": _VALUES},
)
_DATA = st.dictionaries(_NAMES, _VALUES, max_size=5) | st.fixed_dictionaries({"usage": _COUNTS}) | _OF_A_CALL


@given(said=st.lists(st.tuples(_KINDS, _DATA), max_size=12))
def test_whatever_shape_stands_under_a_known_kind_frames_are_valid_and_their_numbers_dense(
    said: list[tuple[str, Any]],
) -> None:
    fold: Fold = begun()
    numbers = []
    for event in log([BEGUN[0], *said]):
        assert isinstance(fold, ResponseFold)
        numbers += [frame["sequence_number"] for frame in frames_of(fold.step(event))]
    assert numbers == [*range(len(numbers))]


def test_what_cannot_be_said_at_all_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    nested = ("[" * 300 + "]" * 300).encode()
    fold = begun()
    for event in log([*BEGUN, CALLED[0]]):
        fold.step(event)
    with caplog.at_level(logging.CRITICAL):
        strange = Event(4, "tool_args", b'{"tool_call_id":"call_1","complete":true,"args":%b}' % nested, 1)
        assert step(fold, strange) == []
    frames = frames_of(fold.step(Event(5, "tool_args_delta", encode_data({**CALL, "partial_json": "{}"}), 1)))
    assert [frame["delta"] for frame in frames] == ["{}"]
