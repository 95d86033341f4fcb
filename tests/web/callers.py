"""An application in this process, and callers at any address: limits need many of both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from broker.settings import Settings
from broker.web.app import create_app

KEY = "a-key-of-at-least-thirty-two-characters"
SOMEWHERE = "203.0.113.7"


@asynccontextmanager
async def served(redis_url: str, **settings: Any) -> AsyncIterator[FastAPI]:
    """With the key KEY, of the tenant `default`; without what runs in the background."""
    app = create_app(Settings(redis_url=redis_url, api_keys=KEY, token_secret="s" * 40, **settings))  # type: ignore[arg-type]
    try:
        yield app
    finally:
        await app.state.tier.queue.aclose()
        await app.state.tier.redis.aclose()


async def ask(
    app: FastAPI,
    method: str,
    path: str,
    body: Any = None,
    *,
    credential: str = KEY,
    address: str = SOMEWHERE,
    **headers: str,
) -> httpx.Response:
    """`headers`: with _ for the hyphens in their names."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    transport = httpx.ASGITransport(app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, json=body, headers={"Authorization": f"Bearer {credential}", **named})
