"""Redis away, a draining server, a full one: each form of request hears what it can live with."""

import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import redis

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, Exchange, frames, ids, ndjson, problem

OwnDeployment = Callable[..., Deployment]
OpenApi = Callable[..., Api]
NDJSON = {"Accept": "application/x-ndjson"}
CUT = rb"retry: [0-9]{4}\n: %s\n"


def assert_cut_politely(viewer: Exchange, code: bytes) -> None:
    """200, when to come back, why, and a cut: what keeps an EventSource alive."""
    assert (viewer.status, viewer.header("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert re.fullmatch(CUT % code, viewer.read_to_end())
    assert not viewer.is_complete


def assert_refused(answer: Any, status: int, code: str) -> None:
    problem(answer, status, code)
    assert int(answer.headers["retry-after"]) >= 1


@contextmanager
def no_redis(deployment: Deployment, how: str) -> Iterator[None]:
    """`killed` at once refuses connections; `stopped` accepts them and never answers."""
    if how == "killed":
        deployment.valkey.kill()
        yield
        deployment.valkey.start()
    else:
        deployment.valkey.send(signal.SIGSTOP)
        try:
            yield
        finally:
            deployment.valkey.send(signal.SIGCONT)
    deployment.wait_until_ready()


def test_while_redis_refuses_connections_everything_says_so_in_its_own_way(
    own_deployment: OwnDeployment, open_api: OpenApi
) -> None:
    deployment = own_deployment(servers=1, workers=0)
    api = open_api(deployment.url)
    sid = api.start_external()
    api.append(sid, ("text_delta", {"text": "a"}))
    with no_redis(deployment, "killed"):
        for query in ("", "?compact=1", "?last_event_id=1", "?follow=0"):
            assert_cut_politely(api.follow(sid, query), b"redis_unavailable")
        answers = [
            api.get(f"/v1/streams/{sid}/events", headers=NDJSON),
            api.post("/v1/streams", {"prompt": "x"}),
            api.post("/v1/streams", {"prompt": "x"}, headers={"Accept": "text/event-stream"}),
            api.post("/v1/streams", {"prompt": "x"}, headers={"Idempotency-Key": "k"}),
            *(api.get(f"/v1/streams/{sid}{path}") for path in ("", "/text", "/export", "/replay")),
            *(api.get(path) for path in ("/v1/streams", "/v1/sessions", "/v1/sessions/x", "/readyz")),
            *(api.post(f"/v1/streams/{sid}/{what}") for what in ("cancel", "regenerate")),
            api.append(sid, ("done", {})),
            api.post(f"/v1/streams/{sid}/heartbeat", {"epoch": 1}),
        ]
        for answer in answers:
            assert_refused(answer, 503, "redis_unavailable")
        assert api.http.head(f"/v1/streams/{sid}/events").status_code == 200
        problem(api.get(f"/v1/streams/{sid}/events?last_event_id=x"), 400, "bad_cursor")
        problem(api.post("/v1/streams", {"nope": 1}), 422, "invalid_request")
        assert api.get("/metrics").status_code == 200
        assert api.get("/healthz").status_code == 200
    assert b"Traceback" not in deployment.servers[0].output.read_bytes()


def test_while_redis_does_not_answer_requests_are_not_kept_waiting_for_it(
    own_deployment: OwnDeployment, open_api: OpenApi
) -> None:
    deployment = own_deployment(servers=1, workers=0)
    api = open_api(deployment.url)
    sid = api.start_external()
    with no_redis(deployment, "stopped"), ThreadPoolExecutor(4) as pool:  # each waits, as long as all of them
        viewer = pool.submit(api.follow, sid)
        asked = [
            pool.submit(api.get, f"/v1/streams/{sid}/events", headers=NDJSON),
            pool.submit(api.post, "/v1/streams", {"prompt": "x"}),
            pool.submit(api.get, "/readyz"),
        ]
        assert api.get("/healthz").status_code == 200
        assert_cut_politely(viewer.result(), b"redis_unavailable")
        for answer in asked:
            assert_refused(answer.result(), 503, "redis_unavailable")
    assert b"Traceback" not in deployment.servers[0].output.read_bytes()


def test_a_viewer_outlasts_a_redis_that_is_away(own_deployment: OwnDeployment, open_api: OpenApi) -> None:
    deployment = own_deployment(servers=1, workers=0, LASTEVENT_HEARTBEAT_S="0.2")
    api = open_api(deployment.url)
    sid = api.start_external()
    with api.follow(sid) as viewer:
        viewer.read_until(lambda body: b"id: 1\n" in body)
        with no_redis(deployment, "stopped"):
            pings = viewer.body.count(b"ping")
            viewer.read_until(lambda body: body.count(b"ping") > pings + 3)
        api.append(sid, ("text_delta", {"text": "a"}), ("done", {}))
        assert ids(viewer.read_to_end()) == [1, 2, 3]
    assert viewer.is_complete


def test_a_stream_that_redis_forgot_is_gone_and_its_viewer_is_cut(
    own_deployment: OwnDeployment, open_api: OpenApi
) -> None:
    deployment = own_deployment(servers=1, workers=0)
    api = open_api(deployment.url)
    sid = api.start_external()
    with api.follow(sid) as viewer:
        viewer.read_until(lambda body: b"id: 1\n" in body)
        with no_redis(deployment, "killed"):  # it keeps nothing on disk
            pass
        viewer.read_to_end()
    assert not viewer.is_complete
    # For a lease its writer might put it back, and an EventSource that met a 404 would never come again.
    assert_cut_politely(api.follow(sid), b"redis_unavailable")
    assert_refused(api.get(f"/v1/streams/{sid}"), 503, "redis_unavailable")
    wait_until(lambda: api.get(f"/v1/streams/{sid}").status_code == 404, "nobody has put it back")
    problem(api.get(f"/v1/streams/{sid}/events"), 404, "stream_not_found")


def test_after_retention_a_stream_is_gone_and_not_unknown(own_deployment: OwnDeployment, open_api: OpenApi) -> None:
    api = open_api(own_deployment(servers=1, workers=0, LASTEVENT_RETENTION_S="0.3").url)
    sid = api.finished("a")
    wait_until(lambda: api.get(f"/v1/streams/{sid}").status_code != 200, "it is gone")
    for path in ("", "/text", "/events", "/export", "/replay"):
        problem(api.get(f"/v1/streams/{sid}{path}"), 410, "stream_expired")
    problem(api.post(f"/v1/streams/{sid}/cancel"), 410, "stream_expired")
    problem(api.append(sid, ("done", {})), 410, "stream_expired")


def test_a_server_that_is_full_sends_viewers_elsewhere_and_starts_nothing_for_them(
    own_deployment: OwnDeployment, open_api: OpenApi
) -> None:
    api = open_api(own_deployment(servers=1, workers=0, LASTEVENT_MAX_VIEWERS="1").url)
    sid = api.start_external()
    with api.follow(sid) as first:
        first.read_until(lambda body: b"id: 1\n" in body)
        before = api.newest_ids()
        assert_cut_politely(api.follow(sid), b"too_many_viewers")
        assert_refused(api.get(f"/v1/streams/{sid}/events", headers=NDJSON), 429, "too_many_viewers")
        as_sse = {"Accept": "text/event-stream"}
        assert_refused(api.post("/v1/streams", {"prompt": "x"}, headers=as_sse), 429, "too_many_viewers")
        keyed = {**as_sse, "Idempotency-Key": "full"}
        assert_refused(api.post("/v1/streams", {"prompt": "x"}, headers=keyed), 429, "too_many_viewers")
        assert_refused(api.post(f"/v1/streams/{sid}/regenerate", headers=as_sse), 429, "too_many_viewers")
        assert api.newest_ids() == before
        assert api.get(f"/v1/streams/{sid}/text").status_code == 200
        assert api.post("/v1/streams", {"prompt": "x"}).status_code == 201
        api.append(sid, ("done", {}))
        assert ids(first.read_to_end()) == [1, 2]

    def has_place() -> bool:
        with api.follow(sid) as viewer:
            return ids(viewer.read_to_end()) == [1, 2]

    wait_until(has_place, "the place of the first is free")


def test_viewers_that_come_together_are_no_more_than_a_server_may_serve(
    own_deployment: OwnDeployment, open_api: OpenApi
) -> None:
    api = open_api(own_deployment(servers=1, workers=0, LASTEVENT_MAX_VIEWERS="3").url)
    sid = api.start_external()
    with ThreadPoolExecutor(20) as together:
        said = list(together.map(lambda _: api.follow(sid).read_chunk() or b"", range(20)))
    assert sum(b"id: 1\n" in chunk for chunk in said) == 3
    assert sum(b"too_many_viewers" in chunk for chunk in said) == 17
    api.append(sid, ("done", {}))


def test_a_drained_server_has_said_farewell_and_exited(own_deployment: OwnDeployment, open_api: OpenApi) -> None:
    deployment = own_deployment(servers=1, workers=0)
    api = open_api(deployment.url)
    sid = api.start_external()
    with api.follow(sid) as viewer:
        viewer.read_until(lambda body: b"id: 1\n" in body)
        deployment.servers[0].send(signal.SIGTERM)
        assert frames(viewer.read_to_end())[-1].event == "queued"
    assert b": draining" in viewer.body
    assert deployment.servers[0].wait(20) == 0
    assert b"Traceback" not in deployment.servers[0].output.read_bytes()


def test_a_drain_waits_for_a_request_that_is_on_its_way_but_not_for_ever(
    own_deployment: OwnDeployment, open_api: OpenApi
) -> None:
    deployment = own_deployment(servers=1, workers=0, LASTEVENT_DRAIN_S="2")
    body = b'{"producer":"external"}'
    at = ("127.0.0.1", deployment.ports[0])
    head = b"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    expect = b"Expect: 100-continue\r\n\r\n"  # its answer says that the server has begun to read the body
    with socket.create_connection(at, timeout=30) as slow, socket.create_connection(at, timeout=30) as too_slow:
        for connection in (slow, too_slow):
            connection.sendall(head % len(body) + expect)
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body[:5])
        deployment.servers[0].send(signal.SIGTERM)
        slow.sendall(body[5:])
        assert slow.recv(10_000).startswith(b"HTTP/1.1 201 ")
        said = b"".join(iter(lambda: too_slow.recv(10_000), b""))  # head and body may come apart
        assert deployment.servers[0].wait(20) == 0
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in said.lower()
    assert b'"code":"draining"' in said
    assert b"Traceback" not in deployment.servers[0].output.read_bytes()


def test_a_replay_is_cut_by_a_drain_and_not_ended(own_deployment: OwnDeployment, open_api: OpenApi) -> None:
    deployment = own_deployment(servers=1, workers=0)
    api = open_api(deployment.url)
    sid = api.finished("a", "b")
    with Exchange(api.url, "GET", f"/v1/streams/{sid}/replay?speed=5e-324") as answer:
        answer.read_until(lambda body: b"id: 1\n" in body)
        deployment.servers[0].send(signal.SIGTERM)
        body = answer.read_to_end()
    assert body.endswith(b": draining\n")
    assert not answer.is_complete
    assert deployment.servers[0].wait(20) == 0
    assert b"Traceback" not in deployment.servers[0].output.read_bytes()


def test_an_external_producer_that_falls_silent_is_given_up_by_a_worker(
    own_deployment: OwnDeployment, open_api: OpenApi
) -> None:
    # Its lease is 30 s of the server's clock: a stream created, and its lease moved back in Redis, as time would.
    deployment = own_deployment(servers=1, workers=1)
    api = open_api(deployment.url)
    sid = api.start_external()
    with redis.Redis.from_url(deployment.redis_url) as client:
        client.hset(f"le:{{{sid}}}:meta", "lease_until", 1)
        client.zadd("le:leases", {sid: 1})
    got = ndjson(api.get(f"/v1/streams/{sid}/events", headers=NDJSON).content)
    assert (got[-1]["event"], got[-1]["data"]["code"]) == ("error", "producer_lost")
    problem(api.append(sid, ("text_delta", {"text": "late"})), 409, "stream_closed")
