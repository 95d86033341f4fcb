"""Webhooks: an ending reaches its receiver at least once, signed, and nothing else is ever reached."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from standardwebhooks import Webhook

from broker.errors import RedisUnavailable
from broker.log.deeds import Deeds
from broker.log.hooks import Hook, Hooks
from broker.log.meta import Meta
from broker.log.steps import Append, Unsent
from broker.log.stream_log import StreamLog
from broker.settings import Settings
from broker.store.durable import Kept
from broker.store.webhook_url import read_allowed
from tests.rig.deployment import HTTP, Deployment, until, wait_until
from tests.rig.receiver import HANGS, Receiver, answer, certificate, receiving
from tests.rig.streams import running, sweeper
from tests.store.test_webhook_url import INSIDE
from worker.courier import AFTER_S, Courier
from worker.sending import Sender, signature

SECRET = "whsec_" + base64.b64encode(b"the receiver knows these too").decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"and these, until next month.").decode()
NAME = "hooks.example.com"
LOOPBACK = read_allowed(["127.0.0.1"])
USAGE = {"input_tokens": 3, "output_tokens": 5}


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis, retention_s=500, has_webhooks=True)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"), NAME)


@pytest.fixture
async def receiver(pem: Path) -> AsyncIterator[Receiver]:
    async with receiving(certificate=pem) as receiver:
        yield receiver


def trusting(pem: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pem))


def resolving(*answers: Sequence[str]) -> Callable[[str, int], Any]:
    """A name server that answers so, the last one again and again."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def a_sender(pem: Path, *answers: Sequence[str], **options: Any) -> Sender:
    return Sender(LOOPBACK, resolve=resolving(*(answers or (["127.0.0.1"],))), tls=trusting(pem), **options)


def a_courier(log: StreamLog, sender: Sender, **times: Any) -> Courier:
    settings = Settings(webhook_secrets={"*": (SECRET, OLD_SECRET)})
    return Courier(log, sender, settings.webhook_keys, **times)


async def ended(log: StreamLog, url: str, kind: str = "done", **data: Any) -> str:
    """A stream that has just ended, and that a sweeper has found."""
    claimed = await running(log, webhook=url, user="u-1", metadata={"order": "A17"})
    text, ending = Unsent("text_delta", b'{"text":"secret text"}'), Unsent(kind, json.dumps(data).encode())
    await log.append(Append(claimed.sid, claimed.pen, claimed.pen.base, [text, ending], 10))
    await sweep(log)
    return claimed.sid


async def sweep(log: StreamLog) -> None:
    async def nobody(sid: str, meta: Meta) -> None:
        raise AssertionError(f"{sid} is to be taken")

    await sweeper(log, nobody).sweep()


async def look(courier: Courier) -> None:
    await courier.look()
    await courier.delivered()


async def attempts_in_the_audit(log: StreamLog, sid: str) -> list[dict[str, Any]]:
    deeds = Deeds(log.redis, log.keys, retention_s=500, is_archived=False)
    found = [one.deed async for page in deeds.newest() for one in page if one.deed.stream == sid]
    assert {(deed.what, deed.who, deed.tenant) for deed in found} <= {("webhook_sent", "lastevent", "t")}
    return [dict(deed.detail or {}) for deed in reversed(found)]


# -- what is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ending", "shown"),
    [
        ("done", {"stop_reason": "end_turn", "usage": USAGE, "cost_usd": 0.25}, ("end_turn", None, USAGE, 0.25)),
        ("error", {"code": "provider_cut", "message": "…"}, (None, "provider_cut", None, None)),
        ("cancelled", {"reason": "requested"}, (None, None, None, None)),
    ],
)
async def test_the_reference_library_verifies_what_an_ending_sends(
    log: StreamLog, receiver: Receiver, pem: Path, kind: str, ending: dict[str, Any], shown: tuple[Any, ...]
) -> None:
    sid = await ended(log, f"https://{NAME}:{receiver.port}/hooks?of=me", kind, **ending)
    await look(a_courier(log, a_sender(pem)))
    [request] = receiver.requests
    for secret in (SECRET, OLD_SECRET):
        body = Webhook(secret).verify(request.body, request.headers)
    assert request.target == "/hooks?of=me"
    assert request.headers["host"] == f"{NAME}:{receiver.port}"
    assert receiver.asked_for == [NAME]
    assert request.headers["webhook-id"] == sid
    [meta] = await log.read_meta(sid)
    assert meta
    assert body["type"] == f"stream.{kind}"
    assert body["timestamp"].endswith("Z")
    names = ("stop_reason", "code", "usage", "cost_usd")
    assert body["data"] == {
        "id": sid,
        "agent": None,
        "session_id": "s",
        "user_id": "u-1",
        "state": kind,
        "last_event_id": meta.tail,
        "metadata": {"order": "A17"},
        **dict(zip(names, shown, strict=True)),
    }
    assert b"secret text" not in request.body
    assert await log.hooks.read(sid) == Hook("delivered", 1, 204)
    assert await attempts_in_the_audit(log, sid) == [
        {"attempt": 1, "host": NAME, "state": "delivered", "status": 204},
    ]


