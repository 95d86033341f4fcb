"""Shared streams over HTTP, beyond what the protocol's suite asks: streams like others, and what they do not take."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Iterator

import httpx
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api

JSON = {"Content-Type": "application/json"}
LIMIT_S = 30


@pytest.fixture(scope="module")
def http(deployment: Deployment) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=deployment.urls[0], trust_env=False, timeout=LIMIT_S) as client:
        yield client


@pytest.fixture
def path() -> str:
    return f"/v1/ds/test/{secrets.token_hex(6)}"


def created(http: httpx.Client, path: str, body: bytes = b'[{"n":1.0},"two"]', **headers: str) -> str:
    """The id of the stream that is now there."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = http.put(path, content=body, headers={**JSON, **named})
    assert answer.status_code == 201, answer.text
    return answer.headers["x-lastevent-stream"]


def test_a_shared_stream_is_a_stream_like_others(http: httpx.Client, path: str) -> None:
    sid = created(http, path)
    record = http.get(f"/v1/streams/{sid}").json()
    assert (record["producer"], record["state"]) == ("shared", "running")
    assert sid in [one["id"] for one in http.get("/v1/streams", params={"state": "running"}).json()["streams"]]
    assert http.post(path, headers={"Stream-Closed": "true"}).status_code == 204
    lines = http.get(f"/v1/streams/{sid}/events", headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert ['"ds.message"' in line for line in lines] == [False, True, True, False]
    assert '{"m":{"n":1.0}}' in lines[1]
    assert http.get(f"/v1/streams/{sid}").json()["state"] == "done"


def test_no_producer_of_another_kind_writes_to_it(http: httpx.Client, path: str) -> None:
    sid = created(http, path)
    batch = {"epoch": 1, "events": [{"event": "text_delta", "data": {}}]}
    assert http.post(f"/v1/streams/{sid}/events", json=batch).status_code == 403
    assert http.post(f"/v1/streams/{sid}/heartbeat", json={"epoch": 1}).status_code == 403
    assert http.post(f"/v1/streams/{sid}/regenerate").status_code == 422


def test_a_cancel_closes_it(http: httpx.Client, path: str) -> None:
    sid = created(http, path)
    before = http.head(path).headers["stream-next-offset"]
    assert http.post(f"/v1/streams/{sid}/cancel").status_code == 200
    late = http.post(path, content=b"1", headers=JSON)
    assert (late.status_code, late.headers["stream-closed"]) == (409, "true")
    assert late.headers["stream-next-offset"] == before
    at_end = http.get(path, params={"offset": before})
    assert (at_end.json(), at_end.headers["stream-closed"]) == ([], "true")


def test_what_is_erased_by_its_id_is_not_at_its_path(http: httpx.Client, path: str) -> None:
    sid = created(http, path, Stream_Closed="true")
    assert http.delete(f"/v1/streams/{sid}").status_code == 204
    assert http.get(path).status_code == 404
    assert created(http, path) != sid


def test_a_deleted_streams_tombstone_stays(http: httpx.Client, path: str) -> None:
    sid = created(http, path)
    assert http.delete(path).status_code == 204
    assert http.get(f"/v1/streams/{sid}").json()["erased_at"]
    assert http.get(f"/v1/streams/{sid}/events").status_code == 410
    assert http.delete(path).status_code == 404


def test_of_many_that_create_a_path_at_once_one_does(deployment: Deployment, path: str) -> None:
    async def create_all() -> list[int]:
        async with httpx.AsyncClient(trust_env=False, timeout=LIMIT_S) as http:
            puts = [http.put(f"{url}{path}", headers=JSON, content=b"[1]") for url in deployment.urls for _ in range(8)]
            return [answer.status_code for answer in await asyncio.gather(*puts)]

    statuses = asyncio.run(create_all())
    assert sorted(set(statuses)) == [200, 201]
    assert statuses.count(201) == 1


async def test_while_many_create_fork_and_delete_one_path_nobody_reads_a_part(
    deployment: Deployment, path: str
) -> None:
    numbers = list(range(300))
    paths = [path, f"{path}-f", f"{path}-g"]
    limits = httpx.Limits(max_connections=20)

    async def act(seed: int, http: httpx.AsyncClient) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            url = deployment.urls[chance.randrange(2)]
            source, fork = f"{url}{path}", f"{url}{chance.choice(paths[1:])}"
            match chance.choice(["create", "fork", "delete", "read"]):
                case "create":
                    answer = await http.put(source, headers=JSON, content=str(numbers))
                case "fork":
                    answer = await http.put(fork, headers={"Stream-Forked-From": path})
                case "delete":
                    answer = await http.delete(chance.choice([source, fork]))
                case _:
                    answer = await http.get(chance.choice([source, fork]))
                    assert answer.status_code != 200 or answer.json() == numbers
            assert answer.status_code < 500, answer.text

    async with httpx.AsyncClient(trust_env=False, timeout=LIMIT_S, limits=limits) as http:
        await asyncio.gather(*(act(seed, http) for seed in range(10)))
        for one in (*paths[1:], path):
            await http.delete(f"{deployment.url}{one}")
        assert [(await http.head(f"{deployment.url}{one}")).status_code for one in paths] == [404, 404, 404]


def test_a_fork_of_a_long_stream_has_all_of_it(http: httpx.Client, path: str) -> None:
    numbers = list(range(5000))
    created(http, path, str(numbers).encode())
    fork = f"{path}-fork"
    assert http.put(fork, headers={"Stream-Forked-From": path}).status_code == 201
    messages, at = [], "-1"
    while True:
        answer = http.get(fork, params={"offset": at})
        messages += answer.json()
        at = answer.headers["stream-next-offset"]
        if "stream-up-to-date" in answer.headers:
            break
    assert messages == numbers
    assert at == http.head(path).headers["stream-next-offset"]


def test_an_offset_of_which_the_log_knows_nothing_is_gone(http: httpx.Client, path: str) -> None:
    created(http, path)
    made_up = {"offset": f"{77:016d}_{0:016d}"}
    assert http.get(path, params=made_up).status_code == 410
    assert http.get(path, params={**made_up, "live": "sse"}).status_code == 410
    assert http.get(path, params={**made_up, "live": "long-poll"}).status_code == 410


def test_more_than_a_stream_or_a_request_holds_is_refused(http: httpx.Client, path: str) -> None:
    created(http, path)
    assert http.post(path, content=b"[" + b"1," * 10_000 + b"1]", headers=JSON).status_code == 413
    assert http.post(path, content=b'"' + b"x" * 17 * 2**20 + b'"', headers=JSON).status_code == 413
    assert http.get(path).json() == [{"n": 1.0}, "two"]


@pytest.mark.parametrize("view", ["events", "ai-sdk", "ag-ui"])
def test_nobody_writes_to_a_view(view: str, http: httpx.Client) -> None:
    for method in ("PUT", "POST", "DELETE"):
        assert http.request(method, f"/v1/ds/{view}/{'0' * 32}", content=b"1", headers=JSON).status_code == 405


def test_bytes_that_are_no_text_are_no_path(http: httpx.Client, path: str) -> None:
    assert http.put(f"{path}%fe", headers=JSON).status_code == 400


def test_what_it_serves_runs_nothing_in_a_browser(http: httpx.Client, path: str) -> None:
    http.put(path, content=b"<form action=//else.where>", headers={"Content-Type": "text/html"})
    assert http.get(path).headers["content-security-policy"].endswith("sandbox")


def test_a_body_of_more_numbers_than_a_request_may_have_is_refused(http: httpx.Client, path: str) -> None:
    assert http.put(path, content=b"[[1" + b",1" * 2**20 + b"]]", headers=JSON).status_code == 413
    created(http, path, b'["' + b"a" * 2**20 + b'"]')


def test_subscriptions_are_not_served(http: httpx.Client) -> None:
    assert http.put("/v1/ds/__ds/subscriptions/one", json={}).status_code == 400


def test_with_an_archive_a_closed_stream_is_read_from_there_and_erased_there(archived: Deployment, path: str) -> None:
    with contextlib.closing(Api(archived.url)) as api:
        sid = created(api.http, path, Stream_Closed="true")
        wait_until(lambda: api.record(sid)["archived_at"], "it is archived")
        with contextlib.closing(redis.Redis.from_url(archived.redis_url)) as client:  # its retention there is over
            client.delete(*(f"le:{{{sid}}}:{name}" for name in ("log", "meta", "producers")))
        answer = api.get(path)
        assert (answer.json(), answer.headers["stream-closed"]) == ([{"n": 1.0}, "two"], "true")
        assert "streamClosed" in api.get(path, params={"offset": "-1", "live": "sse"}).text
        assert api.post(path, content=b"1", headers=JSON).status_code == 409
        assert api.delete(path).status_code == 204
        assert api.get(path).status_code == 404


WORDS = st.sampled_from(
    ["", "0", "1", "-1", "now", "true", "a", "é", "0" * 16 + "_" + "0" * 16, "9" * 30, "2026-01-01T00:00:00Z"]
)
STREAMS = ("TTL", "Expires-At", "Closed", "Seq", "Forked-From", "Fork-Offset", "Fork-Sub-Offset")
NAMES = ["Content-Type", "If-None-Match", *(f"Stream-{name}" for name in STREAMS)]
NAMES += [f"Producer-{name}" for name in ("Id", "Epoch", "Seq")]
VALUES = WORDS | st.sampled_from(["application/json", "text/plain", "/v1/ds/fuzz/1"])
HEADERS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)
QUERIES = st.dictionaries(st.sampled_from(["offset", "cursor", "timeout"]), WORDS, max_size=3)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["PUT", "POST", "POST", "GET", "HEAD", "DELETE"]),
    where=st.sampled_from(["1", "2", "a/b", "", "%00", "%ff", "__ds", "x" * 2000]),
    headers=HEADERS,
    query=QUERIES,
    body=st.sampled_from(
        [b"", b"[]", b"1", b"[1,[2]]", b'{"a":', b"\xff", b"[" * 2000, b"1e999", b'"\\ud800"', b"9" * 5000]
    ),
)
def test_nothing_that_is_sent_is_a_fault_of_ours(
    http: httpx.Client, method: str, where: str, headers: dict[str, str], query: dict[str, str], body: bytes
) -> None:
    sent = {name: value.encode() for name, value in headers.items()}
    answer = http.request(method, f"/v1/ds/fuzz/{where}", headers=sent, params=query, content=body)
    assert answer.status_code < 500, answer.text
