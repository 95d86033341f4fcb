"""Tenants: who calls, on whose behalf, and how much of everything each of them may have. It stands on the store alone.

scopes.py       what a credential may do, by name, and the presets of `lastevent keys create`
keyring.py      API keys: for back ends; those that a process knows
stored_keys.py  API keys in Redis, as hashes: written, confirmed on disk, and watched
token.py        a verified token: for phones and browsers, which streams it opens
tokens.py       tokens on the wire: ours made, all of them verified
issuers.py      who else makes tokens that are accepted, and where their keys are
revocations.py  tokens that are no longer good before they expire
limits.py       how much a tenant may have, of what `lastevent limits` sets and the settings say
creations.py    how many streams a tenant may start in a minute, counted in Redis
enforcement.py  whether limits refuse, or only count (LASTEVENT_LIMITS=observe)
"""
