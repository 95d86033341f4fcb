"""Clients of others in an environment of their own: what each made of a server's responses, as one JSON object.

Usage: drive.py URL CLIENT …
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from typing import Any

CALLING = '[[call=weather:{"city":"Oslo"} rate=0 ttft_ms=0]] Go.'
RESTARTED = "[[tokens=8 cut_at=5 cut_times=1 rate=0 ttft_ms=0]] %s."


async def agents(url: str) -> dict[str, Any]:
    from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    ran = []

    @function_tool
    def weather(city: str) -> str:
        """The weather there."""
        ran.append(city)
        return f"sunny in {city}"

    model = OpenAIResponsesModel("gpt-5-mini", AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0))
    agent = Agent(name="agent", instructions="Be brief.", tools=[weather], model=model)
    whole = await Runner.run(agent, CALLING)
    streamed = Runner.run_streamed(agent, CALLING)
    events = [event async for event in streamed.stream_events()]
    restarted = Runner.run_streamed(agent, RESTARTED % "Agents")
    async for _ in restarted.stream_events():
        pass
    return {
        "ran": ran,
        "whole": whole.final_output,
        "streamed": streamed.final_output,
        "events": len(events),
        "restarted": restarted.final_output,
    }


async def litellm(url: str) -> dict[str, Any]:
    import litellm as client

    warnings.simplefilter("ignore")  # its own, about its own usage
    asked = {"model": "openai/gpt-5-mini", "api_base": f"{url}/v1", "api_key": "any"}
    whole = await client.aresponses(input="[[tokens=8 rate=0 ttft_ms=0]]", **asked)
    streamed = await client.aresponses(input=RESTARTED % "LiteLLM", stream=True, **asked)
    events = [event async for event in streamed]
    return {
        "whole": whole.output[0].content[0].text,
        "restarted": events[-1].response.output[0].content[0].text,
        "last": events[-1].type.value,
    }


async def main(url: str, *names: str) -> None:
    told = {name: await {"agents": agents, "litellm": litellm}[name](url) for name in names}
    print(json.dumps(told))


asyncio.run(main(*sys.argv[1:]))
