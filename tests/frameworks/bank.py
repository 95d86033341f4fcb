"""A bank, and a ledger of what it was asked. A refund for an order that is called slow… never comes to its end."""

import asyncio
from pathlib import Path

LEDGER = Path(__file__).with_name("ledger")


def note(*what: str) -> None:
    with LEDGER.open("a") as ledger:
        ledger.write(" ".join(what) + "\n")


async def order(order_id: str) -> str:
    note("order", order_id)
    return f"{order_id} was shipped"


async def refund(order_id: str, cents: int, key: str) -> str:
    assert key
    note("refund", order_id)
    if order_id.startswith("slow"):
        try:
            await asyncio.Event().wait()
        finally:
            note("cut", order_id)
    return f"{cents} cents are on their way"