async def test_what_is_delivered_is_sent_once_and_nobodys_words_are_kept(
    log: StreamLog, receiver: Receiver, pem: Path
) -> None:
    sid = await ended(log, f"https://{NAME}:{receiver.port}/")
    couriers = [a_courier(log, a_sender(pem)) for _ in range(3)]
    await asyncio.gather(*map(look, couriers))
    await log.redis.zadd(log.keys.leases, {sid: 1})  # a sweeper that stood still has it in hand yet
    await sweep(log)
    await asyncio.gather(*map(look, couriers))
    assert len(receiver.requests) == 1
    kept = await log.redis.hgetall(log.keys.stream(sid).hook)
    assert kept.keys() == {b"state", b"attempts", b"last_status", b"tenant"}
    assert await log.hooks.waiting() == 0


async def test_a_stream_without_a_webhook_leaves_nothing_behind(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(Append(claimed.sid, claimed.pen, claimed.pen.base, [Unsent("done", b"{}")], 10))
    await sweep(log)
    assert not await log.redis.exists(log.keys.stream(claimed.sid).hook, log.keys.webhooks)


# -- when it is sent again -----------------------------------------------------------------------------------


async def test_a_receiver_that_is_down_for_an_hour_is_told_afterwards(
    log: StreamLog, pem: Path, unused_port: Callable[[], int]
) -> None:
    port = unused_port()
    sid = await ended(log, f"https://{NAME}:{port}/")
    hour_s = 0.36  # so a second takes 0.1 ms, and 5 min 30 ms
    courier = a_courier(log, a_sender(pem), look_s=0.01, after_s=[s * hour_s / 3600 for s in AFTER_S])
    working = asyncio.create_task(courier.run())
    await asyncio.sleep(hour_s)
    async with receiving(certificate=pem, port=port) as receiver:
        await until(lambda: receiver.requests, "it is told")
        await until(lambda: _is(log, sid, "delivered"), "that is known")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    *failed, last = await attempts_in_the_audit(log, sid)
    assert len(failed) >= 2
    assert {(one["error"], one["state"]) for one in failed} == {("connect", "pending")}
    assert (last["status"], last["state"]) == (204, "delivered")
    assert [one["attempt"] for one in (*failed, last)] == list(range(1, len(failed) + 2))


async def _is(log: StreamLog, sid: str, state: str) -> bool:
    hook = await log.hooks.read(sid)
    return hook is not None and hook.state == state


@pytest.fixture
def unused_port() -> Callable[[], int]:
    from bench.ports import free_port

    return free_port


@pytest.mark.parametrize(
    ("headers", "least_s"), [("", 4.0), ("Retry-After: 77\r\n", 77.0), ("Retry-After: no\r\n", 4.0)]
)
async def test_the_next_attempt_is_five_seconds_later_or_when_the_receiver_asks(
    log: StreamLog, pem: Path, headers: str, least_s: float
) -> None:
    async with receiving(lambda _: answer(503, headers), certificate=pem) as receiver:
        sid = await ended(log, f"https://{NAME}:{receiver.port}/")
        before_ms = await log.now_ms()
        await look(a_courier(log, a_sender(pem)))
        hook = await log.hooks.read(sid)
        assert hook
        assert (hook.state, hook.attempts, hook.last_status) == ("pending", 1, 503)
        assert hook.next_at
        assert least_s * 1000 <= hook.next_at - before_ms < least_s * 1000 + 4000
        assert await log.redis.zscore(log.keys.webhooks, sid) == hook.next_at
        await look(a_courier(log, a_sender(pem)))
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 500])
async def test_what_is_not_2xx_is_tried_again_and_redirects_are_not_followed(
    log: StreamLog, pem: Path, status: int
) -> None:
    async with (
        receiving() as elsewhere,
        receiving(
            lambda _: answer(status, f"Location: http://127.0.0.1:{elsewhere.port}/\r\n"), certificate=pem
        ) as receiver,
    ):
        sid = await ended(log, f"https://{NAME}:{receiver.port}/")
        await look(a_courier(log, a_sender(pem)))
        assert await _is(log, sid, "pending")
        assert not elsewhere.connections


