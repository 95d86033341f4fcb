"""Anthropic Messages: the fold, and what a request asks."""
