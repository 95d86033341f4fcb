"""Whether an answer is what `output_schema` asks for. It stays as it is; the ending says what is wrong with it.

jsonschema-rs keeps Python's lock for as long as it checks, and an answer of 70 KB takes it half a minute with a schema
that the servers let through (an enumeration of 10,000 lists): longer than a lease, for all streams of a worker. So only
what is checked at once is checked here, in a thread; the rest in a process of its own, which costs 0.1 s, and has an
end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import orjson

MESSAGE_LIMIT = 300

AT_ONCE = 4_000_000
"""Bytes of the schema times bytes of the answer, in which each word may meet each: 25 ms at most. References multiply
them further."""

LIMIT_S = 5.0
MEMORY_BYTES = 2**30

_LARGE = ThreadPoolExecutor(max_workers=2, thread_name_prefix="schema")
"""So many processes at a time; other answers wait."""


async def violation(schema: Any, text: str) -> dict[str, str] | None:
    """{"place": JSON Pointer (RFC 6901), "message"} of what is wrong; None: nothing is."""
    import asyncio  # not for the process of its own

    asked = orjson.dumps(schema)
    if b'ef":' not in asked and len(asked) * len(text) <= AT_ONCE:
        return await asyncio.to_thread(_violation, schema, text)
    return await asyncio.get_running_loop().run_in_executor(_LARGE, _violation_elsewhere, schema, text)


def _violation(schema: Any, text: str) -> dict[str, str] | None:
    import jsonschema_rs  # 20 ms, and most generations have no schema

    try:
        value = orjson.loads(text)
    except ValueError:
        return _wrong("The answer is not JSON.")
    try:
        # Without backtracking, and no reference is fetched from anywhere.
        validator = jsonschema_rs.validator_for(
            schema,
            pattern_options=jsonschema_rs.RegexOptions(),
            retriever=_none,
            validate_formats=False,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
        return _wrong("The schema itself cannot be used, so the answer was not checked.")
    try:
        validator.validate(value)  # up to the first fault: a list of all of them has filled the memory of a machine
    except jsonschema_rs.ValidationError as error:
        place = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in error.instance_path)
        return _wrong(error.message[:MESSAGE_LIMIT], place)
    except ValueError:
        return _wrong("The answer is nested too deeply to be checked.")
    return None


def _violation_elsewhere(schema: Any, text: str) -> dict[str, str] | None:
    command = [sys.executable, "-m", "worker.schema"]
    asked = orjson.dumps([schema, text])
    environment = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "PATH", "LD_"))}
    try:
        done = subprocess.run(command, input=asked, env=environment, capture_output=True, timeout=LIMIT_S, check=True)
        found: dict[str, str] | None = orjson.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return _wrong(f"To check the answer took more than {LIMIT_S:g} s, or too much memory. It was not checked.")
    return found


def _wrong(message: str, place: str = "") -> dict[str, str]:
    return {"place": place, "message": message}


def _none(uri: str) -> Any:
    raise ValueError("references to elsewhere are not followed")


def _main() -> None:
    import resource

    # Whoever has asked may be gone. And to be refused memory is better than the machine's choice of whom to end.
    resource.setrlimit(resource.RLIMIT_CPU, (int(LIMIT_S) + 1,) * 2)
    with suppress(ValueError, OSError):  # macOS has none for memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES,) * 2)
    sys.stdout.buffer.write(orjson.dumps(_violation(*orjson.loads(sys.stdin.buffer.read()))))


if __name__ == "__main__":
    _main()
