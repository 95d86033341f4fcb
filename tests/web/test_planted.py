"""Planted words: whatever route they come by, at `debug` and with everything on that tells of a process, no log,
metric, trace, error or process list has one of them.

A server and a worker, their provider's variables set to say all they can, traces exported to a collector. Each route of
the application is called by who may, by a stranger, and wrongly.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from redis import Redis

from bench.ports import free_port
from broker.settings import Settings
from broker.store.archive_url import archive_url
from broker.web.app import create_app
from tests.rig.collector import Collector, collecting
from tests.rig.deployment import HTTP, Deployment, Process, wait_until

PLANTED = {
    what: f"planted-{what}-7c1e"
    for what in (
        *("prompt", "system", "metadata", "user", "session", "answer", "key", "masked", "token", "password"),
        *("provider-key", "idempotency", "title", "text", "reason", "subject", "tokens-secret", "path", "query"),
        *("cookie", "header", "collectors-key", "name"),
    )
}
TOKEN_SECRET = f"{PLANTED['tokens-secret']}-that-is-long-enough-for-one"
API_KEY = f"{PLANTED['key']}-of-an-api-that-is-long-enough"
AUTHORIZED = {"Authorization": f"Bearer {API_KEY}"}
STRANGER = {
    "Authorization": f"Bearer {PLANTED['masked']}",
    "Cookie": f"__Host-lastevent={PLANTED['cookie']}",
    **dict.fromkeys(("User-Agent", "X-Forwarded-For", "Last-Event-ID", "Origin", "traceparent"), PLANTED["header"]),
}

STREAM = "/v1/streams/{sid}"
DURABLE = "/v1/ds/{path:path}"
LANGGRAPH_RUNS = ("/langgraph/runs", "/langgraph/threads/{thread_id}/runs")
SESSION_EVENTS = "/v1/sessions/{session_id:path}/events"
DRIVEN: dict[str, Any] = {
    "POST /v1/streams": {"prompt": PLANTED["prompt"], "user_id": PLANTED["user"]},
    f"POST {STREAM}/regenerate": {},
    f"POST {STREAM}/cancel": {"reason": PLANTED["reason"]},
    f"POST {STREAM}/events": {"epoch": 1, "events": [{"event": "text_delta", "data": {"text": PLANTED["text"]}}]},
    f"POST {STREAM}/heartbeat": {"epoch": 1},
    f"POST {STREAM}/input": {"text": PLANTED["text"]},
    f"POST {STREAM}/approvals/{{approval_id:path}}": {"approve": False, "reason": PLANTED["reason"]},
    **{
        f"POST /v1/ai-sdk/{what}": {
            "id": PLANTED["session"],
            "messages": [{"role": "user", "parts": [{"type": "text", "text": PLANTED["prompt"]}]}],
            "user_id": PLANTED["user"],
        }
        for what in ("chat", "workflow")
    },
    "POST /v1/ai-sdk/chat/{chat_id:path}/stop": None,
    "POST /v1/ag-ui": {
        "threadId": PLANTED["session"],
        "runId": PLANTED["name"],
        "messages": [{"id": "1", "role": "user", "content": PLANTED["prompt"]}],
        "forwardedProps": {"user_id": PLANTED["user"]},
    },
    **{
        f"POST {runs}{what}": {
            "assistant_id": "agent",
            "input": {"messages": [{"role": "user", "content": PLANTED["prompt"]}]},
            "config": {"configurable": {"user_id": PLANTED["user"]}},
        }
        for runs in LANGGRAPH_RUNS
        for what in ("", "/stream", "/wait")
    },
    "POST /langgraph/threads": {"thread_id": PLANTED["session"], "if_exists": "do_nothing"},
    "POST /langgraph/threads/{thread_id}/history": {"limit": 2},
    "POST /v1/tokens": {"sub": PLANTED["subject"], "sessions": [PLANTED["session"]], "scope": "streams:read"},
    "POST /v1/tokens/cookie": None,
    "POST /v1/tokens/revoke": {"sub": PLANTED["subject"]},
    "POST /v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": PLANTED["prompt"]}],
        "user": PLANTED["user"],
        "n": PLANTED["metadata"],
    },
    "POST /v1/messages": {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": PLANTED["prompt"]}, {"role": PLANTED["metadata"], "content": "a"}],
    },
    "POST /v1/messages/count_tokens": {},
    "POST /v1/erasures": {"user_id": PLANTED["subject"], "reason": PLANTED["reason"]},
    f"PUT {DURABLE}": {"text": PLANTED["text"]},
    f"POST {DURABLE}": {"text": PLANTED["text"]},
    "POST /v1/ds/ai-sdk": {"id": PLANTED["session"], "messages": [{"role": "user", "content": PLANTED["prompt"]}]},
    "POST /v1/responses": {"model": "m", "input": PLANTED["prompt"], "metadata": {PLANTED["metadata"]: "x"}},
    **dict.fromkeys(
        (
            *(f"{method} {DURABLE}" for method in ("GET", "HEAD", "DELETE")),
            *(
                f"{method} /v1/ds/{view}/{{sid}}"
                for method in ("GET", "HEAD")
                for view in ("events", "ai-sdk", "ag-ui")
            ),
            "GET /v1/ds/ai-sdk/{chat_id:path}/stream",
            *(f"POST /v1/responses/{what}" for what in ("compact", "input_tokens", "{sid:response}/cancel")),
            *(f"{method} /v1/responses/{{sid:response}}" for method in ("GET", "DELETE")),
            "GET /v1/responses/{sid:response}/input_items",
            *(f"GET {STREAM}{what}" for what in ("", "/text", "/message", "/events", "/replay", "/export", "/views")),
            *(f"GET /v1/ai-sdk/{what}:path}}/stream" for what in ("chat/{chat_id", "workflow/{sid")),
            *(f"GET {runs}/{{sid:run}}{what}" for runs in LANGGRAPH_RUNS for what in ("", "/stream", "/join")),
            *(f"POST {runs}/{{sid:run}}/cancel" for runs in LANGGRAPH_RUNS),
            *("GET /langgraph/ok", "GET /langgraph/info"),
            *(f"GET /langgraph/threads/{{thread_id}}{what}" for what in ("", "/state", "/runs")),
            *(f"GET {STREAM}/verify", f"GET {STREAM}/viewers", "GET /v1/sessions/{session_id:path}/viewers"),
            *(f"HEAD {STREAM}/events", f"DELETE {STREAM}"),
            *("GET /v1/streams", "GET /v1/sessions", "GET /v1/sessions/{session_id:path}", "GET /v1/models"),
            *("GET /v1/models/{model:path}", "GET /v1/chat/completions/chatcmpl-{sid}", "GET /v1/messages/msg_{sid}"),
            *(f"{method} {path}" for method in ("GET", "HEAD") for path in (SESSION_EVENTS, "/v1/events")),
            *(
                "GET /v1/agents",
                "GET /v1/keys",
                "DELETE /v1/keys/{key}",
                "GET /v1/limits",
                "GET /v1/deeds",
                "GET /v1/socket",
            ),
            *("GET /v1/erasures/{erasure_id}", "GET /metrics", "GET /openapi.json", "HEAD /openapi.json"),
            "GET /v1/ag-ui",
            *(f"{method} /{path}" for method in ("GET", "HEAD") for path in ("", "healthz", "readyz")),
            *(f"{method} /console/{{name:path}}" for method in ("GET", "HEAD")),
        )
    ),
}
"""Each route of the application, and its body."""


class _Provider(BaseHTTPRequestHandler):
    """Answers with a planted word; `refuse` in a prompt is a refusal that quotes it, `garbage` no JSON."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        word = PLANTED["answer"]
        if "refuse" in asked:
            self._send(400, "application/json", json.dumps({"type": "error", "error": {"message": word}}))
        elif "garbage" in asked:
            self._send(200, "text/event-stream", f"event: content_block_delta\ndata: {{{word}\n\n")
        else:
            delta = json.dumps({"index": 0, "delta": {"type": "text_delta", "text": word}})
            end = 'event: message_stop\ndata: {"type":"message_stop"}\n\n'
            self._send(200, "text/event-stream", f"event: content_block_delta\ndata: {delta}\n\n{end}")

    def _send(self, status: int, media_type: str, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def provider() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Provider) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Parts(Protocol):
    socket: str
    collector: Collector

    def __call__(self, name: str, *arguments: str) -> Process: ...


