"""The lines of docs/DIALECTS.md on AG-UI: a page, and the endpoint that it asks, which has the key."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.dialects.node import clients_of
from tests.js.cutting import Cut, cutting
from tests.rig.deployment import Deployment

pytestmark = pytest.mark.npm

DOCS = Path(__file__).parents[4] / "docs" / "DIALECTS.md"
KEY = "correct-horse-battery-staple-and-more"
SAID = "This is a stand-in and no model:"


def _files_of_the_section(folder: Path) -> None:
    section = DOCS.read_text().partition("## AG-UI\n")[2].partition("\n## ")[0]
    for name, code in re.findall(r"```js\n// (\w+\.js)\n(.*?)```", section, re.S):
        (folder / name).write_text(code)


async def test_a_page_asks_an_endpoint_that_has_the_key(
    own_deployment: Callable[..., Deployment], packages: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "node_modules").symlink_to(packages / "node_modules")
    shutil.copy(packages / "endpoint-host.mjs", folder)
    _files_of_the_section(folder)
    deployment = own_deployment(servers=2, workers=1, LASTEVENT_API_KEYS=KEY)
    async with cutting(*deployment.ports) as cutter:
        environment = {**os.environ, "LASTEVENT_URL": cutter.url, "LASTEVENT_API_KEY": KEY}
        host = await asyncio.create_subprocess_exec(
            *("node", "endpoint-host.mjs"), cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert host.stdout
            port = int(await host.stdout.readline())
            page = await asyncio.create_subprocess_exec(
                *("node", "--input-type=module", "--eval"),
                'import { ask } from "./page.js"; console.log(await ask(...process.argv.slice(1)));',
                *(f"http://127.0.0.1:{port}/api/agent", "[[tokens=7 rate=0 ttft_ms=0]]"),
                cwd=folder,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await page.communicate()
            assert said.decode() == f"{SAID}\n"
            cutter.cuts[""] = [Cut(10**9), Cut(400), Cut(300)]
            async with cutting(port) as nothing, clients_of(packages, nothing) as clients:
                case = clients.begin("tanstack", "/api/agent", threadId="t", text="[[tokens=40 rate=0 ttft_ms=0]]")
                got = await clients.result(case)
                assert len(clients.requests(case)) == 3
            assert got["seen"]["errors"] == []
            assert got["messages"][-1]["parts"][0]["content"].startswith(SAID)
        finally:
            host.kill()
            await host.wait()
