"""From events to bytes, and from headers to cursors: pure functions, one file a dialect.

To add a dialect: a file here for its frames, and broker/web/routes/<name>.py for its routes.

format.py  what a viewer asked for (SSE or NDJSON, exact or compact), and batches that are encoded once for all viewers
sse.py     Server-Sent Events: frames, notices, farewells
cursor.py  Last-Event-ID → where a viewer resumes
"""
