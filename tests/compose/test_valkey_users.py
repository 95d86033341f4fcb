"""The users of compose.yaml's Valkey: with theirs a server and a worker do all that they do, and nothing beyond it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from broker.store.archive_url import archive_url
from tests.compose.compose_file import KEY, SERVICES, VALKEY_SERVER_PASSWORD, VALKEY_WORKER_PASSWORD
from tests.compose.services import Services
from tests.compose.test_archive import is_ready
from tests.rig.deployment import Process, wait_until
from tests.web.wire import Api

PASSWORDS = {"server": VALKEY_SERVER_PASSWORD, "worker": VALKEY_WORKER_PASSWORD}
DANGEROUS = (
    *("CONFIG GET *", "CONFIG SET maxmemory 0", "FLUSHALL", "FLUSHDB", "KEYS *", "SCRIPT FLUSH", "SCRIPT KILL"),
    *("DEBUG SLEEP 0", "ACL LIST", "ACL SETUSER server on", "SHUTDOWN NOSAVE", "MONITOR", "SAVE", "BGREWRITEAOF"),
    *("REPLICAOF NO ONE", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1", "SLOWLOG GET", "LATENCY RESET", "SWAPDB 0 1"),
    *("FUNCTION LIST", "FUNCTION FLUSH", "MODULE LIST", "SORT le:x", "RESTORE le:x 0 x", "FAILOVER", "CLUSTER INFO"),
)
OURS = (
    *("SET le:x 1", "HSET le:keys x {}", "HGETALL le:keys", "HDEL le:limits x", "ZADD le:revoked:acme 1 x"),
    *("WAITAOF 1 0 1000", "PUBLISH le:keys:changed x", "SUBSCRIBE le:keys:changed", "SCRIPT LOAD x", "INFO memory"),
    *("XADD le:deeds * a b", "XREAD STREAMS le:deeds 0", "EVALSHA x 1 le:rates:acme", "INCRBY le:rates:acme 1"),
)
ELSEWHERE = ("GET other", "SET other x", "DEL other", "PUBLISH other x", "SUBSCRIBE other", "XADD other * a b")


@pytest.fixture
def valkey(services: Services, started: Callable[..., Process]) -> Process:
    process = started("valkey")
    with Redis(port=services.valkey_port) as anybody:
        wait_until(lambda: _answers(anybody), "Valkey answers")
    return process


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def test_a_server_and_workers_do_all_that_they_do_and_are_refused_nothing(
    services: Services, valkey: Process, started: Callable[..., Process], tmp_path: Path
) -> None:
    """Generation, reading, cancel, takeover, archive, verification, erasure; Valkey writes down each refusal."""
    settings = {"LASTEVENT_ARCHIVE_URL": archive_url(tmp_path), "LASTEVENT_ARCHIVE_AFTER_S": "0"}
    server, first = started("server-1", **settings), started("worker", **settings)
    wait_until(lambda: is_ready(services), "the server is ready")
    with closing(Api(f"http://127.0.0.1:{services.port}", KEY)) as api:

        def create(prompt: str, **body: str) -> str:
            key = {"Idempotency-Key": prompt.replace(" ", "-")}
            answer = api.post("/v1/streams", {"prompt": prompt, **body}, headers=key)
            assert answer.status_code == 201, answer.text
            sid: str = answer.json()["id"]
            return sid

        def ends_as(sid: str, state: str) -> None:
            wait_until(lambda: api.record(sid)["state"] == state, f"it is {state}", limit_s=90)

        done = create("[[tokens=5 rate=0 ttft_ms=0]]", session_id="s", user_id="u")
        ends_as(done, "done")
        assert api.get(f"/v1/streams/{done}/text").text
        assert b"event: done" in api.get(f"/v1/streams/{done}/events").content
        cancelled = create("[[tokens=900 rate=20 ttft_ms=0]]")
        wait_until(lambda: api.get(f"/v1/streams/{cancelled}/text").text, "it has begun")
        api.post(f"/v1/streams/{cancelled}/cancel").raise_for_status()
        ends_as(cancelled, "cancelled")
        external = api.finished("written by a producer")
        ends_as(external, "done")

        taken_over = create("[[tokens=60 rate=20 ttft_ms=0]]")
        wait_until(lambda: api.get(f"/v1/streams/{taken_over}/text").text, "it has begun")
        first.kill()
        second = started("worker", **settings)
        ends_as(taken_over, "done")
        assert api.record(taken_over)["attempt"] == 2

        for sid in (done, cancelled, external, taken_over):
            wait_until(lambda sid=sid: api.record(sid)["archived_at"], "it is archived")
        assert api.get(f"/v1/streams/{done}/verify").json()["verdict"] == "verified"
        for path in (
            "/v1/streams?user_id=u",
            "/v1/sessions",
            "/v1/sessions/s",
            f"/v1/streams/{done}/views",
            "/metrics",
        ):
            assert api.get(path).status_code == 200
        api.delete(f"/v1/streams/{done}").raise_for_status()
        wait_until(lambda: api.get(f"/v1/streams/{done}/verify").json()["verdict"] == "erased", "it is erased")
        assert api.post(f"/v1/streams/{cancelled}/regenerate").status_code == 201
    examined = services.command("doctor", "--url", f"http://127.0.0.1:{services.port}").stdout
    assert b"ok   appendonly yes\nok   maxmemory-policy noeviction\n" in examined
    for process in (second, server):
        process.stop()
        assert "Traceback" not in process.output.read_text()
    with services.admin() as admin:
        refused = admin.acl_log()
    told = [(entry["username"], entry["reason"], entry["object"]) for entry in refused]
    assert [entry for entry in told if entry[0] in PASSWORDS] == []  # the test's own client was refused CLIENT SETINFO


@pytest.mark.parametrize("user", PASSWORDS)
def test_neither_may_do_what_only_an_operator_does_or_touch_what_is_not_lastevent_s(
    services: Services, valkey: Process, user: str
) -> None:
    with services.admin() as admin:
        answers = {command: admin.acl_dryrun(user, *shlex.split(command)) for command in (*DANGEROUS, *ELSEWHERE)}
        allowed = {command: admin.acl_dryrun(user, *shlex.split(command)) for command in OURS}
    assert allowed == dict.fromkeys(OURS, b"OK")
    assert [command for command, answer in answers.items() if b"permission" not in answer] == []
    with Redis(port=services.valkey_port, username=user, password=PASSWORDS[user]) as client:
        for command in ("FLUSHALL", "KEYS *", "CONFIG GET *", "GET other"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())
        with pytest.raises(ResponseError, match="ACL"):
            client.eval("return redis.call('GET', 'other')", 0)


def test_without_a_password_one_may_ask_whether_it_is_alive_and_nothing_else(
    services: Services, valkey: Process
) -> None:
    with Redis(port=services.valkey_port) as anybody:
        assert anybody.ping()
        for command in ("INFO", "GET le:x", "CLIENT LIST", "ACL WHOAMI", "SUBSCRIBE le:queued"):
            with pytest.raises(NoPermissionError):
                anybody.execute_command(*command.split())


def test_no_password_is_in_the_list_of_processes_or_in_the_configuration(services: Services, valkey: Process) -> None:
    listed = Path(f"/proc/{valkey.pid}/cmdline").read_text()
    assert "valkey-server" in listed
    assert not any(password in listed + str(SERVICES["valkey"]["command"]) for password in PASSWORDS.values())
    with services.admin() as admin:
        assert not any(password in str(admin.acl_list()) for password in PASSWORDS.values())
