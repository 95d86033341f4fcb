"""useChat in a page of a real browser, behind the endpoint that docs/DIALECTS.md shows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.clients.dialects.ai_sdk.test_chat import HELD, SAID, newest
from tests.js.bundles import bundled
from tests.js.cutting import Cutter, cutting
from tests.js.tabs import Tab, browsing
from tests.rig.deployment import Deployment, until

pytestmark = pytest.mark.npm

DOCUMENT = Path(__file__).parents[4] / "docs" / "DIALECTS.md"
LIMIT_S = 30
CHAT = "of the page"


def shown(first_line: str) -> str:
    """The block of code of docs/DIALECTS.md that begins so."""
    [block] = [
        one for one in re.findall(r"^```\w+\n(.*?)^```$", DOCUMENT.read_text(), re.S | re.M) if first_line in one
    ]
    return block


@asynccontextmanager
async def site(packages: Path, folder: Path, server: str) -> AsyncIterator[Cutter]:
    """Behind what cuts it."""
    for file in ("site.mjs", "page.jsx", "package.json"):
        shutil.copy(packages / file, folder)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "endpoint.mjs").write_text(shown("// app/api/chat/lastevent.js"))
    (folder / "chat.jsx").write_text(shown("// chat.jsx"))
    (folder / "page.js").write_bytes(bundled(folder, "page.jsx"))
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "LASTEVENT_URL": server, "LASTEVENT_API_KEY": "k" * 32}
    process = await asyncio.create_subprocess_exec(
        "node", "site.mjs", cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        port = int(await asyncio.wait_for(process.stdout.readline(), LIMIT_S))
        async with cutting(port) as cutter:
            yield cutter
    finally:
        process.kill()
        await process.wait()


async def shows(tab: Tab, answer: str, status: str) -> None:
    async def is_there() -> bool:
        said = await tab.page.eval_on_selector_all(".assistant", "them => them.map(each => each.textContent)")
        return bool(said == [answer] and await tab.page.text_content("i") == status)

    await until(is_there, f"it shows {answer!r}, {status}", LIMIT_S)


async def test_a_page_is_cut_and_looked_at_again_and_reloaded_and_shows_the_answer_once(
    deployment: Deployment, packages: Path, tmp_path: Path, chromium: str
) -> None:
    (profile := tmp_path / "profile").mkdir()
    async with (
        cutting(*deployment.ports) as servers,
        site(packages, tmp_path, servers.url) as cutter,
        browsing(chromium, profile) as browser,
    ):
        tab = await browser.open(f"{cutter.url}/")
        await tab.page.fill("input", HELD)
        await tab.page.click("text=Send")
        await shows(tab, SAID, "streaming")
        await tab.hide()
        cutter.reset_all()
        await shows(tab, SAID, "error")
        await tab.show()
        await shows(tab, SAID, "streaming")
        await tab.page.reload()
        await shows(tab, SAID, "streaming")
        await tab.page.click("text=Stop")
        await shows(tab, SAID, "ready")
        assert newest(deployment, CHAT.replace(" ", "%20"))["state"] == "cancelled"
        asked = [asked.path for asked in servers.asked[""]]
        assert asked.count("/v1/ai-sdk/chat/of%20the%20page/stream") == 3
