"""A body is checked in a few ms of CPU, whatever is wrong with it: for that long nobody else is answered."""

import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import orjson
import pytest
from pydantic import BaseModel

from broker.errors import InvalidJson, InvalidRequest, LasteventError
from broker.service.bodies import AppendEvents, CreateStream
from broker.web.bare import SLICE_BYTES, changing_number, is_kept, look_outside_of_texts
from broker.web.strict_json import EXPLAINED, MAX_BARE_BYTES, MAX_CONTAINERS, MAX_DEPTH, check, parse

SIZE = 2**20


def filled(head: bytes, item: bytes | Callable[[int], bytes], tail: bytes) -> bytes:
    """A body of SIZE bytes, or nearly so, that is full of one item."""
    items, size, count = [], len(head) + len(tail), 0
    while True:
        next_one = item(count) if callable(item) else item
        size += len(next_one) + 1
        if size > SIZE:
            return head + b",".join(items) + tail
        items.append(next_one)
        count += 1


def field(number: int) -> bytes:
    return b'"a%d":1' % number


CONTENT = b'{"messages":[{"role":"user","content":['
EVENT = b'{"event":"text_delta","data":{}}'

HEAVY: dict[str, tuple[type[BaseModel], Callable[[], bytes]]] = {
    "blocks that are numbers": (CreateStream, partial(filled, CONTENT, b"1", b"]}]}")),
    "blocks that are lists": (CreateStream, partial(filled, CONTENT, b"[]", b"]}]}")),
    "a wrong block after many right ones": (CreateStream, partial(filled, CONTENT, b"{}", b",1]}]}")),
    "messages that are numbers": (CreateStream, partial(filled, b'{"messages":[', b"1", b"]}")),
    "messages without a field": (CreateStream, partial(filled, b'{"messages":[', b"{}", b"]}")),
    "messages with an unknown field": (CreateStream, partial(filled, b'{"messages":[', b'{"a":1}', b"]}")),
    "messages with two wrong members of a union": (
        CreateStream,
        partial(filled, b'{"messages":[', b'{"role":"user","content":[1]}', b"]}"),
    ),
    "unknown fields": (CreateStream, partial(filled, b"{", field, b"}")),
    "a message of unknown fields": (CreateStream, partial(filled, b'{"messages":[{', field, b"}]}")),
    "metadata that is a list": (CreateStream, partial(filled, b'{"prompt":"x","metadata":[', b"1", b"]}")),
    "metadata of many keys, and no prompt": (CreateStream, partial(filled, b'{"metadata":{', field, b"}}")),
    "a model that is a list": (CreateStream, partial(filled, b'{"prompt":"x","model":[', b"{}", b"]}")),
    "events that are numbers": (AppendEvents, partial(filled, b'{"epoch":1,"events":[', b"1", b"]}")),
    "too many events": (AppendEvents, partial(filled, b'{"epoch":1,"events":[', EVENT, b"]}")),
    "an event of unknown fields": (AppendEvents, partial(filled, b'{"epoch":1,"events":[{', field, b"}]}")),
}


def refused(step: Callable[[], object]) -> LasteventError:
    with pytest.raises(LasteventError) as caught:
        step()
    return caught.value


def cpu_ms(step: Callable[[], object]) -> float:
    """The least of seven: the machine may be at something else in between."""

    def once() -> float:
        began_s = time.thread_time()
        refused(step)
        return (time.thread_time() - began_s) * 1000

    return min(once() for _ in range(7))


def read_ms(body: bytes) -> float:
    def read() -> NoReturn:
        orjson.loads(body)
        raise InvalidJson

    return cpu_ms(read)


def few_ms() -> float:
    """20 ms where a body of numbers is read in 6. One of the wrong form took 1.4 s."""
    return 3.5 * read_ms(filled(b"[", b"1", b"]"))


@pytest.mark.parametrize("what", HEAVY)
def test_a_body_that_is_wrong_in_a_hundred_thousand_places_is_refused_in_a_few_ms_of_cpu(what: str) -> None:
    model, make = HEAVY[what]
    body = make()
    value = orjson.loads(body)
    assert len(body) > 0.9 * SIZE
    assert isinstance(refused(lambda: check(model, value)), InvalidRequest)
    assert cpu_ms(lambda: check(model, value)) < few_ms()


@pytest.mark.parametrize("what", HEAVY)
def test_few_errors_are_explained_and_none_repeats_the_input(what: str) -> None:
    model, make = HEAVY[what]
    said = str(refused(lambda: check(model, orjson.loads(make()))))
    assert said.count(";") < EXPLAINED
    assert len(said) < 1000


def test_a_message_says_which_of_its_fields_are_wrong() -> None:
    said = str(refused(lambda: check(CreateStream, {"prompt": 1, "system": 2, "max_tokens": "x"})))
    assert [name for name in ("prompt", "system", "max_tokens") if name not in said] == []


