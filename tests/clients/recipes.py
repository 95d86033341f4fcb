"""The recipes of docs/CLIENTS.md, as files that the drivers of each language take."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "CLIENTS.md"


def recipe(heading: str) -> str:
    """The first block of code under this heading, as it stands."""
    pattern = rf"^###? {re.escape(heading)}\n.*?^```\w+\n(.*?)^```$"
    found = re.search(pattern, DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert found, heading
    assert "\n##" not in found[0][1:], f"{heading} has no code"
    return found[1]
