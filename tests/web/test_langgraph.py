"""LangGraph's routes: what no client of theirs sends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.wire import Api

RUN = {"assistant_id": "agent", "input": {"messages": "Hi [[tokens=1 rate=0 ttft_ms=0]]"}}


def test_names_that_are_ignored_are_told_in_a_header_of_any_server(api: Api) -> None:
    odd = {f"{number}\x00\x0b\x7f\r\nX-Evil: é\u2028": 1 for number in range(5000)}
    told = api.post("/langgraph/runs/wait", {**RUN, **odd}).raise_for_status().headers["x-lastevent-ignored"]
    assert told.startswith("0?????X-Evil: ??, 1???")
    assert len(told) < 4096


@pytest.mark.parametrize("before", [{"configurable": []}, {"configurable": "a"}, {"configurable": {}}, [], "a", 1])
def test_a_history_begins_behind_whatever_was_sent(api: Api, before: Any) -> None:
    asked = {"before": before}
    assert api.post("/langgraph/threads/nobody-s/history", asked).raise_for_status().json() == []
