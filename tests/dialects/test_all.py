"""What holds for every dialect that there is, whatever it says.

The log has all that a log may have: what is for operators alone, thoughts, tools of both kinds, an agent's agents, an
attempt that is void and a new writer whose ids have jumped, and each kind of ending.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import fakeredis
import pytest

from broker import dialects
from broker.dialects.fold import Dialect, Facts, Fold
from broker.dialects.format import Batch
from broker.dialects.sse import Gap
from broker.live.folded import Folded
from broker.live.tail import replay
from broker.log.event import TERMINAL, Event, encode_data, public
from broker.log.keys import Keys
from broker.log.steps import Unsent
from broker.log.stream_log import StreamLog
from tests.rig.long import LONG
from tests.rig.streams import batch, running, taken_over

SECRET = "nobody may see this"
BREAKS = ("\u2028", "\u2029", "\x85")
ASKED = {"messages": [{"role": "user", "content": "Where is A17?"}], "max_tokens": 10}
FACTS = Facts("0f3c8a5e21d94b7c8a5e21d94b7c0f3c", "thread", "m/n", 1_795_251_158_000, {}, ASKED)

Written = tuple[str, Any]


def _every_dialect() -> Iterator[Dialect]:
    """With the options that it has by default, and with each that is yes or no the other way."""
    for module in iter_modules(dialects.__path__):
        for one in vars(import_module(f"{dialects.__name__}.{module.name}")).values():
            is_one = isinstance(one, type) and one.__module__.endswith(f".{module.name}")
            if is_one and hasattr(one, "begin") and hasattr(one, "frame") and is_dataclass(one):
                yield (usual := one())
                switches = [each.name for each in fields(one) if isinstance(getattr(usual, each.name), bool)]
                yield from (replace(usual, **{name: not getattr(usual, name)}) for name in switches)


DIALECTS = list(dict.fromkeys(_every_dialect()))
of_each = pytest.mark.parametrize(
    "dialect", DIALECTS, ids=[f"{type(one).__name__}-{number}" for number, one in enumerate(DIALECTS)]
)


def _call(call_id: str, **more: Any) -> list[Written]:
    named = {"tool_call_id": call_id, "tool": "find", **more}
    return [
        ("tool_start", {**named, "title": "Finding"}),
        *(("tool_args_delta", {**named, "partial_json": piece}) for piece in ('{"order":', '"A17\u2028"}')),
        ("tool_args", {**named, "args": {"order": "A17\u2028"}, "complete": True}),
    ]


def _ends(call_id: str, **more: Any) -> Written:
    return "tool_end", {"tool_call_id": call_id, "tool": "find", "duration_ms": 3, **more}


_START = ("start", {"model": "m/n", "provider": "m", "attempt": 1})
_USAGE = {"input_tokens": 7, "cache_read_input_tokens": 2, "output_tokens": 5}
FIRST_ATTEMPT: list[Written] = [
    *(_START, ("status", {"message": f"Wait{BREAKS[0]}"}), ("internal.provider", {"name": SECRET})),
    *(("internal.thinking_delta", {"text": SECRET}), ("thinking_delta", {"text": "Hm.\x85 "})),
    *(
        ("thinking_delta", {"text": "So: "}),
        ("text_delta", {"text": "Let me "}),
        ("text_delta", {"text": "look\u2029."}),
    ),
    *(*_call("own"), ("internal.tool_result", {"tool_call_id": "own", "tool": "find", "output": SECRET})),
    *(("tool_progress", {"tool_call_id": "own", "tool": "find", "message": "half"}), _ends("own", output={"state": 1})),
    *(*_call("failing"), ("tool_error", {**_ends("failing")[1], "code": "failed", "message": "no such order"})),
    ("approval_request", {"approval_id": "a", "tool_call_id": "own", "tool": "find", "title": "Find"}),
    *(("agent_start", {"agent": "helper.1", "parent": "desk"}), *_call("asked", agent="helper.1")),
    *(_ends("asked", agent="helper.1"), ("agent_text_delta", {"agent": "helper.1", "text": "found"})),
    *(("agent_end", {"agent": "helper.1", "duration_ms": 4}), ("input", {"input_id": "1-0", "text": "quick"})),
    *(("text_delta", {"text": "It is "}), ("internal.trace", {"code": "provider_cut", "message": SECRET})),
]
SECOND_ATTEMPT: list[Written] = [
    *(("restart", {"attempt": 2, "reason": "worker_lost"}), _START, ("thinking_delta", {"text": "Again. "})),
    *(("text_delta", {"text": word}) for word in ("It ", "is ", "on its way 🚲.")),
    ("citation", {"url": "https://example.com/a", "title": None, "cited_text": "way", "start": 0, "end": 3}),
    *(("sentence", {"text": "It is on its way.", "index": 0}), ("shop.parcel", {"place": "Oslo"})),
    *(*_call("theirs", client=True), ("internal.turn", {"provider": SECRET, "native": [SECRET]})),
]
ENDINGS: list[Written] = [
    ("done", {"stop_reason": "tool_use", "usage": _USAGE, "model": "m/n-2026", "ttft_ms": 5, "duration_ms": 50}),
    ("done", {"stop_reason": "max_tokens", "usage": _USAGE, "result": {"answer": 42}}),
    ("done", {"stop_reason": "refusal", "schema_violation": {"place": "", "message": "x"}}),
    ("error", {"code": "provider_cut", "message": "It broke off.", "recoverable": True, "usage": _USAGE}),
    ("cancelled", {"reason": "requested", "by": "key:a"}),
]


def _unsent(written: Iterable[Written]) -> list[Unsent]:
    return [Unsent(kind, encode_data(data)) for kind, data in written]


async def _stored(log: StreamLog, ending: Written) -> str:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *_unsent(FIRST_ATTEMPT)))
    claimed = await taken_over(log, claimed.sid)
    await log.append(batch(claimed, claimed.pen.base, *_unsent([*SECOND_ATTEMPT, ending])))
    return claimed.sid


@pytest.fixture
async def log() -> AsyncIterator[StreamLog]:
    async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as client:
        yield StreamLog(client, Keys())


def _all_events(ending: Written) -> list[Event]:
    """As they are stored, but for their times."""
    first = [("queued", {}), *FIRST_ATTEMPT]
    ids = [*range(1, len(first) + 1), *range(1_000_001, 1_000_002 + len(SECOND_ATTEMPT))]
    written = [*first, *SECOND_ATTEMPT, ending]
    return [
        Event(at, kind, encode_data(data), FACTS.created_ms + at) for at, (kind, data) in zip(ids, written, strict=True)
    ]


def _said(dialect: Dialect, fold: Fold, events: Iterable[Event]) -> list[bytes]:
    frame = dialect.frame
    return [frame(payload, event.id, at) for event in events for at, payload in enumerate(fold.step(event))]


def test_there_are_dialects() -> None:
    assert len({dialect.name for dialect in DIALECTS}) > 5


@of_each
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: "-".join(map(str, [ending[0], *ending[1].values()][:2])))
def test_what_is_said_follows_from_the_log_wherever_a_copy_goes_on(dialect: Dialect, ending: Written) -> None:
    events = public(_all_events(ending))
    whole = [_said(dialect, fold, [event]) for fold in [dialect.begin(FACTS)] for event in events]
    assert whole == [_said(dialect, fold, [event]) for fold in [dialect.begin(FACTS)] for event in events]
    says_nothing = not any(whole)  # it is asked for what a thread holds
    assert any(whole[-1]) or dialect.end or says_nothing, "an ending is told"
    walking = dialect.begin(FACTS)
    for at, event in enumerate(events):
        copy, aside = walking.copy(), walking.copy()
        assert copy.number == walking.number
        assert [_said(dialect, copy, [each]) for each in events[at:]] == whole[at:]
        aside.gap(Gap(event.id, 1, "log_lost_tail"))  # what one is told changes nothing for the others
        walking.copy().opening()
        assert _said(dialect, walking, [event]) == whole[at]


@of_each
def test_no_byte_is_of_an_internal_event_nor_breaks_a_line(dialect: Dialect) -> None:
    fold = dialect.begin(FACTS)
    events = public(_all_events(ENDINGS[0]))
    told = [*_said(dialect, fold, events), *fold.opening(), *dialect.begin(FACTS).gap(Gap(1, 1, "log_lost_tail"))]
    text = b"".join(told).decode()
    assert SECRET not in text
    assert [line for line in text.split("\n") if any(line_break in line for line_break in BREAKS)] == []


@of_each
async def test_a_reader_of_the_whole_stream_is_told_this_and_the_end(dialect: Dialect, log: StreamLog) -> None:
    sid = await _stored(log, ENDINGS[0])
    facts = FACTS._replace(sid=sid)
    folded = Folded(sid, dialect, facts)
    bodies: list[bytes] = []
    async with aclosing(replay(log, sid, 0)) as steps:
        async for step in steps:
            assert isinstance(step, Batch)
            await folded.stand(log, step.after)
            bodies.append(folded.written(step).body)
    body = b"".join(bodies)
    assert SECRET.encode() not in body
    assert body.endswith(dialect.end)
    if not dialect.merges:
        fold = dialect.begin(facts)
        expected: list[bytes] = []
        for event in public(await log.read_all(sid)):
            expected += _said(dialect, fold, [event])
            if fold.is_over:
                break
        assert body == b"".join(expected) + dialect.end


# -- what external producers may write -----------------------------------------------------------------------------

KINDS = sorted({kind for kind, _ in (*FIRST_ATTEMPT, *SECOND_ATTEMPT, *ENDINGS)} - {"queued"})
FIELDS = sorted({name for _, data in (*FIRST_ATTEMPT, *SECOND_ATTEMPT, *ENDINGS) for name in data})
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        2**53,
        1.5,
        "",
        "x",
        "own",
        "theirs",
        "\u2028",
        "{",
        '{"a":1}',
        [],
        [[]],
        {},
        {"a": []},
    ),
    *(
        {"a": []},
        {"text": 1},
        ["own"],
        {"input_tokens": "7"},
        {"input_tokens": -1, "output_tokens": None},
        "\x00",
        "🚲",
    ),
]


def _strange(chosen: random.Random) -> Any:
    """Data of an event, which is an object. (As a log may not have it otherwise, once in a while it is none.)"""
    if chosen.random() < 0.02:
        return chosen.choice(VALUES)
    return {name: chosen.choice(VALUES) for name in chosen.sample(FIELDS, chosen.randint(0, 6))}


def _nearly_right(chosen: random.Random) -> Written:
    kind, data = chosen.choice([*FIRST_ATTEMPT, *SECOND_ATTEMPT, *ENDINGS])
    spoilt = chosen.choice(list(data) or ["text"])
    return kind, {**data, spoilt: chosen.choice(VALUES)}


@of_each
def test_strange_shapes_under_known_kinds_raise_nothing(dialect: Dialect) -> None:
    for seed in range(500 if LONG else 15):
        chosen = random.Random(seed)
        fold = dialect.begin(FACTS)
        fold.step(Event(1, "queued", b"{}", 1))
        for number in range(2, 60):
            kind, data = _nearly_right(chosen) if chosen.random() < 0.7 else (chosen.choice(KINDS), _strange(chosen))
            if kind in TERMINAL and number < 50:
                continue
            event = Event(number, kind, encode_data(data), number)
            try:
                payloads = fold.step(event)
                fold.copy().gap(Gap(number, 1, "log_lost_tail"))
            except Exception as error:
                raise AssertionError(f"seed {seed}: {kind} {data!r}") from error
            assert all(isinstance(dialect.frame(payload, number, at), bytes) for at, payload in enumerate(payloads))
            if kind in TERMINAL or fold.is_over:
                break
