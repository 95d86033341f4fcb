"""Agents in the playground and in the player: a real one that is asked, told and allowed, and logs of all that agents
can say. That none of it becomes markup is in test_inert.py."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from redis import Redis

from tests.console.conftest import Seeds, serious
from tests.console.test_access import LOOKS, fits
from tests.console.test_playground import answer, until_ended
from tests.rig.deployment import Deployment, Process, wait_until

pytestmark = pytest.mark.browser

APP = '''
from dataclasses import dataclass

from lastevent import Agent, Context, agent, tool


@dataclass
class Ask:
    order_id: str
    cents: int


@tool(idempotent=True)
async def find_order(order_id: str) -> dict:
    """Find an order by its number."""
    return {"order_id": order_id, "state": "shipped"}


@tool(title="Refunding", approval=True)
async def refund(ctx: Context, order_id: str, cents: int) -> str:
    """Refund an order."""
    await ctx.progress("Asking the bank…")
    return f"refunded {cents} of {order_id}"


@agent("clerk")
async def clerk(ctx: Context, ask: Ask):
    for _ in range(2):
        try:
            await ctx.text(await refund(ask.order_id, ask.cents))
        except Exception as error:
            await ctx.text(f"{error} ")
    async for told in ctx.inputs():
        return told.text


support = Agent("support", model="anthropic/any", instructions="You help.", tools=[find_order])
'''

START = ("start", {"agent": "desk", "attempt": 1})
CALL = {"tool_call_id": "c1", "tool": "refund"}
OF_READER = {"tool_call_id": "c2", "tool": "search", "agent": "reader.1"}
APPROVAL = {"approval_id": "a1", **CALL, "title": "Refunding"}
DECIDED = ("internal.approval", {"approval_id": "a1", "approve": True, "reason": "of course", "by": "key:1"})
ARGS = {"order_id": "A17"}
DONE = ("done", {"stop_reason": "end_turn", "result": {"paid": 5}})
TALK: list[tuple[str, object]] = [
    START,
    ("internal.thinking_delta", {"text": "a secret thought"}),
    ("text_delta", {"text": "The answer. "}),
    ("agent_start", {"agent": "reader.1", "parent": ""}),
    ("agent_start", {"agent": "reader.2", "parent": ""}),
    ("agent_text_delta", {"agent": "reader.1", "text": "one "}),
    ("agent_text_delta", {"agent": "reader.2", "text": "two "}),
    ("tool_start", OF_READER),
    ("internal.tool_args", {**OF_READER, "args": {"query": "a secret question"}}),
    ("agent_text_delta", {"agent": "reader.1", "text": "more"}),
    ("tool_error", {**OF_READER, "duration_ms": 30, "code": "timeout"}),
    ("agent_end", {"agent": "reader.1", "parent": "", "duration_ms": 70}),
    ("agent_end", {"agent": "reader.2", "parent": "", "duration_ms": 60, "code": "agent_failed"}),
    ("internal.turn", {"agent": "", "turn": 0, "provider": "p", "model": "m", "calls": [{"id": "c1", "args": ARGS}]}),
    ("approval_request", APPROVAL),
    DECIDED,
    ("tool_start", {**CALL, "title": "Refunding"}),
    ("tool_progress", {**CALL, "message": "Asking the bank…"}),
    ("internal.tool_result", {**CALL, "output": "a secret receipt"}),
    ("tool_end", {**CALL, "duration_ms": 1200}),
    ("input", {"input_id": "1-0", "text": "hurry up", "interrupt": True}),
    ("internal.tool_start", {"tool_call_id": "c3", "tool": "note"}),
    ("internal.tool_end", {"tool_call_id": "c3", "tool": "note", "duration_ms": 1}),
    ("text_delta", {"text": "It is paid."}),
]
RESTARTED: list[tuple[str, object]] = [
    ("restarted", {"attempt": 2, "reason": "worker_lost"}),
    START,
    ("tool_start", {**CALL, "replayed": True}),
    ("tool_end", {**CALL, "duration_ms": 1200, "replayed": True}),
    ("text_delta", {"text": "Paid."}),
]


@pytest.fixture(scope="module")
def desk(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeds]:
    """The shared deployment with one worker more, which has an app."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "desk.py").write_text(APP)
    worker = Process("desk", [sys.executable, "-m", "worker", "--app", "desk"], deployment.environment, folder)
    seeds = Seeds(deployment)
    worker.start()
    wait_until(lambda: seeds.get("/v1/agents").json()["agents"], "the agents are announced")
    yield seeds
    worker.stop()
    with Redis.from_url(deployment.redis_url) as redis:
        redis.delete("le:agents")


