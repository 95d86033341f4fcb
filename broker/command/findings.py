"""What doctor finds, one line each."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    ok: bool
    what: str
    advice: str = ""
