"""A Redis that is nearly full takes no new stream, and what runs goes on to its end."""

from collections.abc import Callable

import httpx
import redis

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, problem

SLOW = "[[tokens=150 rate=50 ttft_ms=0]] for some seconds"


def started(answer: httpx.Response) -> str:
    assert answer.status_code in (200, 201), answer.text
    sid: str = answer.json()["id"]
    return sid


def is_refused(answer: httpx.Response) -> bool:
    if answer.status_code != 503:
        return False
    assert problem(answer, 503, "store_full")
    assert int(answer.headers["retry-after"]) >= 1
    return True


def test_a_full_store_refuses_creations_lets_what_runs_end_and_creates_again_once_there_is_room(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    deployment = own_deployment(servers=1)
    api = open_api(deployment.url)
    known = {"headers": {"Idempotency-Key": "known"}}
    ended = started(api.post("/v1/streams", {"prompt": "hello"}, **known))
    running = started(api.post("/v1/streams", {"prompt": SLOW}))
    with redis.Redis.from_url(deployment.redis_url) as client:
        for n in range(50):  # so that the reserve is more than what may be created within a second
            client.set(f"filler:{n}", b"x" * 1_000_000)
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", round(used / 0.85))
        wait_until(lambda: is_refused(api.post("/v1/streams", {"prompt": "hello"})), "creations are refused")
        keys = [sorted(client.keys(name)) for name in ("le:{*}:meta", "le:idem:*")]
        for answer in (
            api.post("/v1/streams", {"prompt": "hello"}, headers={"Idempotency-Key": "new"}),
            api.post(f"/v1/streams/{ended}/regenerate"),
            api.post(f"/v1/streams/{ended}/regenerate", headers={"Idempotency-Key": "another"}),
            api.post("/v1/streams", {"producer": "external"}),
        ):
            assert is_refused(answer)
        assert [sorted(client.keys(name)) for name in ("le:{*}:meta", "le:idem:*")] == keys
        assert started(api.post("/v1/streams", {"prompt": "hello"}, **known)) == ended
        assert deployment.wait_until_ended(running)["state"] == "done"
        client.config_set("maxmemory", used * 10)
    wait_until(lambda: not is_refused(api.post("/v1/streams", {"prompt": "hello"})), "creations work again")
    assert deployment.wait_until_ended(started(api.post(f"/v1/streams/{ended}/regenerate")))["state"] == "done"
