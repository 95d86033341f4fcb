"""What test_schemathesis.py does. Apart from it, since importing schemathesis takes 2 s of CPU."""

import zlib
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
from tests.web.wire import Api

SSE = ("/events", "/replay")
SSE_S = 0.3
"""How long an answer that may never end is read."""

ANSWER_S = 10
CONFORMANCE = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


class Target:
    """The deployment, and streams of every state in it."""

    def __init__(self, deployment: Deployment, api: Api) -> None:
        self.url = deployment.url
        self.session = requests.Session()
        self.session.trust_env = False
        cancelled = deployment.create("[[tokens=5000 rate=1]]")
        api.post(f"/v1/streams/{cancelled}/cancel").raise_for_status()
        self.generating = deployment.create("[[tokens=9000 rate=20]]")
        self.sids = [api.finished("a", "b"), cancelled, api.start_external(), self.generating]

    def aim(self, case: Any) -> None:
        """Send half of the calls to streams that there are; which of them follows from the case itself."""
        chosen = zlib.crc32(repr((case.method, case.query, case.headers, case.body, case.path_parameters)).encode())
        if "sid" in (case.path_parameters or {}) and chosen % 2:
            case.path_parameters["sid"] = self.sids[chosen // 2 % len(self.sids)]
        if chosen % 3 == 0 and case.path.endswith(("/events", "/streams", "/regenerate")):
            case.headers["Accept"] = "text/event-stream"
        if chosen % 5 and case.method == "POST":
            case.headers.pop("Last-Event-ID", None)  # it would be all that is wrong with most calls
            if isinstance(case.body, dict) and isinstance(case.body.get("epoch"), int):
                case.body["epoch"] = 1


EXAMPLES = 40 if LONG else 10
LIMITS = settings(
    max_examples=40 if LONG else 10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def explore(target: Target, subtests: pytest.Subtests) -> int:
    """Each operation of /openapi.json, as much of it as LIMITS allow, in a subtest of its name. Returns how many."""

    def holds(case: Any) -> None:
        target.aim(case)
        case.validate_response(answer(case, target), checks=list(CONFORMANCE))

    schema = schemathesis.openapi.from_dict(create_app(load_settings()).openapi())
    operations = [
        found.ok() for found in get_all_tests(schema=schema, test_func=holds, settings=LIMITS, given_kwargs=None)
    ]
    for operation, test in operations:
        with subtests.test(operation.label):
            test()
    return len(operations)


def answer(case: Any, target: Target) -> Any:
    endless = case.headers.get("Accept") == "text/event-stream" or case.path.endswith(SSE)
    if endless:
        with suppress(requests.Timeout):  # the limit is the head's too, and a busy machine may be late with that
            return case.call(session=target.session, base_url=target.url, timeout=SSE_S)
    return case.call(session=target.session, base_url=target.url, timeout=ANSWER_S)
