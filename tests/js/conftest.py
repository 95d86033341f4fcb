"""The JavaScript package (clients/js) as its users have it: packed by npm, installed beside React, marked and the rest.

Programs that run in Node, Deno, Bun or a page stand in npm/, where their packages are.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.js.packages import installed
from tests.js.site import Site, site_of
from tests.js.story import Story
from tests.js.tabs import Browser, browsing
from tests.rig.deployment import Deployment
from tests.rig.long import LONG
from tests.viewers.producer import Producer

# Its install and its start cost half a minute: `make long` has it.
collect_ignore = [] if LONG else ["test_firefox.py"]


@pytest.fixture(scope="session")
def js(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    """The folder of tests/js/npm with all that it needs (tests/js/packages.py)."""
    return installed(tmp_path_factory, require)


@pytest.fixture(scope="module")
async def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    # Otherwise a hidden tab's timers run once a second: each test would wait for that.
    hurry = "--disable-background-timer-throttling"
    async with browsing(chromium, tmp_path_factory.mktemp("profile"), hurry) as browser:
        yield browser


@pytest.fixture
async def site(deployment: Deployment, browser: Browser) -> AsyncIterator[Site]:
    """With an origin of its own, and so with a storage of its own."""
    async with site_of(deployment.ports[0]) as site:
        yield site
        await browser.leave_all()


@pytest.fixture
async def story(site: Site) -> Story:
    return Story(site, await Producer.create(site.upstream_port))
