"""Which Redis server this is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SERVERS_KEPT = 8
SERVERS_LIFE_S = 7 * 86_400
SERVER_TRIES = 3
TOO_MANY_SERVERS = "Redis changes servers faster than they can be noted. Try again shortly."

ENDINGS_WAIT = 2 / 3
"""Of a lease: two heartbeats and looks, in which whoever keeps an ending that Redis lost puts it back. A new ending
waits for that, and is still there before anybody may claim."""

RETURN_LEASES = 2
"""Leases in which a stream that Redis lost may come back: its writer may have stood still for almost one of them."""


def server_of(info: Mapping[str, Any]) -> str:
    """The server's name as the scripts make it (prelude.lua) of what INFO says."""
    return str(info.get("run_id", ""))[:16] + str(info.get("master_replid", ""))[:16]
