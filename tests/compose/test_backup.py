"""The drill of docs/OPERATIONS.md, "Back-up": everything is lost, and its lines bring it back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.compose.compose_file import KEY
from tests.compose.drill import Operator, block
from tests.compose.services import Services
from tests.compose.test_archive import archived, is_ready, postgres_as_in_its_image, verdict
from tests.rig.deployment import HTTP, Process, wait_until
from tests.web.wire import Api


@pytest.fixture
def processes(services: Services) -> Iterator[dict[str, Process]]:
    made = {name: services.process(name) for name in ("valkey", "server-1")}
    made["worker"] = services.process("worker", LASTEVENT_ARCHIVE_AFTER_S="0")
    yield made
    for process in made.values():
        process.kill()


def test_after_the_loss_of_everything_nothing_has_changed_and_old_credentials_open(
    services: Services,
    processes: dict[str, Process],
    postgres_programs: Path,
    tmp_path: Path,
    require: Callable[[str, str], str],
) -> None:
    require("redis-cli", "redis-tools")
    operator = Operator(services, tmp_path, postgres_programs, processes)
    operator.brings_up["valkey"] = lambda: _start_valkey(services, processes["valkey"])
    url = f"http://127.0.0.1:{services.port}"
    with closing(Api(url, KEY)) as api:
        with postgres_as_in_its_image(services, postgres_programs) as operator.postgres_socket:
            operator.types("docker compose up --detach --wait")
            wait_until(lambda: is_ready(services), "the server is ready")
            kept = archived(api, "what was said")
            record = api.post("/v1/streams", {"producer": "external", "session_id": "open"}).json()
            key = json.loads(services.command("keys", "create", "--json").stdout)["key"]
            operator.types(block("pg_dump"))
            for process in processes.values():
                process.kill()
        operator.postgres_socket = ""
        _lose(tmp_path / "appendonlydir", services.seals / "key", services.seals / "public")

        with ExitStack() as stack:

            def new_postgres() -> None:
                operator.postgres_socket = stack.enter_context(postgres_as_in_its_image(services, postgres_programs))

            operator.brings_up["postgres"] = new_postgres
            operator.types(block("mkdir /data/appendonlydir"))
            wait_until(lambda: is_ready(services), "the server is ready")
            checked = services.command("verify", "--all")
            assert checked.returncode == 0, checked.stdout + checked.stderr
            assert b"1 streams" in checked.stdout
            assert verdict(api, kept) == "verified"
            assert "what was said" in api.get(f"/v1/streams/{kept}/text").text
            assert api.record(record["id"])["state"] == "running"
            with HTTP.stream("GET", url + record["events_url"]) as followed:
                assert followed.status_code == 200, "what signs tokens came back"
            with closing(Api(url, key)) as old:
                assert old.record(kept)["id"] == kept, "a key of before opens"
            operator.types(block("lastevent keys import"))
            assert key.split("_")[1] in (tmp_path / "backup" / "keys.jsonl").read_text()
            assert key.split("_", 2)[2] not in (tmp_path / "backup" / "keys.jsonl").read_text(), "hashes alone"
            after = archived(api, "goes on")
            assert verdict(api, after) == "verified"
            assert (services.seals / "key" / "seal-key.pem").stat().st_mode & 0o077 == 0


def _lose(*folders: Path) -> None:
    for folder in folders:
        assert any(folder.iterdir())
        shutil.rmtree(folder)


def _start_valkey(services: Services, valkey: Process) -> None:
    """`--wait` means: until it is healthy."""

    def is_healthy() -> bool:
        try:
            return bool(anybody.ping())
        except RedisError:
            return False

    valkey.start()
    with Redis(port=services.valkey_port) as anybody:
        wait_until(is_healthy, "Valkey has read its file")