async def test_410_stops_and_the_last_failure_ends_it(log: StreamLog, pem: Path) -> None:
    statuses = {"/gone": 410, "/down": 500}
    async with receiving(certificate=pem) as receiver:
        receiver.answers = lambda n: answer(statuses[receiver.requests[n].target])
        gone, down = [await ended(log, f"https://{NAME}:{receiver.port}{path}") for path in statuses]
        courier = a_courier(log, a_sender(pem), after_s=[0.001, 0.001])
        await until(lambda: _looked(courier, log, down, "failed"), "all attempts failed")
        assert await _is(log, gone, "stopped")
        assert [request.target for request in receiver.requests].count("/gone") == 1
        assert [one["state"] for one in await attempts_in_the_audit(log, down)] == ["pending", "pending", "failed"]
        assert await log.hooks.waiting() == 0


async def _looked(courier: Courier, log: StreamLog, sid: str, state: str) -> bool:
    await look(courier)
    return await _is(log, sid, state)


async def test_a_receiver_that_does_not_answer_is_left_and_one_that_answers_too_much_is_not_heard_out(
    log: StreamLog, pem: Path
) -> None:
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + 4 * 2**20 * b"x"
    async with receiving(lambda n: [HANGS, endless][n], certificate=pem) as receiver:
        sid = await ended(log, f"https://{NAME}:{receiver.port}/")
        await look(a_courier(log, a_sender(pem, timeout_s=0.2), after_s=[0.001, 50]))
        await until(lambda: _looked(a_courier(log, a_sender(pem)), log, sid, "delivered"), "it is delivered")
        assert [one.get("error") for one in await attempts_in_the_audit(log, sid)] == ["timeout", None]


@pytest.mark.parametrize("rest", ["Content-Length: 10", "Transfer-Encoding: chunked", "Connection: close"])
async def test_an_answer_counts_though_the_rest_of_it_never_comes(log: StreamLog, pem: Path, rest: str) -> None:
    stays = asyncio.Event()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n{rest}\r\n\r\n".encode())
        await stays.wait()
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    sender = Sender(LOOPBACK, timeout_s=0.5)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    assert (await sender.send("id", url, [b"k"], b"{}")).is_delivered
    stays.set()
    server.close()


async def test_a_receiver_that_says_nothing_of_tls_is_hung_up_on(pem: Path) -> None:
    hung_up = asyncio.Event()

    async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(says_nothing, "127.0.0.1", 0)
    url = f"https://{NAME}:{server.sockets[0].getsockname()[1]}/"
    assert (await a_sender(pem, timeout_s=0.2).send("id", url, [b"k"], b"{}")).error == "timeout"
    await until(hung_up.is_set, "the connection is closed")
    server.close()


@pytest.mark.parametrize(
    "costly",
    [
        100_000 * b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + 100_000 * b"1\r\nx\r\n",
    ],
)
async def test_an_answer_that_costs_more_than_it_weighs_holds_up_nothing(pem: Path, costly: bytes) -> None:
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - began_s)

    async with receiving(lambda _: costly, certificate=pem) as receiver:
        sender, url = a_sender(pem), f"https://{NAME}:{receiver.port}/"
        watching = asyncio.create_task(watch())
        sent = await asyncio.gather(*(sender.send("id", url, [b"k"], b"{}") for _ in range(8)))
        watching.cancel()
    assert {answer.error for answer in sent} <= {None, "bad_answer"}
    assert longest_s < 1.0  # it was 4 to 8 s when a piece was 64 KiB


