"""A credential of every kind and place, for a server with keys, two tenants and an issuer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from broker.tenants.keyring import ApiKey, new_key
from broker.tenants.scopes import OF_KEYS, OF_TOKENS
from broker.web.grants import COOKIE
from tests.rig.deployment import Deployment, wait_until
from tests.rig.streams import with_redis
from tests.tenants.forge import by_hmac, claims
from tests.web.wire import Api

KEY = "correct-horse-battery-staple-and-more"
SECRET = b"what-the-issuer-of-these-tests-signs-with"
ISSUER = "https://login.example.com"


class Credential(NamedTuple):
    """What a request carries besides. `opens`: it is a good one."""

    kind: str
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    opens: bool = True


def settings_in(folder: Path) -> dict[str, str]:
    """A server's, which knows the credentials."""
    issuers, masks = folder / "issuers.toml", folder / "masks.toml"
    issuers.write_text(
        f'[issuer.app]\niss = "{ISSUER}"\ntenants = ["default", "acme"]\nalgorithms = ["HS256"]\n'
        f'secret_env = "SECRET_OF_THE_APP"\nscopes = {sorted(OF_TOKENS)}\n'
    )
    masks.write_text("[[mask]]\nname = 'none'\npattern = 'never-said'\n")
    return {
        "LASTEVENT_API_KEYS": KEY,
        "LASTEVENT_ISSUERS": str(issuers),
        "LASTEVENT_REDACT_FILE": str(masks),
        "LASTEVENT_UNAUTHORIZED_PER_MINUTE": "1000000",
        "SECRET_OF_THE_APP": SECRET.decode(),
    }


def credentials_of(deployment: Deployment, api: Api, sids: Sequence[str]) -> list[Credential]:
    """For a server of these settings; `sids`: the streams that tokens are for. `api` has the key KEY."""
    keys = {
        f"{scope} of {tenant}": new_key(tenant, frozenset({scope}))
        for tenant in ("default", "acme")
        for scope in sorted(OF_KEYS)
    }
    expired, revoked = new_key("default", frozenset({"admin"}), lasts_s=-1), new_key("default", frozenset({"admin"}))
    at = int(time.time())
    store_keys(deployment, [*(key for key, _ in keys.values()), expired[0], revoked[0].revoked_at(at)])
    wait_until(lambda: _is_known(api, keys["admin of acme"][1]), "the server knows the keys")
    api.post("/v1/tokens/revoke", {"jti": "revoked"}).raise_for_status()
    scopes = sorted(OF_TOKENS)
    wrong = [
        Credential("none"),
        *(_in_header(text, text) for text in ("x", "a.b.c", "lek_aaaaaaaaaaaa_" + "a" * 43)),
        Credential("no Bearer", {"Authorization": "Basic eDp5"}),
        _in_header("an expired key", expired[1]),
        _in_header("a revoked key", revoked[1]),
        _in_header("an expired token", _token(sids, iat=at - 1200, exp=at - 600)),
        _in_header("a revoked token", _token(sids, jti="revoked")),
        _in_header("a token of nobody's", _token(sids, iss="https://nobody.example.com")),
        Credential("a key in an address", query={"access_token": KEY}),
        Credential("a token of a whole user in an address", query={"access_token": _token(None, own=True)}),
    ]
    right = [
        *(_in_header(kind, secret) for kind, (_, secret) in keys.items()),
        *(_in_header(f"a token for {scope}", _token(sids, scope=scope)) for scope in scopes),
        _in_header("a token of another tenant", _token(sids, tenant="acme", scope=" ".join(scopes))),
        _in_header("a token of a user", _token(None, own=True, scope=" ".join(scopes))),
        *(Credential("a cookie", {"Cookie": f"{COOKIE}={_token(sids, scope=scope)}"}) for scope in scopes),
        *(Credential("a token in an address", query={"access_token": _token([sid])}) for sid in sids),
    ]
    return [*(credential._replace(opens=False) for credential in wrong), *right]


def store_keys(deployment: Deployment, keys: Sequence[ApiKey]) -> None:
    """As `lastevent keys` does."""

    async def put(log: Any) -> None:
        for key in keys:
            await log.redis.hset(log.keys.api_keys, key.id, key.to_json())
        await log.redis.publish(log.keys.api_keys_changed, "")

    with_redis(deployment, put)


def _token(sids: Sequence[str] | None, **changed: Any) -> str:
    named: dict[str, Any] = {"streams": ... if sids is None else list(sids)}
    told = claims(**{"iss": ISSUER, "tenant": "default", **named, **changed})
    return by_hmac(SECRET, {"alg": "HS256"}, told)


def _in_header(kind: str, text: str) -> Credential:
    return Credential(kind, {"Authorization": f"Bearer {text}"})


def _is_known(api: Api, key: str) -> bool:
    return api.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
