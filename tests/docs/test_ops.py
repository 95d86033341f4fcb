"""What operators load into Prometheus and Grafana, and the table of metrics, against a scrape of a live deployment."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from broker.process.admin import Panel, merged
from tests.rig.deployment import HTTP, Deployment, wait_until

ROOT = Path(__file__).parents[2]
OPS = ROOT / "docs" / "ops"
PARTS = ("_bucket", "_sum", "_count")
SECRET = "planted-in-what-callers-choose"

Sample = tuple[str, frozenset[tuple[str, str]]]


class Scrape(NamedTuple):
    """`names`: of the series that there are, or may be, as they are asked for. `types`: of the families of ours."""

    text: str
    names: set[str]
    types: dict[str, str]
    values: dict[Sample, float]

    def value(self, name: str, **labels: str) -> float:
        """Of all series that have these labels, summed."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.values.items() if found == name and wanted <= has)


def read(text: str) -> Scrape:
    names: set[str] = set()
    types: dict[str, str] = {}
    values: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        names |= {f"{name}{part}" for part in PARTS} if family.type == "histogram" else {name}
        if name.startswith("lastevent_"):
            types[name] = family.type
        values |= {(sample.name, frozenset(sample.labels.items())): sample.value for sample in family.samples}
    return Scrape(text, names, types, values)


@pytest.fixture(scope="module")
def scraped(archived: Deployment) -> Scrape:
    """Of a server and a worker that have done something, as a supervisor would show them."""
    with Redis.from_url(archived.redis_url) as redis:
        redis.config_set("maxmemory", "1gb")
    sid = archived.create("hello", session_id=SECRET, user_id=SECRET, metadata={SECRET: SECRET})
    url = f"{archived.url}/v1/streams/{sid}"
    followed = HTTP.get(f"{url}/events", timeout=60).text
    assert "event: done" in followed
    HTTP.get(f"{archived.url}/v1/streams", headers={"Host": f"{SECRET}.example"})
    HTTP.request("PROPFIND", f"{archived.url}/{SECRET}")

    def is_archived() -> bool:
        return read(archived.scrape("worker-0")).value("lastevent_seals_total") > 0

    wait_until(is_archived, "the stream is archived")
    wait_until(lambda: "lastevent_store_used_ratio" in archived.scrape("worker-0"), "the worker has looked at Redis")
    bodies = {part: archived.scrape(part).encode() for part in ("server-0", "worker-0")}
    panel = Panel()
    panel.drop("worker 2")  # one that has died
    return read((merged(bodies) + panel.metrics()).decode())


