"""What the command shows: notes, tables, JSON; and how it ends when something is wrong.

Text of models and users is printed raw: no markup, and no control characters but newline and tab.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from broker.command.client import BadAddress, Client, ClientError, UnusableKey
from broker.process.logs import set_up_logs
from broker.settings import Settings, SettingsError, load_settings, unknown_variables

Url = Annotated[str, typer.Option(envvar="LASTEVENT_URL", help="the server's address")]
Key = Annotated[str, typer.Option(envvar="LASTEVENT_API_KEY", help="a key of the server", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for scripts")]
StreamId = Annotated[str, typer.Argument(metavar="ID", help="the stream's id")]
DEFAULT_URL = "http://127.0.0.1:8000"

GAP = "  "
STATES = {"done": "green", "error": "red", "cancelled": "yellow", "running": "cyan", "queued": "cyan"}

_BIDI = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
"""In a table they would reorder the cells beside their own."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
quiet = Console(stderr=True, highlight=False, markup=False)


def note(message: str, style: str | None = None) -> None:
    """To a person, on standard error; never wrapped: terminals do that, and scripts read lines."""
    quiet.print(message, style=style, soft_wrap=True)


def clean(text: str) -> str:
    return _CONTROLS.sub("", text)


def print_json(value: Any) -> None:
    # JSON escapes the controls below U+0020 only; terminals obey those from U+0080 on, too.
    line = re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", orjson.dumps(value).decode())
    sys.stdout.buffer.write(f"{line}\n".encode())
    sys.stdout.buffer.flush()


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, none: str = "", is_whole: bool = True
) -> None:
    """A row a line. Nothing is wrapped or cut, for it may be copied: what a terminal has no room for is left out, the
    last columns first, and said.

    Columns whose names begin with > are numbers. A state has its colour, on a terminal. `none` is said if there are no
    rows, and never will be more (`is_whole`).
    """
    if not rows:
        if is_whole:
            note(none)
        return
    console = Console(highlight=False)
    cells = [[_BIDI.sub("", _one_line(clean(cell))) for cell in row] for row in rows]
    names = [column.removeprefix(">") for column in columns]
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    shown = _that_fit(widths, console.width) if sys.stdout.isatty() else range(len(columns))
    for row in (names, *cells):
        line = Text()
        for place in shown:
            pad = " " * (widths[place] - cell_len(row[place]))
            style = "bold" if row is names else STATES.get(row[place], "")
            line.append(f"{GAP if line else ''}{pad if columns[place][0] == '>' else ''}")
            line.append(row[place], style)
            line.append("" if columns[place][0] == ">" else pad)
        line.rstrip()
        console.print(line, soft_wrap=True)
    if hidden := [name for place, name in enumerate(names) if place not in shown]:
        note(f"This terminal is too narrow for: {', '.join(hidden)} (--json has all)", style="dim")


def _that_fit(widths: Sequence[int], room: int) -> list[int]:
    """The first column always, then each that still fits: a wide one in the middle must not hide those after it."""
    shown, used = [0], widths[0]
    for place, width in enumerate(widths[1:], 1):
        if used + len(GAP) + width <= room:
            shown.append(place)
            used += len(GAP) + width
    return shown


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")


@contextmanager
def connected(url: str, key: str, *, key_option: str = "--key") -> Iterator[Client]:
    """A client of the server. What goes wrong with it ends the command with a message."""
    logging.getLogger("lastevent").setLevel(logging.ERROR)  # what its client loses is told by the command
    try:
        client = Client(url.rstrip("/"), key or None)
    except BadAddress as error:
        fail(f"--url: {error}", code=2)
    except UnusableKey as error:
        fail(f"{key_option}: {error}", code=2)
    try:
        yield client
    except ClientError as error:
        fail(str(error), code=1)
    except UnicodeError:
        # Arguments and standard input are bytes; what is not UTF-8 cannot be sent.
        fail("an argument or standard input is not text in UTF-8", code=2)
    except BrokenPipeError:
        # The reader has gone (`| head`): no more to say, and nothing to complain of.
        discard_output()
        raise typer.Exit(1) from None
    finally:
        client.close()


def discard_output() -> None:
    """What is still buffered cannot be written: Python would complain of that when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_settings() -> Settings:
    """The settings of this process. One that cannot be used ends the command."""
    try:
        settings = load_settings()
    except SettingsError as error:
        fail(str(error), code=2)
    set_up_logs("lastevent", settings.log_level, for_people=True)
    return settings


def warn_of_unknown_variables() -> None:
    """Not an error: a variable may be for a newer release, or somebody else's."""
    for line in unknown_variables(os.environ):
        note(f"lastevent: {clean(line)}")


def fail(message: str, *, code: int) -> NoReturn:
    note(f"lastevent: {_clean_lines(message.splitlines())}")
    raise typer.Exit(code)


def _clean_lines(lines: Iterable[str]) -> str:
    return "\n".join(clean(line) for line in lines)
