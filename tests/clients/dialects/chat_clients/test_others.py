"""Clients of Python in an environment of their own: llm-comply's suites of tests for servers, and LiteLLM."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clients.dialects.chat_clients.asking import Asking, ends_of
from tests.clients.dialects.node import Clients
from tests.js.cutting import Cut, How, cutting
from tests.rig.deployment import Deployment
from tests.rig.environments import python_of_clients
from tests.rig.long import LONG

HERE = Path(__file__).parent
PROMPT = "Hello [[thinking=2 tokens=3 rate=0 ttft_ms=0 tools=1 args_piece=20]]"
LIMIT_S = 120

MODELS = {"openai-chat": "gpt-5", "anthropic": "claude-sonnet-4"}
"""Only of a name that it knows to reason it asks for reasoning too."""


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with the clients of Responses' python.in, these among them."""
    return python_of_clients()


@pytest.fixture(scope="module", autouse=True)
def complying(pair: Deployment, python: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """They ask for one answer after the other, which takes the stand-in 2 s each: meanwhile others go on."""
    at = ("-u", f"{pair.url}/v1", "-k", "any", "--json")
    with ExitStack() as stack:
        started = {
            form: stack.enter_context(
                subprocess.Popen(
                    [str(python), "-m", "llm_comply.cli", *at, "--format", form, "-m", model],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for form, model in MODELS.items()
        }
        yield started
        for process in started.values():
            process.kill()


@pytest.mark.parametrize("form", MODELS)
def test_nothing_of_llm_complys_suite_fails(complying: dict[str, subprocess.Popen[str]], form: str) -> None:
    output, errors = complying[form].communicate(timeout=LIMIT_S)
    results = json.loads(output)["results"]
    assert [one for one in results if one["status"] != "passed"] == [], errors
    assert len(results) == 9


if LONG:  # to import it takes 4 s of CPU

    @pytest.mark.parametrize("client", ["litellm-chat", "litellm-messages"])
    async def test_litellm_cut_anywhere_has_the_same_answer(
        asking: Asking, pair: Deployment, python: Path, client: str
    ) -> None:
        like = {"litellm-chat": "openai-py", "litellm-messages": "anthropic-py"}[client]
        size = ends_of(pair, await asking.run(like, prompt=PROMPT, key=f"{client}-size"))[-1] - 100
        async with cutting(*pair.ports) as cutter:
            process = await asyncio.create_subprocess_exec(
                *(str(python), str(HERE / "litellm_client.py")),
                env={**os.environ, "NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            litellm = Clients(process, cutter)
            try:
                asked: dict[str, Any] = {"key": client, "prompt": PROMPT, "asks": 3}
                uncut = await litellm.run(client, "", **asked)
                assert (uncut["text"], uncut["errors"]) == ("This is a", [])
                hows: tuple[How, ...] = ("reset", "close")
                chance = random.Random(client)
                cuts = [Cut(chance.randrange(size), chance.choice(hows)) for _ in range(40)]
                for said in await asyncio.gather(*(litellm.run(client, "", [cut], **asked) for cut in cuts)):
                    assert {**said, "case": "", "errors": []} == {**uncut, "case": ""}
                    assert len(said["errors"]) == 1
            finally:
                await litellm.close()
