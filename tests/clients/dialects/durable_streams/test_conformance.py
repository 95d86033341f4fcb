"""The protocol's own suite for servers: all of its core tests. Subscriptions are not served; it leaves those out."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.compose.balancer import Balanced
from tests.compose.compose_file import KEY
from tests.rig.long import LONG

CORE, SUBSCRIPTIONS = 332, 6
LIMIT_S = 400
SHORT_POLL_S = 5


def _results(url: str, packages: Path, file: Path) -> dict[str, Any]:
    environment = {**os.environ, "BASE": f"{url}/v1/ds", "KEY": KEY, "TIMEOUT_S": "" if LONG else str(SHORT_POLL_S)}
    command = ["node", "node_modules/vitest/vitest.mjs", "run", "--reporter=json", f"--outputFile={file}"]
    ran = subprocess.run(
        command, cwd=packages, env=environment, timeout=LIMIT_S, capture_output=True, text=True, check=False
    )
    assert file.exists(), ran.stdout + ran.stderr
    results: dict[str, Any] = json.loads(file.read_text())
    return results


def _failures(results: dict[str, Any]) -> list[str]:
    tests = [test for file in results["testResults"] for test in file["assertionResults"]]
    return [f"{test['fullName']}: {test['failureMessages']}" for test in tests if test["status"] == "failed"]


@pytest.mark.parametrize("servers", ["one server", "two behind nginx"][not LONG :])
def test_every_core_test_passes(servers: str, balanced: Balanced, packages: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{balanced.ports[0]}" if servers == "one server" else balanced.nginx.url
    results = _results(url, packages, tmp_path / "results.json")
    assert not _failures(results)
    assert (results["numPassedTests"], results["numPendingTests"]) == (CORE, SUBSCRIPTIONS)
