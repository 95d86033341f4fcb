"""With keys on: the page is everybody's, what it shows is not. And who is shown what: with a key, with a token."""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from redis import Redis

from broker.tenants.issuers import OURS
from broker.tenants.keyring import ApiKey, new_key
from broker.tenants.tokens import _signing_key
from tests.conftest import deployment_in
from tests.console.conftest import Seeds, serious, watched_page
from tests.console.test_access import LOOKS, fits
from tests.rig.deployment import Deployment, wait_until
from tests.tenants.forge import SECRET, claims, signed, tokens

pytestmark = pytest.mark.browser

KEY = "of-at-least-thirty-two-characters"


class Door(Seeds):
    """A server with keys, by the API of its owner."""

    http = httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {KEY}"})

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(f"{self.url}{path}", **more)

    def post(self, path: str, body: object = None) -> Any:
        answer = self.http.post(f"{self.url}{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def finished(self, prompt: str, **body: Any) -> str:
        sid: str = self.post("/v1/streams", {"prompt": prompt, **body})["id"]
        wait_until(lambda: self.get(f"/v1/streams/{sid}").json()["state"] == "done", "it has ended")
        return sid

    def key(self, *scopes: str, **more: Any) -> tuple[ApiKey, str]:
        """As `lastevent keys create` makes it; the server knows it."""
        key, secret = new_key("default", frozenset(scopes), **more)
        with Redis.from_url(self.deployment.redis_url) as redis:
            redis.hset("le:keys", key.id, key.to_json())
            redis.publish("le:keys:changed", "")
        wait_until(
            lambda: httpx.get(f"{self.url}/v1/models", headers=bearer(secret)).status_code != 401 or more, "it is known"
        )
        return key, secret

    def token(self, *streams: str, scope: str = "streams:read", **opened: Any) -> str:
        opens = opened or {"streams": list(streams)}
        minted: str = self.post("/v1/tokens", {"sub": "ann", "scope": scope, **opens})["token"]
        return minted


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def forged(**changed: Any) -> str:
    """As the server's own, with other claims."""
    kid, key = _signing_key(SECRET)
    return signed(key, "HS256", claims(iss=OURS, tenant="default", **changed), kid=kid)


def ending(sid: str, jti: str) -> str:
    """A token that has lived for long: its viewers are told at once, and cut 20 s later."""
    now = int(time.time())
    while True:
        text = forged(streams=[sid], iat=now - 600, exp=now + 30, jti=jti, tried=time.perf_counter_ns())
        if 20 < tokens().verified(text).cuts_at - now < 30:
            return text


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_TOKEN_SECRET": SECRET.decode()}
    with deployment_in(tmp_path_factory.mktemp("keyed"), servers=1, **settings) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def door(keyed: Deployment) -> Door:
    return Door(keyed)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched_page(browser) as page:
        yield page


@pytest.fixture
def sid(door: Door) -> Iterator[str]:
    """A stream that runs, with a word in it."""
    sid = door.external(("start", {}), ("text_delta", {"text": "one "}), session_id="s-of-ann", user_id="ann")
    yield sid
    if door.get(f"/v1/streams/{sid}").json()["state"] == "running":
        door.append(sid, ("done", {}))


def give(page: Page, key: str, title: str = "This server requires a key or a token") -> None:
    expect(page.get_by_role("dialog")).to_contain_text(title)
    page.get_by_label("API key or token").fill(key)
    page.keyboard.press("Enter")


def enter(page: Page, door: Door, credential: str, address: str = "") -> None:
    page.goto(f"{door.url}/{address}")
    if not address:  # the playground asks the server nothing by itself
        page.get_by_role("button", name="Enter key").click()
    give(page, credential)
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.wait_for_function("(given) => sessionStorage.getItem('lastevent.key') === given", arg=credential)


def is_offered(page: Page, *names: str) -> None:
    """The page comes to offer this, in the frame and in the view, and nothing else."""
    controls = page.locator("nav a, .actions button, .actions a, .composer button[type=submit]")
    expect(controls.filter(visible=True)).to_have_text([*names])


def answer(page: Page) -> Any:
    return expect(page.locator(".answer-blocks > .answer-text"))


def test_it_asks_for_the_key_and_works_with_it(page: Page, door: Door) -> None:
    requests: list[tuple[str, str | None]] = []
    page.on("request", lambda request: requests.append((request.url, request.headers.get("authorization"))))
    page.goto(door.url)
    page.get_by_label("Prompt", exact=True).fill("[[tokens=20 rate=50 ttft_ms=0]]")
    page.get_by_role("button", name="Send").click()
    give(page, "wrong-but-long-enough-for-a-key")
    expect(page.get_by_role("dialog")).to_contain_text("The server does not accept this key.")
    give(page, f" Bearer {KEY} ", "Another key or token")
    expect(page.locator(".network")).to_have_text("Complete")

    sid = page.url.partition("stream=")[2]
    text = door.text(sid)
    assert "".join(page.locator(".answer-blocks > .answer-text").all_text_contents()) == text
    page.get_by_role("link", name="Open in player").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.path().read_bytes().startswith(b'{"id":1,')

    page.reload()
    expect(page.locator(".stage")).to_be_visible()
    assert page.evaluate("() => [sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    assert not any(KEY in url or "token=" in url for url, _ in requests)
    files = [sent for url, sent in requests if "/v1/" not in url]
    assert files
    assert set(files) == {None}, "the key is sent to the API only"
    assert KEY not in page.content()

    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("dialog")).to_contain_text("This server requires a key")
    assert page.evaluate("() => sessionStorage.length") == 0


def test_who_gives_no_key_is_asked_once_and_can_still_give_it(page: Page, door: Door) -> None:
    page.goto(f"{door.url}/#/sessions?session_id=nobodys")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_be_visible()
    with page.expect_response(lambda response: response.status == 401):
        pass  # it goes on asking the server, and not the user
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Enter a key").click()
    give(page, KEY)
    expect(page.locator("main .notice.empty")).to_contain_text("No streams match")


def test_the_page_itself_needs_no_key(door: Door) -> None:
    for path in ("/", "/console/main.js"):
        answer = httpx.get(f"{door.url}{path}")
        assert answer.status_code == httpx.codes.OK
        assert KEY not in answer.text


# -- tokens


def test_a_token_shows_the_streams_that_it_names_and_offers_nothing_that_it_may_not_do(
    page: Page, door: Door, sid: str
) -> None:
    ended = door.finished("[[tokens=20 rate=500 ttft_ms=0]]", user_id="ann")
    token = door.token(sid, ended, "0" * 32)
    requests: list[tuple[str, str | None]] = []
    page.on("request", lambda request: requests.append((request.url, request.headers.get("authorization"))))
    enter(page, door, token)
    expect(page.locator("h1")).to_have_text("Streams")
    expect(page.locator(".facts")).to_contain_text("ann")
    rows = page.locator(".opened tr")
    expect(rows.nth(0)).to_contain_text("running")
    expect(rows.nth(1)).to_contain_text("done")
    expect(rows.nth(2)).to_contain_text("not there")
    is_offered(page, "Streams")

    rows.nth(1).get_by_role("link").click()
    answer(page).to_have_text(door.text(ended))
    expect(page.get_by_text("As the user saw it")).to_be_visible()
    is_offered(page, "Streams", "Playground")
    page.goto(f"{door.url}/#/stream/{sid}")
    answer(page).to_have_text("one ")
    is_offered(page, "Streams", "Playground")
    page.locator("main").get_by_role("link", name="Playground").click()
    answer(page).to_have_text("one ")
    is_offered(page, "Streams", "Open in player")
    expect(page.locator(".starts-none")).to_have_text("This token starts no streams. It can open them.")
    assert not any(token in url for url, _ in requests), "a token travels in the header"
    refused = [url for url, sent in requests if sent is not None and re.search(r"/(keys|verify|views|export)", url)]
    assert refused == [], "what no token opens is not asked for"
    page.get_by_role("button", name="Forget token").click()
    expect(page.get_by_role("dialog")).to_contain_text("This server requires a key or a token")


def test_a_token_may_cancel_if_it_says_so(page: Page, door: Door, sid: str) -> None:
    enter(page, door, door.token(sid, scope="streams:read streams:cancel"), f"#/stream/{sid}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".badges")).to_have_text("cancelled")


def test_a_token_of_a_session_lists_nothing_and_opens_a_stream_by_its_id(page: Page, door: Door, sid: str) -> None:
    other = door.external(("done", {}), session_id="another")
    enter(page, door, door.token(sessions=["s-of-ann"]), "#/sessions")
    expect(page.locator(".notice")).to_contain_text("A token lists nothing: paste the id of a stream above.")
    page.get_by_label("Stream id").fill(other)
    page.keyboard.press("Enter")
    expect(page.locator(".goto")).to_contain_text("There is no such stream, or this token does not open it.")
    page.get_by_label("Stream id").fill(sid)
    page.keyboard.press("Enter")
    answer(page).to_have_text("one ")


def test_each_refusal_of_a_token_is_told_in_its_own_words(page: Page, door: Door, sid: str) -> None:
    now = int(time.time())
    door.post("/v1/tokens/revoke", {"jti": "gone"})
    enter(page, door, KEY, f"#/stream/{sid}")
    page.evaluate("(token) => sessionStorage.setItem('lastevent.key', token)", forged(streams=[sid], aud="others"))
    page.reload()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("The server does not accept this token. The token is for another audience.")
    give(page, forged(streams=[sid], iat=now - 900, exp=now - 300), "Another key or token")
    expect(dialog).to_contain_text("This token has expired. With a new one you continue where you are.")
    give(page, forged(streams=[sid], jti="gone"), "Another key or token")
    expect(dialog).to_contain_text("This token has been revoked.")
    give(page, forged(streams=[sid], scope="streams:cancel"), "Another key or token")
    refused = page.get_by_role("alert")
    expect(refused).to_contain_text("Not with this token")
    expect(refused).to_contain_text("This takes the scope streams:read (events, texts,")
    refused.get_by_role("button", name="Use another key").click()
    give(page, forged(streams=[sid]), "Another key or token")
    answer(page).to_have_text("one ")


def test_a_token_that_is_about_to_expire_is_replaced_and_the_reader_stays(page: Page, door: Door, sid: str) -> None:
    followed: list[str] = []
    page.on("request", lambda request: followed.append(request.url) if "/events" in request.url else None)
    enter(page, door, ending(sid, "ends"), f"#/stream/{sid}")
    expect(page.locator("#expiry")).to_contain_text("This token expires at")
    for word in "abc":  # on a connection that is told so too: nobody asks for another one again and again
        door.append(sid, ("text_delta", {"text": word}))
        answer(page).to_contain_text(word)
    assert len(followed) <= 2
    page.get_by_role("button", name="Paste a new one").click()
    give(page, forged(streams=[sid]), "Another key or token")
    expect(page.locator("#expiry")).to_be_empty()
    with page.expect_request(lambda request: "/events" in request.url):  # it is cut, and comes back by itself
        door.post("/v1/tokens/revoke", {"jti": "ends"})
    door.append(sid, ("text_delta", {"text": " two"}))
    answer(page).to_have_text("one abc two")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_token_that_has_expired_or_was_revoked_is_asked_for_and_the_reader_stays(
    page: Page, door: Door, sid: str
) -> None:
    now = int(time.time())
    enter(page, door, forged(streams=[sid], jti="for-a-while"), f"#/playground?stream={sid}")
    answer(page).to_have_text("one ")
    door.post("/v1/tokens/revoke", {"jti": "for-a-while"})
    expect(page.get_by_role("dialog")).to_contain_text("This token has been revoked.")
    give(page, forged(streams=[sid], iat=now - 900, exp=now - 300), "Another key or token")
    expect(page.get_by_role("dialog")).to_contain_text("This token has expired.")
    give(page, forged(streams=[sid]), "Another key or token")
    door.append(sid, ("text_delta", {"text": "two"}))
    answer(page).to_have_text("one two")
    expect(page.locator("[data-metric=received]")).to_have_text("4")


# -- keys of less


@pytest.mark.parametrize(
    ("scopes", "frame", "ended", "running"),
    [
        (["streams:read"], ["Sessions"], ["Playground"], ["Playground"]),
        (
            ["audit:read", "streams:inspect", "streams:read"],
            ["Sessions"],
            ["Playground", "Export"],
            ["Playground", "Export"],
        ),
        (
            ["streams:write", "streams:read", "streams:inspect", "streams:cancel"],
            ["Playground", "Sessions"],
            ["Playground"],
            ["Playground", "Cancel"],
        ),
    ],
    ids=["reader", "auditor", "backend"],
)
def test_a_key_is_offered_what_it_opens(
    page: Page, door: Door, sid: str, scopes: list[str], frame: list[str], ended: list[str], running: list[str]
) -> None:
    is_over = door.external(("text_delta", {"text": "all of it"}), ("done", {}))
    _, key = door.key(*scopes)
    enter(page, door, key, f"#/stream/{is_over}")
    answer(page).to_have_text("all of it")
    is_offered(page, *frame, *ended)
    page.goto(f"{door.url}/#/stream/{sid}")
    answer(page).to_have_text("one ")
    is_offered(page, *frame, *running)
    page.goto(f"{door.url}/#/keys")
    expect(page.get_by_role("alert")).to_contain_text("This takes the scope admin")
    page.goto(f"{door.url}/#/sessions?session_id=s-of-ann")
    may_list = "streams:inspect" in scopes
    expect(page.get_by_role("search")).to_be_visible(visible=may_list)
    expect(page.locator("main [role=alert] .notice-title, tbody .badge").first).to_have_text(
        "running" if may_list else "Not with this key"
    )


# -- who may what


def test_an_administrator_sees_who_may_what_and_revokes(page: Page, door: Door) -> None:
    kept, _ = door.key("audit:masked", name="auditors\u202etxt"[:8])
    key, secret = door.key("streams:read", "streams:cancel", name="web", lasts_s=90 * 86400)
    door.key("metrics:read", name="old", lasts_s=-1)
    enter(page, door, KEY)
    page.get_by_role("link", name="Keys").click()
    row = page.locator(f"tr[data-id='{key.id}']")
    page.set_viewport_size({"width": 1000, "height": 700})  # where the table of sessions has fewer columns
    expect(page.get_by_role("columnheader", name="Expires")).to_be_visible()
    expect(row).to_contain_text("web")
    expect(row).to_contain_text("default")
    assert row.locator(".key-scopes code").all_text_contents() == ["streams:cancel", "streams:read"]
    expect(row).to_contain_text("active")
    expect(page.locator("tr", has_text="old")).to_contain_text("expired")
    expect(page.locator("tr", has_text="admin").first).to_contain_text("Ends when taken out of the settings")
    assert page.locator("tr", has_text="admin").first.get_by_role("button").count() == 0
    expect(page.locator(".scopes")).to_contain_text("events, texts, and of a record what viewers see")

    row.get_by_role("button").click()
    page.get_by_role("button", name="Keep it").click()
    expect(row).to_contain_text("active")
    row.get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_contain_text("It cannot be put back.")
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    assert row.get_by_role("button").count() == 0
    assert httpx.get(f"{door.url}/v1/models", headers=bearer(secret)).status_code == 401
    expect(page.locator(f"tr[data-id='{kept.id}']")).to_contain_text("active")


def test_without_keys_the_page_says_that_the_server_is_open(page: Page, deployment: Deployment) -> None:
    page.goto(deployment.url)
    page.get_by_role("link", name="Keys").click()
    expect(page.locator("main .notice.empty")).to_contain_text("this server is open to its own machine")
    expect(page.locator("#key-button")).to_be_hidden()


def test_who_revokes_the_key_in_use_is_told_so(page: Page, door: Door) -> None:
    key, secret = door.key("admin", name="mine")
    enter(page, door, secret, "#/keys")
    row = page.locator(f"tr[data-id='{key.id}']")
    expect(row).to_contain_text("in use here")
    row.get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_contain_text("It is the key that you use here.")
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    give(page, KEY, "Another key or token")
    expect(row).to_contain_text("revoked")


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    with watched_page(browser, **LOOKS[request.param]) as page:
        yield page


@pytest.mark.npm
def test_what_is_about_keys_and_tokens_is_for_everybody(look: Page, door: Door, sid: str, axe: str) -> None:
    door.key("streams:read", name="a key with a long name, such as people give them")
    door.key("metrics:read", lasts_s=-1)
    enter(look, door, KEY, "#/keys")
    expect(look.locator("tbody tr").first).to_be_visible()
    assert serious(look, axe) == []
    assert fits(look)
    assert look.evaluate("() => document.querySelector('.bar').scrollWidth") <= look.evaluate("() => innerWidth")
    look.get_by_role("button", name="Revoke").first.click()
    assert serious(look, axe) == []
    assert fits(look)
    look.get_by_role("button", name="Keep it").click()
    look.get_by_role("button", name="Forget key").click()
    give(look, ending(sid, "looks"))
    expect(look.locator(".opened .badge")).to_be_visible()
    assert serious(look, axe) == []
    assert fits(look)
    look.locator(".opened a").click()
    expect(look.locator(".expiring")).to_be_visible()
    assert serious(look, axe) == []
    assert fits(look)
