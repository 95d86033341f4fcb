"""What a call takes out of Redis, and what it sends: counted. It does not grow with what callers store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis

from tests.rig.deployment import Deployment
from tests.web.wire import Api, ids

KB = 1024
LARGE = {"metadata": {"m": "x" * 15 * KB}, "prompt": "x" * 900 * KB}
TIMES = 10


@pytest.fixture
def redis(deployment: Deployment) -> Iterator[Redis]:
    with closing(Redis.from_url(deployment.redis_url)) as redis:
        yield redis


def sent(redis: Redis) -> int:
    """By Redis, so far, to everybody."""
    bytes_sent: int = redis.info("stats")["total_net_output_bytes"]
    return bytes_sent


def test_a_reconnect_takes_at_most_4_kb_out_of_redis_besides_events(api: Api, redis: Redis) -> None:
    sid = api.start_external(**LARGE)
    api.append(sid, ("text_delta", {"text": "a"}), ("text_delta", {"text": "b"}))
    before = sent(redis)
    for _ in range(TIMES):
        with api.follow(sid, Last_Event_ID="2") as viewer:
            viewer.read_until(lambda body: ids(body) == [3])
    assert sent(redis) - before < TIMES * 4 * KB


def test_a_page_of_streams_costs_2_kb_a_stream_whatever_their_requests_are(api: Api, redis: Redis) -> None:
    session = f"s-{uuid.uuid4()}"
    for _ in range(TIMES):
        api.start_external(session_id=session, prompt=LARGE["prompt"])
    before = sent(redis)
    page = api.get("/v1/streams", params={"session_id": session})
    assert len(page.json()["streams"]) == TIMES
    assert len(page.content) < TIMES * 2 * KB
    assert sent(redis) - before < TIMES * 2 * KB


def test_an_append_of_a_producer_takes_at_most_2_kb_out_of_redis(api: Api, redis: Redis) -> None:
    sid = api.start_external(**LARGE)
    before = sent(redis)
    for _ in range(TIMES):
        api.append(sid, ("text_delta", {"text": "a"}))
    assert sent(redis) - before < TIMES * 2 * KB
