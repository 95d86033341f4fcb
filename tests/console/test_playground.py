"""The playground: an answer that survives its network, shown as it is."""

import re
from itertools import pairwise

import pytest
from playwright.sync_api import Page, Route, expect
from redis import Redis

from broker.live.topic import RING_EVENTS
from tests.console.conftest import Seeds
from tests.rig.deployment import wait_until

pytestmark = pytest.mark.browser

LONG = "Grüße aus dem Tunnel 🚇 [[tokens=150 rate=250 thinking=10 ttft_ms=0]]"

MORE_THAN_A_RING = RING_EVENTS + 10

# The follower alone, cut and restored again and again while events are written: the ids it met, in their order.
CUT_OFTEN = """
async ([id, hasTimes, rounds]) => {
  const { Follower } = await import("/console/follower.js");
  const ids = [];
  const times = [];
  const states = new Set();
  const changed = () => new Promise((wake) => setTimeout(wake, 5));
  const append = async (count, ...ending) => {
    const texts = Array.from({ length: count }, () => ({ event: "text_delta", data: { text: "é" } }));
    const body = JSON.stringify({ epoch: 1, events: [...texts, ...ending] });
    const headers = { "Content-Type": "application/json" };
    await fetch(`/v1/streams/${id}/events`, { method: "POST", headers, body });
  };
  const follower = new Follower(id, {
    hasTimes,
    onEvent: ({ id, t }) => {
      ids.push(id);
      times.push(t ?? null);
    },
    onGap: () => ids.push("gap"),
    onChange: () => states.add(follower?.state),
  });
  const ran = follower.run();
  for (let round = 0; round < rounds; round += 1) {
    const writing = append(20);
    const goal = ids.length + 3 * (round + 1);
    while (ids.length < goal) await changed();
    follower.cut();
    await writing;
    await append(5);
    follower.restore();
  }
  await append(1, { event: "done", data: {} });
  await ran;
  const { received, replayed, reconnects, connections } = follower;
  return { ids, times, states: [...states], received, replayed, reconnects, connections };
}
"""


def words(first: int, last: int) -> list[tuple[str, object]]:
    return [("text_delta", {"text": f"{number} "}) for number in range(first, last + 1)]


def send(page: Page, seeds: Seeds, prompt: str) -> str:
    """Send a prompt; the id of its stream."""
    if not page.url.startswith(seeds.url):
        page.goto(seeds.url)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Send").click()
    page.wait_for_url(re.compile("stream="))
    return page.url.partition("stream=")[2]


def state(page: Page) -> str:
    return page.locator(".answer-heading .badge").text_content() or ""


def answer(page: Page) -> str:
    return "".join(page.locator(".answer-blocks > .answer-text").all_text_contents())


def metric(page: Page, name: str) -> int:
    return int((page.locator(f"[data-metric={name}]").text_content() or "").replace(",", ""))


def until_text(page: Page, length: int) -> None:
    page.wait_for_function(
        "(length) => (document.querySelector('.answer-blocks > .answer-text')?.textContent.length ?? 0) >= length",
        arg=length,
    )


def until_ended(page: Page) -> None:
    expect(page.locator(".network")).to_have_text("Complete")
    expect(page.locator(".answer-ending")).not_to_be_empty()


def test_a_prompt_becomes_the_answer_that_the_server_has(page: Page, seeds: Seeds) -> None:
    sid = send(page, seeds, LONG)
    until_ended(page)
    assert answer(page) == seeds.text(sid)
    assert state(page) == "done"
    assert metric(page, "received") == metric(page, "cursor") == len(seeds.log(sid))
    assert metric(page, "replayed") == metric(page, "reconnects") == 0
    assert re.fullmatch(r"\d+ ms|\d.* s", page.locator("[data-metric=first-token]").text_content() or "")


def test_a_cut_and_a_restored_network_change_nothing_in_the_answer(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}), *words(1, 20))
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    expect(page.locator("[data-metric=cursor]")).to_have_text("22")
    page.get_by_role("button", name="Cut the network").click()
    expect(page.locator(".network")).to_have_text("Network cut")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    seeds.append(sid, *words(21, 60))
    assert answer(page) == "".join(f"{number} " for number in range(1, 21))
    assert requested == []

    page.get_by_role("button", name="Restore the network").click()
    expect(page.locator("[data-metric=cursor]")).to_have_text("62")
    seeds.append(sid, *words(61, 70), ("done", {}))
    until_ended(page)
    assert answer(page) == seeds.text(sid)
    assert metric(page, "received") == len(seeds.log(sid))
    assert metric(page, "reconnects") == 1
    assert page.locator(".connections li").all_text_contents() == [
        "from the start22 replayed · 0 live · cut here",
        "after 2240 replayed · 11 live · ended",
    ]


