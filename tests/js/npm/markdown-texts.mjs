// Markdown to be shown as it grows: an answer as models write it, others of any length, and texts that make trouble.

/** Of what models write, all that may be shown too early; in none of it must a guess be wrong. */
export const ANSWER = String.raw`# Retrying a request, *safely*

A request that **fails** may be sent again if it is *idempotent*: ~GET~, ~PUT~ and ~DELETE~ are, ~POST~ is not. See
[RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2 "HTTP Semantics") for the ***exact*** words.
It costs 5 * 3 = 15 requests, a ~max_retries~ of snake_case_names, and 2 < 3 — R&amp;D aside.

1. **Wait** between tries:
   - at first ~100 ms~,
   - then twice as long, with *jitter*:
     - *full*: anything up to it,
     - ~~~~none~~~~: never.
2. Send a key:

   ~~~http
   POST /v1/orders HTTP/1.1
   Idempotency-Key: 8e03978e
   ~~~

3. Stop after a while.

| Status | Meaning          | Retry? |
|-------:|:-----------------|:------:|
| 408    | Request Timeout  | yes    |
| 429    | **Too many**     | ~Retry-After~ |
| 500    | [Server](https://ex.com/500) | a \| b |

~~~python
def wait(attempt: int) -> float:
    # **not bold**, and no [link](x)
    return random.uniform(0, min(CAP, BASE * 2 ** attempt))
~~~

> The wait of attempt $n$ is at most $$\min(c, b \cdot 2^n)$$, so that $a_1 + b_2$ stays small.
> - quoted, with a nested list
>   > and a quote in it
>   that goes on

Another way
-----------

- [x] Try it with ~curl --retry 5~
- [ ] Read <https://ex.com/docs_all> or www.ex.org

---

<details>
<summary>More</summary>
</details>

[docs]: https://ex.com/docs "All of it"

The [docs] say more, as ![a picture](https://ex.com/a.png) shows. 你好，**世界**。 Thanks 👩‍👩‍👧!
`.replace(/~~~~/g, "\0").replaceAll("~", "`").replaceAll("\0", "~~");

