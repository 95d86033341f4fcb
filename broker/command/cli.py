"""The command: the table of commands, and those that run the parts.

Exit codes: 0; 1 for a failed generation or check, or a server that is not to be had; 2 for usage and settings.
"""

from __future__ import annotations

import io
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from broker.command import keys, limits
from broker.command.audit import deeds, erase, export, list_, sessions, verify, views
from broker.command.generations import cancel, follow, generate, replay
from broker.command.help import LOOK, PROVE, RUN, TRY, Grouped
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
    warn_of_unknown_variables,
)
from broker.command.version import print_version
from broker.process.app_options import DEFAULT_NAME, MAX_PROCESSES, AppOptions
from broker.process.imports import imports_outside_gc
from broker.process.logs import set_up_logs
from broker.process.providers import set_up
from broker.settings import (
    LOOPBACK,
    NO_ARCHIVE,
    PLAIN_HTTP,
    Settings,
    SettingsError,
    listening,
    needs_a_key,
    refusal_to_listen,
)
from broker.store.host import require_host

App = Annotated[
    str | None, typer.Option(metavar="MODULE", help="your agents: a module, or module:attribute", show_default=False)
]
AppName = Annotated[
    str | None, typer.Option(metavar="NAME", help="of the queue of your agents' streams", show_default=DEFAULT_NAME)
]
AgentProcesses = Annotated[
    int | None, typer.Option(min=1, max=MAX_PROCESSES, help="processes of your agents, each worker", show_default="1")
]
Python = Annotated[
    str | None, typer.Option(metavar="PATH", help="another interpreter for your agents", show_default=False)
]

