"""Attempts: how often a generation may start, and what its viewers learn when it may not start again."""

from __future__ import annotations

MAX_ATTEMPTS = 3
"""A request that has failed three times, at its provider or by its worker, will fail a fourth time too.

Of an agent, attempts without progress are counted: one of ten minutes would else die of three deploys."""

MOST_ATTEMPTS = 30
"""Progress or not: an agent that does something new each time, with a time among its arguments perhaps, and then
crashes its process would begin again until its log is full."""

WORKER_LOST = {
    "code": "worker_lost",
    "message": "The worker running this generation stopped and no other worker will resume it. Start it again.",
    "recoverable": True,
}
NO_WORKER = {
    "code": "no_worker",
    "message": "No worker that runs this agent was there. Start it again when one is.",
    "recoverable": True,
}
PRODUCER_LOST = {
    "code": "producer_lost",
    "message": "The producer has not been heard from and its lease expired.",
    "recoverable": True,
}


def may_restart(on_worker_loss: str | None, attempt: int, kept: int = 0) -> bool:
    """Whether another worker may restart the generation after this attempt lost its worker. `kept`: Meta.kept."""
    return on_worker_loss != "fail" and attempt - kept < MAX_ATTEMPTS and attempt < MOST_ATTEMPTS
