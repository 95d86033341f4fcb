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

AT_LEAST = 5_000 if LONG else 300
"""Requests, of each of the two: a search that sends nothing finds nothing."""


@pytest.fixture(scope="module")
def target(deployment: Deployment) -> Iterator[Target]:
    from tests.web.exploration import Target

    with closing(Api(deployment.url)) as api:
        target = Target(deployment, api)
        with target.session:
            yield target
        for sid in target.sids:
            api.post(f"/v1/streams/{sid}/cancel").raise_for_status()
    _require_unharmed(deployment)


def test_no_input_is_a_fault_of_the_server_and_every_answer_is_as_documented(
    target: Target, subtests: pytest.Subtests
) -> None:
    _explore(target, subtests)


def test_nor_is_one_with_whatever_credential(
    own_deployment: Callable[..., Deployment], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    from tests.web.exploration import Target

    deployment = own_deployment(servers=1, workers=0, **settings_in(tmp_path))
    with closing(Api(deployment.url, KEY)) as api:
        target = Target(deployment, api)
        target.credentials = credentials_of(deployment, api, target.sids)
        with target.session:
            _explore(target, subtests)
    good = {credential.kind for credential in target.credentials if credential.opens}
    opened = set(target.opened)
    print(sorted(good - opened), opened - good)
    _require_unharmed(deployment)


def _explore(target: Target, subtests: pytest.Subtests) -> None:
    from tests.web.exploration import explore  # every test process collects this file, and one runs it

    assert explore(target, subtests) > 30
    print(f"{target.answers.total()} requests, of each status: {dict(sorted(target.answers.items()))}")
    assert target.answers.total() >= AT_LEAST


def _require_unharmed(deployment: Deployment) -> None:
    for process in (*deployment.servers, *deployment.workers):
        assert process.is_alive()
        assert b"Traceback" not in process.output.read_bytes(), process.output.read_text()
