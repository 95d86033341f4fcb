"""python -m tests.lastevent.produce URL COUNT EVENTS PAUSE_S: as many producers at once, which go on where they were.

It says `open` for each that has its stream. At half of the events, and at all of them, they wait for the files `half`
and `all` in the working directory. It ends when each has its ending in its log, and has sent it again.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lastevent import AsyncClient
from lastevent.client import once
from tests.rig.deployment import until


async def produce(client: AsyncClient, number: int, events: int, pause_s: float) -> None:
    async with client.producer(idempotency_key=f"produced-{number}", session_id="produced") as out:
        print("open", out.id, out.last_event_id, len(out.written), flush=True)
        for n in range(out.last_event_id - 1, events):
            if n == events // 2:
                await there("half")
            await out.text(f"{number}.{n} ")
            await asyncio.sleep(pause_s)
        await there("all")


async def there(name: str) -> None:
    await until(Path(name).exists, f"{name} is there", every_s=0.05)


async def main(url: str, count: int, events: int, pause_s: float) -> None:
    async with AsyncClient(url) as client:
        await asyncio.gather(*(produce(client, number, events, pause_s) for number in range(count)))
        print("left", flush=True)


if __name__ == "__main__":
    once.ANSWER_S = 1.0  # what is never answered need not hold up a test for 10 s
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
