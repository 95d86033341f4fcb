"""The command as a client: generate, follow, cancel, ls, replay, export; what it prints, and how it ends."""

import json
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from broker.log.agents import Agents, Announced
from tests.command.conftest import Ended, Running
from tests.rig.deployment import HTTP, Deployment, wait_until
from tests.rig.streams import with_redis

Lastevent = Callable[..., Ended]
Start = Callable[..., Running]


def text_of(url: str, sid: str) -> str:
    return HTTP.get(f"{url}/v1/streams/{sid}/text").text


def newest(url: str, session: str) -> dict[str, Any]:
    found: dict[str, Any] = HTTP.get(f"{url}/v1/sessions/{session}").json()["streams"][0]
    return found


def external(url: str, *events: tuple[str, Any], **body: Any) -> str:
    """The id of a stream with these events."""
    made = HTTP.post(f"{url}/v1/streams", json={"producer": "external", **body}).raise_for_status()
    sid: str = made.json()["id"]
    if events:
        append(url, sid, *events)
    return sid


def append(url: str, sid: str, *events: tuple[str, Any]) -> None:
    appended = {"epoch": 1, "events": [{"event": kind, "data": data} for kind, data in events]}
    HTTP.post(f"{url}/v1/streams/{sid}/events", json=appended).raise_for_status()


def deltas(*texts: str) -> list[tuple[str, Any]]:
    return [("text_delta", {"text": text}) for text in texts]


# -- generate and follow ---------------------------------------------------------------------------------


def test_generate_prints_the_text_and_a_line_end_and_nothing_else(lastevent: Lastevent, deployment: Deployment) -> None:
    ended = lastevent("generate", "[[tokens=30 rate=0]] hello", "--session", "cmd-text", url=deployment.url)
    assert (ended.returncode, ended.stderr) == (0, b"")
    stream = newest(deployment.url, "cmd-text")
    assert ended.stdout.decode() == text_of(deployment.url, stream["id"]) + "\n"


def test_generate_takes_its_prompt_from_standard_input_and_its_options(
    lastevent: Lastevent, deployment: Deployment
) -> None:
    prompt = "[[tokens=3 rate=0]]\nGrüße 🙂 [bold]x[/bold]"
    options = ["--system", "be brief", "--max-tokens", "9", "--model", "anthropic/m-1", "--session", "cmd-stdin"]
    ended = lastevent("generate", "-", *options, url=deployment.url, given=prompt.encode())
    assert ended.returncode == 0
    stream = newest(deployment.url, "cmd-stdin")
    messages = [{"role": "user", "content": prompt}]
    request = HTTP.get(f"{deployment.url}/v1/streams/{stream['id']}").json()["request"]
    assert request == {"messages": messages, "system": "be brief", "max_tokens": 9}
    assert stream["model"] == "anthropic/m-1"


def test_generate_takes_several_models_and_a_schema_and_says_that_the_answer_is_something_else(
    lastevent: Lastevent, deployment: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    options = ["--model", "anthropic/a", "--model", "anthropic/b", "--schema", "schema.json", "--session", "cmd-chain"]
    ended = lastevent("generate", "[[tokens=1 rate=0]]", *options, url=deployment.url)
    stream = newest(deployment.url, "cmd-chain")
    request = HTTP.get(f"{deployment.url}/v1/streams/{stream['id']}").json()["request"]
    assert (stream["model"], request["model"]) == ("anthropic/a", ["anthropic/a", "anthropic/b"])
    assert request["output_schema"] == {"type": "object"}
    assert ended.returncode == 1
    assert ended.stderr.decode().endswith("the answer is not what its schema asks for: The answer is not JSON.\n")


@pytest.mark.parametrize(
    ("asked", "given", "request_"),
    [
        (["hello"], "", {"messages": [{"role": "user", "content": "hello"}]}),
        (["--input", "null"], "", {"input": None}),
        (["--input", "-"], '{"order": ["A17", 5]}', {"input": {"order": ["A17", 5]}}),
    ],
)
def test_generate_asks_an_agent_with_a_prompt_or_with_an_input(
    lastevent: Lastevent, deployment: Deployment, asked: list[str], given: str, request_: dict[str, Any]
) -> None:
    agents, session = {"support": Announced("of-the-command", None, [], [])}, f"cmd-agent {given} {asked}"
    with_redis(deployment, lambda log: Agents(log.redis, log.keys).announce(agents))
    options = ["--agent", "support", "--session", session]
    with ThreadPoolExecutor(1) as beside:
        generating = beside.submit(lastevent, "generate", *asked, *options, url=deployment.url, given=given.encode())
        path = f"{deployment.url}/v1/sessions/{session}?include=request"
        wait_until(lambda: generating.done() or HTTP.get(path).json()["streams"], "it has started a stream")
        stream = HTTP.get(path).json()["streams"][0]
        HTTP.post(f"{deployment.url}/v1/streams/{stream['id']}/cancel")
        assert generating.result().returncode == 1
    assert stream["request"] == {"agent": "support", **request_}
    with_redis(deployment, lambda log: log.redis.delete(log.keys.agents, log.keys.jobs_of("of-the-command")))


@pytest.mark.parametrize(
    ("options", "why"),
    [([], b"give a prompt"), (["x", "--input", "1"], b"give a prompt"), (["--input", "{"], b"it is no JSON")],
)
def test_what_generate_is_to_ask_is_given_once(lastevent: Lastevent, options: list[str], why: bytes) -> None:
    ended = lastevent("generate", *options, "--agent", "support")
    assert ended.returncode == 2
    assert why in ended.stderr


@pytest.mark.parametrize(("content", "why"), [(None, b"cannot be read"), ("{", b"no JSON")])
def test_a_schema_that_cannot_be_read_is_said(
    lastevent: Lastevent, tmp_path: Path, content: str | None, why: bytes
) -> None:
    if content:
        (tmp_path / "schema.json").write_text(content)
    ended = lastevent("generate", "x", "--schema", "schema.json")
    assert ended.returncode == 2
    assert why in ended.stderr


def test_generate_as_json_prints_every_event(lastevent: Lastevent, deployment: Deployment) -> None:
    ended = lastevent("generate", "[[tokens=3 rate=0]]", "--json", url=deployment.url)
    assert ended.returncode == 0
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["id"] for event in events] == list(range(1, 7))
    assert [event["event"] for event in events] == ["queued", "start", *["text_delta"] * 3, "done"]


