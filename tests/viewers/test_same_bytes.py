"""When and how a viewer asks makes no difference to what it gets."""

import asyncio
import json
import secrets

from tests.rig.deployment import Deployment
from tests.viewers.viewer import LIMIT_S, Answer, CutAt, Viewer, after_event, at_byte, connect, post

PROMPT = {"prompt": "Straße 東京 🚀 [[thinking=20 tokens=60 rate=60 ttft_ms=100]]", "show": ["thinking"]}
EVERYTHING = list(range(1, 86))  # queued, start, the deltas, the thought's signature, the turn, done


async def test_viewers_from_the_start_the_middle_and_after_the_end_get_the_same_bytes(deployment: Deployment) -> None:
    here, there = deployment.ports
    sid = (await post(here, "/v1/streams", PROMPT)).json["id"]

    early, midway, late = Viewer(sid), Viewer(sid), Viewer(sid)
    async with asyncio.TaskGroup() as group:
        group.create_task(early.view(here))
        await Viewer(sid).view(here, cut=after_event(40))
        group.create_task(midway.view(there))
    await late.view(there)

    assert early.ids == EVERYTHING
    assert early.events[-1].kind == "done"
    assert midway.bytes == early.bytes
    assert late.bytes == early.bytes


async def test_the_sse_form_of_post_gives_the_same_bytes_as_a_get(deployment: Deployment) -> None:
    here, there = deployment.ports
    answer = await _post_and_follow(here, {})
    sid = answer.headers["location"].rpartition("/")[2]
    starter, getter = Viewer(sid), Viewer(sid)
    starter.take(answer)
    await getter.view(there)

    assert answer.status == 200
    assert starter.ids == EVERYTHING
    assert starter.bytes == getter.bytes


async def test_a_post_that_is_cut_and_repeated_goes_on_where_its_last_event_id_says(deployment: Deployment) -> None:
    """Clients such as fetch-event-source POST again to reconnect."""
    headers = {"Idempotency-Key": secrets.token_hex()}
    viewer = Viewer("started by its first POST")
    for n, cut in enumerate([at_byte(700), at_byte(900), at_byte(1100), None, None]):
        if viewer.last_event_id:
            headers["Last-Event-ID"] = str(viewer.last_event_id)
        answer = await _post_and_follow(deployment.ports[n % 2], headers, cut)
        viewer.take(answer)
    uncut = Viewer(answer.headers["location"].rpartition("/")[2])
    await uncut.view(deployment.ports[0])

    assert viewer.bytes == uncut.bytes
    assert answer.status == 204, "the one after the end"


async def _post_and_follow(port: int, headers: dict[str, str], cut: CutAt | None = None) -> Answer:
    async with asyncio.timeout(LIMIT_S), connect(port) as connection:
        headers = {"Accept": "text/event-stream", **headers}
        connection.send("POST", "/v1/streams", headers, json.dumps(PROMPT).encode())
        answer = await connection.read_head()
        await connection.read_body(answer, cut)
    return answer