def ask(page: Page, seeds: Seeds, name: str, given: str) -> str:
    page.goto(seeds.url)
    page.get_by_label("Answered by").select_option(name)
    page.locator("#prompt").fill(given)
    page.get_by_role("button", name="Send").click()
    page.wait_for_url(re.compile("stream="))
    return page.url.partition("stream=")[2]


def watch(page: Page, seeds: Seeds, sid: str) -> None:
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    until_ended(page)


def as_restarts(page: Page) -> None:
    """Servers alone write `restart`, when a worker is lost: here an event that a producer may write is one."""

    def rewrite(route: Route) -> None:
        answer = route.fetch()
        body = answer.text().replace("event: restarted", "event: restart").replace('"restarted"', '"restart"')
        route.fulfill(response=answer, body=body)

    page.route(re.compile(r"/(events|export)"), rewrite)


def unfolded(page: Page, place: str, label: str) -> Any:
    folded = page.locator(place).locator(".answer-folded", has_text=label).last
    folded.locator("summary").click()
    expect(folded.locator("pre")).not_to_be_empty()
    return json.loads(folded.locator("pre").text_content() or "")


def test_an_agent_is_asked_by_its_schema_then_allowed_refused_and_told(page: Page, desk: Seeds) -> None:
    page.goto(desk.url)
    page.get_by_label("Answered by").select_option("clerk")
    given = page.get_by_label("Input, as JSON")
    assert json.loads(given.input_value()) == {"order_id": "", "cents": 0}
    given.fill("{order_id")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#prompt-error")).to_contain_text("This is not JSON.")
    assert "stream=" not in page.url
    given.fill('{"order_id": 17, "cents": 5}')
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".notice.error")).to_contain_text("/order_id")

    sid = ask(page, desk, "clerk", '{"order_id": "A17", "cents": 5}')
    expect(page.get_by_role("status").get_by_text("Approval needed: Refunding.")).to_be_attached()
    assert unfolded(page, ".answer-approval", "Arguments") == {"order_id": "A17", "cents": 5}
    page.get_by_label("Reason, for the agent").fill("not today")
    page.get_by_role("button", name="Refuse").click()
    expect(page.locator(".answer-approval").first).to_contain_text("refused by anyone: not today")
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    page.locator("h1").focus()
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    expect(page.locator(".answer-approval").last).to_contain_text("approved by anyone")
    expect(page.locator(".answer-tool .answer-act").last).to_contain_text(
        re.compile(r"Tool refund · Refunding · done in \d+ ms")
    )
    expect(page.locator(".answer-progress").last).to_have_text("Asking the bank…")
    assert page.evaluate("document.activeElement.className") == "answer-act", "beside the button that is gone"

    page.locator("h1").focus()
    page.keyboard.press("t")
    page.keyboard.insert_text("that is all")
    page.keyboard.press("Enter")
    until_ended(page)
    expect(page.locator(".answer-input")).to_contain_text("that is all")
    expect(page.locator(".tell")).not_to_be_visible()
    assert answer(page) == desk.text(sid)
    assert unfolded(page, ".answer-blocks", "Result of the agent") == "that is all"
    page.reload()
    until_ended(page)
    expect(page.get_by_label("Answered by")).to_have_value("clerk")
    assert json.loads(given.input_value()) == {"order_id": "A17", "cents": 5}


def test_a_built_in_agent_takes_a_prompt_and_shows_its_turns(page: Page, desk: Seeds) -> None:
    page.goto(desk.url)
    page.get_by_label("Answered by").select_option("support")
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    page.get_by_text("Options").click()
    expect(page.get_by_label("Model", exact=True)).not_to_be_visible()
    page.get_by_role("button", name="Call find_order").click()
    page.get_by_role("button", name="Send").click()
    until_ended(page)
    assert page.locator(".answer-turn").count() == 2
    expect(page.locator(".answer-turn").first).to_contain_text("Turn 0 · anthropic/any · tool_use")
    assert unfolded(page, ".answer-tool", "Result")["state"] == "shipped"
    sid = page.url.partition("stream=")[2]
    page.goto(f"{desk.url}/#/sessions")
    expect(page.locator(f'tr[data-id="{sid}"]')).to_contain_text("agent support")