@pytest.mark.parametrize("has_times", [False, True], ids=["as_sse", "with_times"])
def test_every_id_comes_once_and_in_order_however_often_the_network_is_cut(
    page: Page, seeds: Seeds, *, has_times: bool
) -> None:
    page.goto(seeds.url)
    sid = seeds.external(("start", {}))
    rounds = 6
    met = page.evaluate(CUT_OFTEN, [sid, has_times, rounds])
    log = seeds.log(sid)
    assert met["ids"] == [event["id"] for event in log]
    assert met["times"] == [event["t"] if has_times else None for event in log]
    assert met["received"] == len(log)
    assert met["reconnects"] == rounds
    assert met["replayed"] == sum(connection["replayed"] for connection in met["connections"]) >= 5 * rounds
    assert "cut" in met["states"]


def test_who_cuts_the_network_can_still_stop_the_generation(page: Page, seeds: Seeds) -> None:
    sid = send(page, seeds, "[[tokens=3000 rate=30 ttft_ms=0]]")
    until_text(page, 5)
    page.get_by_role("button", name="Cut the network").click()
    page.get_by_role("button", name="Stop").click()
    seeds.deployment.wait_until_ended(sid)
    expect(page.locator(".network")).to_have_text("Network cut")
    page.get_by_role("button", name="Restore the network").click()
    until_ended(page)
    assert answer(page) == seeds.text(sid)


def test_a_lost_answer_to_the_start_makes_one_generation(page: Page, seeds: Seeds) -> None:
    answers: list[str] = []

    def lose_the_first(route: Route) -> None:
        answer = route.fetch()
        answers.append(answer.json()["id"])
        if len(answers) == 1:
            route.abort("connectionreset")
        else:
            route.fulfill(response=answer)

    page.route("**/v1/streams", lose_the_first)
    page.goto(seeds.url)
    page.get_by_label("Prompt", exact=True).fill("[[tokens=20 rate=100 ttft_ms=0]]")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("alert").get_by_role("button", name="Send again").click()
    until_ended(page)
    first, again = answers
    assert first == again == page.url.partition("stream=")[2]
    assert answer(page) == seeds.text(first)
    session = seeds.get(f"/v1/streams/{first}").json()["session_id"]
    assert len(seeds.get(f"/v1/sessions/{session}").json()["streams"]) == 1


def test_a_reload_resumes_the_stream(page: Page, seeds: Seeds) -> None:
    prompt = "Grüße aus dem Tunnel 🚇 [[tokens=900 rate=40 ttft_ms=0]]"
    sid = send(page, seeds, prompt)
    until_text(page, 60)
    page.reload()
    assert sid in page.url
    until_text(page, 120)
    assert page.get_by_label("Prompt", exact=True).input_value() == prompt
    page.get_by_role("button", name="Stop").click()
    until_ended(page)
    assert answer(page) == seeds.text(sid)
    assert metric(page, "received") == len(seeds.log(sid))
    assert 0 < metric(page, "replayed") < metric(page, "received")


def test_stop_cancels_and_regenerate_asks_the_same_again(page: Page, seeds: Seeds) -> None:
    sid = send(page, seeds, "[[tokens=3000 rate=30 ttft_ms=0]]")
    until_text(page, 5)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer-ending")).to_have_text("Cancelled: stopped in the console")
    assert state(page) == "cancelled"
    assert answer(page) == seeds.text(sid)

    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_url(lambda url: sid not in url)
    again = page.url.partition("stream=")[2]
    assert seeds.get(f"/v1/streams/{again}").json()["regenerates"] == sid
    page.get_by_role("button", name="Stop").click()
    until_ended(page)


def test_a_restart_voids_the_text_and_an_error_keeps_what_there_is(page: Page, seeds: Seeds) -> None:
    sid = send(page, seeds, "[[tokens=30 rate=0 ttft_ms=0 cut_at=8]]")
    until_ended(page)
    assert answer(page) == seeds.text(sid)
    assert page.locator(".answer-notice").all_text_contents() == [
        "Restarted as attempt 3: provider_cut. Everything before it was discarded."
    ]
    expect(page.locator(".answer-ending.error")).to_have_text(re.compile("Error provider_cut: .+"))


