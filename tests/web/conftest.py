"""`api` and `other_api`: the two servers of the shared deployment."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.rig.deployment import Deployment
from tests.web.wire import Api


@pytest.fixture
def open_api() -> Iterator[Callable[..., Api]]:
    """open_api(url, key=None): an Api that the test need not close."""
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(closing(Api(*args, **named)))


@pytest.fixture
def api(deployment: Deployment, open_api: Callable[..., Api]) -> Api:
    return open_api(deployment.urls[0])


@pytest.fixture
def other_api(deployment: Deployment, open_api: Callable[..., Api]) -> Api:
    return open_api(deployment.urls[1])
