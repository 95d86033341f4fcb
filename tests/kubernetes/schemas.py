"""Kubernetes' own schemas, out of the wheel that schemas.txt pins by its hashes.

It is kept in build/, and not unpacked: it has 17,000 files, of which a manifest needs six.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

PINS = Path(__file__).parent / "schemas.txt"
KEPT = Path(__file__).parents[2] / "build" / "kubernetes"
OLDEST, NEWEST = "1.30", "1.37"
"""The releases that docs/ops/kubernetes.yaml is said to be for."""


class Schemas:
    """Strict ones: they know every field."""

    def __init__(self, wheel: Path, release: str) -> None:
        name = f"kubernetes_validate/kubernetes-json-schema/v{release}.0-local-strict/_definitions.json"
        with zipfile.ZipFile(wheel) as files:
            self._definitions = orjson.loads(files.read(name))

    def wrong(self, thing: dict[str, Any]) -> list[str]:
        """What is wrong with an object of a manifest."""
        validator = jsonschema_rs.Draft202012Validator({**self._definitions, "$ref": f"#/$defs/{self._name(thing)}"})
        return [f"{thing['kind']} {error.instance_path}: {error.message}" for error in validator.iter_errors(thing)]

    def _name(self, thing: dict[str, Any]) -> str:
        group, _, version = thing["apiVersion"].rpartition("/")
        itself = {"group": group, "kind": thing["kind"], "version": version}
        [name] = [
            name
            for name, definition in self._definitions["$defs"].items()
            if definition.get("x-kubernetes-group-version-kind") == [itself]
        ]
        return name


def wheel() -> Path:
    kept = KEPT / sha256(PINS.read_bytes()).hexdigest()[:12]
    if not list(kept.glob("*.whl")):
        options = ["--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(kept), "-r", str(PINS)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    [there] = kept.glob("*.whl")
    return there