@pytest.mark.parametrize(
    ("chip", "ending", "notices"),
    [
        ("A restart", "Done: end_turn", ["Restarted as attempt 2: provider_cut. Everything before it was discarded."]),
        ("An error", "Error provider_refused: ", []),
        ("A silence", "Done: end_turn", []),
    ],
)
def test_each_example_shows_what_it_promises(
    page: Page, seeds: Seeds, chip: str, ending: str, notices: list[str]
) -> None:
    page.goto(seeds.url)
    page.get_by_role("button", name=chip).click()
    prompt = page.get_by_label("Prompt", exact=True)
    sooner = prompt.input_value().replace("rate=20", "rate=0 ttft_ms=0").replace("stall_ms=6000", "stall_ms=2500")
    sid = send(page, seeds, sooner)
    until_ended(page)
    expect(page.locator(".answer-ending")).to_contain_text(ending)
    assert page.locator(".answer-notice").all_text_contents() == notices
    if chip == "A silence":
        # An event has the time of its append: the one before the silence some milliseconds after it was said.
        assert max(after["t"] - before["t"] for before, after in pairwise(seeds.log(sid))) > 2500 * 0.9


def test_a_stream_whose_producer_wrote_no_start_is_running_when_it_writes(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*words(1, 3))
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    until_text(page, 6)
    expect(page.locator(".answer-heading .badge")).to_have_text("running")
    seeds.append(sid, ("done", {}))
    until_ended(page)


def test_thinking_is_folded_until_it_is_asked_for(page: Page, seeds: Seeds) -> None:
    sid = send(page, seeds, "[[tokens=5 rate=0 ttft_ms=0 thinking=9]]")
    until_ended(page)
    thought = "".join(event["data"]["text"] for event in seeds.log(sid) if event["event"] == "internal.thinking_delta")
    thinking = page.locator(".answer-thinking .answer-text")
    expect(thinking).not_to_be_visible()
    page.get_by_text("Thinking").click()
    expect(thinking).to_be_visible()
    assert thinking.text_content() == thought


def test_a_gap_is_said_and_the_text_painted_anew(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}), *words(1, 20))
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    expect(page.locator("[data-metric=cursor]")).to_have_text("22")
    page.get_by_role("button", name="Cut the network").click()
    with Redis.from_url(seeds.deployment.redis_url) as redis:
        (key,) = redis.keys(f"*{{{sid}}}:log")
        redis.xdel(key, "22-0")  # what the page has seen is lost, as with a log that lost its tail
    seeds.append(sid, *[("text_delta", {"text": "."})] * MORE_THAN_A_RING)  # so that the server looks at the log
    page.get_by_role("button", name="Restore the network").click()
    expect(page.locator(".answer-notice")).to_have_text(re.compile("Events after 22 no longer exist"))
    seeds.append(sid, ("text_delta", {"text": "and on"}), ("done", {}))
    until_ended(page)
    kept = "".join(f"{number} " for number in range(1, 20)) + "." * MORE_THAN_A_RING + "and on"
    assert answer(page) == seeds.text(sid) == kept


def test_a_stream_that_is_not_there_is_said(page: Page, seeds: Seeds) -> None:
    page.goto(f"{seeds.url}/#/playground?stream=nope")
    expect(page.get_by_role("alert")).to_contain_text("Stream not found")


def test_the_model_field_offers_what_workers_have_and_takes_any_other_name(page: Page, seeds: Seeds) -> None:
    wait_until(lambda: seeds.get("/v1/models").json()["data"], "the worker has said what it has")
    listed = [model["id"] for model in seeds.get("/v1/models").json()["data"]]
    page.goto(seeds.url)
    page.get_by_text("Options").click()
    expect(page.locator("#model-names option")).to_have_count(len(listed))
    offered = page.locator("#model-names option").evaluate_all("options => options.map((option) => option.value)")
    assert offered == listed
    page.get_by_label("Model", exact=True).fill("anthropic/not-in-the-list")
    sid = send(page, seeds, "[[tokens=1 rate=0 ttft_ms=0]]")
    assert seeds.get(f"/v1/streams/{sid}").json()["model"] == "anthropic/not-in-the-list"
