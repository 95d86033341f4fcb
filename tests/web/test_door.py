"""The closed door (design §6): keys and read tokens, and the rules that keep web pages from a server without keys."""

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import pytest
from fastapi import APIRouter

from bench.ports import free_port
from broker.web.grants import CheckedRoute
from broker.web.routes import (
    auditing,
    credentials,
    following,
    listings,
    operating,
    producing,
    reading,
    starting,
    tokens,
)
from tests.rig.deployment import HTTP, Deployment, wait_until
from tests.rig.zygote import run_module
from tests.web.wire import Api, Exchange, ids, problem

KEY = "correct-horse-battery-staple-and-more"
OTHER_KEY = "another-key-of-thirty-two-or-more"
TOKEN_SECRET = "what-signs-the-read-tokens-in-tests"
OLD_TOKEN_SECRET = "what-signed-the-read-tokens-before"


# -- who may listen where --------------------------------------------------------------------------------


def command(*args: str, folder: Path, **settings: str) -> "subprocess.CompletedProcess[bytes]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LASTEVENT_")}
    return run_module("broker", args, {**environment, **settings}, folder)


@pytest.mark.parametrize(
    ("what", "host"),
    [
        *(("up", host) for host in ("0.0.0.0", "::", "192.0.2.1")),
        *(("serve", host) for host in ("0.0.0.0", "::", "127.0.0.2", "", "example.com")),
        ("serve --web 2", "0.0.0.0"),
    ],
)
@pytest.mark.processes
def test_without_keys_no_other_address_than_loopback_is_listened_on(
    tmp_path: Path, deployment: Deployment, what: str, host: str
) -> None:
    redis = {} if what == "up" else {"LASTEVENT_REDIS_URL": deployment.redis_url}
    ended = command(*what.split(), "--host", host, "--port", str(free_port()), folder=tmp_path, **redis)
    assert ended.returncode == 2
    assert b"lastevent keys create" in ended.stderr
    assert b"LASTEVENT_API_KEYS" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert ended.stdout == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
