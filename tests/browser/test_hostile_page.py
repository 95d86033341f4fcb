"""A hostile page in a real browser, and a server without keys on the same machine: it starts and reads nothing.

The page has the origin of another port, of another host's name, or, after DNS rebinding, a name of its own on the
server's very port (its document came before the name changed). Between browser and
server stands a relay that passes bytes and remembers them, so that a test knows which attacks came through: a page
that fails to attack would prove nothing. What the browser itself keeps back is checked by nobody but it, so the last
test lets the same page do all of it from an origin that the server was told to trust.
"""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from bench.ports import free_port
from tests.rig.chromium import ARGS
from tests.rig.deployment import HTTP, Deployment

pytestmark = pytest.mark.browser

SECRET = "nobody but its owner reads this"
EVIL = "--host-resolver-rules=MAP evil.example 127.0.0.1"

DOCUMENT = b"<!doctype html><title>a nice page</title><iframe name=sink></iframe>"

# Each attack answers what the page has learned by it, or how it failed.
ATTACKS = """
async ([server, sid]) => {
  const learned = {};
  const attempt = async (name, attack) => {
    try { learned[name] = await attack(); } catch (error) { learned[name] = "failed: " + error.name; }
  };
  const read = async (path, init) => {
    const answer = await fetch(server + path, init);
    return answer.type + " " + answer.status + " " + (await answer.text());
  };
  const loads = (tag, path) => new Promise((resolve) => {
    const element = document.createElement(tag);
    element.onload = () => resolve("loaded");
    element.onerror = () => resolve("failed: error");
    element.src = server + path;
    document.body.append(element);
  });
  const submits = (enctype, fields) => new Promise((resolve) => {
    const form = document.createElement("form");
    const sink = document.querySelector("iframe[name=sink]");
    Object.assign(form, {method: "POST", action: server + "/v1/streams", target: "sink", enctype});
    for (const [name, value] of Object.entries(fields)) {
      const input = Object.assign(document.createElement("input"), {name, value});
      form.append(input);
    }
    document.body.append(form);
    sink.onload = () => {
      let seen = null;
      try { seen = sink.contentDocument && sink.contentDocument.body.innerText; } catch { }
      resolve(seen ? "seen: " + seen : "failed: nothing seen");
    };
    form.submit();
  });
  const follows = (path) => new Promise((resolve) => {
    const source = new EventSource(server + path);
    let opened = "failed: error";
    source.onopen = () => { opened = "opened"; };
    source.addEventListener("text_delta", (event) => { source.close(); resolve("read: " + event.data); });
    source.onerror = () => { source.close(); resolve(opened); };
  });
  const json = {"Content-Type": "application/json"};
  const prompt = JSON.stringify({prompt: "[[tokens=1]] from the page"});

  await attempt("GET", () => read("/v1/streams"));
  await attempt("GET of a stream", () => read(`/v1/streams/${sid}/text`));
  await attempt("GET of events", () => read(`/v1/streams/${sid}/events`));
  await attempt("GET of what anybody may", () => read("/healthz"));
  await attempt("GET with a header", () => read("/v1/streams", {headers: {"Last-Event-ID": "0"}}));
  await attempt("GET without cors", () => read("/v1/streams", {mode: "no-cors"}));
  await attempt("POST of JSON", () => read("/v1/streams", {method: "POST", headers: json, body: prompt}));
  await attempt("POST of text", () => read("/v1/streams", {method: "POST", body: prompt}));
  await attempt("POST without cors", () => read("/v1/streams", {method: "POST", mode: "no-cors", body: prompt}));
  await attempt("POST of a blob without cors", () => read("/v1/streams", {
    method: "POST", mode: "no-cors", body: new Blob([prompt], {type: "application/json"}),
  }));
  await attempt("cancel without cors", () => read(`/v1/streams/${sid}/cancel`, {method: "POST", mode: "no-cors"}));
  await attempt("cancel", () => read(`/v1/streams/${sid}/cancel`, {method: "POST"}));
  await attempt("regenerate", () => read(`/v1/streams/${sid}/regenerate`, {method: "POST"}));
  await attempt("DELETE", () => read(`/v1/streams/${sid}`, {method: "DELETE"}));
  await attempt("beacon", () => {
    return navigator.sendBeacon(`${server}/v1/streams/${sid}/cancel`) ? "failed: no answer" : "failed: refused";
  });
  await attempt("EventSource", () => follows(`/v1/streams/${sid}/events`));
  await attempt("form", () => submits("application/x-www-form-urlencoded", {prompt: "x"}));
  await attempt("form of JSON", () => submits("text/plain", {'{"prompt":"x","metadata":{"a': '"}}'}));
  await attempt("img", () => loads("img", `/v1/streams/${sid}/text`));
  await attempt("script", () => loads("script", "/v1/streams"));
  await attempt("script of events", () => loads("script", `/v1/streams/${sid}/events`));
  return learned;
}
"""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*ARGS, EVIL])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


