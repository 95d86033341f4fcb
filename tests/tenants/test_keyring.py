"""API keys: what one is, and which of them a server knows."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from broker.errors import RedisUnavailable
from broker.tenants.keyring import ApiKey, Doors, Keyring, given_key, key_id_of, new_key
from broker.tenants.scopes import EVERYTHING, OF_KEYS, PRESETS, key_scopes

READING = frozenset({"streams:read"})
GIVEN = "a-key-of-thirty-two-and-more-of-it"


def kept(*keys: ApiKey) -> dict[bytes, bytes]:
    return {key.id.encode(): key.to_json() for key in keys}


def test_a_key_is_found_by_what_its_owner_presents_and_by_nothing_else() -> None:
    key, secret = new_key("acme", READING, name="web")
    other, others = new_key("acme", READING)
    ring = Keyring()
    ring.know(kept(key, other))
    assert ring.find(secret) == key
    prefix, _, random = secret.rpartition("_")
    wrong = [f"{secret}x", secret[:-1], secret.upper(), f" {secret}", key.id, prefix, random, key.digest.hex(), ""]
    wrong += [f"lek_{other.id}_{random}", f"lek_aaaaaaaaaaaa_{random}", secret.replace("lek_", "lek-"), "lek__"]
    assert [one for one in wrong if ring.find(one)] == []
    assert ring.find(others) == other


def test_what_is_kept_of_a_key_has_no_secret() -> None:
    key, secret = new_key("acme", READING, name="web", lasts_s=60)
    said = [key.to_json().decode(), key.to_line(), json.dumps(key.shown()), repr(key)]
    assert not any(secret.rpartition("_")[2] in one for one in said)
    assert ApiKey.from_json(key.id, key.to_json()) == ApiKey.from_line(key.to_line()) == key
    assert "digest" not in key.shown()
    assert "secret_sha256" not in key.shown()


def test_a_key_ends_at_its_moment_without_anybody_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = new_key("acme", READING, lasts_s=60)
    ring = Keyring()
    ring.know(kept(key))
    assert key.expires
    for now, is_good in ((key.expires - 0.001, True), (key.expires, False)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert (ring.find(secret) is not None, ring.is_good(key.id)) == (is_good, is_good)


def test_a_revoked_key_is_not_let_in_and_its_digest_is_gone() -> None:
    key, secret = new_key("acme", READING)
    ring = Keyring()
    ring.know(kept(key))
    revoked = key.revoked_at(7)
    assert b"secret" not in revoked.to_json()
    ring.know(kept(revoked))
    assert ring.find(secret) is None
    assert not ring.is_good(key.id)
    for lost in (kept(key), {}):  # Redis has lost its last second, or everything
        assert ring.know(lost) == ring.know(lost) == {key.id: revoked}
        assert ring.find(secret) is None
    assert ring.know(kept(revoked)) == {}


def test_a_key_that_redis_no_longer_has_is_not_let_in() -> None:
    key, secret = new_key("acme", READING)
    ring = Keyring()
    ring.know(kept(key))
    ring.know({})
    assert ring.find(secret) is None
    assert not ring.is_good(key.id)


def test_while_redis_has_not_answered_a_key_may_be_good() -> None:
    ring = Keyring([given_key(GIVEN, EVERYTHING)])
    _, secret = new_key("acme", READING)
    with pytest.raises(RedisUnavailable):
        ring.find(secret)
    assert ring.find("no key at all") is None
    found = ring.find(GIVEN)
    assert found
    assert ring.is_good(found.id)
    assert ring.is_given(found.id)


def _doors(reads: list[int], *, given: bool, may_open: bool) -> list[Doors]:
    ring = Keyring([given_key(GIVEN, EVERYTHING)] if given else (), may_open=may_open)
    seen = [ring.doors]
    for count in reads:
        ring.know(kept(*(new_key("a", READING)[0] for _ in range(count))))
        seen.append(ring.doors)
    return seen


UNKNOWN, OPEN, KEYED = Doors.UNKNOWN, Doors.OPEN, Doors.KEYED


@pytest.mark.parametrize(
    ("given", "may_open", "reads", "doors"),
    [
        (False, True, [0, 0], [UNKNOWN, OPEN, OPEN]),
        (False, True, [0, 1, 0], [UNKNOWN, OPEN, KEYED, KEYED]),
        (False, True, [1, 0], [UNKNOWN, KEYED, KEYED]),
        (False, False, [0, 1, 0], [UNKNOWN, KEYED, KEYED, KEYED]),
        (True, True, [0, 1, 0], [KEYED, KEYED, KEYED, KEYED]),
    ],
)
def test_who_has_seen_a_key_asks_for_one_for_ever(
    given: bool, may_open: bool, reads: list[int], doors: list[Doors]
) -> None:
    assert _doors(reads, given=given, may_open=may_open) == doors


WHOLE, _ = new_key("acme", READING)


@pytest.mark.parametrize(
    "change",
    [
        *({"tenant": tenant} for tenant in ("", "A", "a/b", "-a", "a" * 64, 7, None)),
        *({"scopes": scopes} for scopes in ([], ["streams:red"], ["audit:masked", "streams:read"], 7, [7], None)),
        *({"secret_sha256": digest} for digest in ("", "ab", "A" * 64, 7, None)),
        *({"created": at} for at in ("x", None, [])),
        *({"name": name} for name in ("a\nb", "a" * 201, 7)),
        {"expires": "soon"},
        *({name: 10**30} for name in ("created", "expires", "revoked")),  # GET /v1/keys could not show it: 500
        {"expires": 10**12},
    ],
    ids=str,
)
def test_what_is_no_key_is_not_let_in_and_counts_as_one_all_the_same(change: dict[str, object]) -> None:
    damaged = json.dumps({**json.loads(WHOLE.to_json()), **change}).encode()
    with pytest.raises(ValueError, match="no API key"):
        ApiKey.from_json(WHOLE.id, damaged)
    ring = Keyring()
    ring.know({WHOLE.id.encode(): damaged})
    assert ring.doors is Doors.KEYED
    assert not ring.is_good(WHOLE.id)


@pytest.mark.parametrize("text", ["", "x", "[]", "null", "7", '{"revoked": 1}', "[" * 100_000, '{"id": 7}'])
def test_no_text_breaks_the_reader(text: str) -> None:
    for read in (lambda: ApiKey.from_json(WHOLE.id, text), lambda: ApiKey.from_line(text)):
        with pytest.raises(ValueError, match="no API key"):
            read()


def test_who_gives_a_whole_key_means_its_id() -> None:
    key, secret = new_key("acme", READING)
    assert {key_id_of(text) for text in (secret, key.id, f"lek_{key.id}")} == {key.id}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["streams:red"], "streams:red is no scope of a key. Did you mean streams:read?"),
        (["xyz"], "There are: streams:write, "),
        (["streams:input"], "streams:input is no scope of a key"),
        ([], "opens nothing"),
        (["audit:masked", "streams:read"], "stands alone"),
        (["audit:masked", "admin"], "stands alone"),
    ],
)
def test_scopes_are_checked(names: list[str], says: str) -> None:
    with pytest.raises(ValueError) as refused:
        key_scopes(names)
    assert says in str(refused.value)


def test_every_preset_and_every_scope_is_one_that_a_key_may_have() -> None:
    for names in (*PRESETS.values(), *({name} for name in OF_KEYS), {"audit:masked", "metrics:read"}):
        assert key_scopes(names) == names


def test_a_key_without_its_digest_is_none() -> None:
    with pytest.raises(ValueError, match="no API key"):
        ApiKey.from_json(WHOLE.id, replace(WHOLE, digest=b"").to_json())
