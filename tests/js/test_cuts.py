"""Real streams of real servers, cut wherever a stream can be cut: what the package makes of them has no seam.

Each cut is a client of its own, and each connection of a client goes to the other server. The long form tries every
byte.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.js.cutting import Asked, Cut, Cutter, How, cutting
from tests.js.following import Case, Outcome, follow
from tests.rig.deployment import HTTP, Deployment
from tests.rig.long import LONG
from tests.viewers.producer import Producer
from tests.viewers.viewer import post

pytestmark = pytest.mark.npm

PACE = 50
LIMIT_S = 600 if LONG else 60
PROMPT = "Wörter 漢字 🚲🧑\u200d🚀 [[ttft_ms=0 thinking=2 tools=1 args_piece=24 cut_at=2 cut_times=1"
"""Of two attempts: the provider breaks off the first one."""
SHOW = ["thinking", "args"]
EXTERNAL = {"producer": "external"}
KEY = "cut-anywhere"


@dataclass(frozen=True)
class Seen:
    """A stream that has ended, as users see it."""

    sid: str
    text: str
    events: list[tuple[int, str]]

    @property
    def path(self) -> str:
        return f"/v1/streams/{self.sid}/events?audience=public"


def seen(deployment: Deployment, sid: str) -> Seen:
    deployment.wait_until_ended(sid)
    of = f"{deployment.url}/v1/streams/{sid}"
    log = [json.loads(line) for line in HTTP.get(f"{of}/export?audience=public").text.splitlines()]
    return Seen(sid, HTTP.get(f"{of}/text").text, [(event["id"], event["event"]) for event in log])


@pytest.fixture(scope="module")
def ended(deployment: Deployment) -> Seen:
    stream = seen(deployment, deployment.create(f"{PROMPT} tokens=24 rate=0]]", show=SHOW))
    kinds = {kind for _, kind in stream.events}
    assert {"restart", "thinking_delta", "text_delta", "tool_args_delta", "tool_args", "done"} <= kinds
    assert "🚲🧑\u200d🚀" in stream.text
    return stream


def places(body: bytes, step: int) -> list[int]:
    """After how many bytes to cut: behind each line, within characters, and at each `step`th. If long: all."""
    if LONG:
        return list(range(len(body) + 1))
    ends = {at + 1 for at, byte in enumerate(body) if byte == ord("\n")}
    within = {at for at, byte in enumerate(body) if 0x80 <= byte < 0xC0}
    return sorted({*ends, *within, *range(0, len(body), step)})


def cuts(places: Iterable[int], *hows: How) -> list[Cut]:
    """In each of these ways by turns; if long, in all."""
    turns: Iterator[tuple[How, ...]] = cycle([hows] if LONG else [(how,) for how in hows])
    return [Cut(place, how) for place, turn in zip(places, turns) for how in turn]  # noqa: B905  the turns never end


async def cut_once(
    js: Path, cutter: Cutter, cuts: Iterable[Cut], url: str, name: str = "node", **more: Any
) -> tuple[list[Outcome], dict[Cut, list[Asked]]]:
    """What became of a client for each of these cuts, and what each of them asked for."""
    cases = {f"{cut.how}-{cut.after}": cut for cut in cuts}
    cutter.cuts = {case: [cut] for case, cut in cases.items()}
    outcomes = await follow(js, [Case(case, url, **more) for case in cases], pace=PACE, name=name, limit_s=LIMIT_S)
    assert [(outcome.cases[:3], outcome.error) for outcome in outcomes if outcome.error] == []
    assert sum(len(outcome.cases) for outcome in outcomes) == len(cases)
    return outcomes, {cut: cutter.asked[case] for case, cut in cases.items()}


@pytest.mark.parametrize("name", ["node", "deno", "bun"])
async def test_a_stream_that_is_cut_anywhere_is_followed_to_its_end_without_a_seam(
    js: Path, deployment: Deployment, ended: Seen, name: str
) -> None:
    body = HTTP.get(f"{deployment.url}{ended.path}&compact=1").content
    some = places(body, 25) if name == "node" else range(0, len(body) + 1, 1 if LONG else 51)
    async with cutting(*deployment.ports) as cutter:
        [outcome], asked = await cut_once(js, cutter, cuts(some, "reset", "end"), cutter.url + ended.path, name)
    assert outcome.answer["text"] == ended.text
    assert outcome.answer["restarts"] == 1
    assert [tool["args"] for tool in outcome.answer["tools"]] == [{"city": "Oslo", "unit": "celsius", "days": 3}]
    assert outcome.ids == sorted(set(outcome.ids))
    assert outcome.answer["cursor"] == outcome.ids[-1] == ended.events[-1][0]
    assert set(outcome.events) < set(ended.events), "what waits is merged"
    assert {cut.after for cut, requests in asked.items() if len(requests) == 1} <= {len(body)}, "all others came back"
    print(f"{name}: {len(asked)} clients")


async def test_each_event_comes_once_wherever_its_stream_is_cut(js: Path, deployment: Deployment, ended: Seen) -> None:
    """As they are in the log, not merged."""
    body = HTTP.get(f"{deployment.url}{ended.path}").content
    some = range(0, len(body) + 1, 1 if LONG else 43)
    async with cutting(*deployment.ports) as cutter:
        url = f"{cutter.url}{ended.path}&compact=0"
        [outcome], asked = await cut_once(js, cutter, cuts(some, "reset", "close", "end"), url)
    assert outcome.events == ended.events
    assert outcome.answer["text"] == ended.text
    print(f"{len(asked)} clients")


async def test_a_start_whose_answer_is_cut_anywhere_is_asked_for_again_or_followed(
    js: Path, deployment: Deployment
) -> None:
    """The answer's head too. Each client has a start that was never answered, the same one: they share its stream."""
    words = ["Wörter ", "漢字 ", "🚲🧑\u200d🚀"]
    key = {"Idempotency-Key": KEY}
    producer = Producer((await post(deployment.ports[0], "/v1/streams", EXTERNAL, key)).json, deployment.ports[0])
    await producer.write(*words)
    await producer.finish()
    sse = {"Accept": "text/event-stream", **key}
    answer = HTTP.post(f"{deployment.url}/v1/streams", json=EXTERNAL, headers=sse)
    lines = [b"HTTP/1.1 200 OK", *(b": ".join(header) for header in answer.headers.raw), b""]
    head = sum(len(line) + len("\r\n") for line in lines)
    whole = head + len(answer.content)
    some = cuts(range(0, whole + 1, 1 if LONG else 8), "reset", "close", "end")
    async with cutting(*deployment.ports) as cutter:
        to = f"{cutter.url}/v1/streams"
        kept = {"v": 1, "user": None, "url": None, "to": to, "body": EXTERNAL, "idem": KEY, "answer": {}}
        of_answer = [cut._replace(of="answer") for cut in some]
        outcomes, asked = await cut_once(js, cutter, of_answer, to, body=EXTERNAL, kept=kept)
    assert {outcome.answer["text"] for outcome in outcomes} == {"".join(words)}
    assert {tuple(outcome.ids) for outcome in outcomes} == {(1, 2, 3, 4, 5), (1, 2, 4, 5), (1, 4, 5)}
    for cut, requests in asked.items():
        methods = [request.method for request in requests]
        if cut.after < head:
            assert set(methods) == {"POST"}, "where its stream is has not been said"
        elif cut.after == whole:
            assert methods == ["POST"]
        elif cut.how == "end":  # else Node's fetch may fail with the head, if the cut comes together with it
            assert methods == ["POST", "GET"]
        assert {request.headers.get("idempotency-key") for request in requests if request.method == "POST"} == {KEY}
    print(f"{len(asked)} clients")


