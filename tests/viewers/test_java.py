"""Java's own HttpClient, unmodified: it offers another protocol with its requests, and expects them to be read."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.rig.deployment import Deployment

SOURCE = Path(__file__).parent / "java" / "Stock.java"


def test_javas_client_starts_follows_cancels_and_resumes(
    deployment: Deployment, require: Callable[[str, str], str]
) -> None:
    require("javac", "default-jdk-headless")
    java = require("java", "default-jdk-headless")
    ran = subprocess.run([java, SOURCE, deployment.url], capture_output=True, text=True, timeout=120, check=False)
    started, cancelled, ids, reasons, resumed = ran.stdout.split()
    assert (started, cancelled) == ("201", "200"), ran.stderr
    assert (ids, reasons, resumed) == ("2", "1", "1")
