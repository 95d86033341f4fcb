"""Bad input gets a clear problem, changes nothing, and is not repeated in the answer: a marker stands in all of it."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from tests.rig.deployment import Deployment
from tests.web.wire import Api, Exchange, problem

MARK = "mArKeR7f3a"
JSON = {"Content-Type": "application/json"}
OK = b'"prompt":"x"'


@pytest.fixture
def nothing_changes(api: Api, deployment: Deployment) -> Iterator[set[str]]:
    """No stream is made but those that the test itself adds to this set, and no server has failed inside."""
    before, made = api.newest_ids(), set[str]()
    yield made
    assert api.newest_ids() - before == made
    assert api.get("/healthz").status_code == 200
    for server in deployment.servers:
        assert b"Traceback" not in server.output.read_bytes()


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    said = problem(answer, status, code)
    assert MARK.lower() not in answer.text.lower()
    assert all(MARK.lower() not in value.lower() for name, value in answer.headers.items())
    return said


def post_raw(api: Api, body: bytes, path: str = "/v1/streams", **headers: str) -> httpx.Response:
    return api.http.post(path, content=body, headers={**JSON, **headers})


def nested(levels: int, opening: bytes = b'{"a":', closing: bytes = b"}") -> bytes:
    """A body of that many levels, the outermost one included."""
    inner = b'"' + MARK.encode() + b'"'
    return b'{"prompt":"x","metadata":' + opening * (levels - 1) + inner + closing * (levels - 1) + b"}"


MALFORMED = {
    "nothing": b"",
    "white space": b"  \n",
    "a word": MARK.encode(),
    "an open brace": b"{",
    "an open string": b'{"prompt":"' + MARK.encode(),
    "a trailing comma": b'{"prompt":"' + MARK.encode() + b'",}',
    "single quotes": b"{'prompt':'" + MARK.encode() + b"'}",
    "a comment": b'{"prompt":"x"/*' + MARK.encode() + b"*/}",
    "two values": b'{"prompt":"x"}{"prompt":"' + MARK.encode() + b'"}',
    "NaN": b'{"prompt":"x","metadata":{"' + MARK.encode() + b'":NaN}}',
    "Infinity": b'{"prompt":"x","metadata":{"' + MARK.encode() + b'":Infinity}}',
    "-Infinity": b'{"prompt":"x","metadata":{"' + MARK.encode() + b'":-Infinity}}',
    "a leading zero": b'{"prompt":"x","max_tokens":01}',
    "a plus": b'{"prompt":"x","max_tokens":+1}',
    "hexadecimal": b'{"prompt":"x","max_tokens":0x1}',
    "a raw control character": b'{"prompt":"' + MARK.encode() + b'\n"}',
    "a raw NUL": b'{"prompt":"' + MARK.encode() + b'\x00"}',
    "a bad escape": b'{"prompt":"' + MARK.encode() + b'\\x41"}',
    "a lone high surrogate": b'{"prompt":"' + MARK.encode() + b'\\ud800"}',
    "a lone low surrogate": b'{"prompt":"' + MARK.encode() + b'\\udc00"}',
    "surrogates the wrong way round": b'{"prompt":"' + MARK.encode() + b'\\udc00\\ud800"}',
    "a lone surrogate in a key": b'{"' + MARK.encode() + b'\\ud800":1,"prompt":"x"}',
    "a raw surrogate": b'{"prompt":"' + MARK.encode() + b'\xed\xa0\x80"}',
    "no UTF-8": b'{"prompt":"' + MARK.encode() + b'\xff"}',
    "an overlong NUL": b'{"prompt":"' + MARK.encode() + b'\xc0\x80"}',
    "UTF-16": f'{{"prompt":"{MARK}"}}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt":"' + MARK.encode() + b'"}',
    "65 levels": nested(65),
    "65 levels of lists": nested(65, b"[", b"]"),
    "2000 levels": nested(2000),
    "100000 open brackets": b"[" * 100_000,
    "100000 levels": b"[" * 100_000 + b"]" * 100_000,
    "100000 open objects": b'{"a":' * 100_000,
}

WRONG = {
    "a list": [MARK],
    "a string": MARK,
    "null": None,
    "a number": 5,
    "nothing in it": {},
    "an unknown field": {"prompt": "x", MARK: 1},
    "an unknown field beside others": {"prompt": "x", "abandon_after": MARK},
    "no text": {"prompt": 5},
    "null for a text": {"prompt": None},
    "an empty prompt": {"prompt": ""},
    "both inputs": {"prompt": MARK, "messages": [{"role": "user", "content": MARK}]},
    "no messages": {"messages": []},
    "messages of no kind": {"messages": MARK},
    "a message of no kind": {"messages": [MARK]},
    "a role of no kind": {"messages": [{"role": MARK, "content": "x"}]},
    "a message without content": {"messages": [{"role": "user"}]},
    "content of no kind": {"messages": [{"role": "user", "content": 5}]},
    "content of strings": {"messages": [{"role": "user", "content": [MARK]}]},
    "a message with more": {"messages": [{"role": "user", "content": "x", MARK: MARK}]},
    "too many messages": {"messages": [{"role": "user", "content": MARK}] * 1001},
    "an empty model": {"prompt": "x", "model": ""},
    "a model with a line break": {"prompt": "x", "model": f"anthropic/{MARK}\n"},
    "a model with an escape": {"prompt": "x", "model": f"anthropic/{MARK}\x1b[2J"},
    "a model with a path": {"prompt": "x", "model": f"anthropic/../{MARK}"},
    "a model with a hidden part": {"prompt": "x", "model": f"anthropic/.{MARK}"},
    "a model with a query": {"prompt": "x", "model": f"gemini/{MARK}?x"},
    "a model with a space": {"prompt": "x", "model": f"anthropic/{MARK} x"},
    "a model with nothing behind it": {"prompt": "x", "model": "anthropic/"},
    "a model with no provider before it": {"prompt": "x", "model": f"/{MARK}"},
    "a long model": {"prompt": "x", "model": f"anthropic/{MARK * 20}"},
    "a model in letters of another script": {"prompt": "x", "model": f"anthropic/{MARK}é"},
    "no models": {"prompt": "x", "model": []},
    "nine models": {"prompt": "x", "model": [f"anthropic/{MARK}"] * 9},
    "a model of no kind": {"prompt": "x", "model": [[MARK]]},
    "a chain with a wrong one": {"prompt": "x", "model": ["anthropic/x", f"anthropic/../{MARK}"]},
    "fewer than none": {"prompt": "x", "max_tokens": -1},
    "too many tokens": {"prompt": "x", "max_tokens": 10**6 + 1},
    "2^64 tokens": {"prompt": "x", "max_tokens": 2**64 - 1},
    "tokens as text": {"prompt": "x", "max_tokens": "5"},
    "half a token": {"prompt": "x", "max_tokens": 1.5},
    "tokens as a float": {"prompt": "x", "max_tokens": 5.0},
    "tokens as a truth": {"prompt": "x", "max_tokens": True},
    "a session without a name": {"prompt": "x", "session_id": ""},
    "a session of no kind": {"prompt": "x", "session_id": 5},
    "a session with a NUL": {"prompt": "x", "session_id": f"{MARK}\x00"},
    "a session with a line break": {"prompt": "x", "session_id": f"{MARK}\n"},
    "a long session": {"prompt": "x", "session_id": MARK * 30},
    "a user with a control character": {"prompt": "x", "user_id": f"{MARK}\x1b[2J"},
    "metadata of no kind": {"prompt": "x", "metadata": [MARK]},
    "metadata of text": {"prompt": "x", "metadata": MARK},
    "a policy of no kind": {"prompt": "x", "on_worker_loss": MARK},
    "a producer of no kind": {"prompt": "x", "producer": MARK},
    "an external stream with two inputs": {
        "prompt": MARK,
        "messages": [{"role": "user", "content": MARK}],
        "producer": "external",
    },
    "an external stream of no provider": {"model": MARK, "producer": "external"},
    "a system prompt of no kind": {"prompt": "x", "system": [MARK]},
    "a native form of no kind": {"messages": [{"role": "assistant", "content": "x", "native": MARK}]},
    "tools of no kind": {"prompt": "x", "tools": {MARK: MARK}},
    "a tool of no kind": {"prompt": "x", "tools": [{}, MARK]},
    "too many tools": {"prompt": "x", "tools": [{"name": MARK}] * 513},
    "a choice of no kind": {"prompt": "x", "tool_choice": MARK},
    "thinking of no kind": {"prompt": "x", "thinking": True},
    "an effort of no kind": {"prompt": "x", "effort": MARK},
    "stop sequences of no kind": {"prompt": "x", "stop_sequences": MARK},
    "an empty stop sequence": {"prompt": "x", "stop_sequences": [MARK, ""]},
    "too many stop sequences": {"prompt": "x", "stop_sequences": [MARK] * 65},
    "too hot": {"prompt": "x", "temperature": 2.1},
    "too cold": {"prompt": "x", "temperature": -0.1},
    "a temperature as text": {"prompt": "x", "temperature": "1"},
    "a schema of no kind": {"prompt": "x", "output_schema": True},
    "a schema that is none": {"prompt": "x", "output_schema": {"properties": {MARK: {"type": MARK}}}},
    "a schema of elsewhere": {"prompt": "x", "output_schema": {"$ref": f"http://127.0.0.1:1/{MARK}"}},
    "options of no kind": {"prompt": "x", "provider_options": [MARK]},
    "options of a provider of no kind": {"prompt": "x", "provider_options": {MARK: MARK}},
    "effects of no kind": {"prompt": "x", "on_tool_effects": MARK},
    "an external stream with tools": {"producer": "external", "prompt": MARK, "tools": [{"name": MARK}]},
    "an external stream with a schema": {"producer": "external", "prompt": MARK, "output_schema": {}},
    "an external stream of two models": {"producer": "external", "model": [f"a/{MARK}", "a/b"]},
    "an external stream with system blocks": {"producer": "external", "system": [{"type": "text", "text": MARK}]},
    "an external stream with a system message": {
        "producer": "external",
        "messages": [{"role": "system", "content": MARK}],
    },
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.usefixtures("nothing_changes")
def test_what_is_no_json_is_refused(api: Api, body: bytes) -> None:
    refused(post_raw(api, body), 400, "invalid_json")
    refused(post_raw(api, body, **{"Idempotency-Key": "no-json", "Accept": "text/event-stream"}), 400, "invalid_json")


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("nothing_changes")
def test_json_of_the_wrong_shape_is_refused(api: Api, body: Any) -> None:
    said = refused(post_raw(api, orjson.dumps(body)), 422, "invalid_request")
    assert said["detail"]


def test_64_levels_are_taken(api: Api) -> None:
    for body in (nested(64), nested(64, b"[", b"]").replace(b'"metadata":[', b'"metadata":{"a":[', 1)[:-1] + b"}}"):
        depth = 0
        value = orjson.loads(body)
        while isinstance(value, dict | list):
            value = value.get("metadata", value.get("a")) if isinstance(value, dict) else value[0]
            depth += 1
        answer = post_raw(api, body)
        assert answer.status_code == (201 if depth <= 64 else 400), answer.text


def test_every_call_that_takes_a_body_is_as_strict(api: Api, nothing_changes: set[str]) -> None:
    nothing_changes.add(sid := api.start_external())
    before = api.record(sid)
    for call in ("events", "heartbeat", "cancel", "regenerate", "input", "approvals/a1"):
        path = f"/v1/streams/{sid}/{call}"
        for body in filter(None, MALFORMED.values()):  # none at all is none for a call that needs none
            refused(post_raw(api, body, path), 400, "invalid_json")
        refused(post_raw(api, b'{"%s":1}' % MARK.encode(), path), 422, "invalid_request")
        refused(post_raw(api, b'["%s"]' % MARK.encode(), path), 422, "invalid_request")
        refused(post_raw(api, b'{"a":1}', path, **{"Content-Type": f"text/{MARK}"}), 415, "unsupported_media_type")
        refused(post_raw(api, b"{" + b" " * 2**20, path), 413, "body_too_large")
    for epoch in (0, -1, 2**53, "1", 1.0, True, None, [1]):
        for call in ("heartbeat", "events"):
            body = {"epoch": epoch, **({"events": [{"event": "a", "data": {}}]} if call == "events" else {})}
            refused(api.post(f"/v1/streams/{sid}/{call}", body), 422, "invalid_request")
    for reason in ("", MARK * 51, 5, None, [MARK]):
        refused(api.post(f"/v1/streams/{sid}/cancel", {"reason": reason}), 422, "invalid_request")
    for first in (0, -1, 2**53, "2", 2.0, True):
        body = {"epoch": 1, "first": first, "events": [{"event": "a", "data": {"x": MARK}}]}
        refused(api.post(f"/v1/streams/{sid}/events", body), 422, "invalid_request")
    assert api.record(sid) == before


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        MARK,
    ],
)
@pytest.mark.usefixtures("nothing_changes")
def test_a_body_that_does_not_say_it_is_json_is_refused(api: Api, media_type: str) -> None:
    refused(post_raw(api, b"{%s}" % OK, **{"Content-Type": media_type}), 415, "unsupported_media_type")


@pytest.mark.usefixtures("nothing_changes")
def test_a_body_without_a_content_type_is_refused(api: Api) -> None:
    refused(api.http.post("/v1/streams", content=b"{%s}" % OK), 415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["APPLICATION/JSON", "application/json;charset=utf-8", "application/json ; x=y"])
def test_a_content_type_is_read_as_http_says(api: Api, media_type: str) -> None:
    answer = post_raw(api, b'{"producer":"external"}', **{"Content-Type": media_type})
    assert answer.status_code == 201


# -- too large -------------------------------------------------------------------------------------------

LIMIT = 2**20
START_LIMIT = 32 * 2**20


@pytest.fixture
def events_path(api: Api) -> str:
    return f"/v1/streams/{api.start_external()}/events"


def padded(length: int) -> bytes:
    body = b'{"epoch":1,"events":[{"event":"a","data":{"a":"' + MARK.encode()
    return body + b"x" * (length - len(body) - 5) + b'"}}]}'


def padded_start(length: int) -> bytes:
    body = b'{"producer":"external","system":"' + MARK.encode()
    return body + b"x" * (length - len(body) - 2) + b'"}'


def test_a_body_of_just_the_limit_is_taken(api: Api, events_path: str) -> None:
    assert len(padded(LIMIT)) == LIMIT
    assert post_raw(api, padded(LIMIT), events_path).status_code == 200
    refused(post_raw(api, padded(LIMIT + 1), events_path), 413, "body_too_large")


def test_a_start_may_have_32_mib(api: Api) -> None:
    assert len(padded_start(START_LIMIT)) == START_LIMIT
    assert post_raw(api, padded_start(START_LIMIT)).status_code == 201
    refused(post_raw(api, padded_start(START_LIMIT + 1)), 413, "body_too_large")


def with_metadata(size: int) -> bytes:
    return b'{"producer":"external","metadata":{"' + MARK.encode() + b'":"' + b"x" * (size - len(MARK) - 7) + b'"}}'


def test_metadata_of_just_its_limit_is_taken_and_beyond_it_is_refused_with_the_limit(
    api: Api, nothing_changes: set[str]
) -> None:
    taken = post_raw(api, with_metadata(16_384))
    assert len(orjson.dumps(taken.json()["metadata"])) == 16_384
    nothing_changes.add(taken.json()["id"])
    problem = refused(post_raw(api, with_metadata(16_385)), 422, "invalid_request")
    assert problem["detail"] == "metadata: at most 16384 bytes of JSON (LASTEVENT_MAX_METADATA_BYTES)."


@pytest.mark.parametrize("length", [LIMIT + 1, 3 * LIMIT, 20 * LIMIT])
def test_a_client_that_sends_too_much_still_reads_why_it_was_refused(api: Api, events_path: str, length: int) -> None:
    for _ in range(3):
        refused(post_raw(api, padded(length), events_path), 413, "body_too_large")


@pytest.mark.usefixtures("nothing_changes")
def test_a_length_beyond_the_limit_is_refused_before_the_body(api: Api) -> None:
    headers = [*JSON.items(), ("Content-Length", str(START_LIMIT + 1)), ("Expect", "100-continue")]
    with Exchange(api.url, "POST", "/v1/streams", headers) as answer:
        assert answer.status == 413
        assert answer.header("connection") == "close"


def test_a_chunked_body_beyond_the_limit_is_refused_as_soon_as_it_is_beyond(api: Api, events_path: str) -> None:
    def chunks() -> Any:
        yield b'{"epoch":1,"events":[{"event":"a","data":{"a":"' + MARK.encode()
        for _ in range(40):
            yield b"x" * 65536
        yield b'"}}'

    for _ in range(3):
        refused(api.http.post(events_path, content=chunks(), headers=JSON), 413, "body_too_large")


@pytest.mark.usefixtures("nothing_changes")
def test_a_body_that_ends_early_starts_nothing(api: Api) -> None:
    at = urlsplit(api.url)
    for _ in range(3):
        with socket.create_connection((at.hostname, at.port)) as connection:
            head = f"POST /v1/streams HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
            connection.sendall(head.encode() + b"Content-Length: 1000\r\n\r\n" + b"{%s" % OK)


# -- not in the body -------------------------------------------------------------------------------------


def test_no_answer_repeats_a_path_a_query_or_a_header(api: Api, nothing_changes: set[str]) -> None:
    nothing_changes.add(sid := api.start_external())
    answers = [
        api.get(f"/{MARK}"),
        api.get(f"/v1/streams/{MARK}"),
        api.get(f"/v1/streams/{MARK}/events"),
        api.get(f"/v1/streams/{MARK}/{MARK}"),
        api.post(f"/v1/streams/{MARK}/cancel"),
        api.get(f"/v1/streams/{sid}/events", params={"last_event_id": MARK}),
        api.get(f"/v1/streams/{sid}/events", params={"compact": MARK}),
        api.get(f"/v1/streams/{sid}/events", headers={"Last-Event-ID": MARK}),
        api.get(f"/v1/streams/{sid}/replay", params={"speed": MARK}),
        api.get("/v1/streams", params={"limit": MARK}),
        api.get("/v1/streams", params={"state": MARK}),
        api.get("/v1/streams", params={"cursor": MARK}),
        api.get("/v1/streams", params={"created_after": MARK}),
        api.post("/v1/streams", {"prompt": "x"}, headers={"Last-Event-ID": MARK}),
        api.post("/v1/streams", {"prompt": "x"}, headers={"Idempotency-Key": f"{MARK} {MARK}"}),
        api.get("/healthz", headers={"Host": f"{MARK}.example"}),
        api.get("/healthz", headers={"Origin": f"https://{MARK}.example"}),
        api.get("/healthz", headers={"Sec-Fetch-Site": MARK}),
        api.get("/healthz", headers={"X-Forwarded-For": MARK}),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500
        refused(answer, answer.status_code, answer.json()["code"])


@pytest.mark.parametrize(
    "line",
    [
        *(b"GET /v1/streams/\xff HTTP/1.1", b"GET /v1/streams?cursor=\xff HTTP/1.1", b"GET /\xe2\x80\xa8 HTTP/1.1"),
        *(b"GET /v1/streams/%ed%a0%80 HTTP/1.1", b"GET /v1/streams?state=%ff%00 HTTP/1.1", b"GET * HTTP/1.1"),
        *(b"GET http://127.0.0.1/%zz HTTP/1.1", b"GET /v1/streams/%zz/events HTTP/1.1", b"GET /% HTTP/1.1"),
        *(
            b"OPTIONS * HTTP/1.1",
            b"CONNECT 127.0.0.1:1 HTTP/1.1",
            b"GET  / HTTP/1.1",
            b"\x00\x01\x02",
            b"GET / HTTP/9.9",
        ),
        *(
            b"GET http://evil.example/v1/streams HTTP/1.1",
            b"GET //evil/v1/streams HTTP/1.1",
            b"GET /?" + b"a" * 100_000 + b" HTTP/1.1",
        ),
    ],
)
@pytest.mark.usefixtures("nothing_changes")
def test_a_request_line_of_any_bytes_is_no_fault_of_the_server(api: Api, line: bytes) -> None:
    at = urlsplit(api.url)
    with socket.create_connection((at.hostname, at.port), timeout=20) as connection:
        connection.sendall(line + b"\r\nHost: " + at.netloc.encode() + b"\r\nConnection: close\r\n\r\n")
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
    status = received.split(b" ")[1] if received else b"400"
    assert not status.startswith(b"5"), received[:300]


@pytest.mark.parametrize(
    "header",
    [
        *(b"Last-Event-ID: \xff\xfe", b"Last-Event-ID: \xef\xbc\x91", b"Last-Event-ID: 1, 2", b"Idempotency-Key: \xff"),
        *(b"Accept: \xff", b"Accept: " + b"x" * 50_000, b"Origin: \xff", b"Authorization: \xff", b"Content-Length: 5"),
        *(
            b"Transfer-Encoding: gzip",
            b"Upgrade: websocket\r\nConnection: upgrade",
            b"Expect: 100-continue",
            b"X: \x01",
        ),
    ],
)
@pytest.mark.usefixtures("nothing_changes")
def test_a_header_of_any_bytes_is_no_fault_of_the_server(api: Api, header: bytes) -> None:
    at = urlsplit(api.url)
    for path in ("/healthz", "/v1/streams/nope/events"):
        with socket.create_connection((at.hostname, at.port), timeout=20) as connection:
            head = f"GET {path} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\n".encode()
            connection.sendall(head + header + b"\r\n\r\n12345")
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except ConnectionError:
                pass
        status = received.split(b" ")[1] if received else b"400"
        assert not status.startswith(b"5"), received[:300]


@pytest.mark.parametrize(
    ("body", "advice"),
    [
        ({"promt": MARK}, "unknown field; did you mean `prompt`? There are: messages, prompt, system, "),
        ({"prompt": "x", "Model": MARK}, "did you mean `model`?"),
        ({"messages": [{"role": "user", "contents": MARK}]}, "messages.0: unknown field; did you mean `content`?"),
        ({"prompt": "x", MARK: 1}, "unknown field. There are: "),
        ({"prompt": "x", "prompt" * 100_000: 1}, "unknown field. There are: "),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest_that_there_is(
    api: Api, body: dict[str, Any], advice: str
) -> None:
    answer = api.post("/v1/streams", json=body)
    assert answer.status_code == 422
    assert advice in answer.json()["detail"]
    assert MARK not in answer.text
    assert len(answer.text) < 1000
