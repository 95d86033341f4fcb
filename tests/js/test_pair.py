"""Two tabs in virtual time, where the order of what they hear is ours (tests/js/npm/pair.mjs)."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.js.packages import output

pytestmark = pytest.mark.npm


@pytest.fixture(scope="module")
def pair(js: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output(["node", "pair.mjs"], js))
    return found


def test_an_ending_behind_a_gap_comes_to_the_other_tab_without_a_request_of_its_own(pair: dict[str, Any]) -> None:
    front, other = pair["ending"]["front"], pair["ending"]["other"]
    assert (front["state"], front["asked"], front["incomplete"]) == ("done", 4, True)
    assert (other["state"], other["asked"], other["incomplete"]) == ("done", 1, True), "the one that it led with"
    assert "" not in other["texts"], "nothing was taken back"


def test_a_tab_that_opened_since_the_gap_knows_that_something_is_missing(pair: dict[str, Any]) -> None:
    assert [pair["gap"][tab]["incomplete"] for tab in ("front", "other")] == [True, True]
    assert [pair["gap"][tab]["state"] for tab in ("front", "other")] == ["done", "done"]


def test_a_listener_that_throws_leaves_nobody_out_and_is_heard_of(pair: dict[str, Any]) -> None:
    assert pair["listener"] == {"last": "ended", "errors": ["of the app"]}
