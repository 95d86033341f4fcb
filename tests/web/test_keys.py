"""API keys at the door: two servers in this process over one Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.settings import Settings
from broker.tenants import stored_keys
from broker.tenants.keyring import new_key
from broker.tenants.scopes import EVERYTHING, PRESETS
from broker.tenants.stored_keys import StoredKeys
from broker.web.app import create_app
from broker.web.tier import Tier
from tests.rig.deployment import until

GIVEN = "a-key-of-thirty-two-and-more-of-it"
CUT = b"<cut>"

pytestmark = pytest.mark.anyio


@dataclass
class Server:
    app: FastAPI
    http: httpx.AsyncClient

    @property
    def tier(self) -> Tier:
        found: Tier = self.app.state.tier
        return found

    async def get(self, path: str, key: str | None = None, **headers: str) -> httpx.Response:
        return await self.http.get(path, headers=bearer(key) | headers)

    async def status(self, key: str | None = None) -> int:
        return (await self.get("/v1/streams", key)).status_code

    async def stream(self, key: str | None = None) -> str:
        body = {"producer": "external"}
        answer = await self.http.post("/v1/streams", json=body, headers=bearer(key))
        sid: str = answer.json()["id"]
        return sid

    @asynccontextmanager
    async def follower(self, sid: str, key: str | None = None) -> AsyncIterator[asyncio.Task[httpx.Response]]:
        """What it got when its connection has ended, and is there before the body begins."""
        task = asyncio.create_task(self.get(f"/v1/streams/{sid}/events", key))
        await until(lambda: self.tier.viewers.connected, "it follows")
        yield task


def bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def with_cuts(app: ASGIApp) -> ASGIApp:
    """httpx knows no answer without an end: here a cut's ends with CUT."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        is_whole = False

        async def watch(message: Message) -> None:
            nonlocal is_whole
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        await app(scope, receive, watch)
        if not is_whole:
            await send({"type": "http.response.body", "body": CUT})

    return call


@asynccontextmanager
async def serving(redis_url: str, *, may_open: bool = True, **settings: Any) -> AsyncIterator[Server]:
    app = create_app(Settings(redis_url=redis_url, **settings), may_open=may_open)
    transport = httpx.ASGITransport(with_cuts(app))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield Server(app, http)


@pytest.fixture
def stored(redis: Any) -> StoredKeys:
    return StoredKeys(redis, "le:keys", "le:keys:changed")


@pytest.fixture
async def two(redis: Any, valkey_url: str, stored: StoredKeys) -> AsyncIterator[tuple[Server, Server, str]]:
    """Two servers and the key of an administrator."""
    admin, secret = new_key("default", EVERYTHING, name="admin")
    await stored.add(admin)
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(serving(valkey_url)) for _ in range(2)]
        yield first, second, secret


async def test_a_key_is_let_in_by_every_server_and_refused_by_each_once_it_is_revoked(
    two: tuple[Server, Server, str], stored: StoredKeys
) -> None:
    first, second, admin = two
    key, secret = new_key("acme", PRESETS["backend"], name="web")
    assert [await server.status(secret) for server in (first, second)] == [401, 401]
    await stored.add(key)
    for server in (first, second):
        await until(lambda server=server: _is(server, secret, 200), "it is let in")
    revoked = await first.http.delete(f"/v1/keys/{key.id}", headers=bearer(admin))
    assert revoked.status_code == 204
    assert await first.status(secret) == 401
    await until(lambda: _is(second, secret, 401), "the other server refuses it", limit_s=10)
    assert (await first.get("/v1/streams", secret)).json()["code"] == "unauthorized"
    assert (await first.http.delete(f"/v1/keys/{key.id}", headers=bearer(admin))).status_code == 204
    auditor, of_acme = new_key("acme", PRESETS["auditor"])
    await stored.add(auditor)
    await until(lambda: _is(first, of_acme, 200), "it is known")
    deeds = (await first.get("/v1/deeds?what=key_revoked", of_acme)).json()["deeds"]
    assert [deed["detail"] for deed in deeds] == [{"key": key.id}] * 2, "among the deeds of the tenant whose key it was"


async def _is(server: Server, key: str, status: int) -> bool:
    return await server.status(key) == status