app = typer.Typer(
    name="lastevent",
    cls=Grouped,
    help="LLM answers that outlive their connections: workers write them to a log, any server resumes them.",
    epilog="Each command tells its options: lastevent COMMAND --help",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    set_up_logs("lastevent", for_people=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows what it can
    try:
        app()
    except OSError as error:  # a full disk behind standard output, say
        discard_output()
        note(f"lastevent: {clean(error.strerror or str(error))}")
        sys.exit(1)


# -- running ---------------------------------------------------------------------------------------------


def up(
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    data_dir: Annotated[Path, typer.Option(help="where the embedded server keeps its data")] = Path(".lastevent"),
    web: Annotated[int, typer.Option(min=1, max=64, help="web processes")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=64, help="worker processes")] = 1,
    app: App = None,
    app_name: AppName = None,
    agent_processes: AgentProcesses = None,
    python: Python = None,
    reload: Annotated[bool, typer.Option("--reload", help="import your agents anew when their code changes")] = False,
) -> None:
    """Run everything on this machine: an embedded Valkey (unless LASTEVENT_REDIS_URL is set), web and workers."""
    from broker.command.keys import refusal_without_keys
    from broker.process.embedded import EmbeddedServer, EmbeddedServerError
    from broker.process.supervisor import SettingsRefused, StartFailed, run_everything

    settings = read_settings()
    agents = _app_options(app, app_name, agent_processes, python, reloads=reload)
    warn_of_unknown_variables()
    redis_url = settings.redis_url if "redis_url" in settings.model_fields_set else None
    _require_address(host)
    elsewhere = str(data_dir) if redis_url is None and data_dir != Path(".lastevent") else ""
    refuse = partial(refusal_without_keys, settings.key_prefix, host, data_dir=elsewhere)
    refusal = refuse if needs_a_key(settings, host) else None
    if refusal and redis_url is None and not EmbeddedServer(data_dir).has_data():
        fail(refusal_to_listen(host, elsewhere), code=2)
    _say_that_it_is_plain_http(host)
    standin = _needs_the_standin(settings)
    if standin:
        note("No model provider is set up: answers come from the stand-in, which is not a model. (lastevent doctor)")
    try:
        run_everything(
            *(settings, host, port, data_dir, web, workers, redis_url),
            standin=standin,
            app=agents,
            refusal=refusal,
        )
    except (SettingsRefused, SettingsError) as error:
        fail(str(error), code=2)
    except (StartFailed, EmbeddedServerError) as error:
        fail(str(error), code=1)


def _app_options(
    app: str | None, name: str | None, processes: int | None, python: str | None, *, reloads: bool = False
) -> AppOptions | None:
    try:
        return AppOptions.checked(app, name, processes, python, reloads=reloads)
    except SettingsError as error:
        fail(str(error), code=2)


def _needs_the_standin(settings: Settings) -> bool:
    """Only where nobody has decided: a worker without a provider otherwise refuses to start, and says why."""
    try:
        return "LASTEVENT_STANDIN" not in os.environ and not set_up(settings.models_file)
    except SettingsError as error:
        fail(str(error), code=2)


def serve(
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    web: Annotated[int, typer.Option(min=1, max=64, help="processes, all on this port")] = 1,
    parent_pipe: Annotated[bool, typer.Option(hidden=True)] = False,
    admin_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the SSE tier alone. Stateless: any number of them, on any machines, with the same LASTEVENT_REDIS_URL."""
    settings = read_settings()
    _require_address(host)
    if needs_a_key(settings, host) and not parent_pipe:  # whose parent has asked
        from broker.command.keys import refusal_without_keys

        if refusal := refusal_without_keys(settings.key_prefix, host, settings.redis_url):
            fail(refusal, code=2)
    if not settings.archive_url and not parent_pipe:
        note(NO_ARCHIVE)
    if not parent_pipe:
        _say_that_it_is_plain_http(host)
        warn_of_unknown_variables()
    try:
        if web == 1:
            with imports_outside_gc():
                from broker.web.server import run_server

            run_server(settings, host, port, parent_pipe=parent_pipe, admin_fd=admin_fd)
        else:
            _serve_in_processes(settings, host, port, web)
    except SettingsError as error:
        fail(str(error), code=2)
    except OSError as error:
        fail(f"cannot listen on {host}:{port} ({error.strerror})", code=1)


def _serve_in_processes(settings: Settings, host: str, port: int, web: int) -> None:
    from broker.process.supervisor import SettingsRefused, run_web

    try:
        run_web(settings, host, port, web, lambda: note(listening(host, port, settings)))
    except SettingsRefused as error:
        fail(str(error), code=2)


def work(
    concurrency: Annotated[
        int, typer.Option(min=1, help="generations at a time", envvar="LASTEVENT_CONCURRENCY")
    ] = 500,
    app: App = None,
    app_name: AppName = None,
    agent_processes: AgentProcesses = None,
    python: Python = None,
) -> None:
    """Run one worker process: generations from the queue into the log, and your agents."""
    agents = _app_options(app, app_name, agent_processes, python)
    arguments = agents.arguments() if agents else []
    # A process of its own program: the SSE tier never imports the worker.
    os.execv(sys.executable, [sys.executable, "-m", "worker", "--concurrency", str(concurrency), *arguments])


def doctor(
    url: Url = DEFAULT_URL,
    providers: Annotated[
        bool, typer.Option("--providers", help="also ask each provider that is set up, by its cheapest call")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine, the store, the providers and the server."""
    from broker.command.doctor import examine

    warn_of_unknown_variables()
    findings = list(examine(read_settings(), url, asks_providers=providers))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            advice = "" if finding.ok else f"  -> {clean(finding.advice)}"
            print(f"{'ok ' if finding.ok else 'BAD'}  {clean(finding.what)}{advice}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


def version() -> None:
    """Print the version."""
    print_version()


def help_(
    context: typer.Context, command: Annotated[str | None, typer.Argument(help="the command to tell about")] = None
) -> None:
    """Tell about the commands, or one of them."""
    group = context.find_root()
    asked = [command, "--help"] if command else ["--help"]
    app(asked, prog_name=group.info_name)


@app.callback(invoke_without_command=True)
def _options(
    shows_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if shows_version:  # alone it is answered without all this (__main__.py)
        print_version()
        raise typer.Exit


for group, commands in {
    TRY: (up, generate, follow, cancel, replay),
    LOOK: (list_, sessions, views),
    PROVE: (export, verify, deeds, erase),
    RUN: (serve, work, doctor, version),
}.items():
    for command in commands:
        app.command(command.__name__.rstrip("_") if command is not list_ else "ls", rich_help_panel=group)(command)
app.add_typer(limits.app, name="limits", rich_help_panel=RUN)
app.add_typer(keys.app, name="keys", rich_help_panel=RUN)
app.command("help", hidden=True)(help_)


def _require_address(host: str) -> None:
    try:
        if host:  # nothing: every address
            require_host(host)
    except ValueError as error:
        fail(f"--host: {error}", code=2)


def _say_that_it_is_plain_http(host: str) -> None:
    if host not in LOOPBACK:
        note(PLAIN_HTTP)
