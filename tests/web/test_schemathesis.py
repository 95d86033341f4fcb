"""Whatever the server's own /openapi.json lets a client send: no 5xx, and only answers that the document describes.

Without keys, and with a credential of every kind. Deterministic and bounded. Most ids that are made up are no streams,
so half of the calls go to streams that there are; what those that run send by SSE goes on for ever, and is read for a
moment. The long form sends more than ten thousand requests (`pytest -s` shows how many, and how they were answered).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig.deployment import Deployment
from tests.rig.long import LONG
from tests.web.credentials import KEY, credentials_of, settings_in
from tests.web.wire import Api

if TYPE_CHECKING:
    from tests.web.exploration import Target

AT_LEAST = 10_000 if LONG else 1_000
"""Requests: a search that sends nothing finds nothing."""


@pytest.fixture
def targets(
    deployment: Deployment, own_deployment: Callable[..., Deployment], tmp_path: Path
) -> Iterator[list[Target]]:
    """Without keys, and with."""
    from tests.web.exploration import Target

    keyed = own_deployment(servers=1, workers=0, **settings_in(tmp_path))
    with closing(Api(deployment.url)) as anybody, closing(Api(keyed.url, KEY)) as owner:
        targets = [Target(deployment, anybody), Target(keyed, owner)]
        targets[1].credentials = credentials_of(keyed, owner, targets[1].sids)
        with targets[0].session, targets[1].session:
            yield targets
        for sid in targets[0].sids:
            anybody.post(f"/v1/streams/{sid}/cancel").raise_for_status()
    _require_unharmed(deployment)
    _require_unharmed(keyed)


def test_no_input_is_a_fault_of_the_server_and_every_answer_is_as_documented(
    targets: list[Target], subtests: pytest.Subtests
) -> None:
    from tests.web.exploration import explore  # every test process collects this file, and one runs it

    assert explore(targets, subtests) > 30
    for target in targets:
        print(f"{target.answers.total()} requests, by status: {dict(sorted(target.answers.items()))}")
    print(f"let in: {dict(targets[1].let_in)}")
    assert sum(target.answers.total() for target in targets) >= AT_LEAST
    assert len(targets[1].let_in) > 1, "the key that opens everything, and others"


def _require_unharmed(deployment: Deployment) -> None:
    for process in (*deployment.servers, *deployment.workers):
        assert process.is_alive()
        assert b"Traceback" not in process.output.read_bytes(), process.output.read_text()
