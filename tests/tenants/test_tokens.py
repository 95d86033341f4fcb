"""Tokens: what ours hold, and that nothing but a token of a known issuer, in every rule's bounds, opens anything."""

from __future__ import annotations

import base64
import json
import time
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import Key, OctKey, OKPKey, RSAKey

from broker.errors import InvalidRequest, InvalidToken, RedisUnavailable, TokenExpired
from broker.tenants import tokens as tokens_module
from broker.tenants.issuers import GivenKeys, Issuer, Issuers
from broker.tenants.scopes import OF_TOKENS
from broker.tenants.token import EXPIRING_S, Token
from broker.tenants.tokens import KEPT, Tokens
from tests.tenants.forge import SECRET, SID, a_key, by_hmac, claims, segment, signed, tokens

READ = frozenset({"streams:read"})
OURS = OctKey.generate_key(256)
SHOP = "https://login.example.com"


def issuer(key: Key = OURS, *algorithms: str, **changed: Any) -> Issuer:
    given = {"iss": SHOP, "tenants": frozenset({"acme"}), "is_fixed": True, "scopes": OF_TOKENS, "leeway_s": 30}
    given |= {"name": "shop", "audience": "lastevent", "max_ttl_s": 3600}
    algorithms = algorithms or ("HS256",)
    return Issuer(algorithms=frozenset(algorithms), keys=GivenKeys(key), **{**given, **changed})


def knowing(*known: Issuer) -> Tokens:
    return tokens(issuers=Issuers(known or [issuer()]))


def minted(made_by: Tokens, **changed: Any) -> str:
    given: dict[str, Any] = {"tenant": "acme", "subject": "ann", "scopes": READ, "opens": {"streams": [SID]}}
    return made_by.mint(**{**given, "ttl_s": 600, **changed}).text


# -- ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opened", [{"streams": [SID, "b"]}, {"sessions": ["s 1", "ü"]}, {"own": True}], ids=lambda one: next(iter(one))
)
def test_what_is_minted_is_what_is_verified(opened: dict[str, Any]) -> None:
    made = tokens().mint("acme", "ann", OF_TOKENS, opened, 600)
    token = tokens().verified(made.text)
    assert (token.tenant, token.subject, token.scopes, token.expires) == ("acme", "ann", OF_TOKENS, made.expires)
    assert (token.streams, token.sessions, token.own) == (
        *(frozenset(opened[name]) if name in opened else None for name in ("streams", "sessions")),
        "own" in opened,
    )
    assert 0 <= time.time() - token.issued < 60
    assert token.expires - int(token.issued) == 600
    assert token.jti
    assert token.jti != tokens().verified(minted(tokens())).jti


def test_of_several_secrets_the_first_signs_and_all_are_accepted() -> None:
    old, new = b"the-old-one" * 3, b"the-new-one" * 3
    of_old, of_new = minted(tokens(old)), minted(tokens(new, old))
    assert tokens(new, old).verified(of_old).subject == "ann"
    assert tokens(new).verified(of_new).subject == "ann"
    with pytest.raises(InvalidToken):
        tokens(new).verified(of_old)


def test_a_secret_signs_nothing_by_itself() -> None:
    header = orjson.loads(base64.urlsafe_b64decode(minted(tokens()).split(".")[0] + "=="))
    good = claims(iss="lastevent", tenant="acme")
    for forged in (by_hmac(SECRET, header, good), by_hmac(b"", header, good), by_hmac(SECRET, {"alg": "HS256"}, good)):
        with pytest.raises(InvalidToken):
            tokens().verified(forged)


def test_until_the_secret_is_known_a_token_is_neither_good_nor_bad() -> None:
    unknowing = Tokens(list, Issuers(), audience="lastevent", max_ttl_s=600)
    with pytest.raises(RedisUnavailable):
        unknowing.verified(minted(tokens()))
    with pytest.raises(RedisUnavailable):
        minted(unknowing)


def test_a_token_that_is_too_long_in_time_or_in_characters_is_not_made() -> None:
    with pytest.raises(InvalidRequest, match="ttl_s"):
        minted(tokens(max_ttl_s=599))
    with pytest.raises(InvalidRequest, match="4096"):
        minted(tokens(), opens={"sessions": ["s" * 200 for _ in range(16)]})


