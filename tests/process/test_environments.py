"""Each child of `up` and `serve --web N` holds its own secrets and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.ports import free_port
from broker.process.environments import for_a_server, for_a_worker, for_the_embedded_server
from tests.command.conftest import Running, processes_in, run_lastevent
from tests.rig.deployment import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="environments are read in /proc")

SECRETS = {
    "LASTEVENT_API_KEYS": "secret-of-an-api-key-that-is-long-1",
    "LASTEVENT_MASKED_KEYS": "secret-of-a-masked-key-that-is-long",
    "LASTEVENT_TOKEN_SECRET": "secret-of-tokens-of-32-characters",
    "LASTEVENT_API_KEY": "secret-of-an-api-key-that-is-long-1",
    "ANTHROPIC_API_KEY": "secret-of-the-provider",
    "ANTHROPIC_AUTH_TOKEN": "secret-of-the-provider-too",
    "OPENAI_API_KEY": "secret-of-another-provider",
    "GEMINI_API_KEY": "secret-of-a-third",
    "VLLM_KEY": "secret-of-a-provider-of-one-s-own",
    "PGPASSWORD": "secret-of-postgres",
    "SOME_OTHER_TOKEN": "secret-of-somebody",
    "SHOP_TOKENS": "secret-of-an-issuer-of-tokens-of-32-and-more",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret-of-the-collector",
}
OF_SERVERS = {"LASTEVENT_API_KEYS", "LASTEVENT_MASKED_KEYS", "LASTEVENT_TOKEN_SECRET", "SHOP_TOKENS"}
OF_WORKERS = {
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "GEMINI_API_KEY", "VLLM_KEY"),
    "LASTEVENT_SEAL_KEY",
}
OF_BOTH = {"PGPASSWORD", "SOME_OTHER_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS"}

MODELS = """
[provider.vllm]
kind = "openai-chat"
base_url = "http://127.0.0.1:1/v1"
api_key_env = "VLLM_KEY"
"""
ISSUERS = """
[issuer.shop]
iss = "https://shop.example.com"
tenant = "default"
algorithms = ["HS256"]
secret_env = "SHOP_TOKENS"
"""
MASKS = "[[mask]]\nname = 'digits'\npattern = '[0-9]{16}'\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started = []

    def start(*args: str, **settings: str) -> Running:
        started.append(Running(tmp_path, *args, **settings))
        return started[-1]

    yield start
    for running in started:
        running.kill_all()


def held(folder: Path, what: str) -> dict[str, str]:
    """The environment of the only process there whose command line has this in it."""
    [pid] = [pid for pid, line in processes_in(folder).items() if what in line]
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", maxsplit=1) for pair in pairs if pair)


def issuers_in(folder: Path) -> str:
    (folder / "issuers.toml").write_text(ISSUERS)
    return str(folder / "issuers.toml")


def secrets_in(environment: dict[str, str]) -> set[str]:
    return {name for name in environment if name in SECRETS or name == "LASTEVENT_SEAL_KEY"}


def test_of_up_the_workers_have_the_provider_s_key_the_servers_the_api_s_and_valkey_nothing(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    seal_key, masks = tmp_path / "seal-key.pem", tmp_path / "masks"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(seal_key)], check=True)
    masks.write_text(MASKS)
    (tmp_path / "models.toml").write_text(MODELS)
    settings = {"LASTEVENT_SEAL_KEY": str(seal_key), "LASTEVENT_REDACT_FILE": str(masks), **SECRETS}
    settings["LASTEVENT_MODELS_FILE"] = str(tmp_path / "models.toml")
    settings["LASTEVENT_ISSUERS"] = issuers_in(tmp_path)
    up = start("up", "--port", str(free_port()), "--data-dir", "data", **settings)
    up.wait_until_it_says("Lastevent is ready")
    assert secrets_in(held(tmp_path, "broker serve")) == OF_SERVERS | OF_BOTH
    assert secrets_in(held(tmp_path, "-m worker")) == OF_WORKERS | OF_BOTH
    valkey = held(tmp_path, "valkey-server")
    assert not [name for name, value in valkey.items() if "secret" in value]
    assert not [name for name in valkey if name.startswith(("LASTEVENT_", "ANTHROPIC_", "PG"))]
    said = " ".join(processes_in(tmp_path).values())
    assert "secret" not in said
    assert up.stop() == 0


def test_of_serve_the_web_processes_have_no_provider_s_key(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "masks").write_text(MASKS)
    (tmp_path / "models.toml").write_text(MODELS)
    settings = {"LASTEVENT_REDACT_FILE": "masks", "LASTEVENT_REDIS_URL": "redis://127.0.0.1:1", **SECRETS}
    settings["LASTEVENT_MODELS_FILE"] = "models.toml"
    settings["LASTEVENT_ISSUERS"] = issuers_in(tmp_path)
    serve = start("serve", "--web", "2", "--port", str(free_port()), **settings)

    def children() -> list[int]:
        return [pid for pid, line in processes_in(tmp_path).items() if "--parent-pipe" in line]

    wait_until(lambda: len(children()) == 2, "both have been started")
    for pid in children():
        names = {pair.partition("=")[0] for pair in Path(f"/proc/{pid}/environ").read_text().split("\0")}
        assert secrets_in(dict.fromkeys(names, "")) == OF_SERVERS | OF_BOTH
    serve.kill_all()


def test_what_no_rule_speaks_of_stays_as_it_is() -> None:
    other = {"PATH": "/bin", "SSL_CERT_FILE": "x", "LASTEVENT_REDIS_URL": "redis://h", "HTTPS_PROXY": "http://p"}
    for kept in (for_a_server(other), for_a_worker(other)):
        assert {name: kept[name] for name in other} == other
    assert for_the_embedded_server(other) == {"PATH": "/bin"}


def test_the_port_for_operators_is_the_parent_s_alone() -> None:
    given = {"LASTEVENT_ADMIN_PORT": "9464"}
    assert for_a_server(given) == for_a_worker(given) == for_a_worker({}) == {"LASTEVENT_ADMIN_PORT": "0"}


def test_files_of_secrets_and_issuers_are_the_servers_alone(tmp_path: Path) -> None:
    files = {f"LASTEVENT_{name}_FILE": "/run/x" for name in ("API_KEYS", "MASKED_KEYS", "TOKEN_SECRET")}
    given = {**files, "LASTEVENT_ISSUERS": issuers_in(tmp_path), "SHOP_TOKENS": "x", "HOME": "/"}
    assert given.items() <= for_a_server(given).items()
    assert for_a_worker(given).keys() == {"HOME", "LASTEVENT_ADMIN_PORT"}


@pytest.mark.parametrize("written", [b"[[issuer", b"\xff", None], ids=["no TOML", "no text", "no file"])
def test_a_file_of_issuers_that_cannot_be_read_is_for_the_server_to_name(tmp_path: Path, written: bytes | None) -> None:
    file = tmp_path / "issuers.toml"
    if written:
        file.write_bytes(written)
    assert "LASTEVENT_ISSUERS" not in for_a_worker({"LASTEVENT_ISSUERS": str(file)})


# -- the data directory --------------------------------------------------------------------------------------


def refused(data_dir: Path) -> str:
    before = sorted(os.listdir(data_dir))
    settings = {"LASTEVENT_API_KEYS": "a-key-of-thirty-two-and-more-of-it", "ANTHROPIC_API_KEY": "x"}
    command = ("up", "--port", str(free_port()), "--data-dir", str(data_dir))
    ended = run_lastevent(data_dir.parent, *command, **settings)
    assert ended.returncode == 2, ended.stderr
    assert sorted(os.listdir(data_dir)) == before
    [line] = ended.stderr.decode().splitlines()
    return line


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777], ids=oct)
def test_a_data_directory_that_others_may_write_is_refused_and_what_to_do_is_said(tmp_path: Path, mode: int) -> None:
    data_dir = tmp_path / "my data"
    data_dir.mkdir()
    data_dir.chmod(mode)
    assert refused(data_dir).endswith(f"chmod go-w '{data_dir}'")


def test_a_data_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir(0o700)
    if os.geteuid() == 0:
        os.chown(data_dir, 65534, 65534)
    else:  # only root can give a directory away; root has some
        data_dir = Path("/usr")
    assert "another user's" in refused(data_dir)
