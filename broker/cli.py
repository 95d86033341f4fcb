"""The command. Text of models and users is printed raw: no markup, and no control characters but newline and tab.

Exit codes: 0; 1 for a failed generation or check, or a server that is not to be had; 2 for usage and settings.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.client import BadAddress, Client, ClientError, stream_path
from broker.errors import BadCursor
from broker.event import DONE, RESTART, STATUS, TERMINAL, TEXT_DELTA
from broker.settings import NO_ARCHIVE, Settings, SettingsError, load_settings
from broker.sse import parse_cursor

app = typer.Typer(
    name="lastevent",
    help="LLM answers that outlive their connections: workers write them to a log, any server resumes them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Url = Annotated[str, typer.Option(envvar="LASTEVENT_URL", help="the server's address")]
Key = Annotated[str, typer.Option(envvar="LASTEVENT_API_KEY", help="a key of the server", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for scripts")]
StreamId = Annotated[str, typer.Argument(metavar="ID", help="the stream's id")]
DEFAULT_URL = "http://127.0.0.1:8000"

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
quiet = Console(stderr=True, highlight=False, markup=False)


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows what it can
    try:
        app()
    except OSError as error:  # a full disk behind standard output, say
        _discard_output()
        _note(f"lastevent: {_clean(error.strerror or str(error))}")
        sys.exit(1)


# -- running ---------------------------------------------------------------------------------------------


@app.command()
def up(
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    data_dir: Annotated[Path, typer.Option(help="where the embedded server keeps its data")] = Path(".lastevent"),
    web: Annotated[int, typer.Option(min=1, max=64, help="web processes")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=64, help="worker processes")] = 1,
) -> None:
    """Run everything on this machine: an embedded Valkey (unless LASTEVENT_REDIS_URL is set), web and workers."""
    from broker.embedded import EmbeddedServerError
    from broker.up import StartFailed, run_everything

    settings = _settings()
    _require_closed_door(settings, host)
    if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_BASE_URL")):
        _note("No ANTHROPIC_API_KEY: answers come from the stand-in, which is no model.")
    redis_url = os.environ.get("LASTEVENT_REDIS_URL")
    try:
        run_everything(host, port, data_dir, web, workers, redis_url)
    except (StartFailed, EmbeddedServerError) as error:
        _fail(str(error), code=1)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    web: Annotated[int, typer.Option(min=1, max=64, help="processes, all on this port")] = 1,
    parent_pipe: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the SSE tier alone. Stateless: any number of them, on any machines, with the same LASTEVENT_REDIS_URL."""
    from broker.serve import run_server
    from broker.up import run_web

    settings = _settings()
    _require_closed_door(settings, host)
    if not settings.archive_url and not parent_pipe:
        _note(NO_ARCHIVE)
    try:
        if web == 1:
            run_server(settings, host, port, parent_pipe=parent_pipe)
        else:
            run_web(host, port, web)
    except OSError as error:
        _fail(f"cannot listen on {host}:{port} ({error.strerror})", code=1)


@app.command()
def work(
    concurrency: Annotated[
        int, typer.Option(min=1, help="generations at a time", envvar="LASTEVENT_CONCURRENCY")
    ] = 500,
) -> None:
    """Run one worker process: generations from the queue into the log."""
    # A process of its own program: the SSE tier never imports the worker.
    os.execv(sys.executable, [sys.executable, "-m", "worker", "--concurrency", str(concurrency)])


