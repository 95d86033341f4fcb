"""A run's id is its client's, and its stream's follows from it: also after Redis has lost both with the writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.faults.test_redis import Deploy, admin, roll_back, save
from tests.rig.deployment import HTTP, Deployment, wait_until

PATH = "/v1/ag-ui"


def asked(run_id: str, text: str = "[[tokens=60 rate=20 ttft_ms=0]]") -> dict[str, Any]:
    messages = [{"id": "1", "role": "user", "content": text}]
    return {"threadId": "t", "runId": run_id, "messages": messages, "tools": [], "context": [], "forwardedProps": {}}


def ids_of(lines: Any, enough: Callable[[list[str]], bool] = lambda _: False) -> list[str]:
    ids: list[str] = []
    for line in lines:
        if line.startswith("id: "):
            ids.append(line[4:])
            if enough(ids):
                break
    return ids


def event_ids(ids: list[str]) -> set[int]:
    return {int(one.partition("-")[0]) for one in ids}


def again(deployment: Deployment, run_id: str) -> httpx.Response:
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        answers.append(HTTP.post(f"{deployment.urls[-1]}{PATH}", json=asked(run_id)))
        return answers[-1].status_code != 503

    wait_until(is_answered, "what a living writer had put back would be there")
    return answers[-1]


async def test_a_run_that_is_lost_with_its_writer_and_started_again_uses_no_id_of_before(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)
    save(deployment)
    with HTTP.stream("POST", f"{deployment.url}{PATH}", json=asked("lost")) as answer:
        sid = answer.headers["x-lastevent-stream"]
        before = ids_of(answer.iter_lines(), lambda ids: len(ids) == 20)
        deployment.workers[0].kill()
    await roll_back(deployment)
    deployment.workers[0].start()
    after = again(deployment, "lost")
    assert after.headers["x-lastevent-stream"] == sid
    now = ids_of(after.text.splitlines())
    assert "RUN_FINISHED" in after.text
    assert event_ids(before) & event_ids(now) == {1}, "an id names another event"
    assert min(event_ids(now) - {1}) > max(event_ids(before))
    came_back = HTTP.get(f"{deployment.url}{PATH}", params={"runId": "lost"}, headers={"Last-Event-ID": before[-1]})
    assert "lastevent.gap" in came_back.text.split("\n\n")[0]
    assert came_back.text.split("\n\n")[-2] == after.text.split("\n\n")[-2]


async def test_a_run_that_its_writer_puts_back_is_the_same_when_it_is_asked_for_again(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)
    save(deployment)
    with HTTP.stream("POST", f"{deployment.url}{PATH}", json=asked("kept")) as answer:
        before = ids_of(answer.iter_lines(), lambda ids: len(ids) == 20)
        sid = answer.headers["x-lastevent-stream"]
    await roll_back(deployment)
    now = ids_of(again(deployment, "kept").text.splitlines())
    assert now[: len(before)] == before
    # Of a run that would have the stream's id as its own it is not known yet whether it was lost.
    assert HTTP.get(f"{deployment.url}{PATH}", params={"runId": sid}).status_code == 200


def test_what_is_left_of_a_run_decides_what_its_id_means(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)

    def post(text: str = "[[tokens=1 rate=0 ttft_ms=0]]", number: int = 0) -> httpx.Response:
        return HTTP.post(f"{deployment.urls[number]}{PATH}", json=asked("old", text))

    first = post()
    sid = first.headers["x-lastevent-stream"]
    with admin(deployment) as redis:

        def forget(*patterns: str) -> None:
            redis.delete(*[key for pattern in patterns for key in redis.keys(pattern)])

        forget("le:idem:*")
        assert post().text == first.text, "a day later it is the same run"
        assert post("Something else").status_code == 409
        forget("le:idem:*", f"le:{{{sid}}}:*")
        gone = post()
        assert (gone.status_code, gone.json()["code"]) == (410, "stream_expired")
        forget("le:streams:*")
        then_s, _ = redis.time()
        wait_until(lambda: redis.time()[0] > then_s, "the clock has gone on by a block")
        new = post(number=1)  # which has seen nothing of what was
    assert new.status_code == 200
    assert min(event_ids(ids_of(new.text.splitlines())) - {1}) > max(event_ids(ids_of(first.text.splitlines())))
    assert HTTP.delete(f"{deployment.url}/v1/streams/{sid}").status_code == 204
    erased = post()
    assert (erased.status_code, erased.json()["code"]) == (410, "stream_expired"), (
        "nobody knows any more what was asked"
    )
