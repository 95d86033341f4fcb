"""The OpenAPI document is true: real answers have its forms, and a client made from it knows every field."""

import json
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from broker.log.agents import Agents, Announced
from broker.settings import load_settings
from broker.web.app import create_app
from tests.rig.deployment import Deployment, wait_until
from tests.rig.npm import install
from tests.rig.streams import with_redis
from tests.web.test_start import EVERYTHING
from tests.web.wire import Api

DOCUMENT: dict[str, Any] = create_app(load_settings()).openapi()
OPERATIONS = [
    pytest.param(path, method, operation, id=operation["operationId"])
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def _is_of_dialects(routes: dict[str, Any]) -> bool:
    """Their forms are other ecosystems', which describe them."""
    return all(operation["tags"] == ["Dialects"] for operation in routes.values())


OF_DIALECTS = {
    operation["operationId"]
    for routes in DOCUMENT["paths"].values()
    for operation in routes.values()
    if operation["tags"] == ["Dialects"]
}
THEIRS = {
    *("metadata", "data", "content", "usage", "native", "system", "tools", "tool_choice", "thinking"),
    *("output_schema", "provider_options", "input", "input_schema", "detail"),
}
"""Fields whose JSON is a caller's or a provider's own, so no client can know its form. (`usage`: an external
producer's ending may say anything there. `detail`: each kind of deed has its own.)"""


def without_gaps(schema: Any) -> Any:
    """The same schema, but a field that it does not have is wrong: the document must know all that is sent."""
    if isinstance(schema, dict):
        closed = {name: without_gaps(part) for name, part in schema.items()}
        return {**closed, "additionalProperties": False} if "properties" in schema else closed
    return [without_gaps(part) for part in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_each_operation_tells_what_it_is_and_gives(path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"].endswith(".")
    assert len(operation["tags"]) == 1
    assert "security" in operation
    successes = {status: answer for status, answer in operation["responses"].items() if status.startswith(("1", "2"))}
    assert successes
    for status, answer in successes.items():
        forms = answer.get("content", {})
        assert bool(forms) == (status not in ("101", "204")) or status == "202", (
            "what is accepted may have nothing to tell"
        )
        assert all(form["schema"] for form in forms.values()), (path, method, status)


def test_it_says_what_opens_each_route() -> None:
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert (schemes["key"]["scheme"], schemes["address"]["name"]) == ("bearer", "access_token")
    opened_by = {
        operation["operationId"]: operation["security"] for *_, operation in (one.values for one in OPERATIONS)
    }
    by_token = {name for name, security in opened_by.items() if {"address": ["streams:read"]} in security}
    assert by_token - OF_DIALECTS == {"events", "stream", "text"}
    assert {name for name, security in opened_by.items() if not security} == {
        "healthz",
        "readyz",
        "socket",
        "langgraph_ok",
    }


def test_real_answers_have_the_forms_that_it_gives(archived: Deployment) -> None:
    with closing(Api(archived.url)) as api:
        generated = archived.create("[[tokens=3 rate=0 ttft_ms=0]]", session_id="s", user_id="u", metadata={"a": [1]})
        archived.wait_until_ended(generated)
        list(api.get(f"/v1/streams/{generated}/events").iter_lines())
        wait_until(lambda: api.get(f"/v1/streams/{generated}").json()["archived_at"], "it is archived")
        external = api.post("/v1/streams", json={"producer": "external"})
        sid = external.json()["id"]
        batch = {"epoch": 1, "first": 2, "events": [{"event": "text_delta", "data": {"text": "x"}}]}
        native = {"provider": "gemini", "model": "m", "native": [{"text": {"$lastevent": "text", "characters": 1}}]}
        said = api.start_external()
        api.append(said, ("text_delta", {"text": "x"}), ("internal.turn", native), ("done", {"cost_usd": 0.5}))
        erased = archived.create("[[tokens=1 rate=0 ttft_ms=0]]")
        archived.wait_until_ended(erased)
        wait_until(lambda: api.get(f"/v1/streams/{erased}").json()["archived_at"], "it is archived")
        answers = [
            ("create_stream", external),
            ("create_stream", api.post("/v1/streams", json={"producer": "external", "prompt": "What was asked"})),
            ("create_stream", api.post("/v1/streams", json={"producer": "external", "system": "x", "max_tokens": 5})),
            ("append", api.post(f"/v1/streams/{sid}/events", json=batch)),
            ("heartbeat", api.post(f"/v1/streams/{sid}/heartbeat", json={"epoch": 1})),
            ("cancel", api.post(f"/v1/streams/{sid}/cancel")),
            ("regenerate", api.post(f"/v1/streams/{generated}/regenerate")),
            ("stream", api.get(f"/v1/streams/{sid}")),
            ("stream", api.get(f"/v1/streams/{generated}")),
            ("message", api.get(f"/v1/streams/{generated}/message")),
            ("message", api.get(f"/v1/streams/{said}/message")),
            ("views", api.get(f"/v1/streams/{generated}/views")),
            ("verify", api.get(f"/v1/streams/{generated}/verify")),
            ("verify", api.get(f"/v1/streams/{sid}/verify")),
            ("streams", api.get("/v1/streams")),
            ("streams", api.get("/v1/streams?include=request")),
            ("sessions", api.get("/v1/sessions")),
            ("session", api.get("/v1/sessions/s")),
            ("healthz", api.get("/healthz")),
            ("readyz", api.get("/readyz")),
            ("models", api.get("/v1/models")),
            ("create_stream", api.post("/v1/streams", json={**EVERYTHING, "model": ["anthropic/a", "fast"]})),
            ("create_stream", api.post("/v1/streams", json={"prompt": "x", "transform": {"tags": ["tool"]}})),
            *of_an_agent(archived, api),
        ]
        assert api.delete(f"/v1/streams/{erased}").status_code in (202, 204)
        wait_until(
            lambda: api.get(f"/v1/streams/{erased}/verify").json()["verdict"] == "erased", "its erasure is sealed"
        )
        answers += [
            ("stream", api.get(f"/v1/streams/{erased}")),
            ("verify", api.get(f"/v1/streams/{erased}/verify")),
            ("streams", api.get("/v1/streams")),
        ]
        lines = api.get(f"/v1/streams/{generated}/events?follow=0", headers={"Accept": "application/x-ndjson"})
    for name, answer in answers:
        assert errors(schema_of(name, str(answer.status_code)), answer.json()) == [], name
    for line in lines.text.splitlines():
        assert errors({"$ref": "#/components/schemas/Event"}, json.loads(line)) == []


def of_an_agent(deployment: Deployment, api: Api) -> list[tuple[str, httpx.Response]]:
    agent = Announced("of-openapi", {"type": "string"}, ["args"], [{"name": "refund", "title": None}])
    with_redis(deployment, lambda log: Agents(log.redis, log.keys).announce({"support": agent}))
    started = api.post("/v1/streams", json={"agent": "support", "input": "x"})
    sid = started.json()["id"]
    with_redis(deployment, lambda log: log.inputs.ask(sid, "a1", {}))
    answers = [
        ("create_stream", started),
        ("stream", api.get(f"/v1/streams/{sid}")),
        ("agents", api.get("/v1/agents")),
        ("give_input", api.post(f"/v1/streams/{sid}/input", json={"text": "x"})),
        ("decide", api.post(f"/v1/streams/{sid}/approvals/a1", json={"approve": True})),
        ("cancel", api.post(f"/v1/streams/{sid}/cancel")),
    ]
    with_redis(deployment, lambda log: log.redis.delete(log.keys.agents, log.keys.jobs_of("of-openapi")))
    return answers


def schema_of(name: str, status: str) -> dict[str, Any]:
    [operation] = [one.values[2] for one in OPERATIONS if one.id == name]
    found: dict[str, Any] = operation["responses"][status]["content"]["application/json"]["schema"]
    return found


def errors(schema: dict[str, Any], value: Any) -> list[str]:
    whole = without_gaps({**schema, "components": {"schemas": DOCUMENT["components"]["schemas"]}})
    return [error.message for error in Draft202012Validator(whole).iter_errors(value)]


@pytest.mark.npm
@pytest.mark.processes
def test_a_client_in_typescript_knows_every_field(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]
) -> None:
    """`unknown` stands for the JSON that callers and providers choose, and for nothing else."""
    folder = install(Path(__file__).parent / "npm", tmp_path_factory.mktemp("npm"), require("npm", "npm"))
    ours = {path: routes for path, routes in DOCUMENT["paths"].items() if not _is_of_dialects(routes)}
    (folder / "openapi.json").write_text(json.dumps({**DOCUMENT, "paths": ours}))
    program = folder / "node_modules" / "openapi-typescript" / "bin" / "cli.js"
    command = [require("node", "nodejs"), str(program), "openapi.json"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    assert "events_url: string" in made.stdout
    unknown = fields_that_are_unknown(made.stdout)
    assert unknown - {"headers"} <= THEIRS, "the tool itself says that an answer may have any headers"
    assert "metadata" in unknown


def fields_that_are_unknown(types: str) -> set[str]:
    """The names of the innermost fields around each `unknown`."""
    found, field = set(), ""
    for line in types.splitlines():
        if name := re.match(r"\s*\"?([\w/.+-]+)\"?\??: ", line):
            field = name[1] if not line.strip().startswith("[key") else field
        if re.search(r"\bunknown\b", line.partition("//")[0]) and not line.strip().startswith("*"):
            found.add(field)
    return found