@app.command()
def doctor(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Check this machine, the store, the provider's key and the server."""
    from broker.doctor import examine

    findings = list(examine(_settings(), url))
    if as_json:
        _print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            advice = "" if finding.ok else f"  -> {finding.advice}"
            print(f"{'ok ' if finding.ok else 'BAD'}  {_clean(finding.what)}{advice}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


# -- generations -----------------------------------------------------------------------------------------


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what to ask; - reads standard input")],
    model: Annotated[str | None, typer.Option(help="anthropic/<name>")] = None,
    system: Annotated[str | None, typer.Option(help="the system prompt")] = None,
    session: Annotated[str | None, typer.Option(help="the session to put it in")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Start a generation and follow it; a lost connection is resumed where it broke."""
    with _client(url, key) as client:
        body = {"prompt": sys.stdin.buffer.read().decode() if prompt == "-" else prompt, "model": model}
        body |= {"system": system, "session_id": session, "max_tokens": max_tokens}
        stream = client.call(
            "POST", "/v1/streams", json={name: value for name, value in body.items() if value is not None}
        )
        _follow(client, stream["id"], None, as_json)


@app.command()
def follow(
    stream: StreamId,
    last_event_id: Annotated[str | None, typer.Option(help="go on after this event")] = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Follow a stream from its beginning, or from an event on."""
    try:
        parse_cursor(last_event_id)
    except BadCursor as error:
        _fail(str(error), code=2)
    with _client(url, key) as client:
        _follow(client, stream, last_event_id, as_json)


@app.command()
def cancel(
    stream: StreamId,
    reason: Annotated[str, typer.Option(help="kept in the stream")] = "requested",
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """End a stream now, wherever it runs."""
    with _client(url, key) as client:
        ended = client.call("POST", stream_path(stream, "/cancel"), json={"reason": reason})
    if as_json:
        _print_json(ended)
    elif ended["already"]:
        print(f"had ended already: {ended['state']}")
    else:
        print(f"{ended['state']}, after event {ended['stopped_after']}")


@app.command(name="ls")
def list_(
    session: Annotated[str | None, typer.Option(help="only this session's")] = None,
    state: Annotated[str | None, typer.Option(help="queued, running, done, error or cancelled")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """List streams, newest first."""
    params = {"session_id": session, "state": state, "limit": limit}
    with _client(url, key) as client:
        page = client.call("GET", "/v1/streams", params={name: value for name, value in params.items() if value})
    if as_json:
        _print_json(page)
        return
    table = Table("ID", "STATE", "SESSION", "MODEL", "EVENTS TO", "CREATED", box=None, pad_edge=False)
    for stream in page["streams"]:
        row = (stream["id"], stream["state"], stream["session_id"], stream["model"] or "-")
        cells = (*row, str(stream["last_event_id"]), stream["created_at"])
        table.add_row(*(Text(_clean(cell), overflow="fold") for cell in cells))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def replay(
    stream: StreamId,
    speed: Annotated[float, typer.Option(min=0, help="1 is the original pace; 0 is at once")] = 1.0,
    from_: Annotated[int, typer.Option("--from", min=1, help="the first event's id")] = 1,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Play a stream again, as it was shown."""
    with _client(url, key) as client, Screen(as_json) as screen:
        for event in client.replay(stream, {"speed": speed, "from": from_}):
            screen.show(event)
    _exit_by_ending(stream, screen.ending)


@app.command()
def export(stream: StreamId, url: Url = DEFAULT_URL, key: Key = "") -> None:
    """Print a stream's whole log as NDJSON."""
    with _client(url, key) as client:
        sys.stdout.buffer.write(client.export(stream))


@app.command(name="version")
def version_() -> None:
    """Print the version."""
    print(version("lastevent"))


# -- showing a stream ------------------------------------------------------------------------------------


class Screen:
    """A stream on standard output: its text, or (JSON) its events. On a terminal a quiet status fills the silences."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._status = quiet.status("waiting") if quiet.is_terminal and not as_json else None
        self._at_line_start = True
        self.ending: dict[str, Any] | None = None

    def __enter__(self) -> Screen:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()
        self._end_line()

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] in TERMINAL:
            self.ending = event
        if self._as_json:
            _print_json(event)
        elif event["event"] == TEXT_DELTA:
            self._write(_clean(str(event["data"].get("text", ""))))
        elif event["event"] in _NOTICES:
            self._end_line()
            _note(_NOTICES[event["event"]], style="dim")
        elif event["event"] == STATUS and self._status:
            self._status.update(_clean(str(event["data"].get("message", ""))))

    def lost(self, reason: str) -> None:
        """The connection was lost; it is being made again."""
        if self._status:
            self._end_line()  # a status takes its line for itself
            self._status.update(f"{reason}; trying again")
            self._status.start()
        else:
            _note(f"{reason}; trying again")

    def _write(self, text: str) -> None:
        if self._status:
            self._status.stop()
        sys.stdout.write(text)
        sys.stdout.flush()
        self._at_line_start = text.endswith("\n") if text else self._at_line_start

    def _end_line(self) -> None:
        if not self._at_line_start:
            print(flush=True)
        self._at_line_start = True


_NOTICES = {
    RESTART: "[the generation starts again; what came before is void]",
    "gap": "[events that were shown before no longer exist]",
}


def _follow(client: Client, sid: str, cursor: str | None, as_json: bool) -> None:
    seen = cursor or "0"
    try:
        with Screen(as_json) as screen:
            for event in client.follow(sid, cursor, screen.lost):
                seen = str(event.get("id", seen))
                screen.show(event)
        ending = screen.ending or client.ending(sid)
    except KeyboardInterrupt:
        _note(f"It runs on. Follow it with: lastevent follow {sid} --last-event-id {seen}")
        raise typer.Exit(130) from None
    _exit_by_ending(sid, ending)


def _exit_by_ending(sid: str, ending: dict[str, Any] | None) -> None:
    if ending and ending["event"] != DONE:
        reason = ending["data"].get("message") or ending["data"].get("reason") or ""
        _note(f"{sid}: {ending['event']}: {_clean(str(reason))}")
        raise typer.Exit(1)


def _note(message: str, style: str | None = None) -> None:
    """To a person, on standard error; never wrapped: terminals do that, and scripts read lines."""
    quiet.print(message, style=style, soft_wrap=True)


def _clean(text: str) -> str:
    return _CONTROLS.sub("", text)


def _print_json(value: Any) -> None:
    # JSON escapes the controls below U+0020 only; terminals obey those from U+0080 on, too.
    line = re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", orjson.dumps(value).decode())
    sys.stdout.buffer.write(f"{line}\n".encode())
    sys.stdout.buffer.flush()


# -- errors ----------------------------------------------------------------------------------------------


@contextmanager
def _client(url: str, key: str) -> Iterator[Client]:
    try:
        client = Client(url.rstrip("/"), key or None)
    except BadAddress as error:
        _fail(str(error), code=2)
    try:
        yield client
    except ClientError as error:
        _fail(str(error), code=1)
    except UnicodeError:
        # Arguments and standard input are bytes; what is no UTF-8 cannot be sent.
        _fail("what was given is no text in UTF-8", code=2)
    except BrokenPipeError:
        # The reader has gone (`| head`): no more to say, and nothing to complain of.
        _discard_output()
        raise typer.Exit(1) from None
    finally:
        client.close()


def _discard_output() -> None:
    """What is still buffered cannot be written: Python would complain of that when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        _fail(str(error), code=2)


def _require_closed_door(settings: Settings, host: str) -> None:
    from broker.serve import require_closed_door

    if refusal := require_closed_door(settings, host):
        _fail(refusal, code=2)


def _fail(message: str, *, code: int) -> NoReturn:
    _note(f"lastevent: {_clean_lines(message.splitlines())}")
    raise typer.Exit(code)


def _clean_lines(lines: Iterable[str]) -> str:
    return "\n".join(_clean(line) for line in lines)
