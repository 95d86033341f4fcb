"""Whether an answer is what `output_schema` asks for. It stays as it is; the ending says what is wrong with it."""

from __future__ import annotations

from typing import Any

import orjson

MESSAGE_LIMIT = 300


def violation(schema: Any, text: str) -> dict[str, str] | None:
    """{"place": JSON Pointer (RFC 6901), "message"} of the first thing that is wrong; None: nothing is.

    Takes long for long texts: to be called in a thread.
    """
    import jsonschema_rs  # 20 ms, and most generations have no schema

    try:
        value = orjson.loads(text)
    except ValueError:
        return {"place": "", "message": "The answer is not JSON."}
    try:
        # Without backtracking, and no reference is fetched from anywhere.
        validator = jsonschema_rs.validator_for(
            schema,
            pattern_options=jsonschema_rs.RegexOptions(),
            retriever=_none,
            validate_formats=False,
        )
        error = next(validator.iter_errors(value), None)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
        return {"place": "", "message": "The schema itself cannot be used, so the answer was not checked."}
    if error is None:
        return None
    place = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in error.instance_path)
    return {"place": place, "message": error.message[:MESSAGE_LIMIT]}


def _none(uri: str) -> Any:
    raise ValueError("references to elsewhere are not followed")
