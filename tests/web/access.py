"""Who may call what: the table of routes, written down a second time, by hand, from what docs/API.md promises.

test_access.py tries each route with each kind of credential and compares. A route that is not in it fails.
"""

from __future__ import annotations

from typing import NamedTuple

WRITE, APPEND, INPUT = "streams:write", "streams:append", "streams:input"
READ, INSPECT, CANCEL, ERASE = "streams:read", "streams:inspect", "streams:cancel", "streams:erase"
AUDIT, MASKED, MINT, METRICS, ADMIN = "audit:read", "audit:masked", "tokens:mint", "metrics:read", "admin"

SCOPES = (WRITE, APPEND, READ, INSPECT, CANCEL, ERASE, AUDIT, MASKED, MINT, METRICS, ADMIN)
VIEWERS = "streams:viewers"
TOKEN_SCOPES = (READ, CANCEL, APPEND, INPUT, VIEWERS)


class Row(NamedTuple):
    """`keys`: the scopes of which a key needs one (`admin` always opens); (): any key. `token`: the scope that a token
    needs; None: none opens it. `cookie`, `address`: where else a token may travel. `is_open`: without any credential;
    then it gives `answer`. `body`: one that is wrong, since who may not call must not learn that.
    """

    method: str
    path: str
    keys: tuple[str, ...] = ()
    token: str | None = None
    cookie: bool = False
    address: bool = False
    is_open: bool = False
    any_token: bool = False
    answer: int = 200

    @property
    def is_of_a_stream(self) -> bool:
        return "{sid}" in self.path


def _viewing(path: str, *keys: str) -> list[Row]:
    return [Row("GET", path, keys, READ, cookie=True, address=True)]


STREAM = "/v1/streams/{sid}"
DURABLE = "/v1/ds/{path}"
VIEWS = [f"/v1/ds/{view}/{{sid}}" for view in ("events", "ai-sdk", "ag-ui")]
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
RESPONSE = "/v1/responses/{sid}"
LANGGRAPH_RUNS = ("/langgraph/runs", "/langgraph/threads/{thread_id}/runs")

