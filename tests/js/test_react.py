"""lastevent/react in Chromium: how often it renders, what it asks for, and what is shown as components come and go."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.clients.recipes import DOCUMENT
from tests.js.bundles import bundled
from tests.js.packages import output
from tests.js.react_site import Site, serving
from tests.rig.chromium import ARGS
from tests.rig.deployment import HTTP, Deployment, wait_until

pytestmark = pytest.mark.browser

PATIENCE_MS = 30_000
HTML = '<!doctype html><meta charset="utf-8"><div id="root">%s</div><script type="module" src="page.js"></script>'
SLOWLY = "[[tokens=60 rate=30 ttft_ms=0]]"
FOR_LONG = "[[tokens=400 rate=40 ttft_ms=0]]"
KEPT = {"storage": "localStorage", "key": "chat"}
FRAME_LIMIT_MS = 250  # a page that is not painted is told as often


@pytest.fixture(scope="module")
def tab(chromium: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        tab = browser.new_page()
        tab.set_default_timeout(PATIENCE_MS)
        yield tab
        browser.close()


@pytest.fixture
def site(deployment: Deployment) -> Iterator[Site]:
    with serving(deployment.ports[0]) as site:
        yield site


@pytest.fixture(scope="module")
def page_js(js: Path) -> bytes:
    return bundled(js, "react-page.jsx")


@pytest.fixture
def page(tab: Page, site: Site, page_js: bytes) -> Iterator[Page]:
    """react-page.jsx, on a site of the test's own: so is its storage. React must have nothing to complain of."""
    site.files = {"index.html": (HTML % "").encode(), "page.js": page_js}
    errors: list[str] = []
    note = lambda error: errors.append(str(error))  # noqa: E731
    tab.on("pageerror", note)
    open_page(tab, site)
    yield tab
    errors += tab.evaluate("wrong")
    tab.remove_listener("pageerror", note)
    tab.goto("about:blank")
    assert errors == []


