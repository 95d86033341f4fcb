"""The cursor of several streams (broker/dialects/vector.py)."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.cursor import MAX_CURSOR
from broker.dialects.vector import AT_END, MAX_BYTES, MAX_NAMED, Vector, from_json, newest, parse, to_json
from broker.errors import BadCursor
from broker.log.meta import new_sid

positions = st.integers(0, MAX_CURSOR)
sids = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=20)
sids = sids.filter(lambda sid: sid != "0")
named = st.dictionaries(sids, positions | st.none(), max_size=MAX_NAMED - 1)
vectors = st.builds(Vector, positions, named, st.booleans())


@given(vectors)
def test_a_cursor_is_read_as_it_was_written(vector: Vector) -> None:
    assert parse(vector.encode()) == vector
    assert list(parse(vector.encode()).named) == list(vector.named)


@given(vectors, sids, positions)
def test_before_an_id_stand_all_other_streams_and_it_is_the_last(vector: Vector, sid: str, n: int) -> None:
    text = f"{vector.prefix(sid)}{n}"
    others = {name: at for name, at in vector.named.items() if name != sid}
    if len(others) < MAX_NAMED - vector.is_cut:
        assert parse(text) == Vector(vector.at, {**others, sid: n}, vector.is_cut)
        assert list(parse(text).named)[-1] == sid


@given(st.text("s1.0-x9a_", max_size=40))
def test_what_is_no_cursor_is_refused_and_any_other_is_written_so(text: str) -> None:
    try:
        vector = parse(text)
    except BadCursor:
        return
    assert vector.encode() == text


def test_forty_streams_of_ours_with_the_greatest_ids_are_within_the_bound() -> None:
    vector = Vector(MAX_CURSOR, {new_sid(): 10**15 - 1 for _ in range(MAX_NAMED)})
    assert len(vector.encode()) <= MAX_BYTES
    assert parse(vector.encode()) == vector
    with pytest.raises(BadCursor):
        parse(Vector(1, {f"a{n}": 1 for n in range(MAX_NAMED + 1)}).encode())


@given(vectors, st.lists(sids, min_size=1, max_size=5))
def test_of_several_cursors_the_furthest_counts(vector: Vector, grown: list[str]) -> None:
    further = vector._replace(named={**vector.named, **dict.fromkeys(list(vector.named)[:3], AT_END)})
    later = Vector(min(vector.at + 1, MAX_CURSOR), {})
    for texts in ([vector, further], [further, vector]):
        assert newest(one.encode() for one in texts) in (further, vector)
        assert newest(["", *(one.encode() for one in texts)]) == newest([further.encode()]) or further == vector
    if later.at > vector.at:
        assert newest([later.encode(), further.encode()]) == later
    assert newest(["", ""]) is None


def test_a_sockets_cursors_are_an_object() -> None:
    assert from_json({"at": 7, "streams": {"a": 3, "b": "x"}}) == Vector(7, {"a": 3, "b": AT_END})
    for is_cut in (False, True):
        vector = Vector(7, {"a": 3, "b": AT_END}, is_cut)
        assert from_json(to_json(vector)) == vector
    wrong = [
        *(None, [], {}, {"at": 1}, {"at": "1", "streams": {}}, {"at": True, "streams": {}}, {"at": -1, "streams": {}}),
        *({"at": 1, "streams": []}, {"at": 1, "streams": {"a": None}}, {"at": 1, "streams": {"a": 1.5}}),
        *({"at": 1, "streams": {"": 1}}, {"at": 1, "streams": {"a-b": 1}}, {"at": 1, "streams": {}, "x": 1}),
        {"at": 1, "streams": {f"a{n}": 1 for n in range(201)}},
    ]
    for value in wrong:
        with pytest.raises(BadCursor):
            from_json(value)
