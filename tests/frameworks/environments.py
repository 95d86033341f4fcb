"""Virtual environments of the frameworks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.rig.environments import python_with

HERE = Path(__file__).parent


def pythons() -> dict[str, Path]:
    """The interpreter of each environment. They are installed side by side: most of it is waiting."""
    names = sorted(pins.stem for pins in HERE.glob("*.txt"))
    with ThreadPoolExecutor() as side_by_side:
        made = side_by_side.map(lambda name: python_with(HERE / f"{name}.txt", f"frameworks/{name}"), names)
        return dict(zip(names, made, strict=True))
