"""Clients that speak Chat Completions or Messages, through a proxy that cuts them: OpenAI's and Anthropic's own, of
JavaScript and Python, the AI SDK's providers, LiteLLM; and llm-comply, a suite of tests for servers.

`npm/clients.mjs` has those of JavaScript, `in_process.py` those of Python that are here anyway, `litellm_client.py` the
other one.
"""