async def test_a_key_sees_its_tenants_streams_alone(two: tuple[Server, Server, str], stored: StoredKeys) -> None:
    first, second, _ = two
    (acme, acmes), (other, others) = (new_key(tenant, PRESETS["backend"]) for tenant in ("acme", "other"))
    for key in (acme, other):
        await stored.add(key)
    await until(lambda: _is(first, acmes, 200), "they are known")
    await until(lambda: _is(second, others, 200), "they are known")
    sid = await first.stream(acmes)
    assert (await first.get(f"/v1/streams/{sid}", acmes)).status_code == 200
    assert (await second.get(f"/v1/streams/{sid}", others)).status_code == 404
    assert (await second.get("/v1/streams", others)).json()["streams"] == []


async def test_another_tenant_s_stream_is_looked_up_as_one_that_does_not_exist(
    two: tuple[Server, Server, str], stored: StoredKeys, redis: Redis
) -> None:
    """It was answered in 1.2 ms, an unknown one in 3: an id's existence could be measured."""
    first, _, admin = two
    sid = await first.stream(admin)
    other, others = new_key("other", PRESETS["backend"])
    await stored.add(other)
    await until(lambda: _is(first, others, 200), "it is known")

    async def scores_read(asked: str) -> int:
        async def read() -> int:
            return int((await redis.info("commandstats")).get("cmdstat_zscore", {"calls": 0})["calls"])

        before = await read()
        assert (await first.get(f"/v1/streams/{asked}", others)).status_code == 404
        return await read() - before

    assert await scores_read(sid) == await scores_read("f" * 32) == 1


async def test_the_viewers_of_a_revoked_key_are_cut_on_another_server(
    two: tuple[Server, Server, str], stored: StoredKeys
) -> None:
    first, second, admin = two
    key, secret = new_key("default", PRESETS["backend"])
    await stored.add(key)
    await until(lambda: _is(second, secret, 200), "it is let in")
    sid = await first.stream(admin)
    async with second.follower(sid, secret) as following:
        await first.http.delete(f"/v1/keys/{key.id}", headers=bearer(admin))
        seen = await asyncio.wait_for(following, 10)
    assert seen.content.endswith(b": unauthorized\n" + CUT)
    assert b"retry: " in seen.content
    await until(lambda: _how(first, sid, admin, f"key:{key.id}", "revoked"), "it is in the record")


