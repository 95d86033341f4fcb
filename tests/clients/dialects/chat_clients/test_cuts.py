"""Cut anywhere, a client asks again with its Idempotency-Key, and has the answer as one that was not cut."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.clients.dialects.chat_clients.asking import CHAT, MESSAGES, WHOLE_CHAT, WHOLE_MESSAGES, Asking, ends_of
from tests.js.cutting import Cut
from tests.rig.deployment import Deployment
from tests.rig.long import LONG

pytestmark = pytest.mark.npm

PROMPT = "Hello [[thinking=2 tokens=3 rate=0 ttft_ms=0 tools=1 args_piece=20]]"
WITHIN = 100 if LONG else 2
"""Cuts within frames, of each kind."""

HELPERS = ("openai-py-helper", "openai-js-helper")
"""They read with what the clients themselves read with: some cuts are enough."""

_PARTS = ("id", "text", "thinking", "calls", "finish", "usage")


def _parts(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said.get(name) for name in _PARTS}


@pytest.mark.parametrize("client", [*CHAT, *MESSAGES])
async def test_cut_anywhere_and_asked_again_at_the_other_server_the_answer_is_the_same(
    asking: Asking, pair: Deployment, client: str
) -> None:
    uncut = await asking.run(client, prompt=PROMPT, key=client)
    assert (uncut["errors"], uncut["text"]) == ([], "This is a")
    assert min(uncut["usage"]) > 0
    assert [call["name"] for call in uncut["calls"]] == ["get_weather"]
    ends = ends_of(pair, uncut)
    assert len(ends) > 10

    chance = random.Random(client)
    places = chance.sample(ends[:-1], 3) if client in HELPERS and not LONG else [0, *ends[:-1]]
    cuts = [Cut(place, chance.choice(["reset", "close"])) for place in places]
    cuts += [Cut(chance.randrange(ends[-1]), how) for how in ("reset", "close", "end") for _ in range(WITHIN)]
    cases = [asking.run(client, [cut], prompt=PROMPT, key=client, asks=3) for cut in cuts]
    for cut, said in zip(cuts, await asyncio.gather(*cases), strict=True):
        assert _parts(said) == _parts(uncut), cut
        assert said["requests"] > 1 or cut.how == "end", cut  # which may have been behind all that there is to say


async def test_what_comes_whole_is_what_comes_in_pieces(asking: Asking) -> None:
    for pieces, whole in ((CHAT[0], WHOLE_CHAT), (MESSAGES[0], WHOLE_MESSAGES)):
        for client in whole:
            said = await asking.run(client, prompt=PROMPT, key=pieces)
            assert _parts(said) | {"id": 0} == _parts(await asking.run(pieces, prompt=PROMPT, key=pieces)) | {"id": 0}


@pytest.mark.parametrize("client", ["ai-sdk-compatible", "ai-sdk-anthropic"])
async def test_a_tool_is_run_by_the_client_and_its_result_is_answered(asking: Asking, client: str) -> None:
    said = await asking.act(client, 'Weather? [[call=get_weather:{"city":"Oslo"}]]', "21 degrees in Oslo")
    assert (said["errors"], said["steps"]) == ([], 2)
    assert said["text"].startswith("The tools said “21 degrees in Oslo”.")
