"""Vercel's AI SDK: useChat of its versions 5, 6 and 7, and WorkflowChatTransport, through a proxy that cuts them.

`recorded.py` has the streams, `clients.py` runs npm/clients.mjs, where the clients are.
"""
