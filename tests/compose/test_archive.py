"""The archive of compose.yaml: its services as processes, docs/postgres.sql on a PostgreSQL that wants passwords."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.archive.postgres import USER, connect, running_postgres
from tests.compose.compose_file import KEY, READER_PASSWORD, ROOT, WRITER_PASSWORD, settings
from tests.compose.drill import Operator, block
from tests.compose.services import Services
from tests.rig.deployment import HTTP, Process, wait_until
from tests.web.wire import Api, problem

# As the entry point of PostgreSQL's image calls it.
PSQL = ("psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--no-password", "--username", USER, "--dbname", "postgres")


@contextmanager
def postgres_as_in_its_image(services: Services, programs: Path) -> Iterator[str]:
    """A new one: its superuser has a password, then docs/postgres.sql is run."""
    with running_postgres(programs, services.postgres_port) as folder:
        with connect(folder, port=services.postgres_port) as connection:
            password = settings("postgres")["POSTGRES_PASSWORD"]
            connection.execute(
                psycopg.sql.SQL("ALTER ROLE {} PASSWORD {}").format(psycopg.sql.Identifier(USER), password)
            )
        environment = services.environment("postgres") | {"PGHOST": folder, "PGPORT": str(services.postgres_port)}
        argv = [str(programs / PSQL[0]), *PSQL[1:], "--file", str(ROOT / "docs" / "postgres.sql")]
        subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL)
        yield folder


@pytest.fixture
def postgres_port(services: Services, postgres_programs: Path) -> Iterator[int]:
    with postgres_as_in_its_image(services, postgres_programs):
        yield services.postgres_port


def log_in(port: int, role: str, password: str, database: str = "lastevent") -> psycopg.Connection:
    return psycopg.connect(host="127.0.0.1", port=port, user=role, password=password, dbname=database, autocommit=True)


def is_ready(services: Services) -> bool:
    try:
        return HTTP.get(f"http://127.0.0.1:{services.port}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_all_goes_on_without_postgres_and_the_archive_follows_when_it_comes(
    services: Services, started: Callable[..., Process], postgres_programs: Path
) -> None:
    started("valkey")
    server = started("server-1")
    worker = started("worker", LASTEVENT_ARCHIVE_AFTER_S="0")
    wait_until(lambda: is_ready(services), "the server is ready")
    with closing(Api(f"http://127.0.0.1:{services.port}", KEY)) as api:
        sid = api.post("/v1/streams", {"prompt": "[[tokens=5 rate=0 ttft_ms=0]]"}).json()["id"]
        wait_until(lambda: api.record(sid)["state"] == "done", "it has ended")
        assert api.get(f"/v1/streams/{sid}/text").text
        wait_until(lambda: "the archive is away" in worker.output.read_text(), "the worker says so")
        problem(api.get("/v1/streams/nobody"), 503, "archive_unavailable")

        with postgres_as_in_its_image(services, postgres_programs):
            wait_until(lambda: api.record(sid)["archived_at"], "it is archived")
            assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "verified"
            problem(api.get("/v1/streams/nobody"), 404, "stream_not_found")
            checked = services.command("verify", "--all")
            assert checked.returncode == 0, checked.stdout + checked.stderr
            assert b"1 streams" in checked.stdout
            assert b"No head" not in checked.stderr
            assert services.command("doctor", "--url", f"http://127.0.0.1:{services.port}").returncode == 0
        assert is_ready(services)
        assert api.get(f"/v1/streams/{sid}/text").text
    assert worker.is_alive()
    assert server.is_alive()


def test_a_new_postgres_lets_the_reader_only_read_and_the_superuser_not_in(
    services: Services, postgres_port: int
) -> None:
    with log_in(postgres_port, "lastevent", WRITER_PASSWORD) as writer:
        writer.execute("CREATE TABLE later (n int)")
        [[collation]] = writer.execute("SELECT datcollate FROM pg_database WHERE datname = 'lastevent'").fetchall()
    assert collation == "C"
    with log_in(postgres_port, "lastevent_reader", READER_PASSWORD) as reader:
        assert reader.execute("SELECT * FROM later").fetchall() == []
        for change in ("INSERT INTO later VALUES (1)", "DELETE FROM later", "DROP TABLE later", "CREATE TABLE x ()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(change)
    for password in (WRITER_PASSWORD, ""):
        with pytest.raises(psycopg.OperationalError):
            log_in(postgres_port, USER, password, "postgres")


def test_postgres_is_healthy_while_it_takes_connections_from_others(
    services: Services, postgres_programs: Path
) -> None:
    places = {
        "pg_isready": str(postgres_programs / "pg_isready"),
        "127.0.0.1": f"127.0.0.1\0--port\0{services.postgres_port}",
    }
    assert not services.is_healthy("postgres", **places)
    with postgres_as_in_its_image(services, postgres_programs):
        assert services.is_healthy("postgres", **places)


# -- what docs/OPERATIONS.md says to do ------------------------------------------------------------------------------


@pytest.fixture
def worker(started: Callable[..., Process]) -> Process:
    started("valkey")
    return started("worker", LASTEVENT_ARCHIVE_AFTER_S="0")


@pytest.fixture
def operator(
    services: Services, worker: Process, postgres_programs: Path, tmp_path: Path, require: Callable[[str, str], str]
) -> Iterator[Operator]:
    require("redis-cli", "redis-tools")
    with postgres_as_in_its_image(services, postgres_programs) as socket:
        operator = Operator(services, tmp_path, postgres_programs, {"worker": worker})
        operator.postgres_socket = socket
        yield operator


@pytest.fixture
def api(services: Services, worker: Process, started: Callable[..., Process]) -> Iterator[Api]:
    started("server-1")
    wait_until(lambda: is_ready(services), "the server is ready")
    with closing(Api(f"http://127.0.0.1:{services.port}", KEY)) as api:
        yield api


def archived(api: Api, text: str) -> str:
    sid = api.finished(text)
    wait_until(lambda: api.record(sid)["archived_at"], "it is archived")
    return sid


def verdict(api: Api, sid: str) -> str:
    """What the server says; of a refusal (the archive may be away for a moment) its code."""
    answer = api.get(f"/v1/streams/{sid}/verify").json()
    said: str = answer.get("verdict") or answer["code"]
    return said


def test_a_rotated_key_seals_and_the_old_one_goes_on_to_check(operator: Operator, api: Api) -> None:
    before = archived(api, "before")
    operator.types(block("mv /seal/key/new.pem"))
    after = archived(api, "after")
    seals = [api.get(f"/v1/streams/{sid}/verify").json()["seal"]["key"] for sid in (before, after)]
    assert seals[0] != seals[1]
    assert (verdict(api, before), verdict(api, after)) == ("verified", "verified")


def test_what_a_restored_backup_lacks_is_archived_and_erased_again_from_redis(
    services: Services, operator: Operator, api: Api
) -> None:
    kept, erased = archived(api, "kept"), archived(api, "to be erased")
    operator.types(block("pg_dump"))
    lacking = archived(api, "after the backup")
    api.delete(f"/v1/streams/{erased}").raise_for_status()
    wait_until(lambda: verdict(api, erased) == "erased", "it is erased")

    said = operator.types(block("HDEL & archived"))
    findings = re.findall(r"^  (\w+): ", said, re.MULTILINE)
    assert findings == ["seals_cut_off", "copy_erased"], "Redis still knows of the erasure that is lost"
    wait_until(lambda: services.command("verify", "--all").returncode == 0, "nothing is amiss any more")
    wait_until(lambda: verdict(api, lacking) == "verified", "it is archived again")
    wait_until(lambda: verdict(api, erased) == "erased", "it is erased again")
    assert verdict(api, kept) == "verified"
    assert services.command("verify", "--all").returncode == 0
