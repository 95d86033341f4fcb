"""The shape: which room may import which. The arrows go down, and never in a circle.

A room is a folder, or a file that stands by itself. What a room may import is its row below; a row names only what is
used, so that a new arrow is a decision. Imports under TYPE_CHECKING and inside functions count like any other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = {"fastapi", "starlette", "uvicorn", "sse_starlette"}

ROOMS: dict[str, set[str]] = {
    # broker: command → web → (service, live) → (archive, dialects) → log → store → errors
    "broker.errors": set(),
    "broker.gauges": set(),
    "broker.traces": set(),
    "broker.store": {"broker.errors", "broker.gauges"},
    "broker.settings": {"broker.store"},
    "broker.log": {"broker.errors", "broker.gauges", "broker.store", "broker.tenants"},
    "broker.tenants": {"broker.errors", "broker.store"},
    "broker.auth": {"broker.errors", "broker.log", "broker.tenants"},
    "broker.archive": {"broker.errors", "broker.settings", "broker.gauges", "broker.log", "broker.store"},
    "broker.dialects": {"broker.errors", "broker.log"},
    "broker.live": {"broker.errors", "broker.gauges", "broker.store", "broker.log", "broker.dialects"},
    "broker.service": {
        "broker.traces",
        *("broker.errors", "broker.settings", "broker.auth", "broker.store", "broker.log", "broker.archive"),
        "broker.tenants",
    },
    "broker.process": {
        *("broker.errors", "broker.gauges", "broker.settings", "broker.log", "broker.store", "broker.tenants"),
    },
    "broker.console": set(),
    "broker.web": {
        "broker.traces",
        *("broker.errors", "broker.settings", "broker.auth", "broker.store", "broker.log", "broker.archive"),
        *("broker.dialects", "broker.live", "broker.service", "broker.process", "broker.console"),
        *("broker.gauges", "broker.tenants"),
    },
    "broker.command": {
        *("broker.errors", "broker.settings", "broker.store", "broker.log", "broker.archive", "broker.dialects"),
        "broker.process",
        "broker.tenants",
        "broker.web",
        "lastevent",
    },
    "broker.__main__": {"broker.process", "broker.command"},
    # worker: on the broker's log, archive, store, process and settings; never on what serves HTTP
    "worker.arguments": {"broker.log"},
    "worker.attempts": set(),
    "worker.providers": {
        *("broker.errors", "broker.settings", "broker.store", "broker.log", "broker.process", "worker.standin"),
    },
    "worker.standin": set(),
    "worker.heartbeat": {"broker.errors", "broker.store", "broker.log"},
    "worker.waiting": {"broker.gauges", "broker.log", "worker.attempts"},
    "worker.sweeper": {
        "broker.errors",
        "broker.gauges",
        "broker.log",
        "worker.attempts",
        "worker.heartbeat",
        "worker.waiting",
    },
    "worker.hearing": set(),
    "worker.sending": {"broker.store", "worker.hearing"},
    "worker.courier": {"broker.errors", "broker.gauges", "broker.log", "broker.store", "worker.sending"},
    "worker.places": {"broker.errors", "broker.log", "broker.tenants"},
    "worker.abandonment": {"broker.errors", "broker.log"},
    "worker.schema": set(),
    "worker.visibility": {"broker.log"},
    "worker.sentences": set(),
    "worker.speaking": {"broker.errors", "broker.log", "worker.sentences"},
    "worker.spending": {"broker.log", "worker.providers"},
    "worker.stage": {"broker.errors", "broker.log", "worker.attempts", "worker.spending"},
    "worker.turns": {"broker.traces", "broker.gauges", "broker.log", "worker.providers", "worker.stage"},
    "worker.execution": {
        "broker.traces",
        *(
            "broker.errors",
            "broker.gauges",
            "broker.log",
            "broker.process",
            "worker.attempts",
            "worker.providers",
            "worker.stage",
        ),
    },
    "worker.generation": {
        *("broker.log", "worker.agents", "worker.arguments", "worker.execution", "worker.providers", "worker.schema"),
        *("worker.stage", "worker.turns", "worker.visibility"),
    },
    "worker.agents": {
        *("broker.errors", "broker.settings", "broker.store", "broker.log", "broker.process"),
        *("worker.execution", "worker.providers", "worker.spending", "worker.stage"),
        *("worker.arguments", "worker.turns", "worker.visibility"),
    },
    "worker.archiving": {"broker.archive", "broker.errors", "broker.gauges", "broker.log", "broker.traces"},
    "worker.dispatch": {"broker.errors", "broker.log", "broker.store", "broker.tenants"},
    "worker.worker": {
        *(
            "broker.errors",
            "broker.settings",
            "broker.store",
            "broker.gauges",
            "broker.log",
            "broker.archive",
            "broker.process",
        ),
        *("worker.heartbeat", "worker.sweeper", "worker.abandonment", "worker.generation", "worker.archiving"),
        *("worker.dispatch", "worker.execution", "worker.providers", "worker.waiting", "worker.agents"),
        *("broker.tenants", "worker.places", "worker.courier", "worker.sending"),
        "worker.speaking",  # only if a stream asks for sentences
    },
    "worker.main": {
        *("broker.gauges", "broker.settings", "broker.process", "worker.worker", "worker.providers", "worker.standin"),
        "worker.agents",  # only if it is given an app
    },
    "worker.checking": {"broker.settings", "worker.providers"},
    "worker.__main__": {"broker.traces", "broker.archive", "broker.settings", "broker.process", "worker.main"},
    # lastevent: what users import, in their own environment, where neither the broker nor the worker need be
    "lastevent.host": {"lastevent"},
    "lastevent": set(),
}

PURE = {
    "log/event": {"orjson"},
    "log/turn": {"orjson", "broker"},
    "dialects/sse": {"orjson", "broker"},
    "log/keys": set(),
    "errors": set(),
    "gauges": {"prometheus_client"},
}
"""What these few may import besides the standard library."""


# -- reading the code --------------------------------------------------------------------------------------


def modules(*packages: str) -> dict[str, Path]:
    """Module name → its file, of the product or of these packages."""
    found = {}
    for package in packages or ("broker", "lastevent", "worker"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(source: str, known: Iterable[str]) -> set[str]:
    """The modules that a source imports, wherever in it; of the product's own, down to the module."""
    known, found = set(known), set()
    for module, names in _statements(source):
        named = {f"{module}.{name}" for name in names}
        found |= (named & known) | ({module} if named - known or not named else set())
    return found