# -- other issuers ---------------------------------------------------------------------------------------

ALGORITHMS = ["HS256", "HS384", "HS512", "RS256", "RS512", "PS256", "ES256", "ES384", "Ed25519", "EdDSA"]


@pytest.fixture(scope="module")
def private() -> dict[str, Key]:
    made = {name: a_key(name) for name in ALGORITHMS}
    return made | {"PS256": made["RS256"], "RS512": made["RS256"], "EdDSA": made["Ed25519"]}


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # of the test's own signing
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_verifies_its_issuers_tokens(private: dict[str, Key], algorithm: str) -> None:
    verifier = knowing(issuer(private[algorithm], algorithm))
    good = signed(private[algorithm], algorithm, claims(), kid="k1")
    assert verifier.verified(good).tenant == "acme"
    signature = good.rpartition(".")[2]
    at = -len(signature) // 2
    with pytest.raises(InvalidToken, match="signature"):
        verifier.verified(f"{good[:at]}{'A' if good[at] != 'A' else 'B'}{good[at + 1 :]}")


def test_an_algorithm_that_its_issuer_does_not_use_is_refused_whatever_the_token_says(private: dict[str, Key]) -> None:
    rsa = private["RS256"]
    assert isinstance(rsa, RSAKey)
    verifier = knowing(issuer(rsa, "RS256"))
    pem = rsa.as_pem(private=False)
    for public in (pem, pem.strip(), rsa.as_der(private=False), orjson.dumps(rsa.as_dict(private=False))):
        for algorithm in ("HS256", "RS256"):
            with pytest.raises(InvalidToken):
                verifier.verified(by_hmac(public, {"alg": algorithm, "typ": "JWT"}, claims()))
    for algorithm in ("PS256", "RS512", "ES256"):
        with pytest.raises(InvalidToken, match="algorithm"):
            verifier.verified(signed(private[algorithm], algorithm, claims()))


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None, 5, ["HS256"], {"a": 1}, "HS256 ", "hs256"])
def test_no_token_goes_without_a_signature(name: Any) -> None:
    for header in ({"alg": name}, {"alg": name, "kid": "k"}):
        signed_part = f"{segment(header)}.{segment(claims())}"
        for text in (f"{signed_part}.", f"{signed_part}.AAAA", by_hmac(b"", header, claims())):
            with pytest.raises(InvalidToken):
                knowing().verified(text)
    with pytest.raises(InvalidToken):
        knowing().verified(by_hmac(b"", {"typ": "JWT"}, claims()))


def test_a_key_is_its_issuers_alone() -> None:
    other = OctKey.generate_key(256)
    verifier = knowing(issuer(), issuer(other, iss="https://other.example.com", tenants=frozenset({"globex"})))
    assert verifier.verified(signed(OURS, "HS256", claims())).tenant == "acme"
    assert verifier.verified(signed(other, "HS256", claims(iss="https://other.example.com"))).tenant == "globex"
    for key, iss in ((other, SHOP), (OURS, "https://other.example.com"), (OURS, "lastevent"), (OURS, "https://nobody")):
        with pytest.raises(InvalidToken):
            verifier.verified(signed(key, "HS256", claims(iss=iss, tenant="acme"), kid="k"))
    kid = orjson.loads(base64.urlsafe_b64decode(minted(tokens()).split(".")[0] + "=="))["kid"]
    with pytest.raises(InvalidToken):  # our kid, and another's key
        verifier.verified(signed(OURS, "HS256", claims(iss="lastevent", tenant="acme"), kid=kid))


@pytest.mark.parametrize("kid", ["../../../dev/null", "/dev/null", "k' OR '1'='1", "http://evil.example/k", "", "\x00"])
def test_a_kid_is_looked_up_and_nothing_else(kid: str) -> None:
    forged = by_hmac(b"", {"alg": "HS256", "kid": kid}, claims(iss="lastevent", tenant="acme"))
    with pytest.raises(InvalidToken):
        knowing().verified(forged)


