"""Clients that others wrote lose and double nothing, wherever in a frame they are cut."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.clients.cutter import Cutter, cutting
from tests.clients.programs import Case, Event, Go, Language, Node, Outcome, Python, Shown, outcome
from tests.rig.deployment import HTTP, Deployment
from tests.viewers.producer import Producer

TEXTS = [f"Wörter 🚲 {n}" for n in range(12)]
APP_HAD = 5
"""The last id that an app had kept when it was closed."""
EVERY_CLIENT = [(kind.name, client) for kind in (Node, Python, Go) for client in (*kind.recipes, *kind.others)]


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


@pytest.fixture(scope="module")
def ended(deployment: Deployment) -> Ended:
    return asyncio.run(_produce(deployment))


async def _produce(deployment: Deployment) -> Ended:
    producer = await Producer.create(deployment.ports[0])
    await producer.write(*TEXTS)
    await producer.finish()
    texts = [json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":")) for text in TEXTS]
    kinds = [("queued", "{}"), *(("text_delta", text) for text in texts), ("done", "{}")]
    events = [Event(str(n), *event) for n, event in enumerate(kinds, start=1)]
    body = HTTP.get(f"{deployment.url}/v1/streams/{producer.sid}/events").content
    return Ended(producer.sid, events, body)


@dataclass
class Tried:
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
        self._cases: list[tuple[Case, int]] = []

    def add(self, client: str, name: str, cuts: Sequence[int], has: int = 0) -> None:
        case = f"{client}-{name}"
        url = self._cutter.url(case, cuts) + self._ended.path
        self._cases.append((Case(client, case, url, str(has) if has else "earliest"), has))

    async def run(self, language: Language, limit_s: float = 60.0) -> dict[str, Tried]:
        shown = await language.run([case for case, _ in self._cases], limit_s)
        return {
            case.case: Tried(self._ended.events[has:], shown[case.case], len(self._cutter.asked[case.case]))
            for case, has in self._cases
        }


@pytest.fixture(scope="module")
def tried(deployment: Deployment, ended: Ended, node: Language, python: Language, go: Language) -> dict[str, Tried]:
    return asyncio.run(_try(deployment, ended, (node, python, go)))


async def _try(deployment: Deployment, ended: Ended, languages: Sequence[Language]) -> dict[str, Tried]:
    """Everything at once, since clients mostly wait before they come back."""
    numbers = random.Random("cuts")
    rest = ended.frame("14").start - ended.frame("10").start
    async with cutting(deployment.ports[0]) as cutter:
        runs = []
        for language in languages:
            trial = Trial(ended, cutter)
            for client in language.clients:
                for place in ended.places("10"):
                    trial.add(client, f"cut-{place}", [place, numbers.randrange(rest)])
                for place in (0, 5):
                    trial.add(client, f"cut-early-{place}", [place, place])
                trial.add(client, "closed", [3, ended.frame("8").stop - ended.frame("5").stop], has=APP_HAD)
                trial.add(client, "had-all", [], has=len(ended.events))
            runs.append(trial.run(language))
        results = await asyncio.gather(*runs)
        return {case: one for result in results for case, one in result.items()}


def of(tried: dict[str, Tried], client: str, name: str) -> dict[str, Tried]:
    return {case: one for case, one in tried.items() if case.startswith(f"{client}-{name}")}


@pytest.mark.npm
@pytest.mark.parametrize(("language", "client"), EVERY_CLIENT)
def test_a_client_that_is_cut_twice_shows_each_event_once_and_stops_at_the_end(
    tried: dict[str, Tried], language: str, client: str
) -> None:
    cases = of(tried, client, "cut")
    assert len(cases) > 10
    assert {case: one.outcome for case, one in cases.items() if any(one.outcome)} == {}
    assert [case for case, one in cases.items() if not one.shown.has_ended] == []
    assert all(one.requests > 1 for one in cases.values())


@pytest.mark.npm
@pytest.mark.parametrize(("language", "client"), EVERY_CLIENT)
def test_an_app_that_was_closed_goes_on_after_what_it_had_also_if_it_is_cut_at_once(
    tried: dict[str, Tried], language: str, client: str
) -> None:
    [one] = of(tried, client, "closed").values()
    assert one.expected[0].id == str(APP_HAD + 1)
    assert not any(one.outcome)
    assert one.requests == 3


@pytest.mark.npm
@pytest.mark.parametrize(("language", "client"), EVERY_CLIENT)
def test_an_app_that_had_everything_asks_once(tried: dict[str, Tried], language: str, client: str) -> None:
    [one] = of(tried, client, "had-all").values()
    assert one.shown.events == []
    assert one.shown.has_ended
    assert one.requests == 1


@pytest.mark.npm
async def test_fetch_event_source_alone_loses_an_event_only_if_it_is_cut_between_its_id_and_its_last_byte(
    deployment: Deployment, ended: Ended, node: Language
) -> None:
    frame = ended.frame("10")
    async with cutting(deployment.ports[0]) as cutter:
        trial = Trial(ended, cutter)
        for place in range(frame.start, frame.stop + 1):
            trial.add("fetch-event-source-alone", str(place - frame.start), [place])
        tried = await trial.run(node)
    between = f"fetch-event-source-alone-{len(frame) - 1}"
    assert {case: one.outcome for case, one in tried.items() if any(one.outcome)} == {
        between: Outcome(lost=["10"], doubled=[], torn=[])
    }
