"""What one caller may have: viewers of a token, a subject, a tenant and a stream; how often a token connects; what a
tenant may start, and how much of it. And that LASTEVENT_LIMITS=observe refuses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from broker.auth import Audience, Grant
from broker.errors import RateLimited, TooManyViewers
from broker.log.keys import Keys
from broker.tenants.enforcement import Enforcement
from broker.tenants.limits import NAMES, Limits, TenantLimits
from broker.tenants.scopes import READ
from broker.tenants.token import ANYONE, Token
from broker.web.addresses import AddressPlaces
from broker.web.places import Places
from broker.web.rates import ConnectRate, UnauthorizedGate
from tests.rig.deployment import Deployment, wait_until
from tests.web.callers import SOMEWHERE, ask, served
from tests.web.wire import Api, Exchange, ids, problem

KEY = "a-key-of-at-least-thirty-two-characters"


@pytest.fixture
def limited(own_deployment: Callable[..., Deployment]) -> Deployment:
    limits = {"VIEWERS_PER_TOKEN": "3", "VIEWERS_PER_STREAM": "5", "CONNECTS_PER_MINUTE": "20"}
    settings = {f"LASTEVENT_{name}": value for name, value in limits.items()}
    return own_deployment(servers=1, workers=0, LASTEVENT_API_KEYS=KEY, **settings)


def test_a_token_has_so_many_places_and_others_keep_theirs(limited: Deployment, open_api: Callable[..., Api]) -> None:
    owner, phone = open_api(limited.url, KEY), open_api(limited.url)
    sid = owner.start_external()
    url, other_url = (owner.record(sid)["events_url"] for _ in range(2))
    assert url != other_url
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(Exchange(limited.url, "GET", url)).read_until(lambda body: b"queued" in body)
        with Exchange(limited.url, "GET", url) as refused:
            said = refused.read_to_end()
        assert refused.status == 200
        assert not refused.is_complete
        found = re.fullmatch(rb"retry: (\d+)\n: too_many_viewers\n", said)
        assert found
        assert 10_000 <= int(found[1]) <= 20_000
        answer = phone.get(url, headers={"Accept": "application/x-ndjson"})
        assert problem(answer, 429, "too_many_viewers")["limit"] == "token"
        # Another token of the same stream has places, until the stream has none.
        for _ in range(2):
            held.enter_context(Exchange(limited.url, "GET", other_url)).read_until(lambda body: b"queued" in body)
        for path in (f"/v1/streams/{sid}/events", f"/v1/streams/{sid}/replay?speed=0.001"):
            answer = owner.get(path, headers={"Accept": "application/x-ndjson"})
            assert problem(answer, 429, "too_many_viewers")["limit"] == "stream"
        another = owner.finished("a")
        assert owner.get(f"/v1/streams/{another}/events").status_code == 200
    wait_until(lambda: _viewers(owner) == 0, "all have left")
    with Exchange(limited.url, "GET", url) as viewer:
        assert ids(viewer.read_until(lambda body: b"queued" in body)) == [1]


def _viewers(owner: Api) -> float:
    found = re.findall(r"^lastevent_viewers\{\S+ (\S+)", owner.get("/metrics").text, re.MULTILINE)
    assert found
    return sum(map(float, found))


def test_a_token_that_connects_too_often_is_sent_away_for_longer(
    limited: Deployment, open_api: Callable[..., Api]
) -> None:
    owner, phone = open_api(limited.url, KEY), open_api(limited.url)
    sid = owner.finished("a")
    url = owner.record(sid)["events_url"]
    told = []
    for _ in range(60):  # in two minutes at the most, which may have 40
        with Exchange(limited.url, "GET", url) as viewer:
            told.append(viewer.read_to_end())
            assert viewer.status == 200
    served = [body for body in told if b"event: done" in body]
    assert 20 <= len(served) <= 40
    for body in told:
        found = re.fullmatch(rb"retry: (\d+)\n: rate_limited\n", body)
        assert found or body in served
        assert not found or 10_000 <= int(found[1]) <= 20_000
    answer = phone.get(url.replace("/events", "/text"))
    assert problem(answer, 429, "rate_limited")["limit"] == "connects_per_minute"
    assert 10 <= int(answer.headers["retry-after"]) <= 20
    assert owner.get(f"/v1/streams/{sid}/text").text == "a"


def test_calls_are_counted_a_minute_and_a_token() -> None:
    now = 30.0
    rate = ConnectRate(2, Enforcement(), lambda: now)
    for token in ("a", "a", "b"):
        rate.require(token)
    with pytest.raises(RateLimited) as refused:
        rate.require("a")
    assert refused.value.limit == "connects_per_minute"
    rate.require("b")
    now = 60.0
    rate.require("a")


# -- viewers -------------------------------------------------------------------------------------------------


def token_of(subject: str, name: str, tenant: str = "acme", issuer: str = "lastevent") -> Grant:
    held = Token(name, issuer, tenant, subject, frozenset({READ}), 0, 2**40, own=True)
    return Grant(tenant, f"user:{subject}", held.scopes, held, Audience.PUBLIC)


def places(redis: Redis, *, observes: bool = False, **given: int) -> tuple[Places, Enforcement]:
    enforcement = Enforcement(observes=observes)
    bounds = {"limit": 100, "per_stream": 100, "per_token": 100, "per_subject": 100, **given}
    limits = TenantLimits(redis, Keys().limits, Limits(viewers=bounds.pop("per_tenant", 100)))
    return Places(**bounds, limits=limits, enforcement=enforcement), enforcement


async def refused(places: Places, grant: Grant, sid: str = "s") -> str:
    """By which limit; empty: it has a place now."""
    try:
        await places.require(grant, sid)
    except TooManyViewers as full:
        return full.limit
    places.take(grant, sid)
    return ""


async def test_a_subject_has_so_many_viewers_with_all_its_tokens(redis: Redis) -> None:
    few, _ = places(redis, per_subject=2)
    assert [await refused(few, token_of("ann", name)) for name in "abc"] == ["", "", "subject"]
    assert await refused(few, token_of("bob", "d")) == ""
    assert await refused(few, token_of("ann", "e", tenant="other")) == "", "another tenant's ann is somebody else"
    few.free(token_of("ann", "a"), "s")
    assert await refused(few, token_of("ann", "c")) == ""
    assert [await refused(few, token_of(ANYONE, name)) for name in "wxyz"] == [""] * 4
    called_so = [token_of(ANYONE, name, issuer="https://login.example.com/") for name in "123"]
    assert [await refused(few, user) for user in called_so] == ["", "", "subject"], "a user of others may choose a name"


async def test_a_tenant_has_so_many_viewers_and_others_theirs(redis: Redis) -> None:
    few, _ = places(redis, per_tenant=2)
    key = Grant("acme", "key:1")
    assert [await refused(few, grant) for grant in (key, token_of("ann", "a"), key)] == ["", "", "tenant"]
    assert await refused(few, Grant("other", "key:2")) == ""
    assert [await refused(few, Grant("default", "key:3")) for _ in range(5)] == [""] * 5


async def test_all_viewers_of_the_process_are_bounded_whatever_is_observed(redis: Redis) -> None:
    few, enforcement = places(redis, limit=1, observes=True)
    assert [await refused(few, Grant("default")) for _ in range(2)] == ["", "process"]
    assert not enforcement.counts


# -- what a tenant starts ------------------------------------------------------------------------------------

EXTERNAL = {"producer": "external"}


async def start(app: FastAPI, body: Any = EXTERNAL, **headers: str) -> httpx.Response:
    return await ask(app, "POST", "/v1/streams", body, **headers)


async def end(app: FastAPI, *sids: str) -> None:
    for sid in sids:
        assert (await ask(app, "POST", f"/v1/streams/{sid}/cancel")).status_code == 200


async def test_creations_are_counted_once_each_and_only_if_they_start_something(redis: Redis, valkey_url: str) -> None:
    async with served(valkey_url) as app:
        await app.state.tier.limits.set("default", {"creations_per_minute": 3})
        first = (await start(app, {"prompt": "a"}, idempotency_key="k")).json()["id"]
        for _ in range(3):
            repeated = await start(app, {"prompt": "a"}, idempotency_key="k")
            assert (repeated.status_code, repeated.json()["id"]) == (200, first)
            assert (await start(app, {"nonsense": 1})).status_code == 422
        second = await ask(app, "POST", f"/v1/streams/{first}/regenerate")
        third = await start(app)
        assert (second.status_code, third.status_code) == (201, 201)
        known = await redis.zcard(Keys().streams("default"))
        for refused in (
            await start(app),
            await start(app, idempotency_key="another"),
            await ask(app, "POST", f"/v1/streams/{first}/regenerate"),
        ):
            assert problem(refused, 429, "rate_limited")["limit"] == "creations_per_minute"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await start(app, {"prompt": "a"}, idempotency_key="k")).status_code == 200
        assert await redis.zcard(Keys().streams("default")) == known
        await end(app, first, second.json()["id"], third.json()["id"])
        await app.state.tier.limits.set("default", {"creations_per_minute": None})


async def test_external_streams_beyond_those_that_may_run_are_refused_until_one_ends(
    redis: Redis, valkey_url: str
) -> None:
    async with served(valkey_url) as app:
        await app.state.tier.limits.set("default", {"streams_running": 2})
        one, two = [(await start(app)).json()["id"] for _ in range(2)]
        for refused in (await start(app), await start(app, idempotency_key="k")):
            assert problem(refused, 429, "too_many_streams")["limit"] == "streams_running"
            assert refused.headers["retry-after"]
        queued = await start(app, {"prompt": "a"})
        assert queued.status_code == 201, "a worker's stream waits instead"
        done = {"epoch": 1, "events": [{"event": "done", "data": {}}]}
        assert (await ask(app, "POST", f"/v1/streams/{one}/events", done)).status_code == 200
        three = await start(app, idempotency_key="k")
        assert three.status_code == 201, "under the key that was refused"
        assert (await start(app)).status_code == 429
        await end(app, two)
        four = await start(app)
        assert four.status_code == 201
        await end(app, three.json()["id"], four.json()["id"], queued.json()["id"])
        await app.state.tier.limits.set("default", {"streams_running": None})


SETTINGS = {"allowed_models": ("fast", "anthropic/claude-haiku-4-5"), "max_tokens_limit": 100, "default_model": "fast"}
OWN = {"models": ["anthropic/x"], "max_tokens": 50, "agents": ["support"]}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"model": "anthropic/claude-opus-5"}, "unknown_model", "There are fast, anthropic/claude-haiku-4-5."),
        ({"model": ["fast", "anthropic/claude-opus-5"]}, "unknown_model", "not all of these"),
        ({"max_tokens": 101}, "invalid_request", "at most 100"),
        (
            {"provider_options": {"openai": {"extra_body": {"models": ["a/b"]}}}},
            "invalid_request",
            "Give them as model",
        ),
        ({"provider_options": {"openai-chat": {"max_completion_tokens": 101}}}, "invalid_request", "at most 100"),
        (
            {"provider_options": {"gemini": {"extra_body": {"generationConfig": {"maxOutputTokens": 101}}}}},
            "invalid_request",
            "at most 100",
        ),
        ({"provider_options": {"openai-chat": {"max_tokens": " 101"}}}, "invalid_request", "at most 100"),
        ({"provider_options": {"openai-chat": {"n": 2}}}, "invalid_request", "of all answers"),
        (
            {"max_tokens": 30, "provider_options": {"gemini": {"candidate_count": 4}}},
            "invalid_request",
            "of all answers",
        ),
    ],
)
async def test_what_may_not_be_asked_for_is_refused_in_words_that_say_what_may(
    redis: Redis, valkey_url: str, body: dict[str, Any], code: str, words: str
) -> None:
    async with served(valkey_url, **SETTINGS) as app:
        assert words in problem(await start(app, {"prompt": "a", **body}), 422, code)["detail"]
        assert not await redis.exists(Keys().streams("default"))


async def test_what_may_be_asked_for_is_started_and_no_answer_is_longer_than_it_may_be(
    redis: Redis, valkey_url: str
) -> None:
    async with served(valkey_url, **SETTINGS) as app:
        for body in ({}, {"model": ["fast", "anthropic/claude-haiku-4-5"]}, {"max_tokens": 100}):
            started = await start(app, {"prompt": "a", **body})
            assert (started.status_code, started.json()["request"]["max_tokens"]) == (201, 100), started.text
            await end(app, started.json()["id"])
        external = await start(app, {**EXTERNAL, "model": "any/model", "max_tokens": 9999})
        assert external.status_code == 201, "its producer asks a model itself"
        await end(app, external.json()["id"])


async def test_a_tenants_own_models_agents_and_tokens_count_instead_also_when_it_regenerates(
    redis: Redis, valkey_url: str
) -> None:
    async with served(valkey_url, **SETTINGS) as app:
        before = (await start(app, {"prompt": "a", "model": "fast"})).json()["id"]
        await app.state.tier.limits.set("default", OWN)
        for body, code, words in (
            (
                {"prompt": "a"},
                "unknown_model",
                "default one may not be used here; give one. There are anthropic/x.",
            ),
            ({"prompt": "a", "model": "fast"}, "unknown_model", "There are anthropic/x."),
            ({"prompt": "a", "model": "anthropic/x", "max_tokens": 51}, "invalid_request", "at most 50"),
            ({"prompt": "a", "agent": "sales"}, "unknown_agent", "There are support."),
        ):
            assert words in problem(await start(app, body), 422, code)["detail"]
        again = await ask(app, "POST", f"/v1/streams/{before}/regenerate")
        assert "There are anthropic/x." in problem(again, 422, "unknown_model")["detail"]
        allowed = await start(app, {"prompt": "a", "model": "anthropic/x"})
        assert allowed.json()["request"]["max_tokens"] == 50
        await end(app, before, allowed.json()["id"])
        await app.state.tier.limits.set("default", dict.fromkeys(OWN))


async def test_limits_are_listed_for_who_operates_the_servers(redis: Redis, valkey_url: str) -> None:
    async with served(valkey_url, **SETTINGS) as app:
        await app.state.tier.limits.set("acme", {"weight": 2})
        listed = (await ask(app, "GET", "/v1/limits")).json()
        none = dict.fromkeys(NAMES)
        assert listed["tenants"] == [{**none, "tenant": "acme", "weight": 2}]
        assert listed["others"] == {
            **none,
            "creations_per_minute": 600,
            "streams_running": 500,
            "viewers": 10_000,
            "max_tokens": 100,
            "models": list(SETTINGS["allowed_models"]),  # type: ignore[call-overload]
        }
        await app.state.tier.limits.set("acme", {"weight": None})


# -- observe -------------------------------------------------------------------------------------------------


async def test_observed_limits_count_and_refuse_nothing(
    redis: Redis, valkey_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each limit of callers once."""
    narrow = dict.fromkeys(("viewers_per_stream", "viewers_per_token", "viewers_per_subject"), 1)
    async with served(valkey_url, limits="observe", **narrow) as app:
        tier = app.state.tier
        tier.gate = UnauthorizedGate(1, tier.enforcement, lambda: 0.0)
        tier.connects = ConnectRate(1, tier.enforcement, lambda: 0.0)
        await tier.limits.set("default", {"creations_per_minute": 1, "streams_running": 1, "viewers": 1})
        sids = [(await start(app)).json()["id"] for _ in range(2)]
        for _ in range(2):
            ann = token_of("ann", "a", tenant="default")
            await tier.require_place(ann, "s")
            await tier.viewers.places.require(ann, "s", again=True)  # as it is asked for each viewer: counted once
            tier.viewers.places.take(ann, "s")
            tier.connects.require("a")
            assert (await ask(app, "GET", "/v1/streams", credential="a guess")).status_code == 401
        connections = AddressPlaces(1, tier.addresses, tier.enforcement)
        assert [connections.take(SOMEWHERE) for _ in range(2)] == [True, True]
        once = ("creations_per_minute", "streams_running", "unauthorized_per_minute", "connections_per_address")
        viewers = (f"viewers_per_{of}" for of in ("stream", "token", "subject", "tenant"))
        assert tier.enforcement.counts == {**dict.fromkeys((*once, *viewers), 1), "connects_per_minute": 3}
        tier.enforcement.log()
        [line] = caplog.messages
        assert line.startswith("LASTEVENT_LIMITS=observe; enforced, within a minute these would be refused: 1 × conn")
        await end(app, *sids)
        await tier.limits.set("default", {"creations_per_minute": None, "streams_running": None, "viewers": None})
