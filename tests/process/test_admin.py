"""The admin port: what it shows, to whom, and what becomes of processes that die or hang."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress

import pytest
from redis.asyncio import Redis

from bench.ports import free_port
from broker import gauges
from broker.errors import RedisUnavailable
from broker.log.keys import Keys
from broker.process.admin import (
    ANSWER_S,
    DEFAULT_PORT,
    AdminPort,
    Answers,
    Panel,
    answer_supervisor,
    answers_of,
    merged,
    open_admin_port,
)
from broker.process.scrapers import Scrapers
from broker.settings import Settings, SettingsError
from broker.store.connect import connect
from broker.tenants.keyring import new_key
from broker.tenants.stored_keys import StoredKeys
from tests.rig.deployment import HTTP

GOOD = Answers(lambda: b"# HELP a A\n# TYPE a gauge\na 1.0\n", lambda: None)
GIVEN = "a-key-of-the-settings-with-32-characters"


@pytest.fixture
def ports() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(ports: ExitStack, answers: Answers = GOOD, **options: object) -> str:
    port = AdminPort("127.0.0.1", 0, answers, **options)  # type: ignore[arg-type]
    ports.callback(port.close)
    return f"http://127.0.0.1:{port.port}"


# -- one process -------------------------------------------------------------------------------------------


def test_it_has_metrics_readiness_and_liveness_and_nothing_else(ports: ExitStack) -> None:
    url = opened(ports)
    metrics = HTTP.get(f"{url}/metrics")
    assert (metrics.status_code, metrics.content) == (200, GOOD.metrics())
    assert metrics.headers["content-type"] == gauges.CONTENT_TYPE
    assert HTTP.get(f"{url}/readyz").json() == {"status": "ready"}
    assert HTTP.get(f"{url}/healthz").json() == {"status": "ok"}
    assert HTTP.head(f"{url}/healthz").content == b""
    for answer in (HTTP.get(f"{url}/nope<script>"), HTTP.post(f"{url}/metrics"), HTTP.request("NOPE", url)):
        assert answer.status_code in (404, 501)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "nope" not in answer.text.lower()
        assert "server" not in answer.headers


def test_it_is_not_ready_while_its_process_says_what_is_missing(ports: ExitStack) -> None:
    answer = HTTP.get(f"{opened(ports, Answers(GOOD.metrics, lambda: 'Redis is away.'))}/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "Redis is away.")


def test_a_page_of_another_name_that_leads_here_reads_no_metrics(ports: ExitStack) -> None:
    url = opened(ports)
    for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:9464", "[::1].evil"):
        assert HTTP.get(f"{url}/metrics", headers={"Host": host}).status_code == 403
    for host in ("localhost:1", "127.0.0.1", "[::1]:9464", "LOCALHOST"):
        assert HTTP.get(f"{url}/metrics", headers={"Host": host}).status_code == 200


async def test_readiness_is_asked_of_the_loop_and_a_loop_that_hangs_is_not_ready() -> None:
    async def away() -> None:
        raise RedisUnavailable("Redis is away.")

    async def ready() -> None:
        pass

    loop = asyncio.get_running_loop()
    assert await asyncio.to_thread(answers_of(ready, loop).lack) is None
    assert await asyncio.to_thread(answers_of(away, loop).lack) == "Redis is away."
    asking = threading.Thread(target=lambda: said.append(answers_of(ready, loop).lack()))
    said: list[str | None] = []
    asking.start()
    asking.join()  # here, so the loop does nothing meanwhile
    assert said == ["The process does not answer in time."]


def test_requests_that_never_end_do_not_shut_the_others_out_for_good(
    ports: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are silent, or send a byte now and then: each read was in time, and the probes had no answer."""
    monkeypatch.setattr("broker.process.admin.REQUEST_S", 0.3)
    url = opened(ports)
    port = int(url.rpartition(":")[2])
    never_end = [ports.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.is_set():
            for one in never_end[1:]:
                with suppress(OSError):
                    one.sendall(b"G")
            is_over.wait(0.05)

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert HTTP.get(f"{url}/healthz", timeout=30).status_code == 200
    finally:
        is_over.set()
        dripping.join()


# -- its port ----------------------------------------------------------------------------------------------


def test_a_port_that_was_set_and_is_taken_is_a_settings_error(ports: ExitStack) -> None:
    taken = int(opened(ports).rpartition(":")[2])
    with pytest.raises(SettingsError, match=f"LASTEVENT_ADMIN_PORT: the admin port {taken} cannot be opened"):
        open_admin_port(Settings(admin_port=taken), GOOD, lambda _: False, print)
    with pytest.raises(SettingsError, match="LASTEVENT_ADMIN_HOST: the admin port"):
        open_admin_port(Settings(admin_port=free_port(), admin_host="192.0.2.1"), GOOD, lambda _: False, print)


def test_the_default_port_is_left_alone_where_it_is_taken_and_one_line_says_so() -> None:
    said: list[str] = []
    ports = [open_admin_port(Settings(), GOOD, lambda _: False, said.append) for _ in range(2)]
    assert ports[1] is None
    assert said[-1].startswith(f"No admin port here: {DEFAULT_PORT} is taken.")
    for port in ports:
        if port:
            port.close()
    assert open_admin_port(Settings(admin_port=0), GOOD, lambda _: False, print) is None


# -- who may scrape ------------------------------------------------------------------------------------------


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[Redis]:
    async with connect(valkey_url) as redis:
        await redis.flushall()
        yield redis
        await redis.flushall()


async def test_elsewhere_than_on_loopback_metrics_need_a_key_with_their_scope(
    ports: ExitStack, store: Redis, valkey_url: str
) -> None:
    keys = Keys()
    stored = StoredKeys(store, keys.api_keys, keys.api_keys_changed)  # type: ignore[arg-type]
    made = {scope: new_key("acme", frozenset({scope})) for scope in ("metrics:read", "streams:read")}
    for key, _ in made.values():
        await stored.add(key)
    settings = Settings(redis_url=valkey_url, api_keys=(GIVEN,))  # type: ignore[arg-type]
    url = opened(ports, may_scrape=Scrapers(settings).have)

    async def status(credential: str | None) -> int:
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return (await asyncio.to_thread(HTTP.get, f"{url}/metrics", headers=headers)).status_code

    assert await status(None) == 401
    assert await status("lek_nonsense") == 403
    assert await status(made["streams:read"][1]) == 403
    assert await status(made["metrics:read"][1]) == 200
    assert await status(GIVEN) == 200
    await stored.revoke(made["metrics:read"][0].id)
    assert await status(made["metrics:read"][1]) == 403
    await store.delete(keys.api_keys)
    await store.set(keys.api_keys, "not ours", ex=60)
    assert await status(GIVEN) == 200
    assert (await asyncio.to_thread(HTTP.get, f"{url}/readyz")).status_code == 200


def test_a_supervisor_whose_redis_is_away_lets_nobody_in_by_a_key_that_it_has_not_read() -> None:
    scrapers = Scrapers(Settings(redis_url=f"redis://127.0.0.1:{free_port()}", api_keys=(GIVEN,)))  # type: ignore[arg-type]
    _, secret = new_key("acme", frozenset({"metrics:read"}))
    assert not scrapers.have(secret)
    assert scrapers.have(GIVEN)


# -- several processes -----------------------------------------------------------------------------------------


def child(panel: Panel, name: str, answers: Answers = GOOD) -> socket.socket:
    """A process that answers; the socket ends it."""
    end = panel.add(name)
    answer_supervisor(end.dup().detach(), answers)
    return end


def up(panel: Panel) -> dict[str, float]:
    lines = [line for line in panel.metrics().decode().splitlines() if line.startswith("lastevent_process_up")]
    return {line.partition('"')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_supervisor_shows_each_family_once_and_each_sample_with_its_process() -> None:
    one = b'# HELP a A {b} c\n# TYPE a counter\na{x="{ 1"} 1.0\na{x="2"} 2.0\n# HELP b B\n# TYPE b gauge\nb 3.0\n'
    other = b"# HELP b B\n# TYPE b gauge\nb 4.0\n# HELP c C\n# TYPE c gauge\nc 5.0\n"
    assert merged({"web process 1": one, "worker 1": other, "worker 2": None}).decode().splitlines() == [
        "# HELP a A {b} c",
        "# TYPE a counter",
        'a{process="web process 1",x="{ 1"} 1.0',
        'a{process="web process 1",x="2"} 2.0',
        "# HELP b B",
        "# TYPE b gauge",
        'b{process="web process 1"} 3.0',
        'b{process="worker 1"} 4.0',
        "# HELP c C",
        "# TYPE c gauge",
        'c{process="worker 1"} 5.0',
    ]


def test_a_child_that_dies_vanishes_from_the_scrape_at_once() -> None:
    panel = Panel()
    with child(panel, "web process 1"), child(panel, "worker 1") as dying:
        assert up(panel) == {"web process 1": 1, "worker 1": 1}
        dying.shutdown(socket.SHUT_RDWR)
        began_s = time.monotonic()
        assert up(panel) == {"web process 1": 1, "worker 1": 0}
        assert time.monotonic() - began_s < ANSWER_S
        assert b'a{process="worker 1"}' not in panel.metrics()
        assert panel.lack() == "worker: It does not answer."
        panel.drop("worker 1")
        assert up(panel)["worker 1"] == 0
        with child(panel, "worker 1"):
            assert up(panel) == {"web process 1": 1, "worker 1": 1}
            panel.drop("web process 1")
            panel.drop("worker 1")


def test_a_child_that_hangs_makes_a_scrape_late_by_a_second_and_its_late_answer_is_no_later_ones() -> None:
    panel = Panel()
    goes_on = threading.Event()
    asked: list[bytes] = []

    def slow() -> bytes:
        asked.append(b"# HELP n N\n# TYPE n gauge\nn %d.0\n" % len(asked))
        told = asked[-1]
        goes_on.wait(20)
        return told

    with child(panel, "web process 1"), child(panel, "worker 1", Answers(slow, lambda: None)):
        assert up(panel) == {"web process 1": 1, "worker 1": 0}
        goes_on.set()
        assert b'n{process="worker 1"} 1.0' in panel.metrics()
        panel.drop("web process 1")
        panel.drop("worker 1")


def test_a_child_whose_figures_fail_is_not_up_and_answers_again_later(caplog: pytest.LogCaptureFixture) -> None:
    panel = Panel()
    fails = [True]

    def metrics() -> bytes:
        if fails.pop():
            raise ValueError
        return GOOD.metrics()

    fails.insert(0, False)
    with child(panel, "worker 1", Answers(metrics, lambda: None)):
        assert up(panel) == {"worker 1": 0}
        assert up(panel) == {"worker 1": 1}
        panel.drop("worker 1")
    assert "this process could not tell its supervisor" in caplog.text


def test_a_supervisor_is_ready_when_one_of_each_kind_is() -> None:
    panel = Panel()
    assert panel.lack() == "Nothing has been started yet."
    lacking = Answers(GOOD.metrics, lambda: "Redis is away.")
    with child(panel, "web process 1"), child(panel, "web process 2", lacking), child(panel, "worker 1", lacking):
        assert panel.lack() == "worker: Redis is away."
        with child(panel, "worker 2"):
            assert panel.lack() is None
            for name in ("web process 1", "web process 2", "worker 1", "worker 2"):
                panel.drop(name)


# -- labels --------------------------------------------------------------------------------------------------


@pytest.fixture
def none_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_tenants", set())
    monkeypatch.setattr(gauges, "_models", set())


@pytest.mark.usefixtures("none_yet")
def test_tenants_are_fifty_labels_at_most() -> None:
    labels = [gauges.tenant(f"tenant-{n}") for n in range(1000)]
    assert len(set(labels)) == gauges.MOST_TENANTS + 1
    assert labels[:2] == ["tenant-0", "tenant-1"]
    assert gauges.tenant("tenant-999") == gauges.OTHER
    assert gauges.tenant("tenant-0") == "tenant-0"


@pytest.mark.usefixtures("none_yet")
def test_a_model_is_a_label_only_if_it_is_configured() -> None:
    gauges.configure_models(["fast", "openai/gpt-5-mini"])
    asked = ["fast", "openai/gpt-5-mini", "openai/made-up", 'x"} 1\nlastevent_viewers 9', ""]
    assert [gauges.model(name) for name in asked] == ["fast", "openai/gpt-5-mini", *[gauges.OTHER] * 3]


def test_a_figure_that_is_not_known_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for source, line in ((None, None), (lambda: None, None), (lambda: 0, b"\nlastevent_unarchived 0.0\n")):
        monkeypatch.setattr(gauges.unarchived, "source", source)
        shown = gauges.render()
        assert (line in shown) if line else (b"\nlastevent_unarchived" not in shown)
