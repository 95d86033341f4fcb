"""Whose request it is: the peer, or the last address that the trusted proxies have added."""

from __future__ import annotations

import re
import time

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.types import Message

from broker.errors import RateLimited
from broker.settings import Settings
from broker.tenants.enforcement import Enforcement
from broker.tenants.scopes import READ
from broker.web.addresses import Addresses, AddressPlaces
from broker.web.rates import MOST_NAMES, PerMinute, UnauthorizedGate
from tests.web.callers import KEY, ask, served

PROXIES = ("10.0.0.0/8", "2001:db8:ffff::/48")


def request_from(peer: str | None, *forwarded: str) -> Request:
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]
    client = None if peer is None else (peer, 4711)
    return Request({"type": "http", "client": client, "headers": headers})


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.7, 10.9.9.9"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1", "203.0.113.7,10.9.9.9"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7:5555"], "203.0.113.7"),
        ("10.0.0.1", ["[2001:db8::1]:5555"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("2001:db8:ffff::1", ["203.0.113.7"], "203.0.113.7"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        # Who is no proxy may write what he likes, and what a proxy did not write as an address counts as its own.
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, "], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, 1.2.3.4.5"], "10.0.0.1"),
        ("10.0.0.1", ["nonsense, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1" + ", 10.1.1.1" * 40], "10.0.0.1"),
        ("not an address", ["203.0.113.7"], "not an address"),
        (None, ["203.0.113.7"], None),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(
    peer: str | None, forwarded: list[str], client: str | None
) -> None:
    assert Addresses(PROXIES).of(request_from(peer, *forwarded)) == client


def test_without_trusted_proxies_the_header_says_nothing() -> None:
    assert Addresses().of(request_from("10.0.0.1", "203.0.113.7")) == "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("127.0.0.1", None),
        ("127.9.9.9", None),
        ("::1", None),
        ("10.1.2.3", None),
        ("::ffff:10.1.2.3", None),
        ("not an address", None),
        (None, None),
    ],
)
def test_an_address_counts_as_itself_or_its_network_of_64_bits(address: str | None, counts_as: str | None) -> None:
    assert Addresses(PROXIES).counted(address) == counts_as


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ("10.0.0.0/33", "each is an address, or a network"),
        ("proxy.example.com", "each is an address, or a network"),
        ("10.0.0.1,0.0.0.0/0", "would let every client choose"),
        ("::/0", "would let every client choose"),
    ],
)
def test_trusted_proxies_are_networks_and_not_everybody(networks: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(trusted_proxies=networks)  # type: ignore[arg-type]
    assert Settings(trusted_proxies="10.0.0.1, fd00::1/8").trusted_proxies == ("10.0.0.1", "fd00::1/8")  # type: ignore[arg-type]


async def test_the_access_record_has_the_client_and_the_header_as_it_came(redis: Redis, valkey_url: str) -> None:
    async with served(valkey_url, trusted_proxies="10.0.0.0/8") as app:
        sid = (await ask(app, "POST", "/v1/streams", {"producer": "external"})).json()["id"]
        header = {"x_forwarded_for": "198.51.100.1, 203.0.113.7"}
        assert (await ask(app, "GET", f"/v1/streams/{sid}", address="10.0.0.1", **header)).status_code == 200
        await app.state.tier.access.close()
        [view] = (await ask(app, "GET", f"/v1/streams/{sid}/views")).json()["views"]
        assert (view["address"], view["forwarded_for"]) == ("203.0.113.7", header["x_forwarded_for"])
        await ask(app, "POST", f"/v1/streams/{sid}/cancel")


# -- connections ---------------------------------------------------------------------------------------------


def test_an_address_has_so_many_connections_and_others_keep_theirs() -> None:
    enforcement = Enforcement()
    places = AddressPlaces(2, Addresses(PROXIES), enforcement)
    assert [places.take("2001:db8::1"), places.take("2001:db8::2"), places.take("2001:db8::3")] == [True, True, False]
    assert places.take("203.0.113.7")
    assert all(places.take(free) for free in ("127.0.0.1", "10.0.0.1") for _ in range(5))
    for _ in range(2):  # the refused one, too
        places.free("2001:db8::1")
    assert places.take("2001:db8::9")
    assert enforcement.counts == {"connections_per_address": 1}


# -- who guesses ---------------------------------------------------------------------------------------------


def test_an_address_that_guesses_is_not_listened_to_until_the_minute_is_over() -> None:
    now = 30.0
    gate = UnauthorizedGate(2, Enforcement(), lambda: now)
    for address in ("a", "a", "b", None, None):
        assert not gate.is_shut(address)
        gate.count(address)
    assert gate.is_shut("a")
    with pytest.raises(RateLimited) as limited:
        gate.refuse()
    assert (limited.value.limit, limited.value.retry_after_s) == ("unauthorized_per_minute", 30.0)
    assert not gate.is_shut("b")
    assert not gate.is_shut(None)
    now = 60.0
    assert not gate.is_shut("a")


def test_so_many_addresses_are_remembered_and_no_more() -> None:
    calls = PerMinute(lambda: 0.0)
    for n in range(MOST_NAMES + 10):
        calls.add(str(n))
    assert len(calls._counts) == MOST_NAMES
    assert calls.add("0") == 2
    assert calls.add("another") == 0


async def messages_of(app: FastAPI, address: str, path: str, credential: str) -> list[Message]:
    """What the application sends: a cut is an answer that it does not complete, which httpx takes for a fault."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {credential}".encode()), (b"accept", b"text/event-stream")]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers}
    await app({**scope, "client": (address, 4711)}, Request(scope).receive, send)
    return sent


@pytest.mark.parametrize("path", ["/v1/streams", "/v1/streams/some/events"])
async def test_the_gate_comes_before_the_credential_unless_it_is_known_as_good(path: str, valkey_url: str) -> None:
    async with served(valkey_url) as app:
        app.state.tier.gate = UnauthorizedGate(3, Enforcement(), lambda: 0.0)  # a minute that is never over
        guesser, other = "203.0.113.7", "198.51.100.1"
        for _ in range(3):
            assert (await ask(app, "GET", path, address=guesser, credential="a guess")).status_code == 401
        assert (await ask(app, "GET", path, address=guesser, credential=KEY)).status_code in (200, 404)
        token = app.state.tier.auth.mint("default", "ann", frozenset({READ}), {"streams": ["some"]}, 60).text
        for credential in ("a guess", token):  # that was never seen here
            refused = await ask(app, "GET", path, address=guesser, credential=credential, accept="application/x-ndjson")
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert refused.json()["limit"] == "unauthorized_per_minute"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await ask(app, "GET", path, address=other, credential="a guess")).status_code == 401
        if path.endswith("/events"):
            start, body = await messages_of(app, guesser, path, token)
            assert (start["status"], body["more_body"]) == (200, True), "an EventSource gives up at any other status"
            assert re.fullmatch(rb"retry: 1\d{4}\n: rate_limited\n", body["body"])
        seen = await ask(app, "GET", path, address=other, credential=token)
        assert (await ask(app, "GET", path, address=guesser, credential=token)).status_code == seen.status_code != 429
        for _ in range(5):
            assert (await ask(app, "GET", path, address="127.0.0.1", credential="a guess")).status_code == 401


async def test_a_token_that_has_only_expired_is_no_guess(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(valkey_url, unauthorized_per_minute=1) as app:
        old = _expired_token(app, monkeypatch)
        for _ in range(3):
            refused = await ask(app, "GET", "/v1/streams/some/text", address="203.0.113.7", credential=old)
            assert (refused.status_code, refused.json()["code"]) == (401, "token_expired")


def _expired_token(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as past:
        past.setattr(time, "time", lambda: 1_000_000.0)
        token: str = app.state.tier.auth.mint("default", "ann", frozenset({READ}), {"streams": ["some"]}, 60).text
    return token