TABLE = [
    Row("POST", "/v1/streams", (WRITE,)),
    Row("POST", f"{STREAM}/regenerate", (WRITE,)),
    Row("POST", f"{STREAM}/cancel", (CANCEL,), CANCEL, cookie=True),
    Row("POST", f"{STREAM}/events", (APPEND,), APPEND),
    Row("POST", f"{STREAM}/heartbeat", (APPEND,), APPEND),
    Row("POST", f"{STREAM}/input", (WRITE,), INPUT),
    Row("POST", f"{STREAM}/approvals/{{approval_id}}", (WRITE,)),
    *_viewing(f"{STREAM}/events", READ, MASKED),
    *_viewing(f"{STREAM}/text", READ, MASKED),
    *_viewing(STREAM, INSPECT, READ, MASKED),
    Row("HEAD", f"{STREAM}/events", (READ, MASKED), READ, cookie=True, address=True),
    Row("GET", f"{STREAM}/message", (INSPECT,)),
    Row("GET", f"{STREAM}/replay", (AUDIT, MASKED)),
    Row("GET", f"{STREAM}/export", (AUDIT, MASKED)),
    Row("GET", f"{STREAM}/views", (AUDIT, MASKED)),
    Row("GET", f"{STREAM}/verify", (AUDIT, MASKED)),
    Row("GET", f"{STREAM}/viewers", (READ, INSPECT), READ, cookie=True),
    Row("GET", "/v1/sessions/{session_id}/viewers", (READ, INSPECT), READ, cookie=True),
    *(Row(method, path, (READ,), READ, cookie=True, address=True) for method in ("GET", "HEAD") for path in VIEWS),
    *(Row("POST", path, (WRITE,)) for path in (CHAT, MESSAGES, f"{MESSAGES}/count_tokens")),
    *(
        Row("GET", path, (READ,), READ, address=True)
        for path in (f"{CHAT}/chatcmpl-{{sid}}", f"{MESSAGES}/msg_{{sid}}")
    ),
    Row("POST", "/v1/responses", (WRITE,)),
    *(Row("POST", f"/v1/responses/{what}", (WRITE,)) for what in ("compact", "input_tokens")),
    Row("GET", RESPONSE, (READ,), READ, address=True),
    Row("POST", f"{RESPONSE}/cancel", (CANCEL,), CANCEL),
    Row("GET", f"{RESPONSE}/input_items", (INSPECT,)),
    *(Row("POST", f"/v1/ai-sdk/{what}", (WRITE,)) for what in ("chat", "workflow")),
    *_viewing("/v1/ai-sdk/chat/{chat_id}/stream", READ),
    *_viewing("/v1/ai-sdk/workflow/{sid}/stream", READ),
    Row("POST", "/v1/ai-sdk/chat/{chat_id}/stop", (CANCEL,), CANCEL, cookie=True),
    Row("POST", "/v1/ag-ui", (WRITE,)),
    *_viewing("/v1/ag-ui", READ),
    Row("GET", "/langgraph/ok", is_open=True),
    Row("GET", "/langgraph/info"),
    Row("POST", "/langgraph/threads", (WRITE,)),
    *(Row("GET", f"/langgraph/threads/{{thread_id}}{what}", (INSPECT,)) for what in ("", "/state", "/runs")),
    Row("POST", "/langgraph/threads/{thread_id}/history", (INSPECT,)),
    *(Row("POST", f"{runs}{what}", (WRITE,)) for runs in LANGGRAPH_RUNS for what in ("", "/stream", "/wait")),
    *(row for runs in LANGGRAPH_RUNS for row in _viewing(f"{runs}/{{sid}}", INSPECT, READ)),
    *(
        row
        for runs in LANGGRAPH_RUNS
        for what in ("stream", "join")
        for row in _viewing(f"{runs}/{{sid}}/{what}", READ)
    ),
    *(Row("POST", f"{runs}/{{sid}}/cancel", (CANCEL,), CANCEL, cookie=True) for runs in LANGGRAPH_RUNS),
    Row("DELETE", STREAM, (ERASE,)),
    Row("DELETE", RESPONSE, (ERASE,)),
    Row("GET", "/v1/streams", (INSPECT, MASKED)),
    Row("GET", "/v1/sessions", (INSPECT,)),
    Row("GET", "/v1/sessions/{session_id}", (INSPECT,)),
    *(
        Row(method, path, (READ,), READ, cookie=True)
        for path in ("/v1/sessions/{session_id}/events", "/v1/events")
        for method in ("GET", "HEAD")
    ),
    Row("PUT", DURABLE, (WRITE,)),
    Row("POST", DURABLE, (APPEND,), APPEND),
    Row("DELETE", DURABLE, (ERASE,)),
    *(Row(method, DURABLE, (READ,), READ, cookie=True, address=True) for method in ("GET", "HEAD")),
    Row("POST", "/v1/ds/ai-sdk", (WRITE,)),
    Row("GET", "/v1/ds/ai-sdk/{chat_id}/stream", (READ,), READ, cookie=True, address=True),
    Row("GET", "/v1/models"),
    Row("GET", "/v1/models/{model}"),
    Row("GET", "/v1/agents"),
    Row("POST", "/v1/tokens", (MINT,)),
    Row("POST", "/v1/tokens/cookie", token="", any_token=True),
    Row("POST", "/v1/tokens/revoke", (MINT,)),
    Row("GET", "/v1/deeds", (AUDIT,)),
    Row("POST", "/v1/erasures", (ERASE,)),
    Row("GET", "/v1/erasures/{erasure_id}", (ERASE,)),
    Row("GET", "/v1/keys", (ADMIN,)),
    Row("DELETE", "/v1/keys/{key}", (ADMIN,)),
    Row("GET", "/v1/limits", (ADMIN,)),
    Row("GET", "/metrics", (METRICS,)),
    Row("GET", "/v1/socket", is_open=True, answer=426),
    *(Row(method, path, is_open=True) for path in ("/healthz", "/readyz") for method in ("GET", "HEAD")),
]
