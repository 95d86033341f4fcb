"""AG-UI's clients, HttpAgent and TanStack AI's, through a proxy that cuts them.

`recorded.py` has the streams, npm/clients.mjs the clients.
"""