async def test_running_streams_that_are_cut_again_and_again_are_whole_and_each_start_has_started_one(
    js: Path, deployment: Deployment
) -> None:
    """Requests are cut too: of some the server has nothing, of some half, of some all."""
    numbers = random.Random("again and again")
    directives = "rate=50 tokens=60]]"
    followed = deployment.create(f"{PROMPT} {directives}", show=SHOW)
    followers, starters = ([f"{way}-{n}" for n in range(200 if LONG else 15)] for way in ("follow", "start"))
    async with cutting(*deployment.ports) as cutter:
        for case in (*followers, *starters):
            cutter.cuts[case] = [_any_cut(numbers) for _ in range(numbers.randint(3, 6))]
        url = f"{cutter.url}/v1/streams/{followed}/events?audience=public&compact=0"
        body = {"show": SHOW, "user_id": "again-and-again"}
        outcomes = await follow(
            js,
            [
                *(Case(case, url) for case in followers),
                *(
                    Case(case, f"{cutter.url}/v1/streams", body={"prompt": f"{case}: {PROMPT} {directives}", **body})
                    for case in starters
                ),
            ],
            pace=PACE,
            limit_s=LIMIT_S,
        )
    by_case = {case: outcome for outcome in outcomes for case in outcome.cases}
    print(f"{len(by_case)} clients, {sum(map(len, cutter.asked.values()))} connections")
    assert {case: outcome.error for case, outcome in by_case.items() if outcome.error} == {}
    for case in followers:
        assert by_case[case].events == seen(deployment, followed).events
        assert by_case[case].answer["text"] == seen(deployment, followed).text
    listed = HTTP.get(f"{deployment.url}/v1/streams?user_id=again-and-again&include=request&limit=200").json()[
        "streams"
    ]
    assert len(listed) == len(starters)
    for record in listed:
        case, _, _ = record["request"]["messages"][0]["content"].partition(":")
        stream = seen(deployment, record["id"])
        assert by_case[case].answer["text"] == stream.text
        assert by_case[case].ids[-1] == stream.events[-1][0]


def _any_cut(numbers: random.Random) -> Cut:
    hows: tuple[How, ...] = ("reset", "close", "end")
    how = numbers.choice(hows)
    match numbers.randrange(4):
        case 0:
            return Cut(numbers.randrange(500), "reset", "request")
        case 1:
            return Cut(numbers.randrange(600), how, "answer")
        case _:
            return Cut(numbers.randrange(4000), how)
