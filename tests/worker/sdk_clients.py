"""The providers' SDKs at the stand-in, with nothing changed in them."""

from __future__ import annotations

import anthropic
import httpx2
import openai
from google import genai
from google.genai import types as genai_types


class SdkClients:
    def __init__(self, base_url: str) -> None:
        self.anthropic = anthropic.AsyncAnthropic(api_key="any", base_url=base_url, max_retries=0, timeout=5)
        self.openai = openai.AsyncOpenAI(api_key="any", base_url=f"{base_url}/v1", max_retries=0, timeout=5)
        # Without a client of its own the SDK takes aiohttp if it is there.
        self.http = httpx2.AsyncClient(trust_env=False, timeout=5)
        options = genai_types.HttpOptions(base_url=base_url, httpx_async_client=self.http)
        self.gemini = genai.Client(api_key="any", http_options=options).aio

    async def close(self) -> None:
        await self.anthropic.close()
        await self.openai.close()
        await self.gemini.aclose()
        await self.http.aclose()