@pytest.mark.parametrize("keys", ["short", f"{KEY},short", " , "])
def test_a_key_that_can_be_guessed_is_refused(tmp_path: Path, deployment: Deployment, keys: str) -> None:
    settings = {"LASTEVENT_API_KEYS": keys, "LASTEVENT_REDIS_URL": deployment.redis_url}
    ended = command("serve", "--host", "0.0.0.0", folder=tmp_path, **settings)
    assert ended.returncode == 2
    assert b"LASTEVENT_API_KEYS" in ended.stderr
    assert KEY.encode() not in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_with_keys_any_address_is_listened_on(own_deployment: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = own_deployment(servers=0, workers=0)
    port = free_port()
    environment = {**deployment.environment, "LASTEVENT_API_KEYS": KEY}
    serve = [sys.executable, "-m", "broker", "serve", "--host", "0.0.0.0", "--port", str(port)]
    with subprocess.Popen(serve, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as server:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    answer = HTTP.get(f"http://127.0.0.1:{port}/v1/streams")
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < deadline
            assert answer.status_code == 401
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        assert server.stderr
        assert KEY.encode() not in server.stderr.read()


# -- keys and tokens -------------------------------------------------------------------------------------


@contextmanager
def with_keys(own_deployment: Callable[..., Deployment], **options: int) -> Iterator[Deployment]:
    """A server with two keys. Whatever a test does, no key and no token may come to any process' output."""
    settings = {"LASTEVENT_API_KEYS": f"{KEY}, {OTHER_KEY}", "LASTEVENT_READ_TOKEN_TTL_S": "3600"}
    settings["LASTEVENT_TOKEN_SECRET"] = f"{TOKEN_SECRET}, {OLD_TOKEN_SECRET}"
    deployment = own_deployment(servers=1, **options, **settings, LASTEVENT_LOG_LEVEL="debug")
    yield deployment
    for process in (*deployment.servers, *deployment.workers):
        output = process.output.read_text()
        assert "Traceback" not in output
        assert KEY not in output
        assert OTHER_KEY not in output
        assert not re.search(r"token=|\d{10}\.[\w-]{20}|eyJ|\.[\w-]{43}\b", output)


@pytest.fixture
def keyed(own_deployment: Callable[..., Deployment]) -> Iterator[Deployment]:
    with with_keys(own_deployment, workers=0) as deployment:
        yield deployment


def test_every_call_needs_a_key(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    owner = open_api(keyed.url, KEY)
    sid = owner.finished("secret")
    before = owner.newest_ids()
    for key in (None, "wrong-key-of-thirty-two-characters", KEY[:-1], f"{KEY}x", KEY.upper(), ""):
        stranger = open_api(keyed.url, key)
        calls = [
            *(stranger.get(path) for path in ("/v1/streams", "/v1/sessions", "/v1/sessions/x", "/metrics")),
            *(stranger.get(f"/v1/streams/{sid}{path}") for path in ("", "/events", "/text", "/export", "/replay")),
            *(stranger.post(f"/v1/streams/{sid}/{call}") for call in ("cancel", "regenerate", "heartbeat", "events")),
            stranger.post("/v1/streams", {"producer": "external"}),
            stranger.post("/v1/streams", {"prompt": "x"}, headers={"Accept": "text/event-stream"}),
            stranger.get("/v1/streams/nope"),
        ]
        for answer in calls:
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "secret" not in answer.text
        assert stranger.get("/healthz").status_code == 200
        assert stranger.get("/readyz").status_code == 200
    assert owner.newest_ids() == before


def test_each_key_opens_everything(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    for key in (KEY, OTHER_KEY):
        for scheme in ("Bearer", "bearer", "BEARER"):
            api = open_api(keyed.url)
            api.http.headers["Authorization"] = f"{scheme} {key}"
            sid = api.finished("a")
            assert api.get(f"/v1/streams/{sid}/text").text == "a"
            assert api.get("/metrics").status_code == 200


def test_no_other_form_of_a_key_opens_anything(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    forms = [
        KEY,
        f"Basic {KEY}",
        f"Bearer{KEY}",
        "Bearer",
        f"Bearer {KEY},{OTHER_KEY}",
        f"Bearer {KEY}\xff",
        "Bearer \xff",
    ]
    for form in forms:
        answer = open_api(keyed.url).get("/v1/streams", headers={"Authorization": form.encode("latin-1")})
        problem(answer, 401, "unauthorized")


def test_a_key_in_the_address_opens_nothing(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    for query in (f"key={KEY}", f"token={KEY}", f"api_key={KEY}", f"access_token={KEY}"):
        problem(open_api(keyed.url).get(f"/v1/streams?{query}"), 401, "unauthorized")


def test_events_url_lets_a_browser_read_that_one_stream_and_nothing_else(
    keyed: Deployment, open_api: Callable[..., Api]
) -> None:
    owner, browser = open_api(keyed.url, KEY), open_api(keyed.url)
    sid, other = owner.finished("mine"), owner.finished("other")
    events_url = owner.record(sid)["events_url"]
    path, _, token = events_url.partition("?access_token=")
    assert path == f"/v1/streams/{sid}/events"
    claims = orjson.loads(base64.urlsafe_b64decode(f"{token.split('.')[1]}=="))
    assert claims["exp"] > time.time() + 3000
    assert {name: claims[name] for name in ("sub", "tenant", "scope", "streams")} == {
        "sub": "anyone",
        "tenant": "default",
        "scope": "streams:read",
        "streams": [sid],
    }
    with Exchange(keyed.url, "GET", events_url) as viewer:
        assert ids(viewer.read_to_end()) == [1, 2, 3, 4]
    with Exchange(keyed.url, "GET", f"{events_url}&last_event_id=2") as viewer:
        assert ids(viewer.read_to_end()) == [3, 4]
    assert browser.get(f"/v1/streams/{sid}/text?access_token={token}").text == "mine"
    assert browser.get(f"/v1/streams/{sid}/text?token={token}").text == "mine"  # as in 0.1.0, for one release more
    for which in (other, "nope"):
        for other_path in ("", "/events", "/text"):
            answer = browser.get(f"/v1/streams/{which}{other_path}?access_token={token}")
            assert problem(answer, 404, "stream_not_found")["detail"] == "There is no stream with this id."
        for key_path in ("/message", "/export", "/views", "/verify"):
            problem(browser.get(f"/v1/streams/{which}{key_path}?access_token={token}"), 401, "unauthorized")
        problem(browser.get(f"/v1/streams/{which}/replay?access_token={token}"), 403, "insufficient_scope")
    problem(browser.get(f"/v1/streams/{sid}/replay?access_token={token}"), 403, "insufficient_scope")
    for key_path in ("/message", "/export", "/views", "/verify"):
        problem(browser.get(f"/v1/streams/{sid}{key_path}?access_token={token}"), 401, "unauthorized")
    before = owner.newest_ids()
    for call in ("cancel", "regenerate", "events", "heartbeat", "input", "approvals/a1"):
        problem(browser.post(f"/v1/streams/{sid}/{call}?access_token={token}"), 401, "unauthorized")
    problem(browser.post(f"/v1/streams?access_token={token}", {"prompt": "x"}), 401, "unauthorized")
    for path in ("/v1/streams", "/v1/sessions", "/v1/agents", "/metrics"):
        problem(browser.get(f"{path}?access_token={token}"), 401, "unauthorized")
    assert owner.newest_ids() == before


def test_the_answer_that_starts_a_stream_gives_an_address_with_a_token_and_a_listing_one_without(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    with with_keys(own_deployment, workers=1) as deployment:
        owner = open_api(deployment.url, OTHER_KEY)
        started = owner.post("/v1/streams", {"prompt": "[[tokens=2 rate=0 ttft_ms=0]]", "session_id": "s"}).json()
        again = owner.post(f"/v1/streams/{started['id']}/regenerate").json()
        listed = owner.get("/v1/streams").json()["streams"] + owner.get("/v1/sessions/s").json()["streams"]
        for stream in (started, again):
            with Exchange(deployment.url, "GET", stream["events_url"]) as viewer:
                assert ids(viewer.read_to_end()) == [1, 2, 3, 4, 5]
        assert len(listed) == 4
        for stream in listed:
            assert stream["events_url"] == f"/v1/streams/{stream['id']}/events"
            problem(open_api(deployment.url).get(stream["events_url"]), 401, "unauthorized")


def test_what_is_no_token_reads_nothing(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    owner, browser = open_api(keyed.url, KEY), open_api(keyed.url)
    sid = owner.finished("mine")
    good = owner.record(sid)["events_url"].partition("?access_token=")[2]
    signed, _, signature = good.rpartition(".")
    bad = [
        *("", "x", ".", "..", signed, f"{signed}.", f".{signature}", f"{good}=", f" {good}", f"{signed}.ü", KEY),
        f"{signed}.{signature[:-1]}",
        f"{signed}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        f"{good}.{signature}",
        f"{int(time.time()) + 600}.random.{signature}",  # the form of release 0.1
        "9" * 3000 + f".{signature}",
    ]
    for token in bad:
        for name in ("access_token", "token"):
            for path in ("text", "events"):
                answer = browser.get(f"/v1/streams/{sid}/{path}", params={name: token})
                assert problem(answer, 401, answer.json()["code"])["code"] in ("unauthorized", "invalid_token"), token
    # A wrong key is not made right by a good token: the caller meant the key.
    wrong = open_api(keyed.url, "wrong-key-of-thirty-two-characters")
    problem(wrong.get(f"/v1/streams/{sid}?access_token={good}"), 401, "unauthorized")


def test_a_token_shows_what_a_viewer_needs_and_makes_no_other(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    owner, browser = open_api(keyed.url, KEY), open_api(keyed.url)
    secrets = {"user_id": "the-user", "session_id": "the-session", "metadata": {"plan": "the-metadata"}}
    sid = owner.finished("mine", **secrets)
    token = owner.record(sid)["events_url"].partition("?access_token=")[2]
    answer = browser.get(f"/v1/streams/{sid}?access_token={token}")
    record = owner.record(sid)
    assert answer.json() == {
        "id": sid,
        "state": "done",
        "agent": None,
        "attempt": 1,
        "last_event_id": 4,
        "events_url": f"/v1/streams/{sid}/events",
        **{name: value for name, value in record.items() if name.endswith("_at")},
    }
    assert not re.search("the-user|the-session|the-metadata|token", answer.text)


def test_a_token_dies_and_so_do_the_connections_that_it_opened(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    settings = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_READ_TOKEN_TTL_S": "3", "LASTEVENT_HEARTBEAT_S": "60"}
    deployment = own_deployment(servers=1, workers=0, **settings)
    owner, browser = open_api(deployment.url, KEY), open_api(deployment.url)
    sid = owner.start_external()
    url = owner.record(sid)["events_url"]
    with Exchange(deployment.url, "GET", url) as viewer:
        told = viewer.read_to_end()
        assert not viewer.is_complete
    assert re.fullmatch(rb"retry: \d+\nevent: queued\ndata: \{\}\nid: 1\n\nretry: \d+\n: token_expired\n", told)
    problem(browser.get(url), 401, "token_expired")  # it is over for connections, a moment before the others
    expires = orjson.loads(base64.urlsafe_b64decode(f"{url.split('.')[1]}=="))["exp"]
    wait_until(lambda: time.time() >= expires, "it is over")
    for path in ("/text", ""):
        problem(browser.get(url.replace("/events", path)), 401, "token_expired")
    wait_until(lambda: hows(owner, sid) == ["token_expired"], "it is recorded")


def hows(api: Api, sid: str) -> list[str]:
    views = api.get(f"/v1/streams/{sid}/views").json()["views"]
    return [view["how"] for view in views if view["format"] == "public-sse"]


def test_servers_share_the_secret_of_tokens(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    deployment = own_deployment(servers=2, workers=0, LASTEVENT_API_KEYS=KEY)
    owner = open_api(deployment.urls[0], KEY)
    sid = owner.finished("a")
    url = owner.record(sid)["events_url"]
    other = open_api(deployment.urls[1])
    assert other.get(url).status_code == 200


# -- the order of checks ---------------------------------------------------------------------------------


def test_who_calls_is_asked_before_what_is_asked(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    owner, stranger = open_api(keyed.url, KEY), open_api(keyed.url)
    sid = owner.finished("a")
    wrong = {
        "limit=0", "cursor=%00", "state=x", "created_after=x", "speed=-1", "from=0", "to=x", "follow=2", "compact=2",
        "redacted=7", "last_event_id=x",
    }  # fmt: skip
    paths = ["/v1/streams", "/v1/sessions", "/v1/sessions/x"]
    paths += [
        f"/v1/streams/{sid}{path}"
        for path in ("", "/events", "/replay", "/text", "/message", "/export", "/views", "/verify")
    ]
    for path in paths:
        for query in wrong:
            problem(stranger.get(f"{path}?{query}"), 401, "unauthorized")
    for call in ("", "/x/cancel", "/x/regenerate", "/x/events", "/x/heartbeat"):
        answer = stranger.http.post(f"/v1/streams{call}", content=b"{", headers={"Idempotency-Key": "a b"})
        problem(answer, 401, "unauthorized")


def test_a_route_says_who_may_call_it_or_the_server_does_not_start() -> None:
    async def forgotten() -> None: ...

    with pytest.raises(AttributeError, match="needs"):
        APIRouter(route_class=CheckedRoute).add_api_route("/forgotten", forgotten)
    for routes in (starting, following, reading, producing, tokens, listings, auditing, credentials, operating):
        assert {type(route) for route in routes.router.routes} == {CheckedRoute}


def test_with_keys_a_proxy_may_stand_in_front(keyed: Deployment, open_api: Callable[..., Api]) -> None:
    owner = open_api(keyed.url, KEY)
    headers = {"Host": "api.example.com", "X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7"}
    assert owner.get("/v1/streams", headers=headers).status_code == 200
    foreign = {"Origin": "https://app.example.com", "Sec-Fetch-Site": "cross-site"}
    answer = owner.get("/v1/streams", headers=foreign)
    assert "access-control-allow-origin" not in answer.headers


# -- without keys: the rules for browsers, on every route ------------------------------------------------


@pytest.fixture
def routes(api: Api) -> list[tuple[str, str]]:
    """Every method and path there is, those of the document and those that are in none."""
    sid = api.finished("secret")
    paths = api.get("/openapi.json").json()["paths"]
    known = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    known += [("HEAD", "/v1/streams/{sid}/events"), ("GET", "/openapi.json"), ("GET", "/nope"), ("PUT", "/v1/streams")]
    known += [("OPTIONS", path) for path in paths]
    named = {"sid": sid, "session_id": "s", "approval_id": "a", "key": "k", "erasure_id": "e"}
    named |= {"chat_id": "c", "thread_id": "t", "model": "m"}
    return [(method, path.format_map(named)) for method, path in known]


FOREIGN: dict[str, list[tuple[str, str]]] = {
    "a rebound domain": [("Host", "evil.example")],
    "a rebound domain with our port": [("Host", "evil.example:{port}")],
    "a host that begins as ours": [("Host", "localhost.evil.example")],
    "a host that ends as ours": [("Host", "evil.localhost")],
    "a host with a user": [("Host", "localhost@evil.example")],
    "another loopback address": [("Host", "127.0.0.2")],
    "a number for an address": [("Host", "2130706433")],
    "any address": [("Host", "0.0.0.0:{port}")],
    "an empty host": [("Host", "")],
    "a dot at the end": [("Host", "localhost.")],
    "two hosts": [("Host", "localhost"), ("Host", "evil.example")],
    "a foreign origin": [("Origin", "https://evil.example")],
    "no origin at all": [("Origin", "null")],
    "another port of this machine": [("Origin", "http://127.0.0.1:1")],
    "this machine without a port": [("Origin", "http://127.0.0.1")],
    "the other name of this machine": [("Origin", "http://localhost:{port}")],
    "our origin over TLS": [("Origin", "https://127.0.0.1:{port}")],
    "an empty origin": [("Origin", "")],
    "an origin beside ours": [("Origin", "http://127.0.0.1:{port}"), ("Origin", "https://evil.example")],
    "a foreign page without an origin": [("Sec-Fetch-Site", "cross-site")],
    "a page of the same site": [("Sec-Fetch-Site", "same-site")],
    "a word of nobody's": [("Sec-Fetch-Site", "maybe")],
    "a page that says two things": [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")],
    "a proxy": [("X-Forwarded-For", "198.51.100.7")],
    "a proxy that names the host": [("X-Forwarded-Host", "localhost")],
    "a proxy that names the scheme": [("x-forwarded-proto", "https")],
    "a proxy that says nothing": [("X-Forwarded-For", "")],
    "a proxy of the standard": [("Forwarded", "for=198.51.100.7")],
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_what_a_foreign_page_or_a_proxy_sends_is_refused_on_every_route(
    api: Api, routes: list[tuple[str, str]], headers: list[tuple[str, str]]
) -> None:
    port = api.url.rpartition(":")[2]
    named = [(name, value.format(port=port)) for name, value in headers]
    before = api.newest_ids()
    for method, path in routes:
        with Exchange(api.url, method, path, [*named, ("Connection", "close")]) as answer:
            body = answer.read_all()
        assert answer.status == 403, (method, path)
        assert answer.header("content-type") == "application/problem+json"
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("content-security-policy") == "default-src 'none'"
        assert answer.header("access-control-allow-origin") is None
        assert b"secret" not in body
        assert b"evil" not in body
    assert api.newest_ids() == before


OWN: dict[str, list[tuple[str, str]]] = {
    "a command": [],
    "a command by name": [("Host", "localhost:{port}")],
    "a command by IPv6": [("Host", "[::1]:{port}")],
    "a command in capitals": [("Host", "LOCALHOST:{port}")],
    "without a port": [("Host", "127.0.0.1")],
    "typed into the address bar": [("Sec-Fetch-Site", "none")],
    "a page of our own": [("Origin", "http://127.0.0.1:{port}"), ("Sec-Fetch-Site", "same-origin")],
    "a page of our own by name": [("Host", "localhost:{port}"), ("Origin", "http://localhost:{port}")],
}


OF_TOKENS_ALONE = ("POST", "/v1/tokens/cookie")
"""Without keys there is nothing that a token would be needed for."""


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN)
def test_what_the_user_sends_is_answered(
    api: Api, routes: list[tuple[str, str]], headers: list[tuple[str, str]]
) -> None:
    port = api.url.rpartition(":")[2]
    named = [(name, value.format(port=port)) for name, value in headers]
    for method, path in routes:
        with Exchange(api.url, method, path, [*named, ("Connection", "close")]) as answer:
            pass
        if (method, path) == OF_TOKENS_ALONE:
            assert answer.status == 403
        else:
            assert answer.status not in (401, 403, 500), (method, path)
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("content-security-policy") == "default-src 'none'"
