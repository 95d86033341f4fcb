"""The commands around one generation: start it, follow it, cancel it, replay it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from broker.command.client import Client, stream_path
from broker.command.screen import Screen
from broker.command.terminal import DEFAULT_URL, AsJson, Key, StreamId, Url, clean, connected, fail, note, print_json
from broker.dialects.cursor import parse_cursor
from broker.errors import BadCursor
from broker.log.event import DONE


def generate(
    prompt: Annotated[str | None, typer.Argument(help="what to ask; - reads standard input")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="provider/name, or an alias of the server's; again for what is tried when it fails"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="the system prompt")] = None,
    session: Annotated[str | None, typer.Option(help="the session to put it in")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0)] = None,
    schema: Annotated[
        Path | None, typer.Option(help="a file with the JSON Schema that the answer is to follow", dir_okay=False)
    ] = None,
    agent: Annotated[str | None, typer.Option(help="the agent that answers, with a prompt or --input")] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="what the agent takes; - reads standard input")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Start a generation and follow it; a lost connection is resumed where it broke."""
    if (prompt is None) == (input_ is None):
        fail("give a prompt, or --agent and --input", code=2)
    output_schema = None if schema is None else _read_json(schema)
    given = None if input_ is None else _parse_input(_text(input_))
    with connected(url, key) as client:
        body: dict[str, Any] = {"prompt": None if prompt is None else _text(prompt), "agent": agent}
        body |= {"model": model[0] if model and len(model) == 1 else model or None, "output_schema": output_schema}
        body |= {"system": system, "session_id": session, "max_tokens": max_tokens}
        body = {name: value for name, value in body.items() if value is not None}
        if input_ is not None:  # which may be null
            body["input"] = given
        stream = client.call("POST", "/v1/streams", json=body)
        _follow(client, stream["id"], None, as_json)


def follow(
    stream: StreamId,
    last_event_id: Annotated[str | None, typer.Option(help="resume after this event")] = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Follow a stream from its beginning, or from an event on."""
    try:
        parse_cursor(last_event_id)
    except BadCursor as error:
        fail(f"--last-event-id: {error}", code=2)
    with connected(url, key) as client:
        _follow(client, stream, last_event_id, as_json)


def cancel(
    stream: StreamId,
    reason: Annotated[str, typer.Option(help="kept in the stream")] = "requested",
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """End a stream now, wherever it runs."""
    with connected(url, key) as client:
        ended = client.call("POST", stream_path(stream, "/cancel"), json={"reason": reason})
    if as_json:
        print_json(ended)
    elif ended["already"]:
        print(f"had ended already: {ended['state']}")
    else:
        print(f"{ended['state']}, after event {ended['stopped_after']}")


def replay(
    stream: StreamId,
    speed: Annotated[float, typer.Option(min=0, max=10_000, help="1 is the original pace; 0 is at once")] = 1.0,
    from_: Annotated[int, typer.Option("--from", min=1, help="the first event's id")] = 1,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Replay a stream at its original pace."""
    with connected(url, key) as client, Screen(as_json, stream) as screen:
        for event in client.replay(stream, {"speed": speed, "from": from_}):
            screen.show(event)
    _exit_by_ending(stream, screen.ending)


def _text(argument: str) -> str:
    return sys.stdin.buffer.read().decode() if argument == "-" else argument


def _parse_input(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        fail(f'--input: it is no JSON ({error}); a text is "in quotes"', code=2)


def _read_json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        fail(f"--schema: {path} cannot be read ({error.strerror})", code=2)
    except orjson.JSONDecodeError as error:
        fail(f"--schema: {path} is no JSON ({error})", code=2)


def _follow(client: Client, sid: str, cursor: str | None, as_json: bool) -> None:
    seen = cursor or "0"
    try:
        with Screen(as_json, sid) as screen:
            stream = client.follow(sid, cursor, screen.lost)
            for event in client.events(stream):
                seen = str(event.get("id", seen))
                screen.show(event)
        ending = {"event": stream.answer.state, "data": stream.answer.ending}
    except KeyboardInterrupt:
        note(f"It runs on. Follow it with: lastevent follow {sid} --last-event-id {seen}")
        raise typer.Exit(130) from None
    _exit_by_ending(sid, ending)


def _exit_by_ending(sid: str, ending: dict[str, Any] | None) -> None:
    if ending and ending["event"] != DONE:
        reason = ending["data"].get("message") or ending["data"].get("reason") or ""
        note(f"{sid}: {ending['event']}: {clean(str(reason))}")
        raise typer.Exit(1)
    violation = ending["data"].get("schema_violation") if ending else None
    if isinstance(violation, dict):  # a producer's own may be anything
        said = ": ".join(str(part) for name in ("place", "message") if (part := violation.get(name)))
        note(f"{sid}: the answer is not what its schema asks for: {clean(said)}")
        raise typer.Exit(1)