async def test_one_receiver_that_lets_all_wait_does_not_hold_up_another(log: StreamLog, pem: Path) -> None:
    async with receiving(lambda _: HANGS, certificate=pem) as slow, receiving(certificate=pem) as other:
        for _ in range(40):
            await ended(log, f"https://slow.example:{slow.port}/")
        sid = await ended(log, f"https://{NAME}:{other.port}/")
        courier = a_courier(log, a_sender(pem))
        working = asyncio.create_task(courier.run())
        await until(lambda: _is(log, sid, "delivered"), "the other one is told")
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


@pytest.mark.parametrize(("named", "count"), [("h{}.slow.example", 40), ("slow.example", 900)])
async def test_a_tenant_whose_receivers_let_all_wait_holds_up_no_other_tenant(
    log: StreamLog, pem: Path, named: str, count: int
) -> None:
    async with receiving(lambda _: HANGS, certificate=pem) as slow, receiving(certificate=pem) as other:
        now_ms = await log.now_ms()
        urls = [f"https://{named.format(n)}:{slow.port}/" for n in range(count)]
        for n, url in enumerate(urls):
            await due_since(log, f"slow-{n}", url, "t", now_ms - 1000)
        await due_since(log, "other", f"https://{NAME}:{other.port}/", "u", now_ms)
        courier = a_courier(log, a_sender(pem), look_s=0.01)
        working = asyncio.create_task(courier.run())
        await until(lambda: other.requests, "the other one is told")
        await until(lambda: _is(log, "other", "delivered"), "that is known")
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def due_since(log: StreamLog, sid: str, url: str, tenant: str, at_ms: int) -> None:
    """As Hooks.collect leaves one."""
    fields = {"state": "pending", "attempts": "0", "url": url, "body": "{}", "tenant": tenant}
    async with log.redis.pipeline(transaction=False) as pipe:
        pipe.hset(log.keys.stream(sid).hook, mapping=fields)
        pipe.expire(log.keys.stream(sid).hook, 500)
        pipe.zadd(log.keys.webhooks, {sid: at_ms})
        await pipe.execute()


# -- workers that die, a Redis that forgets, what is erased ------------------------------------------------------


async def test_an_attempt_whose_worker_died_is_begun_again_by_another(log: StreamLog, pem: Path) -> None:
    log.hooks = Hooks(log.redis, log.keys, hold_s=0.3)
    async with receiving(lambda n: [HANGS, answer(200)][n], certificate=pem) as receiver:
        sid = await ended(log, f"https://{NAME}:{receiver.port}/")
        dying = a_courier(log, a_sender(pem))
        await dying.look()
        await until(lambda: receiver.requests, "the first one has sent it")
        working = asyncio.create_task(dying.run())
        await asyncio.sleep(0)
        working.cancel()  # and its attempts with it
        await asyncio.gather(working, return_exceptions=True)
        other = a_courier(log, a_sender(pem))
        await look(other)
        assert len(receiver.requests) == 1  # it may live
        await until(lambda: _looked(other, log, sid, "delivered"), "another one delivers it")
        first, second = receiver.requests
        assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
        assert await log.hooks.read(sid) == Hook("delivered", 2, 200)


async def test_a_failure_that_comes_after_anothers_attempt_changes_nothing_and_a_delivery_does(log: StreamLog) -> None:
    log.hooks = Hooks(log.redis, log.keys, hold_s=0)
    sid = await ended(log, f"https://{NAME}/")
    late, current = await log.hooks.begin(sid), await log.hooks.begin(sid)
    assert late
    assert current
    assert not await log.hooks.settle(late, "failed", 500)
    assert await _is(log, sid, "pending")
    assert await log.hooks.settle(late, "delivered", 200)
    assert not await log.hooks.settle(current, "pending", 500, await log.now_ms() + 5000)
    assert await _is(log, sid, "delivered")
    assert await log.hooks.waiting() == 0


