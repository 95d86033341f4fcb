"""From events to bytes, and from headers to cursors: pure functions.

To add a dialect: a file here, whose fold (fold.py) says what each event becomes, and broker/web/routes/<name>.py for
its routes, which web/app.py lists. No dialect knows of another.

format.py  what a viewer asked for (SSE or NDJSON, exact or compact, some kinds alone), and batches that are encoded
           once for all viewers
sse.py     Server-Sent Events: frames, notices, farewells; and NDJSON, its plain sibling
fold.py    the words of other ecosystems' clients: what each of the files below implements
durable_streams.py  Durable Streams: its headers, offsets and bodies; durable_views.py, any stream in its form
said.py    what events say, of whatever shape: texts, calls, tokens, failures
chat.py    OpenAI Chat Completions; chat_request.py, what a request of it asks
messages.py  Anthropic Messages; messages_request.py, what a request of it asks
responses.py  OpenAI Responses; responses_request.py, what a request of it asks; responses_input.py, what any did
socket.py  a stream's events as WebSocket messages
several.py what is added to a stream's bytes where several streams share a connection
cursor.py  Last-Event-ID → where a viewer resumes
vector.py  the same for a viewer of several streams: one cursor for all of them
ai_sdk.py  Vercel's AI SDK: chunks of a UI message stream, for useChat and WorkflowChatTransport
ai_sdk_request.py  what these two send, as a native request
ag_ui.py   AG-UI: a run's events; ag_ui_request.py what its clients send, ag_ui_thread.py what a thread says
langgraph.py  LangGraph's SDKs: a stream as a run of a thread; langgraph_request.py, what a run of them asks
langgraph_messages.py  LangChain's messages, and those of a request: both ways
parts.py   what other ecosystems' requests hold (texts, images, tools, calls), as the native request has it
"""
