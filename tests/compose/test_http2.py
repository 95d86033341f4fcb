"""HTTP/2 from nginx to the client: one connection carries all of its streams."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.compose.balancer import Balanced
from tests.compose.http2 import connect
from tests.compose.visitor import KeyedProducer
from tests.rig.deployment import until

STREAMS = 10
VIEWERS = 100


@pytest.fixture(scope="session")
def trust(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate / "tls.crt")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_a_hundred_event_streams_on_one_connection_are_each_complete(
    balanced: Balanced, trust: ssl.SSLContext
) -> None:
    before = sum(balanced.viewers())
    records = [balanced.create(producer="external") for _ in range(STREAMS)]
    async with connect(balanced.nginx.tls_port, trust) as connection:
        answers = [(record, connection.get(record["events_url"])) for record in records * (VIEWERS // STREAMS)]
        await until(lambda: all(answer.has_seen(1) for _, answer in answers), "all have their first event")
        assert sum(balanced.viewers()) == before + VIEWERS
        for record in records:
            producer = KeyedProducer(record, balanced.nginx.port)
            await producer.write(record["id"], *(f"{n}" for n in range(20)))
            await producer.finish()
        await until(lambda: all(answer.has_ended for _, answer in answers), "all have ended")

    for record, answer in answers:
        assert answer.status == 200
        assert answer.body.count(b"id: ") == 23, "queued, 21 deltas, done"
        assert f'{{"text":"{record["id"]}"}}'.encode() in answer.body
        assert b"event: done\n" in answer.body


async def test_a_stream_that_its_viewer_gives_up_leaves_its_server_and_the_others_go_on(
    balanced: Balanced, trust: ssl.SSLContext
) -> None:
    record = balanced.create(producer="external")
    before = sum(balanced.viewers())
    async with connect(balanced.nginx.tls_port, trust) as connection:
        given_up, *others = [connection.get(record["events_url"]) for _ in range(4)]
        await until(lambda: sum(balanced.viewers()) == before + 4, "they are connected")
        connection.give_up(given_up)
        await until(lambda: sum(balanced.viewers()) == before + 3, "one has left its server")
        await KeyedProducer(record, balanced.nginx.port).finish()
        await until(lambda: all(answer.has_ended for answer in others), "the others have ended")
    assert all(b"event: done\n" in answer.body for answer in others)


async def test_a_cut_is_no_end_over_http2_either(own_balanced: Balanced, trust: ssl.SSLContext) -> None:
    record = own_balanced.create(producer="external")
    async with connect(own_balanced.nginx.tls_port, trust) as connection:
        lost = connection.get(record["events_url"])
        await until(lambda: lost.has_seen(1), "it is connected")
        own_balanced.kill_servers()
        await until(lambda: lost.is_cut, "it is cut")
        answered_by_nginx = connection.get(record["events_url"])
        await until(lambda: answered_by_nginx.is_cut, "that one is cut, too")
    assert not lost.has_ended
    assert not answered_by_nginx.has_ended
    assert answered_by_nginx.status == 200
    assert answered_by_nginx.body.endswith(b"\n: no_server\n")
