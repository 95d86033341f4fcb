"""What one phone may hold: viewers of a token and of a stream, and how often a token connects."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from broker.errors import RateLimited
from broker.tenants.enforcement import Enforcement
from broker.web.rates import ConnectRate
from tests.rig.deployment import Deployment, wait_until
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
    found = re.search(r"^lastevent_viewers (\S+)", owner.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


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