def test_without_agents_the_page_is_as_if_there_were_none(page: Page, seeds: Seeds) -> None:
    page.route("**/v1/agents", lambda route: route.fulfill(json={"agents": []}))
    page.goto(seeds.url)
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    expect(page.get_by_label("Answered by")).not_to_be_visible()
    sid = seeds.external(("start", {}))
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    expect(page.locator(".network")).to_have_text("Connected")
    expect(page.locator(".tell")).not_to_be_visible()
    seeds.append(sid, ("done", {}))


def test_what_sub_agents_say_and_do_is_apart_from_the_answer(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*TALK, DONE)
    watch(page, seeds, sid)
    assert answer(page) == seeds.text(sid) == "The answer. It is paid."
    said = page.locator(".answer-agent")
    assert said.locator(".answer-text").all_text_contents() == ["one ", "more", "two "]
    assert said.locator("summary").all_text_contents()[0] == "Agent reader.1 · done in 70 ms"
    expect(said.nth(1)).to_contain_text("failed in 60 ms: agent_failed")
    expect(said.first.locator(".answer-tool")).to_contain_text("Tool search · failed in 30 ms: timeout")
    assert unfolded(page, ".answer-agent .answer-tool", "Arguments") == {"query": "a secret question"}
    paid = page.locator(".answer-blocks > .answer-tool", has_text="refund")
    expect(paid).to_contain_text("Tool refund · Refunding · done in 1.20 s")
    expect(paid).to_contain_text("a secret receipt")
    expect(page.locator(".answer-approval")).to_contain_text("approved by key:1: of course")
    expect(page.locator(".answer-input")).to_have_text("You interruptedhurry up")
    expect(page.locator(".answer-tool", has_text="note")).to_contain_text("not shown to users")


def test_the_switch_shows_what_users_see(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*TALK)
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    expect(page.locator(".answer-turn")).to_be_visible()
    page.get_by_label("What users see").check()
    expect(page.locator(".answer-turn")).to_have_count(0)
    expect(page.locator(".answer-progress").last).to_have_text("Asking the bank…")
    shown = page.locator(".answer").text_content() or ""
    assert "secret" not in shown
    assert "of course" not in shown
    expect(page.locator(".answer-approval")).to_contain_text("approved")
    seeds.append(sid, ("internal.trace", {"traceback": "a secret error"}), DONE)
    until_ended(page)
    expect(page.locator(".answer-agent")).to_have_count(2)
    assert "secret" not in (page.locator(".answer").text_content() or "")


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ([("internal.approval", {"approval_id": "a1", "approve": False, "reason": "Nobody decided within 600 s.",
           "by": "lastevent"})], "refused by lastevent: Nobody decided within 600 s."),
        ([("tool_start", CALL), ("tool_error", {**CALL, "code": "not_approved"})], "refused"),
        ([("tool_start", CALL)], "decided"),
        ([("cancelled", {"reason": "x"})], "no longer waits"),
    ],
)  # fmt: skip
def test_an_approval_tells_what_became_of_it(
    page: Page, seeds: Seeds, then: list[tuple[str, object]], told: str
) -> None:
    sid = seeds.external(START, ("approval_request", APPROVAL))
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    expect(page.locator(".answer-approval")).to_contain_text("waits for a decision")
    expect(page.locator(".answer-heading")).to_contain_text("waits for approval")
    seeds.append(sid, *then)
    expect(page.locator(".answer-approval")).to_contain_text(f"Approval of refund · Refunding · {told}")
    expect(page.get_by_role("button", name="Approve")).not_to_be_visible()
    if then[-1][0] != "cancelled":
        seeds.append(sid, ("done", {}))


def test_a_decision_that_does_not_arrive_can_be_made_again(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(START, ("approval_request", APPROVAL))
    sent: list[Any] = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_json)
        if len(sent) == 1:
            route.abort()
        else:
            route.fulfill(json={"id": "1-0"})

    page.route("**/approvals/a1", answer)
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("button", name="Decide again")).to_be_visible()
    expect(page.get_by_role("button", name="Refuse")).to_be_visible()
    page.get_by_role("button", name="Decide again").click()
    expect(page.get_by_role("button", name="Decide again")).to_have_count(0)
    assert sent == [{"approve": True}] * 2
    seeds.append(sid, DECIDED, ("done", {}))
    expect(page.locator(".answer-approval")).to_contain_text("approved by key:1")


