"""Which stream a run of AG-UI is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker.errors import LogHealing
from broker.web.routes import ag_ui

SID = "0123456789abcdef0123456789abcdef"


async def test_while_writers_restore_what_redis_lost_a_stream_that_is_there_is_found_by_its_own_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def find(_: Any, __: Any, sid: str) -> Any:
        if sid != SID:
            raise LogHealing(1.0)
        return "found"

    monkeypatch.setattr(ag_ui, "find", find)
    grant: Any = SimpleNamespace(tenant="default", token=None)
    nothing: Any = None
    sid, found = await ag_ui._run(nothing, grant, SID)
    assert (sid, str(found)) == (SID, "found")
    with pytest.raises(LogHealing):
        await ag_ui._run(nothing, grant, "f" * 32)
