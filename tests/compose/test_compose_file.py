"""compose.yaml says what the rest of the repository says, and is what Compose reads."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.settings import PREFIX, PROVIDER_VARIABLES, Settings, load_settings
from tests.compose.balancer import CONFIGURATION
from tests.compose.compose_file import (
    COMPOSITION,
    FILE,
    GIVEN,
    OURS,
    ROOT,
    SERVICES,
    VALKEY_SERVER_PASSWORD,
    VALKEY_WORKER_PASSWORD,
    WRITER_PASSWORD,
    settings,
)
from worker.dispatch import CLOSE_S
from worker.worker import HAND_OVER_S

ONCE = ["certificate", "seal-key"]
LONG_RUNNING = {name: service for name, service in SERVICES.items() if name not in ONCE}
IMAGE = SERVICES["worker"]["build"]["dockerfile_inline"]
DEFAULTS = Settings.model_construct()


def mounts(name: str) -> dict[str, str]:
    """volume or path → where it is mounted."""
    return dict(mount.split(":", maxsplit=1) for mount in SERVICES[name].get("volumes", []))


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def addresses(name: str) -> list[str]:
    """host:container of everything that a service publishes."""
    return [str(port) for port in SERVICES[name].get("ports", [])]


def test_it_is_valid_by_the_compose_specification() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_secrets_are_required_and_nothing_else_is() -> None:
    required = re.findall(r"\$\{(\w+):?\?", FILE.read_text())
    assert set(required) == GIVEN.keys()


@pytest.mark.parametrize("name", OURS)
def test_every_setting_in_an_environment_is_one_that_lastevent_has(name: str) -> None:
    known = {f"{PREFIX}{field}".upper() for field in Settings.model_fields}
    others = PROVIDER_VARIABLES | {"PGPASSWORD", "LASTEVENT_API_KEYS_FILE", "LASTEVENT_TOKEN_SECRET_FILE"}
    assert set(SERVICES[name]["environment"]) <= known | others


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_one_that_lastevent_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in settings(name).items():
        monkeypatch.setenv(variable, value)
    assert load_settings().archive_url


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_every_service_comes_back_has_limits_and_says_how_it_is(name: str) -> None:
    service = LONG_RUNNING[name]
    assert service["restart"] == "unless-stopped"
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["healthcheck"]["test"]
    assert "stop_grace_period" in service


@pytest.mark.parametrize("name", ["nginx", *ONCE, *OURS])
def test_nothing_of_ours_runs_as_root_or_writes_outside_its_volumes(name: str) -> None:
    service = SERVICES[name]
    assert not service["user"].startswith("0")
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


def test_only_nginx_is_to_be_reached_and_from_this_machine_alone() -> None:
    assert {name for name in SERVICES if addresses(name)} == {"nginx"}
    assert addresses("nginx") == ["127.0.0.1:8080:8080", "127.0.0.1:8443:8443"]


def test_the_port_for_operators_is_not_published_and_no_proxy_leads_to_it() -> None:
    assert all("9464" not in address for name in SERVICES for address in addresses(name))
    upstreams = re.findall(r"server server-\d+:(\d+) ", CONFIGURATION.read_text())
    assert set(upstreams) == {SERVICES["server-1"]["command"][-1]}
    assert CONFIGURATION.read_text().count("proxy_pass ") == CONFIGURATION.read_text().count(
        "proxy_pass http://lastevent;"
    )
    assert not any("LASTEVENT_ADMIN_HOST" in settings(name) for name in OURS), "loopback, of its container"


def test_the_state_outlives_its_containers() -> None:
    named = {volume for name in SERVICES for volume in mounts(name) if not volume.startswith(".")}
    assert named == COMPOSITION["volumes"].keys()
    assert [name for name in SERVICES if "server-secrets" in mounts(name)] == ["server-1", "server-2"]
    assert "valkey" in mounts("valkey")
    assert "postgres" in mounts("postgres")


def test_every_file_that_it_mounts_or_copies_is_in_the_repository() -> None:
    mounted = [mount for name in SERVICES for mount in mounts(name) if mount.startswith("./")]
    copies = re.findall(r"^COPY (?!--)(.+) \S+$", IMAGE, re.MULTILINE)
    paths = mounted + [path for copy in copies for path in copy.split()]
    assert len(paths) > 4
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_nothing_waits_for_postgres() -> None:
    assert "profiles" not in SERVICES["postgres"]
    needs = {needed for service in SERVICES.values() for needed in service.get("depends_on", {})}
    assert needs == {"valkey", *ONCE}


def test_the_private_key_and_the_writers_password_are_the_workers_alone() -> None:
    assert [name for name in SERVICES if "seal-key" in mounts(name)] == ["seal-key", "worker"]
    assert mounts("worker")["seal-key"].endswith(":ro")
    given = [name for name in SERVICES if WRITER_PASSWORD in str(SERVICES[name].get("environment"))]
    assert given == ["worker", "postgres"]


@pytest.mark.parametrize("name", OURS)
def test_each_has_the_user_of_its_own_in_valkey_and_not_the_other_s_password(name: str) -> None:
    passwords = {"server": VALKEY_SERVER_PASSWORD, "worker": VALKEY_WORKER_PASSWORD}
    user = name.partition("-")[0]
    assert settings(name)["LASTEVENT_REDIS_URL"] == f"redis://{user}:{passwords.pop(user)}@valkey:6379/0"
    assert not any(other in str(SERVICES[name]) for other in passwords.values())


@pytest.mark.parametrize("name", ["server-1", "server-2"])
def test_a_server_can_change_nothing_of_the_seals(name: str) -> None:
    assert mounts(name) == {"seal-public": "/seal/public:ro", "server-secrets": "/secrets:ro"}
    assert "LASTEVENT_SEAL_KEY" not in settings(name)


@pytest.mark.parametrize("name", OURS)
def test_every_file_of_the_seals_is_in_a_volume_that_its_service_mounts(name: str) -> None:
    places = [place.removesuffix(":ro") for place in mounts(name).values()]
    files = [value for value in settings(name).values() if value.startswith("/")]
    assert len(files) == len([file for file in files if str(Path(file).parent) in places]) > 1


def test_the_image_has_every_folder_that_a_volume_is_mounted_on() -> None:
    """Docker gives a new volume the owner of the folder that it covers: root, if there is none."""
    [made] = re.findall(r"install --directory .* lastevent (/.+)$", IMAGE, re.MULTILINE)
    places = {place.removesuffix(":ro") for name in [*ONCE, *OURS] for place in mounts(name).values()}
    assert places == set(made.split())


@pytest.mark.parametrize("name", OURS)
def test_what_opens_doors_is_the_servers_and_what_pays_and_seals_the_workers(name: str) -> None:
    of_servers = {"API_KEYS", "API_KEYS_FILE", "TOKEN_SECRET", "TOKEN_SECRET_FILE", "ISSUERS"}
    held = set(SERVICES[name]["environment"]) & {PREFIX + secret for secret in of_servers}
    pays = set(SERVICES[name]["environment"]) & {*PROVIDER_VARIABLES, PREFIX + "SEAL_KEY"}
    assert (len(held), len(pays)) == ((0, 6) if name == "worker" else (5, 0))


@pytest.mark.parametrize("name", ["server-1", "server-2"])
def test_a_server_believes_nginx_of_a_caller_s_address_and_nobody_else(name: str) -> None:
    trusted = ipaddress.ip_network(settings(name)["LASTEVENT_TRUSTED_PROXIES"])
    [networks] = COMPOSITION["networks"]["front"]["ipam"]["config"]
    assert trusted == ipaddress.ip_network(networks["ip_range"]), "where nginx gets its address"
    assert ipaddress.ip_address(SERVICES[name]["networks"]["front"]["ipv4_address"]) not in trusted
    assert {service for service in SERVICES if "front" in SERVICES[service].get("networks", ())} == {
        *("nginx", "server-1", "server-2")
    }


@pytest.mark.parametrize("name", ["server-1", "server-2"])
def test_a_server_has_longer_to_go_than_its_drain_takes(name: str) -> None:
    assert seconds(SERVICES[name]["stop_grace_period"]) >= 2 * DEFAULTS.drain_s


def test_a_worker_has_longer_to_go_than_its_drain_and_handing_over_take() -> None:
    assert seconds(SERVICES["worker"]["stop_grace_period"]) >= DEFAULTS.worker_drain_s + HAND_OVER_S + CLOSE_S


def test_nginx_finds_every_server_under_the_address_and_the_port_that_it_has() -> None:
    upstreams = dict(re.findall(r"server (server-\d+):(\d+) ", CONFIGURATION.read_text()))
    servers: dict[str, dict[str, Any]] = {name: SERVICES[name] for name in SERVICES if name.startswith("server-")}
    assert upstreams == {name: server["command"][-1] for name, server in servers.items()}
    known = dict(host.split(":") for host in SERVICES["nginx"]["extra_hosts"])
    assert known == {name: server["networks"]["front"]["ipv4_address"] for name, server in servers.items()}


def test_nginx_listens_where_its_published_ports_lead() -> None:
    listens = re.findall(r"^ *listen (\d+)", CONFIGURATION.read_text(), re.MULTILINE)
    assert listens == [address.split(":")[-1] for address in addresses("nginx")]


def test_nginx_takes_bodies_as_large_and_silences_as_long_as_the_servers_do() -> None:
    configuration = CONFIGURATION.read_text()
    of_starts = re.search(r"location ~ \S+streams\S+ \{\s+client_max_body_size (\d+)m;", configuration)
    of_others = re.search(r"^        client_max_body_size (\d+)m;", configuration, re.MULTILINE)
    sizes = (DEFAULTS.max_request_bytes, DEFAULTS.max_body_bytes)
    assert [found and int(found[1]) * 2**20 for found in (of_starts, of_others)] == list(sizes)
    assert f"proxy_read_timeout {15 * DEFAULTS.heartbeat_s:.0f}s;" in configuration
    assert f"send_timeout {DEFAULTS.viewer_stall_s:.0f}s;" in configuration
