"""Tokens over HTTP: made, kept in a cookie, put in an address, revoked, and at their end (docs/API.md, tokens)."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from broker.settings import Settings
from broker.tenants.issuers import Issuers
from broker.tenants.keyring import new_key
from broker.tenants.scopes import PRESETS
from broker.tenants.tokens import Tokens, _signing_key
from broker.web.app import create_app
from broker.web.grants import COOKIE
from tests.rig.deployment import Deployment, until, wait_until
from tests.tenants.forge import by_hmac, claims
from tests.web.wire import Api, Exchange, ndjson, problem

KEY = "correct-horse-battery-staple-and-more"
SECRET = "what-signs-the-tokens-of-these-tests"
APP = "https://app.example.com"
HOST = "https://api.example.com"
PAGE = {"Origin": HOST, "Sec-Fetch-Site": "same-origin"}


def token(*, secret: str = SECRET, **changed: Any) -> str:
    """One that this server could have made."""
    kid, key = _signing_key(secret.encode())
    good = claims(**{"iss": "lastevent", "tenant": "default", **changed})
    return by_hmac(key.raw_value, {"alg": "HS256", "kid": kid}, good)  # type: ignore[arg-type]  # it is an OctKey's


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def cookie(text: str) -> dict[str, str]:
    return {"Cookie": f"theme=dark; {COOKIE}={text}"}


class Server:
    """A server in this process, with keys."""

    def __init__(self, http: httpx.AsyncClient, redis: Redis) -> None:
        self.http = http
        self.redis = redis
        self.keys = bearer(KEY)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers={**self.keys, **headers})

    async def get(self, path: str, headers: dict[str, str], **query: str) -> httpx.Response:
        return await self.http.get(path, headers=headers, params=query)

    async def stream(self, text: str = "mine", **fields: Any) -> str:
        """An external one that has ended."""
        started = await self.post("/v1/streams", {"producer": "external", **fields})
        sid: str = started.json()["id"]
        events = [{"event": "text_delta", "data": {"text": text}}, {"event": "done", "data": {}}]
        assert (await self.post(f"/v1/streams/{sid}/events", {"epoch": 1, "events": events})).status_code == 200
        return sid

    async def running(self, **fields: Any) -> str:
        sid: str = (await self.post("/v1/streams", {"producer": "external", **fields})).json()["id"]
        return sid

    async def minted(self, **body: Any) -> str:
        answer = await self.post("/v1/tokens", {"sub": "ann", **body})
        assert answer.status_code == 201, answer.text
        made: str = answer.json()["token"]
        return made

    async def key(self, *scopes: str, tenant: str = "acme") -> dict[str, str]:
        """The header of a new key."""
        made, secret = new_key(tenant, frozenset(scopes))
        await self.redis.hset("le:keys", made.id, made.to_json())  # type: ignore[misc]
        await self.redis.publish("le:keys:changed", made.id)

        async def is_known() -> bool:
            return (await self.get("/v1/agents", bearer(secret))).status_code == 200

        await until(is_known, "the key is known")
        return bearer(secret)


@asynccontextmanager
async def serving(redis: Redis, url: str, **settings: Any) -> AsyncIterator[Server]:
    given = {"redis_url": url, "api_keys": KEY, "token_secret": SECRET, "cors_origins": APP, **settings}
    app = create_app(Settings(**given))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=HOST) as http:
        yield Server(http, redis)


@pytest.fixture
async def server(redis: Redis, valkey_url: str) -> AsyncIterator[Server]:
    async with serving(redis, valkey_url) as server:
        yield server
    await redis.delete("le:keys")  # which have no other end


# -- made ------------------------------------------------------------------------------------------------


async def test_a_key_makes_tokens_for_phones(server: Server) -> None:
    mine, hers = await server.stream(user_id="ann", session_id="s1"), await server.stream("hers", user_id="eve")
    for opened in ({"streams": [mine]}, {"sessions": ["s1"]}, {"own": True}):
        answer = await server.post("/v1/tokens", {"sub": "ann", **opened, "ttl_s": 600})
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json().keys() == {"token", "expires_at"}
        expires = datetime.fromisoformat(answer.json()["expires_at"])
        assert timedelta(minutes=9) < expires - datetime.now(UTC) < timedelta(minutes=11)
        phone = bearer(answer.json()["token"])
        assert (await server.get(f"/v1/streams/{mine}/text", phone)).text == "mine"
        assert (await server.get(f"/v1/streams/{mine}", phone)).json()["state"] == "done"
        for other in (hers, "nope", "x" * 300):
            problem(await server.get(f"/v1/streams/{other}/text", phone), 404, "stream_not_found")
        for path in ("/v1/streams", "/v1/sessions", f"/v1/streams/{mine}/views", "/v1/agents"):
            problem(await server.get(path, phone), 403, "insufficient_scope")
        problem(
            await server.http.post("/v1/tokens", json={"sub": "ann", **opened}, headers=phone),
            403,
            "insufficient_scope",
        )
        problem(await server.http.post(f"/v1/streams/{mine}/cancel", headers=phone), 403, "insufficient_scope")


async def test_a_token_cancels_and_appends_where_its_scope_says_so(server: Server) -> None:
    sid, other = await server.running(), await server.running()
    phone = bearer(await server.minted(streams=[sid], scope="streams:append streams:cancel"))
    events = {"epoch": 1, "events": [{"event": "text_delta", "data": {"text": "a"}}]}
    assert (await server.http.post(f"/v1/streams/{sid}/events", json=events, headers=phone)).status_code == 200
    problem(await server.http.post(f"/v1/streams/{other}/events", json=events, headers=phone), 404, "stream_not_found")
    problem(await server.get(f"/v1/streams/{sid}/text", phone), 403, "insufficient_scope")
    assert (await server.http.post(f"/v1/streams/{sid}/cancel", headers=phone)).json()["state"] == "cancelled"
    problem(await server.http.post(f"/v1/streams/{other}/cancel", headers=phone), 404, "stream_not_found")
    await server.post(f"/v1/streams/{other}/cancel")


BAD = [
    {}, {"sub": "ann"}, {"sub": "", "own": True}, {"sub": "a\nb", "own": True}, {"sub": "\x9b", "own": True},
    {"sub": "x" * 201, "own": True}, {"sub": "ann", "own": False}, {"sub": "ann", "own": True, "streams": ["a"]},
    {"sub": "ann", "streams": []}, {"sub": "ann", "streams": ["a"] * 65}, {"sub": "ann", "sessions": ["a"] * 17},
    {"sub": "ann", "own": True, "scope": ""}, {"sub": "ann", "own": True, "scope": "admin"},
    {"sub": "ann", "own": True, "scope": "streams:read streams:inspect"}, {"sub": "ann", "own": True, "ttl_s": 0},
    {"sub": "ann", "own": True, "ttl_s": 86_401}, {"sub": "ann", "own": True, "ttl_s": 1e3},
    {"sub": "ann", "own": True, "tenant": "acme"}, {"sub": "ann", "sessions": ["ü" * 200] * 16},
]  # fmt: skip


async def test_a_token_that_could_not_be_checked_is_not_made(server: Server) -> None:
    for body in BAD:
        problem(await server.post("/v1/tokens", body), 422, "invalid_request")


async def test_a_key_gives_away_no_more_than_it_has(server: Server) -> None:
    mints = await server.key("tokens:mint", "streams:read")
    for scope, status in {"streams:read": 201, "streams:cancel": 403, "streams:read streams:append": 403}.items():
        answer = await server.http.post("/v1/tokens", json={"sub": "a", "own": True, "scope": scope}, headers=mints)
        assert answer.status_code == status
    backend = await server.key(*PRESETS["backend"])
    for scope in ("streams:read", "streams:cancel", "streams:append", "streams:input"):
        answer = await server.http.post("/v1/tokens", json={"sub": "a", "own": True, "scope": scope}, headers=backend)
        assert answer.status_code == 201
    reads = await server.key("streams:read")
    problem(
        await server.http.post("/v1/tokens", json={"sub": "a", "own": True}, headers=reads), 403, "insufficient_scope"
    )


async def test_a_token_is_of_the_key_s_tenant_and_names_alone_open_nothing(server: Server) -> None:
    of_default = await server.stream(user_id="ann", session_id="s1")
    mints = await server.key("tokens:mint", "streams:read")
    for opened in ({"streams": [of_default]}, {"sessions": ["s1"]}, {"own": True}):
        made = await server.http.post("/v1/tokens", json={"sub": "ann", **opened}, headers=mints)
        phone = bearer(made.json()["token"])
        for path in ("", "/text", "/events"):
            problem(await server.get(f"/v1/streams/{of_default}{path}", phone), 404, "stream_not_found")


async def test_the_answer_that_starts_a_stream_has_a_token_for_whom_it_was_asked(server: Server) -> None:
    def subject(answer: httpx.Response) -> dict[str, Any]:
        url = answer.json()["events_url"]
        found: dict[str, Any] = orjson.loads(base64.urlsafe_b64decode(url.split(".")[1] + "=="))
        return found

    start = {"producer": "external", "user_id": "ann"}
    plain = subject(await server.post("/v1/streams", start))
    asked = await server.post(
        "/v1/streams", {**start, "token": {"sub": "bob", "ttl_s": 90}}, **{"Idempotency-Key": "k"}
    )
    again = await server.post("/v1/streams", {**start, "token": {"ttl_s": 80}}, **{"Idempotency-Key": "k"})
    assert (plain["sub"], plain["scope"]) == ("ann", "streams:read")
    assert (subject(asked)["sub"], subject(asked)["streams"]) == ("bob", [asked.json()["id"]])
    assert subject(asked)["exp"] - int(subject(asked)["iat"]) == 90
    assert (again.status_code, again.json()["id"]) == (200, asked.json()["id"])
    assert (subject(again)["sub"], subject(again)["exp"] - int(subject(again)["iat"])) == ("ann", 80)
    problem(await server.post("/v1/streams", {**start, "token": {"ttl_s": 86_401}}), 422, "invalid_request")
    problem(await server.post("/v1/streams", {**start, "token": {"scope": "admin"}}), 422, "invalid_request")
    for scopes in (("streams:read",), ("tokens:mint",)):  # a token reads, and who may not read gives none away
        writes = await server.key("streams:write", "streams:inspect", *scopes)
        without = await server.http.post("/v1/streams", json=start, headers=writes)
        assert without.json()["events_url"] == f"/v1/streams/{without.json()['id']}/events"
        seen = await server.get(f"/v1/streams/{without.json()['id']}", writes)
        assert seen.json()["events_url"] == without.json()["events_url"]
        refused = await server.http.post("/v1/streams", json={**start, "token": {}}, headers=writes)
        problem(refused, 403, "insufficient_scope")


# -- refused ---------------------------------------------------------------------------------------------


async def test_what_is_no_token_of_this_server_s_opens_nothing(server: Server) -> None:
    sid = await server.stream()
    now = int(time.time())
    good = token(streams=[sid])
    assert (await server.get(f"/v1/streams/{sid}/text", bearer(good))).text == "mine"
    head, payload, _ = good.split(".")
    bad = {
        "invalid_token": [
            *(f"{head}.{payload}.", f"{head}.{payload}.AAAA", "a.b.c", f"{good}x"),
            token(secret="another-secret-of-32-characters-or-more", streams=[sid]),
            *(token(streams=[sid], **wrong) for wrong in ({"aud": "x"}, {"nbf": now + 900}, {"exp": now + 90_000})),
            token(streams=[sid], iss="https://evil.example"),
        ],
        "token_expired": [token(streams=[sid], iat=now - 600, exp=now - 1)],
        "unauthorized": ["x", "..", f"{head}..", "lek_" + "a" * 12 + "_" + "b" * 43, "eyJ", f"{good}\xff"],
    }
    for code, credentials in bad.items():
        for credential in credentials:
            sent = {"Authorization": f"Bearer {credential}".encode("latin-1")}
            for path in (f"/v1/streams/{sid}", f"/v1/streams/{sid}/text", f"/v1/streams/{sid}/events", "/v1/streams"):
                answer = await server.http.get(path, headers=sent)  # type: ignore[arg-type]  # httpx takes bytes
                problem(answer, 401, code)
                says = "Bearer" if code == "unauthorized" else 'Bearer error="invalid_token"'
                assert answer.headers["www-authenticate"] == says
                assert answer.headers["cache-control"] == "no-store"
                assert credential not in answer.text


async def test_with_a_token_every_answer_is_its_caller_s_alone(server: Server) -> None:
    """Whatever stands in between must not give it to the next one."""
    sid = await server.stream()
    good = token(streams=[sid])
    for path in ("", "/text", "/events"):
        for answer in (
            await server.get(f"/v1/streams/{sid}{path}", bearer(good)),
            await server.get(f"/v1/streams/{sid}{path}", cookie(good)),
            await server.get(f"/v1/streams/{sid}{path}", {}, access_token=good),
            await server.get(f"/v1/streams/{sid}{path}", {}, access_token="a.b.c"),
        ):
            assert "no-store" in answer.headers["cache-control"]
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "set-cookie" not in answer.headers


# -- in an address ---------------------------------------------------------------------------------------


async def test_in_an_address_is_only_what_reads_one_stream(server: Server) -> None:
    sid = await server.stream()
    for path in ("", "/text", "/events"):
        url = f"/v1/streams/{sid}{path}"
        assert (await server.get(url, {}, access_token=token(streams=[sid]))).status_code == 200
        for more in ({"streams": [sid, "b"]}, {"scope": "streams:read streams:cancel", "streams": [sid]}):
            problem(await server.get(url, {}, access_token=token(**more)), 401, "invalid_token")
        problem(await server.get(url, {}, access_token=token(streams=..., own=True, sub="ann")), 401, "invalid_token")
    head = await server.http.head(f"/v1/streams/{sid}/events", params={"access_token": token(streams=[sid])})
    assert head.status_code == 200
    for call in ("cancel", "events", "heartbeat", "regenerate"):
        query = {"access_token": token(streams=[sid], scope="streams:cancel")}
        problem(await server.http.post(f"/v1/streams/{sid}/{call}", params=query), 401, "unauthorized")


async def test_the_header_wins_over_the_cookie_and_that_over_the_address(server: Server) -> None:
    sid, other = await server.stream(), await server.stream("other")
    good, of_other = token(streams=[sid]), token(streams=[other])
    url = f"/v1/streams/{sid}/text"
    cases = [
        (bearer(good) | cookie(of_other), of_other, 200),
        (bearer(of_other) | cookie(good), good, 404),
        (cookie(good), of_other, 200),
        (cookie(of_other), good, 404),
        ({"Authorization": "Basic x"} | cookie(good), good, 401),
    ]
    for headers, in_address, status in cases:
        assert (await server.get(url, headers, access_token=in_address)).status_code == status


# -- in a cookie -----------------------------------------------------------------------------------------


async def test_a_token_is_put_in_a_cookie_that_no_script_reads_and_no_other_host_gets(server: Server) -> None:
    good = token(exp=int(time.time()) + 500, streams=..., own=True)
    answer = await server.http.post("/v1/tokens/cookie", headers=bearer(good))
    assert answer.status_code == 204
    assert answer.headers["cache-control"] == "no-store"
    first, *attributes = answer.headers["set-cookie"].split("; ")
    assert first == f"__Host-lastevent={good}"
    said = {attribute.partition("=")[0].lower(): attribute.partition("=")[2] for attribute in attributes}
    assert said.keys() == {"httponly", "secure", "samesite", "path", "max-age"}
    assert (said["samesite"].lower(), said["path"]) == ("lax", "/")
    assert 490 <= int(said["max-age"]) <= 500
    problem(await server.http.post("/v1/tokens/cookie", headers=server.keys), 403, "insufficient_scope")
    for elsewhere in (cookie(good), {}):
        problem(await server.http.post("/v1/tokens/cookie", headers=elsewhere), 401, "unauthorized")
    problem(await server.http.post(f"/v1/tokens/cookie?access_token={good}"), 401, "unauthorized")
    problem(await server.http.post("/v1/tokens/cookie", headers=bearer("a.b.c")), 401, "invalid_token")


async def test_a_cookie_reads_and_cancels_and_is_nothing_anywhere_else(server: Server) -> None:
    sid = await server.running(user_id="ann")
    mine = token(streams=..., own=True, scope="streams:read streams:cancel streams:append")
    for path in ("", "/text"):
        assert (await server.get(f"/v1/streams/{sid}{path}", cookie(mine))).status_code == 200
    followed = await server.get(f"/v1/streams/{sid}/events", cookie(mine), follow="0")
    assert followed.status_code == 200
    events = {"epoch": 1, "events": [{"event": "text_delta", "data": {"text": "a"}}]}
    for call, body in (("events", events), ("heartbeat", {"epoch": 1}), ("regenerate", None)):
        answer = await server.http.post(f"/v1/streams/{sid}/{call}", json=body, headers={**cookie(mine), **PAGE})
        problem(answer, 401, "unauthorized")
    problem(await server.get("/v1/streams", cookie(mine)), 401, "unauthorized")
    problem(await server.get(f"/v1/streams/{sid}", cookie(KEY)), 401, "unauthorized")  # a key in a cookie
    cancelled = await server.http.post(f"/v1/streams/{sid}/cancel", headers={**cookie(mine), **PAGE})
    assert cancelled.json()["state"] == "cancelled"


async def test_only_a_cookie_of_exactly_this_name_is_taken_and_only_if_there_is_one(server: Server) -> None:
    """No other server may set `__Host-…`; but what only Python calls a space may stand before a name."""
    mine = token(streams=[await server.stream()])
    url = f"/v1/streams/{(sid := await server.stream(user_id='ann'))}/text"
    ours = f"{COOKIE}={token(streams=[sid])}"
    for sent in (f"a=b; {ours}", f"{ours};theme=dark", f" {ours} ; {COOKIE.lower()}=x"):
        assert (await server.http.get(url, headers=[("Cookie", sent)])).status_code == 200
    for sent in (f"\xa0{ours}", f"\x85{ours}", f"={ours}", f"{ours}; {COOKIE}={mine}", f'{COOKIE}="{mine}"'):
        answer = await server.http.get(url, headers=[(b"Cookie", sent.encode("latin-1"))])
        assert answer.status_code == 401, sent[:20]


CROSS_SITE = {
    "a foreign page": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "a foreign page that lies about its site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    "another server of the same site": {"Origin": "https://evil.example.com", "Sec-Fetch-Site": "same-site"},
    "a listed page of another site": {"Origin": APP, "Sec-Fetch-Site": "cross-site"},
    "a page that names itself with our name in front": {
        "Origin": f"{HOST}.evil.example",
        "Sec-Fetch-Site": "same-site",
    },
    "a page on another port": {"Origin": f"{HOST}:8443", "Sec-Fetch-Site": "same-site"},
    "a sandboxed page": {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    "no origin": {"Sec-Fetch-Site": "same-origin"},
    "no word about the site": {"Origin": HOST},
    "the address bar": {"Origin": HOST, "Sec-Fetch-Site": "none"},
    "an unknown word": {"Origin": HOST, "Sec-Fetch-Site": "maybe"},
    "no address": {"Origin": "https://[", "Sec-Fetch-Site": "same-origin"},
    "a referrer alone": {"Referer": f"{HOST}/page"},
    "nothing": {},
}


async def test_another_page_cancels_nothing_with_the_cookie(server: Server) -> None:
    sid = await server.running(user_id="ann")
    mine = token(streams=..., own=True, scope="streams:read streams:cancel")
    for name, headers in CROSS_SITE.items():
        answer = await server.http.post(f"/v1/streams/{sid}/cancel", headers={**cookie(mine), **headers})
        assert answer.status_code == 403, name
        problem(answer, 403, "forbidden")
    for two in (
        [("Origin", HOST), ("Origin", "https://evil.example")],
        [("Origin", HOST), ("Sec-Fetch-Site", "cross-site")],
    ):
        sent = [*two, ("Sec-Fetch-Site", "same-origin"), *cookie(mine).items()]
        problem(await server.http.post(f"/v1/streams/{sid}/cancel", headers=sent), 403, "forbidden")
    nowhere = {"Host": "", "Origin": "null", "Sec-Fetch-Site": "same-origin"}
    problem(await server.http.post(f"/v1/streams/{sid}/cancel", headers={**cookie(mine), **nowhere}), 403, "forbidden")
    assert (await server.get(f"/v1/streams/{sid}", server.keys)).json()["state"] == "running"
    listed = {"Origin": APP, "Sec-Fetch-Site": "same-site"}
    cancelled = await server.http.post(f"/v1/streams/{sid}/cancel", headers={**cookie(mine), **listed})
    assert cancelled.json()["state"] == "cancelled"


# -- revoked ---------------------------------------------------------------------------------------------


def issued(seconds_ago: float, **changed: Any) -> str:
    now = time.time()
    return token(iat=now - seconds_ago, exp=int(now) + 600, **changed)


async def test_a_revoked_token_opens_nothing_any_more(server: Server) -> None:
    sid, other = await server.stream(user_id="ann"), await server.stream("b", user_id="eve")
    url = f"/v1/streams/{sid}/text"
    by_id, twin = (token(streams=[sid], jti=name) for name in ("one", "two"))
    old, new = (issued(ago, streams=..., own=True, sub="ann") for ago in (60, 5))
    of_eve = issued(60, streams=..., own=True, sub="eve")
    before = (datetime.now(UTC) - timedelta(seconds=30)).isoformat()
    for good in (by_id, twin, old, new):
        assert (await server.get(url, bearer(good))).status_code == 200
    for body in ({"jti": "one"}, {"sub": "ann", "issued_before": before}):
        assert (await server.post("/v1/tokens/revoke", body)).status_code == 204
    for revoked in (by_id, old):
        for headers in (bearer(revoked), cookie(revoked)):
            answer = await server.get(url, headers)
            problem(answer, 401, "token_revoked")
            assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    problem(await server.get(url, {}, access_token=by_id), 401, "token_revoked")
    for good in (twin, new):
        assert (await server.get(url, bearer(good))).status_code == 200
    assert (await server.get(f"/v1/streams/{other}/text", bearer(of_eve))).status_code == 200
    assert (await server.post("/v1/tokens/revoke", {"sub": "ann"})).status_code == 204
    problem(await server.get(url, bearer(new)), 401, "token_revoked")
    assert (await server.get(url, bearer(await server.minted(own=True)))).status_code == 200  # made after it


async def test_a_stream_s_tokens_are_revoked_and_new_ones_open_it(server: Server) -> None:
    sid = await server.stream(session_id="s1")
    old, of_both, of_session = (
        issued(5, streams=[sid]),
        issued(5, streams=[sid, "b"]),
        issued(5, streams=..., sessions=["s1"]),
    )
    assert (await server.post("/v1/tokens/revoke", {"stream": sid})).status_code == 204
    for revoked in (old, of_both):
        problem(await server.get(f"/v1/streams/{sid}/text", bearer(revoked)), 401, "token_revoked")
    for good in (of_session, await server.minted(streams=[sid])):
        assert (await server.get(f"/v1/streams/{sid}/text", bearer(good))).status_code == 200


async def test_a_key_revokes_its_own_tenant_s_tokens(server: Server) -> None:
    sid = await server.stream()
    good = token(streams=[sid], jti="one")
    mints = await server.key("tokens:mint")
    revoke = {"json": {"jti": "one"}, "headers": mints}
    assert (await server.http.post("/v1/tokens/revoke", **revoke)).status_code == 204  # of acme's, which has none
    assert (await server.get(f"/v1/streams/{sid}/text", bearer(good))).status_code == 200
    of_others = await server.http.post("/v1/tokens/revoke", json={"jti": "one", "tenant": "default"}, headers=mints)
    problem(of_others, 403, "insufficient_scope")
    admin = await server.key("admin")
    done = await server.http.post("/v1/tokens/revoke", json={"jti": "one", "tenant": "default"}, headers=admin)
    assert done.status_code == 204
    problem(await server.get(f"/v1/streams/{sid}/text", bearer(good)), 401, "token_revoked")
    of_tenants = [(await server.get("/v1/deeds?what=revoked", key)).json()["deeds"] for key in (bearer(KEY), admin)]
    assert [[deed["detail"] for deed in deeds] for deeds in of_tenants] == [[{"jti": "one"}]] * 2, "each its own"
    for wrong in ({}, {"jti": "a", "sub": "b"}, {"jti": "a", "issued_before": "2026-01-01T00:00:00Z"}, {"sub": "a\n"}):
        problem(await server.post("/v1/tokens/revoke", wrong), 422, "invalid_request")
    in_an_hour = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for when in ("yesterday", "2026-01-01T00:00:00", 5, in_an_hour):
        problem(await server.post("/v1/tokens/revoke", {"sub": "a", "issued_before": when}), 422, "invalid_request")
    problem(await server.http.post("/v1/tokens/revoke", json={"jti": "x"}, headers=bearer(good)), 401, "token_revoked")


async def test_a_server_that_has_just_started_lets_nothing_in_that_was_revoked(
    server: Server, redis: Redis, valkey_url: str
) -> None:
    sid = await server.stream()
    good = token(streams=[sid], jti="one")
    assert (await server.post("/v1/tokens/revoke", {"jti": "one"})).status_code == 204
    async with serving(redis, valkey_url) as another:
        problem(await another.get(f"/v1/streams/{sid}/text", bearer(good)), 401, "token_revoked")
    assert 86_400 < await redis.ttl("le:revoked:default") <= 86_430 + 1


async def test_what_is_over_is_forgotten(server: Server, redis: Redis) -> None:
    await redis.zadd("le:revoked:default", {"jti old": time.time() - 1, "jti one": time.time() + 60})
    assert (await server.post("/v1/tokens/revoke", {"jti": "two"})).status_code == 204
    assert await redis.zrange("le:revoked:default", 0, -1) == [b"jti one", b"jti two"]


# -- at its end, and cut ---------------------------------------------------------------------------------


@contextmanager
def two_servers(own_deployment: Callable[..., Deployment]) -> Iterator[Deployment]:
    """Whatever a test does, no token may come to their output."""
    settings = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_TOKEN_SECRET": SECRET, "LASTEVENT_LOG_LEVEL": "debug"}
    deployment = own_deployment(servers=2, workers=0, LASTEVENT_HEARTBEAT_S="0.2", **settings)
    yield deployment
    for process in deployment.servers:
        assert not re.search(r"eyJ|token=|\.[\w-]{43}\b|Traceback", process.output.read_text())


def ending(sid: str, in_s: float) -> str:
    """A token that has lived for long, and whose connections end in a moment."""
    verifier = Tokens(lambda: [SECRET.encode()], Issuers(), audience="lastevent", max_ttl_s=86_400)
    now = int(time.time())
    while True:
        text = token(streams=[sid], iat=now - 600, exp=now + 30, sub="zoe", jti=str(time.perf_counter_ns()))
        if in_s < verifier.verified(text).cuts_at - time.time() < in_s + 1:
            return text


@pytest.mark.processes
def test_viewers_are_told_before_their_token_expires_and_cut_on_every_server_when_it_is_revoked(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    with two_servers(own_deployment) as deployment:
        owner = open_api(deployment.urls[0], KEY)
        sid = owner.start_external()
        events = f"/v1/streams/{sid}/events"
        revoked = [token(streams=[sid], jti=name, sub="ann") for name in ("one", "two")]
        kept = token(streams=[sid], sub="eve", jti="kept")
        viewers = [
            Exchange(url, "GET", events, bearer(text).items()) for url in deployment.urls for text in (*revoked, kept)
        ]
        ends = ending(sid, 5.0)
        forms = {"sse": [], "ndjson": [("Accept", "application/x-ndjson")]}
        told = {
            name: Exchange(deployment.url, "GET", f"{events}?access_token={ends}", more) for name, more in forms.items()
        }
        without_a_lane = opened_by_http10(deployment.url, f"{events}?access_token={ends}")
        assert owner.post("/v1/tokens/revoke", {"sub": "ann"}).status_code == 204
        for viewer in [*viewers[0:2], *viewers[3:5]]:
            assert re.search(rb"retry: \d+\n: token_revoked\n$", viewer.read_to_end())
            assert not viewer.is_complete
        for text in revoked:
            for url in deployment.urls:
                problem(open_api(url).get(events, headers=bearer(text)), 401, "token_revoked")

        sse, lines = told["sse"].read_to_end(), told["ndjson"].read_to_end()
        [notice] = re.findall(rb'event: token_expiring\ndata: (\{"expires_at":"[^"]+Z"\})\n\n', sse)
        assert re.search(rb"retry: \d+\n: token_expired\n$", sse)
        assert [line for line in ndjson(lines) if line["event"] == "token_expiring"] == [
            {"event": "token_expiring", "data": orjson.loads(notice)}
        ]
        assert abs(datetime.fromisoformat(orjson.loads(notice)["expires_at"]).timestamp() - time.time()) < 30
        for exchange in told.values():
            assert not exchange.is_complete
        problem(open_api(deployment.url).get(events, headers=bearer(ends)), 401, "token_expired")

        assert re.search(rb"event: token_expiring\ndata: .*\n\n", read_to_cut(without_a_lane))
        owner.append(sid, ("text_delta", {"text": "a"}))
        for viewer in (viewers[2], viewers[5]):  # theirs goes on
            viewer.read_until(lambda body: b"text_delta" in body)
            assert b"token_" not in viewer.body

        def ends_of(who: str) -> set[str]:
            views = owner.get(f"/v1/streams/{sid}/views").json()["views"]
            return {view["how"] for view in views if view["who"] == who}

        wait_until(lambda: ends_of("user:ann") == {"revoked"}, "it is recorded")
        wait_until(lambda: ends_of("user:zoe") == {"token_expired"}, "it is recorded")
        for exchange in (*viewers, *told.values()):
            exchange.close()


def opened_by_http10(url: str, path: str) -> socket.socket:
    """A connection without a lane."""
    at = urlsplit(url)
    connection = socket.create_connection((at.hostname, at.port), timeout=30)
    connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {at.netloc}\r\n\r\n".encode())
    return connection


def read_to_cut(connection: socket.socket) -> bytes:
    body = b""
    with connection, suppress(ConnectionError):
        while more := connection.recv(65536):
            body += more
    return body
