"""AG-UI's clients, HttpAgent and TanStack AI's, through a proxy that cuts them.

`recorded.py` has the streams, `clients.py` runs npm/clients.mjs, where the clients are.
"""
