"""What npm packs: which files, how large, which names and types; and that every runtime finds them."""

import gzip
import json
import re
import shutil
import tarfile
from functools import cache
from pathlib import Path

import pytest

from tests.js.packages import PACKAGE, output, packed, runtime

MANIFEST = json.loads((PACKAGE / "package.json").read_text())
SOURCES = sorted((PACKAGE / "src").rglob("*.js"))
ENTRIES = {entry: target["default"] for entry, target in MANIFEST["exports"].items() if isinstance(target, dict)}
LIMITS = {
    ".": 6 * 1024,
    "./react": 1024,
    "./native": 1024,
    "./server": 1024,
    "./socket": 3 * 1024,
    "./markdown": 20 * 1024,
}
"""Bytes, minified and gzipped. React's and the socket's without the core, which is there anyway; Markdown's with its
parser.
"""

BABELS = (
    *("async-await", "async-generator", "class", "const-and-let", "default-argument", "destructuring", "for-await"),
    *("generator", "rest-argument"),
)
"""What React Native's own build writes in other words, or Hermes has but for corners that nobody uses."""


# -- what is in it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(js: Path) -> list[str]:
    with tarfile.open(packed(js)) as archive:
        return sorted(member.name.removeprefix("package/") for member in archive.getmembers())


def test_it_holds_its_sources_their_types_and_its_readme_alone(files: list[str]) -> None:
    sources = [str(path.relative_to(PACKAGE)) for path in (PACKAGE / "src").rglob("*") if path.is_file()]
    assert files == sorted(["README.md", "package.json", *sources])
    assert {path.partition(".")[2] for path in sources} == {"js", "d.ts"}


def test_it_depends_on_nothing() -> None:
    assert not MANIFEST.keys() & {"dependencies", "optionalDependencies", "bundledDependencies", "scripts"}
    optional = MANIFEST["peerDependenciesMeta"]
    assert [name for name in MANIFEST["peerDependencies"] if not optional[name]["optional"]] == []


def test_its_core_imports_its_own_files_and_each_other_entry_what_it_is_for() -> None:
    foreign: dict[str, set[str]] = {}
    for path in SOURCES:
        for name in re.findall(r'\bfrom "([^"]+)"|\bimport\("([^"]+)"\)(?!\.)', _without_comments(path.read_text())):
            if not "".join(name).startswith("."):
                foreign.setdefault(path.name, set()).update(filter(None, name))
    assert {name for names in foreign.values() for name in names} == {"marked", "react"}
    assert foreign["react.js"] == {"react"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_says_what_it_is_at_its_top(path: Path) -> None:
    assert re.match(r"(//|/\*\*(\n \*)?) \S", path.read_text())


# -- how large ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", LIMITS)
def test_it_is_small(js: Path, entry: str) -> None:
    outside = ["react", *(_core(js) if entry in ("./react", "./socket") else ())]
    options = ["--bundle", "--minify", "--format=esm", *(f"--external:{name}" for name in outside)]
    size = len(gzip.compress(_esbuild(js, _entry(js, entry), *options).encode(), 9, mtime=0))
    assert size < LIMITS[entry]


@cache
def _core(js: Path) -> list[str]:
    """The files that the core is made of, as its files import them."""
    _esbuild(js, _entry(js, "."), "--bundle", "--metafile=core.json", "--outfile=core.js")
    inputs = json.loads((js / "core.json").read_text())["inputs"]
    return [f"./{Path(name).name}" for name in inputs]


def _entry(js: Path, entry: str) -> str:
    return str((js / "node_modules" / "lastevent" / ENTRIES[entry]).relative_to(js))


def _esbuild(js: Path, *given: str) -> str:
    return output(["node", "node_modules/esbuild/bin/esbuild", "--log-level=warning", "--log-limit=0", *given], js)


# -- which names and types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["node", "deno", "bun"])
def test_every_runtime_finds_every_entry_and_its_types_name_what_it_exports(js: Path, name: str) -> None:
    found = json.loads(output([*runtime(name, js), "exports.mjs"], js))
    assert found == {
        entry: _declared(PACKAGE / target["types"])
        for entry, target in MANIFEST["exports"].items()
        if isinstance(target, dict)
    }


def _declared(types: Path) -> list[str]:
    """The values that a `.d.ts` says are exported."""
    return sorted(re.findall(r"^export (?:declare )?(?:function|class|const) (\w+)", types.read_text(), re.MULTILINE))


def test_the_sources_and_all_uses_of_the_public_names_hold_for_typescript(js: Path) -> None:
    """tests/js/npm/names.ts has the uses. An entry's `.js` is also held against its own `.d.ts`.

    Beside a `.d.ts` TypeScript reads no `.js` of the same name, so those are checked under another one.
    """
    typed = js / "typed"
    shutil.copytree(PACKAGE / "src", typed, dirs_exist_ok=True)
    lines = []
    for target in ENTRIES.values():
        name = Path(target).stem
        (typed / f"{name}.js").rename(typed / f"{name}.real.js")
        lines += [
            f'import * as real_{name} from "./{name}.real.js";',
            f'import type * as declared_{name} from "./{name}.js";',
            f"export const {name}: typeof declared_{name} = real_{name};",
        ]
    (typed / "as_declared.ts").write_text("\n".join(lines))
    assert output(["node", "node_modules/typescript/bin/tsc", "--project", "."], js, limit_s=180) == ""


# -- what React Native lacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [".", "./react", "./native", "./socket"])
def test_its_syntax_is_one_that_hermes_or_react_native_s_build_knows(js: Path, entry: str) -> None:
    supported = [f"--supported:{name}=true" for name in BABELS]
    bundled = ["--bundle", "--external:react", "--format=esm", "--target=hermes0.12", *supported]
    assert "function" in _esbuild(js, _entry(js, entry), *bundled)


# -- the release ----------------------------------------------------------------------------------------------------


def test_a_release_is_one_file_of_one_command(js: Path) -> None:
    assert packed(js).name == f"lastevent-{MANIFEST['version']}.tgz"


def _without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", source, flags=re.DOTALL)