class _Document(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(DOCUMENT)))
        self.end_headers()
        self.wfile.write(DOCUMENT)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def web_server(port: int = 0) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", port), _Document) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class Relay:
    """Passes bytes between browser and server, and remembers both sides'."""

    def __init__(self, target: str) -> None:
        self.pass_on_to(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [Thread(target=self._accept)]
        self._threads[0].start()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def pass_on_to(self, target: str) -> None:
        """What connects from now on comes to this server, as after a change of a name's address."""
        at = urlsplit(target)
        self._target = (at.hostname, at.port)
        self._sides: list[tuple[bytearray, bytearray]] = []

    @property
    def requests(self) -> list[str]:
        said = b"".join(bytes(asked) for asked, _ in self._sides)
        return [line.decode() for line in re.findall(rb"(?:GET|HEAD|POST|DELETE|OPTIONS) /\S* (?=HTTP/1\.1\r\n)", said)]

    @property
    def statuses(self) -> list[int]:
        said = b"".join(bytes(answered) for _, answered in self._sides)
        return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", said)]

    def close(self) -> None:
        """When the browser has gone."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                browser, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sides.append((bytearray(), bytearray()))
                for source, sink, memory in zip((browser, server), (server, browser), self._sides[-1], strict=True):
                    self._threads.append(Thread(target=_pass_on, args=(source, sink, memory)))
                    self._threads[-1].start()


def _pass_on(source: socket.socket, sink: socket.socket, memory: bytearray) -> None:
    with suppress(OSError):
        while received := source.recv(65536):
            memory += received
            sink.sendall(received)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()


class Victim:
    """The server, a stream that runs on it, and what is to stay as it is."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sid = self._post("/v1/streams", {"producer": "external"})["id"]
        events = [{"event": "text_delta", "data": {"text": SECRET}}]
        self._post(f"/v1/streams/{self.sid}/events", {"epoch": 1, "events": events})
        self.before = self.state()

    def state(self) -> Any:
        listing = HTTP.get(f"{self.url}/v1/streams?limit=200").json()["streams"]
        mine = [stream for stream in listing if stream["id"] == self.sid]
        return {stream["id"] for stream in listing}, mine

    def end(self) -> None:
        self._post(f"/v1/streams/{self.sid}/cancel", None)

    def _post(self, path: str, body: Any) -> Any:
        return HTTP.post(f"{self.url}{path}", json=body).raise_for_status().json()


@pytest.fixture
def victim(deployment: Deployment) -> Iterator[Victim]:
    victim = Victim(deployment.url)
    yield victim
    victim.end()


@pytest.fixture
def relay(victim: Victim, page: Page) -> Iterator[Relay]:
    relay = Relay(victim.url)
    yield relay
    page.context.close()
    relay.close()


def assert_nothing_happened(victim: Victim, relay: Relay, learned: dict[str, str]) -> None:
    assert victim.state() == victim.before
    assert not any(SECRET in said or victim.sid in said or '"streams"' in said for said in learned.values()), learned
    assert set(relay.statuses) == {403}
    methods = {request.split(" ")[0] for request in relay.requests}
    assert methods >= {"GET", "POST"}
    assert len(relay.statuses) >= 15


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.example"])
def test_a_page_of_another_origin_learns_and_starts_nothing(
    page: Page, victim: Victim, relay: Relay, host: str
) -> None:
    with web_server() as port:
        page.goto(f"http://{host}:{port}/")
        learned = page.evaluate(ATTACKS, [relay.url, victim.sid])
    assert_nothing_happened(victim, relay, learned)
    assert any(request.startswith("OPTIONS") for request in relay.requests)
    told = {name: said for name, said in learned.items() if not said.startswith("failed") and said != "opaque 0 "}
    assert told == {}


def test_a_page_whose_name_was_rebound_to_this_machine_learns_and_starts_nothing(
    page: Page, victim: Victim, relay: Relay
) -> None:
    origin = f"http://evil.example:{relay.port}"
    with web_server() as port:
        relay.pass_on_to(f"http://127.0.0.1:{port}")
        page.goto(f"{origin}/")
    relay.pass_on_to(victim.url)
    learned = page.evaluate(ATTACKS, [origin, victim.sid])
    assert_nothing_happened(victim, relay, learned)
    # Here the page may read the answers: they are its own origin's. They say that it is refused, and nothing else.
    assert learned["GET"].startswith("basic 403 ")
    assert learned["EventSource"] == "failed: error"


def test_a_page_that_opens_the_server_in_a_window_or_frame_sees_none_of_it(page: Page, victim: Victim) -> None:
    with web_server() as port:
        page.goto(f"http://127.0.0.1:{port}/")
        seen = page.evaluate(
            """async (address) => {
              const frame = document.createElement("iframe");
              const loaded = new Promise((resolve) => { frame.onload = resolve; });
              frame.src = address;
              document.body.append(frame);
              await loaded;
              try { return frame.contentDocument?.body.innerText ?? "nothing"; } catch (error) { return "nothing"; }
            }""",
            f"{victim.url}/v1/streams/{victim.sid}/text",
        )
        shown = [frame.content() for frame in page.frames]
    assert seen == "nothing"
    assert not any(SECRET in content for content in shown)
    assert victim.state() == victim.before


def test_the_same_page_does_all_of_it_from_an_origin_that_was_configured(
    page: Page, own_deployment: Callable[..., Deployment]
) -> None:
    port = free_port()
    deployment = own_deployment(servers=1, workers=0, LASTEVENT_CORS_ORIGINS=f"http://127.0.0.1:{port}")
    victim = Victim(deployment.url)
    with web_server(port):
        page.goto(f"http://127.0.0.1:{port}/")
        learned = page.evaluate(
            """async ([server, sid]) => {
              const list = await (await fetch(server + "/v1/streams")).json();
              const headers = {"Content-Type": "application/json", "Idempotency-Key": "k"};
              const body = JSON.stringify({producer: "external"});
              const started = await fetch(server + "/v1/streams", {method: "POST", headers, body});
              const source = new EventSource(`${server}/v1/streams/${sid}/events`);
              const text = await new Promise((resolve) => {
                source.addEventListener("text_delta", (event) => resolve(event.data));
              });
              source.close();
              return {list: list.streams.length, started: started.status, at: started.headers.get("Location"), text};
            }""",
            [victim.url, victim.sid],
        )
    assert (learned["list"], learned["started"]) == (1, 201)
    assert learned["at"].startswith("/v1/streams/")
    assert SECRET in learned["text"]
