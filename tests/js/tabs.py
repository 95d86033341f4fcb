"""Tabs of a real Chromium that are really hidden.

Playwright's own pages are always in front: it tells each that it has the focus. So the browser is started here, and
Playwright connected to it without its defaults. A page is hidden when its window is minimized, which the build
without windows knows, too.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from playwright.async_api import BrowserContext, CDPSession, Page, async_playwright

from tests.rig.chromium import ARGS
from tests.rig.long import LONG

START_LIMIT_S = LIMIT_S = 30

BACK_MS = 1000 if LONG else 2000  # five tests at once, on two cores
"""How soon a page has everything again, once it may."""


class Tab:
    def __init__(self, page: Page, session: CDPSession, window: int) -> None:
        self.page = page
        self._session = session
        self._window = window

    async def ask(self, expression: str, argument: object = None) -> Any:
        """What it is in the page, promises awaited."""
        return await asyncio.wait_for(self.page.evaluate(expression, argument), LIMIT_S)

    async def noted(self) -> dict[str, Any]:
        """What page.mjs has noted."""
        noted: dict[str, Any] = await self.ask("noted")
        return noted

    async def reached(self, cursor: int) -> None:
        await self.page.wait_for_function("() => window.reached")  # no load waits for a module that waits for another
        await self.ask(f"reached({cursor})")

    async def ms_after(self, sign: str, cursor: int) -> float:
        """How long after the browser's last sign of this kind the page had everything up to this cursor."""
        at: float = await self.ask(f"reached({cursor})")
        signs: list[float] = [each["at"] for each in (await self.noted())["signs"] if each["name"] == sign]
        return at - signs[-1]

    async def expect(self, text: str) -> None:
        """The whole answer, and on the way to it nothing that was taken back, and no error."""
        await self.ask("stream.finished.then(() => {})")
        assert await self.page.text_content("#text") == text
        assert await self.page.text_content("#state") == "done"
        noted = await self.noted()
        assert (noted["errors"], noted["takenBack"]) == ([], 0)
        assert noted["ids"] == sorted(set(noted["ids"]))

    async def hide(self) -> None:
        await self._be("minimized")

    async def show(self) -> None:
        await self._be("normal")
        await self.page.bring_to_front()

    async def freeze(self) -> None:
        """Only a hidden one can be."""
        await self._session.send("Page.setWebLifecycleState", {"state": "frozen"})

    async def resume(self) -> None:
        await self._session.send("Page.setWebLifecycleState", {"state": "active"})

    async def _be(self, state: str) -> None:
        bounds = {"windowId": self._window, "bounds": {"windowState": state}}
        await self._session.send("Browser.setWindowBounds", bounds)


class Browser:
    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.tabs: list[Tab] = []
        self._left: list[Tab] = []

    async def open(self, url: str, *, in_front: bool = True) -> Tab:
        tab = self._left.pop() if self._left else await self._new()
        self.tabs.append(tab)
        if in_front:
            await self.front(tab)
        else:
            await tab.hide()
        await tab.page.goto(url)
        return tab

    async def _new(self) -> Tab:
        page = await self.context.new_page()
        session = await self.context.new_cdp_session(page)
        window: dict[str, Any] = await session.send("Browser.getWindowForTarget")
        return Tab(page, session, window["windowId"])

    async def close(self, tab: Tab) -> None:
        self.tabs.remove(tab)
        await tab.page.close()

    async def leave_all(self) -> None:
        """For the next test: a new tab is a new process."""
        for tab in self.tabs:
            await tab.page.goto("about:blank")
            await tab.hide()
        self._left += self.tabs
        self.tabs.clear()

    async def front(self, tab: Tab) -> None:
        for other in self.tabs:
            if other is not tab:
                await other.hide()
        await tab.show()


@asynccontextmanager
async def browsing(chromium: str, profile: Path, *arguments: str) -> AsyncIterator[Browser]:
    process = await asyncio.create_subprocess_exec(
        *(chromium, *ARGS, "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=profile,
        start_new_session=True,  # Debian's program is a script, which stands before the browser
    )
    try:
        async with async_playwright() as playwright:
            address = await asyncio.wait_for(_address(process), START_LIMIT_S)
            connected = await playwright.chromium.connect_over_cdp(address, no_defaults=True)
            yield Browser(connected.contexts[0])
            await connected.close()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr
    async for line in process.stderr:
        if found := re.search(rb"DevTools listening on (ws://\S+)", line):
            return found[1].decode()
    raise AssertionError("the browser ended")
