"""Tenants: who calls, on whose behalf, and how much of everything each of them may have. It stands on the store alone.

scopes.py    what a credential may do, by name, and the presets of `lastevent keys create`
keyring.py   API keys: for back ends, kept in Redis as hashes
token.py     a verified token: for phones and browsers, which streams it opens
tokens.py    tokens on the wire: ours made, all of them verified
issuers.py   who else makes tokens that are accepted, and where their keys are
revocations.py  tokens that are no longer good before they expire
former.py    the tokens of release 0.1
"""