/** Each for a rule of CommonMark's, or for a place where an earlier form of this, or another package, was wrong. */
export const NASTY = [
  "", "\n", "\r", "\r\n", " ", "\t", "\\", "*", "**", "`", "```", "~~~", "|", "[", "![", "<", "&", ">", "-", "1.", "#", "=", "\ud83d",
  // lines, characters
  "a\r\nb\r\n\r\nc\rd", "- a\r\n- b\r\n\r\n  c", "```\r\na\r\n```\r\n", "a\\\r\nb", "a  \r\nb", "\ufeffa", "\0a", "a\n\u2028b",
  "😀\n\n- 👩‍👩‍👧 **é**", "a\ud83d", "\ude00b", "**\ud83d\ude00**", "a  \nb", "a   ", "  a\n  b", "a\n\n\n\nb", "a \nb", "\u00a0a\u00a0",
  // underlines, rules
  "a\n===", "a\n=", "a\n-", "a\n--\n", "a\nb\n===\nc", "- a\n  ===\n", "> a\n===", "===", "a\n\n===", "**a\n---", "[a]: /b\n===",
  "- - -", "* * *", "_ _ _", "__\n", "a\n__", "a\n***\nb", "a\n* * *\nb",
  // emphasis
  "5 * 3 * 2", "2*3*4", "a*b", "**open\n\nnext", "**open\nline** end", "*a **b* c**", "***a** b*", "a ** b **", "_a_b_", "__init__",
  "snake_case_name _em_", "**a*", "*a**", "`a", "``a`", "`a``", "` a `", "~a~ ~~b~~ ~5 ~~c", "\\*a\\* \\\\", "a\\", "a\\\nb\\",
  "\\(x_1\\) and \\[y\\]", "$$\na_1 * b_2 * c\n$$", "$x_{i}*y_{j}$ and $\\mathbf{x}_i$",
  // links
  "[a](b", "[a](/b)", '[a](/b "t")', '[a](/b "t', "[a", "[a]", "[[a](/b)](/c)", "[![i](/j)](/k)", "![](/i)", "[](/a)", "[^1] and\n\n[^1]: A note",
  "<http://a.b", "<http://a.b>", "<a@b.c>", "http://a.b/c. www.a.b, a@b.c", "https://a.b/(c)d", "**http://a.b**", "[a](b(c", "[a](b(c)d)",
  "[a]:", "[a]: /b", "[a]: /b\n[a]", "[a]: /b\n\n[a] [A][a] [a][]", "[a]: /b\n'title'\n[c]: </d e>\n\n[a][c]", "[a]\n\n[a]: /b",
  "[a]: /b 'open\n\n[a]", '[a]:\n/b\n"t\nu"\n\n[a]', '[a]: /b\n"no title" x', "- [a]: /b\n- [a]", "> [a]: /b\n\n[a]", "[a\n]: /b\n\n[a]",
  // lists
  "- a\n- b\n\n- c", "- a\n\n  b\n- c", "- a\n  - b\n    - c\n- d", "- a\n\n\n- b\n\n\n\nc", "-\n- a\n-", "-\n\n  a", "- - - a", "* - a\n1. \n* ",
  "3. a\n4. b", "3) a\n3. b", "1. a\n   1. b\n2. c", "a\n1. b", "a\n2. b", "1984. A year", "1234567890. a", "- a\n+ b\n* c", "10. a\n\n    b",
  "- [ ] a\n- [x] b\n- [X] c\n- [ ]\n- [x]d", "1. [x] a\n\n   b", "- [ ] **a", "[ ] a", "- a\n[x] b", "- [x] a\n  ===", "*\u00a0a",
  // quotes
  "> a\nb\n> c", "> > a\n> b\nc", "> - a\n> b\n- c", "> ```\n> a\nb", ">a\n>\n>b", "> a\n\n> b", "> # a\nb", "> a\n    b", ">>>>a\n>b",
  // code
  "```js x\na\n```\nb", "```\na\n````\nb", "````\n```\n````", "```a`b", "~~~\n```\n~~~", "  ```\n  a\n   b\n ```", "- ```\n  a\n\n  b\n  ```\n- c",
  "    a\n\n    b\n\nc", "a\n    b", "\ta\n\tb", "- a\n\n      b\n\n\n      c", "-     a", "-\ta\n\n\tb", ">\ta", "> \t a", "1.\t\ta", "\t- a",
  // tables
  "|a|b|\n|-|-|\n|c|", "a | b\n--|:-:\nc | d | e\n\nf", "x\n|a|\n|-|\n", "|a|b|\n|-|\n|c|", "|a|\n|-|\n- b", "|a|\n|-|\nb\n> c",
  "> |a|\n> |-|\n> |b|", "|a\\|b|`c\\|d`|\n|-|-|\n|\\\\|**e", "- |a|\n  |-|\n  |b|", "|a|\n|-", "a|b", "a|b\nc|d\n-|-\n", "||\n|-|",
  "| **a |\n|-|\n| **b", "|a|b|\n|-:|:-:|\n|c|d",
  // HTML, references
  "<div>\n*a*\n\n*b*\n</div>", "<!-- a\n\nb --> c\nd", "<script>\n- a\n\n</script>\nb", "<b>a</b> *c*", "<b>\nc", "a\n<b>\nc", "a\n<div>\nc",
  "a <b and c > d", "<?php\n\n?>\na", "<![CDATA[\n\n]]>\na", "<!DOCTYPE html>\na", "<a href='x'>*b*</a>", "< a",
  "&amp; &#42; &lt;b&gt; &nbsp; &unknown; &constructor; AT&T &", "&#x41;&#0;&amp;amp;",
  // headings
  "# a #", "# a#", "#a", "#\n##\n", "####### a", "# **a", "# a \\#", "#\ta", "a\n# b\nc", "# `a", "##  a  ##  ",
];

