"""Who follows a stream now, as callers are told: over HTTP, on two servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from broker.tenants.keyring import new_key
from tests.conftest import deployment_in
from tests.rig.deployment import Deployment, wait_until
from tests.rig.long import LONG
from tests.rig.streams import with_redis
from tests.web.credentials import KEY, settings_in, store_keys
from tests.web.wire import Api, problem

pytestmark = pytest.mark.processes

VIEWERS = 200 if LONG else 15
"""At each of two servers."""

Caller = Callable[[str], Api]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("keyed")
    with deployment_in(folder, workers=0, **settings_in(folder)) as deployment:
        yield deployment


@pytest.fixture
def owner(keyed: Deployment, open_api: Callable[..., Api]) -> Api:
    return open_api(keyed.urls[0], KEY)


def token(owner: Api, subject: str, scope: str = "streams:read", **opened: Any) -> str:
    answer = owner.post("/v1/tokens", {"sub": subject, "scope": scope, **opened})
    assert answer.status_code == 201, answer.text
    text: str = answer.json()["token"]
    return text


def seen(api: Api, path: str) -> dict[str, Any]:
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def who(api: Api, path: str) -> list[str]:
    return [each["who"] for each in seen(api, path)["viewers"]]


def numbers(api: Api, path: str) -> tuple[int, int]:
    found = seen(api, path)
    return found["connections"], found["people"]


def test_each_caller_sees_the_numbers_and_the_names_that_it_may(
    keyed: Deployment, owner: Api, open_api: Callable[..., Api]
) -> None:
    sid = owner.start_external(session_id="talk")
    path, of_session = f"/v1/streams/{sid}/viewers", "/v1/sessions/talk/viewers"
    assert seen(owner, path) == seen(owner, of_session) == {"connections": 0, "people": 0, "viewers": []}
    opened = {"streams": [sid]}
    ann, bob = token(owner, "ann", **opened), token(owner, "bob", **opened)
    viewers = [open_api(url, text).follow(sid) for url, text in zip(keyed.urls * 2, (ann, ann, bob, KEY), strict=True)]
    wait_until(lambda: numbers(owner, path) == (4, 3), "all are known")
    assert sorted(who(owner, path)) == ["key", "user:ann", "user:bob"]
    scopes = {name: new_key("default", frozenset({name})) for name in ("streams:read", "audit:read", "audit:masked")}
    foreign = new_key("acme", frozenset({"admin"}))
    store_keys(keyed, [key for key, _ in (*scopes.values(), foreign)])
    reader = open_api(keyed.url, scopes["streams:read"][1])
    wait_until(lambda: reader.get("/v1/models").status_code == 200, "the server knows the keys")
    for url in keyed.urls:
        plain = open_api(url, ann)
        named = open_api(url, token(owner, "ann", "streams:read streams:viewers", sessions=["talk"]))
        for where in (path, of_session):
            assert numbers(plain, where) == numbers(named, where) == (4, 3)
            assert who(plain, where) == []
            assert sorted(who(named, where)) == ["user:ann", "user:bob"]
    assert numbers(reader, path) == (4, 3)
    assert who(reader, path) == []
    for scope in ("audit:read", "audit:masked"):
        problem(open_api(keyed.url, scopes[scope][1]).get(path), 403, "insufficient_scope")
    stranger = open_api(keyed.url, foreign[1])
    problem(stranger.get(path), 404, "stream_not_found")
    assert numbers(stranger, of_session) == (0, 0)
    said = owner.get(path).text
    assert "127.0.0.1" not in said
    assert "key:" not in said
    for viewer in viewers:
        viewer.close()
    wait_until(lambda: numbers(owner, path) == (0, 0), "all have left")


def test_what_a_key_may_not_see_it_does_not_give_away(
    keyed: Deployment, owner: Api, open_api: Callable[..., Api]
) -> None:
    key, secret = new_key("default", frozenset({"tokens:mint", "streams:read"}))
    store_keys(keyed, [key])
    minting = open_api(keyed.url, secret)
    wait_until(lambda: minting.get("/v1/models").status_code == 200, "the server knows the key")
    body = {"sub": "ann", "own": True, "scope": "streams:read streams:viewers"}
    problem(minting.post("/v1/tokens", body), 403, "insufficient_scope")


def test_a_session_is_all_its_running_streams_that_the_caller_may_open(
    keyed: Deployment, owner: Api, open_api: Callable[..., Api]
) -> None:
    one, other = (owner.start_external(session_id="a/talk") for _ in range(2))
    ended = owner.start_external(session_id="a/talk")
    ann, bob = token(owner, "ann", streams=[one, other]), token(owner, "bob", streams=[one])
    for sid, text in ((one, ann), (other, ann), (one, bob)):
        open_api(keyed.url, text).follow(sid)
    path = "/v1/sessions/a/talk/viewers"
    wait_until(lambda: numbers(owner, path) == (3, 2), "all are known")
    owner.append(ended, ("done", {"stop_reason": "end_turn"}))
    assert numbers(owner, path) == (3, 2)
    assert numbers(open_api(keyed.url, bob), path) == (2, 2)
    assert numbers(owner, "/v1/sessions/another/viewers") == (0, 0)


def test_nobody_follows_what_has_ended_or_was_erased(api: Api) -> None:
    sid = api.start_external()
    viewer = api.follow(sid)
    wait_until(lambda: numbers(api, f"/v1/streams/{sid}/viewers") == (1, 1), "it is known")
    api.append(sid, ("start", {}), ("done", {"stop_reason": "end_turn"})).raise_for_status()
    viewer.read_to_end()
    wait_until(lambda: numbers(api, f"/v1/streams/{sid}/viewers") == (0, 0), "it has left")
    assert api.delete(f"/v1/streams/{sid}").status_code == 204
    assert numbers(api, f"/v1/streams/{sid}/viewers") == (0, 0)
    problem(api.get("/v1/streams/nobody-knows-it/viewers"), 404, "stream_not_found")


def test_nobody_follows_what_the_archive_alone_has(archived: Deployment, open_api: Callable[..., Api]) -> None:
    api = open_api(archived.url)
    sid = api.finished("text")
    wait_until(lambda: api.record(sid)["archived_at"], "it is archived")

    async def evict(log: Any) -> None:
        await log.redis.delete(*log.keys.stream(sid))

    with_redis(archived, evict)
    assert numbers(api, f"/v1/streams/{sid}/viewers") == (0, 0)


@pytest.fixture
def crowded(own_deployment: Callable[..., Deployment]) -> Iterator[tuple[Deployment, str]]:
    """Two servers with as many viewers each of one stream, and how long it took until that was known."""
    deployment = own_deployment(workers=0)
    with closing(Api(deployment.urls[0])) as one, closing(Api(deployment.urls[1])) as other:
        sid = one.start_external()
        began_s = time.monotonic()
        for _ in range(VIEWERS):
            one.follow(sid)
            other.follow(sid)
        all_follow_s = time.monotonic()
        path = f"/v1/streams/{sid}/viewers"
        wait_until(lambda: numbers(one, path) == numbers(other, path) == (2 * VIEWERS, 1), "all are known")
        known_s = time.monotonic()
        print(f"{2 * VIEWERS} viewers came in {all_follow_s - began_s:.1f} s")
        print(f"all were known {known_s - all_follow_s:.1f} s later")
        yield deployment, sid


def test_the_viewers_of_a_killed_server_are_gone_within_seconds(crowded: tuple[Deployment, str]) -> None:
    deployment, sid = crowded
    path = f"/v1/streams/{sid}/viewers"
    with closing(Api(deployment.urls[0])) as api:
        deployment.servers[1].kill()
        killed_s = time.monotonic()
        assert numbers(api, path) == (2 * VIEWERS, 1)
        wait_until(lambda: numbers(api, path) == (VIEWERS, 1), "the dead server's viewers are gone")
        gone_s = time.monotonic() - killed_s
        print(f"gone {gone_s:.1f} s after kill -9")
        assert gone_s < 7 or not LONG
        assert api.record(sid)["state"] == "running"
