"""Gemini's wire as events: real HTTP on loopback, the real SDK, the bytes that each test gives.

The events of each answer are those of docs/PROVIDERS.md.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from time import perf_counter
from typing import Any, get_args

import anyio
import orjson
import pytest
from google.genai import types

from tests.rig.wire_peer import WirePeer, sse, wire_peer
from tests.worker.providers_table import documented
from worker.providers.bounds import Bounds
from worker.providers.failures import ProviderFailure
from worker.providers.gemini import GeminiProvider
from worker.providers.gemini_answer import BAD_ANSWERS, STOP_REASONS
from worker.providers.provider import Counted, Finish
from worker.providers.reading import LAST_WORDS_S
from worker.standin.server import StandIn

KEY = "AIzaSecretOfThisServer"
MODEL = "gemini-3-pro"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
MIB = 2**20


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


@pytest.fixture(scope="module")
async def provider(peer: WirePeer) -> AsyncIterator[GeminiProvider]:
    provider = GeminiProvider(api_key=KEY, base_url=peer.url, silence_s=5)
    yield provider
    await provider.aclose()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def chunk(*parts: Any, usage: Any = None, **candidate: Any) -> dict[str, Any]:
    content = {"content": {"role": "model", "parts": list(parts)}} if parts else {}
    return {
        "candidates": [{**content, **candidate, "index": 0}],
        **({} if usage is None else {"usageMetadata": usage}),
    }


def text(said: str, **others: Any) -> dict[str, Any]:
    return {"text": said, **others}


def call(name: str, args: Any = None, **others: Any) -> dict[str, Any]:
    return {"functionCall": {"name": name, **({} if args is None else {"args": args}), **others}}


STOP = chunk(finishReason="STOP")


async def said(provider: GeminiProvider, request: dict[str, Any] = HELLO) -> list[Any]:
    with anyio.fail_after(20):
        return [one async for one in provider.stream(MODEL, request)]


async def failing(provider: GeminiProvider, request: dict[str, Any] = HELLO) -> tuple[list[Any], ProviderFailure]:
    events: list[Any] = []
    with anyio.fail_after(20):
        try:
            async for event in provider.stream(MODEL, request):
                events.append(event)  # noqa: PERF401  # a comprehension would lose them with the failure
        except ProviderFailure as failure:
            return events, failure
    pytest.fail(f"it has not failed: {events}")


def of_kind(events: Iterable[Any], *kinds: str) -> list[Any]:
    return [event for event in events if not isinstance(event, Counted | Finish) and event[0] in kinds]


def internal(events: Iterable[Any]) -> list[Any]:
    """What was kept whole, of each event."""
    return [event[1]["event"] for event in of_kind(events, "internal.provider")]


def finish(events: list[Any]) -> Finish:
    assert [type(event) for event in events].count(Finish) == 1
    assert isinstance(events[-1], Finish)
    return events[-1]


# -- what is said --------------------------------------------------------------------------------------------


async def test_a_text_is_deltas_and_an_ending(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(sse(chunk(text("Hel")), chunk(text("lo")), STOP))
    assert await said(provider) == [
        ("text_delta", {"text": "Hel"}),
        ("text_delta", {"text": "lo"}),
        Finish("end_turn", {"input_tokens": 0, "output_tokens": 0}, "STOP"),
    ]


async def test_thoughts_are_thinking_and_signatures_stay_where_they_were(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    peer.says(
        sse(
            chunk(text("Let me ", thought=True)),
            chunk(text("see.", thought=True), text("Yes")),
            chunk(text(", indeed.")),
            chunk(text("", thoughtSignature="c2lnbmVk"), finishReason="STOP"),
        )
    )
    events = await said(provider)
    assert events[:-1] == [
        ("thinking_delta", {"text": "Let me "}),
        ("thinking_delta", {"text": "see."}),
        ("text_delta", {"text": "Yes"}),
        ("text_delta", {"text": ", indeed."}),
        (
            "internal.provider",
            {
                "provider": "gemini",
                "event": {"candidates": [{"content": {"parts": [{"thoughtSignature": "c2lnbmVk"}]}}]},
            },
        ),
    ]
    assert finish(events).native == [
        {"text": {"$lastevent": "thinking", "characters": 11}, "thought": True},
        {"text": {"$lastevent": "text", "characters": 12}},
        {"text": "", "thoughtSignature": "c2lnbmVk"},
    ]


async def test_a_part_that_is_text_and_call_at_once_is_both(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(sse(chunk({**call("f"), "text": ""}, {**call("g"), "text": "a"}, finishReason="STOP")))
    events = await said(provider)
    assert [data["tool"] for _, data in of_kind(events, "tool_args")] == ["f", "g"]
    assert of_kind(events, "text_delta") == [("text_delta", {"text": "a"})]
    assert [set(part) for part in finish(events).native] == [{"functionCall"}, {"text"}, {"functionCall"}]


async def test_a_signed_text_is_not_joined_with_its_neighbours(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(sse(chunk(text("a")), chunk(text("b", thoughtSignature="c2ln")), chunk(text("c")), STOP))
    one = {"$lastevent": "text", "characters": 1}
    assert finish(await said(provider)).native == [
        {"text": one},
        {"text": one, "thoughtSignature": "c2ln"},
        {"text": one},
    ]


async def test_parallel_calls_of_one_name_stay_apart_whether_they_have_ids_or_not(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    peer.says(
        sse(
            chunk(
                {**call("look_up", {"n": 1}), "thoughtSignature": "c2ln"},
                call("look_up", {"n": 2}, id="theirs"),
                call("look_up", {"n": 3}, id="theirs"),
            ),
            chunk(call("now"), finishReason="STOP"),
        )
    )
    events = await said(provider)
    ids = [data["tool_call_id"] for _, data in of_kind(events, "tool_start")]
    assert ids == ["call_1", "theirs", "call_3", "call_4"]
    assert of_kind(events, "tool_start", "tool_args_delta", "tool_args")[:3] == [
        ("tool_start", {"tool_call_id": "call_1", "tool": "look_up", "client": True}),
        ("tool_args_delta", {"tool_call_id": "call_1", "tool": "look_up", "partial_json": '{"n":1}'}),
        ("tool_args", {"tool_call_id": "call_1", "tool": "look_up", "args": {"n": 1}, "complete": True}),
    ]
    assert [data["args"] for _, data in of_kind(events, "tool_args")] == [{"n": 1}, {"n": 2}, {"n": 3}, {}]
    assert finish(events).stop_reason == "tool_use"
    native = finish(events).native
    assert native[0] == {
        "functionCall": {"name": "look_up", "args": {"$lastevent": "input", "tool_call_id": "call_1"}},
        "thoughtSignature": "c2ln",
    }
    assert [part["functionCall"].get("id") for part in native] == [None, "theirs", "theirs", None]


STREAMED = [
    call("book", willContinue=True),
    {
        "functionCall": {
            "partialArgs": [{"jsonPath": "$.to", "stringValue": "Bud", "willContinue": True}],
            "willContinue": True,
        }
    },
    {"functionCall": {"partialArgs": [{"jsonPath": "$.to", "stringValue": "apest"}], "willContinue": True}},
    {
        "functionCall": {
            "partialArgs": [
                {"jsonPath": "$.who[0].name", "stringValue": "Ann"},
                {"jsonPath": "$.who[1]['full \\'name']", "stringValue": "B"},
                {"jsonPath": "$.n", "numberValue": 2},
                {"jsonPath": "$.now", "boolValue": False},
                {"jsonPath": "$.note", "nullValue": "NULL_VALUE"},
            ],
            "willContinue": True,
        }
    },
    {"functionCall": {}},
]


async def test_arguments_that_come_value_by_value_are_put_together(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(sse(*map(chunk, STREAMED), STOP))
    events = await said(provider)
    assert [kind for kind, _ in events[:-1]] == ["tool_start", "tool_args_delta", "tool_args"]
    assert events[2][1]["args"] == {
        "to": "Budapest",
        "who": [{"name": "Ann"}, {"full 'name": "B"}],
        "n": 2,
        "now": False,
        "note": None,
    }
    assert len(finish(events).native) == 1


@pytest.mark.parametrize("path", ["", "to", "$", "$.a[7]", "$..a", "$.a[*]", "$.a[99999999]"])
async def test_a_place_among_arguments_that_is_none_is_a_bad_answer(
    peer: WirePeer, provider: GeminiProvider, path: str
) -> None:
    peer.says(sse(chunk(call("f", partialArgs=[{"jsonPath": path, "stringValue": "x"}])), STOP))
    assert (await failing(provider))[1].code == "provider_bad_answer"


async def test_code_that_the_provider_runs_is_a_tool_of_its_own(peer: WirePeer, provider: GeminiProvider) -> None:
    code, good = {"language": "PYTHON", "code": "print(1)"}, {"outcome": "OUTCOME_OK", "output": "1\n"}
    bad = {"outcome": "OUTCOME_FAILED", "output": "NameError"}
    late = {"outcome": "OUTCOME_DEADLINE_EXCEEDED"}
    parts = [({"executableCode": code}, {"codeExecutionResult": result}) for result in (good, bad, late)]
    peer.says(sse(*(chunk(*pair) for pair in parts), chunk(text("1")), STOP))
    events = of_kind(await said(provider), "tool_start", "tool_args", "tool_args_delta", "tool_end", "tool_error")
    assert [kind for kind, _ in events] == [
        "tool_start",
        "tool_args",
        "tool_end",
        *["tool_start", "tool_args", "tool_error"] * 2,
    ]
    assert events[0][1] == {"tool_call_id": "call_1", "tool": "code_execution"}
    assert events[1][1]["args"] == code
    assert [data["output"] for kind, data in events if kind in ("tool_end", "tool_error")] == [good, bad, late]
    assert [(data["code"], data["tool_call_id"]) for kind, data in events if kind == "tool_error"] == [
        ("failed", "call_2"),
        ("timeout", "call_3"),
    ]


async def test_a_tool_of_googles_has_its_answer_and_the_turn_has_both_whole(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    asked = {"toolCall": {"id": "t1", "toolType": "GOOGLE_SEARCH_WEB", "args": {"queries": ["x"]}}}
    answered = {"toolResponse": {"id": "t1", "toolType": "GOOGLE_SEARCH_WEB", "response": {"hits": 3}}}
    peer.says(sse(chunk({**asked, "thoughtSignature": "c2ln"}), chunk(answered), STOP))
    events = await said(provider)
    assert [event[0] for event in events[:-1]] == ["tool_start", "tool_args", "internal.provider", "tool_end"]
    assert events[3][1]["tool"] == "google_search_web"
    assert events[3][1]["output"] == {"hits": 3}
    assert finish(events).native == [{**asked, "thoughtSignature": "c2ln"}, answered]
    assert finish(events).stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("part", "has_effects"),
    [
        ({"toolCall": {"id": "t", "toolType": "URL_CONTEXT"}}, False),
        ({"toolCall": {"id": "t", "toolType": "SOMEBODYS"}}, True),
        ({"functionResponse": {"name": "f", "response": {}}}, True),
    ],
)
async def test_what_a_retry_would_repeat_is_told(
    peer: WirePeer, provider: GeminiProvider, part: Any, has_effects: bool
) -> None:
    peer.says(sse(chunk(part)))
    assert (await failing(provider))[1].after_effects is has_effects


async def test_what_has_no_kind_is_kept_whole_and_once(peer: WirePeer, provider: GeminiProvider) -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": "aGk="}}
    logprobs = {"chosenCandidates": [{"token": "a", "logProbability": -0.1}]}
    same = {"modelVersion": "gemini-3-pro-11-2025", "responseId": "r-1"}
    peer.says(
        sse(
            {**chunk(text("a"), logprobsResult=logprobs, safetyRatings=[{"category": "X"}]), **same},
            {**chunk(image, {"newPart": 1}, safetyRatings=[{"category": "X"}]), **same, "newKey": {"a": 1}},
            {"candidates": [{"index": 1, "content": {"parts": [{"text": "another"}]}}], **same},
            {**chunk(finishReason="STOP", logprobsResult=logprobs, urlContextMetadata={"u": []}), **same},
        )
    )
    events = await said(provider)
    assert internal(events) == [
        {"candidates": [{"logprobsResult": logprobs, "safetyRatings": [{"category": "X"}]}], **same},
        {"candidates": [{"content": {"parts": [image, {"newPart": 1}]}}], "newKey": {"a": 1}},
        {"candidates": [{"index": 1, "content": {"parts": [{"text": "another"}]}}]},
        {"candidates": [{"logprobsResult": logprobs, "urlContextMetadata": {"u": []}}]},
    ]
    assert of_kind(events, "text_delta") == [("text_delta", {"text": "a"})]
    assert finish(events).model == "gemini-3-pro-11-2025"
    assert finish(events).native == [{"text": {"$lastevent": "text", "characters": 1}}, image, {"newPart": 1}]


def byte_span(of: str, part: str) -> dict[str, Any]:
    start = len(of[: of.index(part)].encode())
    return {**({"startIndex": start} if start else {}), "endIndex": start + len(part.encode()), "text": part}


async def test_grounding_is_citations_with_characters_instead_of_bytes(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    whole = "Árvíztűrő. Plain ASCII. 🎈 Balloons."
    metadata = {
        "webSearchQueries": ["q"],
        "groundingChunks": [
            {"web": {"uri": "https://a", "title": "A"}},
            {"retrievedContext": {"uri": "gs://b", "title": "B", "text": "…"}},
        ],
        "groundingSupports": [
            {"segment": byte_span(whole, "Árvíztűrő."), "groundingChunkIndices": [0, 1]},
            {"segment": byte_span(whole, "ASCII."), "groundingChunkIndices": [0]},
            {"segment": byte_span(whole, "Balloons."), "groundingChunkIndices": [1, 9]},
            {"segment": {"endIndex": 9999}, "groundingChunkIndices": [1]},
        ],
    }
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    peer.says(
        sse(
            *(chunk(text(piece)) for piece in pieces),
            chunk(groundingMetadata=metadata),
            chunk(groundingMetadata=metadata, finishReason="STOP"),
        )
    )
    events = await said(provider)
    citations = [data for _, data in of_kind(events, "citation")]
    assert [(one["url"], one["cited_text"]) for one in citations] == [
        ("https://a", "Árvíztűrő."),
        ("gs://b", "Árvíztűrő."),
        ("https://a", "ASCII."),
        ("gs://b", "Balloons."),
        ("gs://b", None),
    ]
    assert all(whole[one["start"] : one["end"]] == one["cited_text"] for one in citations[:4])
    assert citations[4] == {"url": "gs://b", "title": "B", "cited_text": None, "start": None, "end": None}
    assert internal(events) == [{"candidates": [{"groundingMetadata": metadata}]}]


async def test_sources_without_passages_are_citations_too_and_so_are_recitations(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    recited = {"citationSources": [{"startIndex": 2, "endIndex": 5, "uri": "https://r", "license": "mit"}]}
    peer.says(
        sse(
            chunk(text("é abc")),
            chunk(groundingMetadata={"groundingChunks": [{"maps": {"uri": "https://m", "title": "M"}}]}),
            chunk(citationMetadata=recited, finishReason="STOP"),
        )
    )
    citations = [data for _, data in of_kind(await said(provider), "citation")]
    assert citations == [
        {"url": "https://r", "title": None, "cited_text": None, "start": 1, "end": 4},
        {"url": "https://m", "title": "M", "cited_text": None, "start": None, "end": None},
    ]


async def test_a_segment_of_a_later_part_counts_from_there(peer: WirePeer, provider: GeminiProvider) -> None:
    code = {"executableCode": {"code": "1"}}, {"codeExecutionResult": {"outcome": "OUTCOME_OK"}}
    support = {"segment": {"partIndex": 3, "startIndex": 2, "endIndex": 4}, "groundingChunkIndices": [0]}
    of_code = {"segment": {"partIndex": 1, "endIndex": 4}, "groundingChunkIndices": [0]}
    metadata = {"groundingChunks": [{"web": {"uri": "u"}}], "groundingSupports": [support, of_code]}
    peer.says(sse(chunk(text("éé"), *code, text("ßab")), chunk(groundingMetadata=metadata, finishReason="STOP")))
    citations = [data for _, data in of_kind(await said(provider), "citation")]
    assert [(one["start"], one["end"]) for one in citations] == [(3, 5), (None, None)]


async def test_usage_is_disjoint_and_told_when_it_changes(peer: WirePeer, provider: GeminiProvider) -> None:
    first = {"promptTokenCount": 100, "cachedContentTokenCount": 80, "totalTokenCount": 100}
    last = {
        **first,
        "toolUsePromptTokenCount": 7,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 5,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
    }
    peer.says(
        sse(
            chunk(text("a"), usage=first),
            chunk(text("b"), usage=first),
            chunk(finishReason="STOP"),
            {"usageMetadata": last},
        )
    )
    events = await said(provider)
    usage = {
        "input_tokens": 27,
        "output_tokens": 25,
        "cache_read_input_tokens": 80,
        "thinking_tokens": 5,
        "provider": last,
    }
    assert [event.usage["output_tokens"] for event in events if isinstance(event, Counted)] == [0, 25]
    assert finish(events).usage == usage


# -- how it ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*STOP_REASONS, "A_NEW_ONE"])
async def test_a_finish_reason_ends_it(peer: WirePeer, provider: GeminiProvider, reason: str) -> None:
    peer.says(sse(chunk(text("a"), finishReason=reason)))
    ending = finish(await said(provider))
    assert (ending.stop_reason, ending.provider_stop_reason) == (STOP_REASONS.get(reason, "other"), reason)


@pytest.mark.parametrize("reason", sorted(BAD_ANSWERS))
async def test_a_call_that_the_model_got_wrong_is_a_failure_whose_tokens_count(
    peer: WirePeer, provider: GeminiProvider, reason: str
) -> None:
    peer.says(sse(chunk(text("a"), finishReason=reason, finishMessage="Malformed: f(", usage={"promptTokenCount": 3})))
    events, failure = await failing(provider)
    assert (failure.code, failure.retryable, failure.said) == ("provider_bad_answer", True, "Malformed: f(")
    assert [event.usage["input_tokens"] for event in events if isinstance(event, Counted)] == [3]


async def test_a_refusal_has_its_details(peer: WirePeer, provider: GeminiProvider) -> None:
    ratings = [{"category": "HARM", "probability": "HIGH"}]
    peer.says(sse(chunk(text("a")), chunk(finishReason="SAFETY", finishMessage="No.", safetyRatings=ratings)))
    ending = finish(await said(provider))
    assert (ending.stop_reason, ending.stop_details) == ("refusal", {"finishMessage": "No.", "safetyRatings": ratings})


async def test_a_blocked_prompt_is_a_refusal_without_a_candidate(peer: WirePeer, provider: GeminiProvider) -> None:
    feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": []}
    peer.says(sse({"promptFeedback": feedback, "usageMetadata": {"promptTokenCount": 4}}))
    events = await said(provider)
    ending = finish(events)
    assert ending[:3] == ("refusal", ending.usage, "PROHIBITED_CONTENT")
    assert ending.stop_details == feedback
    assert ending.usage["input_tokens"] == 4
    assert internal(events) == [{"promptFeedback": feedback}]


async def test_a_call_without_its_last_arguments_is_no_end_unless_tokens_ran_out(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    peer.says(sse(chunk(STREAMED[0]), chunk(STREAMED[1]), STOP))
    assert (await failing(provider))[1].code == "provider_bad_answer"
    peer.says(sse(chunk(STREAMED[0]), chunk(STREAMED[1]), chunk(finishReason="MAX_TOKENS")))
    assert finish(await said(provider)).stop_reason == "max_tokens"


ERRORS = [
    ({"code": 429, "status": "RESOURCE_EXHAUSTED"}, "provider_rate_limited"),
    ({"code": 503, "status": "UNAVAILABLE"}, "provider_overloaded"),
    ({"code": 500, "status": "INTERNAL"}, "provider_error"),
    ({"code": 504, "status": "DEADLINE_EXCEEDED"}, "provider_error"),
    ({"code": 499, "status": "CANCELLED"}, "provider_error"),
    ({"code": 400, "status": "INVALID_ARGUMENT"}, "provider_refused"),
    ({"code": 400, "status": "FAILED_PRECONDITION"}, "provider_refused"),
    ({"code": 404, "status": "NOT_FOUND"}, "provider_refused"),
    ({"code": 403, "status": "PERMISSION_DENIED"}, "provider_unauthorized"),
    ({"code": 401, "status": "UNAUTHENTICATED"}, "provider_unauthorized"),
    ({"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}, "provider_unauthorized"),
    ({"code": 503}, "provider_overloaded"),
    ({"code": 418, "status": "A_NEW_ONE"}, None),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=[str(error.get("status")) for error, _ in ERRORS])
async def test_an_error_has_its_code_as_a_refusal_and_in_the_stream(
    peer: WirePeer, provider: GeminiProvider, error: dict[str, Any], code: str | None
) -> None:
    error = {**error, "message": f"In its own words, {KEY}."}
    peer.refuses(error["code"], {"error": error}, x_goog_request_id="req-7")
    events, refused = await failing(provider)
    assert events == []
    assert refused.code == (code or "provider_refused")
    assert (refused.status, refused.request_id) == (error["code"], "req-7")
    assert KEY not in f"{refused.said} {refused.message}"
    assert refused.moves_on is (refused.code == "provider_unauthorized" or error["code"] == 404)
    peer.refuses(error["code"], [{"error": error}])
    assert (await failing(provider))[1].code == refused.code
    peer.says(sse(chunk(text("a")), {"error": error}, STOP))
    events, broken = await failing(provider)
    assert events == [("text_delta", {"text": "a"})]
    assert broken.code == (code or "provider_error")


BARE = orjson.dumps({"error": {"code": 503, "status": "UNAVAILABLE", "message": "x"}}, option=orjson.OPT_INDENT_2)


@pytest.mark.parametrize("as_list", [False, True], ids=["an object", "a list"])
@pytest.mark.parametrize("cut_at", range(0, 60, 7))
async def test_an_error_that_is_no_event_is_read_too(
    peer: WirePeer, provider: GeminiProvider, cut_at: int, as_list: bool
) -> None:
    """So the API itself says it, and so do gateways: JSON as it is, after the events or instead of them."""
    bare = b"[%s\n]\r\n" % BARE if as_list else BARE
    whole = sse(chunk(text("a"))) + bare
    cut_at += len(whole) - len(bare) - 10
    peer.says(whole[:cut_at], whole[cut_at:])
    events, failure = await failing(provider)
    assert (events, failure.code) == ([("text_delta", {"text": "a"})], "provider_overloaded")
    for content_type in ("text/event-stream", "application/json; charset=UTF-8"):
        peer.says(bare, content_type=content_type)
        assert (await failing(provider))[1].code == "provider_overloaded"


async def test_how_long_to_wait_is_in_the_details_or_in_a_header(peer: WirePeer, provider: GeminiProvider) -> None:
    delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
    peer.refuses(429, {"error": {"code": 429, "details": [delay]}}, retry_after="9")
    assert (await failing(provider))[1].retry_after_s == 34.5
    peer.refuses(429, {"error": {"code": 429}}, retry_after="9")
    assert (await failing(provider))[1].retry_after_s == 9


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\xff\xfe", b"null", b"[]", b'{"error":"x"}', b'{"error":{"code":"x","status":[],"details":7}}'],
)
@pytest.mark.parametrize(
    ("status", "code"), [(503, "provider_overloaded"), (400, "provider_refused"), (302, "provider_bad_answer")]
)
async def test_a_refusal_that_says_nothing_has_the_code_of_its_status(
    peer: WirePeer, provider: GeminiProvider, status: int, code: str, body: bytes
) -> None:
    peer.says(
        *([body] if body else []),
        status=status,
        content_type="text/html",
        headers=(("Location", "http://127.0.0.1:1/"),),
    )
    failure = (await failing(provider))[1]
    assert (failure.code, failure.status) == (code, status)
    assert len(peer.asked) == 1  # neither the SDK nor a redirect asks again


GARBAGE = {
    "no JSON": b"data: {\n\n",
    "null": b"data: null\n\n",
    "a text": b'data: "x"\n\n',
    "a text that is none": sse(chunk({"text": 7})),
    "a call without a name": sse(chunk({"functionCall": {"args": {}}})),
    "arguments that are none": sse(chunk(call("f", [1]))),
    "candidates that are none": sse({"candidates": 7}),
    "parts that are none": sse({"candidates": [{"content": {"parts": [7]}}]}),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_what_cannot_be_understood_is_a_bad_answer(peer: WirePeer, provider: GeminiProvider, what: str) -> None:
    peer.says(sse(chunk(text("a"))), GARBAGE[what], sse(STOP))
    events, failure = await failing(provider)
    assert of_kind(events, "text_delta") == [("text_delta", {"text": "a"})]
    assert failure.code == "provider_bad_answer"


@pytest.mark.parametrize("end", ["proper", "cut"])
@pytest.mark.parametrize("after", [b"", sse(chunk(text("a")), {"usageMetadata": {"promptTokenCount": 2}})])
async def test_an_answer_without_its_finish_reason_is_a_cut(
    peer: WirePeer, provider: GeminiProvider, after: bytes, end: str
) -> None:
    peer.says(after, end=end)
    assert (await failing(provider))[1].code == "provider_cut"


async def test_a_cut_after_the_finish_reason_takes_nothing_back(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(sse(chunk(text("a"), finishReason="STOP")), end="cut")
    assert finish(await said(provider)).stop_reason == "end_turn"


async def test_a_body_that_does_not_end_after_the_finish_reason_holds_it_up_for_a_moment(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    peer.says(sse(chunk(text("a"), finishReason="STOP")), end="hold")
    began_s = perf_counter()
    assert finish(await said(provider)).stop_reason == "end_turn"
    assert perf_counter() - began_s >= LAST_WORDS_S * 0.9


async def test_silence_is_named(peer: WirePeer) -> None:
    impatient = GeminiProvider(api_key=KEY, base_url=peer.url, silence_s=1)
    peer.says(sse(chunk(text("a"))), end="hold")
    events, failure = await failing(impatient)
    assert (events, failure.code) == ([("text_delta", {"text": "a"})], "provider_silent")
    await impatient.aclose()


async def test_a_bare_body_without_end_is_bounded(peer: WirePeer) -> None:
    small = GeminiProvider(api_key=KEY, base_url=peer.url, silence_s=5, bounds=Bounds(64 * 1024, MIB))
    peer.says(b"{", *[b"x" * 8192] * 32)
    assert (await failing(small))[1].code == "provider_bad_answer"
    peer.says(b"{", *[b"x" * 8192] * 32, content_type="application/json")
    assert (await failing(small))[1].code == "provider_bad_answer"
    await small.aclose()


# -- odd answers ---------------------------------------------------------------------------------------------

ODD = {
    "empty candidates": [{"candidates": []}, {"candidates": None}, chunk(text("a")), STOP],
    "an empty chunk": [{}, chunk(text("a")), STOP],
    "no content": [
        {"candidates": [{"content": None}]},
        {"candidates": [{"content": {"parts": None}}]},
        chunk(text("a")),
        STOP,
    ],
    "no index": [{"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]}],
    "several parts a chunk": [chunk(text(""), text("a"), text("", thought=True)), STOP],
    "only usage": [{"usageMetadata": {"promptTokenCount": 1}}, chunk(text("a")), STOP, {"usageMetadata": None}],
    "finishReason twice": [chunk(text("a"), finishReason="STOP"), STOP],
    "text after finishReason": [STOP, chunk(text("a"))],
    "finishReason null": [chunk(text("a"), finishReason=None), STOP],
    "a list of chunks": [[chunk(text("a")), STOP]],
    "the end of another wire": [chunk(text("a")), STOP, b"[DONE]"],
    "half of a surrogate pair": [b'{"candidates":[{"content":{"parts":[{"text":"a"}]},"x":"\\ud83d"}]}', STOP],
    "an error that is none": [{**chunk(text("a")), "error": None}, STOP],
}


@pytest.mark.parametrize("what", ODD)
async def test_an_odd_answer_is_an_answer(peer: WirePeer, provider: GeminiProvider, what: str) -> None:
    peer.says(sse(*ODD[what]))
    events = await said(provider)
    assert of_kind(events, "text_delta") == [("text_delta", {"text": "a"})]
    assert finish(events)[0] == "end_turn"
    assert finish(events).native is None


def as_bytes(whole: bytes) -> Iterator[bytes]:
    return (whole[at : at + 1] for at in range(len(whole)))


WHOLE = sse(
    chunk(text("ä"), call("f", {"a": "ö"}), call("f", {"b": [1, {"c": None}]})),
    chunk(finishReason="STOP", usage={"promptTokenCount": 3}),
)
WIRES = {
    "a byte a packet": list(as_bytes(WHOLE)),
    "CRLF": [WHOLE.replace(b"\n", b"\r\n")],
    "CR": [WHOLE.replace(b"\n", b"\r")],
    "a BOM": [b"\xef\xbb\xbf" + WHOLE],
    "comments": [b": alive\n\n" + WHOLE.replace(b"\n\n", b"\n\n: alive\n\n")],
}


@pytest.mark.parametrize("wire", WIRES)
async def test_bytes_may_come_as_they_like(peer: WirePeer, provider: GeminiProvider, wire: str) -> None:
    peer.says(WHOLE)
    plainly = await said(provider)
    assert [data["args"] for _, data in of_kind(plainly, "tool_args")] == [{"a": "ö"}, {"b": [1, {"c": None}]}]
    peer.says(*WIRES[wire])
    assert await said(provider) == plainly


async def test_two_calls_cut_at_every_byte_are_the_same_two_calls(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(WHOLE)
    plainly = await said(provider)
    for at in range(1, len(WHOLE), 3):
        peer.says(WHOLE[:at], WHOLE[at:])
        assert await said(provider) == plainly


async def test_a_line_of_a_megabyte_is_read(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(sse(chunk(text("x" * MIB), finishReason="STOP")))
    assert len((await said(provider))[0][1]["text"]) == MIB


# -- what is asked -------------------------------------------------------------------------------------------


async def asked(peer: WirePeer, provider: GeminiProvider, **request: Any) -> Any:
    peer.says(sse(chunk(text("a")), STOP))
    await said(provider, {**HELLO, **request})
    return peer.asked[0].json


async def test_a_request_has_its_address_its_key_and_no_time_limit_of_the_sdks(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    assert await asked(peer, provider) == {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "generationConfig": {},
    }
    assert re.match(rf"POST /v1(beta)?/models/{MODEL}:streamGenerateContent\?alt=sse ", peer.asked[0].line)
    assert peer.asked[0].header("x-goog-api-key") == KEY
    assert peer.asked[0].header("accept-encoding") == "identity"
    assert peer.asked[0].header("x-server-timeout") is None


async def test_the_neutral_fields_are_geminis(peer: WirePeer, provider: GeminiProvider) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    body = await asked(
        peer,
        provider,
        messages=[{"role": "system", "content": "Later."}, *HELLO["messages"]],
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        max_tokens=9,
        stop_sequences=["\n"],
        temperature=0.5,
        output_schema=schema,
        tools=[
            {"name": "f", "description": "d", "input_schema": schema},
            {"google_search": {}},
            {"type": "url_context"},
        ],
        tool_choice={"type": "tool", "name": "f"},
        thinking={"type": "enabled", "budget_tokens": 128},
        effort="high",
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Later."}]}
    config = body["generationConfig"]
    assert (config["maxOutputTokens"], config["stopSequences"], config["temperature"]) == (9, ["\n"], 0.5)
    assert (config["responseMimeType"], config["responseJsonSchema"]) == ("application/json", schema)
    assert config["thinkingConfig"] == {"include_thoughts": True, "thinking_budget": 128}
    [functions] = [tool["functionDeclarations"] for tool in body["tools"] if "functionDeclarations" in tool]
    assert [(one["name"], one["description"]) for one in functions] == [("f", "d")]
    assert schema in functions[0].values()
    assert [{"googleSearch": {}} in body["tools"], {"urlContext": {}} in body["tools"]] == [True, True]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}}


@pytest.mark.parametrize(
    ("request_", "config"),
    [
        ({"effort": "low"}, {"thinking_level": "LOW"}),
        ({"effort": "max", "thinking": {"type": "adaptive"}}, {"include_thoughts": True, "thinking_level": "XHIGH"}),
        ({"effort": "none"}, {"thinking_budget": 0}),
        ({"thinking": {"type": "disabled"}}, {"thinking_budget": 0}),
        ({"thinking": {"type": "adaptive"}}, {"include_thoughts": True}),
    ],
)
async def test_thinking_and_effort_are_a_budget_or_a_level(
    peer: WirePeer, provider: GeminiProvider, request_: Any, config: Any
) -> None:
    assert (await asked(peer, provider, **request_))["generationConfig"]["thinkingConfig"] == config


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
TURN = [
    {"type": "thinking", "thinking": "hm", "signature": "s"},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
    {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
]
RESULTS = [
    {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
    {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": [{"type": "text", "text": "two"}, IMAGE]},
    {"type": "text", "text": "Go on."},
]


async def test_a_turn_of_another_model_is_text_calls_and_results(peer: WirePeer, provider: GeminiProvider) -> None:
    elsewhere = {"provider": "openai", "model": "gpt", "content": [{"type": "reasoning"}]}
    turn = {"role": "assistant", "native": elsewhere, "content": TURN}
    body = await asked(peer, provider, messages=[*HELLO["messages"], turn, {"role": "user", "content": RESULTS}])
    assert body["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {"text": "I look."},
                {
                    "functionCall": {"id": "t1", "name": "f", "args": {"a": 1}},
                    "thoughtSignature": "skip_thought_signature_validator",
                },
                {"functionCall": {"id": "t2", "name": "f", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "t1", "name": "f", "response": {"output": "one"}}},
                {
                    "functionResponse": {
                        "id": "t2",
                        "name": "f",
                        "response": {"error": "two"},
                        "parts": [{"inlineData": {"mimeType": "image/png", "data": "aGk="}}],
                    }
                },
                {"text": "Go on."},
            ],
        },
    ]


async def test_its_own_turn_goes_back_as_it_was_said(peer: WirePeer, provider: GeminiProvider) -> None:
    """Byte for byte: the SDK would write a signature in another alphabet, and refuse keys that it does not know."""
    parts = [
        {"text": "I look.", "thoughtSignature": "a+b/c=="},
        {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "a+b/d=="},
        {"functionCall": {"id": "theirs", "name": "f", "args": {}}},
        {"aNewPart": {"x": 1}},
    ]
    turn = {"role": "assistant", "native": {"provider": "gemini", "model": MODEL, "content": parts}, "content": TURN}
    body = await asked(peer, provider, messages=[*HELLO["messages"], turn, {"role": "user", "content": RESULTS}])
    assert body["contents"][1] == {"role": "model", "parts": parts}
    responses = [part["functionResponse"] for part in body["contents"][2]["parts"] if "functionResponse" in part]
    assert [(one.get("id"), one["name"]) for one in responses] == [(None, "f"), ("theirs", "f")]


async def test_results_of_calls_without_ids_are_sent_in_the_order_of_the_calls(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    """Nothing else tells the model which is whose."""
    parts = [{"functionCall": {"name": "f", "args": {"n": n}}} for n in range(3)]
    uses = [{"type": "tool_use", "id": f"call_{n}", "name": "f", "input": {"n": n}} for n in range(3)]
    turn = {"role": "assistant", "native": {"provider": "gemini", "model": MODEL, "content": parts}, "content": uses}
    results = [{"type": "tool_result", "tool_use_id": f"call_{n}", "content": str(n)} for n in (2, 0, 1)]
    body = await asked(peer, provider, messages=[*HELLO["messages"], turn, {"role": "user", "content": results}])
    sent = [part["functionResponse"]["response"]["output"] for part in body["contents"][2]["parts"]]
    assert sent == ["0", "1", "2"]


async def test_a_call_that_was_cut_off_does_not_go_back(peer: WirePeer, provider: GeminiProvider) -> None:
    begun = {"functionCall": {"name": "f", "willContinue": True}}
    peer.says(sse(chunk(text("a"), call("g", {}), begun, finishReason="MAX_TOKENS")))
    events = await said(provider)
    assert finish(events).stop_reason == "max_tokens"
    assert [set(part) for part in finish(events).native] == [{"text"}, {"functionCall"}]


async def test_a_call_that_nobody_ends_is_whole_when_the_next_one_begins(
    peer: WirePeer, provider: GeminiProvider
) -> None:
    begun = {"functionCall": {"name": "f", "args": {"a": 1}, "willContinue": True}}
    peer.says(sse(chunk(begun, call("g", {})), STOP))
    args = of_kind(await said(provider), "tool_args")
    assert [(data["tool"], data["args"]) for _, data in args] == [("f", {"a": 1}), ("g", {})]


async def test_images_and_documents_are_data_or_files(peer: WirePeer, provider: GeminiProvider) -> None:
    def document(**source: str) -> dict[str, Any]:
        return {"type": "document", "title": "T", "source": source}

    content = [
        IMAGE,
        {"type": "image", "source": {"type": "url", "url": "https://x/y.webp?z"}},
        document(type="url", url="https://x/y"),
        document(type="text", data="words", media_type="text/plain"),
    ]
    body = await asked(peer, provider, messages=[{"role": "user", "content": content}])
    assert body["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": "aGk="}},
        {"fileData": {"mimeType": "image/webp", "fileUri": "https://x/y.webp?z"}},
        {"text": "Document: T"},
        {"fileData": {"mimeType": "application/pdf", "fileUri": "https://x/y"}},
        {"text": "Document: T"},
        {"text": "words"},
    ]


async def test_options_are_laid_over_and_extra_body_over_all(peer: WirePeer, provider: GeminiProvider) -> None:
    options = {
        "max_output_tokens": 5,
        "top_k": 3,
        "thinking_config": {"thinking_budget": 7},
        "continuation_token": base64.b64encode(b"\xfb\xff").decode(),
        "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        "extra_body": {"generationConfig": {"aNewOne": 1}},
    }
    body = await asked(
        peer, provider, max_tokens=9, thinking={"type": "adaptive"}, provider_options={"gemini": options, "openai": 1}
    )
    config = body["generationConfig"]
    assert (config["maxOutputTokens"], config["topK"], config["aNewOne"]) == (5, 3, 1)
    assert config["thinkingConfig"] == {"include_thoughts": True, "thinking_budget": 7}
    assert body["safetySettings"] == [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    assert base64.urlsafe_b64decode(body["continuationToken"]) == b"\xfb\xff"


SECRET = "a person's words"


def gemini(**options: Any) -> dict[str, Any]:
    return {"provider_options": {"gemini": options}}


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "content": [{"type": SECRET}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": [{"type": SECRET}]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": SECRET}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    ({"tools": [{"type": "google_search", "no": SECRET}]}, "tools[0].google_search.no"),
    ({"tool_choice": {"type": SECRET}}, "tool_choice.type"),
    ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, "tool_choice.disable_parallel_tool_use"),
    ({"effort": SECRET}, "effort"),
    ({"thinking": {"type": SECRET}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "budget_tokens": SECRET}}, "thinking_config.thinking_budget"),
    (gemini(no_such=SECRET), "provider_options.gemini.no_such"),
    (gemini(top_k=SECRET), "provider_options.gemini.top_k"),
    (gemini(tools=[{"no_such": SECRET}]), "provider_options.gemini.tools"),
    (gemini(http_options={"base_url": SECRET}), "provider_options.gemini.http_options"),
    (gemini(httpOptions={"baseUrl": SECRET}), "provider_options.gemini.http_options"),
    (gemini(extra_body={"contents": SECRET}), "provider_options.gemini.contents"),
    (gemini(extra_body=SECRET), "provider_options.gemini.extra_body"),
    ({"provider_options": {"gemini": SECRET}}, "provider_options.gemini"),
    (gemini(audio_timestamp=True), "audio_timestamp"),
]


@pytest.mark.parametrize(("request_", "place"), INVALID, ids=[place for _, place in INVALID])
async def test_what_it_cannot_take_is_named_by_its_place_and_not_repeated(
    peer: WirePeer, provider: GeminiProvider, request_: dict[str, Any], place: str
) -> None:
    peer.says(sse(STOP))
    events, failure = await failing(provider, {**HELLO, **request_})
    assert (events, failure.code, failure.retryable) == ([], "invalid_input", False)
    assert place in failure.message
    assert SECRET not in failure.message
    assert peer.asked == []


@pytest.mark.parametrize("model", ["", "../x", "x?y=z"])
async def test_a_name_that_no_model_has_is_invalid(peer: WirePeer, provider: GeminiProvider, model: str) -> None:
    with pytest.raises(ProviderFailure) as caught:
        _ = [one async for one in provider.stream(model, HELLO)]
    assert caught.value.code == "invalid_input"


async def test_an_image_of_32_mib_goes_as_it_was_given(peer: WirePeer, provider: GeminiProvider) -> None:
    """By the SDK's types it would be decoded, copied and encoded again, for half a second of everybody's."""
    data = "a" * (32 * MIB)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    peer.says(sse(chunk(text("a")), STOP))
    await said(provider, {"messages": [{"role": "user", "content": [image]}]})
    assert len(peer.asked[0].body) < 33 * MIB
    assert data.encode() in peer.asked[0].body
    peer.asked.clear()


# -- credentials and connections -----------------------------------------------------------------------------


def everything_of(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


@pytest.mark.parametrize("key", ["AIzaSécret", "AIza\nSecret"])
async def test_a_key_that_is_none_is_in_no_error(peer: WirePeer, key: str) -> None:
    provider = GeminiProvider(api_key=key, base_url=peer.url, silence_s=5)
    failure = (await failing(provider))[1]
    assert failure.code == "provider_unauthorized"
    assert all("AIza" not in f"{error!r}" for error in everything_of(failure))
    await provider.aclose()


async def test_a_refusal_keeps_no_key_in_its_causes(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.refuses(400, {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "no"}})
    assert list(map(type, everything_of((await failing(provider))[1]))) == [ProviderFailure]


async def test_no_key_is_said_by_the_variables_that_would_hold_it() -> None:
    provider = GeminiProvider(silence_s=5)
    await provider.warm_up()
    failure = (await failing(provider))[1]
    assert (failure.code, failure.moves_on) == ("provider_unauthorized", True)
    assert "GEMINI_API_KEY" in failure.message
    await provider.aclose()


async def test_loopback_is_asked_directly_whatever_proxy_there_is(
    peer: WirePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    provider = GeminiProvider(api_key=KEY, base_url=peer.url, silence_s=5)
    assert (await asked(peer, provider))["contents"]
    await provider.aclose()


async def test_a_server_of_ones_own_is_sent_nothing_that_is_googles(
    peer: WirePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    provider = GeminiProvider(base_url=peer.url, silence_s=5, name="mine")
    await asked(peer, provider)
    assert "/models/" in peer.asked[0].line
    assert "/publishers/" not in peer.asked[0].line
    assert KEY.encode() not in peer.asked[0].head
    await provider.aclose()


async def test_vertex_has_its_own_address_and_form(peer: WirePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", peer.url)
    provider = GeminiProvider(api_key=KEY, silence_s=5)
    body = await asked(peer, provider, **gemini(audio_timestamp=True))
    assert peer.asked[0].line.startswith(
        f"POST /v1beta1/publishers/google/models/{MODEL}:streamGenerateContent?alt=sse"
    )
    assert body["generationConfig"] == {"audioTimestamp": True}
    await provider.aclose()


async def test_a_warm_provider_has_made_a_connection_and_asked_nothing(peer: WirePeer) -> None:
    provider = GeminiProvider(api_key=KEY, base_url=peer.url, silence_s=5)
    peer.says(sse(STOP))
    await provider.warm_up()
    assert [(one.line, one.header("x-goog-api-key")) for one in peer.asked] == [("HEAD / HTTP/1.1", None)]
    await provider.aclose()


async def test_a_check_is_one_cheap_question(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(b'{"models":[]}', content_type="application/json")
    await provider.check()
    [one] = peer.asked
    assert re.match(r"GET /v1(beta)?/models\?pageSize=1 ", one.line)
    peer.refuses(
        400, {"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}
    )
    with pytest.raises(ProviderFailure) as caught:
        await provider.check()
    assert caught.value.code == "provider_unauthorized"


async def test_an_answer_to_a_listener_that_left_is_closed(peer: WirePeer, provider: GeminiProvider) -> None:
    peer.says(sse(chunk(text("a"))), end="hold")
    generator = provider.stream(MODEL, HELLO)
    assert await anext(generator) == ("text_delta", {"text": "a"})
    [writer] = peer.writers
    await generator.aclose()
    with anyio.fail_after(5):
        await writer.wait_closed()


async def test_answers_at_the_same_time_are_not_mixed_up(peer: WirePeer, provider: GeminiProvider) -> None:
    """Each is handed over by the request's own context."""
    peer.says(sse(chunk(text("a")), STOP))
    many = await asyncio.gather(
        *(said(provider, {"messages": [{"role": "user", "content": str(n)}]}) for n in range(20))
    )
    assert all(len(events) == 2 for events in many)
    assert sorted(int(one.json["contents"][0]["parts"][0]["text"]) for one in peer.asked) == list(range(20))


