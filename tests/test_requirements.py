"""What is installed: two files of pinned packages, one to run Lastevent, one with what its tests need besides.

A third has the extra `otel`, which one file of the product imports. Two are for environments of their own: the
frameworks of others, which are tested with Lastevent and not beside it. One more names the schemas of Kubernetes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.test_layout import ROOT, imports, modules

TO_RUN, FOR_TESTS, OF_EXTRA = "requirements.txt", "requirements-dev.txt", "requirements-otel.txt"
IMPORTS_THE_EXTRA = "broker.traces"
"""Inside functions alone (tests/web/test_traces.py): it is loaded where the extra is not installed."""
IMPORTS_PYTEST = "lastevent.testing"
"""A plugin of it, for who has it."""

SCHEMAS = "tests/kubernetes/schemas.txt"
OF_FRAMEWORKS = [f"tests/frameworks/{path.name}" for path in (ROOT / "tests" / "frameworks").glob("*.txt")]


def pinned(file: str) -> dict[str, str]:
    """A package's name → its line: the version, and on which platforms."""
    text = (ROOT / file).read_text()
    return {name: line for line, name in re.findall(r"^(([a-z0-9.-]+)(?:\[.*\])?==[^\\\n]+)", text, re.MULTILINE)}


def test_what_runs_is_what_was_tested() -> None:
    assert pinned(TO_RUN).items() < pinned(FOR_TESTS).items()
    assert pinned(OF_EXTRA).items() < pinned(FOR_TESTS).items()


def test_the_extra_has_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[>=]", one)[0] for one in project["optional-dependencies"]["otel"]}
    assert named <= pinned(OF_EXTRA).keys()


def test_the_product_imports_no_package_that_only_tests_have() -> None:
    to_run, with_extra = pinned(TO_RUN), pinned(TO_RUN) | pinned(OF_EXTRA)
    packages = {}
    for module, distributions in packages_distributions().items():
        packages[module] = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    for name, path in modules().items():
        for module in imports(path.read_text(), ()):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in ("broker", "lastevent", "worker"):
                continue
            if (name, top) == (IMPORTS_PYTEST, "pytest"):
                continue
            allowed = with_extra if name == IMPORTS_THE_EXTRA else to_run
            assert packages[top] & allowed.keys(), f"{name} imports {module}"


def test_every_package_of_the_product_is_installed() -> None:
    """Also where it is installed as a copy, and not, as here, by a link to this folder."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in modules().values()}
    migrations = {name for name in there if "migrations" in name}  # package data
    assert there - migrations <= set(listed)


@pytest.mark.parametrize("file", [TO_RUN, FOR_TESTS, OF_EXTRA, SCHEMAS, *sorted(OF_FRAMEWORKS)])
def test_each_package_has_hashes_and_the_file_names_no_host(file: str) -> None:
    text = (ROOT / file).read_text()
    assert "://" not in text
    assert "index" not in re.sub(r"#.*", "", text)
    for line in pinned(file).values():
        assert f"{line}\\\n    --hash=sha256:" in text


IMPORTS_PYTEST = "lastevent.testing"
"""A plugin of it, for who has it."""
