"""langgraph-sdk of Python, unmodified."""

from __future__ import annotations

import asyncio
from langgraph_sdk import get_client, get_sync_client
from tests.rig.deployment import Deployment


async def test_try(deployment: Deployment) -> None:
    async with get_client(url=f"{deployment.url}/langgraph", api_key=None) as client:
        if True:
            thread = await client.threads.create()
            print(thread)
            async for part in client.runs.stream(
                thread["thread_id"],
                "agent",
                input={
                    "messages": [
                        {"role": "user", "content": "Hello [[tokens=3 rate=0 ttft_ms=0 cut_at=2 cut_times=1]]"}
                    ]
                },
                stream_mode=["values", "messages-tuple"],
            ):
                print(part)
            print(await client.threads.get_state(thread["thread_id"]))
            print(
                await client.runs.wait(
                    thread["thread_id"],
                    "agent",
                    input={"messages": [{"role": "user", "content": "More [[tokens=3 rate=0 ttft_ms=0]]"}]},
                )
            )
            print(await client.threads.get_history(thread["thread_id"]))
            print(await client.runs.list(thread["thread_id"]))
