"""The command: running the parts, generating, following. What operators ask for is in audit_commands.py.

Exit codes: 0; 1 for a failed generation or check, or a server that is not to be had; 2 for usage and settings.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.command.audit import register
from broker.command.client import Client, stream_path
from broker.command.terminal import (
    DEFAULT_URL,
    AsJson,
    Key,
    StreamId,
    Url,
    clean,
    connected,
    discard_output,
    fail,
    note,
    print_json,
    quiet,
)
from broker.dialects.cursor import parse_cursor
from broker.errors import BadCursor
from broker.log.event import DONE, RESTART, STATUS, TERMINAL, TEXT_DELTA
from broker.process.imports import imports_outside_gc
from broker.settings import NO_ARCHIVE, Settings, SettingsError, load_settings, refusal_to_listen

app = typer.Typer(
    name="lastevent",
    help="LLM answers that outlive their connections: workers write them to a log, any server resumes them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

register(app)


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows what it can
    try:
        app()
    except OSError as error:  # a full disk behind standard output, say
        discard_output()
        note(f"lastevent: {clean(error.strerror or str(error))}")
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
    from broker.process.embedded import EmbeddedServerError
    from broker.process.supervisor import SettingsRefused, StartFailed, run_everything

    settings = _settings()
    _require_permission_to_listen(settings, host)
    if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_BASE_URL")):
        note("No ANTHROPIC_API_KEY: answers come from the stand-in, which is no model.")
    redis_url = os.environ.get("LASTEVENT_REDIS_URL")
    try:
        run_everything(host, port, data_dir, web, workers, redis_url, settings.key_prefix)
    except SettingsRefused as error:
        fail(str(error), code=2)
    except (StartFailed, EmbeddedServerError) as error:
        fail(str(error), code=1)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    web: Annotated[int, typer.Option(min=1, max=64, help="processes, all on this port")] = 1,
    parent_pipe: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the SSE tier alone. Stateless: any number of them, on any machines, with the same LASTEVENT_REDIS_URL."""
    settings = _settings()
    _require_permission_to_listen(settings, host)
    if not settings.archive_url and not parent_pipe:
        note(NO_ARCHIVE)
    try:
        if web == 1:
            with imports_outside_gc():
                from broker.web.server import run_server

            run_server(settings, host, port, parent_pipe=parent_pipe)
        else:
            _serve_in_processes(host, port, web)
    except SettingsError as error:
        fail(str(error), code=2)
    except OSError as error:
        fail(f"cannot listen on {host}:{port} ({error.strerror})", code=1)


def _serve_in_processes(host: str, port: int, web: int) -> None:
    from broker.process.supervisor import SettingsRefused, run_web

    try:
        run_web(host, port, web)
    except SettingsRefused as error:
        fail(str(error), code=2)


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
    from broker.command.doctor import examine

    findings = list(examine(_settings(), url))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            advice = "" if finding.ok else f"  -> {finding.advice}"
            print(f"{'ok ' if finding.ok else 'BAD'}  {clean(finding.what)}{advice}")
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
    with connected(url, key) as client:
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
        fail(f"--last-event-id: {error}", code=2)
    with connected(url, key) as client:
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
    with connected(url, key) as client:
        ended = client.call("POST", stream_path(stream, "/cancel"), json={"reason": reason})
    if as_json:
        print_json(ended)
    elif ended["already"]:
        print(f"had ended already: {ended['state']}")
    else:
        print(f"{ended['state']}, after event {ended['stopped_after']}")


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
    with connected(url, key) as client, Screen(as_json) as screen:
        for event in client.replay(stream, {"speed": speed, "from": from_}):
            screen.show(event)
    _exit_by_ending(stream, screen.ending)


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
            print_json(event)
        elif event["event"] == TEXT_DELTA:
            self._write(clean(str(event["data"].get("text", ""))))
        elif event["event"] in _NOTICES:
            self._end_line()
            note(_NOTICES[event["event"]], style="dim")
        elif event["event"] == STATUS and self._status:
            self._status.update(clean(str(event["data"].get("message", ""))))

    def lost(self, reason: str) -> None:
        """The connection was lost; it is being made again."""
        if self._status:
            self._end_line()  # a status takes its line for itself
            self._status.update(f"{reason}; trying again")
            self._status.start()
        else:
            note(f"{reason}; trying again")

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
        note(f"It runs on. Follow it with: lastevent follow {sid} --last-event-id {seen}")
        raise typer.Exit(130) from None
    _exit_by_ending(sid, ending)


def _exit_by_ending(sid: str, ending: dict[str, Any] | None) -> None:
    if ending and ending["event"] != DONE:
        reason = ending["data"].get("message") or ending["data"].get("reason") or ""
        note(f"{sid}: {ending['event']}: {clean(str(reason))}")
        raise typer.Exit(1)


# -- errors ----------------------------------------------------------------------------------------------


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        fail(str(error), code=2)


def _require_permission_to_listen(settings: Settings, host: str) -> None:
    if refusal := refusal_to_listen(settings, host):
        fail(refusal, code=2)
