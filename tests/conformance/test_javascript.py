"""The JavaScript package against the table, in the runtimes that it is for (tests/js/npm/conformance.mjs)."""

import json
from pathlib import Path

import pytest

from tests.js.packages import output, runtime
from tests.rig.long import LONG

TABLE = Path(__file__).with_name("conformance.json")
LIMIT_S = 300
CASES = 301
RUNS = 4449


@pytest.mark.parametrize("name", ["node", "deno", "bun"])
def test_every_case_holds(js: Path, name: str) -> None:
    found = json.loads(output([*runtime(name, js), "conformance.mjs", str(TABLE)], js, LIMIT_S))
    assert found == {"cases": CASES, "runs": RUNS, "wrong": []}


def test_every_case_holds_without_what_react_native_lacks(js: Path) -> None:
    """tests/js/npm/phone.mjs takes it away: streams of bytes but getReader, URL's parts, crypto, DOMException, …"""
    step = "1" if LONG else "7"
    found = json.loads(output(["node", "--import", "./phone.mjs", "conformance.mjs", str(TABLE), step], js, LIMIT_S))
    assert (found["cases"], found["wrong"]) == (CASES, [])


def test_every_case_has_a_name_of_its_own_and_says_why() -> None:
    cases = json.loads(TABLE.read_text())["cases"]
    assert len({case["name"] for case in cases}) == len(cases) == CASES
    assert all(case["why"] for case in cases)
