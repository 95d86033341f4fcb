"""Seals and packed logs: pure functions."""

from __future__ import annotations

import hashlib

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from broker.archive.packing import compress, pack, unpack
from broker.archive.seal import NOTHING, Seal, Signer, is_signed, log_digest, record_digest
from broker.log.event import Event, encode_data, to_ndjson
from tests.archive.archive import events_of

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
KEYS = {SIGNER.key_id: SIGNER.public_key}
SID = "00112233445566778899aabbccddeeff"

events = st.lists(
    st.builds(
        Event,
        id=st.integers(1, 2**53 - 1),
        kind=st.sampled_from(["text_delta", "a", "a.b_9"]),
        data=st.builds(encode_data, st.recursive(st.none() | st.text() | st.integers(-5, 5), st.lists)),
        t=st.integers(0, 2**45),
    ),
    min_size=1,
)


@given(events)
def test_a_packed_log_is_the_same_log(log: list[Event]) -> None:
    assert unpack(pack(log)) == log


@pytest.mark.parametrize(
    "block", [b"", b"x", compress(b""), pack(events_of(SID, 5))[:-1], pack(events_of(SID, 5)) + b"x"]
)
def test_what_is_no_packed_log_is_refused(block: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(block)


def test_a_logs_digest_is_a_chain_over_the_lines_of_its_export() -> None:
    log, salt = events_of(SID, 3), b"salt"
    by_hand = hashlib.sha256(b"lastevent log 1\n" + salt).digest()
    for line in b"".join(map(to_ndjson, log)).splitlines(keepends=True):
        by_hand = hashlib.sha256(by_hand + line).digest()
    assert log_digest(salt, log) == by_hand.hex()
    assert record_digest(salt, b"{}") == hashlib.sha256(b"lastevent record 1\nsalt{}").hexdigest()


@given(st.data())
def test_any_change_to_a_log_changes_its_digest(data: st.DataObject) -> None:
    log = events_of(SID, 6)
    at = data.draw(st.integers(0, 5))
    changes = {
        "id": log[at]._replace(id=log[at].id + 1),
        "kind": log[at]._replace(kind=log[at].kind + "x"),
        "data": log[at]._replace(data=log[at].data + b" "),
        "t": log[at]._replace(t=log[at].t + 1),
    }
    changed = [*log[:at], changes[data.draw(st.sampled_from(list(changes)))], *log[at + 1 :]]
    shorter, longer, swapped = log[:at] + log[at + 1 :], [*log[:at], log[at], *log[at:]], log[::-1]
    digests = {log_digest(b"", one) for one in (log, changed, shorter, longer, swapped)}
    assert len(digests) == 5


def test_a_statement_is_canonical_and_signed_to_the_byte() -> None:
    seal = SIGNER.seal("t", 7, NOTHING, 123, "stream", {"stream": SID})
    assert seal.statement == orjson.dumps(orjson.loads(seal.statement), option=orjson.OPT_SORT_KEYS)
    assert seal.claims() == {
        "v": 1,
        "kind": "stream",
        "tenant": "t",
        "number": 7,
        "previous": NOTHING,
        "at": 123,
        "key": SIGNER.key_id,
        "stream": SID,
    }
    SIGNER.public_key.verify(seal.signature, b"lastevent seal 1\n" + seal.statement)
    assert is_signed(seal, KEYS)
    assert seal.digest == hashlib.sha256(seal.statement).hexdigest()


@given(st.data())
def test_no_other_byte_will_do(data: st.DataObject) -> None:
    seal = SIGNER.seal("t", 7, NOTHING, 123, "stream", {"stream": SID})
    part = data.draw(st.sampled_from(["statement", "signature"]))
    whole = bytearray(getattr(seal, part))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    assert not is_signed(seal._replace(**{part: bytes(whole)}), KEYS)


def test_another_key_is_no_key() -> None:
    other = Signer(Ed25519PrivateKey.generate())
    seal = other.seal("t", 1, NOTHING, 1, "stream", {})
    assert not is_signed(seal, KEYS)
    assert not is_signed(seal, {SIGNER.key_id: SIGNER.public_key, other.key_id: SIGNER.public_key})
    assert not is_signed(Seal(b"[]", b""), KEYS)


def test_a_log_of_500_events_takes_less_than_a_fifth_of_its_ndjson() -> None:
    log = events_of(SID, 500)
    assert len(pack(log)) < len(b"".join(map(to_ndjson, log))) / 5
