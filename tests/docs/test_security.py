"""docs/SECURITY.md and docs/UPGRADING.md: what they name is there."""

import re
from pathlib import Path

import pytest

from broker.settings import PREFIX, SECRET_FILES, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("SECURITY.md", "UPGRADING.md", "API.md", "OPERATIONS.md")
OF_THE_COMMAND = {"URL", "API_KEY"}


def names_in(path: Path) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}([A-Z_0-9]+)\b", path.read_text()))


def test_each_defence_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "SECURITY.md").read_text()
    named = re.findall(r"`(\w+/test_\w+\.py)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_setting_that_a_document_names_exists(document: str) -> None:
    named, of_compose = (names_in(ROOT / path) for path in (f"docs/{document}", "compose.yaml"))
    settings = {name.upper() for name in Settings.model_fields} | {f"{name.upper()}_FILE" for name in SECRET_FILES}
    assert named - settings - of_compose - OF_THE_COMMAND == set()


def test_each_setting_is_documented() -> None:
    text = (ROOT / "docs" / "API.md").read_text()
    assert [name for name in Settings.model_fields if f"`{PREFIX}{name.upper()}`" not in text] == []
