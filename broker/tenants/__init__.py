"""Tenants: who calls, on whose behalf, and how much of everything each of them may have. It stands on the store alone.

scopes.py    what a credential may do, by name, and the presets of `lastevent keys create`
keyring.py   API keys: for back ends; those that a process knows
stored_keys.py   API keys in Redis, as hashes: written, confirmed on disk, and watched
token.py     a verified token: for phones and browsers, which streams it opens
"""
