"""GET /text and POST /cancel: the answer so far, and an ending from anywhere at any time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, frames, ids, problem

LONG = "[[tokens=2000 rate=50 ttft_ms=0]] for a while"


def cancel(api: Api, sid: str, **body: str) -> dict[str, object]:
    answer = api.post(f"/v1/streams/{sid}/cancel", body or None)
    assert answer.status_code == 200, answer.text
    said: dict[str, object] = answer.json()
    assert said.keys() == {"state", "last_event_id", "stopped_after", "already"}
    return said


# -- text ------------------------------------------------------------------------------------------------


def test_text_is_the_answer_so_far_and_says_where_to_follow_on(api: Api) -> None:
    sid = api.start_external()
    api.append(
        sid, ("text_delta", {"text": "Grüße, "}), ("thinking_delta", {"text": "no"}), ("text_delta", {"text": "🙂"})
    )
    answer = api.get(f"/v1/streams/{sid}/text")
    assert (answer.status_code, answer.text) == (200, "Grüße, 🙂")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["last-event-id"] == "4"
    api.append(sid, ("text_delta", {"text": "!"}), ("done", {}))
    assert ids(api.follow(sid, Last_Event_ID=answer.headers["last-event-id"]).read_to_end()) == [5, 6]


def test_text_of_a_stream_that_has_none_is_empty(api: Api) -> None:
    answer = api.get(f"/v1/streams/{api.start_external()}/text")
    assert (answer.status_code, answer.content, answer.headers["last-event-id"]) == (200, b"", "1")


def test_text_goes_on_after_a_restart_of_the_generation(api: Api, deployment: Deployment) -> None:
    sid = deployment.create("[[tokens=4 rate=0 ttft_ms=0 cut_at=2]] broken thrice")
    assert deployment.wait_until_ended(sid)["state"] == "error"
    got = frames(api.follow(sid).read_to_end())
    since = max(at for at, frame in enumerate(got) if frame.event == "restart")
    text = "".join(frame.data["text"] for frame in got[since:] if frame.event == "text_delta")
    assert text
    assert api.get(f"/v1/streams/{sid}/text").text == text


def test_data_of_another_shape_adds_no_text(api: Api) -> None:
    sid = api.start_external()
    shapes = [{}, {"text": None}, {"text": 5}, {"text": ["a"]}, {"text": {"text": "a"}}, {"text": "ok"}]
    api.append(sid, *[("text_delta", shape) for shape in shapes]).raise_for_status()
    assert api.get(f"/v1/streams/{sid}/text").text == "ok"
    assert len(frames(api.follow(sid, "?compact=1&follow=0").read_to_end())) == 7


# -- cancel ----------------------------------------------------------------------------------------------


def test_cancelling_what_runs_ends_it_at_once_for_every_viewer(
    api: Api, other_api: Api, deployment: Deployment
) -> None:
    sid = deployment.create(LONG)
    with api.follow(sid) as viewer:
        viewer.read_until(lambda body: b"event: text_delta" in body)
        said = cancel(other_api, sid, reason="enough")
        got = frames(viewer.read_to_end())
    assert viewer.is_complete
    assert got[-1][:2] == (said["last_event_id"], "cancelled")
    assert (got[-1].data["reason"], got[-1].data["by"]) == ("enough", "anyone")
    assert got[-1].data["usage"]["input_tokens"] > 0, "it was paid for"
    assert (said["state"], said["already"]) == ("cancelled", False)
    assert got[-2].id == said["stopped_after"]
    assert got[-1].id is not None
    assert got[-1].id > 1_000_000
    assert got[-1].id % 1_000_000 == 1
    assert api.record(sid)["state"] == "cancelled"


def test_the_worker_hangs_up_when_its_stream_is_cancelled(api: Api, deployment: Deployment) -> None:
    sid = deployment.create(LONG)
    with api.follow(sid) as viewer:
        viewer.read_until(lambda body: b"event: text_delta" in body)
    ended = cancel(api, sid)
    follow_up = deployment.create("[[tokens=1 rate=0 ttft_ms=0]]")
    deployment.wait_until_ended(follow_up)
    record = api.record(sid)
    assert record["last_event_id"] == ended["last_event_id"]


def test_cancelling_again_is_no_error_and_changes_nothing(api: Api, other_api: Api) -> None:
    sid = api.start_external()
    first = cancel(api, sid, reason="one")
    second = cancel(other_api, sid, reason="two")
    assert second == {**first, "already": True}
    assert [frame.event for frame in frames(api.follow(sid).read_to_end())] == ["queued", "cancelled"]
    assert frames(api.follow(sid).read_to_end())[-1].data["reason"] == "one"


@pytest.mark.parametrize("ending", ["done", "error", "cancelled"])
def test_cancelling_what_has_ended_says_how_it_ended(api: Api, ending: str) -> None:
    sid = api.start_external()
    api.append(sid, ("text_delta", {"text": "a"}), (ending, {}))
    assert cancel(api, sid) == {"state": ending, "last_event_id": 3, "stopped_after": 2, "already": True}


def test_a_queued_stream_is_cancelled_before_any_worker_has_it(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    deployment = own_deployment(servers=1, workers=0)
    api = open_api(deployment.url)
    sid = deployment.create("[[tokens=1]]")
    assert api.record(sid)["state"] == "queued"
    said = cancel(api, sid)
    assert (said["state"], said["stopped_after"]) == ("cancelled", 1)
    assert [frame.event for frame in frames(api.follow(sid).read_to_end())] == ["queued", "cancelled"]


def test_of_two_cancels_at_once_on_two_servers_one_ends_the_stream(api: Api, other_api: Api) -> None:
    for _ in range(5):
        sid = api.start_external()
        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(lambda server: cancel(server, sid), (api, other_api)))  # noqa: B023
        assert sorted(one["already"] for one in said) == [False, True]
        assert said[0]["last_event_id"] == said[1]["last_event_id"]
        assert len(frames(api.follow(sid).read_to_end())) == 2


def test_a_cancelled_producer_is_told(api: Api) -> None:
    sid = api.start_external()
    cancel(api, sid)
    problem(api.append(sid, ("text_delta", {"text": "late"})), 409, "stream_closed")
    problem(api.post(f"/v1/streams/{sid}/heartbeat", {"epoch": 1}), 409, "stream_closed")


def test_a_cancel_needs_no_body(api: Api) -> None:
    for more in (
        {},
        {"content": b""},
        {"json": {}},
        {"content": b"{}", "headers": {"Content-Type": "application/json; charset=utf-8"}},
    ):
        assert api.http.post(f"/v1/streams/{api.start_external()}/cancel", **more).status_code == 200


def test_the_state_of_a_cancelled_stream_is_final(api: Api, deployment: Deployment) -> None:
    sid = deployment.create(LONG)
    wait_until(lambda: api.record(sid)["state"] == "running", "it runs")
    cancel(api, sid)
    record = api.record(sid)
    assert record["finished_at"]
    assert api.record(sid) == record
