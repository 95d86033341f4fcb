"""From events to bytes, and from headers to cursors: pure functions.

To add a dialect: a file here for its frames, a member of Format (format.py), and broker/web/routes/<name>.py for its
routes, which web/app.py lists.

format.py  what a viewer asked for (SSE or NDJSON, exact or compact, some kinds alone), and batches that are encoded
           once for all viewers
sse.py     Server-Sent Events: frames, notices, farewells; and NDJSON, its plain sibling
socket.py  a stream's events as WebSocket messages
several.py what is added to a stream's bytes where several streams share a connection
cursor.py  Last-Event-ID → where a viewer resumes
vector.py  the same for a viewer of several streams: one cursor for all of them
parts.py   what other ecosystems' requests hold (texts, images, tools, calls), as the native request has it
"""
