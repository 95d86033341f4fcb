"""The routes, each a function that says what it takes and gives.

starting.py   POST /v1/streams, …/regenerate, …/cancel
following.py  GET …/events, …/replay: responses that continue
conversations.py  GET /v1/sessions/{id}/events, /v1/events: several streams on one connection
viewers.py    GET …/viewers, /v1/sessions/{id}/viewers: who follows now
sockets.py    GET /v1/socket, for what is no handshake
reading.py    GET …/{id}, …/text, …/message, …/export: a stream as it is now
producing.py  POST …/events, …/heartbeat: external producers
durable_streams.py  /v1/ds/<path>: shared streams
durable_chat.py  POST /v1/ds/ai-sdk, GET /v1/ds/ai-sdk/{chat}/stream
durable_views.py  /v1/ds/{events,ai-sdk,ag-ui}/<id>: any stream, in other words
telling.py    GET /v1/agents, POST …/input, …/approvals/{approval_id}
tokens.py     POST /v1/tokens, /v1/tokens/cookie, /v1/tokens/revoke
listings.py   GET /v1/streams, /v1/sessions…
models.py     GET /v1/models, /v1/models/{model}
chat.py       /v1/chat/completions…: OpenAI Chat Completions
messages.py   /v1/messages…: Anthropic Messages
auditing.py   GET …/views, …/verify, DELETE …/{id}
limits.py     GET /v1/limits
credentials.py  GET /v1/keys, DELETE /v1/keys/{key}
responses.py  /v1/responses…: OpenAI Responses
ai_sdk.py     POST /v1/ai-sdk/chat, /v1/ai-sdk/workflow, GET …/{id}/stream, POST …/stop: Vercel's AI SDK
ag_ui.py      /v1/ag-ui: AG-UI
langgraph.py  /langgraph/…: runs and threads of LangGraph's SDKs
operating.py  GET /healthz, /readyz, /metrics
"""