@pytest.fixture
def parts(tmp_path: Path, own_deployment: Callable[..., Deployment]) -> Iterator[Parts]:
    """parts("server", "broker", "serve") → that part of the product, at `debug`, as a user with a password on Redis."""
    deployment = own_deployment(servers=0, workers=0)
    path = deployment.redis_url.removeprefix("unix://")
    wait_until(Path(path).exists, "Valkey listens")
    with Redis(unix_socket_path=path) as redis:
        redis.execute_command("ACL", "SETUSER", "planted", "on", f">{PLANTED['password']}", "~*", "&*", "+@all")
    processes = []
    with provider() as url, collecting() as collector:
        environment = deployment.environment | {
            "LASTEVENT_REDIS_URL": f"unix://planted:{PLANTED['password']}@{path}",
            "LASTEVENT_ARCHIVE_URL": archive_url(tmp_path),
            "LASTEVENT_ARCHIVE_AFTER_S": "0",
            "LASTEVENT_LOG_LEVEL": "debug",
            "LASTEVENT_API_KEYS": API_KEY,
            "ANTHROPIC_API_KEY": f"sk-{PLANTED['provider-key']}",
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_LOG": "debug",
            "LASTEVENT_TOKEN_SECRET": TOKEN_SECRET,
            **collector.settings,
            "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={PLANTED['collectors-key']}",
        }

        def start(name: str, *arguments: str) -> Process:
            process = Process(name, [sys.executable, "-m", *arguments], environment, tmp_path)
            processes.append(process)
            process.start()
            return process

        start.socket, start.collector = path, collector  # type: ignore[attr-defined]
        yield cast(Parts, start)
        for process in processes:
            process.kill()