@cache
def _statements(source: str) -> list[tuple[str, tuple[str, ...]]]:
    """(module, what is taken from it) of each import."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import is relative"
            found.append((node.module or "", tuple(alias.name for alias in node.names)))
    return found


def arrows(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module → the modules of the product that it imports."""
    return {name: imports(source, sources) & set(sources) - {name} for name, source in sources.items()}


def room_of(module: str) -> str:
    for room in ROOMS:
        if module == room or module.startswith(f"{room}."):
            return room
    return module


def wrong_arrows(sources: Mapping[str, str]) -> list[str]:
    """Imports that no row of ROOMS allows."""
    return [
        f"{module} imports {other}"
        for module, others in arrows(sources).items()
        for other in sorted(others)
        if room_of(other) != room_of(module) and room_of(other) not in ROOMS.get(room_of(module), set())
    ]


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import one another, in whatever number of steps."""
    reachable = {name: set(others) for name, others in arrows.items()}
    for middle in arrows:
        for others in reachable.values():
            if middle in others:
                others |= reachable[middle]
    return sorted([name, *sorted(reachable[name] - {name})] for name in arrows if name in reachable[name])


def product() -> dict[str, str]:
    return {name: path.read_text() for name, path in modules().items()}


# -- the product ---------------------------------------------------------------------------------------------


def test_a_room_imports_only_what_its_row_allows() -> None:
    assert wrong_arrows(product()) == []


def test_no_row_allows_what_its_room_does_not_use() -> None:
    used = {(room_of(module), room_of(other)) for module, others in arrows(product()).items() for other in others}
    unused = [f"{room} → {other}" for room, others in ROOMS.items() for other in others if (room, other) not in used]
    assert unused == []


def test_every_module_has_a_room() -> None:
    homeless = [name for name in modules() if name not in ("broker", "worker") and room_of(name) not in ROOMS]
    assert homeless == []


def test_the_rooms_form_no_circle() -> None:
    assert circles(ROOMS) == []


def test_the_modules_form_no_circle() -> None:
    assert circles(arrows(product())) == []


@pytest.mark.parametrize("package", ["broker", "lastevent", "worker"])
def test_the_product_knows_nothing_of_its_tests(package: str) -> None:
    outside = {"tests", "bench", "pytest", "hypothesis", "fakeredis"}
    for name, path in modules(package).items():
        if name == "lastevent.testing":  # a plugin of pytest's, for the tests of users
            continue
        assert not {module.partition(".")[0] for module in imports(path.read_text(), ())} & outside, name


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules().values()}), ids=lambda path: path.name)
def test_every_room_has_a_face_that_names_each_of_its_files(folder: Path) -> None:
    if "migrations" in folder.parts:
        return  # Alembic's, named in the archive's face
    face = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    files = [path.name for path in folder.glob("*.py") if not path.name.startswith("__")]
    folders = [path.parent.name for path in folder.glob("*/__init__.py")]
    assert [name for name in [*files, *folders] if name not in face] == []


# -- this test itself ------------------------------------------------------------------------------------------

PLANTED = {
    "an arrow up": ("broker.store.connect", "from broker.log.stream_log import StreamLog"),
    "an arrow up for types only": (
        "broker.live.tail",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from broker.web.viewer import Viewers",
    ),
    "an arrow up inside a function": ("broker.log.keys", "def late():\n    import broker.service.streams"),
    "the broker on a worker": ("broker.log.event", "import worker.main"),
    "a worker on the web": ("worker.generation", "from broker.web import tier"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_arrow_is_found(what: str) -> None:
    module, planted = PLANTED[what]
    sources = product()
    sources[module] += f"\n{planted}\n"
    assert len(wrong_arrows(sources)) == 1


def test_a_planted_circle_is_found() -> None:
    sources = product()
    sources["broker.log.event"] += "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import broker.log.meta\n"
    assert wrong_arrows(sources) == []
    assert circles(arrows(sources)) != []


# -- what a process loads ------------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """Which packages a fresh interpreter has loaded after the statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in ran.stdout.split()}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_stand_on_no_framework(name: str) -> None:
    found = {module.partition(".")[0] for module in imports((ROOT / "broker" / f"{name}.py").read_text(), ())}
    assert found - set(sys.stdlib_module_names) <= PURE[name] | {"__future__"}


