"""What operators and browsers meet on every route: health, metrics, problems, request ids, CORS."""

import re
from collections.abc import Callable, Iterator

import httpx
import pytest

from broker.settings import Settings
from broker.web.app import create_app
from tests.rig.deployment import Deployment
from tests.web.access import TABLE
from tests.web.wire import Api, Exchange, problem

APP = "https://app.example.com"


def test_healthz_and_readyz_say_ok(api: Api) -> None:
    assert (api.get("/healthz").status_code, api.get("/healthz").json()) == (200, {"status": "ok"})
    assert (api.get("/readyz").status_code, api.get("/readyz").json()) == (200, {"status": "ready"})


def test_metrics_are_prometheus(api: Api) -> None:
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert re.search(r'^lastevent_viewers\{format="sse"\} [0-9.]+$', answer.text, re.MULTILINE)
    assert re.search(r"^lastevent_unarchived [0-9.]+$", answer.text, re.MULTILINE)


def test_metrics_count_what_viewers_were_sent(api: Api) -> None:
    def sent() -> float:
        found = re.search(
            r'^lastevent_sent_bytes_total\{tenant="default"\} ([0-9.e+]+)$', api.get("/metrics").text, re.MULTILINE
        )
        return float(found[1]) if found else 0

    before = sent()
    body = api.follow(api.finished("a", "b")).read_to_end()
    assert sent() >= before + len(body)


async def test_the_console_and_the_api_s_own_document_can_be_closed() -> None:
    app = create_app(Settings(console="off"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        for path in ("/", "/console/main.js", "/openapi.json"):
            problem(await http.get(path), 404, "not_found")
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/streams/",
        "/v1/streams/x/nope",
        "/docs",
        "/v2/streams",
        "//v1/streams",
        "/console",
        "/console/nope",
    ],
)
def test_an_unknown_path_is_a_problem(api: Api, path: str) -> None:
    with Exchange(api.url, "GET", path, [("Connection", "close")]) as answer:
        body = answer.read_all()
    assert answer.status == 404
    assert answer.header("content-type") == "application/problem+json"
    assert b'"code":"' in body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("PUT", "/v1/streams"), ("DELETE", "/v1/streams"), ("PATCH", "/v1/streams/x"), ("POST", "/v1/streams/x")),
        *(("GET", "/v1/streams/x/cancel"), ("POST", "/v1/streams/x/text"), ("POST", "/healthz"), ("PUT", "/metrics")),
        *(("GET", "/v1/streams/x/regenerate"), ("DELETE", "/v1/streams/x/events"), ("TRACE", "/v1/streams")),
    ],
)
def test_an_unknown_method_is_a_problem_that_says_which_there_are(api: Api, method: str, path: str) -> None:
    answer = api.http.request(method, path)
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


def test_every_answer_has_a_request_id_of_its_own(api: Api) -> None:
    sid = api.finished()
    paths = [
        "/healthz",
        "/nope",
        f"/v1/streams/{sid}",
        f"/v1/streams/{sid}/events",
        "/v1/streams?limit=0",
        "/openapi.json",
    ]
    ids = [api.get(path).headers["x-request-id"] for path in paths * 2]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{16}", request_id) for request_id in ids)


def test_a_request_id_of_the_clients_is_not_taken_over(api: Api) -> None:
    assert api.get("/healthz", headers={"X-Request-Id": "mine"}).headers["x-request-id"] != "mine"


