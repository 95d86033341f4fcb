"""A stream that is cut anywhere and resumed on another server has no seam."""

import asyncio
import random
from collections import Counter

from tests.rig.deployment import Deployment
from tests.viewers.viewer import Answer, CutAt, Viewer, at_byte, outcome, within_a_character

EVENTS = 300
VIEWERS = 200
RATE = 150  # events a second: two seconds in which to be cut
RETRY_LINE_BYTES = len("retry: 1000\n")
PROMPT = "Ünïcödé 漢字仮名交じり文 🚂🚃🚄🚅 Ελληνικά עברית 🧑‍🚀 ﷽ naïve"


class _Cutter:
    """A viewer that is cut several times at places its random numbers choose, then let be."""

    def __init__(self, sid: str, numbers: random.Random) -> None:
        self.viewer = Viewer(sid)
        self._numbers = numbers
        self._cuts = [self._cut() for _ in range(numbers.randint(3, 6))]

    def _cut(self) -> CutAt:
        match self._numbers.randrange(10):
            case 0:
                return at_byte(self._numbers.randint(0, RETRY_LINE_BYTES))
            case 1 | 2:
                return within_a_character(after=self._numbers.randrange(3000))
            case _:
                return at_byte(self._numbers.randrange(6000))

    async def view_in_pieces(self, ports: list[int]) -> None:
        first = self._numbers.randrange(len(ports))
        for n, cut in enumerate(self._cuts):
            await self.viewer.view(ports[(first + n) % len(ports)], cut)
        await self.viewer.view_to_the_end(*ports)

    @property
    def places(self) -> Counter[str]:
        return Counter(_place(answer) for answer in self.viewer.answers if answer.status == 200 and answer.is_cut)


def _place(answer: Answer) -> str:
    if not answer.remainder:
        return "between frames"
    if len(answer.body) < RETRY_LINE_BYTES:
        return "in the retry line"
    try:
        answer.remainder.decode()
    except UnicodeDecodeError:
        return "in a character"
    return "in a frame"


async def test_viewers_cut_at_any_byte_and_resumed_elsewhere_get_every_event_once(deployment: Deployment) -> None:
    streams = [
        deployment.create(
            f"{PROMPT} [[thinking={thinking} tokens={EVENTS - others - thinking} rate={RATE} ttft_ms=0]]",
            show=["thinking"],
        )
        for thinking, others in ((0, 3), (150, 5))
    ]  # queued, start and done stand around the deltas; and of who has thought a signature, and the turn
    uncut = {sid: Viewer(sid) for sid in streams}
    cutters = [_Cutter(sid, random.Random(f"{n} {seed}")) for n, sid in enumerate(streams) for seed in range(VIEWERS)]

    async with asyncio.TaskGroup() as group:
        for viewer in uncut.values():
            group.create_task(viewer.view(deployment.ports[0]))
        for cutter in cutters[::2]:
            group.create_task(cutter.view_in_pieces(deployment.ports))
    async with asyncio.TaskGroup() as group:
        for cutter in cutters[1::2]:  # the generation is over
            group.create_task(cutter.view_in_pieces(deployment.ports))

    expected = list(range(1, EVENTS + 1))
    assert [viewer.ids for viewer in uncut.values()] == [expected] * len(streams)
    faults, places = Counter[str](), Counter[str]()
    for cutter in cutters:
        faults.update(outcome(cutter.viewer, expected))
        places.update(cutter.places)
    print(f"{len(cutters)} viewers of {EVENTS} events, {places.total()} cuts ({dict(places)}): {dict(faults)}")

    assert faults.total() == 0
    for cutter in cutters:
        assert cutter.viewer.ids == expected
        assert cutter.viewer.bytes == uncut[cutter.viewer.sid].bytes
    assert set(places) == {"between frames", "in a frame", "in the retry line", "in a character"}