const MARKS = [
  "*", "**", "_", "__", "~~", "~", "`", "``", "```", "[", "]", "(", ")", "![", "](/u)", '](/u "t")', "][r]", "[r]: /u\n", "<", "<b>", "</b>",
  "<div>", "<!--", "-->", "<http://a.b>", "http://a.b/c_d", "&amp;", "&", "\\", "\\*", "a", "b c", "5 * 3", "x_y_z", " ", "  ", "    ", "\t",
  "\n", "\n\n", "  \n", "\\\n", "\r\n", "\r", "# ", "## x", "- ", "* ", "+ ", "1. ", "2) ", "- [ ] ", "- [x] ", "> ", ">", "---", "***", "===",
  "--", "=", "|", "| a | b |\n|---|:-:|\n", "| c | d |\n", "|-|", "~~~", "```js\n", "\n```\n", "é", "😀", "\ud83d", "中文。", "!", "#", "10.",
];

const WORDS = [
  ..."the quick brown fox jumps over lazy dogs and sleeps for 5 * 3 hours with snake_case names while 2 < 3 & AT&T don't care about C#".split(" "),
  ...'or F#! Really? (yes) "quoted" 100% $5 a/b e.g. — ok… 中文内容 émigré 😀 👩‍👩‍👧 3.14 1984 #tag @me :) ~5 -> => + - <3'.split(" "),
  ..."www.ex.org me@ex.com https://ex.com/a_b?c=d&e=f $a_1+b_2$".split(" "),
];
const PLAIN_SPANS = [
  "**bold**", "*em*", "_em_", "__strong__", "***both***", "~~gone~~", "**bold with `code`**", "*em and **bold** in it*", "`code`", "`a*b`",
];
const SPANS = [
  ...PLAIN_SPANS, "`x_y[0]`", "`<b>`", "``a ` b``", "`**`", "[a link](https://ex.com/a_b)", "**[bold link](/path)**:", "a\\*b", "a  \nline",
  '[with a title](https://ex.com "A *title*")', "[**bold** `code` in it](https://ex.com/x?a=1&b=2)", "<https://ex.com>",
  "[brackets (1)](https://ex.com/wiki_(a))", "![an image](https://ex.com/a.png)",
];

/** Numbers that look as if by chance, the same for the same seed. */
export function dice(seed) {
  const next = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const upTo = (most) => 1 + Math.floor(next() * most);
  const one = (list) => list[Math.floor(next() * list.length)];
  const many = (most, make) => Array.from({ length: upTo(most) }, make);
  return { next, upTo, one, many };
}

/** Places to cut a text at. */
export const cuts = ({ next, many }, text) =>
  many(9, () => Math.floor(next() * (text.length + 1))).sort((a, b) => a - b);

/** What no model writes, and anybody can. */
export function scrambled({ next, one, many }) {
  if (next() < 0.5) return many(30, () => one(MARKS)).join("");
  let text = many(5, () => one(NASTY)).join("\n");
  for (const mark of many(4, () => one(MARKS))) {
    const at = Math.floor(next() * (text.length + 1));
    text = text.slice(0, at) + mark + text.slice(at);
  }
  return text;
}

/** Headings, paragraphs, nested lists, tables, code, quotes: at least so many characters. */
export function answer(dice, length) {
  let text = "";
  while (text.length < length) text += block(dice, 0) + "\n\n";
  return text;
}

const KINDS = ["paragraph", "paragraph", "paragraph", "paragraph", "heading", "code", "table", "rule"];

