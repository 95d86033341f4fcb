"""LiteLLM: cases in (JSON lines), what it made of each out (JSON lines), as npm/clients.mjs does. In an environment of
its own, without anything of ours.
"""

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks for one on the internet

import litellm

litellm.suppress_debug_info = True
MODELS = {"litellm-chat": "openai/anthropic/claude-sonnet-5-5", "litellm-messages": "anthropic/claude-sonnet-5-5"}
FUNCTION = {"name": "get_weather", "description": "The weather of a city", "parameters": {"type": "object"}}


async def ask(told):
    is_chat = told["client"] == "litellm-chat"
    chunks = await litellm.acompletion(
        model=MODELS[told["client"]],
        api_base=told["url"] + ("/v1" if is_chat else ""),
        api_key="none",
        messages=[{"role": "user", "content": told["prompt"]}],
        tools=[{"type": "function", "function": FUNCTION}],
        reasoning_effort="low",
        allowed_openai_params=["reasoning_effort"],
        stream=True,
        stream_options={"include_usage": True},
        max_retries=0,
        extra_headers={"case": told["case"], "Idempotency-Key": told["key"]},
    )
    said = {"id": None, "text": "", "thinking": "", "finish": None, "usage": None}
    calls = {}
    async for chunk in chunks:
        if usage := getattr(chunk, "usage", None):
            said["usage"] = [usage.prompt_tokens, usage.completion_tokens]
        for choice in chunk.choices:
            said["text"] += choice.delta.content or ""
            said["thinking"] += getattr(choice.delta, "reasoning_content", None) or ""
            said["finish"] = choice.finish_reason or said["finish"]
            for call in choice.delta.tool_calls or ():
                begun = {"id": call.id, "name": call.function.name, "args": ""}
                calls.setdefault(call.index, begun)["args"] += call.function.arguments or ""
    return {**said, "calls": list(calls.values())}


async def run(told):
    errors = []
    said = {}
    for _ in range(told["asks"]):
        try:
            said = await ask(told)
        except Exception as error:
            errors.append(
                {"status": getattr(error, "status_code", None), "message": f"{type(error).__name__}: {error}"}
            )
            said = {}
            continue
        if said["finish"] and said["usage"]:
            break
        errors.append({"message": "the answer ended early"})
    print(json.dumps({**said, "case": told["case"], "errors": errors}), flush=True)


async def main():
    running = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        running.append(asyncio.create_task(run(json.loads(line))))
    await asyncio.gather(*running)


asyncio.run(main())