def test_at_debug_nobody_finds_a_planted_word_in_a_log_a_metric_a_trace_an_error_or_the_process_list(
    parts: Parts,
) -> None:
    port = free_port()
    running = [parts("server", "broker", "serve", "--port", str(port)), parts("worker", "worker")]
    url, errors = f"http://127.0.0.1:{port}", []
    wait_until(lambda: _is_ready(url), "the server is ready")

    def ask(method: str, path: str, **options: Any) -> Any:
        answer = HTTP.request(method, f"{url}{path}", **{"headers": AUTHORIZED, **options})
        if answer.is_error:
            errors.append(answer.text)
        return answer

    def create(prompt: str) -> str:
        body = {
            "prompt": f"{prompt} {PLANTED['prompt']}",
            "system": PLANTED["system"],
            "metadata": {PLANTED["metadata"]: PLANTED["metadata"]},
            "user_id": PLANTED["user"],
            "session_id": PLANTED["session"],
        }
        headers = AUTHORIZED | {"Idempotency-Key": PLANTED["idempotency"] + prompt}
        answer = ask("POST", "/v1/streams", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        sid: str = answer.json()["id"]
        return sid

    sids = [create("well"), create("refuse"), create("garbage")]
    for sid in sids:
        wait_until(lambda sid=sid: ask("GET", f"/v1/streams/{sid}").json()["archived_at"], "it is archived")
    assert ask("GET", f"/v1/streams/{sids[0]}/text").text == PLANTED["answer"]
    for path in (f"/v1/streams?user_id={PLANTED['user']}", f"/v1/sessions/{PLANTED['session']}", "/v1/sessions"):
        assert ask("GET", path).status_code == 200
    # what is wrong with a request is said without its words
    ask("GET", f"/v1/streams/{sids[0]}/events?token={PLANTED['token']}", headers={})
    ask("GET", f"/v1/streams/{sids[0]}", headers={"Authorization": f"Bearer {PLANTED['masked']}"})
    ask("POST", "/v1/streams", json={"prompt": [PLANTED["prompt"]], "metadata": PLANTED["metadata"]})
    ask("POST", "/v1/streams", content=b'{"prompt": "' + PLANTED["prompt"].encode() + b"\xff")
    ask("DELETE", f"/v1/streams/{sids[1]}")
    # a fault of ours, whose traceback is logged: Redis holds something else than it should
    other = create("another")
    with Redis(unix_socket_path=parts.socket) as redis:
        redis.hset("le:{odd}:meta", mapping={"state": "running", "tenant": "default", "created": PLANTED["title"]})
    assert ask("GET", "/v1/streams/odd").status_code == 500
    wait_until(lambda: ask("GET", f"/v1/streams/{other}").json()["state"] == "done", "the worker goes on")

    # each route: as it is meant, from a stranger, and with a body that is none
    external = ask("POST", "/v1/streams", json={"producer": "external", "session_id": PLANTED["session"]}).json()["id"]
    for route in routes():
        method, path = route.split(" ")
        sid = external if path.endswith(("/events", "/heartbeat")) and method == "POST" else sids[0]
        ask(method, _filled(path, sid), json=DRIVEN[route], params=_QUERY.get(route))
        stranger = {"access_token": PLANTED["token"], "user_id": PLANTED["query"], PLANTED["query"]: "1"}
        ask(method, _filled(path, PLANTED["path"]), json=DRIVEN[route], params=stranger, headers=STRANGER)
        wrong = {**AUTHORIZED, "Last-Event-ID": PLANTED["header"], "Accept": PLANTED["header"]}
        ask(method, _filled(path, PLANTED["path"]), content=PLANTED["text"], headers=wrong, params=stranger)
    minting = {"sub": PLANTED["subject"], "streams": [sids[2]], "scope": "streams:read"}
    token = ask("POST", "/v1/tokens", json=minting).json()["token"]
    assert ask("GET", f"/v1/streams/{sids[2]}/events?access_token={token}", headers={}).status_code == 200
    metrics = ask("GET", "/metrics").text
    assert "lastevent_http_requests_total" in metrics
    names = ("POST", "queue", "generate", "chat", "archive", "follow")
    wait_until(lambda: all(parts.collector.spans(name) for name in names), "spans of each kind have been exported")

    listed = "".join(_command_lines())
    for process in running:
        process.stop()
    logs = "".join(process.output.read_text() for process in running)
    spans = b"".join(parts.collector.received).decode(errors="replace")
    assert len(errors) > len(DRIVEN)
    assert all(f"{process.name}" in logs for process in running)
    places = {"log": logs, "metric": metrics, "trace": spans, "error": "".join(errors), "process list": listed}
    for where, said in places.items():
        words = {**PLANTED, "token that was minted": token}
        assert [f"{what} is in a {where}" for what, word in words.items() if word in said] == []


def routes() -> list[str]:
    application = create_app(Settings(redis_url="redis://127.0.0.1:1"))
    found = [(route.path, method) for route in application.routes for method in route.methods]  # type: ignore[attr-defined]
    found.sort(key=lambda one: one[1] == "DELETE")  # what is erased has nothing to show
    return [f"{method} {path}" for path, method in found]


def test_each_route_is_called_with_planted_words() -> None:
    assert [route for route in routes() if route not in DRIVEN] == []


_QUERY = {
    f"GET {STREAM}/replay": {"speed": "0"},
    "GET /v1/streams": {"user_id": PLANTED["user"]},
    f"GET {SESSION_EVENTS}": {"follow": "0"},
    "GET /v1/events": {"stream": PLANTED["query"]},
}


def _filled(path: str, name: str) -> str:
    """`name` in place of each parameter."""
    return re.sub(r"\{[^}]*\}", name, path)


def _is_ready(url: str) -> bool:
    with suppress(Exception):
        return HTTP.get(f"{url}/readyz").status_code == 200
    return False


def _command_lines() -> Iterator[str]:
    """Of each process of this machine."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended since
            yield process.read_text(errors="replace")
