"""What is no op: each message gets an answer or a close code, and no server fails inside."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.rig.deployment import Deployment
from tests.rig.long import LONG
from tests.web.speaker import Speaker, speaker
from tests.web.wire import Api

pytestmark = pytest.mark.processes

MARK = "mArKeR7f3a"
GENERATED = 10_000 if LONG else 600
AT_ONCE = 200

REFUSED: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "invalid_json"),
    "a word": (MARK, "invalid_json"),
    "an open brace": ("{", "invalid_json"),
    "two values": ('{"op":"ping"}{"op":"ping"}', "invalid_json"),
    "NaN": ('{"op":"ack","stream":"a","id":NaN}', "invalid_json"),
    "65 levels": ('{"op":"start","metadata":' + "[" * 65 + "]" * 65 + "}", "invalid_json"),
    "100,000 brackets": ("[" * 100_000, "invalid_json"),
    "a list": ("[]", "invalid_request"),
    "null": ("null", "invalid_request"),
    "no op": ('{"ref":1}', "invalid_request"),
    "an op that is a list": ('{"op":["ping"]}', "invalid_request"),
    "no such op": (f'{{"op":"{MARK}"}}', "unknown_op"),
    "a stream that is a list": (f'{{"op":"follow","stream":["{MARK}"]}}', "invalid_request"),
    "a stream that is an object": ('{"op":"cancel","stream":{"a":1}}', "invalid_request"),
    "no stream": ('{"op":"follow"}', "invalid_request"),
    "a stream and a session": ('{"op":"follow","stream":"a","session":"b"}', "invalid_request"),
    "a cursor that is true": ('{"op":"follow","stream":"a","cursor":true}', "invalid_request"),
    "a cursor below 0": ('{"op":"follow","stream":"a","cursor":-1}', "invalid_request"),
    "a window of 15": ('{"op":"follow","stream":"a","window":15}', "invalid_request"),
    "33 kinds": (json.dumps({"op": "follow", "stream": "a", "kinds": ["k"] * 33}), "invalid_request"),
    "cursors that are a list": ('{"op":"follow","session":"a","cursors":[]}', "invalid_request"),
    "cursors without at": ('{"op":"follow","session":"a","cursors":{"streams":{}}}', "bad_cursor"),
    "an ack of a text": ('{"op":"ack","stream":"a","id":"1"}', "invalid_request"),
    "an unknown field": (f'{{"op":"ping","{MARK}":1}}', "invalid_request"),
    "a ref of 65 characters": (json.dumps({"op": "ping", "ref": "r" * 65}), "invalid_request"),
    "a ref that is true": ('{"op":"ping","ref":true}', "invalid_request"),
    "a start of nothing": ('{"op":"start"}', "invalid_request"),
    "a number that is not kept": (
        '{"op":"start","prompt":"x","metadata":{"n":123456789012345678901234}}',
        "invalid_request",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_message_that_is_no_op_is_refused(deployment: Deployment, name: str) -> None:
    message, code = REFUSED[name]
    async with speaker(deployment.url) as talks:
        await talks.say_raw(message)
        refused = await talks.hear()
        assert (refused["event"], refused["data"]["code"]) == ("refused", code)
        assert MARK.lower() not in json.dumps(refused).lower()
        assert (await talks.ask("ping"))["event"] == "ok", "the socket goes on"


def generated(numbers: random.Random, sids: list[str]) -> tuple[str, str]:
    """A message that may be an op, wrong in a place or two; and its ref."""
    ops = ["auth", "follow", "unfollow", "ack", "input", "interrupt", "cancel", "ping", "nonsense", 7, None, [], {}]
    ref = f"r{numbers.random()}"
    asked: dict[str, Any] = {"ref": ref, "op": numbers.choice(ops)}
    fields = [
        *("stream", "session", "cursor", "cursors", "window", "compact", "kinds", "presence", "id", "text", "data"),
        *("token", "reason", "interrupt", "extra"),
    ]
    for name in numbers.sample(fields, numbers.randrange(4)):
        asked[name] = _value(numbers, sids)
    if numbers.random() < 0.5:
        asked["stream"] = numbers.choice(sids)
    text = json.dumps(asked)
    if numbers.random() < 0.2:
        at = numbers.randrange(len(text))
        text = text[:at] + numbers.choice(["", '"', "{", "\\", "\u0000", "\U0001f40d", "1e999"]) + text[at + 1 :]
    return text, ref


def _value(numbers: random.Random, sids: list[str]) -> Any:
    return numbers.choice(
        [
            *(None, True, False, 0, -1, 1, 16, 2**53, 2**70, 1.5, "", "a", "latest", "x" * 300, "\x00", [], {}, [[]]),
            *({"at": 1, "streams": {"a": "x"}}, {"at": -1}, ["text_delta"], numbers.choice(sids)),
        ]
    )


async def test_whatever_is_sent_is_answered_once_or_closes_the_socket(
    deployment: Deployment, open_api: Callable[..., Api]
) -> None:
    api = open_api(deployment.url)
    numbers = random.Random("messages")
    left = GENERATED
    while left > 0:
        sids = [api.start_external() for _ in range(3)]
        async with speaker(deployment.url) as talks:
            sent = [generated(numbers, sids) for _ in range(min(AT_ONCE, left))]
            left -= len(sent)
            asked = len(sent) - sum('"op": "ack"' in text for text, _ in sent)  # some are no ack any more
            for text, _ in sent:
                await talks.say_raw(text)
            while len(_answers(talks)) < asked:
                await talks.hear()
            refs = [ref for ref in _answers(talks) if ref is not None]
            assert len(refs) == len(set(refs))
    for server in deployment.servers:
        assert b"Traceback" not in server.output.read_bytes()


def _answers(talks: Speaker) -> list[Any]:
    """Their refs."""
    return [message.get("ref") for message in talks.heard if message["event"] in ("ok", "refused")]
