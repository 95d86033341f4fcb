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
from schemathesis.core import NotSet
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
from tests.web.credentials import KEY, Credential
from tests.web.wire import Api

OPEN = ("/healthz", "/readyz")
ADMIN = Credential("the key of the settings", {"Authorization": f"Bearer {KEY}"})
SSE = ("/events", "/replay")
WHOLE = ("/v1/chat/completions", "/v1/messages")
SSE_S = 0.3
"""How long an answer that may never end is read."""

ANSWER_S = 10
CONFORMANCE = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


class Target:
    """A deployment, and streams of every state in it. `credentials`: none, where a server has no keys.

    What is sent follows from the case itself. `answers` are counted by their status, and what was `let_in` by its kind.
    """

    def __init__(self, deployment: Deployment, api: Api) -> None:
        self.url = deployment.url
        self.session = requests.Session()
        self.session.trust_env = False
        self.answers: Counter[int] = Counter()
        self.let_in: Counter[str] = Counter()
        self.credentials: Sequence[Credential] = ()
        bodies = [{"prompt": f"[[tokens={tokens} rate={rate}]]"} for tokens, rate in ((5000, 1), (9000, 20))]
        cancelled, self.generating = (api.post("/v1/streams", body).json()["id"] for body in bodies)
        api.post(f"/v1/streams/{cancelled}/cancel").raise_for_status()
        self.sids = [api.finished("a", "b", user_id="ann"), cancelled, api.start_external(), self.generating]

    def try_out(self, case: Any, chosen: int) -> None:
        self._aim(case, chosen)
        if not self.credentials:
            self._send(case)
        for credential in self._credentials_for(chosen):
            _present(case, credential)
            status = self._send(case)
            if status < 400 and case.path not in OPEN:
                assert credential.opens, f"{credential.kind} is let in"
                self.let_in[credential.kind] += 1

    def _aim(self, case: Any, chosen: int) -> None:
        """Send half of the calls to streams that there are."""
        if "sid" in (case.path_parameters or {}) and chosen % 2:
            case.path_parameters["sid"] = self.sids[chosen // 2 % len(self.sids)]
        if chosen % 3 == 0 and case.path.endswith(("/events", "/streams", "/regenerate")):
            case.headers["Accept"] = "text/event-stream"
        if chosen % 5 and case.method == "POST":
            case.headers.pop("Last-Event-ID", None)  # it would be all that is wrong with most calls
            if isinstance(case.body, dict) and isinstance(case.body.get("epoch"), int):
                case.body["epoch"] = 1

    def _credentials_for(self, chosen: int) -> Iterator[Credential]:
        """One that opens everything, for half of them: the others see little more than the door."""
        turns = range(CREDENTIALS if LONG or chosen % ONE_OF == 0 else 0) if self.credentials else ()
        for turn in turns:
            place = chosen // ONE_OF + turn
            yield self.credentials[place // 2 % len(self.credentials)] if place % 2 else ADMIN

    def _send(self, case: Any) -> int:
        answered = _answer(case, self)
        # 502 is how a completion and a message tell of a stream that failed, as the external one does after its lease.
        tells_of_failure = answered.status_code == 502 and case.path.startswith(WHOLE)
        case.validate_response(answered, checks=list(CONFORMANCE[1:] if tells_of_failure else CONFORMANCE))
        self.answers[answered.status_code] += 1
        return int(answered.status_code)


EXAMPLES = 40 if LONG else 7
CREDENTIALS = 3 if LONG else 1
ONE_OF = 1 if LONG else 4
"""Of so many cases one is sent with credentials, with so many of them each."""

LIMITS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


LIMITS_OF_DIALECTS = settings(LIMITS, max_examples=EXAMPLES if LONG else 2)
"""They are as many as all others; what their requests may hold is searched in tests/dialects, too."""


def explore(targets: Sequence[Target], subtests: pytest.Subtests) -> int:
    """Each operation of /openapi.json, as much of it as LIMITS allow, in a subtest of its name. Returns how many.

    All targets with the same cases: to make one takes as long as to send it.
    """

    def holds(case: Any) -> None:
        body = None if isinstance(case.body, NotSet) else case.body  # that one's repr is its address
        chosen = zlib.crc32(repr((case.method, case.query, case.headers, body, case.path_parameters)).encode())
        for target in targets:
            target.try_out(case, chosen)

    schema = schemathesis.openapi.from_dict(create_app(load_settings()).openapi())
    ours = schema.exclude(tag="Dialects"), LIMITS
    of_dialects = schema.include(tag="Dialects"), LIMITS_OF_DIALECTS
    operations = [
        found.ok()
        for part, limits in (ours, of_dialects)
        for found in get_all_tests(schema=part, test_func=holds, settings=limits, given_kwargs=None)
    ]
    for operation, test in operations:
        with subtests.test(operation.label):
            test()
    return len(operations)


def _present(case: Any, credential: Credential) -> None:
    """In place of those that the case has."""
    for held, names in ((case.headers, ("Authorization", "Cookie")), (case.query, ("access_token", "token"))):
        for name in names:
            held.pop(name, None)
    case.cookies.clear()
    case.headers.update(credential.headers)
    case.query.update(credential.query)


def _answer(case: Any, target: Target) -> Any:
    endless = case.headers.get("Accept") == "text/event-stream" or case.path.endswith(SSE)
    if endless:
        with suppress(requests.Timeout):  # the limit is the head's too, and a busy machine may be late with that
            return case.call(session=target.session, base_url=target.url, timeout=SSE_S)
    return case.call(session=target.session, base_url=target.url, timeout=ANSWER_S)
