"""What test_schemathesis.py does. Apart from it, since importing schemathesis takes 2 s of CPU."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.pytest.lazy import get_all_tests  # its plugin takes a process 2 s of CPU, and wants an older pytest
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from broker.settings import load_settings
from broker.web.app import create_app
from tests.rig.deployment import Deployment
from tests.rig.long import LONG
from tests.web.credentials import Credential
from tests.web.wire import Api

SSE = ("/events", "/replay")
SSE_S = 0.3
"""How long an answer that may never end is read."""

ANSWER_S = 10
CONFORMANCE = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


class Target:
    """The deployment, and streams of every state in it. `answers` are counted by their status."""

    def __init__(self, deployment: Deployment, api: Api) -> None:
        self.url = deployment.url
        self.session = requests.Session()
        self.session.trust_env = False
        self.answers: Counter[int] = Counter()
        self.opened: Counter[str] = Counter()
        self.credentials: Sequence[Credential] = ()
        bodies = [{"prompt": f"[[tokens={tokens} rate={rate}]]"} for tokens, rate in ((5000, 1), (9000, 20))]
        cancelled, self.generating = (api.post("/v1/streams", body).json()["id"] for body in bodies)
        api.post(f"/v1/streams/{cancelled}/cancel").raise_for_status()
        self.sids = [api.finished("a", "b", user_id="ann"), cancelled, api.start_external(), self.generating]

    def aim(self, case: Any) -> None:
        """Send half of the calls to streams that there are; which of them follows from the case itself."""
        chosen = number_of(case)
        if "sid" in (case.path_parameters or {}) and chosen % 2:
            case.path_parameters["sid"] = self.sids[chosen // 2 % len(self.sids)]
        if chosen % 3 == 0 and case.path.endswith(("/events", "/streams", "/regenerate")):
            case.headers["Accept"] = "text/event-stream"
        if chosen % 5 and case.method == "POST":
            case.headers.pop("Last-Event-ID", None)  # it would be all that is wrong with most calls
            if isinstance(case.body, dict) and isinstance(case.body.get("epoch"), int):
                case.body["epoch"] = 1

    def credentials_for(self, case: Any) -> Iterator[Credential | None]:
        """Those that this case is sent with, which follow from the case itself. None: what it has is left."""
        if not self.credentials:
            yield None
            return
        chosen = number_of(case)
        for turn in range(CREDENTIALS):
            yield self.credentials[(chosen // 7 + turn * 17) % len(self.credentials)]


EXAMPLES = 40 if LONG else 10
CREDENTIALS = 6 if LONG else 1
"""With so many each case is sent."""

LIMITS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def explore(target: Target, subtests: pytest.Subtests) -> int:
    """Each operation of /openapi.json, as much of it as LIMITS allow, in a subtest of its name. Returns how many."""

    def holds(case: Any) -> None:
        credentials = list(target.credentials_for(case))
        target.aim(case)
        for credential in credentials:
            if credential is not None:
                present(case, credential)
            answered = answer(case, target)
            case.validate_response(answered, checks=list(CONFORMANCE))
            target.answers[answered.status_code] += 1
            if credential is not None and answered.status_code not in (401, 403):
                target.opened[credential.kind] += 1

    schema = schemathesis.openapi.from_dict(create_app(load_settings()).openapi())
    operations = [
        found.ok() for found in get_all_tests(schema=schema, test_func=holds, settings=LIMITS, given_kwargs=None)
    ]
    for operation, test in operations:
        with subtests.test(operation.label):
            test()
    return len(operations)


def number_of(case: Any) -> int:
    return zlib.crc32(repr((case.method, case.query, case.headers, case.body, case.path_parameters)).encode())


def present(case: Any, credential: Credential) -> None:
    """In place of those that the case has."""
    for held, names in ((case.headers, ("Authorization", "Cookie")), (case.query, ("access_token", "token"))):
        for name in names:
            held.pop(name, None)
    case.cookies.clear()
    case.headers.update(credential.headers)
    case.query.update(credential.query)


def answer(case: Any, target: Target) -> Any:
    endless = case.headers.get("Accept") == "text/event-stream" or case.path.endswith(SSE)
    if endless:
        with suppress(requests.Timeout):  # the limit is the head's too, and a busy machine may be late with that
            return case.call(session=target.session, base_url=target.url, timeout=SSE_S)
    return case.call(session=target.session, base_url=target.url, timeout=ANSWER_S)