def test_a_failed_generation_ends_with_1_and_says_why(lastevent: Lastevent, deployment: Deployment) -> None:
    ended = lastevent("generate", "[[status=400]]", "--session", "cmd-failed", url=deployment.url)
    assert ended.returncode == 1
    assert f"{newest(deployment.url, 'cmd-failed')['id']}: error: ".encode() in ended.stderr


def test_a_cancelled_generation_ends_with_1_and_keeps_its_text(lastevent: Lastevent, deployment: Deployment) -> None:
    sid = external(deployment.url, *deltas("so far"), ("cancelled", {"reason": "enough", "by": "client"}))
    ended = lastevent("follow", sid, url=deployment.url)
    assert (ended.returncode, ended.stdout) == (1, b"so far\n")
    assert ended.stderr.decode() == f"{sid}: cancelled: enough\n"


def test_generate_goes_on_by_itself_when_the_server_is_killed_and_comes_back(
    start: Start, own_deployment: Callable[..., Deployment]
) -> None:
    deployment = own_deployment(servers=1, workers=1)
    server = deployment.servers[0]
    prompt = "[[tokens=120 rate=40 ttft_ms=0]] on and on"
    generate = start("generate", prompt, "--session", "s", LASTEVENT_URL=deployment.url)
    for _ in range(2):
        shown = len(generate.stdout)
        wait_until(lambda shown=shown: len(generate.stdout) > shown + 10, "some text is shown")
        server.kill()
        generate.wait_until_it_says("trying again")
        server.start()
        deployment.wait_until_ready()
    assert generate.wait() == 0
    assert generate.stdout == text_of(deployment.url, newest(deployment.url, "s")["id"]) + "\n"


def test_follow_goes_on_through_a_drain(start: Start, own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=1, workers=1)
    sid = deployment.create("[[tokens=60 rate=40 ttft_ms=0]] drained")
    follow = start("follow", sid, LASTEVENT_URL=deployment.url)
    wait_until(lambda: len(follow.stdout) > 10, "some text is shown")
    deployment.servers[0].stop()
    deployment.servers[0].start()
    assert follow.wait() == 0
    deployment.wait_until_ready()
    assert follow.stdout == text_of(deployment.url, sid) + "\n"


def test_ctrl_c_leaves_the_generation_running_and_says_how_to_go_on(
    start: Start, lastevent: Lastevent, deployment: Deployment
) -> None:
    sid = external(deployment.url, *deltas("left ", "alone, "))
    follow = start("follow", sid, LASTEVENT_URL=deployment.url)
    wait_until(lambda: follow.stdout == "left alone, ", "the text is shown")
    follow.process.send_signal(signal.SIGINT)
    assert follow.wait() == 130
    assert follow.stdout == "left alone, \n"
    said = re.search(rf"lastevent follow {sid} --last-event-id ([0-9]+)", follow.stderr)
    assert said
    append(deployment.url, sid, *deltas("it goes ", "on"), ("done", {}))
    rest = lastevent("follow", sid, "--last-event-id", said[1], url=deployment.url)
    assert (rest.returncode, rest.stdout) == (0, b"it goes on\n")


