"""OpenAI Chat Completions: the fold, and what a request asks."""
