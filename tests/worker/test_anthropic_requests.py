"""What Anthropic's API is sent: requests as they are on the wire, the next turn, options, credentials."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.rig.wire_peer import WirePeer, sse, wire_peer
from tests.worker.anthropic_events import (
    ASKED,
    SEARCH,
    THOUGHT,
    begin,
    block,
    call,
    delta,
    end,
    failure,
    said,
    shown,
    stop,
    text,
    turn_of,
)
from worker.providers.anthropic import AnthropicProvider
from worker.providers.failures import ProviderFailure


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


@pytest.fixture(scope="module")
async def provider(peer: WirePeer) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(api_key="sk-secret", base_url=peer.url, silence_s=10)
    yield provider
    await provider.aclose()


async def test_the_next_turn_says_the_last_one_byte_for_byte(peer: WirePeer, provider: AnthropicProvider) -> None:
    citation = {
        "type": "web_search_result_location",
        "url": "https://a/",
        "title": "A",
        "cited_text": "x",
        "encrypted_index": "E",
    }
    cited = [
        block(4, "text", text=""),
        delta(4, "text_delta", text="So."),
        delta(4, "citations_delta", citation=citation),
        stop(4),
    ]
    redacted = [block(1, "redacted_thinking", data="cmVk"), stop(1)]
    search = [{**event, "index": event["index"] + 2} for event in SEARCH]
    peer.says(
        sse(
            begin(), *THOUGHT, *redacted, *search, *cited, *text(5, "\n"), *call(6, "t_1", '{"a": 1}'), *end("tool_use")
        )
    )
    events, finish = await said(provider)
    message = turn_of(events, finish)
    peer.says(sse(begin(), *text(0, "x"), *end()))
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t_1", "content": "9"}]}
    asked = [*ASKED["messages"], message, result]
    await said(provider, messages=asked)
    sent = peer.asked[0].json["messages"]
    assert sent[0] == ASKED["messages"][0]
    assert sent[2] == result
    assert sent[1] == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm. Yes.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "cmVk"},
            {"type": "server_tool_use", "id": "srv_1", "name": "look", "input": {"query": "x"}},
            search[3]["content_block"],
            {"type": "text", "text": "So.", "citations": [citation]},
            {"type": "tool_use", "id": "t_1", "name": "look", "input": {"a": 1}},
        ],
    }
    peer.says(sse(begin(), *text(0, "x"), *end()))
    await said(provider, "another-model", messages=asked)
    others = peer.asked[0].json["messages"][1]["content"]
    assert others == sent[1]["content"][2:]


FIELDS: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "max_tokens": 0,
    "tools": [
        {
            "name": "look",
            "description": "Looks.",
            "input_schema": {"type": "object"},
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    ],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "stop_sequences": ["END"],
    "temperature": 0,
    "messages": [
        {
            "role": "user",
            "content": [{"type": "document", "source": {"type": "url", "url": "https://a/"}, "title": "A"}],
        },
        {"role": "system", "content": "Now in French."},
        {"role": "assistant", "content": [{"type": "a_block_of_next_year", "x": 1}]},
    ],
}


async def test_every_field_reaches_the_api_as_it_is(peer: WirePeer, provider: AnthropicProvider) -> None:
    peer.says(sse(begin(), *text(0, "x"), *end()))
    await said(provider, "org/model[1m]", **FIELDS)
    assert peer.asked[0].json == {"model": "org/model[1m]", "stream": True, **FIELDS}
    assert peer.asked[0].line.startswith("POST /v1/messages HTTP")


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"effort": "xhigh"}, {"output_config": {"effort": "xhigh"}}),
        ({"effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"effort": "none", "thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        (
            {"output_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}},
            {
                "output_config": {
                    "format": {
                        "type": "json_schema",
                        "schema": {
                            "type": "object",
                            "properties": {"n": {"type": "integer", "description": "{minimum: 1}"}},
                            "additionalProperties": False,
                        },
                    }
                }
            },
        ),
        (
            {"output_schema": {"type": ["object", "null"]}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": ["object", "null"]}}}},
        ),
        (
            {"effort": "low", "provider_options": {"anthropic": {"output_config": {"effort": "max"}, "max_tokens": 3}}},
            {"output_config": {"effort": "max"}, "max_tokens": 3},
        ),
        (
            {"provider_options": {"anthropic": {"service_tier": "auto", "metadata": {"user_id": "u"}}}},
            {"service_tier": "auto", "metadata": {"user_id": "u"}},
        ),
        ({"provider_options": {"anthropic": {"extra_body": {"new": [1]}}, "openai": {"x": 1}}}, {"new": [1]}),
    ],
)
async def test_what_has_another_name_here_gets_the_apis(
    peer: WirePeer, provider: AnthropicProvider, asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    peer.says(sse(begin(), *text(0, "x"), *end()))
    await said(provider, **asked)
    assert peer.asked[0].json == {"model": "some-model", "stream": True, **ASKED, **sent}


async def test_beta_parameters_go_where_the_sdk_sends_them(peer: WirePeer, provider: AnthropicProvider) -> None:
    options = {
        "mcp_servers": [{"type": "url", "name": "books", "url": "https://a/"}],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "container": {"skills": [{"type": "anthropic", "skill_id": "pdf"}]},
        "fallbacks": [{"model": "claude-y"}],
    }
    headers = {"betas": ["mcp-client-2025-11-20", "new-2026-01-01"], "workspace_id": "wrkspc_1"}
    peer.says(sse(begin(), *text(0, "x"), *end()))
    await said(provider, provider_options={"anthropic": {**options, **headers}})
    asked = peer.asked[0]
    assert asked.line.startswith("POST /v1/messages?beta=true HTTP")
    assert asked.header("anthropic-beta") == "mcp-client-2025-11-20,new-2026-01-01"
    assert asked.header("anthropic-workspace-id") == "wrkspc_1"
    assert asked.json == {"model": "some-model", "stream": True, **ASKED, **options}


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"sk-secret": 1}, "provider_options.anthropic.sk-"),
        ({"metadata": {"user_id": 5}}, "provider_options.anthropic.metadata.user_id"),
        ({"mcp_servers": [{"type": "url", "name": "sk-secret"}]}, "provider_options.anthropic.mcp_servers[0].url"),
        ({"model": "sk-secret"}, "provider_options.anthropic.model"),
        ({"extra_body": {"model": "sk-secret"}}, "provider_options.anthropic.model"),
        ({"betas": ["sk-secret\r\nx: y"]}, "provider_options.anthropic.betas"),
        ("sk-secret", "provider_options.anthropic"),
    ],
)
async def test_options_that_the_sdk_does_not_know_are_refused_with_their_place(
    peer: WirePeer, provider: AnthropicProvider, options: Any, place: str
) -> None:
    peer.says()
    _, failed = await failure(provider, provider_options={"anthropic": options})
    assert (failed.code, failed.retryable, peer.asked) == ("invalid_input", False, [])
    assert place in failed.message
    assert "secret" not in failed.message


# -- credentials --------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No credentials at all; where profiles are looked for."""
    for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "credentials").mkdir()
    return tmp_path


