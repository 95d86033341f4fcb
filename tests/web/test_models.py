"""GET /v1/models, and what a start says of a model that there is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from broker.log.keys import Keys
from broker.log.models import Announced, Models
from broker.settings import PROVIDERS
from broker.store.connect import connect
from tests.rig.deployment import Deployment
from tests.web.wire import Api, problem

PROVIDERS_THERE = {"anthropic": Announced(True, ["claude-sonnet-5-5"]), "vllm": Announced(False, ["qwen3", "org/m[x]"])}
CHAIN = ["anthropic/claude-sonnet-5-5", "vllm/qwen3"]
QUICK = "[[tokens=1 rate=0 ttft_ms=0]]"


@pytest.fixture
def announced(deployment: Deployment) -> Iterator[None]:
    """As a worker would, by its own code."""

    async def change(*, announces: bool) -> None:
        async with connect(deployment.redis_url) as redis:
            if announces:
                await Models(redis, Keys()).announce(PROVIDERS_THERE, {"fast": CHAIN}, "fast")
            else:
                await redis.hdel(Keys().models, "vllm", "fast")

    asyncio.run(change(announces=True))
    yield
    asyncio.run(change(announces=False))


def listed(api: Api) -> dict[str, Any]:
    answer = api.get("/v1/models")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.usefixtures("announced")
def test_models_and_aliases_are_listed_as_openai_lists_them(api: Api) -> None:
    found = listed(api)
    plain = {"object": "model", "created": 0}
    assert found["object"] == "list"
    for one in (
        {"id": "anthropic/claude-sonnet-5-5", **plain, "owned_by": "anthropic"},
        {"id": "vllm/qwen3", **plain, "owned_by": "vllm"},
        {"id": "vllm/org/m[x]", **plain, "owned_by": "vllm"},
        {"id": "fast", **plain, "owned_by": "lastevent", "chain": CHAIN},
    ):
        assert one in found["data"]
    assert found["default"] == "anthropic/claude-sonnet-5-5", "what a start without a model takes"
    assert {"name": "vllm", "is_standin": False} in found["providers"]


@pytest.mark.usefixtures("announced")
def test_a_provider_that_workers_have_is_one_for_a_start(api: Api) -> None:
    for model in ("vllm/qwen3", ["fast", "vllm/qwen3"]):
        answer = api.post("/v1/streams", {"prompt": QUICK, "model": model})
        assert answer.status_code == 201, answer.text
        api.post(f"/v1/streams/{answer.json()['id']}/cancel")


@pytest.mark.usefixtures("announced")
@pytest.mark.parametrize("model", ["nObOdYs/x", ["anthropic/x", "nObOdYs/x"]])
def test_a_provider_that_nobody_has_is_refused_and_those_that_there_are_are_named(api: Api, model: object) -> None:
    before = api.newest_ids()
    said = problem(api.post("/v1/streams", {"prompt": QUICK, "model": model}), 422, "unknown_model")
    assert "nObOdYs" not in str(said)
    assert all(name in said["detail"] for name in (*PROVIDERS, "vllm", "fast"))
    assert api.newest_ids() == before


def test_an_external_stream_names_any_provider(api: Api) -> None:
    answer = api.post("/v1/streams", {"producer": "external", "model": "nobodys/own model"})
    assert (answer.status_code, answer.json()["provider"]) == (201, "nobodys")
