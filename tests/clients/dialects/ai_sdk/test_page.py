"""Behind the endpoints that docs/DIALECTS.md shows: its page with useChat in a real browser, and a run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.dialects.ai_sdk.recorded import read
from tests.clients.dialects.ai_sdk.test_chat import HELD, SAID, newest
from tests.clients.dialects.node import clients_of
from tests.js.bundles import bundled
from tests.js.cutting import Cut, Cutter, cutting
from tests.js.tabs import Tab, browsing
from tests.rig.deployment import Deployment, until

pytestmark = pytest.mark.npm

DOCUMENT = Path(__file__).parents[4] / "docs" / "DIALECTS.md"
LIMIT_S = 30
CHAT = "of the page"
FILES = {
    "chats.mjs": "// app/api/chat/lastevent.js",
    "chat.jsx": "// chat.jsx",
    "runs.mjs": "// app/api/workflow/lastevent.js",
}
"""File → how its block in the document begins."""


def shown(first_words: str) -> str:
    """The block of code that begins so, of the section of docs/DIALECTS.md."""
    section = DOCUMENT.read_text().partition("\n## AI SDK\n")[2].partition("\n## ")[0]
    [block] = re.findall(rf"^```\w+\n({re.escape(first_words)}.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return str(block)


class Front(NamedTuple):
    """What cuts pages off from the site, and the site off from the servers, which it asks in turn."""

    pages: Cutter
    servers: Cutter


@pytest.fixture(scope="module")
async def front(
    deployment: Deployment, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Front]:
    folder = tmp_path_factory.mktemp("site")
    for file in ("site.mjs", "page.jsx", "package.json"):
        shutil.copy(packages / file, folder)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    for file, first_words in FILES.items():
        (folder / file).write_text(shown(first_words))
    (folder / "page.js").write_bytes(bundled(folder, "page.jsx"))
    async with cutting(*deployment.ports) as servers:
        address = {"LASTEVENT_URL": servers.url, "LASTEVENT_API_KEY": "k" * 32}
        process = await asyncio.create_subprocess_exec(
            *("node", "site.mjs"),
            cwd=folder,
            env={**os.environ, "NO_PROXY": "127.0.0.1", **address},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout
            port = int(await asyncio.wait_for(process.stdout.readline(), LIMIT_S))
            async with cutting(port) as pages:
                yield Front(pages, servers)
        finally:
            process.kill()
            await process.wait()


async def shows(tab: Tab, answer: str, status: str) -> None:
    async def is_there() -> bool:
        said = await tab.page.eval_on_selector_all(".assistant", "them => them.map(each => each.textContent)")
        return bool(said == [answer] and await tab.page.text_content("i") == status)

    await until(is_there, f"it shows {answer!r}, {status}", LIMIT_S)


async def test_a_page_is_cut_and_looked_at_again_and_reloaded_and_shows_the_answer_once(
    front: Front, deployment: Deployment, tmp_path: Path, chromium: str
) -> None:
    async with browsing(chromium, tmp_path) as browser:
        tab = await browser.open(f"{front.pages.url}/")
        await tab.page.fill("input", HELD)
        await tab.page.click("text=Send")
        await shows(tab, SAID, "streaming")
        await tab.hide()
        front.pages.reset_all()
        await shows(tab, SAID, "error")
        await tab.show()
        await shows(tab, SAID, "streaming")
        await tab.page.reload()
        await shows(tab, SAID, "streaming")
        await tab.page.click("text=Stop")
        await shows(tab, SAID, "ready")
        assert newest(deployment, CHAT.replace(" ", "%20"))["state"] == "cancelled"
        asked = [asked.path for asked in front.servers.asked[""]]
        assert asked.count("/v1/ai-sdk/chat/of%20the%20page/stream") == 3


async def test_a_run_behind_an_endpoint_is_cut_and_goes_on(
    front: Front, deployment: Deployment, packages: Path
) -> None:
    async with clients_of(packages, front.pages) as clients:
        text = "[[tokens=12 rate=0 ttft_ms=0]]"
        case = clients.begin("workflow", "/api/workflow", [Cut(150), Cut(150)], chatId="of a run", text=text)
        got = await clients.result(case)
        sid = clients.requests(case)[1].split("/")[3]
        assert got["chunks"] == read(deployment, sid).chunks
        assert len(clients.requests(case)) == 3
        assert newest(deployment, "of%20a%20run")["id"] == sid