def test_every_answer_keeps_browsers_from_guessing_running_or_keeping_it(api: Api) -> None:
    sid = api.finished()
    for path in ("/healthz", "/nope", f"/v1/streams/{sid}", f"/v1/streams/{sid}/events", f"/v1/streams/{sid}/text"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'"
        assert headers["cache-control"] == "no-store" + ", no-transform" * path.endswith("/events")
        assert "server" not in headers


def test_openapi_describes_every_route(api: Api) -> None:
    document = api.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    calls = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert calls == {
        (row.method, row.path) for row in TABLE if row.method != "HEAD" and not row.path.startswith(UNTOLD)
    }


UNTOLD = ("/v1/ds/", "/langgraph/runs", "/v1/responses/compact", "/v1/responses/input_tokens")
"""Durable Streams has its protocol's description; runs without a thread are as those with one; two calls are 404."""


# -- CORS ------------------------------------------------------------------------------------------------


IONIC = "capacitor://localhost"
"""Of every Ionic app on iOS."""

SENT_BY_LIBRARIES = ("cache-control", "x-requested-with", "x-request-id", "traceparent", "baggage", "sentry-trace")
SENT_IN_DIALECTS = ("x-api-key", "api-key", "x-run-id")
READ_IN_DIALECTS = (
    *("x-lastevent-stream", "x-lastevent-ignored", "x-workflow-run-id", "x-workflow-stream-tail-index"),
    *("content-location", "etag", "stream-next-offset", "stream-cursor", "stream-up-to-date", "stream-closed"),
)


@pytest.fixture
def cors(own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]) -> Iterator[Api]:
    origins = f"{APP}, http://localhost:3000/, {IONIC}"
    return open_api(own_deployment(servers=1, workers=0, LASTEVENT_CORS_ORIGINS=origins).url)


def test_a_configured_origin_may_ask_and_read(cors: Api) -> None:
    sid = cors.finished("a")
    names = ("last-event-id", "idempotency-key", "authorization", "content-type", *SENT_BY_LIBRARIES, *SENT_IN_DIALECTS)
    for origin in (APP, "http://localhost:3000", IONIC):
        page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        for method in ("GET", "POST"):
            asked = {
                **page,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": ", ".join(names),
            }
            preflight = cors.http.options("/v1/streams", headers=asked)
            assert preflight.status_code == 200, preflight.text
            assert preflight.headers["access-control-allow-origin"] == origin
            allowed = preflight.headers["access-control-allow-headers"].lower()
            assert all(name in allowed for name in names)
            assert "access-control-allow-credentials" not in preflight.headers
            assert method in preflight.headers["access-control-allow-methods"]
        answers = [
            cors.get(f"/v1/streams/{sid}/text", headers=page),
            cors.get(f"/v1/streams/{sid}/events", headers=page),
            cors.get("/v1/streams/nope", headers=page),
            cors.post("/v1/streams", {"producer": "external"}, headers=page),
            cors.post("/v1/streams", {"nope": 1}, headers=page),
        ]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == origin
            exposed = answer.headers["access-control-expose-headers"].lower()
            assert all(name in exposed for name in ("location", "last-event-id", "retry-after", *READ_IN_DIALECTS))
            assert "origin" in answer.headers.get("vary", "").lower()


async def test_cookies_of_pages_are_taken_where_a_setting_says_so() -> None:
    """For what stands in front of the servers, and asks for one."""
    app = create_app(Settings(cors_origins=(APP,), cors_credentials=True))
    asked = {"Origin": APP, "Access-Control-Request-Method": "GET"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        preflight = await client.options("/v1/streams", headers=asked)
    assert preflight.headers["access-control-allow-credentials"] == "true"
    assert preflight.headers["access-control-allow-origin"] == APP


def test_no_other_origin_may(cors: Api) -> None:
    before = cors.newest_ids()
    for origin in (
        "https://evil.example",
        "null",
        f"{APP}:444",
        "http://app.example.com",
        f"{APP}.evil.example",
        APP.upper(),
        "",
    ):
        page = {"Origin": origin}
        for answer in (
            cors.http.options("/v1/streams", headers={**page, "Access-Control-Request-Method": "POST"}),
            cors.get("/v1/streams", headers=page),
            cors.post("/v1/streams", {"producer": "external"}, headers=page),
        ):
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
    both = [("Origin", APP), ("Origin", "https://evil.example")]
    assert cors.get("/v1/streams", headers=both).status_code == 403
    assert cors.newest_ids() == before
