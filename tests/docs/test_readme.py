"""What the README shows is what happens: its commands run here as they stand, against `lastevent up` on a free port.

So do the lines of docs/PROVIDERS.md, the commands of docs/AGENTS.md, and the copy that docs/OPERATIONS.md makes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from redis import Redis

from bench.ports import free_port
from broker.process.embedded import EmbeddedServer
from tests.docs.up import AGENTS, BIN, PARTS, ROOT, Up, blocks_of, running_up
from tests.js.packages import PACKAGE
from tests.rig.chromium import ARGS
from tests.rig.deployment import HTTP, Process, wait_until
from worker.providers.models_file import read_models_file

README = (ROOT / "README.md").read_text()
CLIENTS = (ROOT / "docs" / "CLIENTS.md").read_text()
OPERATIONS = (ROOT / "docs" / "OPERATIONS.md").read_text()
PROVIDERS = (ROOT / "docs" / "PROVIDERS.md").read_text()
COMMANDS = re.findall(r"^```sh\n(.*?)^```\n(?:```text\n(.*?)^```$)?", AGENTS, re.DOTALL | re.MULTILINE)
NOT_HERE = re.compile(r"make|lastevent (up|serve|work)")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Iterator[Up]:
    require("curl", "curl")
    folder, page_port = tmp_path_factory.mktemp("readme"), free_port()
    (folder / "shop.py").write_text("\n\n".join(PARTS))
    with running_up(folder, "--app", "shop", LASTEVENT_CORS_ORIGINS=f"http://localhost:{page_port}") as running:
        running.page_port = page_port
        yield running


def ids(sse: str) -> list[int]:
    return [int(found) for found in re.findall(r"^id: (\d+)$", sse, re.MULTILINE)]


def test_the_first_screen_cuts_a_stream_and_resumes_it_with_nothing_lost_or_doubled(up: Up) -> None:
    start_and_watch, resume = (block for block in blocks_of(README, "sh") if "seen.txt" in block)
    output = up.sh(f"{start_and_watch}\necho CUT\n{resume}")
    before, after = output.split("CUT\n")
    assert ids(before), "the first viewer saw something before it was cut"
    assert "event: done" not in before
    assert ids(before) + ids(after) == list(range(1, 2 + 1 + 50 + 1))
    assert after.rstrip().split("\n")[-4] == "event: done"


def test_the_commands_of_the_terminal_section_do_what_their_comments_say(up: Up) -> None:
    [terminal] = [block for block in blocks_of(README, "sh") if "lastevent cancel" in block]
    generate, ls, replay, cancel, doctor = terminal.strip().split("\n")
    answer = up.sh(generate)
    assert answer.startswith("This is a stand-in and no model")
    listed = up.sh(ls).split("\n")
    sid = listed[1].split()[0]
    assert "done" in listed[1]
    assert up.sh(replay.replace("ID", sid)) == answer
    assert up.sh(cancel.replace("ID", sid)) == "had ended already: done\n"
    assert "BAD" not in up.sh(doctor)


def test_the_chain_of_two_models_is_answered(up: Up) -> None:
    [chain] = [block for block in blocks_of(README, "sh") if "--model" in block]
    assert up.sh(chain).startswith("This is a stand-in and no model")


def test_the_commands_of_the_afterwards_section_do_what_their_comments_say(up: Up) -> None:
    [block] = [block for block in blocks_of(README, "sh") if "lastevent verify" in block]
    sessions, ls, views, export, verify_all, verify_export = block.strip().split("\n")
    url = f"http://localhost:{up.port}"
    body = {"prompt": "[[tokens=5 rate=0]]", "user_id": "ann", "session_id": "hers"}
    sid = HTTP.post(f"{url}/v1/streams", json=body).json()["id"]
    HTTP.get(f"{url}/v1/streams/{sid}/events")
    wait_until(lambda: HTTP.get(f"{url}/v1/streams/{sid}").json()["archived_at"], "the stream is archived")
    assert "hers" in up.sh(sessions)
    assert [line.split()[0] for line in up.sh(ls).splitlines()[1:]] == [sid]
    assert "finished" in up.sh(views.replace("ID", sid))
    assert up.sh(export.replace("ID", sid)) == ""
    assert up.sh(verify_all).splitlines()[-1] == "nothing has changed"
    assert up.sh(verify_export).startswith("verified")


def test_the_copy_of_a_data_directory_that_docs_operations_md_makes_has_everything(up: Up, tmp_path: Path) -> None:
    copy, restore = (block for block in blocks_of(OPERATIONS, "sh") if "backup/" in block and "docker" not in block)
    sid = HTTP.post(f"http://localhost:{up.port}/v1/streams", json={"prompt": "[[tokens=5 rate=0]]"}).json()["id"]
    heads = up.folder / ".lastevent" / "seal-heads.json"
    wait_until(heads.exists, "something is archived")
    up.sh(copy)
    (up.folder / "backup").rename(tmp_path / "backup")
    subprocess.run(["bash", "-ec", restore], cwd=tmp_path, check=True)
    server = EmbeddedServer(tmp_path / ".lastevent")
    try:
        url = server.start()
        with Redis(unix_socket_path=url.removeprefix("unix://")) as redis:
            assert redis.hgetall(f"le:{{{sid}}}:meta")
        verified = subprocess.run(
            [str(BIN / "lastevent"), "verify", "--all"],
            cwd=tmp_path,
            env={**os.environ, "LASTEVENT_REDIS_URL": url},
            capture_output=True,
            text=True,
        )
    finally:
        server.stop()
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stderr == ""
    assert verified.stdout.splitlines()[-1] == "nothing has changed"


@pytest.mark.parametrize("model", ["anthropic/m", "openai/m", "openai-chat/m", "gemini/m"])
def test_the_lines_about_tools_give_back_the_call_and_its_result_until_the_model_has_what_it_wants(
    up: Up, model: str
) -> None:
    [lines] = blocks_of(PROVIDERS, "python")
    asked: list[dict[str, object]] = []

    def weather(**of: object) -> str:
        asked.append(of)
        return "3 degrees"

    with httpx2.Client(base_url=f"http://localhost:{up.port}", trust_env=False, timeout=30) as http:
        known = {"http": http, "model": model, "weather": weather}
        known["tools"] = [{"name": "get_weather", "input_schema": {"type": "object"}}]
        exec(lines.replace("What is", "[[tools=2 thinking=2 tokens=3 rate=0]] What is"), known)
    assert [of["city"] for of in asked] == ["Oslo", "Oslo"]
    kinds = [block["type"] for block in known["said"]["content"]]  # type: ignore[index]
    assert "text" in kinds
    assert "tool_use" not in kinds


def test_the_models_file_that_is_shown_is_one(tmp_path: Path) -> None:
    [shown] = blocks_of(PROVIDERS, "toml")
    (tmp_path / "models.toml").write_text(shown)
    file = read_models_file(tmp_path / "models.toml")
    assert list(file.chains) == ["fast"]
    assert file.price_of("vllm/qwen3")


def test_the_make_targets_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


DOCUMENTS = [Path("README.md"), *(Path("docs") / path.name for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_says_nothing_twice_and_no_heading_stands_alone(document: Path) -> None:
    """As a merge of what two branches wrote leaves it."""
    text = re.sub(r"^```.*?^```$", "code", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if len(line) > 4]
    again = [line for line, after in pairwise(lines) if line[:40] == after[:40] and line[0] != "|"]
    assert not again
    settings = re.findall(r"^\| `(LASTEVENT_[A-Z_]+)` \| ", text, re.MULTILINE) if document.name == "API.md" else []
    assert sorted(settings) == sorted(set(settings))
    for heading, after in re.findall(r"^(#+) .*\n+(#+) ", text, re.MULTILINE):
        assert len(after) > len(heading), "a section without a word"
    for above, table in re.findall(r"^(?!\|)(.*)\n(\|.*\n.*\n)", text, re.MULTILINE):
        assert re.match(r"\|.*\n\|[-:| ]+\n", table), f"a table without its line, after {above!r}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_exists(document: Path) -> None:
    for link, heading in re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", (ROOT / document).read_text()):
        target = ROOT / document.parent / link if link else ROOT / document
        assert target.exists(), link
        assert not heading or heading in headings(target), f"{link}{heading}"


def headings(document: Path) -> set[str]:
    """As GitHub names them."""
    found = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in found}


def worker_of(up: int) -> str:
    children = Path(f"/proc/{up}/task/{up}/children").read_text().split()
    return next(pid for pid in children if b"worker\0--parent-pipe" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the worker is found in /proc")
def test_the_commands_of_the_agents_tutorial_print_what_it_shows(up: Up) -> None:
    commands = [(command, shown) for command, shown in COMMANDS if not NOT_HERE.match(command)]
    script = "".join(f"{command}\necho; echo ==\n" for command, _ in commands)
    # This one's worker: others may be at work on this machine.
    script = script.replace('$(pgrep -f "worker --parent-pipe")', worker_of(up.process.pid))
    printed = up.sh(script, with_stderr=True).split("==\n")
    assert len(printed) == len(commands) + 1
    for (command, shown), output in zip(commands, printed, strict=False):
        lines = iter(output.splitlines())
        for line in shown.splitlines():
            pattern = ".*".join(map(re.escape, line.split("…")))
            assert any(re.fullmatch(pattern, said.rstrip()) for said in lines), f"{command}\n{line}\n---\n{output}"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        browser.close()


def test_the_page_that_is_shown_is_the_one_that_is_served() -> None:
    assert blocks_of(README, "html") == [(PACKAGE / "page.html").read_text()]


def test_the_conversation_that_is_shown_is_the_one_that_is_served() -> None:
    assert (PACKAGE / "conversation.html").read_text() in blocks_of(CLIENTS, "html")


@pytest.fixture(scope="module")
def page_url(up: Up) -> Iterator[str]:
    """The page as the README serves it, beside what it imports; only its ports are others."""
    [commands] = [block for block in blocks_of(README, "sh") if "http.server" in block]
    allow, serve = commands.strip().split("\n")
    assert allow == "LASTEVENT_CORS_ORIGINS=http://localhost:3000 make up", "as the fixture `up` is started"
    served = up.folder / "clients" / "js"
    shutil.copytree(PACKAGE, served)
    for name in ("page.html", "conversation.html"):
        page = served / name
        page.write_text(page.read_text().replace("localhost:8000", f"localhost:{up.port}"))
    [command] = re.findall(r"^python3 (.*?) +#", serve)
    argv = [sys.executable, *command.replace("3000", str(up.page_port)).split()]
    process = Process("http.server", argv, {**os.environ, "PYTHONUNBUFFERED": "1"}, up.folder)
    process.start()
    try:
        wait_until(lambda: "Serving HTTP" in process.output.read_text(), "the page is served")
        yield f"http://localhost:{up.page_port}/page.html"
    finally:
        process.kill()


def ask(page: Page, prompt: str) -> None:
    page.fill("input", prompt)
    page.click("text=Ask")


def noted(page: Page, note: str) -> None:
    page.wait_for_function("(note) => document.getElementById('note').textContent === note", arg=note)


def whole_text(page: Page) -> str:
    url = page.evaluate("JSON.parse(localStorage.getItem('lastevent:page')).url")
    return HTTP.get(url.replace("/events", "/text")).text


@pytest.mark.browser
def test_the_page_shows_the_whole_answer_though_it_is_reloaded_three_times(browser: Browser, page_url: str) -> None:
    page = browser.new_page()
    page.goto(page_url)
    ask(page, "[[tokens=60 rate=30]]")
    for words in (10, 25, 40):
        page.wait_for_function(f"text.textContent.split(' ').length > {words}")
        page.reload(wait_until="commit")
    noted(page, "done")
    assert page.inner_text("#text").split() == whole_text(page).split()
    assert page.is_hidden("#cancel")
    page.reload()
    noted(page, "done")
    assert page.text_content("#text") == whole_text(page), "it is there after the end too"
    page.close()


@pytest.mark.browser
def test_the_page_s_button_ends_the_answer_and_it_can_be_asked_again(browser: Browser, page_url: str) -> None:
    page = browser.new_page()
    page.goto(page_url)
    ask(page, "[[tokens=500 rate=20]]")
    page.wait_for_function("text.textContent")
    page.click("text=Stop")
    noted(page, "cancelled")
    assert page.text_content("#text") == whole_text(page)
    ask(page, "[[tokens=5 rate=0]]")
    noted(page, "done")
    assert page.text_content("#text") == whole_text(page)
    page.close()


@pytest.mark.browser
def test_the_lines_without_the_package_show_the_whole_answer_and_stop_by_themselves(
    up: Up, browser: Browser, page_url: str
) -> None:
    [lines] = blocks_of(README, "js")
    page_html = f"""<!doctype html><pre id=output></pre><script type=module>
        const server = "http://localhost:{up.port}", prompt = "[[tokens=30 rate=60]]";
        const output = document.getElementById("output");
        {lines}
        events.addEventListener("done", () => {{ window.ended = true; }});
        window.events = events;
        window.stream = stream;
    </script>"""
    (up.folder / "clients" / "js" / "lines.html").write_text(page_html)
    page = browser.new_page()
    page.goto(page_url.replace("page.html", "lines.html"))
    page.wait_for_function("window.ended")
    shown = page.evaluate("output.textContent")
    url = page.evaluate("stream.events_url")
    # What the page's own will get, after the minute that the last event told it to wait.
    page.evaluate("window.again = new EventSource(events.url + '?last_event_id=33')")
    page.wait_for_function("again.readyState === EventSource.CLOSED")
    page.close()
    exported = up.sh(f"curl -s localhost:8000{url} -H 'Accept: application/x-ndjson'").strip().split("\n")
    deltas = [json.loads(line)["data"]["text"] for line in exported if '"text_delta"' in line]
    assert len(deltas) == 30
    assert shown == "".join(deltas)


@pytest.mark.browser
def test_two_browsers_in_one_conversation_show_what_either_of_them_asks(
    up: Up, browser: Browser, page_url: str
) -> None:
    api, page_of = f"http://localhost:{up.port}/v1", page_url.replace("page.html", "conversation.html?session=two")
    pages = [browser.new_context().new_page() for _ in range(2)]
    for page in pages:
        page.goto(page_of)
    ask(pages[0], "[[tokens=40 rate=40]]")
    ask(pages[1], "[[tokens=60 rate=40]]")
    pages[1].wait_for_function("() => document.querySelectorAll('main p').length === 2")
    pages[1].reload()
    texts: dict[str, str] = {}

    def all_have_ended() -> bool:
        streams = HTTP.get(f"{api}/sessions/two").json()["streams"]
        texts.update({one["id"]: HTTP.get(f"{api}/streams/{one['id']}/text").text for one in streams})
        return {one["state"] for one in streams} == {"done"} and len(streams) == 2

    wait_until(all_have_ended, "both answers are whole")
    late = browser.new_context().new_page()
    late.goto(page_of)
    for page in (*pages, late):
        for sid, text in texts.items():
            page.wait_for_function(
                "([sid, text]) => document.getElementById(sid)?.textContent === text", arg=[sid, text]
            )
        page.close()
