"""OpenAI's and Anthropic's clients of Python: each asks until it has a whole answer, with the same Idempotency-Key."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anthropic
import httpx2
import openai
import orjson
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.js.cutting import Cut, Cutter

MODEL = "anthropic/claude-sonnet-5-5"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
ABOUT = "The weather of a city"

Json = dict[str, Any]


class InProcess:
    """Requests of a case go to the servers of its cutter in turn, the first of them to the first."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self._names = map("py-{}".format, itertools.count())
        self._openai = AsyncOpenAI(base_url=f"{cutter.url}/v1", api_key="none")
        self._anthropic = AsyncAnthropic(base_url=cutter.url, api_key="none")
        self._clients: dict[str, Callable[[str, Json], Awaitable[Json]]] = {
            "openai-py": self._openai_chunks,
            "openai-py-helper": self._openai_helper,
            "openai-py-whole": self._openai_whole,
            "anthropic-py": self._anthropic_helper,
            "anthropic-py-whole": self._anthropic_whole,
        }

    def __contains__(self, client: str) -> bool:
        return client in self._clients

    async def run(self, client: str, cuts: Sequence[Cut] = (), *, key: str, prompt: str, asks: int = 1) -> Json:
        """What the client made of it; `requests`: how many there were."""
        name = next(self._names)
        self.cutter.cuts[name] = list(cuts)
        headers = {"case": name, "Idempotency-Key": key}
        errors: list[Json] = []
        said: Json = {}
        for _ in range(asks):
            try:
                said = await self._clients[client](prompt, headers)
            except (openai.APIError, anthropic.APIError, httpx2.HTTPError, AssertionError) as error:
                errors.append(_told(error))
                said = {}
                continue
            # Where a proxy takes a cut for a proper end, there is nothing else to see.
            if said["finish"] and said["usage"]:
                break
            errors.append({"message": "the answer ended early"})
        return {**said, "errors": errors, "requests": len(self.cutter.asked[name])}

    async def close(self) -> None:
        await self._openai.close()
        await self._anthropic.close()

    async def _openai_chunks(self, prompt: str, headers: Json) -> Json:
        stream = await self._openai.chat.completions.create(**_chat(prompt), stream=True, extra_headers=headers)
        said: Json = {"text": "", "thinking": "", "finish": None, "usage": None}
        calls: dict[int, Json] = {}
        async for chunk in stream:
            said["id"] = chunk.id
            said["usage"] = _counted(chunk.usage) or said["usage"]
            for choice in chunk.choices:
                said["text"] += choice.delta.content or ""
                said["thinking"] += getattr(choice.delta, "reasoning_content", None) or ""
                said["finish"] = choice.finish_reason or said["finish"]
                for call in choice.delta.tool_calls or ():
                    assert call.function
                    begun = {"id": call.id, "name": call.function.name, "args": ""}
                    calls.setdefault(call.index, begun)["args"] += call.function.arguments or ""
        return {**said, "calls": list(calls.values())}

    async def _openai_helper(self, prompt: str, headers: Json) -> Json:
        async with self._openai.chat.completions.stream(**_chat(prompt), extra_headers=headers) as stream:
            return _of_completion(await stream.get_final_completion())

    async def _openai_whole(self, prompt: str, headers: Json) -> Json:
        body = {name: value for name, value in _chat(prompt).items() if name != "stream_options"}
        return _of_completion(await self._openai.chat.completions.create(**body, extra_headers=headers))

    async def _anthropic_helper(self, prompt: str, headers: Json) -> Json:
        async with self._anthropic.messages.stream(**_messages(prompt), extra_headers=headers) as stream:
            return _of_message(await stream.get_final_message())

    async def _anthropic_whole(self, prompt: str, headers: Json) -> Json:
        return _of_message(await self._anthropic.messages.create(**_messages(prompt), extra_headers=headers))


def _told(error: Exception) -> Json:
    return {
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "message": str(error),
    }


def _chat(prompt: str) -> Json:
    function = {"name": "get_weather", "description": ABOUT, "parameters": SCHEMA}
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "tools": [{"type": "function", "function": function}],
        "reasoning_effort": "low",
        "stream_options": {"include_usage": True},
    }


def _counted(usage: Any) -> list[int] | None:
    return [usage.prompt_tokens, usage.completion_tokens] if usage else None


def _of_completion(completion: Any) -> Json:
    [choice] = completion.choices
    calls = [
        {"id": call.id, "name": call.function.name, "args": call.function.arguments}
        for call in choice.message.tool_calls or ()
    ]
    return {
        "id": completion.id,
        "text": choice.message.content or "",
        "thinking": getattr(choice.message, "reasoning_content", None),
        "calls": calls,
        "finish": choice.finish_reason,
        "usage": _counted(completion.usage),
    }


def _messages(prompt: str) -> Json:
    return {
        "model": MODEL,
        "max_tokens": 5000,
        "messages": [{"role": "user", "content": prompt}],
        "tools": [{"name": "get_weather", "description": ABOUT, "input_schema": SCHEMA}],
        "thinking": {"type": "enabled", "budget_tokens": 2000},
    }


def _of_message(message: Any) -> Json:
    def joined(kind: str) -> str:
        return "".join(getattr(block, kind) for block in message.content if block.type == kind)

    calls = [
        {"id": block.id, "name": block.name, "args": orjson.dumps(block.input).decode()}
        for block in message.content
        if block.type == "tool_use"
    ]
    return {
        "id": message.id,
        "text": joined("text"),
        "thinking": joined("thinking"),
        "calls": calls,
        "finish": message.stop_reason,
        "usage": [message.usage.input_tokens, message.usage.output_tokens],
    }
