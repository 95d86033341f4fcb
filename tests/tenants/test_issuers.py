"""The file of issuers, and their keys: also those that a server of theirs gives, a real one, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey, Key, OctKey, RSAKey
from joserfc.util import int_to_base64

from broker.errors import InvalidToken, IssuerUnavailable
from broker.tenants import issuers as issuers_module
from broker.tenants.issuers import BadIssuers, FetchedKeys, Issuers, load_issuers, read_jwks
from tests.rig.deployment import wait_until
from tests.tenants.forge import a_key, claims, signed, tokens

SHOP = "https://login.example.com"
SECRET = "a-secret-of-an-issuer-that-nobody-may-see"


def loaded(folder: Path, text: str) -> Issuers:
    file = folder / "issuers.toml"
    file.write_text(text)
    return load_issuers(file, audience="lastevent", max_ttl_s=86_400, leeway_s=30)


def entry(**changed: Any) -> str:
    """TOML of one that is good; `...`: without it."""
    fields = {"iss": SHOP, "tenant": "acme", "algorithms": ["HS256"], "secret_env": "SHOP_SECRET", **changed}
    lines = [f"{name} = {orjson.dumps(value).decode()}" for name, value in fields.items() if value is not ...]
    return "\n".join(["[issuer.shop]", *lines])


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    monkeypatch.setenv("SHORT_SECRET", "too-short-to-be-a-secret-of-hmac")


def public_pem(key: Key) -> str:
    assert isinstance(key, ECKey | RSAKey)
    return key.as_pem(private=False).decode()


def jwks(*keys: Key, **more: Any) -> bytes:
    return orjson.dumps({"keys": [{**key.as_dict(private=False), **more} for key in keys]})


# -- the file --------------------------------------------------------------------------------------------


def test_an_entry_opens_what_it_says(tmp_path: Path) -> None:
    verifier = tokens(issuers=loaded(tmp_path, entry(scopes=["streams:cancel"], audience="chat", max_ttl_s=700)))
    key = OctKey.import_key(SECRET.encode())
    good = claims(aud="chat", scope="streams:read streams:cancel")
    token = verifier.verified(signed(key, "HS256", good))
    assert (token.tenant, token.issuer, token.scopes) == ("acme", SHOP, {"streams:cancel"})
    for wrong in ({"aud": "lastevent"}, {"exp": good["iat"] + 701}, {"scope": "streams:read"}):
        with pytest.raises(InvalidToken):
            verifier.verified(signed(key, "HS256", {**good, **wrong}))


def test_by_default_a_token_of_others_reads(tmp_path: Path) -> None:
    found = loaded(tmp_path, entry()).find(SHOP)
    assert found
    assert (found.scopes, found.audience, found.max_ttl_s) == ({"streams:read"}, "lastevent", 86_400)
    assert loaded(tmp_path, "").find(SHOP) is None


EC, RSA = a_key("ES256"), a_key("RS256")
WEAK = generate_private_key(65537, 1024).public_key()
WEAK_PEM = WEAK.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
WEAK_JWK = {"kty": "RSA", "e": "AQAB", "n": int_to_base64(WEAK.public_numbers().n)}
PEM = {"secret_env": ..., "public_key": public_pem(EC), "algorithms": ["ES256"]}
BAD: dict[str, tuple[str, str]] = {
    "no TOML": ("[[", "no TOML"),
    "another table": ("[issuers.shop]", "issuers"),
    "an unknown field": (entry(url="x"), "issuer.shop.url"),
    "no name": (entry(iss=...), "issuer.shop.iss"),
    "our name": (entry(iss="lastevent"), "issuer.shop"),
    "no tenant": (entry(tenant=...), "tenants"),
    "both": (entry(tenants=["acme"]), "tenants"),
    "no tenants": (entry(tenant=..., tenants=[]), "issuer.shop.tenants"),
    "a tenant that is none": (entry(tenant="Acme:x"), "issuer.shop.tenant"),
    "a tenant and a line feed": (entry(tenant="acme\n"), "issuer.shop.tenant"),
    "no algorithm": (entry(algorithms=[]), "issuer.shop.algorithms"),
    "none": (entry(algorithms=["none"]), "issuer.shop.algorithms"),
    "an unknown algorithm": (entry(algorithms=["HS256", "RS1"]), "issuer.shop.algorithms"),
    "no key": (entry(secret_env=...), "one of"),
    "two keys": (entry(public_key=public_pem(EC)), "one of"),
    "a secret for signatures": (entry(algorithms=["RS256"]), "HS256"),
    "a secret for both": (entry(algorithms=["HS256", "RS256"]), "HS256"),
    "a public key for an HMAC": (entry(**PEM | {"algorithms": ["HS256"]}), "HS256"),
    "a public key for both": (entry(**PEM | {"algorithms": ["ES256", "HS256"]}), "HS256"),
    "a set for an HMAC": (entry(secret_env=..., jwks_url="https://x.example/k"), "HS256"),
    "another curve": (entry(**PEM | {"algorithms": ["ES384"]}), "public_key"),
    "another kind": (entry(**PEM | {"algorithms": ["RS256"]}), "public_key"),
    "a private key": (entry(**PEM | {"public_key": EC.as_pem(private=True).decode()}), "public_key"),  # type: ignore[union-attr]
    "no PEM": (entry(**PEM | {"public_key": "ssh-ed25519 AAAA"}), "public_key"),
    "a weak key": (entry(**PEM | {"public_key": WEAK_PEM, "algorithms": ["RS256"]}), "public_key"),
    "plain HTTP": (entry(**PEM | {"public_key": ..., "jwks_url": "http://login.example.com/k"}), "https"),
    "no address": (entry(**PEM | {"public_key": ..., "jwks_url": "file:///etc/passwd"}), "issuer.shop.jwks_url"),
    "no file": (entry(**PEM | {"public_key": ..., "jwks_file": "none.json"}), "jwks_file"),
    "no secret": (entry(secret_env="NOBODY_SETS_THIS"), "NOBODY_SETS_THIS"),
    "a short secret": (entry(algorithms=["HS384"], secret_env="SHORT_SECRET"), "48"),
    "a scope of keys": (entry(scopes=["streams:inspect"]), "issuer.shop.scopes"),
    "no scope": (entry(scopes=[]), "issuer.shop.scopes"),
    "a life beyond all": (entry(max_ttl_s=86_401), "LASTEVENT_TOKEN_MAX_TTL_S"),
    "a life of none": (entry(max_ttl_s=0), "issuer.shop.max_ttl_s"),
    "one issuer twice": (entry() + "\n" + entry().replace("[issuer.shop]", "[issuer.two]"), "same iss"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused_at_the_start_and_no_secret_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadIssuers) as refused:
        loaded(tmp_path, text)
    message = str(refused.value)
    assert says in message
    assert not any(secret in message for secret in (SECRET, "too-short-to-be", "BEGIN", "login.example.com/k"))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadIssuers, match="cannot be read"):
        load_issuers(tmp_path / "none.toml", audience="a", max_ttl_s=1, leeway_s=30)


# -- sets of keys ----------------------------------------------------------------------------------------


def test_of_a_set_only_what_fits_is_used() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "s"}
    others = [secret, {"kty": "AKP", "alg": "ML-DSA-44"}, {"kty": "EC", "crv": "P-256"}, {}, 5, None, {"kty": "RSA"}]
    good = EC.as_dict(private=False)
    for more in (others, [WEAK_JWK], [{**good, "key_ops": ["sign"]}]):
        assert len(read_jwks(orjson.dumps({"keys": [*more, good]}))) == 1
        with pytest.raises(ValueError, match="none of its keys"):
            read_jwks(orjson.dumps({"keys": more}))


@pytest.mark.parametrize(
    "said", [{"use": "enc"}, {"alg": "ES384"}, {"alg": "HS256"}, {"kid": "other"}], ids=lambda said: next(iter(said))
)
def test_a_key_is_for_what_it_says_itself(tmp_path: Path, said: dict[str, str]) -> None:
    (tmp_path / "keys.json").write_bytes(jwks(EC, **{"kid": "k1", **said}))
    found = loaded(tmp_path, entry(**PEM | {"public_key": ..., "jwks_file": "keys.json"}))
    with started(found), pytest.raises(InvalidToken):
        verify(found, signed(EC, "ES256", claims(), kid="k1"))


@contextmanager
def started(issuers: Issuers) -> Iterator[None]:
    issuers.start()
    try:
        wait_until(lambda: issuers.version, "the keys are there")
        yield
    finally:
        issuers.close()


def verify(issuers: Issuers, token: str) -> Any:
    return tokens(issuers=issuers).verified(token)


def test_a_file_of_keys_lies_beside_the_file_of_issuers(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(jwks(EC, RSA))
    fields = {"public_key": ..., "jwks_file": "keys.json", "algorithms": ["ES256", "RS256"]}
    found = loaded(tmp_path, entry(**PEM | fields))
    with started(found):
        for key, algorithm in ((EC, "ES256"), (RSA, "RS256")):
            assert verify(found, signed(key, algorithm, claims())).tenant == "acme"


class Provider:
    """An issuer's own server. `answers`: (status, headers, body) of each in turn; the last one again and again."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = list(answers)
        self.asked = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                status, headers, body = provider.answers[0]
                if len(provider.answers) > 1:
                    provider.answers.pop(0)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://user:{SECRET}@127.0.0.1:{self.server.server_address[1]}/keys"


