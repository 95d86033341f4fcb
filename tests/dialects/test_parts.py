"""Parts of other ecosystems' requests, as the native request has them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from broker.dialects import parts
from broker.errors import InvalidRequest


def test_an_image_is_a_url_or_data_in_base64() -> None:
    assert parts.image_block("https://example.com/a.png", "x") == {
        "type": "image",
        "source": {"type": "url", "url": "https://example.com/a.png"},
    }
    of_data = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    assert parts.image_block("data:image/png;base64,QUJD", "x") == of_data
    assert parts.image_block("data:image/PNG;charset=utf-8;base64,QUJD", "x") == of_data


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "data:image/png,raw",
        "data:audio/wav;base64,QUJD",
        "data:application/pdf;base64,QQ==",
        "",
        7,
    ],
)
def test_what_is_no_image_is_refused_at_its_place_and_not_repeated(url: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parts.image_block(url, "messages[3].content[0].image_url.url")
    assert str(refused.value).startswith("messages[3].content[0].image_url.url: ")
    assert not url or str(url) not in str(refused.value)


def test_text_stands_alone_or_in_parts() -> None:
    assert parts.joined_texts("a", "x") == "a"
    assert parts.joined_texts([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "x") == "ab"
    with pytest.raises(InvalidRequest, match=r"^x\[1\]: "):
        parts.joined_texts([{"type": "text", "text": "a"}, {"type": "image_url"}], "x")


def test_system_and_developer_are_one_text() -> None:
    assert parts.joined_system(["a", "", "b"]) == "a\n\nb"
    assert parts.joined_system([]) is None


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ('{"a":1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ('{"a":', '{"a":'),
        ("[1]", [1]),
        ("[" * 41 + "]" * 41, "[" * 41 + "]" * 41),
        ("[" + "1," * 60_000 + "1]", "[" + "1," * 60_000 + "1]"),
    ],
)
def test_arguments_that_are_no_json_stay_a_text(arguments: Any, given: Any) -> None:
    block = parts.tool_use("c", "f", arguments, "x")
    assert block == {"type": "tool_use", "id": "c", "name": "f", "input": given}
    orjson.dumps(block)


def test_what_one_says_after_the_other_is_one_message() -> None:
    messages: list[dict[str, Any]] = []
    parts.say(messages, "user", [parts.tool_result("c1", "1", "x")])
    parts.say(messages, "user", [parts.tool_result("c2", "2", "x", is_error=True), parts.text_block("and", "x")])
    parts.say(messages, "assistant", [])
    assert [(one["role"], len(one["content"])) for one in messages] == [("user", 3)]
