"""What several streams used and cost. An external producer's ending may hold anything under these names."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from broker.log.meta import Meta
from broker.service.record import stream_record
from broker.service.totals import MOST_TOKENS, MOST_USD, totals

NONE = {
    "input_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "output_tokens": 0,
    "thinking_tokens": 0,
}


def test_nothing_is_no_tokens_and_no_cost() -> None:
    nothing = {"usage": NONE, "cost_usd": None, "usage_incomplete": False, "without_price": 0}
    assert totals([]) == nothing
    assert totals([{"usage": None, "cost_usd": None, "usage_incomplete": False}]) == nothing
    assert totals([{"usage": {"input_tokens": 0, "output_tokens": 0}}]) == nothing


def test_costs_add_up_exactly() -> None:
    assert totals([{"cost_usd": 0.1}] * 3)["cost_usd"] == 0.3
    assert totals([{"cost_usd": 0.000001}] * 10_000)["cost_usd"] == 0.01
    assert totals([{"cost_usd": 0}])["cost_usd"] == 0


def test_what_used_something_without_a_known_cost_is_counted() -> None:
    summed = totals([{"usage": {"output_tokens": 1}}, {"usage": {"output_tokens": 1}, "cost_usd": 0.5}, {}])
    assert (summed["without_price"], summed["cost_usd"], summed["usage"]["output_tokens"]) == (1, 0.5, 2)


def test_only_common_fields_are_summed() -> None:
    usage = {"output_tokens": 2, "provider": {"output_tokens": 9}, "server_tool_use": {"web_search_requests": 1}}
    assert totals([{"usage": usage}])["usage"] == {**NONE, "output_tokens": 2}


@pytest.mark.parametrize("odd", [True, -1, 2.0, "3", None, [1], {"a": 1}, MOST_TOKENS + 1, 2**63, 1e300])
def test_what_is_no_count_of_tokens_counts_nothing(odd: Any) -> None:
    assert totals([{"usage": {"input_tokens": odd}}])["usage"] == NONE


@pytest.mark.parametrize("odd", [5, "many", [], None, True])
def test_usage_of_another_shape_counts_nothing(odd: Any) -> None:
    assert totals([{"usage": odd}])["usage"] == NONE


@pytest.mark.parametrize("odd", [True, -0.5, "0.5", None, [1], {}, MOST_USD + 1, 1e300])
def test_what_is_no_cost_is_not_known(odd: Any) -> None:
    ending = {"usage": {"output_tokens": 1}, "cost_usd": odd}
    assert totals([ending])["cost_usd"] is None
    assert totals([ending])["without_price"] == 1
    assert record(ending)["cost_usd"] is None


def test_a_sum_is_always_json() -> None:
    most = {"usage": dict.fromkeys(NONE, MOST_TOKENS), "cost_usd": MOST_USD}
    assert orjson.loads(orjson.dumps(totals([most] * 1000)))["cost_usd"] == 1000 * MOST_USD


@pytest.mark.parametrize("state", ["done", "error", "cancelled"])
def test_a_record_has_what_its_ending_says(state: str) -> None:
    said = {"usage": {"input_tokens": 3, "provider": {}}, "cost_usd": 0.25, "usage_incomplete": True}
    shown = record(said, state)
    assert {name: shown[name] for name in said} == said


@pytest.mark.parametrize("ending", [None, {}, [1], "x", {"usage_incomplete": 1}])
def test_a_record_whose_ending_says_nothing_says_so(ending: Any) -> None:
    shown = record(ending)
    assert (shown["usage"], shown["cost_usd"], shown["usage_incomplete"]) == (None, None, False)


def record(ending: Any, state: str = "done") -> dict[str, Any]:
    fields = {"tenant": "t", "state": state, "tail": "4", "created": "1", "ending": orjson.dumps(ending).decode()}
    return stream_record(Meta(fields), "sid", None)
