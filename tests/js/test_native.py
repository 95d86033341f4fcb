"""lastevent/native: fetch over XMLHttpRequest, React Native's (tests/clients/npm/xhr.mjs) and Chromium's own."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_port
from tests.clients.cutter import cutting
from tests.clients.recipes import recipe
from tests.clients.trial import produce
from tests.rig.chromium import ARGS
from tests.rig.deployment import HTTP, Deployment
from tests.viewers.producer import Producer

pytestmark = pytest.mark.npm

LIMIT_S = 60.0
LIMIT = 256 * 1024
"""As in native.js."""
PIECE = 64 * 1024
"""What Node reads at a time."""
LETTER = "Zwölf Boxkämpfer jagen Viktor 🥊 quer über den Sylter Deich. " * 12
"""900 of them fit in a batch."""


async def run(js: Path, trial: str, **options: Any) -> Any:
    process = await asyncio.create_subprocess_exec(
        *("node", "--import", "./phone.mjs", "native.mjs", trial, json.dumps(options)),
        cwd=js,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return json.loads(out)


def text_of(deployment: Deployment, producer: Producer) -> str:
    return HTTP.get(f"{deployment.url}/v1/streams/{producer.sid}/text").text


def events_url(deployment: Deployment, producer: Producer) -> str:
    return f"{deployment.url}/v1/streams/{producer.sid}/events"


@asynccontextmanager
async def silence() -> AsyncIterator[str]:
    """A server that never answers."""
    connected: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connected.append(writer), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for writer in connected:
            writer.close()


async def test_a_response_says_what_that_of_fetch_says(js: Path, deployment: Deployment) -> None:
    said = await run(js, "shape", streams=f"{deployment.url}/v1/streams")
    sid = said["started"].pop("id")
    assert said == {
        "started": {"status": 201, "ok": True, "location": f"/v1/streams/{sid}"},
        "text": {"status": 200, "at": "1", "none": None, "all": ""},
        "missing": {"status": 404, "ok": False, "code": "stream_not_found", "isUrl": True},
    }


async def test_it_fails_as_fetch_does_also_if_the_request_never_hears_of_an_abort(
    js: Path, deployment: Deployment
) -> None:
    producer = await Producer.create(deployment.ports[0])
    async with silence() as silent:
        nobody = f"http://127.0.0.1:{free_port()}/"
        said = await run(js, "failures", url=events_url(deployment, producer), nobody=nobody, silent=silent)
    await producer.finish()
    assert said.pop("nobody")["name"] == "TypeError"
    assert said.pop("cancelled") == {"done": True}
    assert {how: error["name"] for how, error in said.items()} == dict.fromkeys(said, "AbortError")


async def test_cookies_go_along_as_react_native_s_own_fetch_sends_them(js: Path) -> None:
    """By default, which is not a browser's."""
    assert await run(js, "credentials", url="http://127.0.0.1/") == [True, False, True, True]


async def test_a_cut_is_an_error_and_an_end_an_end(js: Path, deployment: Deployment) -> None:
    ended = await produce(deployment, events=14)
    frame = ended.frame("10")
    async with cutting(deployment.ports[0]) as cutter:
        in_a_character = ended.body.index("🚲".encode(), frame.start) + 2
        cut = await run(js, "read", url=cutter.url("cut", [in_a_character]) + ended.path)
        whole = await run(js, "read", url=cutter.url("whole") + ended.path, kind="Halving")
    assert cut["end"] == "TypeError"
    assert ended.body.decode(errors="ignore").partition("\n")[2].startswith(cut["text"].partition("\n")[2])
    assert whole["end"] == "done"
    assert _bare(whole["text"]) == _bare(ended.body.decode())


async def test_what_is_cut_anywhere_is_followed_to_its_end(js: Path, deployment: Deployment) -> None:
    ended = await produce(deployment, events=14)
    frame = ended.frame("10")
    cuts = [frame.start + 9, ended.body.index("🚲".encode(), frame.start) + 2 - frame.start, 0, 30]
    async with cutting(deployment.ports[0]) as cutter:
        said = await run(js, "followed", url=cutter.url("cut", cuts) + f"{ended.path}?compact=0", kind="Halving")
    assert said["ids"] == list(range(1, 15))
    assert said["text"] == HTTP.get(f"{deployment.url}/v1/streams/{ended.sid}/text").text
    assert len(said["asked"]) == 5


async def test_an_hour_of_a_stream_takes_no_more_memory_than_a_minute(js: Path, deployment: Deployment) -> None:
    producer = await Producer.create(deployment.ports[0])
    following = asyncio.create_task(run(js, "followed", url=events_url(deployment, producer)))
    for _ in range(8):  # 5 MB, as answers write in an hour
        await producer.write(*[LETTER] * 900)
    await producer.finish()
    said = await following
    expected = text_of(deployment, producer)
    assert len(expected.encode()) > 5_000_000
    assert said["text"] == expected
    assert said["ids"] == sorted(set(said["ids"]))
    assert said["ids"][-1] == producer.last_event_id
    assert said["longest"] < LIMIT + PIECE
    assert len(said["asked"]) > 15


