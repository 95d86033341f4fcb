"""The JavaScript of docs/CLIENTS.md holds for TypeScript, and runs as it stands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from tests.clients.recipes import DOCUMENT
from tests.rig.chromium import ARGS
from tests.rig.deployment import HTTP, Deployment

LIMIT_S = 60
OUR_PART = DOCUMENT.read_text().partition("\n## A client needs nothing of ours\n")[0]


class Block(NamedTuple):
    heading: str
    language: str
    code: str


def blocks() -> list[Block]:
    found = []
    for section in OUR_PART.split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
            found.append(Block(heading, language, code))
    return found


def block(heading: str, words: str = "") -> str:
    [found] = [each.code for each in blocks() if each.heading == heading and words in each.code]
    return found


def run(js: Path, *arguments: str) -> str:
    ran = subprocess.run(["node", *arguments], cwd=js, timeout=LIMIT_S, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_line_holds_for_typescript(js: Path) -> None:
    folder = js / "docs"
    folder.mkdir()
    for name in ("docs.d.ts", "your-app.js"):
        shutil.copy(js / name, folder)
    (folder / "chat.js").write_text(block("Next.js, Hono, Express: through your own endpoint", "function chat"))
    (folder / "App.jsx").write_text(block("React", "function App"))
    for at, (_, language, code) in enumerate(blocks()):
        if language in ("js", "jsx", "ts", "tsx"):
            code = re.sub(r'"(?:\.\./)+', '"./', code)
            (folder / f"block{at}.{language}").write_text(f"{code}\nexport {{}};\n")
    options: dict[str, Any] = {
        "noEmit": True,
        "strict": True,
        "noImplicitAny": False,
        "allowJs": True,
        "checkJs": True,
        "jsx": "react-jsx",
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "lib": ["es2022", "dom", "dom.iterable", "dom.asynciterable"],
        "types": [],
        "skipLibCheck": True,
    }
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*"]}))
    run(js, "node_modules/typescript/bin/tsc", "--project", "docs")


# -- in a page -------------------------------------------------------------------------------------------------


class Site:
    """A page at the server's own origin, under the document's policy. Its `/api/chat` starts a stream."""

    def __init__(self, js: Path, deployment: Deployment, page: Page) -> None:
        self.js = js
        self.url = deployment.url
        self.page = page
        self.wrong: list[str] = []
        self._files: dict[str, str] = {}
        page.set_default_timeout(LIMIT_S * 1000)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        page.route(f"{self.url}/site/*", self._file)
        page.route(f"{self.url}/api/chat", lambda route: route.continue_(url=f"{self.url}/v1/streams"))

    def _file(self, route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        kind = "text/javascript" if name.endswith(".js") else "text/html"
        policy = block("Another origin").strip()
        route.fulfill(body=self._files[name], content_type=kind, headers={"Content-Security-Policy": policy})

    def open(self, html: str, code: str) -> None:
        (self.js / "docs-page.mjs").write_text(code)
        bundled = run(self.js, "node_modules/esbuild/bin/esbuild", "docs-page.mjs", "--bundle", "--format=esm")
        page = f"<!doctype html><meta charset=utf-8>{html}<script type=module src=page.js></script>"
        self._files = {"page.html": page, "page.js": bundled}
        self.page.goto(f"{self.url}/site/page.html")

    def words(self, count: int) -> None:
        self.until(f"output.textContent.split(' ').length > {count}")

    def until(self, condition: str) -> None:
        self.page.wait_for_function(f"() => {condition}")  # a mere text would be refused by the policy

    def shown(self) -> str | None:
        return self.page.text_content("#output")

    def kept(self) -> Any:
        return json.loads(self.page.evaluate("() => localStorage.getItem('lastevent:chat')"))


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def site(js: Path, deployment: Deployment, browser: Browser) -> Iterator[Site]:
    page = browser.new_page()
    site = Site(js, deployment, page)
    yield site
    page.close()
    assert site.wrong == []


def text_of(url: str) -> str:
    return HTTP.get(url.replace("/events", "/text")).text


@pytest.mark.browser
def test_a_page_that_follows_goes_on_where_it_was_when_it_is_reloaded_until_it_forgets(
    site: Site, deployment: Deployment
) -> None:
    url = f"{site.url}/v1/streams/{deployment.create('[[tokens=40 rate=40]]')}/events"
    names = f'const eventsUrl = "{url}", chatId = "chat";\n'
    site.open(
        "<p id=output><p id=note>", names + block("Plain JavaScript", "eventsUrl") + "document.title = answer.state;"
    )
    site.words(10)
    site.page.reload()
    site.until("document.title === 'done'")
    assert site.shown() == text_of(url)
    assert site.kept()["answer"]["text"] == text_of(url)
    site.page.evaluate(f"() => {{ {block('What is kept', 'startsWith')} }}")
    assert site.page.evaluate("() => localStorage.length") == 0


@pytest.mark.browser
def test_a_page_that_asks_can_be_reloaded_and_its_button_ends_the_answer(site: Site) -> None:
    show = """
      setInterval(() => {
        output.textContent = stream.answer.text;
        document.title = stream.answer.state;
      }, 20);"""
    question = '<input id=question value="[[tokens=500 rate=30]]">'
    site.open(
        f"<p id=output></p>{question}<button id=ask></button><button id=cancel></button>",
        'const chatId = "chat";\n' + block("Plain JavaScript", "start") + show,
    )
    site.page.evaluate("() => ask.click()")
    site.words(10)
    site.page.reload()
    site.words(15)
    site.page.evaluate("() => cancel.click()")
    site.until("document.title === 'cancelled'")
    assert site.shown() == text_of(site.url + site.kept()["url"])


@pytest.mark.browser
def test_a_page_shows_markdown_as_it_comes(site: Site, deployment: Deployment) -> None:
    url = f"{site.url}/v1/streams/{deployment.create('[[tokens=20 rate=100]] **bold** and <b>less</b>')}/events"
    site.open("<div id=output></div>", f'const url = "{url}";\n{block("Markdown", "follow")}')
    site.until("output.textContent.includes('bold and <b>less</b>')")
    assert site.page.inner_text("#output strong") == "bold"
    assert site.page.locator("#output b").count() == 0


# -- in Node ---------------------------------------------------------------------------------------------------


def test_a_loop_over_the_events_says_each_word_once(js: Path, deployment: Deployment) -> None:
    url = f"{deployment.url}/v1/streams/{deployment.create('[[tokens=20 rate=0]]')}/events"
    program = f"""
      const url = "{url}", said = [];
      const speak = async (text) => said.push(text), hush = () => said.splice(0);
      {block("Flow control")}
      console.log(said.join(""));"""
    assert run(js, "--input-type=module", "--eval", program).rstrip("\n") == text_of(url)