def test_a_scrape_says_what_was_done(scraped: Scrape) -> None:
    tenant, model = "default", "anthropic/claude-sonnet-5-5"
    route = "/v1/streams/{sid}/events"
    assert scraped.value("lastevent_http_requests_total", route="/v1/streams", method="POST", status="201") == 1
    assert scraped.value("lastevent_http_requests_total", route=route, method="GET", status="200") == 1
    assert scraped.value("lastevent_http_request_seconds_count", route="/v1/streams") == 1
    assert scraped.value("lastevent_http_request_seconds_count", route=route) == 0
    assert scraped.value("lastevent_http_requests_total", route="other", method="other") == 1
    assert scraped.value("lastevent_auth_failures_total", reason="forbidden") == 1
    assert scraped.value("lastevent_connects_total") == 1
    assert scraped.value("lastevent_first_byte_seconds_count") == 1
    assert scraped.value("lastevent_viewer_seconds_count") == 1
    assert scraped.value("lastevent_viewers_ended_total", how="finished") == 1
    written = scraped.value("lastevent_appended_events_total")
    assert written > 10
    assert scraped.value("lastevent_sent_events_total", tenant=tenant) == written + 1  # `queued` is its creator's
    assert scraped.value("lastevent_sent_bytes_total", tenant=tenant) > written * 20
    assert 0 < scraped.value("lastevent_append_seconds_count") <= written
    assert scraped.value("lastevent_hub_connected") == 1
    assert scraped.value("lastevent_queue_wait_seconds_count") == 1
    assert scraped.value("lastevent_streams_ended_total", tenant=tenant, state="done", code="") == 1
    assert scraped.value("lastevent_provider_attempts_total", outcome="ok") == 1
    assert scraped.value("lastevent_provider_first_text_seconds_count", model=model) == 1
    assert scraped.value("lastevent_provider_tokens_total", tenant=tenant, model=model, direction="output") > 10
    assert scraped.value("lastevent_seals_total") >= 1
    assert scraped.value("lastevent_generations_running") == scraped.value("lastevent_writer_bytes") == 0
    assert scraped.value("lastevent_viewers") == scraped.value("lastevent_gaps_total") == 0
    assert scraped.value("lastevent_healed_events_total") == scraped.value("lastevent_fenced_writes_total") == 0
    assert 0 < scraped.value("lastevent_store_used_ratio") < 1
    for process in ("server-0", "worker-0"):
        assert scraped.value("lastevent_redis_seconds_count", process=process) > 0
        assert scraped.value("process_resident_memory_bytes", process=process) > 2**24
    assert scraped.value("lastevent_process_up", process="worker 2") == 0


def test_a_server_and_a_worker_say_at_their_own_ports_that_they_are_ready(archived: Deployment) -> None:
    for port in archived.admin_ports.values():
        answer = HTTP.get(f"http://127.0.0.1:{port}/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_no_label_says_who_or_which_stream(archived: Deployment, scraped: Scrape) -> None:
    sids = [stream["id"] for stream in HTTP.get(f"{archived.url}/v1/streams").json()["streams"]]
    assert sids
    assert [word for word in (SECRET, SECRET.upper(), *sids) if word in scraped.text] == []
    allowed = {
        *(
            "process",
            "le",
            "route",
            "method",
            "status",
            "reason",
            "limit",
            "format",
            "how",
            "from",
            "tenant",
            "command",
        ),
        *("kind", "state", "code", "model", "outcome", "direction", "implementation", "major", "minor", "patchlevel"),
        "version",
    }
    assert {name for _, labels in scraped.values for name, _ in labels} <= allowed


def expressions() -> dict[str, str]:
    """What Prometheus is asked: by the panel's title, or the rule's name."""
    panels = json.loads((OPS / "dashboard.json").read_text())["panels"]
    asked = {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel.get("targets", ())
    }
    return asked | {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((OPS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def test_each_name_in_the_dashboard_and_the_rules_is_in_a_scrape(scraped: Scrape) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for where, expression in expressions().items():
        named = set(re.findall(r"\b(?:lastevent|process)[_:][a-z0-9_]+", expression))
        assert named or expression.startswith("vector("), where
        assert named - scraped.names - recorded == set(), where


def test_the_dashboard_has_a_row_for_each_part_and_no_two_panels_in_one_place() -> None:
    dashboard = json.loads((OPS / "dashboard.json").read_text())
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["People", "Answers", "Store", "Archive", "Doors", "Processes"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_each_alert_tells_what_it_means_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 11
    for rule in alerts:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"].keys() == {"summary", "meaning", "action"}
        assert rule["labels"] == {"severity": "page"}
        assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "1m"))


def documented() -> dict[str, str]:
    """The table of docs/OPERATIONS.md: name → type."""
    section = (ROOT / "docs" / "OPERATIONS.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| (counter|gauge|histogram) \|", section, re.MULTILINE)
    return {f"lastevent_{name}": kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_table_of_metrics_is_what_there_is(scraped: Scrape) -> None:
    silent = {
        "lastevent_lease_margin_seconds": "gauge"
    }  # of a worker that has renewed no lease, in a stream of a second
    assert documented() == scraped.types | silent
