"""Each route of the table (access.py) with each kind of credential: on a server with keys, two tenants and an issuer.

Every request is wrong in its query or its body besides: who may not call must not learn that.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.routing import APIRoute

from broker.settings import Settings
from broker.tenants.keyring import new_key
from broker.tenants.scopes import OF_KEYS, OF_TOKENS
from broker.web.app import create_app
from tests.rig.deployment import Deployment, wait_until
from tests.web.access import DURABLE, SCOPES, TABLE, TOKEN_SCOPES, Row
from tests.web.credentials import store_keys
from tests.web.wire import Api

KEY = "correct-horse-battery-staple-and-more"
ISSUER, OTHER_ISSUER = "https://login.example.com/", "https://other.example.com/"
BROKEN_QUERY = "limit=x&last_event_id=x&created_after=x&speed=x&audience=x"

Headers = dict[str, str]


def test_the_table_knows_each_scope() -> None:
    assert set(SCOPES) == set(OF_KEYS)
    assert set(TOKEN_SCOPES) == OF_TOKENS


def test_each_route_is_in_the_table_and_declares_what_opens_it() -> None:
    app = create_app(Settings())
    routes = [route for route in app.routes if isinstance(route, APIRoute) and not _is_the_consoles(route)]
    listed = {(row.method, _bare(row.path)) for row in TABLE}
    assert {(method, _bare(route.path)) for route in routes for method in route.methods} == listed
    assert all(hasattr(route.endpoint, "needs") for route in routes)


def test_no_request_is_handed_to_a_thread_and_back_for_what_it_is_looked_through_for() -> None:
    """FastAPI gives whatever is not async a thread, in each request: a fifth of what a start costs a server."""
    routes = [route for route in create_app(Settings()).routes if isinstance(route, APIRoute)]
    calls = {one.call for route in routes for one in (route.dependant, *route.dependant.dependencies)}
    assert [call for call in calls if not iscoroutinefunction(call)] == []


def test_each_route_answers_each_credential_as_the_table_says(
    own_deployment: Callable[..., Deployment], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    signer = Ed25519PrivateKey.generate()
    public = signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    (tmp_path / "issuers.toml").write_text(
        f'[issuer.app]\niss = "{ISSUER}"\ntenants = ["default", "acme"]\nalgorithms = ["Ed25519"]\n'
        f'public_key = """{public}"""\nscopes = {sorted(OF_TOKENS)}\n'
        f'[issuer.other]\niss = "{OTHER_ISSUER}"\ntenant = "default"\nalgorithms = ["HS256"]\nsecret_env = "OTHERS"\n'
    )
    (tmp_path / "masks.toml").write_text("[[mask]]\nname = 'none'\npattern = 'never-said'\n")
    settings = {
        "LASTEVENT_API_KEYS": KEY,
        "LASTEVENT_ISSUERS": str(tmp_path / "issuers.toml"),
        "LASTEVENT_REDACT_FILE": str(tmp_path / "masks.toml"),
        "OTHERS": "k" * 32,
    }
    deployment = own_deployment(servers=1, workers=0, **settings)
    with closing(Api(deployment.url, KEY)) as owner:
        own, other = owner.finished("mine", user_id="ann", session_id="a1"), owner.finished("another")
        with closing(_Asking(deployment, own, other, signer, public)) as asking:
            for row in TABLE:
                with subtests.test(f"{row.method} {row.path}"):
                    asking.walk(row)


class Told(NamedTuple):
    status: int
    code: str


class _Asking:
    """What asks: one client, and keys of each scope in two tenants."""

    def __init__(self, deployment: Deployment, own: str, other: str, signer: Ed25519PrivateKey, public: str) -> None:
        self._http = httpx.Client(base_url=deployment.url, trust_env=False, timeout=30)
        self._own, self._other, self._signer, self._public = own, other, signer, public
        made = {
            (tenant, scope): new_key(tenant, frozenset({scope})) for tenant in ("default", "acme") for scope in SCOPES
        }
        self._keys = {named: secret for named, (_, secret) in made.items()}
        expired, self._expired = new_key("default", frozenset({"admin"}), lasts_s=-1)
        revoked, self._revoked = new_key("default", frozenset({"admin"}))
        stored = [*(key for key, _ in made.values()), expired, revoked.revoked_at(int(time.time()))]
        store_keys(deployment, stored)
        wait_until(lambda: self._is_known(self._keys["acme", "admin"]), "the server knows the keys")
        self._dead = self.token(jti="dead", sub="gone")
        answer = self._http.post("/v1/tokens/revoke", json={"jti": "dead"}, headers=_bearer(KEY))
        assert answer.status_code < 300, answer.text
        wait_until(lambda: self._text_with(self._dead) == Told(401, "token_revoked"), "the token is revoked")

    def close(self) -> None:
        self._http.close()

    def walk(self, row: Row) -> None:
        if row.is_open:
            assert self.ask(row).status == row.answer
            return
        for credential, told in self._bad():
            assert self.ask(row, _bearer(credential) if credential else {}) == told, credential
        self._keys_open_what_they_may(row)
        self._tokens_open_what_they_may(row)
        self._what_travels_elsewhere(row)

    def _keys_open_what_they_may(self, row: Row) -> None:
        for scope in SCOPES:
            told = self.ask(row, _bearer(self._keys["default", scope]))
            may = scope == "admin" or (not row.any_token and not row.keys) or scope in row.keys
            if row.any_token:
                assert told.status == 403, scope
            else:
                assert (told.status in (401, 403)) == (not may), (scope, told)
                assert may or told == Told(403, "insufficient_scope"), (scope, told)
            if may and row.is_of_a_stream and not row.any_token:
                foreign = self.ask(row, _bearer(self._keys["acme", scope]), is_right=True)
                assert foreign == Told(404, "stream_not_found"), (scope, foreign)

    def _tokens_open_what_they_may(self, row: Row) -> None:
        for scope in TOKEN_SCOPES:
            told = self.ask(row, _bearer(self.token(scope=scope)))
            if row.any_token or scope == row.token:
                assert told.status not in (401, 403), (scope, told)
                assert row.path == DURABLE or told.code != "stream_not_found", (scope, told)  # at that path is none
            else:
                assert told == Told(403, "insufficient_scope"), (scope, told)
        if row.is_of_a_stream and row.token:
            not_named = [
                self.token(scope=row.token, streams=[self._other]),
                self.token(scope=row.token, streams=None, sessions=["another-session"]),
                self.token(scope=row.token, streams=None, own=True, sub="bob"),
                self.token(scope=row.token, tenant="acme"),
            ]
            for token in not_named:
                assert self.ask(row, _bearer(token), is_right=True) == Told(404, "stream_not_found")
            # Its own list is before the look-up, and before what else is wrong.
            assert self.ask(row, _bearer(not_named[0])) == Told(404, "stream_not_found")
            own = self.token(scope=row.token, streams=None, own=True, sub="ann")
            assert self.ask(row, _bearer(own), is_right=True).code != "stream_not_found"

    def _what_travels_elsewhere(self, row: Row) -> None:
        token = self.token(scope=row.token or "streams:read")
        as_cookie = {"Cookie": f"__Host-lastevent={token}"}
        ours = {**as_cookie, "Origin": str(self._http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        foreign = {**as_cookie, "Origin": "https://evil.example.com", "Sec-Fetch-Site": "cross-site"}
        is_read = row.method in ("GET", "HEAD")
        for headers, may in ((ours, row.cookie), (foreign, row.cookie and is_read)):
            told = self.ask(row, headers)
            assert (told.status not in (401, 403)) == may, (headers, told)
        for name in ("access_token", "token"):
            told = self.ask(row, query=f"{name}={token}")
            assert (told.status not in (401, 403)) == row.address, (name, told)
            assert self.ask(row, query=f"{name}={KEY}").status == 401
            assert self.ask(row, query=f"{name}={self._keys['default', 'admin']}").status == 401
        if row.address:
            several = self.token(scope=row.token or "", streams=[self._own, self._other])
            assert self.ask(row, query=f"access_token={several}").status in (401, 403)
            sessions = self.token(scope=row.token or "", streams=None, own=True)
            assert self.ask(row, query=f"access_token={sessions}").status in (401, 403)

    def _bad(self) -> Iterator[tuple[str, Told]]:
        invalid = Told(401, "invalid_token")
        now = int(time.time())
        yield "", Told(401, "unauthorized")
        yield "x", Told(401, "unauthorized")
        yield "lek_aaaaaaaaaaaa_" + "a" * 43, Told(401, "unauthorized")
        yield self._expired, Told(401, "unauthorized")
        yield self._revoked, Told(401, "unauthorized")
        yield "a.b.c", invalid
        good = self.token()
        yield good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"), invalid
        yield self.token(signer=Ed25519PrivateKey.generate()), invalid
        yield self.token(iss=OTHER_ISSUER), invalid
        yield self.token(iss="https://nobody.example.com/"), invalid
        yield _jwt({"alg": "none"}, self._claims(), lambda _: b""), invalid
        yield _hs256(self._public.encode(), self._claims()), invalid
        yield _hs256(b"k" * 32, self._claims()), invalid  # another issuer's key, for this one's tokens
        yield self.token(aud="another"), invalid
        yield self.token(typ="id+jwt"), invalid
        yield self.token(nbf=now + 600), invalid
        yield self.token(iat=now + 600, exp=now + 1200), invalid
        yield self.token(exp=now + 10 * 86_400), invalid
        yield self.token(iat=now - 1200, exp=now - 600), Told(401, "token_expired")
        yield self._dead, Told(401, "token_revoked")

    def token(self, *, signer: Ed25519PrivateKey | None = None, typ: str | None = None, **claims: Any) -> str:
        by = signer or self._signer
        return _jwt({"alg": "Ed25519", **({"typ": typ} if typ else {})}, self._claims(**claims), by.sign)

    def _claims(self, **claims: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {
            "iss": ISSUER,
            "aud": "lastevent",
            "tenant": "default",
            "sub": "ann",
            "iat": now,
            "exp": now + 600,
            "scope": "streams:read",
            "streams": [self._own],
        }
        return {name: value for name, value in {**usual, **claims}.items() if value is not None}

    def ask(self, row: Row, headers: Headers | None = None, *, query: str = "", is_right: bool = False) -> Told:
        """`is_right`: nothing else is wrong with the request."""
        path = row.path.format_map(_Named(sid=self._own))
        if not is_right:
            query = f"{query}&{BROKEN_QUERY}"
        sent = {"Content-Type": "application/json", **(headers or {})} if row.method == "POST" else headers
        body = _right_body(row) if is_right else b"{"
        content = body if row.method == "POST" else None
        answer = self._http.request(row.method, f"{path}?{query}", headers=sent, content=content)
        is_problem = answer.headers.get("content-type") == "application/problem+json" and row.method != "HEAD"
        code = answer.json()["code"] if is_problem else ""
        if answer.status_code >= 400 and not is_problem and row.method != "HEAD":
            code = _code_in_words(row, answer)
        if row.method == "HEAD" and answer.status_code >= 400:  # which has no body
            get = self._http.get(f"{path}?{query}", headers=sent)
            assert get.status_code == answer.status_code
            code = get.json()["code"]
        return Told(answer.status_code, code)

    def _is_known(self, key: str) -> bool:
        return self._http.get("/v1/models", headers=_bearer(key)).status_code == 200

    def _text_with(self, token: str) -> Told:
        return self.ask(next(row for row in TABLE if row.path.endswith("/text")), _bearer(token), is_right=True)


def _code_in_words(row: Row, answer: httpx.Response) -> str:
    """Of an error as a dialect has them. Anthropic's and the AI SDK's have it before the message."""
    if row.path.startswith("/v1/ai-sdk/"):
        return answer.text.partition(":")[0]
    error: dict[str, str] = answer.json()
    error = cast("dict[str, str]", error.get("error", error))
    return error.get("code") or error["message"].partition(":")[0]


class _Named(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "a1"


RIGHT_BODIES: dict[str, dict[str, Any]] = {
    "/cancel": {},
    "/regenerate": {},
    "/events": {"epoch": 1, "events": [{"event": "text_delta", "data": {"text": "x"}}]},
    "/heartbeat": {"epoch": 1},
    "/input": {"text": "x"},
    "/a1": {"approve": True},
}


def _right_body(row: Row) -> bytes:
    ending = "/" + row.path.format_map(_Named(sid="x")).rpartition("/")[2]
    return json.dumps(RIGHT_BODIES.get(ending, {})).encode()


def _bearer(credential: str) -> Headers:
    return {"Authorization": f"Bearer {credential}"}


def _bare(path: str) -> str:
    return re.sub(r":\w+}", "}", path)


def _is_the_consoles(route: APIRoute) -> bool:
    return route.path == "/" or route.path.startswith("/console/")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _jwt(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
    return f"{signed}.{_b64(sign(signed.encode()))}"


def _hs256(secret: bytes, claims: dict[str, Any]) -> str:
    return _jwt({"alg": "HS256"}, claims, lambda message: hmac.digest(secret, message, hashlib.sha256))