def test_follow_from_an_event_on(lastevent: Lastevent, deployment: Deployment) -> None:
    sid = external(deployment.url, *deltas("a", "b", "c"), ("done", {}))
    for cursor, text in (("0", "abc"), ("3", "c"), ("earliest", "abc"), ("", "abc")):
        ended = lastevent("follow", sid, "--last-event-id", cursor, url=deployment.url)
        assert (ended.returncode, ended.stdout.decode()) == (0, f"{text}\n")
    for cursor in ("5", "latest", "4"):
        ended = lastevent("follow", sid, "--last-event-id", cursor, url=deployment.url)
        assert (ended.returncode, ended.stdout) == (0, b"")


def test_events_that_are_gone_are_said_and_those_that_are_left_are_shown(
    lastevent: Lastevent, own_deployment: Callable[..., Deployment]
) -> None:
    deployment = own_deployment(servers=1)
    sid = external(deployment.url, *deltas("a ", "lost ", "c"), ("done", {}))
    with_redis(deployment, lambda log: log.redis.xdel(log.keys.stream(sid).log, "3-0"))
    shown = lastevent("follow", sid, "--last-event-id", "3", url=deployment.url)
    assert (shown.returncode, shown.stdout) == (0, b"c\n")
    assert shown.stderr == b"[events that you have seen no longer exist]\n"
    as_json = lastevent("follow", sid, "--last-event-id", "3", "--json", url=deployment.url)
    gap, *events = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert gap == {"event": "gap", "data": {"requested": 3, "earliest": 4, "reason": "log_lost_tail"}}
    log = [json.loads(line) for line in lastevent("export", sid, url=deployment.url).stdout.splitlines()]
    assert events == log[2:4]


def test_why_it_ended_is_said_also_to_those_who_have_it_or_are_beyond_it(
    lastevent: Lastevent, deployment: Deployment
) -> None:
    sid = external(deployment.url, *deltas("a"), ("error", {"code": "x", "message": "why", "recoverable": False}))
    for cursor in ("2", "3", "99", "latest"):
        ended = lastevent("follow", sid, "--last-event-id", cursor, url=deployment.url)
        assert (ended.returncode, ended.stdout) == (1, b"")
        assert ended.stderr.decode() == f"{sid}: error: why\n"


def test_a_generation_that_starts_again_says_so(lastevent: Lastevent, deployment: Deployment) -> None:
    ended = lastevent("generate", "[[tokens=4 rate=0 ttft_ms=0 cut_at=2]]", url=deployment.url)
    assert ended.returncode == 1
    assert ended.stderr.count(b"starts again") == 2
    assert ended.stdout.count(b"\n") == 3  # each attempt's text on its own line


# -- what is printed -------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold]markup[/bold] [link=http://x]\r\x9b31m\x00\x08\x7fé🙂\ttab\nline [/nope]"
INERT = "[2J]0;owned[bold]markup[/bold] [link=http://x]31mé🙂\ttab\nline [/nope]"


def test_control_characters_and_markup_in_texts_are_inert(lastevent: Lastevent, deployment: Deployment) -> None:
    sid = external(deployment.url, *deltas(HOSTILE), ("error", {"code": "x", "message": HOSTILE, "recoverable": False}))
    followed = lastevent("follow", sid, url=deployment.url)
    assert followed.stdout.decode() == INERT + "\n"
    assert f"{sid}: error: {INERT}\n" == followed.stderr.decode().replace("   ", "\t")  # rich sets tabs
    replayed = lastevent("replay", sid, "--speed", "0", url=deployment.url)
    assert replayed.stdout.decode() == INERT + "\n"
    for ended in (followed, replayed):
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", ended.stdout + ended.stderr)


def test_control_characters_and_markup_in_names_are_inert(lastevent: Lastevent, deployment: Deployment) -> None:
    session = "[red]not red[/red] [/nope] \x9b31m:smile:"
    external(deployment.url, session_id=session)
    ended = lastevent("ls", "--session", session, url=deployment.url)
    assert ended.returncode == 0
    assert "[red]not red[/red] [/nope] 31m:smile:" in ended.stdout.decode()
    assert b"\x1b" not in ended.stdout
    assert b"\xc2\x9b" not in ended.stdout