def nested(levels: int, inner: bytes) -> bytes:
    return b'[{"a":' * (levels // 2) + inner + b"}]" * (levels // 2)


TEXTS: dict[str, bytes] = {
    "a bracket": b'"["',
    "a quote": rb'"\"["',
    "a backslash": rb'"\\"',
    "a backslash and a bracket": rb'"\\["',
    "a backslash, a quote, a bracket": rb'"\\\"["',
    "brackets that close": b'"]}]}"',
}


@pytest.mark.parametrize("what", TEXTS)
def test_only_brackets_outside_of_texts_count_as_levels(what: str) -> None:
    assert parse(nested(MAX_DEPTH, TEXTS[what]))
    assert parse(b"[" + b",".join([TEXTS[what]] * 100) + b"]") == [orjson.loads(TEXTS[what])] * 100
    assert isinstance(refused(lambda: parse(nested(MAX_DEPTH + 2, TEXTS[what]))), InvalidJson)
    assert isinstance(refused(lambda: parse(nested(MAX_DEPTH, b"[" + TEXTS[what] + b"]"))), InvalidJson)


DEEP = {
    "many empty lists below": partial(filled, b"[" * 65, b"[]", b"]" * 65),
    "many texts with brackets": partial(filled, b"[" * 65, rb'"\"]["', b"]" * 65),
}


@pytest.mark.parametrize("what", DEEP)
def test_a_deep_body_costs_little_more_than_to_read_it(what: str) -> None:
    body = DEEP[what]()
    assert cpu_ms(lambda: parse(body)) < 2 * read_ms(body) + few_ms()


def test_a_body_has_so_many_objects_and_lists_and_no_more_wherever_its_brackets_are() -> None:
    def nested(count: int) -> bytes:
        return b'{"prompt":"%b","metadata":{"a":[%b]}}' % (b"[{" * 30_000, b",".join([b"[]"] * (count - 3)))

    assert parse(nested(MAX_CONTAINERS))["metadata"]
    assert isinstance(refused(lambda: parse(nested(MAX_CONTAINERS + 1))), InvalidJson)


def test_half_a_million_lists_are_refused_before_they_are_parsed() -> None:
    deep = filled(b'{"prompt":"x","metadata":{"a":[', b"[" * 57 + b"]" * 57, b"]}}")
    assert cpu_ms(lambda: parse(deep)) < few_ms()


KEPT = [
    "0",
    "-1",
    "18446744073709551615",
    "-9223372036854775808",
    "0.1",
    "-0.0",
    "1E5",
    "1e-7",
    "1.7976931348623157e308",
]
KEPT += ["0.30000000000000004", "123456789012345.5", "1.100000000000000000000000000", "9007199254740992.0", "5e-324"]
CHANGED = [
    "1e400",
    "18446744073709551616",
    "-9223372036854775809",
    "12345678901234567890123",
    "-0",
    "1e-400",
    "2.5e-324",
]
CHANGED += ["9007199254740993.0", "0.1000000000000000055", "3.14159265358979323846", "1" * 5000, "0." + "1" * 500]
CHANGED += ["1" * 3 * SLICE_BYTES]


@pytest.mark.parametrize("number", KEPT)
def test_a_number_that_64_bits_hold_is_kept(number: str) -> None:
    assert is_kept(number.encode())
    assert parse(b'{"metadata":{"n":%b}}' % number.encode())["metadata"]["n"] == orjson.loads(number)


@pytest.mark.parametrize("number", CHANGED, ids=lambda number: number[:30])
@pytest.mark.parametrize("behind", [b"", b" ", b'\n,"x":1'])
def test_a_number_that_would_change_is_refused_and_its_place_said_but_not_what_was_sent(
    number: str, behind: bytes
) -> None:
    body = b'{"events":[{},{"data":{"mine":[0,{"n":%b%b}]}}]}' % (number.encode(), behind)
    said = refused(lambda: parse(body))
    assert isinstance(said, InvalidRequest)
    assert str(said).startswith("events.1.data: ")
    assert "mine" not in str(said)
    in_text = b'{"prompt":"%b"}' % number.encode()
    assert parse(in_text) == {"prompt": number}, "as a text it may be anything"


@pytest.mark.parametrize("before", range(SLICE_BYTES - 20, SLICE_BYTES + 3))
@pytest.mark.parametrize("text", [rb"x\\\"[1e999,", rb"\\", rb"\"\\\"{", b"12345678901234567890123"])
def test_what_is_a_text_is_known_wherever_a_slice_ends(before: int, text: bytes) -> None:
    body = b'{"a":"%b%b","b":[1,18446744073709551616]}' % (b"x" * before, text)
    found = look_outside_of_texts(body, 1000)
    assert found == (b"[[]]", True)
    start, end = changing_number(body)
    assert body[start:end] == b"18446744073709551616"


def test_a_text_may_be_as_long_as_a_body_and_the_rest_may_not() -> None:
    text = b"x" * 4 * MAX_BARE_BYTES
    assert parse(b'{"prompt":"%b"}' % text) == {"prompt": text.decode()}
    for bare in (b" ", b"1", b"[],", b"1,"):
        body = b'{"metadata":[%b1]}' % (bare * (2 * MAX_BARE_BYTES // len(bare)))
        assert isinstance(refused(lambda body=body: parse(body)), InvalidJson)  # type: ignore[misc]


def test_a_number_that_cannot_be_kept_is_looked_for_no_deeper_than_a_body_may_be() -> None:
    with pytest.raises(InvalidJson, match="nested deeper"):
        parse(b"[" * 990 + b"1e400" + b"]" * 990)


@pytest.mark.parametrize(
    "number", [b"1e-1000000000000000000000", b"1e1000000000000000000000", b"-1.5e-99999999999999999999"]
)
def test_an_exponent_beyond_all_is_refused_with_its_place(number: bytes) -> None:
    with pytest.raises(InvalidRequest, match="metadata: this number"):
        parse(b'{"metadata":%b}' % number)
