"""Tokens of a server with keys: told that they expire, cut, revoked and refused while a client follows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from broker.tenants.issuers import OURS
from broker.tenants.tokens import _signing_key
from tests.conftest import deployment_in
from tests.js.cutting import Cutter, cutting
from tests.js.following import Case, Outcome, follow
from tests.rig.deployment import HTTP, Deployment, until
from tests.tenants.forge import SECRET, claims, signed, tokens
from tests.viewers.viewer import connect

pytestmark = pytest.mark.npm

KEY = "of-at-least-thirty-two-characters"
PACE = 50
LEAST_WAIT_S = 5 / PACE
"""Half of what a server says to who is beyond a limit of its own."""
WORDS = ["one ", "zwölf ", "🚲 "]


class Stream:
    """An external one, of WORDS and an ending, written by the test as it goes on."""

    def __init__(self, deployment: Deployment) -> None:
        self._url = deployment.url
        self.record = self.post("/v1/streams", {"producer": "external"})
        self.sid: str = self.record["id"]
        self.path = f"/v1/streams/{self.sid}/events"
        self.say(*WORDS[:1])

    def post(self, path: str, body: object) -> Any:
        answer = HTTP.post(self._url + path, json=body, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def say(self, *words: str, ends: bool = False) -> None:
        events = [{"event": "text_delta", "data": {"text": word}} for word in words]
        ending = [{"event": "done", "data": {}}] if ends else []
        self.post(self.path, {"epoch": 1, "events": events + ending})

    def finish(self) -> None:
        self.say(*WORDS[1:], ends=True)

    def token(self, *, ends: tuple[float, float] | None = None, lasts_s: int = 600, **changed: Any) -> str:
        """As the server's own. `ends`: in how many seconds its connections do, from and to."""
        kid, key = _signing_key(SECRET)
        now = int(time.time())
        end = now + (600 if ends is None else int(ends[1]) + min(lasts_s // 10, 60))
        while True:
            told = claims(iss=OURS, tenant="default", **{"streams": [self.sid], **changed}, iat=end - lasts_s, exp=end)
            text = signed(key, "HS256", {**told, "tried": time.perf_counter_ns()}, kid=kid)
            if ends is None or ends[0] < tokens().verified(text).cuts_at - time.time() < ends[1]:
                return text


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {
        "LASTEVENT_API_KEYS": KEY,
        "LASTEVENT_TOKEN_SECRET": SECRET.decode(),
        "LASTEVENT_VIEWERS_PER_TOKEN": "1",
        "LASTEVENT_HEARTBEAT_S": "0.3",
    }
    with deployment_in(tmp_path_factory.mktemp("tokens"), servers=2, workers=0, **settings) as deployment:
        yield deployment


@pytest.fixture
def stream(deployment: Deployment) -> Stream:
    return Stream(deployment)


async def run(
    js: Path, cutter: Cutter, stream: Stream, *tokens: str, meanwhile: Callable[[], Any], path: str = ""
) -> Outcome:
    """A client with these tokens, and `meanwhile` once it follows."""
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        case = Case("client", cutter.url + (path or stream.path), tokens=tokens or None)
        following = group.create_task(follow(js, [case], pace=PACE))
        await until(lambda: cutter.answering(), "it follows")
        done = meanwhile()
        if done is not None:
            await done
        [outcome] = await following
    return outcome


def expect_all_of_it(outcome: Outcome) -> None:
    assert outcome.error is None
    assert outcome.answer["text"] == "".join(WORDS)
    assert outcome.ids[-1] == 5


def bearers(cutter: Cutter) -> list[str]:
    return [asked.headers["authorization"].removeprefix("Bearer ") for asked in cutter.asked["client"]]


async def test_a_token_that_is_about_to_expire_is_renewed_before_the_server_cuts(
    js: Path, deployment: Deployment, stream: Stream
) -> None:
    """Told half a minute before."""
    old, new = stream.token(ends=(31, 31.5)), stream.token()
    async with cutting(*deployment.ports) as cutter:

        async def until_renewed() -> None:
            await until(lambda: len(cutter.asked["client"]) == 2, "it has come with another one")
            stream.finish()

        outcome = await run(js, cutter, stream, old, new, meanwhile=until_renewed)
        assert bearers(cutter) == [old, new]
    assert outcome.whys == [None, "expiring"]
    expect_all_of_it(outcome)


async def test_a_token_that_the_server_has_cut_is_renewed_when_it_is_refused(
    js: Path, deployment: Deployment, stream: Stream
) -> None:
    """It lives for less than a minute: nobody is told before."""
    old, new = stream.token(ends=(4, 5), lasts_s=55), stream.token()
    async with cutting(*deployment.ports) as cutter:

        async def until_renewed() -> None:
            await until(lambda: len(cutter.asked["client"]) == 3, "it has come with another one")
            stream.finish()

        outcome = await run(js, cutter, stream, old, new, meanwhile=until_renewed)
        assert bearers(cutter) == [old, old, new]
    assert outcome.whys == [None, "refused"]
    expect_all_of_it(outcome)


async def test_a_revoked_token_is_renewed_and_nothing_comes_twice(
    js: Path, deployment: Deployment, stream: Stream
) -> None:
    old, new = stream.token(jti=f"of {stream.sid}"), stream.token()
    async with cutting(*deployment.ports) as cutter:

        async def revoke() -> None:
            stream.post("/v1/tokens/revoke", {"jti": f"of {stream.sid}"})
            await until(lambda: bearers(cutter)[-1] == new, "it has come with another one")
            stream.finish()

        outcome = await run(js, cutter, stream, old, new, meanwhile=revoke)
        assert bearers(cutter)[-2:] == [old, new]
    assert outcome.whys == [None, "refused"]
    expect_all_of_it(outcome)
    assert outcome.ids == sorted(set(outcome.ids))


async def test_who_is_refused_with_two_tokens_in_a_row_or_has_no_other_fails_for_good(
    js: Path, deployment: Deployment, stream: Stream
) -> None:
    old, older = stream.token(ends=(-20, -10)), stream.token(ends=(-40, -30))
    async with cutting(*deployment.ports) as cutter:
        url = cutter.url + stream.path
        cases = [Case("renews", url, tokens=[old, older]), Case("in-the-address", f"{url}?access_token={old}")]
        outcomes = await follow(js, cases, pace=PACE)
        asked = {case: len(requests) for case, requests in cutter.asked.items()}
    assert asked == {"renews": 2, "in-the-address": 1}
    assert {outcome.cases[0]: outcome.whys for outcome in outcomes} == {
        "renews": [None, "refused"],
        "in-the-address": [],
    }
    for outcome in outcomes:
        assert outcome.error == {"name": "StreamError", "code": "token_expired", "status": 401}
    stream.finish()


async def test_a_token_of_another_stream_fails_at_once(js: Path, deployment: Deployment, stream: Stream) -> None:
    other = stream.token(streams=["0" * 32])
    async with cutting(*deployment.ports) as cutter:
        [outcome] = await follow(js, [Case("client", cutter.url + stream.path, tokens=[other, stream.token()])])
        assert bearers(cutter) == [other]
    assert outcome.error == {"name": "StreamError", "code": "stream_not_found", "status": 404}
    assert outcome.whys == [None]
    stream.finish()


async def test_the_address_that_a_back_end_gives_away_is_followed_as_it_is(
    js: Path, deployment: Deployment, stream: Stream
) -> None:
    async with cutting(*deployment.ports) as cutter:

        def finish() -> None:
            cutter.reset_all()
            stream.finish()

        outcome = await run(js, cutter, stream, meanwhile=finish, path=stream.record["events_url"])
        assert [asked.path.count("access_token=") for asked in cutter.asked["client"]] == [1, 1]
    expect_all_of_it(outcome)


async def test_who_is_beyond_a_limit_waits_as_long_as_it_is_told_to(
    js: Path, deployment: Deployment, stream: Stream
) -> None:
    """Somebody else has the only place that the token has. The server answers 200, `retry:` and a cut."""
    here = deployment.ports[0]
    token = stream.token()
    async with cutting(here) as cutter, connect(here) as holder, asyncio.timeout(60), asyncio.TaskGroup() as group:
        holder.send("GET", stream.path, {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"})
        assert (await holder.read_head()).status == 200
        following = group.create_task(follow(js, [Case("client", cutter.url + stream.path, tokens=[token])], pace=PACE))
        await until(lambda: len(cutter.asked["client"]) == 4, "it has been sent away")
        stream.finish()
        await holder.close()
        [outcome] = await following
    expect_all_of_it(outcome)
    asked = cutter.asked["client"]
    assert all(after.at - before.at > 0.9 * LEAST_WAIT_S for before, after in pairwise(asked))
    assert outcome.whys == [None]
