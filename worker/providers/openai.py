"""OpenAI's Responses API as a Provider, over the openai SDK."""