def profile(folder: Path, url: str, access_token: str) -> None:
    config = {"version": "1.0", "base_url": url, "authentication": {"type": "user_oauth", "client_id": "c"}}
    (folder / "configs" / "default.json").write_text(json.dumps(config))
    token = {"version": "1.0", "type": "oauth_token", "access_token": access_token, "refresh_token": "r-secret"}
    path = folder / "credentials" / "default.json"
    path.write_text(json.dumps({**token, "expires_at": 4_000_000_000}))
    path.chmod(0o600)


async def test_a_token_of_the_environment_is_a_credential(
    peer: WirePeer, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_CONFIG_DIR")
    monkeypatch.setenv("HOME", str(bare))
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "t-secret")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", peer.url)
    provider = AnthropicProvider(silence_s=10)
    peer.says(sse(begin(), *text(0, "x"), *end()))
    await said(provider)
    assert peer.asked[0].header("authorization") == "Bearer t-secret"
    await provider.aclose()


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", None])
async def test_anthropics_credentials_go_to_no_other_server(
    peer: WirePeer, bare: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    profile(bare, "http://127.0.0.1:1", "t-secret")
    if variable:
        monkeypatch.setenv(variable, "k-secret")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gateway: h-secret")
    own = AnthropicProvider(base_url=peer.url, silence_s=10)
    peer.says(sse(begin(), *text(0, "x"), *end()))
    await said(own)
    await own.aclose()
    assert b"secret" not in peer.asked[-1].head


def header(head: str, name: str) -> str:
    found = re.search(rf"(?im)^{name}: (.*?)\r$", head)
    return found[1] if found else ""


async def test_a_profiles_token_is_renewed_once_when_it_is_refused(bare: Path) -> None:
    asked: list[tuple[str, str]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await reader.readexactly(int(header(head, "content-length")))
            asked.append((head.split()[1], header(head, "authorization")))
            status, kind, body = 401, "application/json", b'{"type":"error","error":{"type":"authentication_error"}}'
            if asked[-1][0] == "/v1/oauth/token":
                status, body = 200, b'{"access_token":"new","expires_in":3600}'
            elif asked[-1][1] == "Bearer new":
                status, kind, body = 200, "text/event-stream", sse(begin(), *text(0, "x"), *end())
            head = f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        profile(bare, url, "old")
        provider = AnthropicProvider(silence_s=10)
        events, _ = await said(provider)
        await said(provider)
        await provider.aclose()
    assert shown(events) == [("text_delta", {"text": "x"})]
    assert asked == [
        ("/v1/messages", "Bearer old"),
        ("/v1/oauth/token", ""),
        ("/v1/messages", "Bearer new"),
        ("/v1/messages", "Bearer new"),
    ]


async def test_a_profile_that_cannot_be_used_fails_attempts_and_not_the_worker(
    peer: WirePeer, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_PROFILE", "nobody")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", peer.url)
    provider = AnthropicProvider(silence_s=10)
    await provider.warm_up()
    _, failed = await failure(provider)
    with pytest.raises(ProviderFailure, match="credentials"):
        await provider.check()
    await provider.aclose()
    assert (failed.code, failed.moves_on) == ("provider_unauthorized", True)


async def test_a_refused_renewal_is_unauthorized_and_a_failed_one_is_tried_again(peer: WirePeer, bare: Path) -> None:
    for status, code in ((400, "provider_unauthorized"), (503, "provider_error")):
        profile(bare, peer.url, "old")
        path = bare / "credentials" / "default.json"
        path.write_text(path.read_text().replace("4000000000", "1000"))
        provider = AnthropicProvider(silence_s=10)
        peer.refuses(status, {"error": "invalid_grant", "error_description": "r-secret"})
        _, failed = await failure(provider)
        await provider.aclose()
        assert (failed.code, peer.asked[0].line.split()[1]) == (code, "/v1/oauth/token")
        assert "secret" not in failed.message
