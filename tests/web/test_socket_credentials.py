"""Who may say what on a socket: where its credential was, a newer one, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import deployment_in
from tests.rig.deployment import Deployment, until
from tests.rig.long import LONG
from tests.web.speaker import code_of, speaker
from tests.web.wire import Api

pytestmark = pytest.mark.processes

KEY = "correct-horse-battery-staple-and-more"
PAGE = "https://app.example.com"
EXTERNAL = {"producer": "external"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_CORS_ORIGINS": PAGE}
    with deployment_in(tmp_path_factory.mktemp("keyed"), servers=1, workers=0, **settings) as found:
        yield found


@pytest.fixture
def owner(keyed: Deployment, open_api: Callable[..., Api]) -> Api:
    return open_api(keyed.url, KEY)


def mint(owner: Api, **body: Any) -> str:
    answer = owner.post("/v1/tokens", {"sub": "ann", "own": True, **body})
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


async def test_auth_comes_with_the_first_follow_and_before_it(keyed: Deployment, owner: Api) -> None:
    sid = owner.start_external(user_id="ann")
    owner.append(sid, ("done", {}))
    async with speaker(keyed.url, Origin=PAGE) as talks:
        await talks.say(
            {"op": "auth", "ref": "who", "token": mint(owner)}, {"op": "follow", "ref": "what", "stream": sid}
        )
        assert await talks.over(sid) == "done"
        assert [message.get("ref") for message in talks.heard[1:3]] == ["who", "what"]


async def test_nothing_is_done_without_a_credential(keyed: Deployment) -> None:
    async with speaker(keyed.url) as talks:
        assert code_of(await talks.ask("ping")) == "unauthorized"
        assert await talks.closed() == (4401, "unauthorized")


async def test_a_bad_token_is_refused_and_closed(keyed: Deployment, owner: Api) -> None:
    for token, code in (("nonsense", "unauthorized"), (mint(owner)[:-4] + "AAAA", "invalid_token")):
        async with speaker(keyed.url) as talks:
            assert code_of(await talks.ask("auth", token=token)) == code
            assert await talks.closed() == (4401, code)


async def test_a_key_opens_a_program_s_socket_and_no_page_s(keyed: Deployment) -> None:
    async with speaker(keyed.url) as talks:
        assert (await talks.ask("auth", token=KEY))["event"] == "ok"
        assert (await talks.ask("start", **EXTERNAL))["event"] == "ok"
    async with speaker(keyed.url, Origin=PAGE) as talks:
        assert code_of(await talks.ask("auth", token=KEY)) == "unauthorized"
        assert (await talks.closed())[0] == 4401


async def test_who_says_nothing_for_ten_seconds_is_closed(keyed: Deployment) -> None:
    async with speaker(keyed.url) as talks:
        assert (await talks.closed())[0] == 4408


@pytest.mark.parametrize(
    ("scope", "opened"),
    [("streams:read", {"follow"}), ("streams:cancel", {"cancel"}), ("streams:input", {"input", "interrupt"})],
)
async def test_each_op_takes_the_scope_of_its_route(
    keyed: Deployment, owner: Api, scope: str, opened: set[str]
) -> None:
    sid = owner.start_external(user_id="ann")
    ops: dict[str, dict[str, Any]] = {
        "follow": {"stream": sid},
        "input": {"stream": sid, "text": "x"},
        "interrupt": {"stream": sid, "text": "x"},
        "cancel": {"stream": sid},
        "start": EXTERNAL,
    }
    async with speaker(keyed.url, mint(owner, scope=scope)) as talks:
        for op, fields in ops.items():
            answer = await talks.ask(op, **fields)
            if op in opened:
                assert answer["event"] == "ok" or code_of(answer) == "invalid_request"  # no agent takes it
            else:
                assert code_of(answer) == "insufficient_scope"
        for op in ("ping", "unfollow"):
            assert (await talks.ask(op, **({} if op == "ping" else {"stream": sid})))["event"] == "ok"


async def test_what_is_anothers_is_not_there(keyed: Deployment, owner: Api) -> None:
    theirs = owner.start_external(user_id="bob")
    async with speaker(keyed.url, mint(owner, scope="streams:read streams:cancel")) as talks:
        for op in ("follow", "cancel"):
            mine_or_none = [await talks.ask(op, stream=sid) for sid in (theirs, "nothing-there")]
            assert [code_of(answer) for answer in mine_or_none] == ["stream_not_found"] * 2


async def test_a_newer_token_of_the_same_person_takes_over(keyed: Deployment, owner: Api) -> None:
    kept, lost = owner.start_external(user_id="ann"), owner.start_external(user_id="ann")
    async with speaker(keyed.url, mint(owner, ttl_s=8)) as talks:
        for sid in (kept, lost):
            await talks.ask("follow", stream=sid)
        assert code_of(await talks.ask("auth", token=mint(owner, sub="bob"))) == "forbidden"
        assert (await talks.ask("auth", token=mint(owner, own=None, streams=[kept], ttl_s=3600)))["event"] == "ok"
        [refused] = [message for message in talks.heard if message["event"] == "refused" and "ref" not in message]
        assert (refused["stream"], code_of(refused)) == (lost, "stream_not_found")
        await asyncio.to_thread(owner.append, kept, ("done", {}))
        assert await talks.over(kept) == "done"
        owner.append(lost, ("done", {}))
        await talks.ask("ping")
        assert talks.ids(lost)[-1:] != [owner.get(f"/v1/streams/{lost}").json()["last_event_id"]]


async def test_a_follow_that_a_newer_token_overtakes_is_answered_once(keyed: Deployment, owner: Api) -> None:
    one, other = owner.start_external(user_id="ann"), owner.start_external(user_id="ann")
    wide, narrow = mint(owner, own=None, streams=[one, other]), mint(owner, own=None, streams=[one])
    for _ in range(10):  # it may be looked up in time, or not
        async with asyncio.timeout(30), speaker(keyed.url, wide) as talks:
            follow = {"op": "follow", "ref": "a", "stream": other}
            await asyncio.gather(talks.say(follow), talks.say({"op": "auth", "ref": "b", "token": narrow}))
            await talks.until(lambda message: message.get("ref") == "b")
            if not any(message.get("ref") == "a" for message in talks.heard):
                await talks.until(lambda message: message.get("ref") == "a")
            if not any(message["event"] == "refused" for message in talks.heard):
                await talks.until(lambda message: message["event"] == "refused")
            await talks.ask("ping")
            answers = [message["event"] for message in talks.heard if message.get("ref") == "a"]
            assert answers in (["ok"], ["refused"])
            ended = [message for message in talks.heard if message["event"] == "refused" and message["stream"] == other]
            assert len(ended) == 1


async def test_a_session_that_a_newer_token_overtakes_is_answered_once(keyed: Deployment, owner: Api) -> None:
    wide, narrow = mint(owner, own=None, sessions=["mine"]), mint(owner, own=None, sessions=["other"])
    for _ in range(5):
        async with asyncio.timeout(30), speaker(keyed.url, wide) as talks:
            follow = {"op": "follow", "ref": "a", "session": "mine"}
            await asyncio.gather(talks.say(follow), talks.say({"op": "auth", "ref": "b", "token": narrow}))
            for ref in ("a", "b"):
                if not any(message.get("ref") == ref for message in talks.heard):
                    await talks.until(lambda message, ref=ref: message.get("ref") == ref)  # type: ignore[misc]
            await talks.ask("ping")
            answers = [message["event"] for message in talks.heard if message.get("ref") == "a"]
            assert answers in (["ok"], ["refused"])
            refused = await talks.ask("follow", session="mine")
            assert (refused["event"], code_of(refused)) == ("refused", "stream_not_found"), "and its line goes on"


async def test_an_expired_token_closes_with_its_code(keyed: Deployment, owner: Api) -> None:
    sid = owner.start_external(user_id="ann")
    async with speaker(keyed.url, mint(owner, ttl_s=2)) as talks, speaker(keyed.url, mint(owner, ttl_s=2)) as idle:
        await talks.ask("follow", stream=sid)
        assert await talks.closed() == (4401, "token_expired")
        assert await idle.closed() == (4401, "token_expired")
    await until(lambda: _how(owner, sid) == ["token_expired"], "the record says so")


async def test_a_revoked_token_closes_with_its_code(keyed: Deployment, owner: Api) -> None:
    sid = owner.start_external(user_id="eve")
    token = mint(owner, sub="eve")
    async with speaker(keyed.url, token) as talks, speaker(keyed.url, token) as idle:
        await talks.ask("follow", stream=sid)
        await asyncio.to_thread(owner.post, "/v1/tokens/revoke", {"sub": "eve"})
        assert await talks.closed() == (4401, "token_revoked")
        assert await idle.closed() == (4401, "token_revoked")
    await until(lambda: _how(owner, sid) == ["revoked"], "the record says so")


async def test_a_token_that_expires_is_spoken_of_in_time(keyed: Deployment, owner: Api) -> None:
    if not LONG:  # half a minute
        return
    async with speaker(keyed.url, mint(owner, ttl_s=60)) as talks:
        told = await talks.until(lambda message: message["event"] == "token_expiring")
        assert told["data"]["expires_at"].endswith("Z")
        assert (await talks.ask("auth", token=mint(owner, ttl_s=3600)))["event"] == "ok"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(35):
                await talks.closed()


async def test_a_token_has_as_many_follows_as_connections(keyed: Deployment, owner: Api) -> None:
    sids = [owner.start_external(user_id="ann") for _ in range(6)]
    async with speaker(keyed.url, mint(owner)) as talks:
        answers = [await talks.ask("follow", stream=sid) for sid in sids]
        assert [answer["event"] for answer in answers] == ["ok"] * 5 + ["refused"]
        assert answers[-1]["data"]["limit"] == "token"
        assert answers[-1]["data"]["retry_after_s"] > 0
        await talks.ask("unfollow", stream=sids[0])
        assert (await talks.ask("follow", stream=sids[5]))["event"] == "ok"


def _how(owner: Api, sid: str) -> list[str]:
    return [view.get("how") for view in owner.get(f"/v1/streams/{sid}/views").json()["views"]]
