"""Where a stream that a worker writes has come to, as each route says it: where its log ends, not what meta last heard.

A writer on the short way tells meta nothing; a heartbeat does, two seconds later.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

import pytest

from broker.log.meta import Meta
from broker.log.stream_log import StreamLog
from broker.log.writer import StreamWriter
from broker.tenants.keyring import DEFAULT_TENANT
from tests.rig.deployment import Deployment
from tests.rig.streams import committing, meta, running, with_redis
from tests.web.wire import Api, ids

WORDS = 6
ENDS_AT = 1 + WORDS
"""After `queued`."""


class Running(NamedTuple):
    sid: str
    session: str


@pytest.fixture
def stream(deployment: Deployment) -> Running:
    """Written to its event 7, of which meta knows the first two. Its writer has gone; nobody has noticed yet."""
    session = f"s-{uuid.uuid4()}"

    async def write(log: StreamLog) -> str:
        async with committing(log) as commit:
            writer = StreamWriter(commit, await running(log, tenant=DEFAULT_TENANT, session=session))
            for word in range(WORDS):
                writer.write("text_delta", {"text": str(word)})
                await writer.flush()
        known = Meta(await meta(log, writer.sid))
        assert known.tail < ENDS_AT
        return writer.sid

    return Running(with_redis(deployment, write), session)


def test_its_record_and_its_listings_say_where_the_log_ends(api: Api, other_api: Api, stream: Running) -> None:
    assert api.record(stream.sid)["last_event_id"] == ENDS_AT
    for path in ("/v1/streams", f"/v1/sessions/{stream.session}"):
        [listed] = other_api.get(path, params={"session_id": stream.session}).json()["streams"]
        assert (listed["id"], listed["last_event_id"]) == (stream.sid, ENDS_AT)


def test_who_joins_at_the_latest_event_is_told_the_last_one(api: Api, stream: Running) -> None:
    follow = api.follow(stream.sid, "?last_event_id=latest")
    assert follow.read_until(lambda body: b"id: " in body).startswith(b"retry:")
    assert follow.header("Last-Event-ID") == str(ENDS_AT)


def test_a_replay_goes_to_the_end_of_the_log(api: Api, stream: Running) -> None:
    with api.exchange("GET", f"/v1/streams/{stream.sid}/replay?speed=0") as answer:
        assert ids(answer.read_to_end()) == list(range(1, ENDS_AT + 1))


def test_its_text_so_far_is_all_of_it(api: Api, stream: Running) -> None:
    answer = api.get(f"/v1/streams/{stream.sid}/text")
    assert answer.text == "".join(map(str, range(WORDS)))
    assert answer.headers["Last-Event-ID"] == str(ENDS_AT)


def test_a_cancel_says_after_which_event_it_stopped(api: Api, other_api: Api, stream: Running) -> None:
    told = api.post(f"/v1/streams/{stream.sid}/cancel", {}).json()
    assert told["stopped_after"] == ENDS_AT
    assert other_api.record(stream.sid)["last_event_id"] == told["last_event_id"]


def test_durable_streams_views_know_what_is_there(api: Api, stream: Running) -> None:
    path = f"/v1/ds/events/{stream.sid}"
    stands = api.http.head(path).headers["Stream-Next-Offset"]
    assert stands.startswith(f"{ENDS_AT:016d}_")
    assert api.get(path, params={"offset": "-1"}).headers["Stream-Next-Offset"] == stands
