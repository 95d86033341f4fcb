"""The command: running the parts, generating, following. What operators ask for is in audit_commands.py.

Exit codes: 0; 1 for a failed generation or check, or a server that is not to be had; 2 for usage and settings.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from broker.command.audit import register
from broker.command.generations import cancel, follow, generate, replay
from broker.command.terminal import (
    DEFAULT_URL,
    AsJson,
    Url,
    clean,
    discard_output,
    fail,
    note,
    print_json,
    read_settings,
)
from broker.process.imports import imports_outside_gc
from broker.process.logs import set_up_logs
from broker.settings import LOOPBACK, NO_ARCHIVE, PLAIN_HTTP, Settings, SettingsError, refusal_to_listen
from broker.store.host import require_host

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
    set_up_logs("lastevent")
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

    settings = read_settings()
    _require_permission_to_listen(settings, host)
    if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_BASE_URL")):
        note("No ANTHROPIC_API_KEY: answers come from the stand-in, which is not a model.")
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
    settings = read_settings()
    _require_permission_to_listen(settings, host, is_child=parent_pipe)
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

    findings = list(examine(read_settings(), url))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            advice = "" if finding.ok else f"  -> {finding.advice}"
            print(f"{'ok ' if finding.ok else 'BAD'}  {clean(finding.what)}{advice}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


for command in (generate, follow, cancel, replay):
    app.command()(command)


@app.command(name="version")
def version_() -> None:
    """Print the version."""
    print(version("lastevent"))


def _require_permission_to_listen(settings: Settings, host: str, *, is_child: bool = False) -> None:
    try:
        if host:  # nothing: every address
            require_host(host)
    except ValueError as error:
        fail(f"--host: {error}", code=2)
    if refusal := refusal_to_listen(settings, host):
        fail(refusal, code=2)
    if host not in LOOPBACK and not is_child:
        note(PLAIN_HTTP)