@contextmanager
def provider(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[Provider]:
    made = Provider(*answers)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def of_url(folder: Path, url: str) -> Issuers:
    return loaded(folder, entry(**PEM | {"public_key": ..., "jwks_url": url}))


def ok(*keys: Key) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, jwks(*keys)


OLD, NEW = (ECKey.generate_key("P-256", {"kid": name}) for name in ("old", "new"))


def test_until_its_keys_are_there_an_issuers_token_is_neither_good_nor_bad(tmp_path: Path) -> None:
    with provider(ok(OLD)) as theirs:
        found = of_url(tmp_path, theirs.url)
        with pytest.raises(IssuerUnavailable):  # 401 would end an EventSource for good
            verify(found, signed(OLD, "ES256", claims(), kid="old"))
        with started(found):
            assert verify(found, signed(OLD, "ES256", claims(), kid="old")).subject == "ann"
            assert theirs.asked == 1


def test_an_unknown_kid_asks_again_and_not_more_than_once_in_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuers_module, "ASK_AGAIN_S", 0.0)
    with provider(ok(OLD), ok(NEW)) as theirs:
        found = of_url(tmp_path, theirs.url)
        of_old, of_new = (signed(key, "ES256", claims(), kid=key.kid) for key in (OLD, NEW))
        verifier = tokens(issuers=found)
        with started(found):
            assert verifier.verified(of_old)
            monkeypatch.setattr(issuers_module, "ASK_AGAIN_S", 1e6)
            with pytest.raises(IssuerUnavailable):
                verifier.verified(of_new)
            wait_until(lambda: found.version == 2, "they are fetched again")
            assert verifier.verified(of_new)
            with pytest.raises(InvalidToken):  # taken back: also what was verified before
                verifier.verified(of_old)
            for n in range(50):
                with pytest.raises(InvalidToken):
                    verifier.verified(signed(NEW, "ES256", claims(), kid=f"k{n}"))
            assert theirs.asked == 2