def open_page(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.wait_for_function("'show' in window")


def show(page: Page, *answers: tuple[str, Any], **how: Any) -> None:
    """Components with these names and sources, in place of those that were there."""
    page.evaluate("([answers, how]) => show(answers, how)", [_named(answers), how])


def _named(answers: tuple[tuple[str, Any], ...]) -> list[dict[str, Any]]:
    return [{"name": name, "source": source} for name, source in answers]


def events_of(sid: str) -> str:
    return f"/v1/streams/{sid}/events"


def text_of(deployment: Deployment, sid: str) -> str:
    return HTTP.get(f"{deployment.url}/v1/streams/{sid}/text").text


def until_words(page: Page, name: str, words: int) -> str:
    """What it shows once it has so many words."""
    condition = "([name, words]) => document.getElementById(name)?.textContent.split(' ').length > words"
    page.wait_for_function(condition, arg=[name, words])
    return shown(page, name)


def until_more(page: Page) -> None:
    """Until what was kept, which is painted first, has gone on: an event of this page's own connection is there."""
    page.wait_for_function("seen.length > 0 && seen.at(-1)[0].length > seen[0][0].length")


def until_ended(page: Page, name: str) -> str:
    page.wait_for_function(
        "(name) => commits.some((commit) => commit.name === name && commit.live.ending) && live(name).ending", arg=name
    )
    return shown(page, name)


def shown(page: Page, name: str) -> str:
    return page.locator(f"#{name}").inner_text()


def kept(page: Page, key: str) -> Any:
    """What the storage has."""
    return json.loads(page.evaluate("(key) => localStorage.getItem(`lastevent:${key}`)", key))


def cursors_asked(site: Site, sid: str) -> list[int]:
    """The cursor of each connection that followed the stream; 0: none."""
    return [int(asked.last_event_id or 0) for asked in site.asked_for(sid)]


# -- how often ---------------------------------------------------------------------------------------------------


def test_at_300_events_a_second_it_renders_at_most_once_a_frame(page: Page, site: Site, deployment: Deployment) -> None:
    sid = deployment.create("[[tokens=300 rate=300 ttft_ms=0]]")
    show(page, ("a", {"url": events_of(sid)}))

    assert until_ended(page, "a") == text_of(deployment, sid)
    at = page.evaluate("commits.filter(({live}) => live.cursor).map(({frame, at}) => [frame, at])")
    assert len(at) > 10
    for (frame, ms), (next_frame, next_ms) in pairwise(at):
        assert next_frame > frame or next_ms - ms >= FRAME_LIMIT_MS


def test_under_strict_mode_two_components_of_one_stream_make_one_request(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create(SLOWLY)
    show(page, ("a", {"url": events_of(sid)}), ("b", {"url": events_of(sid)}))

    assert until_ended(page, "a") == until_ended(page, "b") == text_of(deployment, sid)
    assert all(a == b for a, b in page.evaluate("seen"))
    assert len(site.asked_for(sid)) == 1


def test_the_answer_is_the_same_object_while_nothing_has_changed(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create("[[tokens=3 rate=0 ttft_ms=0]]")
    show(page, ("a", {"url": events_of(sid)}))
    until_ended(page, "a")
    page.evaluate("window.before = live('a'); window.count = commits.length")
    show(page, ("a", {"url": events_of(sid), "hidden": "follow"}))
    page.wait_for_function("commits.length > count")

    assert page.evaluate("live('a') === before")
    assert len(site.asked_for(sid)) == 1
    assert {"text", "state", "ending", "connection", "cancel", "send", "stop"} <= set(
        page.evaluate("Object.keys(before)")
    )


# -- servers -----------------------------------------------------------------------------------------------------


def test_a_server_renders_the_empty_answer_without_a_request_and_the_page_takes_it_over(
    page: Page, site: Site, deployment: Deployment, js: Path
) -> None:
    sid = deployment.create(SLOWLY)
    prompt = {"url": "/v1/streams", "body": {"prompt": "[[tokens=3 rate=0 ttft_ms=0]]"}}
    answers = (("a", {"url": events_of(sid)}), ("b", {"started": "one"}))
    program = js / "react-server.cjs"
    program.write_bytes(bundled(js, "react-server.jsx", "--platform=node", "--format=cjs"))
    absolute = [{"name": "a", "source": {"url": f"{site.url}{events_of(sid)}"}}, {"name": "b", "source": None}]
    html = output(["node", str(program), json.dumps(absolute)], js)
    assert html == '<output id="a"></output><output id="b"></output>'
    assert site.asked_for(sid) == []

    site.files["index.html"] = (HTML % html).encode()
    open_page(page, site)
    page.evaluate("(options) => begin('one', options)", prompt)
    page.wait_for_function("started.one.answer.ending")
    page.evaluate("(answers) => hydrate(answers)", _named(answers))
    assert until_ended(page, "b") == page.evaluate("started.one.answer.text")
    assert until_ended(page, "a") == text_of(deployment, sid)
    assert len(site.asked_for(sid)) == 1


# -- coming and going --------------------------------------------------------------------------------------------


def test_a_page_that_is_reloaded_in_the_middle_shows_at_once_what_it_had_and_goes_on(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create(FOR_LONG)
    source = {"url": events_of(sid), **KEPT}
    show(page, ("a", source))
    for words in (10, 40):
        before = until_words(page, "a", words)
        open_page(page, site)
        show(page, ("a", source))
        until_more(page)
        assert page.evaluate("seen[0][0]").startswith(before)
    page.evaluate("live('a').cancel()")

    assert until_ended(page, "a") == text_of(deployment, sid)
    first, *later = cursors_asked(site, sid)
    assert first == 0
    assert 10 < later[0] < later[1]


def test_a_component_that_is_gone_lets_go_of_the_stream_and_one_that_moved_within_a_task_does_not(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create(FOR_LONG)
    source = {"url": events_of(sid)}
    show(page, ("a", source))
    until_words(page, "a", 5)
    page.evaluate("(answers) => blink(answers)", _named((("b", source),)))
    until_words(page, "b", 20)
    assert cursors_asked(site, sid) == [0]

    page.evaluate("leave()")
    wait_until(lambda: not site.following, "nobody follows")
    show(page, ("c", source))
    until_words(page, "c", 30)
    page.evaluate("live('c').cancel()")
    assert until_ended(page, "c") == text_of(deployment, sid)
    assert cursors_asked(site, sid) == [0, 0]  # nothing was kept


def test_with_a_storage_one_that_comes_back_later_goes_on_where_it_was(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create(FOR_LONG)
    source = {"url": events_of(sid), **KEPT}
    show(page, ("a", source))
    before = until_words(page, "a", 10)
    page.evaluate("leave()")
    wait_until(lambda: not site.following, "nobody follows")
    cursor = kept(page, "chat")["answer"]["cursor"]
    show(page, ("b", source))
    assert until_words(page, "b", 15).startswith(before)
    page.evaluate("live('b').cancel()")
    assert until_ended(page, "b") == text_of(deployment, sid)
    assert cursors_asked(site, sid) == [0, cursor]


def test_another_url_in_the_middle_shows_that_stream_and_nothing_of_the_one_before(
    page: Page, site: Site, deployment: Deployment
) -> None:
    one, other = deployment.create(FOR_LONG), deployment.create("[[tokens=5 rate=0 ttft_ms=0]] Another one.")
    show(page, ("a", {"url": events_of(one), **KEPT}))
    until_words(page, "a", 10)
    show(page, ("a", {"url": events_of(other), **KEPT}))

    text = until_ended(page, "a")
    assert text == text_of(deployment, other)
    of_other = page.evaluate(
        "(url) => commits.filter((commit) => commit.url === url).map(({text}) => text)", events_of(other)
    )
    assert all(text.startswith(shown) for shown in of_other)
    wait_until(lambda: not site.following, "nobody follows the first one")
    assert kept(page, "chat")["url"] == events_of(other)


def test_two_streams_under_one_key_are_both_followed_and_the_later_one_is_kept(
    page: Page, site: Site, deployment: Deployment
) -> None:
    one, other = deployment.create(SLOWLY), deployment.create(SLOWLY)
    show(page, ("a", {"url": events_of(one), **KEPT}))
    until_words(page, "a", 5)
    show(page, ("a", {"url": events_of(one), **KEPT}), ("b", {"url": events_of(other), **KEPT}))

    assert until_ended(page, "a") == text_of(deployment, one)
    assert until_ended(page, "b") == text_of(deployment, other)
    assert (cursors_asked(site, one), cursors_asked(site, other)) == ([0], [0])
    assert kept(page, "chat")["url"] == events_of(other)


def test_without_a_url_it_takes_up_what_is_kept_and_the_url_that_is_found_later_takes_nothing_back(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create(FOR_LONG)
    show(page, ("a", {"url": events_of(sid), **KEPT}))
    until_words(page, "a", 10)
    open_page(page, site)
    show(page, ("a", {"url": None, **KEPT}))
    until_more(page)
    show(page, ("a", {"url": events_of(sid) + "?access_token=", **KEPT}))
    until_words(page, "a", 30)

    lengths = page.evaluate("seen.map(([text]) => text.length)")
    assert lengths[0] > 0
    assert lengths == sorted(lengths)
    page.evaluate("live('a').cancel()")
    assert until_ended(page, "a") == text_of(deployment, sid)
    cursors = cursors_asked(site, sid)
    assert cursors == sorted(set(cursors))


def test_another_user_under_the_same_key_sees_nothing_of_the_one_before(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create(FOR_LONG)
    show(page, ("a", {"url": events_of(sid), "user": "ann", **KEPT}))
    until_words(page, "a", 10)
    show(page, ("a", {"url": None, "user": "ann", **KEPT}))
    until_words(page, "a", 15)
    show(page, ("a", {"url": None, "user": "bob", **KEPT}))
    page.wait_for_function("document.getElementById('a').textContent === ''")

    wait_until(lambda: not site.following, "nobody follows it")
    assert page.evaluate("live('a').connection.state") == "idle"
    assert page.evaluate("localStorage.getItem('lastevent:chat')") is None, "dropped unread"


def test_without_a_stream_it_is_empty_and_asks_for_nothing(page: Page, site: Site) -> None:
    show(page, ("a", None), ("b", {"url": None}), ("c", {"url": None, "storage": "localStorage", "key": "new"}))
    page.wait_for_selector("#c", state="attached")

    assert (
        page.evaluate("['a', 'b', 'c'].map((name) => [live(name).state, live(name).connection.state])")
        == [["new", "idle"]] * 3
    )
    assert page.evaluate("live('a').cancel().catch(({name, code}) => [name, code])") == ["StreamError", "no_location"]
    page.evaluate("leave()")
    page.evaluate("new Promise((done) => setTimeout(done))")
    assert page.evaluate("localStorage.length") == 0
    assert site.asked == []


# -- a stream that is given ----------------------------------------------------------------------------------------


def test_a_stream_that_is_given_is_not_stopped_by_components_that_leave(
    page: Page, site: Site, deployment: Deployment
) -> None:
    page.evaluate("(options) => begin('one', options)", {"url": "/v1/streams", "body": {"prompt": SLOWLY}})
    show(page, ("a", {"started": "one"}), ("b", {"started": "one"}))
    until_words(page, "a", 5)
    page.evaluate("leave()")
    page.wait_for_function("started.one.answer.text.split(' ').length > 15")
    show(page, ("c", {"started": "one"}))

    assert until_ended(page, "c") == text_of(deployment, page.evaluate("started.one.url").split("/")[3])
    assert len(site.starts()) == len(site.asked) == 1


def test_a_start_that_a_reload_cut_off_is_gone_on_with_though_an_answer_ran_in_its_place(
    page: Page, site: Site, deployment: Deployment
) -> None:
    sid = deployment.create(FOR_LONG)
    show(page, ("a", {"url": events_of(sid), **KEPT}))
    until_words(page, "a", 5)
    site.answers_starts.clear()
    page.evaluate("(options) => begin('one', options)", {"url": "/v1/streams", "body": {"prompt": SLOWLY}, **KEPT})
    show(page, ("a", {"started": "one"}))
    wait_until(site.starts, "it was asked for")
    wait_until(lambda: len(site.following) == 1, "nobody follows the first one")
    assert kept(page, "chat")["body"] == {"prompt": SLOWLY}
    open_page(page, site)
    site.answers_starts.set()
    show(page, ("a", {"url": None, **KEPT}))
    text = until_ended(page, "a")

    first, second = site.starts()
    assert first.idempotency_key == second.idempotency_key
    assert text != text_of(deployment, sid)


# -- one moment for all of them ------------------------------------------------------------------------------------


def test_a_component_that_comes_between_two_frames_shows_what_the_others_show(page: Page) -> None:
    options = {"url": "/v1/streams", "body": {"prompt": FOR_LONG}, "frames": True}
    page.evaluate("(options) => begin('one', options)", options)
    show(page, ("a", {"started": "one"}))
    page.wait_for_function("frames.pass() || document.getElementById('a')?.textContent.length > 10")
    page.wait_for_function("started.one.answer.text.length > live('a').text.length + 50")
    show(page, ("a", {"started": "one"}), ("b", {"started": "one"}))
    page.wait_for_selector("#b")

    assert shown(page, "a") == shown(page, "b") != ""
    page.evaluate("frames.pass()")
    page.wait_for_function("document.getElementById('b').textContent.length > 50")
    assert all(len(set(texts)) == 1 for texts in page.evaluate("seen"))
    page.evaluate("live('a').cancel()")
    page.wait_for_function("frames.pass() || live('a').ending")


def test_components_that_come_in_a_long_transition_all_show_the_same(page: Page) -> None:
    options = {"url": "/v1/streams", "body": {"prompt": "[[tokens=400 rate=100 ttft_ms=0]]"}}
    page.evaluate("(options) => begin('one', options)", options)
    page.wait_for_function("started.one.answer.text.length > 10")
    show(page, *[(f"a{n}", {"started": "one"}) for n in range(20)], inTransition=True, slow=10)
    before = until_words(page, "a0", 1)
    until_words(page, "a19", len(before.split()) + 10)
    page.evaluate("live('a0').cancel()")

    assert until_ended(page, "a0") == page.evaluate("started.one.answer.text")
    assert all(len(set(texts)) == 1 for texts in page.evaluate("seen"))


# -- docs/CLIENTS.md -----------------------------------------------------------------------------------------------

MAIN = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import App from "./App.jsx";

createRoot(document.getElementById("root")).render(<StrictMode><App /></StrictMode>);
"""


SECTION = DOCUMENT.read_text().partition("\n## React\n")[2].partition("\n## ")[0]
CODE = dict(re.findall(r"^```(\w+)\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE))


def open_app(page: Page, site: Site, js: Path, app: str, **files: str) -> None:
    """The App.jsx of a new project."""
    folder = js / "app"
    folder.mkdir(exist_ok=True)
    for name, code in {"App.jsx": app, "main.jsx": MAIN, **files}.items():
        (folder / name).write_text(code)
    site.files = {"index.html": (HTML % "").encode(), "page.js": bundled(js, "app/main.jsx")}
    page.goto(site.url)


def ask(page: Page, prompt: str) -> None:
    page.locator("input").fill(prompt)
    page.get_by_role("button", name="Ask").click()


def test_the_page_of_the_docs_survives_reloads_in_the_middle_of_an_answer_and_after_it(
    tab: Page, site: Site, js: Path, deployment: Deployment
) -> None:
    assert len(CODE["jsx"].splitlines()) <= 40
    open_app(tab, site, js, CODE["jsx"])
    ask(tab, "[[tokens=2 rate=0 ttft_ms=0]]")
    ask(tab, FOR_LONG)
    answer = tab.locator("article").nth(1).locator("p")
    expect(answer).to_have_text(re.compile(r"(\S+\s+){10}"))
    before = answer.inner_text()
    tab.reload()
    expect(answer).to_have_text(re.compile(rf"^{re.escape(before)}.{{50}}", re.DOTALL))
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_role("button", name="Stop")).to_have_count(0)
    asked = len(site.asked)
    tab.reload()

    expect(answer).to_have_text(re.compile(rf"^{re.escape(before)}", re.DOTALL))
    assert len(site.starts()) == 2
    assert len(site.asked) == asked  # of answers that have ended nothing is asked for
    [newest] = [asked.path.split("/")[3] for asked in site.asked if asked.path.endswith("/cancel")]
    assert answer.inner_text() == text_of(deployment, newest)


def test_with_the_component_of_the_docs_its_answers_are_markdown(tab: Page, site: Site, js: Path) -> None:
    shown_as = "<Markdown text={text} hasEnded={answer.ending !== null} />"
    assert shown_as in SECTION
    app = 'import { Markdown } from "./Markdown.tsx";\n' + re.sub(r"<p style.*</p>", shown_as, CODE["jsx"])
    open_app(tab, site, js, app, **{"Markdown.tsx": CODE["tsx"]})
    ask(tab, "[[tokens=30 rate=60 ttft_ms=0]] _some_ **of it**")

    expect(tab.locator("article div")).to_contain_text("some of it")
    assert tab.locator("article div > p > strong").inner_text() == "of it"
