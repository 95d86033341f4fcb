"""Runs clients: cases in, what each of them showed out. One process a language, for all of its cases at once.

A client is a function `follow(url, cursor, show)`: a recipe of docs/CLIENTS.md, or a file beside the driver of its
language.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tests.clients.recipes import recipe
from tests.rig.npm import install

LIMIT_S = 60.0
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    client: str
    case: str
    url: str
    cursor: str = "earliest"


class Event(NamedTuple):
    id: str
    kind: str
    data: str


@dataclass
class Shown:
    """What a client showed in one case."""

    events: list[Event] = field(default_factory=list)
    has_ended: bool = False
    """It stopped by itself."""
    failed: str | None = None
    """It stopped with an error."""


class Outcome(NamedTuple):
    lost: list[str]
    """Ids of events that it never showed as they are."""
    doubled: list[str]
    torn: list[str]
    """Ids under which it showed what is no event."""


def outcome(shown: Shown, expected: Sequence[Event]) -> Outcome:
    counted = Counter(shown.events)
    return Outcome(
        lost=[event.id for event in expected if event not in counted],
        doubled=[event.id for event, count in counted.items() if count > 1],
        torn=[event.id for event in counted.keys() - set(expected)],
    )


class Language:
    name: ClassVar[str]
    recipes: ClassVar[Mapping[str, str]]
    """Client → its heading in docs/CLIENTS.md."""
    others: ClassVar[Sequence[str]]
    """Clients that are tried without a recipe."""
    command: Sequence[str]
    folder: Path

    @property
    def clients(self) -> list[str]:
        return [*self.recipes, *self.others]

    def make_ready(self, folder: Path) -> None:
        raise NotImplementedError

    async def run(
        self, cases: Sequence[Case], limit_s: float = LIMIT_S, *, shown: dict[str, Shown] | None = None
    ) -> dict[str, Shown]:
        """What was shown, by case; also by those that had not stopped when the time was over.

        `shown` is filled as it comes, for a test that does something meanwhile.
        """
        file = self.folder / f"cases-{os.getpid()}-{cases[0].case}.json"
        file.write_text(json.dumps([asdict(case) for case in cases]))
        shown = {} if shown is None else shown
        shown |= {case.case: Shown() for case in cases}
        environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
        process = await asyncio.create_subprocess_exec(
            *self.command, str(file), cwd=self.folder, env=environment, stdout=asyncio.subprocess.PIPE, limit=2**24
        )
        try:
            async with asyncio.timeout(limit_s):
                assert process.stdout
                async for line in process.stdout:
                    _take(shown, json.loads(line))
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return shown


def _take(shown: dict[str, Shown], line: dict[str, Any]) -> None:
    one = shown[line["case"]]
    if "kind" in line:
        one.events.append(Event(line.get("id") or "", line["kind"], line["data"]))
    else:
        one.has_ended, one.failed = True, line.get("failed")


class Node(Language):
    name = "node"
    command = ("node", "drive.mjs")
    recipes: ClassVar = {
        "eventsource": "In a browser: EventSource",
        "fetch-event-source": "fetch-event-source",
        "react-native-sse": "React Native: react-native-sse",
        "eventsource-client": "Node: eventsource-client",
    }
    others = ("event-source-plus", "launchdarkly-eventsource")

    def __init__(self, npm: str) -> None:
        self.npm = npm

    def make_ready(self, folder: Path) -> None:
        install(HERE / "npm", folder, self.npm)
        for client, heading in self.recipes.items():
            code = recipe(heading).replace('"react-native-sse"', '"./metro.mjs"')
            (folder / f"{client}.mjs").write_text(code)


class Python(Language):
    name = "python"
    command = (sys.executable, "drive.py")
    recipes: ClassVar = {
        "with_httpx_sse": "Python: httpx-sse",
        "with_requests": "Python: requests and sseclient-py",
    }
    others = ("with_ld_eventsource",)

    def make_ready(self, folder: Path) -> None:
        shutil.copytree(HERE / "python", folder, dirs_exist_ok=True)
        for client, heading in self.recipes.items():
            (folder / f"{client}.py").write_text(recipe(heading))


class Go(Language):
    name = "go"
    command = ("./drive",)
    recipes: ClassVar = {"go-sse": "Go: go-sse"}
    others = ("r3labs", "launchdarkly")

    def __init__(self, go: str) -> None:
        self.go = go

    def make_ready(self, folder: Path) -> None:
        shutil.copytree(HERE / "go", folder, dirs_exist_ok=True)
        [heading] = self.recipes.values()
        (folder / "recipe.go").write_text(recipe(heading))
        # Without cgo: it would compile a third more, for look-ups of names that nobody makes here.
        environment = {**os.environ, "CGO_ENABLED": "0"}
        command = [self.go, "build", "-o", "drive", "."]
        built = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr


class Jvm(Language):
    """Kotlin and Java. Compiled by Kotlin's own compiler, which comes from Maven as its libraries do."""

    name = "jvm"
    recipes: ClassVar = {"okhttp-sse": "Kotlin, Android: okhttp-sse"}
    others = ("okhttp-eventsource",)

    def make_ready(self, folder: Path) -> None:
        shutil.copytree(HERE / "java", folder, dirs_exist_ok=True)
        [heading] = self.recipes.values()
        (folder / "Recipe.kt").write_text(recipe(heading))
        subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"], cwd=folder, check=True
        )
        # okhttp-eventsource asks for OkHttp 4, whose names 5 still has; with both, which one counts would be chance.
        jars = [jar for jar in (folder / "lib").glob("*.jar") if not jar.name.startswith(("okhttp-4", "okio-2"))]
        path = os.pathsep.join(map(str, jars))
        compiler = "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"
        options = ["-no-stdlib", "-no-reflect", "-nowarn", "-cp", path, "-d", "out"]
        subprocess.run(["java", "-cp", path, compiler, *options, "Recipe.kt", "Drive.kt"], cwd=folder, check=True)
        self.command = ("java", "-cp", f"{path}{os.pathsep}out", "DriveKt")


class Rust(Language):
    name = "rust"
    recipes: ClassVar = {}
    others = ("eventsource-client-rs", "reqwest-eventsource")

    def make_ready(self, folder: Path) -> None:
        shutil.copytree(HERE / "rust", folder, dirs_exist_ok=True)
        target = HERE.parents[1] / "build" / "clients-rust"  # kept, since it is minutes
        command = ["cargo", "build", "--quiet", "--target-dir", str(target)]
        subprocess.run(command, cwd=folder, check=True)
        self.command = (str(target / "debug" / "lastevent-foreign-clients"),)
