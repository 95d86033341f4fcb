"""What a server asks the archive for, in the words of whoever asks."""

from __future__ import annotations

import pytest

from broker.errors import BadCursor
from broker.log.index import Filter, Place
from broker.log.meta import new_sid
from tests.archive.archive import TestArchive


@pytest.mark.parametrize("which", [Filter(session="\0"), Filter(user="a\0"), Filter(model="\0b")])
async def test_a_name_that_nothing_can_have_finds_nothing(archive: TestArchive, which: Filter) -> None:
    await archive.add(new_sid())
    assert await archive.reader.list_streams("t", which, 5, None) == ({}, None)


def test_a_cursor_names_what_can_be_there() -> None:
    assert Place.decode(Place(5, "a\nb").encode()) == (5, "a\nb")
    with pytest.raises(BadCursor):
        Place.decode(Place(5, "a\0b").encode())


async def test_an_id_of_any_shape_that_is_no_stream_is_not_found(archive: TestArchive) -> None:
    for sid in ("\0", "a\0b", "x" * 100_000, "'; --", "🚇"):
        assert await archive.reader.find(sid) is None
