"""Vercel's AI SDK: useChat of its versions 5, 6 and 7, and WorkflowChatTransport, through a proxy that cuts them.

`recorded.py` has the streams, npm/clients.mjs the clients.
"""
