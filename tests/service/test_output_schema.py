"""A schema for the answer: what is one, what is said of one that is none, and that none holds a server up."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from broker.errors import InvalidRequest
from broker.service.output_schema import MAX_BYTES, require_schema

MARK = "mArKeR7f3a"
EMAIL, UUID = r"^[\w.+-]+@[\w-]+\.\w{2,9}$", r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
TREE = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}

TAKEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an object": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    "a tree": TREE,
    "pydantic's": {"$defs": {"A": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/A"}]}}, "$ref": "#/$defs/A"},
    "an anchor": {"$defs": {"x": {"$anchor": "here"}}, "$ref": "#here"},
    "an escaped pointer": {"$defs": {"a/b~c %": {}}, "$ref": "#/$defs/a~1b~0c%20%25"},
    "a name of its own": {"$id": "https://example.com/x", "$schema": "https://json-schema.org/draft/2020-12/schema"},
    "an older draft": {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": {}}},
    "usual patterns": {"properties": {f"p{n}": {"pattern": (EMAIL, UUID)[n % 2]} for n in range(20)}},
    "a look ahead": {"pattern": r"^(?=.*\d).{8,64}$"},
    "a thousand properties": {"properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
    "sixty kinds of one another": {
        "$defs": {f"k{n}": {"properties": {f"p{m}": {"$ref": f"#/$defs/k{m}"} for m in range(8)}} for n in range(60)}
    },
    "closed": {"properties": {"a": {}}, "unevaluatedProperties": False},
    "a property called $ref": {"properties": {"$ref": {"type": "string"}, "$id": {}, "pattern": {}}},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a type that is none": ({"type": MARK}, "at type"),
    "deep inside": ({"properties": {MARK: {"anyOf": [{}, {"minimum": MARK}]}}}, "at properties.*.anyOf.1.minimum"),
    "a pattern that is none": ({"pattern": f"({MARK}"}, "at pattern (format)"),
    "of the web": ({"$ref": f"http://127.0.0.1:1/{MARK}"}, "the schema itself"),
    "of a file": ({"$ref": f"file:///etc/{MARK}"}, "the schema itself"),
    "of a neighbour": ({"properties": {"a": {"$ref": f"{MARK}.json"}}}, "the schema itself"),
    "of the web by its own name": ({"$id": f"http://127.0.0.1:1/{MARK}", "$dynamicRef": "x#y"}, "the schema itself"),
    "a reference to nothing": ({"$ref": f"#/$defs/{MARK}"}, "names nothing"),
    "an anchor that is not there": ({"$ref": f"#{MARK}"}, "names nothing"),
    "a draft that is none": ({"$schema": f"http://127.0.0.1:1/{MARK}"}, "names nothing"),
    "a schema within": ({"properties": {"a": {"$id": MARK}}}, "`$id`"),
}

HOSTILE: dict[str, dict[str, Any]] = {
    "32 MiB": {"description": "x" * 2**25},
    "a photo": {"examples": ["x" * MAX_BYTES]},
    "repeated repetitions": {"allOf": [{"pattern": f"(a{{250}}){{250}}{n}"} for n in range(2000)]},
    "repeated again": {"pattern": r"((\w{90})+){90}"},
    "in names": {"patternProperties": {f"(\\w{{90}}){{90}}{n}": True for n in range(1000)}},
    "classes": {"allOf": [{"pattern": rf"\p{{L}}{{9}}{n}"} for n in range(1000)]},
    "one class": {"pattern": "[" + r"\w\W\d" * 9000 + "]"},
    "looks": {"allOf": [{"pattern": rf"(?=a)\w{n}"} for n in range(1000)]},
    "a count without end": {"pattern": "a{99999999999999999999}"},
    "names that name one another": {
        "allOf": [{"$id": f"http://a/{n}", "$ref": f"http://a/{(n + 1) % 400}"} for n in range(400)]
    },
    "what is not evaluated, of references": {
        "$defs": {
            **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2, "unevaluatedItems": False} for n in range(20)},
            "d20": {},
        }
    },
    "two references each, forty levels": {
        "$defs": {**{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}, "d40": {}}
    },
    "a thousand references": {"allOf": [{"$ref": "#"}] * 1000},
}


def refusal(schema: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as refused:
        require_schema(schema)
    said = str(refused.value)
    assert said.startswith("output_schema: ")
    assert MARK.lower() not in said.lower()
    return said


@pytest.mark.parametrize("schema", TAKEN.values(), ids=TAKEN)
def test_what_is_a_schema_is_taken(schema: dict[str, Any]) -> None:
    require_schema(schema)


@pytest.mark.parametrize(("schema", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_none_is_refused_with_its_place_and_without_what_stands_there(schema: dict[str, Any], why: str) -> None:
    assert why in refusal(schema)


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_what_would_take_the_compiler_long_never_reaches_it(
    schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)  # to import it would be an error
    refusal(schema)
