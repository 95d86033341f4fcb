"""Streams and cuts for clients: what was written, where a connection is cut, what each client made of it."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.clients.cutter import NO_ANSWER, Cutter, cutting
from tests.clients.programs import Case, Event, Language, Outcome, Shown, outcome
from tests.rig.deployment import HTTP, Deployment
from tests.viewers.producer import Producer

APP_HAD = 5
"""The last id that an app had kept when it was closed."""


@dataclass
class Ended:
    """A stream that has ended."""

    sid: str
    events: list[Event]
    body: bytes

    @property
    def path(self) -> str:
        return f"/v1/streams/{self.sid}/events"

    def frame(self, event_id: str) -> range:
        """The bytes of an event's frame."""
        last = self.body.index(b"\nid: %s\n\n" % event_id.encode()) + len(f"\nid: {event_id}\n\n")
        return range(self.body.rindex(b"\n\n", 0, last - 2) + 2, last)

    def places(self, event_id: str) -> list[int]:
        """Where to cut: around each end of a line of its frame, in its id's digits, and in a character."""
        frame = self.frame(event_id)
        text = self.body[frame.start : frame.stop]
        ends = [frame.start + at + 1 for at, byte in enumerate(text) if byte == ord("\n")]
        around = {end + d for end in ends for d in (-1, 0, 1) if end + d <= frame.stop}
        return sorted({*around, frame.start + text.index(b"\xf0") + 2, ends[-1] - 2})


async def produce(deployment: Deployment, events: int) -> Ended:
    words = [f"Wörter 🚲 {n}" for n in range(events - 2)]  # `queued` and `done` stand around them
    producer = await Producer.create(deployment.ports[0])
    await producer.write(*words)
    await producer.finish()
    texts = [json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":")) for text in words]
    kinds = [("queued", "{}"), *(("text_delta", text) for text in texts), ("done", "{}")]
    events = [Event(str(n), *event) for n, event in enumerate(kinds, start=1)]
    body = HTTP.get(f"{deployment.url}/v1/streams/{producer.sid}/events").content
    return Ended(producer.sid, events, body)


@dataclass
class Tried:
    client: str
    expected: Sequence[Event]
    shown: Shown
    requests: int

    @property
    def outcome(self) -> Outcome:
        return outcome(self.shown, self.expected)


class Trial:
    """All clients of a language on all cases, at once."""

    def __init__(self, ended: Ended, cutter: Cutter) -> None:
        self._ended = ended
        self._cutter = cutter
        self.cases: list[tuple[Case, int]] = []

    def add(self, client: str, name: str, cuts: Sequence[int], has: int = 0) -> None:
        case = f"{client}-{name}"
        url = self._cutter.url(case, cuts) + self._ended.path
        self.cases.append((Case(client, case, url, str(has) if has else "earliest"), has))

    async def run(self, language: Language, limit_s: float = 60.0) -> dict[str, Tried]:
        shown = await language.run([case for case, _ in self.cases], limit_s)
        return {
            case.case: Tried(
                case.client, self._ended.events[has:], shown[case.case], len(self._cutter.asked[case.case])
            )
            for case, has in self.cases
        }


async def try_clients(deployment: Deployment, ended: Ended, languages: Sequence[Language]) -> dict[str, Tried]:
    """Everything at once, since clients mostly wait before they come back."""
    numbers = random.Random("cuts")
    rest = ended.frame("13").start - ended.frame("10").start  # not in the last event, which is worth a minute
    async with cutting(deployment.ports[0]) as cutter:
        runs = []
        for language in languages:
            trial = Trial(ended, cutter)
            for client in language.clients:
                for place in ended.places("10"):
                    trial.add(client, f"cut-{place}", [place, numbers.randrange(rest)])
                for place in (0, 5):
                    trial.add(client, f"cut-early-{place}", [place, place])
                trial.add(client, "cut-away", [NO_ANSWER, ended.frame("9").start + 7, NO_ANSWER])
                trial.add(client, "closed", [3, ended.frame("8").stop - ended.frame("5").stop], has=APP_HAD)
                trial.add(client, "had-all", [], has=len(ended.events))
            runs.append(trial.run(language))
        results = await asyncio.gather(*runs)
        return {case: one for result in results for case, one in result.items()}
