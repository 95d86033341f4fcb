"""Any of the clients, by its name: of JavaScript in one process of Node, of Python here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tests.clients.dialects.chat_clients.in_process import InProcess
from tests.clients.dialects.node import Clients
from tests.js.cutting import Cut
from tests.rig.deployment import HTTP, Deployment
from tests.rig.long import LONG

CHAT = ("openai-py", "openai-js", *(("openai-py-helper", "openai-js-helper", "ai-sdk-compatible") if LONG else ()))
MESSAGES = ("anthropic-py", "anthropic-js", *(("ai-sdk-anthropic",) if LONG else ()))
"""In the long form what stands on these, too."""
WHOLE_CHAT = ("openai-py-whole", "openai-js-whole")
WHOLE_MESSAGES = ("anthropic-py-whole", "anthropic-js-whole")


class Asking:
    def __init__(self, of_javascript: Clients, of_python: InProcess) -> None:
        self._of_javascript = of_javascript
        self._of_python = of_python

    async def run(
        self, client: str, cuts: Sequence[Cut] = (), *, prompt: str, key: str, asks: int = 1
    ) -> dict[str, Any]:
        """What the client made of it: id, text, thinking, calls, finish, usage; `errors`: why it had to ask again."""
        if client in self._of_python:
            return await self._of_python.run(client, cuts, key=key, prompt=prompt, asks=asks)
        case = self._of_javascript.begin(client, "", cuts, key=key, prompt=prompt, asks=asks)
        told = await self._of_javascript.result(case)
        del told["case"]
        return {**told, "requests": len(self._of_javascript.requests(case))}

    async def act(self, client: str, prompt: str, result: str) -> dict[str, Any]:
        """A client that runs its tool, and asks again with what that gave."""
        case = self._of_javascript.begin(client, "", (), key="", prompt=prompt, asks=1, act=result)
        return await self._of_javascript.result(case)


def ends_of(deployment: Deployment, said: dict[str, Any]) -> list[int]:
    """Of each frame of the body that has this answer, in bytes."""
    path = "chat/completions" if said["id"].startswith("chatcmpl-") else "messages"
    query = "stream=true&include_usage=true"
    body = HTTP.get(f"{deployment.url}/v1/{path}/{said['id']}?{query}").raise_for_status().content
    return list(accumulate(len(frame) + 2 for frame in body.split(b"\n\n")[:-1]))