# -- the SDK's types -----------------------------------------------------------------------------------------

SDKS_OWN = {"sdkHttpResponse", "automaticFunctionCallingHistory", "parsed"}  # it adds them to what the wire says


def places(model: Any, documented: Iterable[str], before: str = "") -> Iterator[str]:
    """Each field's path in a chunk, down to where docs/PROVIDERS.md speaks of the whole."""
    for name, field in model.model_fields.items():
        path = before + (field.alias or name)
        inner = next((one for one in _inner(field.annotation) if hasattr(one, "model_fields")), None)
        if inner and any(one.startswith(f"{path}.") for one in documented):
            yield from places(inner, documented, f"{path}.")
        else:
            yield path


def _inner(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in get_args(hint):
        yield from _inner(argument)


def test_every_field_of_the_sdks_answer_is_in_the_table() -> None:
    paths = {says for says in documented("gemini") if not says.isupper()}
    assert set(places(types.GenerateContentResponse, paths)) - SDKS_OWN - paths == set()


def test_every_finish_reason_is_in_the_table_with_its_meaning() -> None:
    table = {says: becomes for says, becomes in documented("gemini").items() if says.isupper()}
    meanings = STOP_REASONS | dict.fromkeys(BAD_ANSWERS, "provider_bad_answer")
    assert table.keys() == meanings.keys() >= {reason.value for reason in types.FinishReason}
    assert all(f"`{meanings[says]}`" in becomes for says, becomes in table.items())


# -- the stand-in --------------------------------------------------------------------------------------------

HELD = {
    "tokens=20 rate=0 ttft_ms=0 thinking=3 citations=2 cached=50": "end_turn",
    "tokens=5 rate=0 ttft_ms=0 tools=2 parallel=1 call_ids=0 line_end=torn": "tool_use",
    "tokens=5 rate=0 ttft_ms=0 max=1 piece=1": "max_tokens",
    "tokens=5 rate=0 ttft_ms=0 refuse=1": "refusal",
    "tokens=5 rate=0 ttft_ms=0 surrogate_at=2": "end_turn",
}
BROKEN = {
    "tokens=5 rate=0 ttft_ms=0 error_at=2": "provider_overloaded",
    "tokens=5 rate=0 ttft_ms=0 error_at=0 error=api_error": "provider_error",
    "tokens=5 rate=0 ttft_ms=0 cut_at=2": "provider_cut",
    "tokens=5 rate=0 ttft_ms=0 end_at=2": "provider_cut",
    "tokens=5 rate=0 ttft_ms=0 garbage_at=2": "provider_bad_answer",
    "tokens=5 rate=0 ttft_ms=0 gzip=1": "provider_bad_answer",
    "overload=1 retry_after=7": "provider_overloaded",
    "status=401": "provider_unauthorized",
    "status=200": "provider_bad_answer",
}


@pytest.fixture(scope="module")
async def of_standin() -> AsyncIterator[GeminiProvider]:
    standin = StandIn()
    provider = GeminiProvider(api_key="stand-in", base_url=standin.base_url, silence_s=5)
    yield provider
    await provider.aclose()
    standin.close()


@pytest.mark.parametrize("directives", HELD)
async def test_the_stand_in_is_understood(of_standin: GeminiProvider, directives: str) -> None:
    events = await said(of_standin, {"messages": [{"role": "user", "content": f"[[{directives}]]"}]})
    assert finish(events).stop_reason == HELD[directives]
    if "citations" in directives:
        whole = "".join(data["text"] for _, data in of_kind(events, "text_delta"))
        found = [data for _, data in of_kind(events, "citation")]
        assert [whole[one["start"] : one["end"]] for one in found] == [one["cited_text"] for one in found]
        assert len(found) == 2
        assert len(of_kind(events, "thinking_delta")) == 3
        assert finish(events).usage["cache_read_input_tokens"] == 50


@pytest.mark.parametrize("directives", BROKEN)
async def test_a_fault_of_the_stand_ins_is_a_failure_with_its_code(of_standin: GeminiProvider, directives: str) -> None:
    request = {"messages": [{"role": "user", "content": f"[[{directives}]]"}]}
    assert (await failing(of_standin, request))[1].code == BROKEN[directives]