@pytest.mark.parametrize("lost", ["hook", "hook and index"])
async def test_what_redis_has_lost_is_collected_again_since_the_stream_waits_where_it_was(
    log: StreamLog, receiver: Receiver, pem: Path, lost: str
) -> None:
    sid = await ended(log, f"https://{NAME}:{receiver.port}/")
    await log.redis.zadd(log.keys.leases, {sid: 0})  # it left le:leases last, so this comes back first
    await log.redis.delete(log.keys.stream(sid).hook, *([log.keys.webhooks] if lost != "hook" else []))
    await sweep(log)
    await look(a_courier(log, a_sender(pem)))
    assert len(receiver.requests) == 1


async def test_an_ending_that_redis_lost_before_it_was_collected_is_waited_for(log: StreamLog) -> None:
    sid = await ended(log, f"https://{NAME}/")
    [meta] = await log.read_meta(sid)
    assert meta
    await log.hooks.forget(sid)
    await log.redis.hset(log.keys.stream(sid).meta, "state", "running")
    assert not await log.hooks.collect(sid, meta, 0)
    assert not await log.redis.exists(log.keys.stream(sid).hook)


async def test_nothing_is_sent_before_redis_has_the_ending_on_its_disk(
    log: StreamLog, receiver: Receiver, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = await ended(log, f"https://{NAME}:{receiver.port}/")
    courier = a_courier(log, a_sender(pem))
    asked: list[int] = []

    async def on_disk(pipe: Any) -> Any:
        asked.append(len(receiver.requests))
        return await real(pipe)

    real = courier._is_kept.__globals__["write_durably"]
    monkeypatch.setitem(courier._is_kept.__globals__, "write_durably", on_disk)
    await look(courier)
    assert asked == [0]
    assert await _is(log, sid, "delivered")


async def test_while_redis_disk_is_late_nothing_is_sent_and_no_attempt_is_spent(
    log: StreamLog, receiver: Receiver, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.hooks = Hooks(log.redis, log.keys, hold_s=0)
    sid = await ended(log, f"https://{NAME}:{receiver.port}/")
    courier = a_courier(log, a_sender(pem))

    async def late(pipe: Any) -> Kept:
        await pipe.execute()
        return Kept.LATE

    with monkeypatch.context() as patched:
        patched.setitem(courier._is_kept.__globals__, "write_durably", late)
        for _ in range(len(AFTER_S) + 2):
            await look(courier)
    assert not receiver.requests
    assert await log.hooks.read(sid) == Hook("pending", 0)
    await look(courier)
    assert await log.hooks.read(sid) == Hook("delivered", 1, 204)


@pytest.mark.parametrize("when", ["before it is collected", "before it is sent", "while it is sent"])
async def test_an_erased_stream_tells_nobody_and_leaves_no_hook(log: StreamLog, pem: Path, when: str) -> None:
    async with receiving(lambda _: HANGS, certificate=pem) as receiver:
        sid = await ended(log, f"https://{NAME}:{receiver.port}/")
        courier = a_courier(log, a_sender(pem, timeout_s=0.3))
        [meta] = await log.read_meta(sid)
        assert meta
        if when == "while it is sent":
            await courier.look()
            await until(lambda: receiver.requests, "it is under way")
        await log.erase(sid, meta, await log.now_ms(), by="x")
        if when == "before it is collected":
            assert await log.hooks.collect(sid, meta, 0)  # a sweeper read it before
            assert not await log.redis.exists(log.keys.stream(sid).hook)
            await sweep(log)
        await courier.delivered()
        await look(courier)
        assert len(receiver.requests) == (when == "while it is sent")
        assert not await log.redis.exists(log.keys.stream(sid).hook, log.keys.webhooks)
        assert await attempts_in_the_audit(log, sid) == []


async def test_an_erasure_that_was_cut_short_leaves_a_hook_that_is_never_sent(
    log: StreamLog, receiver: Receiver, pem: Path
) -> None:
    sid = await ended(log, f"https://{NAME}:{receiver.port}/")
    await log.redis.hset(log.keys.stream(sid).meta, "erased", "1")  # and there its server died
    await look(a_courier(log, a_sender(pem)))
    assert not receiver.requests
    assert not await log.redis.exists(log.keys.stream(sid).hook, log.keys.webhooks)


async def test_a_hook_outlives_the_keys_of_its_stream_and_who_erases_its_person_finds_it(
    log: StreamLog, receiver: Receiver, pem: Path
) -> None:
    kept, erased = [await ended(log, f"https://{NAME}:{receiver.port}/") for _ in range(2)]
    for sid in (kept, erased):
        await log.redis.delete(log.keys.stream(sid).meta, log.keys.stream(sid).log)
    found = [sid async for page in log.hooks.pending_of("t", "u-1", None) for sid in page]
    assert sorted(found) == sorted([kept, erased])
    assert [sid async for page in log.hooks.pending_of("t", None, "s") for sid in page] == found
    for nobody in (("other", "u-1", None), ("t", "u-2", None), ("t", None, "other")):
        assert [sid async for page in log.hooks.pending_of(*nobody) for sid in page] == []
    await log.hooks.forget(erased)
    await look(a_courier(log, a_sender(pem)))
    assert [request.headers["webhook-id"] for request in receiver.requests] == [kept]


async def test_a_redis_that_is_away_keeps_the_courier_alive(
    log: StreamLog, receiver: Receiver, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = await ended(log, f"https://{NAME}:{receiver.port}/")
    courier = a_courier(log, a_sender(pem), look_s=0.01)
    away = iter([True, True])
    now_ms = log.now_ms

    async def now_and_then() -> int:
        if next(away, False):
            raise RedisUnavailable("away")
        return await now_ms()

    monkeypatch.setattr(log, "now_ms", now_and_then)
    working = asyncio.create_task(courier.run())
    await until(lambda: _is(log, sid, "delivered"), "it is delivered")
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working


# -- where it may go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_resolves_inside_is_never_connected_to(
    pem: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = _watched(monkeypatch)
    allowed = read_allowed([])
    for addresses in ([address], ["8.8.8.8", address], [address, "8.8.8.8"]):
        sender = Sender(allowed, resolve=resolving(addresses), tls=trusting(pem))
        sent = await sender.send("id", f"https://{NAME}/", [b"k"], b"{}")
        assert sent.error == "address_not_allowed"
    assert connections == []


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every connection that is tried from now on; none comes about."""
    tried: list[Any] = []

    async def connect(self: Any, sock: Any, address: Any) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", connect)
    return tried


async def test_the_watch_sees_connections_that_are_tried(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = _watched(monkeypatch)
    sender = Sender(read_allowed([]), resolve=resolving(["8.8.8.8", "1.1.1.1"]), tls=trusting(pem))
    assert (await sender.send("id", f"https://{NAME}:444/", [b"k"], b"{}")).error == "connect"
    assert [address[:2] for address in connections] == [("8.8.8.8", 444), ("1.1.1.1", 444)]


async def test_a_name_that_resolves_otherwise_the_second_time_leads_nowhere_else(
    receiver: Receiver, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = _watched(monkeypatch)
    sender = Sender(read_allowed([]), resolve=resolving(["8.8.8.8"], ["127.0.0.1"]), tls=trusting(pem))
    url = f"https://{NAME}:{receiver.port}/"
    assert (await sender.send("id", url, [b"k"], b"{}")).error == "connect"
    assert [address[0] for address in connections] == ["8.8.8.8"]
    assert (await sender.send("id", url, [b"k"], b"{}")).error == "address_not_allowed"
    assert len(connections) == 1
    assert not receiver.connections


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "0177.0.0.1", "localhost.", "ip6-localhost"])
async def test_a_host_that_the_real_resolver_takes_for_loopback_is_not_reached(pem: Path, host: str) -> None:
    async with receiving(certificate=pem) as receiver:
        sender = Sender(read_allowed([]), tls=trusting(pem))
        sent = await sender.send("id", f"https://{host}:{receiver.port}/", [b"k"], b"{}")
        assert sent.error in ("address_not_allowed", "invalid_url", "dns")
        assert not receiver.connections


async def test_a_certificate_of_another_name_is_refused(tmp_path: Path, pem: Path) -> None:
    other = certificate(tmp_path, "other.example.com")
    async with receiving(certificate=other) as receiver:
        sent = await a_sender(other).send("id", f"https://{NAME}:{receiver.port}/", [b"k"], b"{}")
        assert sent.error == "tls"
        assert not receiver.requests
        sent = await a_sender(pem).send("id", f"https://other.example.com:{receiver.port}/", [b"k"], b"{}")
        assert sent.error == "tls"  # of a name that is right, and of nobody that is trusted


async def test_two_names_at_one_address_share_no_connection(tmp_path: Path, pem: Path) -> None:
    async with receiving(certificate=pem) as receiver:
        sender = a_sender(pem)
        assert (await sender.send("id", f"https://{NAME}:{receiver.port}/", [b"k"], b"{}")).is_delivered
        assert (await sender.send("id", f"https://two.example:{receiver.port}/", [b"k"], b"{}")).error == "tls"


async def test_what_is_no_http_and_what_cannot_be_resolved_is_said(pem: Path) -> None:
    async with receiving(lambda _: b"SSH-2.0-hello\r\n\r\n", certificate=pem) as receiver:
        url = f"https://{NAME}:{receiver.port}/"
        assert (await a_sender(pem).send("id", url, [b"k"], b"{}")).error == "bad_answer"
        assert (await a_sender(pem, []).send("id", url, [b"k"], b"{}")).error == "dns"
        assert (await a_sender(pem).send("id", "http://a.example/", [b"k"], b"{}")).error == "invalid_url"


async def test_a_resolver_that_never_answers_holds_nothing_up(pem: Path) -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    sender = Sender(LOOPBACK, resolve=never, tls=trusting(pem), timeout_s=0.05)
    assert (await sender.send("id", f"https://{NAME}/", [b"k"], b"{}")).error == "timeout"


async def test_ones_own_host_is_reached_by_http_too() -> None:
    async with receiving() as receiver:
        sent = await Sender(LOOPBACK).send("id", f"http://127.0.0.1:{receiver.port}/", [b"k"], b"{}")
        assert sent.is_delivered
        assert receiver.requests[0].headers["host"] == f"127.0.0.1:{receiver.port}"


def test_signatures_are_those_of_the_specification() -> None:
    # Standard Webhooks, its example.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


# -- whole ---------------------------------------------------------------------------------------------------


async def test_a_worker_killed_between_ending_and_delivery_loses_no_webhook(
    own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    pem = certificate(tmp_path, "127.0.0.1")
    settings = {"LASTEVENT_WEBHOOK_SECRETS": SECRET, "LASTEVENT_WEBHOOK_ALLOW": "127.0.0.1", "SSL_CERT_FILE": str(pem)}
    deployment = await asyncio.to_thread(lambda: own_deployment(servers=1, workers=1, **settings))
    [worker] = deployment.workers
    async with receiving(certificate=pem) as receiver:
        hook = {"webhook": {"url": f"https://127.0.0.1:{receiver.port}/hooks"}}

        def end_and_kill() -> str:
            sid = deployment.create("Hello", **hook)
            deployment.wait_until_ended(sid)
            worker.kill()
            return sid

        sid = await asyncio.to_thread(end_and_kill)
        external = {"producer": "external", **hook}
        started = (await asyncio.to_thread(HTTP.post, f"{deployment.url}/v1/streams", json=external)).json()
        assert started["webhook"] == {"state": "waiting", "attempts": 0, "last_status": None, "next_at": None}
        events = {"epoch": started["epoch"], "events": [{"event": "done", "data": {}}]}
        await asyncio.to_thread(HTTP.post, f"{deployment.url}/v1/streams/{started['id']}/events", json=events)
        worker.start()

        def record(sid: str) -> dict[str, Any]:
            found: dict[str, Any] = HTTP.get(f"{deployment.url}/v1/streams/{sid}").json()["webhook"]
            return found

        def are_delivered() -> bool:
            return all(record(one)["state"] == "delivered" for one in (sid, started["id"]))

        await asyncio.to_thread(wait_until, are_delivered, "both are delivered")
        told = {Webhook(SECRET).verify(one.body, one.headers)["data"]["id"] for one in receiver.requests}
        assert told == {sid, started["id"]}
        again = await asyncio.to_thread(HTTP.post, f"{deployment.url}/v1/streams/{sid}/regenerate")
        await asyncio.to_thread(
            wait_until, lambda: record(again.json()["id"])["state"] == "delivered", "it is carried on"
        )
