"""How the console is served: static files, a strict policy, no key. And what its sources promise.

Its own client is the JavaScript package, served from where people get it.
"""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from broker.console import CLIENT, MEDIA_TYPES, POLICY
from broker.tenants.scopes import OF_KEYS
from tests.rig.deployment import HTTP, Deployment

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "broker" / "console"
PACKAGE = ROOT / "clients" / "js" / "src"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
MODULES = [name for name in FILES if name.endswith(".js")]
PATHS = ["/", *(f"/console/{name}" for name in FILES), f"/console/{CLIENT}/index.js", f"/console/{CLIENT}/loop.js"]

NO_MARKUP_FROM_STRINGS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|eval\(|"
    r"new Function|setHTML|trustedTypes|javascript:"
)


@pytest.mark.parametrize("path", PATHS)
def test_every_file_comes_with_the_policy_and_a_tag(deployment: Deployment, path: str) -> None:
    answer = HTTP.get(f"{deployment.url}{path}")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-type"] == MEDIA_TYPES[Path(path).suffix or ".html"]
    assert HTTP.head(f"{deployment.url}{path}").headers["etag"] == answer.headers["etag"]


def test_the_policy_lets_in_scripts_and_styles_of_this_server_only() -> None:
    assert POLICY.split("; ") == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]


def test_what_the_browser_has_is_not_sent_again(deployment: Deployment) -> None:
    address = f"{deployment.url}/console/main.js"
    first = HTTP.get(address)
    again = HTTP.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["content-security-policy"] == POLICY
    assert HTTP.get(address, headers={"If-None-Match": '"another"'}).content == first.content


@pytest.mark.parametrize(
    "name",
    [
        *("nope.js", "__init__.py", "..%2fapp.py", "%2e%2e/app.py", "", "main.js/", "main.js%00"),
        *("lastevent", "lastevent/", "lastevent/index.d.ts", "lastevent/..%2fmain.js", "lastevent/../../app.py"),
    ],
)
def test_nothing_but_its_files_is_served(deployment: Deployment, name: str) -> None:
    answer = HTTP.get(f"{deployment.url}/console/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-security-policy"] == "default-src 'none'"


def imports(module: Path) -> set[str]:
    return set(re.findall(r'from "\./([^"]+)"', module.read_text()))


def core() -> set[str]:
    """The modules of the package that the page loads."""
    found, new = set[str](), {"index.js"}
    while new:
        found |= new
        new = set[str]().union(*(imports(PACKAGE / name) for name in new)) - found
    return found


def test_every_file_is_used_and_every_file_used_is_there() -> None:
    page = (FOLDER / "index.html").read_text()
    used = {"index.html", *re.findall(r'(?:src|href)="/console/([^"]+)"', page)}
    for name in MODULES:
        used |= imports(FOLDER / name)
    assert used == {*FILES, f"{CLIENT}/index.js"}


def test_the_package_is_served_as_it_is_released(deployment: Deployment) -> None:
    for name in sorted(core()):
        assert HTTP.get(f"{deployment.url}/console/{CLIENT}/{name}").content == (PACKAGE / name).read_bytes()


def test_the_package_is_the_only_client_of_the_page() -> None:
    """One module follows with it; one makes the other requests, and reads no stream."""

    def having(pattern: str) -> list[str]:
        return [name for name in MODULES if re.search(pattern, (FOLDER / name).read_text())]

    assert having(rf'from "\./{CLIENT}/') == ["api.js", "follower.js"]
    assert having(r"(?<![.#\w])follow\(") == ["follower.js"]
    assert having(r"(?<![.#\w])fetch\(") == ["api.js"]
    assert having(r"getReader\(|Last-Event-ID\"?:") == ["api.js"], "it reads whole logs, as NDJSON"
    assert having(r"EventSource|XMLHttpRequest|WebSocket|sendBeacon") == []
    assert having(r"""event: \$|["'](data|event|id|retry):""") == ["ndjson.js"], "it writes SSE, and reads none"


def test_the_page_has_no_inline_script_or_style() -> None:
    page = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", page) == []


def test_the_package_makes_no_markup_of_strings() -> None:
    assert [name for name in core() if NO_MARKUP_FROM_STRINGS.search((PACKAGE / name).read_text())] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for_and_makes_no_markup_of_strings(name: str) -> None:
    source = (FOLDER / name).read_text()
    assert re.match(r"// [A-Z].*\.\n\n", source)
    assert NO_MARKUP_FROM_STRINGS.findall(source) == []


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name: str) -> None:
    named = set(re.findall(r"https?://[^\s\"'`)]+", (FOLDER / name).read_text()))
    assert named <= {"http://www.w3.org/2000/svg"}


def test_scopes_are_told_in_the_words_of_the_server() -> None:
    told = re.findall(r'^  "?([a-z:]+)"?: "(.*)",$', (FOLDER / "scopes.js").read_text(), re.MULTILINE)
    assert dict(told) == OF_KEYS


def test_a_wheel_has_all_of_them() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["broker.console"]
    assert "broker.console" in setuptools["packages"]
    names = [*FILES, *(f"{CLIENT}/{name}" for name in core())]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