function block(dice, depth) {
  const { next, upTo, one, many } = dice;
  const kind = one(depth < 3 ? [...KINDS, "list", "list", "list", "quote"] : KINDS);
  if (kind === "rule") return "---";
  if (kind === "heading") return `${"#".repeat(upTo(4))} ${words(dice, 5)} ${one(PLAIN_SPANS)}`;
  if (kind === "list") return list(dice, depth);
  if (kind === "quote") return "> " + block(dice, depth + 1).replaceAll("\n", "\n> ");
  if (kind === "code") {
    const lines = many(12, () => one(["x = 1", "", "# no heading", "- no list", "    y()", "**z**", "~~~", "```"]));
    return ["````" + one(["", "js", "python title"]), ...lines, "````"].join("\n");
  }
  if (kind === "table") {
    const width = 1 + upTo(3);
    const row = () => `| ${Array.from({ length: width }, () => (next() < 0.5 ? words(dice, 3) : one(PLAIN_SPANS))).join(" | ")} |`;
    return [row(), "|" + one([":--|", "--:|", "---|", ":-:|"]).repeat(width), ...many(6, row)].join("\n");
  }
  return "A " + many(4, () => text(dice)).join(" ");
}

function list(dice, depth) {
  const { next, one, many } = dice;
  const numbered = next() < 0.4;
  const items = many(5, (_, index) => {
    const marker = numbered ? `${index + 1}. ` : "- ";
    let item = one(["", "", "[x] "]) + "An " + text(dice).replaceAll("\n", " ");
    if (depth < 3 && next() < 0.4) item += one(["\n", "\n\n"]) + (next() < 0.6 ? list(dice, depth + 1) : "\n" + block(dice, depth + 1));
    return (marker + item).replaceAll("\n", "\n" + " ".repeat(marker.length));
  });
  return items.join(one(["\n", "\n\n"]));
}

const text = (dice) => dice.many(6, () => (dice.next() < 0.67 ? words(dice, 8) : dice.one(SPANS))).join(" ");
const words = ({ one, many }, most) => many(most, () => one(WORDS)).join(" ");

const LINE = "Some **words** with `code`, [a link](https://ex.com/a_b) and *more*, so that there is something to read";

/** Lines that have a long run of one character in them: it must not be looked at more than once. */
const RUNS = [
  "-…x", "- …x", "# a …b", "# #…b", "#…", "|a|\n-- …x", "|a|\n-…x", "[a]: x …y z", "[a](x …y z", "[a]( …y z", "a[b](< …>)", "a &x…", "a *…b",
  "<a …<", "<!- …x", "a\n=…x", "```…x`", "a `…b", "> …x", "a\\…b", "1. …x", "\t…x", "a …|b", "a …\nb", "<a@b…",
];

/** One block of so many characters, of each kind that has no bound; and an answer. */
export function long(length) {
  const many = (text) => text.repeat(Math.ceil(length / text.length));
  return {
    "an answer": answer(dice(1), length),
    "code": "```js\n" + many("const x = 1; // **no**\n"),
    "code of one line": "```js\n" + many("const x = 1; "),
    "code in a list": "1. See:\n   ```\n" + many("   x = 1\n"),
    "code of spaces": many(`    ${LINE}\n`),
    "a list": many(`- ${LINE}\n`),
    "a nested list": "- a\n" + many(`  - b\n    - ${LINE}\n`),
    "a quote": many(`> ${LINE}\n>\n`),
    "a quote that goes on without its mark": `> ${LINE}\n` + many(`${LINE}\n`),
    "a table": "| a | b |\n|---|---|\n" + many(`| ${LINE} | \`c\` |\n`),
    "a row": "| a | b |\n|---|---|\n| " + many(`${LINE} `),
    "a paragraph of lines": many(`${LINE}\n`),
    "a paragraph of one line": many(`${LINE} `),
    "a paragraph without spaces": many("中文"),
    "one word": many("x"),
    "one heading": "# " + many("word "),
    "HTML": "<div>\n" + many(`${LINE}\n`),
    "definitions": Array.from({ length: length / 20 }, (_, i) => `[${i}]: https://ex.com\n`).join(""),
    "emphasis that is never closed": many(`**${LINE.replaceAll("*", "")} `),
    "a bracket that is never closed": "see [" + many("one word and another "),
    "a bracket at the beginning": "[" + many("one word and another "),
    "brackets": many("["),
    "quotes in quotes": many(">"),
    ...Object.fromEntries(RUNS.map((around) => [`a run in ${around}`, around.replace(/(.)…/, (_, char) => many(char))])),
  };
}
