"""What JSON that was cut says so far."""

from __future__ import annotations

import json
import re
from typing import Any

_PARTS = re.compile(r'"(?:[^"\\]+|\\u.{4}|\\[^u])*("?)|[:,{}\[\]]', re.DOTALL)
"""A text, with its end or as far as it has whole characters; and what stands between values."""


def partial(text: str) -> Any:
    """The value: open texts, lists and objects are closed; half keys, numbers and words are left out.

    None: nothing yet, or no JSON.
    """
    closing = ""  # the lists and objects that are open, the innermost first
    is_key = False
    end, tail = 0, ""  # the longest beginning that can be closed, and what closes it
    for part in _PARTS.finditer(text):
        sign = text[part.start()]
        if sign == '"':
            if not is_key:
                end, tail = part.end(), closing if part[1] else '"' + closing
        elif sign == ":":
            is_key = False
        elif sign == ",":
            is_key = closing[:1] == "}"
            end, tail = part.start(), closing
        else:
            is_key = sign == "{"
            closing = "}" + closing if is_key else "]" + closing if sign == "[" else closing[1:]
            end, tail = part.end(), closing
    try:
        return json.loads(text[:end] + tail)
    except (ValueError, RecursionError):
        return None