def test_a_key_within_the_token_or_an_address_of_one_is_not_looked_at() -> None:
    own = OKPKey.generate_key("Ed25519")
    for header in (
        {"jwk": own.as_dict(private=False)},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example"},
    ):
        with pytest.raises(InvalidToken):
            knowing(issuer(a_key("Ed25519"), "Ed25519")).verified(signed(own, "Ed25519", claims(), **header))


HEADERS: dict[str, dict[str, Any]] = {
    "an ID token's own type": {"typ": "id+jwt"},
    "a logout token": {"typ": "logout+jwt"},
    "a security event": {"typ": "secevent+jwt"},
    "no text for a type": {"typ": 5},
    "an extension": {"crit": ["exp"], "exp": 5},
    "an extension that is there": {"crit": ["alg"]},
    "no list of extensions": {"crit": 5},
    "an empty list of extensions": {"crit": []},
    "an unencoded payload": {"b64": False, "crit": ["b64"]},
    "an unencoded payload in silence": {"b64": False},
    "no text for a kid": {"kid": 5},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_says_what_is_not_known_here_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        knowing().verified(by_hmac(OURS.raw_value, {"alg": "HS256", **header}, claims()))


@pytest.mark.parametrize("kind", [{}, {"typ": "JWT"}, {"typ": "at+jwt"}, {"typ": "application/at+JWT"}, {"x": [1]}])
def test_these_headers_are_an_access_token_s(kind: dict[str, Any]) -> None:
    assert knowing().verified(by_hmac(OURS.raw_value, {"alg": "HS256", **kind}, claims())).subject == "ann"


NOW = int(time.time())
WRONG: dict[str, dict[str, Any]] = {
    "another audience": {"aud": "elsewhere"},
    "no audience": {"aud": ...},
    "an audience within another word": {"aud": "not-lastevent"},
    "audiences without ours": {"aud": ["a", {"b": 1}, None]},
    "no audience at all": {"aud": {"lastevent": 1}},
    "no expiry": {"exp": ...},
    "an expiry in words": {"exp": "2099-01-01"},
    "no number for an expiry": {"exp": True},
    "an expiry that no clock has": {"exp": 10**400},
    "no time of issue": {"iat": ...},
    "issued after its expiry": {"iat": NOW + 20, "exp": NOW + 10},
    "too long a life": {"exp": NOW + 3700},
    "issued in an hour": {"iat": NOW + 3600, "exp": NOW + 4000},
    "not yet": {"nbf": NOW + 3600},
    "no number for not yet": {"nbf": "0"},
    "no subject": {"sub": ...},
    "an empty subject": {"sub": ""},
    "a subject that is too long": {"sub": "x" * 201},
    "a subject with a line feed": {"sub": "ann\nbob"},
    "a subject with an escape": {"sub": "\x1b[2J"},
    "a subject with a C1 control": {"sub": "\x9b2J"},
    "a subject that is a number": {"sub": 5},
    "an id that is a number": {"jti": 5},
    "no scope": {"scope": ...},
    "an empty scope": {"scope": ""},
    "a scope of keys": {"scope": "admin streams:write streams:inspect tokens:mint"},
    "scopes in a list": {"scope": ["streams:read"]},
    "scopes with commas": {"scope": "streams:read,streams:cancel"},
    "nothing to open": {"streams": ...},
    "two things to open": {"own": True},
    "no streams": {"streams": []},
    "no list of streams": {"streams": SID},
    "too many streams": {"streams": [f"s{n}" for n in range(65)]},
    "a stream that is no name": {"streams": [SID, 5]},
    "an empty stream": {"streams": [""]},
    "a pattern's object": {"streams": [{"like": "*"}]},
    "too many sessions": {"streams": ..., "sessions": [f"s{n}" for n in range(17)]},
    "own in words": {"streams": ..., "own": "true"},
    "own as a number": {"streams": ..., "own": 1},
    "not own": {"streams": ..., "own": False},
    "streams that are null": {"streams": None},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG)
def test_a_claim_that_breaks_its_rule_is_refused(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    payload = orjson.loads(orjson.dumps(claims())) | changed
    as_json = orjson.dumps({n: v for n, v in payload.items() if v is not ... and v != 10**400})
    if payload["exp"] == 10**400:
        as_json = as_json[:-1] + b',"exp":1' + b"0" * 400 + b"}"
    with pytest.raises(InvalidToken) as refused:
        knowing().verified(by_hmac(OURS.raw_value, {"alg": "HS256"}, as_json))
    assert type(refused.value) is InvalidToken
    assert "ann" not in str(refused.value)


def test_what_else_a_token_says_is_for_others(private: dict[str, Key]) -> None:
    more = claims(
        aud=["elsewhere", "lastevent"], scope="openid streams:read admin", nonce="x", email="a@example.com", tenant="no"
    )
    token = knowing().verified(signed(OURS, "HS256", more))
    assert (token.tenant, token.scopes) == ("acme", READ)


def test_an_issuer_grants_no_more_and_speaks_for_no_other_than_its_entry_says() -> None:
    limited = issuer(scopes=READ, tenants=frozenset({"acme", "globex"}), is_fixed=False)
    verifier = knowing(limited)
    of_both = signed(OURS, "HS256", claims(scope="streams:cancel streams:read", tenant="globex"))
    assert (verifier.verified(of_both).scopes, verifier.verified(of_both).tenant) == (READ, "globex")
    for changed in ({"scope": "streams:cancel", "tenant": "acme"}, {"tenant": "other"}, {}, {"tenant": ["acme"]}):
        with pytest.raises(InvalidToken):
            verifier.verified(signed(OURS, "HS256", claims(**changed)))


def test_the_clocks_of_two_machines_may_differ_by_half_a_minute() -> None:
    now = int(time.time())
    for changed in ({"iat": now + 20}, {"nbf": now + 20}, {"iat": now - 600, "exp": now - 20}):
        assert knowing().verified(signed(OURS, "HS256", claims(**changed)))
    with pytest.raises(TokenExpired):
        knowing().verified(signed(OURS, "HS256", claims(iat=now - 600, exp=now - 40)))


def test_that_it_has_expired_learns_only_who_has_the_right_token() -> None:
    past = claims(iat=NOW - 7200, exp=NOW - 3600)
    with pytest.raises(TokenExpired):
        knowing().verified(signed(OURS, "HS256", past))
    with pytest.raises(InvalidToken) as refused:
        knowing().verified(signed(OctKey.generate_key(256), "HS256", past))
    assert type(refused.value) is InvalidToken


TWICE = [
    b'{"alg":"HS256","alg":"HS256"}',
    b'{"alg":"none","alg":"HS256"}',
    b'{"alg":"HS256","kid":"a","kid":"b"}',
    b'{"alg":"HS256","\\u0061lg":"HS256"}',
]


@pytest.mark.parametrize("header", TWICE)
def test_a_header_with_a_member_twice_is_refused(header: bytes) -> None:
    with pytest.raises(InvalidToken):
        knowing().verified(by_hmac(OURS.raw_value, header, claims()))


def test_claims_with_a_member_twice_are_refused() -> None:
    body = orjson.dumps(claims())
    for more in (b',"sub":"bob"}', b',"iss":"lastevent"}', b',"exp":99999999999}', b',"x":{"a":1,"a":2}}'):
        with pytest.raises(InvalidToken):
            knowing().verified(by_hmac(OURS.raw_value, {"alg": "HS256"}, body[:-1] + more))


NO_JSON = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe{}",
    '{"a":1}'.encode("utf-16"),
    b"[" * 2900,
    b'{"exp":NaN}',
    b"{}",
]


@pytest.mark.parametrize("part", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_object_is_no_token(part: bytes) -> None:
    for header, payload in ((part, claims()), ({"alg": "HS256"}, part)):
        with pytest.raises(InvalidToken):
            knowing().verified(by_hmac(OURS.raw_value, header, payload))


def test_half_a_character_is_no_subject() -> None:
    body = orjson.dumps(claims(sub="HERE")).replace(b"HERE", b"\\ud800")
    with pytest.raises(InvalidToken):
        knowing().verified(by_hmac(OURS.raw_value, {"alg": "HS256"}, body))


def test_a_token_of_more_than_4_kb_is_not_looked_at() -> None:
    long = signed(OURS, "HS256", claims(more="x" * 4000))
    with pytest.raises(InvalidToken, match="4096"):
        knowing().verified(long)


def test_another_spelling_of_a_token_is_none() -> None:
    good = signed(OURS, "HS256", claims())
    head, payload, signature = good.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    next_one = last[(last.index(signature[-1]) // 4) * 4 + 1]
    spelled = [f"{good}=", f"{good}.", f" {good}", f"{good}\n", f"{head}=.{payload}.{signature}"]
    spelled += [f"{head}.{payload}.{signature[:-1]}{next_one}", good.replace("-", "+").replace("_", "/") + "+"]
    for text in spelled:
        if text != good:
            with pytest.raises(InvalidToken):
                knowing().verified(text)


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}"))
def test_whatever_else_comes_is_no_token(text: str) -> None:
    with pytest.raises(InvalidToken):
        knowing().verified(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(["iss", "aud", "exp", "iat", "nbf", "sub", "jti", "scope", "streams", "sessions", "own", "tenant"]),
    JSON,
)
def test_no_claim_of_a_signed_token_breaks_what_reads_it(name: str, value: Any) -> None:
    verifier = knowing(issuer(is_fixed=False))
    try:
        token = verifier.verified(signed(OURS, "HS256", {**claims(tenant="acme"), name: value}))
    except InvalidToken:
        return
    assert token.tenant == "acme"
    assert token.scopes <= OF_TOKENS


@given(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "jku", "x5c", "zip", "enc"]), JSON)
def test_no_header_of_a_signed_token_breaks_what_reads_it(name: str, value: Any) -> None:
    header = {"alg": "HS256", name: value}
    with suppress(InvalidToken):
        knowing().verified(by_hmac(OURS.raw_value, json.dumps(header).encode(), claims()))


# -- what is kept ----------------------------------------------------------------------------------------


def test_a_verified_token_is_known_again_until_it_expires_and_not_all_of_them_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert KEPT == 10_000
    monkeypatch.setattr(tokens_module, "KEPT", 3)
    verifier = knowing()
    made = [signed(OURS, "HS256", claims(sub=f"u{n}")) for n in range(5)]
    first = [verifier.verified(text) for text in made]
    assert len(verifier._verified) == 3
    assert verifier.verified(made[-1]) is first[-1]
    assert verifier.verified(made[0]) == first[0]
    clock = time.time() + 631  # and the leeway
    monkeypatch.setattr(tokens_module.time, "time", lambda: clock)
    with pytest.raises(TokenExpired):
        verifier.verified(made[-1])


def test_a_name_is_of_what_is_signed_so_that_more_signatures_of_it_get_no_more_places(private: dict[str, Key]) -> None:
    verifier, payload = knowing(issuer(private["ES256"], "ES256")), claims()
    made = [signed(private["ES256"], "ES256", payload) for _ in range(2)]
    assert made[0] != made[1]
    assert verifier.verified(made[0]).id == verifier.verified(made[1]).id


# -- their ends ------------------------------------------------------------------------------------------


def a_token(name: str, issued: float, expires: float) -> Token:
    return Token(name, "lastevent", "acme", "ann", READ, issued, expires, streams=frozenset({SID}))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 100_000))
def test_connections_end_in_the_last_part_of_a_token_s_life_at_a_moment_that_is_its_own(name: bytes, life: int) -> None:
    token = a_token(name.hex(), 1000, 1000 + life)
    assert 0 <= token.expires - token.cuts_at <= min(life / 10, 60)
    assert a_token(name.hex(), 1000, 1000 + life).cuts_at == token.cuts_at
    assert token.tells_at == (token.cuts_at - EXPIRING_S if life >= 60 else None)


def test_tokens_of_the_same_moment_end_at_different_ones() -> None:
    ends = sorted(knowing().verified(signed(OURS, "HS256", claims(jti=str(n)))).cuts_at for n in range(50))
    assert ends[-1] - ends[0] > 30


def test_only_a_token_of_one_stream_that_reads_may_be_in_an_address() -> None:
    def may(**changed: Any) -> bool:
        return knowing().verified(signed(OURS, "HS256", claims(**changed))).only_reads_one_stream

    assert may()
    assert not any([may(streams=[SID, "b"]), may(scope="streams:read streams:cancel"), may(scope="streams:append")])
    assert not any([may(streams=..., own=True), may(streams=..., sessions=["s"])])