async def test_a_backlog_in_one_piece_is_taken_whole(js: Path, deployment: Deployment) -> None:
    producer = await Producer.create(deployment.ports[0])
    for _ in range(2):
        await producer.write(*[LETTER] * 900)
    following = asyncio.create_task(run(js, "followed", url=events_url(deployment, producer), kind="AtOnce"))
    await producer.finish()
    said = await following
    assert said["text"] == text_of(deployment, producer)
    assert said["longest"] > 1_000_000
    assert len(said["asked"]) == 2


async def test_an_app_that_was_closed_goes_on_where_it_was(js: Path, deployment: Deployment) -> None:
    """The recipe of docs/CLIENTS.md, with React Native's part played by react-native.mjs."""
    code = recipe("React Native").replace('"@react-native-async-storage/async-storage"', '"./react-native.mjs"')
    (js / "react-native-app.js").write_text(code.replace('"react-native"', '"./react-native.mjs"'))
    sid = deployment.create("Grüße 🚲 [[tokens=30000 rate=100 ttft_ms=0]]")
    said = await run(js, "phone", url=f"{deployment.url}/v1/streams/{sid}/events")
    assert said["text"] == HTTP.get(f"{deployment.url}/v1/streams/{sid}/text").text
    assert said["before"][-1] < said["after"][0]
    assert said["kept"] >= said["before"][-1]
    assert said["heard"] == [0, 0], "nobody listens to the app's state any more"


async def test_an_event_beyond_the_limit_comes_whole(js: Path, deployment: Deployment) -> None:
    """To end within it would ask for it for ever."""
    producer = await Producer.create(deployment.ports[0])
    await producer.write("before", "x" * 600_000, "after")
    await producer.finish()
    said = await run(js, "followed", url=events_url(deployment, producer))
    assert said["text"] == text_of(deployment, producer)
    assert 600_000 < said["longest"] < 600_000 + LIMIT
    assert len(said["asked"]) <= 3


PAGE = """<!doctype html><script type="importmap">
{"imports": {"lastevent": "/src/index.js", "lastevent/native": "/src/native.js"}}</script><script type="module">
import * as trials from "/native-trials.mjs";
window.trials = trials;
</script>"""
AS_A_PHONE = """
window.fetch = Response.prototype.body = window.ReadableStream = undefined;
window.longest = 0;
const { get } = Object.getOwnPropertyDescriptor(XMLHttpRequest.prototype, "responseText");
Object.defineProperty(XMLHttpRequest.prototype, "responseText", { get() {
  const text = get.call(this);
  window.longest = Math.max(window.longest, text.length);
  return text;
} });
"""
"""No fetch, no streams, and a note of the most that an XMLHttpRequest has held."""


@pytest.mark.browser
async def test_over_the_xmlhttprequest_of_a_browser_it_is_as_exact_and_as_small(
    js: Path, deployment: Deployment, chromium: str
) -> None:
    from playwright.async_api import Page, Route, async_playwright

    async def serve(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        if name == "page.html":
            return await route.fulfill(body=PAGE, content_type="text/html")
        return await route.fulfill(path=js / ("node_modules/lastevent/src" if name.endswith(".js") else ".") / name)

    ended = await produce(deployment, events=14)
    producer = await Producer.create(deployment.ports[0])
    frame = ended.frame("10")
    cuts = [ended.body.index("🚲".encode(), frame.start) + 2, frame.stop - frame.start - 1, 0]
    async with cutting(deployment.ports[0]) as cutter, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
        try:

            async def page_at(origin: str) -> Page:
                page = await browser.new_page()
                await page.add_init_script(AS_A_PHONE)
                await page.route(lambda url: url.endswith(("page.html", ".js", ".mjs")), serve)
                await page.goto(f"{origin}/page.html")
                await page.wait_for_function("window.trials")
                return page

            there = await page_at(cutter.url("page"))
            url = cutter.url("cut", cuts) + f"{ended.path}?compact=0"
            cut = await there.evaluate(f"trials.followed({json.dumps(url)})")

            page = await page_at(deployment.url)
            url = events_url(deployment, producer)
            following = asyncio.create_task(page.evaluate(f"trials.followed({json.dumps(url)})"))
            for _ in range(8):
                await producer.write(*[LETTER] * 250)
                await page.wait_for_function(f"trials.at.id === {producer.last_event_id}")
            await producer.finish()
            long = await following
            longest = await page.evaluate("window.longest")
        finally:
            await browser.close()

    assert cut["ids"] == list(range(1, 15))
    assert len(cut["asked"]) == 4
    assert long["text"] == text_of(deployment, producer)
    assert long["ids"] == sorted(set(long["ids"]))
    assert len(long["asked"]) > 3
    assert longest < 2 * LIMIT, "it tells of what has come each 50 ms"


def _bare(text: str) -> str:
    """Without `retry:`, which is another for each viewer."""
    return "\n".join(line for line in text.split("\n") if not line.startswith("retry:"))
