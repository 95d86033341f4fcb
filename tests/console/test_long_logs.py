"""A log of 50,000 events on the page: what is in the document stays small, and any instant is near."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.console.conftest import Seeds

pytestmark = pytest.mark.browser

SHOWS = """
const { AnswerView } = await import("/console/answer.js");
const { Rewind } = await import("/console/rewind.js");
const { Transcript } = await import("/console/transcript.js");
const view = new AnswerView();
const show = (transcript) => { while (!view.draw(transcript)); };
const texts = (selector) => [...view.blocks.querySelectorAll(selector)].map((each) => each.textContent);
const text = () => texts(":scope > .answer-text").join("");
const longest = () => Math.max(...texts(".answer-part").map((part) => part.length));
"""
EVENTS = 50_000


def evaluate(page: Page, seeds: Seeds, script: str) -> Any:
    page.goto(seeds.url)
    return page.evaluate(f"async () => {{ {SHOWS} {script} }}")


def test_the_text_is_exact_at_every_instant_and_none_of_its_parts_is_long(page: Page, seeds: Seeds) -> None:
    shown = evaluate(
        page,
        seeds,
        f"""
        const kinds = (n) => (n % 16000 === 9000 ? "restart" : n % 3000 < 40 ? "thinking_delta" : "text_delta");
        const text_of = (n) => `${{n}} Grüße 🌊${{n % 40 ? " " : "\\n\\n"}}`;
        const data = (n) => (kinds(n) === "restart" ? {{ attempt: n, reason: "r" }} : {{ text: text_of(n) }});
        const event = (_, n) => ({{ id: n + 1, event: kinds(n), data: data(n) }});
        const events = Array.from({{ length: {EVENTS} }}, event);
        const rewind = new Rewind();
        const wrong = [];
        for (const count of [{EVENTS}, 3, 26000, 25999, 499, 500, 501, 0, 24000, 9001, 9000, 41100, {EVENTS}, 12345]) {{
          show(rewind.at(events, count));
          const since = events.slice(0, count).findLastIndex((event) => event.event === "restart") + 1;
          const answer = events.slice(since, count).filter((event) => event.event === "text_delta");
          if (text() !== answer.map((event) => event.data.text).join("")) wrong.push(count);
        }}
        return [wrong, longest(), view.element.querySelectorAll("*").length];
        """,
    )
    wrong, longest, elements = shown
    assert wrong == []
    assert 500 < longest < 3000
    assert elements < 1000


def test_a_text_without_breaks_is_cut_between_words_or_at_least_between_characters(page: Page, seeds: Seeds) -> None:
    exact, longest, starts, halves = evaluate(
        page,
        seeds,
        """
        const transcript = new Transcript();
        const words = "word ".repeat(10_000) + "🌊".repeat(20_001) + "\\n" + "x".repeat(30_000);
        transcript.apply({ event: "text_delta", data: { text: words.slice(0, 7) } });
        transcript.apply({ event: "text_delta", data: { text: words.slice(7) } });
        show(transcript);
        const parts = texts(".answer-part");
        const halves = parts.filter((part) => !part.isWellFormed()).length;
        return [text() === words, longest(), parts.slice(0, 5).map((part) => part[0]), halves];
        """,
    )
    assert exact
    assert longest <= 8000
    assert starts == ["w"] * 5
    assert halves == 0


def test_thousands_of_tools_are_drawn_over_several_frames(page: Page, seeds: Seeds) -> None:
    frames, tools, failed = evaluate(
        page,
        seeds,
        """
        const rewind = new Rewind();
        const tool = (event, n) => ({ id: 0, event, data: { tool_call_id: `t${n}`, tool: "search", duration_ms: n } });
        const calls = Array.from({ length: 5000 }, (_, n) => n);
        const events = [...calls.map((n) => tool("tool_start", n)), ...calls.map((n) => tool("tool_error", n))];
        rewind.at(events, events.length);
        const transcript = rewind.at(events, 5010);
        let frames = 1;
        while (!view.draw(transcript)) frames += 1;
        const failed = view.blocks.querySelectorAll("[data-phase=failed]").length;
        return [frames, view.blocks.children.length, failed];
        """,
    )
    assert (frames, tools, failed) == (5, 5000, 10)