def test_log_and_live_stand_on_no_web_framework() -> None:
    rooms = [name for name in modules() if room_of(name) in ("broker.log", "broker.live")]
    assert not loaded_by(f"import {', '.join(rooms)}") & WEB


def test_a_worker_does_not_load_the_web_tier() -> None:
    loaded = loaded_by("import worker.main, worker.providers.prices\nassert 'worker.agents' not in sys.modules")
    assert not loaded & {"fastapi", "starlette", "sse_starlette"}
    assert "genai_prices" not in loaded
    assert "worker" in loaded


def test_lastevent_stands_on_the_standard_library_pydantic_and_httpx2_alone() -> None:
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for name, path in modules("lastevent").items():
        packages = {module.partition(".")[0] for module in imports(path.read_text(), ())}
        theirs = {"lastevent.client.forward": {"starlette"}, "lastevent.testing": {"pytest"}}.get(name, set())
        assert theirs <= packages
        found[name.startswith("lastevent.client")] |= packages - set(sys.stdlib_module_names) - theirs
    assert found == {True: {"lastevent", "httpx2"}, False: {"lastevent", "pydantic", "pydantic_core"}}


def test_importing_lastevent_loads_neither_pydantic_nor_httpx2() -> None:
    program = "import lastevent; [getattr(lastevent, name) for name in lastevent.__all__ if name in vars(lastevent)]"
    loaded = loaded_by(f"{program}\n@lastevent.tool\ndef f(x: int) -> int: ...")
    assert "lastevent" in loaded
    assert not loaded & {"pydantic", "pydantic_core", "typing_extensions", "httpx2", "anyio"}


def test_the_client_loads_no_pydantic() -> None:
    loaded = loaded_by("from lastevent import AsyncClient, Client, forward")
    assert "httpx2" in loaded
    assert not loaded & {"pydantic", "pydantic_core", "orjson", "starlette"}


def test_what_supervises_web_processes_loads_none() -> None:
    assert not loaded_by("import broker.process.supervisor, broker.command.cli") & WEB


def test_every_script_has_a_step_that_calls_it() -> None:
    scripts = {path.stem for path in (ROOT / "broker" / "log" / "scripts").glob("*.lua")} - {"prelude", "functions"}
    source = (ROOT / "broker" / "log" / "script.py").read_text()
    assert scripts == {name for name in scripts if f'Script("{name}"' in source}