async def test_a_token_ends_at_its_time_also_where_the_clock_steps(
    two: tuple[Server, Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, admin = two
    sid = await first.stream(admin)
    minted = await first.http.post("/v1/tokens", headers=bearer(admin), json={"sub": "ann", "streams": [sid]})
    async with first.follower(sid, minted.json()["token"]) as following:
        first.tier.cut_revoked()
        assert not following.done()
        a_day_later = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 86_400)
        monkeypatch.setattr("broker.web.viewer.time", a_day_later)
        first.tier.cut_revoked()
        seen = await asyncio.wait_for(following, 10)
    assert seen.content.endswith(b": token_expired\n" + CUT)


async def _how(server: Server, sid: str, key: str, who: str, how: str) -> bool:
    views = (await server.get(f"/v1/streams/{sid}/views", key)).json()["views"]
    return any(view["who"] == who and view["how"] == how for view in views)


async def test_the_viewers_of_other_keys_stay(two: tuple[Server, Server, str], stored: StoredKeys) -> None:
    first, _, admin = two
    key, _ = new_key("default", PRESETS["backend"])
    await stored.add(key)
    sid = await first.stream(admin)
    async with first.follower(sid, admin) as following:
        await first.http.delete(f"/v1/keys/{key.id}", headers=bearer(admin))
        assert first.tier.viewers.connected == 1
        await first.http.post(f"/v1/streams/{sid}/cancel", headers=bearer(admin))
        assert b"event: cancelled" in (await following).content


async def test_the_first_key_closes_an_open_server_and_cuts_who_is_there_without(
    valkey_url: str, stored: StoredKeys
) -> None:
    async with serving(valkey_url) as server:
        sid = await server.stream()
        assert await server.status() == 200
        assert (await server.get("/v1/streams", Host="example.com")).status_code == 403
        async with server.follower(sid) as following:
            key, secret = new_key("default", EVERYTHING)
            await stored.add(key)
            seen = await asyncio.wait_for(following, 10)
        assert seen.content.endswith(b": unauthorized\n" + CUT)
        assert await server.status() == 401
        assert (await server.get("/v1/streams", secret, Host="example.com")).status_code == 200
        await server.http.post(f"/v1/streams/{sid}/cancel", headers=bearer(secret))


async def test_a_server_whose_keys_are_lost_does_not_open(
    two: tuple[Server, Server, str], redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, admin = two
    monkeypatch.setattr(stored_keys, "LOOK_AGAIN_S", 0.02)
    await redis.delete("le:keys")
    await redis.publish("le:keys:changed", b"")
    await until(lambda: _is(first, admin, 401), "it has seen that they are lost")
    assert await first.status() == 401


async def test_until_redis_has_answered_a_server_is_not_open(tmp_path: Path) -> None:
    async with serving(f"unix://{tmp_path}/none") as server:
        for key in (None, new_key("default", EVERYTHING)[1], GIVEN):
            answer = await server.get("/v1/streams", key)
            assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
        assert (await server.get("/healthz")).status_code == 200
        assert (await server.get("/readyz")).status_code == 503
        cut = await server.get("/v1/streams/x/events", Accept="text/event-stream")
        assert cut.status_code == 200
        assert cut.content.endswith(b": redis_unavailable\n" + CUT)


async def test_keys_that_are_known_are_good_while_redis_is_away(
    two: tuple[Server, Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, admin = two

    async def away() -> None:
        raise ConnectionError

    monkeypatch.setattr(first.tier.keys, "read", away)
    assert await first.status(admin) == 200
    assert await first.status() == 401


async def test_on_an_address_that_others_reach_a_server_without_keys_answers_nobody(
    redis: Any, valkey_url: str
) -> None:
    async with serving(valkey_url, may_open=False) as server:
        assert await server.status() == 401
        assert (await server.get("/healthz")).status_code == 200


async def test_a_key_with_masks_is_refused_where_there_are_none(
    two: tuple[Server, Server, str], stored: StoredKeys
) -> None:
    first, _, admin = two
    key, secret = new_key("default", PRESETS["masked"])
    sid = await first.stream(admin)
    await stored.add(key)
    await until(lambda: _is(first, secret, 403), "it is known")
    for path in ("/v1/streams", f"/v1/streams/{sid}", f"/v1/streams/{sid}/events", f"/v1/streams/{sid}/export"):
        answer = await first.get(path, secret)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "LASTEVENT_REDACT_FILE" in answer.json()["detail"]
    await first.http.post(f"/v1/streams/{sid}/cancel", headers=bearer(admin))


# -- /v1/keys --------------------------------------------------------------------------------------------------


async def test_an_administrator_sees_the_keys_of_all_tenants_and_no_secret(
    redis: Any, valkey_url: str, stored: StoredKeys
) -> None:
    key, secret = new_key("acme", PRESETS["auditor"], name="audit", lasts_s=3600)
    await stored.add(key)
    gone, _ = new_key("other", PRESETS["backend"])
    await stored.add(gone)
    await stored.revoke(gone.id)
    async with serving(valkey_url, api_keys=(GIVEN,)) as server:
        answer = await server.get("/v1/keys", GIVEN)
        listed = {one["id"]: one for one in answer.json()["keys"]}
        [given] = server.tier.keyring.given
        assert listed[given.id]["name"] == "LASTEVENT_API_KEYS"
        assert listed[key.id] == key.shown()
        assert listed[gone.id]["revoked_at"]
        for hidden in (secret.rpartition("_")[2], GIVEN, key.digest.hex(), given.digest.hex()):
            assert hidden not in answer.text
        refused = await server.http.delete(f"/v1/keys/{given.id}", headers=bearer(GIVEN))
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert await server.status(GIVEN) == 200
        unknown = await server.http.delete("/v1/keys/aaaaaaaaaaaa", headers=bearer(GIVEN))
        assert (unknown.status_code, unknown.json()["code"]) == (404, "key_not_found")
        assert (await server.get("/v1/keys", secret)).status_code == 403
        assert (await server.http.delete(f"/v1/keys/{key.id}", headers=bearer(secret))).status_code == 403
