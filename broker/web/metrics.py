"""Prometheus on the web port, for one release more: the admin port has it for good (process/admin.py)."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from broker import gauges

CONTENT_TYPE = gauges.CONTENT_TYPE


async def render(unarchived: int | None) -> bytes:
    """What this process counts, and `unarchived`, which only a worker counts by now."""
    return await asyncio.to_thread(gauges.render) + _unarchived(unarchived)


def _unarchived(known: int | None) -> bytes:
    if known is None:
        return b""
    alone = CollectorRegistry()
    Gauge("lastevent_unarchived", "Finished streams that only Redis has", registry=alone).set(known)
    return generate_latest(alone)
