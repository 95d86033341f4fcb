"""Whatever the server's own /openapi.json lets a client send: no 5xx, and only answers that the document describes.

Deterministic and bounded. Most ids that are made up are no streams, so half of the calls go to streams that there
are; what those that run send by SSE goes on for ever, and is read for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.rig.deployment import Deployment
from tests.web.wire import Api

if TYPE_CHECKING:
    from tests.web.exploration import Target


@pytest.fixture(scope="module")
def target(deployment: Deployment) -> Iterator[Target]:
    from tests.web.exploration import Target

    with closing(Api(deployment.url)) as api:
        target = Target(deployment, api)
        with target.session:
            yield target
        for sid in target.sids:
            api.post(f"/v1/streams/{sid}/cancel").raise_for_status()
    for process in (*deployment.servers, *deployment.workers):
        assert process.is_alive()
        assert b"Traceback" not in process.output.read_bytes(), process.output.read_text()


def test_no_input_is_a_fault_of_the_server_and_every_answer_is_as_documented(
    target: Target, subtests: pytest.Subtests
) -> None:
    from tests.web.exploration import explore  # every test process collects this file, and one runs it

    assert explore(target, subtests) > 10