def test_what_a_terminal_cannot_show_is_replaced(lastevent: Lastevent, deployment: Deployment) -> None:
    sid = external(deployment.url, *deltas("Grüße 🙂"), ("done", {}))
    ended = lastevent("follow", sid, url=deployment.url, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (ended.returncode, ended.stdout) == (0, b"Gr??e ?\n")


# -- cancel, ls, replay, export --------------------------------------------------------------------------


def test_cancel_says_how_it_ended(lastevent: Lastevent, deployment: Deployment) -> None:
    sid = external(deployment.url, *deltas("a"))
    first = lastevent("cancel", sid, "--reason", "enough", url=deployment.url)
    assert (first.returncode, first.stdout) == (0, b"cancelled, after event 2\n")
    again = lastevent("cancel", sid, url=deployment.url)
    assert (again.returncode, again.stdout) == (0, b"had ended already: cancelled\n")
    as_json = json.loads(lastevent("cancel", sid, "--json", url=deployment.url).stdout)
    assert (as_json["state"], as_json["stopped_after"], as_json["already"]) == ("cancelled", 2, True)


def test_ls_is_a_table_for_people_and_json_for_scripts(lastevent: Lastevent, deployment: Deployment) -> None:
    done = external(deployment.url, ("done", {}), session_id="cmd-ls")
    running = external(deployment.url, session_id="cmd-ls")
    table = lastevent("ls", "--session", "cmd-ls", url=deployment.url)
    lines = table.stdout.decode().splitlines()
    assert (table.returncode, len(lines)) == (0, 3)
    columns = "ID STATE CREATED (UTC) USER SESSION MODEL FIRST TEXT LASTED LAST EVENT"
    assert " ".join(lines[0].split()) == columns
    assert {line.split()[0]: line.split()[1] for line in lines[1:]} == {done: "done", running: "running"}
    page = json.loads(lastevent("ls", "--session", "cmd-ls", "--json", url=deployment.url).stdout)
    assert {stream["id"] for stream in page["streams"]} == {done, running}
    only = lastevent("ls", "--session", "cmd-ls", "--state", "done", "--json", url=deployment.url)
    assert [stream["id"] for stream in json.loads(only.stdout)["streams"]] == [done]
    first = lastevent("ls", "--session", "cmd-ls", "--limit", "1", "--json", url=deployment.url)
    assert len(json.loads(first.stdout)["streams"]) == 1


def test_replay_shows_the_text_again(lastevent: Lastevent, deployment: Deployment) -> None:
    sid = external(deployment.url, *deltas("a", "b", "c"), ("done", {}))
    assert lastevent("replay", sid, "--speed", "50", url=deployment.url).stdout == b"abc\n"
    assert lastevent("replay", sid, "--speed", "0", "--from", "3", url=deployment.url).stdout == b"bc\n"
    events = lastevent("replay", sid, "--speed", "0", "--json", url=deployment.url).stdout.splitlines()
    assert [json.loads(event)["id"] for event in events] == [1, 2, 3, 4, 5]


def test_export_prints_the_log_byte_for_byte(lastevent: Lastevent, deployment: Deployment) -> None:
    sid = external(deployment.url, *deltas("a", HOSTILE), ("done", {}))
    ended = lastevent("export", sid, url=deployment.url)
    assert ended.returncode == 0
    assert ended.stdout == HTTP.get(f"{deployment.url}/v1/streams/{sid}/export").content


@pytest.mark.parametrize(
    ("command", "sid"),
    [
        *((command, "0" * 32) for command in ("follow", "cancel", "replay", "export")),
        *(
            ("export", "../streams?limit=5"),
            ("export", "a/b"),
            ("follow", "a\nb"),
            ("follow", "x?y=1"),
            ("cancel", b"\xff"),
        ),
        *(("replay", "../../healthz"), ("follow", "")),
    ],
)
def test_an_id_that_is_no_stream_is_said(
    lastevent: Lastevent, deployment: Deployment, command: str, sid: str | bytes
) -> None:
    ended = lastevent(command, sid, url=deployment.url)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert re.match(rb"lastevent: (there is no stream .* \(stream_not_found\)|.* \(not_found\): )", ended.stderr)


def test_a_key_opens_a_server_that_has_keys(lastevent: Lastevent, own_deployment: Callable[..., Deployment]) -> None:
    key = "correct-horse-battery-staple-and-more"
    deployment = own_deployment(servers=1, workers=1, LASTEVENT_API_KEYS=key)
    prompt = "[[tokens=3 rate=0]]"
    assert lastevent("generate", prompt, url=deployment.url, LASTEVENT_API_KEY=key).returncode == 0
    assert lastevent("generate", prompt, "--key", key, url=deployment.url).returncode == 0
    for settings in ({}, {"LASTEVENT_API_KEY": "wrong-key-of-sixteen"}):
        ended = lastevent("generate", prompt, url=deployment.url, **settings)
        assert ended.returncode == 1
        assert b"unauthorized" in ended.stderr
        assert b"wrong-key" not in ended.stderr
    assert len(json.loads(lastevent("ls", "--json", url=deployment.url, LASTEVENT_API_KEY=key).stdout)["streams"]) == 2
