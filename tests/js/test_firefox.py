"""The client in Debian's Firefox, which no driver of ours speaks to: the page tells what it does (npm/firefox.mjs)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.js.site import Site, site_of
from tests.js.story import Story
from tests.rig.deployment import Deployment, until
from tests.viewers.producer import Producer

pytestmark = pytest.mark.browser

RELOADS = 5
PAINTED_MS = 50
PREFERENCES = {
    "dom.disable_open_during_load": "false",  # the page opens a tab
    # No questions and no downloads of its own.
    "datareporting.policy.dataSubmissionEnabled": "false",
    "network.captive-portal-service.enabled": "false",
    "network.connectivity-service.enabled": "false",
    "services.settings.server": '"data:,"',
    "dom.ipc.processPrelaunch.enabled": "false",  # processes for tabs that nobody opens
}


@asynccontextmanager
async def firefox(program: str, profile: Path, url: str) -> AsyncIterator[None]:
    lines = [f'user_pref("{name}", {value});\n' for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    process = await asyncio.create_subprocess_exec(
        *(program, "--headless", "--no-remote", "--profile", str(profile), url),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
        cwd=profile,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def told(site: Site, what: str) -> list[dict[str, Any]]:
    return [report for report in site.reports if report["what"] == what]


async def test_firefox_follows_through_reloads_a_cut_and_another_tab_that_leads_for_a_while(
    deployment: Deployment, tmp_path: Path, require: Callable[[str, str], str]
) -> None:
    program = require("firefox-esr", "firefox-esr")
    async with site_of(deployment.ports[0]) as site:
        story = Story(site, await Producer.create(site.upstream_port))
        page = site.page(url=story.url, key="chat", share=True, iterate=True).replace("page.html", "firefox.html")
        async with firefox(program, tmp_path, page):
            async with story.going_on():
                await until(lambda: told(site, "cut me"), "it has been loaded again, and follows")
                site.cut()
                await until(lambda: told(site, "second"), "another tab has been opened, and follows")
                assert site.following == 1
                await until(lambda: told(site, "in front"), "that one has been closed, and this one follows")
                assert site.following == 1
            text = await story.end()
            await until(lambda: told(site, "finished"), "it has all of it")

    _, *loaded = told(site, "loaded")
    assert len(loaded) == RELOADS
    for load in loaded:
        assert load["kept"]
        assert load["painted"] == load["kept"]
        assert load["requests"] == 0
        assert load["ms"] < PAINTED_MS
    [finished] = told(site, "finished")
    assert finished["text"] == text
    assert (finished["takenBack"], finished["errors"]) == (0, [])
    assert finished["ids"] == sorted(set(finished["ids"]))
