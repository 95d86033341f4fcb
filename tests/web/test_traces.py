"""Traces: a stream's way is linked by ids from the caller's own span to its viewers' first bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_port
from broker import traces
from tests.rig.collector import Collector, collecting
from tests.rig.deployment import HTTP, Deployment, wait_until

CALLERS = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{CALLERS[0]}-{CALLERS[1]}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def traced(own_deployment: Callable[..., Deployment], folder: Path, settings: dict[str, str]) -> Deployment:
    archive = {"LASTEVENT_ARCHIVE_URL": f"sqlite:///{folder}/archive.db", "LASTEVENT_ARCHIVE_AFTER_S": "0"}
    return own_deployment(servers=1, workers=1, **archive, **settings)


def test_one_generation_is_a_chain_of_spans_linked_by_their_ids(
    own_deployment: Callable[..., Deployment], collector: Collector, tmp_path: Path
) -> None:
    deployment = traced(own_deployment, tmp_path, collector.settings)
    body = {"prompt": "[[tokens=3 rate=0 ttft_ms=500]]"}  # its viewer comes while it runs
    answer = HTTP.post(f"{deployment.url}/v1/streams", json=body, headers={"traceparent": TRACEPARENT})
    sid = answer.json()["id"]
    events = HTTP.get(f"{deployment.url}/v1/streams/{sid}/events", headers={"Last-Event-ID": "1"})
    assert "event: done" in events.text
    assert "traceparent" not in HTTP.get(f"{deployment.url}/v1/streams/{sid}").text

    names = ("POST /v1/streams", "queue", "generate", "chat", "archive", "follow")
    wait_until(lambda: all(collector.spans(name) for name in names), "all spans have been exported")
    ([post], [queue], [generate], [chat], [archive], [follow]) = [collector.spans(name) for name in names]

    spans = [post, queue, generate, chat, archive, follow]
    assert [span.kind for span in spans] == ["SERVER", "PRODUCER", "CONSUMER", "CLIENT", "INTERNAL", "SERVER"]
    assert {span.service for span in (post, queue, follow)} == {"lastevent-server"}
    assert {span.service for span in (generate, chat, archive)} == {"lastevent-worker"}
    assert (post.trace, post.parent) == CALLERS
    assert {span.trace for span in (queue, generate, chat, archive)} == {post.trace}
    assert (queue.parent, generate.parent, chat.parent, archive.parent) == (post.id, queue.id, generate.id, queue.id)
    assert [span.links for span in (generate, archive, follow)] == [[queue.ids]] * 3
    assert (follow.parent, follow.trace == post.trace) == ("", False)
    assert not any(span.is_error for span in spans)

    assert all(span.attributes["lastevent.stream.id"] == sid for span in spans if span is not chat)
    assert post.attributes["http.response.status_code"] == 201
    assert generate.attributes["lastevent.state"] == "done"
    assert chat.events == ["first text"]
    model = chat.name.removeprefix("chat ")
    assert {name: value for name, value in chat.attributes.items() if "usage" not in name} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": ["end_turn"],
    }
    assert chat.attributes["gen_ai.usage.output_tokens"] == 3
    assert chat.attributes["gen_ai.usage.input_tokens"] > 0
    assert follow.attributes["lastevent.cursor"] == 1
    assert follow.attributes["lastevent.from"] in ("ring", "log")

    # of an error its code; and an exit exports what is left
    failed = deployment.create("[[status=400]]")
    assert deployment.wait_until_ended(failed)["state"] == "error"
    refused = HTTP.post(f"{deployment.url}/v1/streams", json={"prompt": ["a planted prompt"]})
    assert refused.status_code == 422
    for process in (*deployment.servers, *deployment.workers):
        process.stop()
    errors = {span.name.partition(" ")[0]: span.attributes for span in collector.spans() if span.is_error}
    assert errors.keys() == {"POST", "generate", "chat"}
    assert errors["POST"]["error.type"] == refused.json()["code"]
    assert errors["POST"]["http.response.status_code"] == 422
    assert errors["chat"]["error.type"] == errors["generate"]["error.type"]
    assert b"planted" not in b"".join(collector.received)


def test_a_collector_that_is_away_costs_no_answer_and_a_line_a_minute(
    own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "1"}
    deployment = own_deployment(servers=1, workers=0, **away, OTEL_EXPORTER_OTLP_TIMEOUT="0.1")
    [server] = deployment.servers

    def refused() -> bool:
        for _ in range(20):
            assert HTTP.post(f"{deployment.url}/v1/streams", json={"producer": "external"}).status_code == 201
        return "opentelemetry" in server.output.read_text()

    wait_until(refused, "a batch has been refused")
    assert server.output.read_text().count("opentelemetry") <= 2  # of each of its loggers one
    server.stop()
    assert "Traceback" not in server.output.read_text()


@pytest.mark.parametrize(
    "traceparent",
    [
        *("", "x", TRACEPARENT.upper(), f" {TRACEPARENT}", f"{TRACEPARENT}\n", f"{TRACEPARENT}-00", TRACEPARENT[:-1]),
        f"01{TRACEPARENT[2:]}",
        f"00-{'0' * 32}-{CALLERS[1]}-01",
        f"00-{CALLERS[0]}-{'0' * 16}-01",
        TRACEPARENT.replace("0", "٠"),
    ],
)
def test_what_is_no_traceparent_is_not_believed(traceparent: str) -> None:
    assert traces._context_of(traceparent) is None
    assert traces._context_of(TRACEPARENT) is not None


@pytest.mark.parametrize(
    ("environment", "is_asked_for"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_exported_where_an_endpoint_is_set(environment: dict[str, Any], is_asked_for: bool) -> None:
    assert traces.is_asked_for(environment) is is_asked_for


ABSENT = ("opentelemetry", "opentelemetry.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


@pytest.fixture
def without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports it fails."""
    for module in ABSENT:
        monkeypatch.setitem(sys.modules, module, None)
    for name in traces.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)


def _trace_everything() -> None:
    with traces.posting("/v1/streams", ["x"]) as span, traces.archiving({"a": "b"}):
        assert span is traces.queueing("a", is_external=False) is traces.chatting("a/b") is traces.NOTHING
        assert span is traces.generating("a", "b", 1)
        assert span is traces.following("a", "b", cursor=0, tail=0, source="log", waited_s=0)


@pytest.mark.usefixtures("without_opentelemetry")
def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    traces.set_up_traces("server")
    _trace_everything()
    traces.end_traces()


@pytest.mark.usefixtures("without_opentelemetry")
def test_without_the_extra_an_endpoint_is_answered_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(traces.ENDPOINTS[0], "http://127.0.0.1:4318")
    traces.set_up_traces("server")
    assert "Install lastevent[otel]" in caplog.text
    _trace_everything()