def test_after_a_restart_replayed_tools_are_marked_and_still_known(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*TALK, RESTARTED[0], ("approval_request", APPROVAL), *RESTARTED[1:], DONE)
    as_restarts(page)
    watch(page, seeds, sid)
    assert answer(page) == "Paid."
    expect(page.locator(".answer-approval")).to_contain_text("approved by key:1")
    expect(page.locator(".answer-agent")).to_have_count(0)
    tool = page.locator(".answer-tool", has_text="refund")
    expect(tool).to_contain_text("Tool refund · done in 1.20 s · replayed, not run again")
    assert unfolded(page, ".answer-tool", "Arguments") == ARGS


def test_the_timeline_has_tools_agents_and_approvals(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*TALK, ("tool_start", {**CALL, "tool_call_id": "c9"}), *RESTARTED, DONE)
    as_restarts(page)
    page.goto(f"{seeds.url}/#/stream/{sid}")
    lanes = page.locator(".spans")
    expect(lanes).to_have_count(6)
    names = ["reader.1", "reader.2", "search", "refund", "refund", "note"]
    assert page.locator(".lane-name").all_text_contents() == names
    expect(lanes.nth(1)).to_contain_text("failed")
    expect(lanes.nth(2)).to_contain_text("reader.1")
    expect(lanes.nth(3)).to_contain_text("approved")
    expect(lanes.nth(4)).to_contain_text(re.compile(r"3× · .+ · 1 replayed"))
    bars = lanes.nth(4).locator(".span-bar")
    for bar, kind in zip(bars.all(), ("done void", "unfinished void", "replayed"), strict=True):
        expect(bar).to_have_class(f"span-bar tool {kind}")
    expect(page.locator(".mark.restart")).to_have_count(1)
    log = seeds.log(sid)
    begun = [place for place, event in enumerate(log, 1) if event["event"] == "tool_start"]
    places = [place for place in begun if log[place - 1]["data"]["tool"] == "refund"]
    button = lanes.nth(4).get_by_role("button")
    for place in [*places, places[0]]:
        button.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".place")).to_have_text(f"event {place} of {len(log)}")


def test_the_player_plays_both_audiences_at_the_same_instant(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*TALK, DONE)
    log = seeds.log(sid)
    public = [event for event in log if not event["event"].startswith("internal.")]
    page.goto(f"{seeds.url}/#/stream/{sid}?event={log[10]['id']}")
    expect(page.locator(".place")).to_have_text(f"event 11 of {len(log)}")
    page.get_by_label("What users see").check()
    before = sum(event["id"] <= log[10]["id"] for event in public)
    expect(page.locator(".place")).to_have_text(f"event {before} of {len(public)}")
    expect(page.get_by_role("heading", name="As the user saw it")).to_be_visible()
    expect(page.locator(".mark")).to_have_count(0)
    assert page.locator(".chip[data-kind^=internal]").count() == 0
    page.keyboard.press("End")
    expect(page.locator(".answer-ending")).not_to_be_empty()
    assert "secret" not in (page.locator(".stage").text_content() or "")
    page.wait_for_url(re.compile(r"\?audience=public$"))
    page.reload()
    expect(page.locator(".place")).to_have_text(f"event {len(public)} of {len(public)}")
    page.get_by_label("What users see").uncheck()
    expect(page.locator(".place")).to_have_text(f"event {len(log)} of {len(log)}")
    expect(page.locator(".answer-turn")).to_be_attached()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.npm
def test_agents_are_for_everybody(browser: Browser, seeds: Seeds, axe: str, look: str) -> None:
    context = browser.new_context(**LOOKS[look])
    page = context.new_page()
    announced = [{"name": "w" * 64, "app": "x", "input_schema": {"type": "object"}, "show": [], "tools": []}]
    page.route("**/v1/agents", lambda route: route.fulfill(json={"agents": announced}))
    sid = seeds.external(*TALK, ("approval_request", {**APPROVAL, "approval_id": "a2", "tool_call_id": "c8"}))
    for address in (f"#/playground?stream={sid}", f"#/stream/{sid}"):
        page.goto(f"{seeds.url}/{address}")
        expect(page.locator(".answer-approval")).to_have_count(2)
        assert serious(page, axe) == []
        assert fits(page)
    seeds.append(sid, ("done", {}))
    context.close()