NO_SETS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "an error": (500, {}, jwks(NEW)),
    "a redirect": (302, {"Location": "/elsewhere"}, jwks(NEW)),
    "no JSON": (200, {}, b"<html>"),
    "no set": (200, {}, b"[]"),
    "no list": (200, {}, b'{"keys":{}}'),
    "an empty set": (200, {}, b'{"keys":[]}'),
    "more than anybody reads": (200, {}, jwks(NEW)[:-1] + b" " * 300_000 + b"}"),
}


@pytest.mark.parametrize("answer", NO_SETS.values(), ids=NO_SETS)
def test_while_its_keys_cannot_be_fetched_what_is_known_of_an_issuer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    monkeypatch.setattr(issuers_module, "ASK_AGAIN_S", 0.0)
    with provider(ok(OLD), answer) as theirs:
        found = of_url(tmp_path, theirs.url)
        verifier = tokens(issuers=found)
        with started(found):
            monkeypatch.setattr(issuers_module, "ASK_AGAIN_S", 1e6)
            with pytest.raises(IssuerUnavailable):
                verifier.verified(signed(NEW, "ES256", claims(), kid="new"))
            wait_until(lambda: "could not be read" in caplog.text, "it is said")
            assert verifier.verified(signed(OLD, "ES256", claims(), kid="old"))
            assert theirs.asked == 2
    assert SECRET not in caplog.text
    assert "shop" in caplog.text


def test_a_server_ends_though_an_issuer_does_not_answer() -> None:
    waiting, released = threading.Event(), threading.Event()

    def fetch() -> bytes:
        waiting.set()
        released.wait(30)
        return jwks(OLD)

    keys = FetchedKeys("slow", fetch)
    keys.start()
    assert waiting.wait(10)
    keys.close()
    assert keys._thread
    assert keys._thread.daemon
    released.set()
    keys._thread.join(10)
    assert not keys._thread.is_alive()
