"""Tenants: who calls, on whose behalf, and how much of everything each of them may have. It stands on the store alone.

scopes.py       what a credential may do, by name, and the presets of `lastevent keys create`
keyring.py      API keys: for back ends, kept in Redis as hashes
limits.py       how much a tenant may have, of what `lastevent limits` sets and the settings say
creations.py    how many streams a tenant may start in a minute, counted in Redis
enforcement.py  whether limits refuse, or only count (LASTEVENT_LIMITS=observe)
token.py        a verified token: for phones and browsers, which streams it opens
"""
