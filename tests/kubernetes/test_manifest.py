"""docs/ops/kubernetes.yaml is what Kubernetes takes, and says what the rest of the repository says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.settings import PREFIX, PROVIDER_VARIABLES, Settings
from tests.compose.compose_file import ROOT, SERVICES
from tests.kubernetes.schemas import NEWEST, OLDEST, Schemas, wheel
from worker.dispatch import CLOSE_S
from worker.worker import HAND_OVER_S

MANIFEST: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "docs" / "ops" / "kubernetes.yaml").read_text()))
DEFAULTS = Settings.model_construct()
OURS = ("server", "worker")


def of(kind: str, name: str) -> dict[str, Any]:
    [found] = [thing for thing in MANIFEST if (thing["kind"], thing["metadata"]["name"]) == (kind, name)]
    return found


def pod(component: str) -> dict[str, Any]:
    spec: dict[str, Any] = of("Deployment", f"lastevent-{component}")["spec"]["template"]["spec"]
    return spec


def container(component: str) -> dict[str, Any]:
    [only] = pod(component)["containers"]
    return dict(only)


def variables(component: str) -> dict[str, str | None]:
    """Name → value, or None where a secret has it."""
    own = {entry["name"]: entry.get("value") for entry in container(component)["env"]}
    return {**of("ConfigMap", "lastevent")["data"], **own}


@pytest.fixture(scope="session")
def schemas() -> Path:
    return wheel()


@pytest.mark.processes
@pytest.mark.parametrize("release", [OLDEST, NEWEST])
def test_each_object_is_valid_by_the_schemas_of_kubernetes(schemas: Path, release: str) -> None:
    known = Schemas(schemas, release)
    assert [wrong for thing in MANIFEST for wrong in known.wrong(thing)] == []
    mistaken = copy.deepcopy(of("Deployment", "lastevent-server"))
    mistaken["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    mistaken["spec"]["replicas"] = "two"
    assert len(known.wrong(mistaken)) == 2, "and the schemas are strict"


@pytest.mark.parametrize("component", OURS)
def test_every_variable_is_a_setting_and_secrets_are_of_the_process_that_needs_them(component: str) -> None:
    given = variables(component)
    settings = {f"{PREFIX}{field}".upper() for field in Settings.model_fields}
    assert given.keys() <= settings | PROVIDER_VARIABLES | {"PGPASSWORD"}
    secrets = {
        entry["valueFrom"]["secretKeyRef"]["name"] for entry in container(component)["env"] if "valueFrom" in entry
    }
    assert secrets == {f"lastevent-{component}s"}
    of_servers = {"LASTEVENT_API_KEYS", "LASTEVENT_TOKEN_SECRET"}
    of_workers = {"ANTHROPIC_API_KEY", "LASTEVENT_SEAL_KEY"}
    assert given.keys() & (of_servers | of_workers) == (of_servers if component == "server" else of_workers)
    mounted = {volume["name"] for volume in pod(component)["volumes"]}
    assert ("seal-key" in mounted) == (component == "worker")


@pytest.mark.parametrize("component", OURS)
def test_each_runs_as_nobody_and_writes_to_its_tmp_alone(component: str) -> None:
    assert pod(component)["securityContext"]["runAsNonRoot"]
    assert not pod(component)["automountServiceAccountToken"]
    confined = container(component)["securityContext"]
    assert confined["readOnlyRootFilesystem"]
    assert not confined["allowPrivilegeEscalation"]
    assert confined["capabilities"] == {"drop": ["ALL"]}
    written = [mount["name"] for mount in container(component)["volumeMounts"] if not mount.get("readOnly")]
    assert written == ["tmp"]
    user = SERVICES["worker"]["user"].partition(":")[0]
    assert str(pod(component)["securityContext"]["runAsUser"]) == user, "the image's"


@pytest.mark.parametrize("component", OURS)
def test_each_starts_as_in_compose_and_is_asked_where_it_listens(component: str) -> None:
    theirs = SERVICES["server-1" if component == "server" else "worker"]["command"]
    assert container(component)["command"] == theirs
    ports = {port["name"]: port["containerPort"] for port in container(component)["ports"]}
    assert ports["admin"] == int(str(variables(component)["LASTEVENT_ADMIN_PORT"]))
    assert ports.get("web", 8000) == int(SERVICES["server-1"]["command"][-1])
    probes = [container(component)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["port"] for probe in probes} == {"web" if component == "server" else "admin"}
    assert probes[2]["path"] == "/healthz", "a process is not ended because Redis is away"
    if component == "server":
        assert probes[1]["path"] == "/healthz", "nor is a server taken from viewers, whom it tells to come back"


def test_each_has_longer_to_go_than_it_takes() -> None:
    sleeps_s = container("server")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod("server")["terminationGracePeriodSeconds"] >= sleeps_s + 2 * DEFAULTS.drain_s
    assert pod("worker")["terminationGracePeriodSeconds"] >= DEFAULTS.worker_drain_s + HAND_OVER_S + CLOSE_S


@pytest.mark.parametrize("component", OURS)
def test_one_is_always_there_when_nodes_are_emptied_and_roll_outs_lose_none(component: str) -> None:
    deployment = of("Deployment", f"lastevent-{component}")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["replicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert deployment["selector"]["matchLabels"] == labels
    budget = of("PodDisruptionBudget", f"lastevent-{component}")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, labels)
    [spread] = pod(component)["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels


def test_what_the_service_and_the_ingress_lead_to_is_the_servers_web_port_and_nothing_else() -> None:
    service = of("Service", "lastevent")["spec"]
    assert service["selector"] == of("Deployment", "lastevent-server")["spec"]["template"]["metadata"]["labels"]
    assert [(port["name"], port["targetPort"]) for port in service["ports"]] == [("web", "web")]
    [rule] = of("Ingress", "lastevent")["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"] == {"service": {"name": "lastevent", "port": {"name": "web"}}}
    rules = of("NetworkPolicy", "lastevent")["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [["web"], ["admin"]]
    assert all(rule["from"] for rule in rules)


def test_the_ingress_takes_bodies_as_large_and_silences_as_long_as_the_servers_do() -> None:
    said = of("Ingress", "lastevent")["metadata"]["annotations"]
    assert said["nginx.org/client-max-body-size"] == f"{DEFAULTS.max_request_bytes // 2**20}m"
    assert said["nginx.org/proxy-read-timeout"] == f"{15 * DEFAULTS.heartbeat_s:.0f}s"
    assert said["nginx.org/proxy-buffering"] == "False"
