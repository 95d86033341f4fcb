"""The voice of docs/CLIENTS.md, as it stands there: a real espeak-ng speaks the sentences of a stream as they come."""

from __future__ import annotations

import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.clients.recipes import recipe
from tests.rig.deployment import HTTP, Deployment, wait_until

pytestmark = pytest.mark.processes

SAID = 70
PROMPT = f"Speak [[tokens=90 rate=200 ttft_ms=0 cut_at=30 cut_times=1 stall_at={SAID}]]"
"""The first attempt breaks off, and the second one falls silent amid the answer."""

WORDS_A_SECOND = 6
"""Nobody speaks faster."""


def seconds(sound: Path) -> float:
    """Of speech in the file, as its head says now: a player could read it."""
    with suppress(FileNotFoundError, EOFError), wave.open(str(sound)) as one:  # not there yet, or without its head
        return one.getnframes() / one.getframerate()
    return 0.0


@contextmanager
def killed_at_last(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_sentences_are_spoken_while_the_answer_is_written(
    deployment: Deployment, require: Callable[[str, str], str], tmp_path: Path
) -> None:
    require("espeak-ng", "espeak-ng")
    (tmp_path / "voice.py").write_text(recipe("Voice").replace("http://localhost:8000", deployment.url))
    sound, printed = tmp_path / "answer.wav", tmp_path / "printed.txt"

    def log() -> list[dict[str, Any]]:
        [stream] = HTTP.get(f"{deployment.url}/v1/streams", params={"limit": 1}).json()["streams"]
        return deployment.log_of(stream["id"])

    def has_fallen_silent() -> bool:
        kinds = [line.get("event") for line in log()]
        return "restart" in kinds and kinds[kinds.index("restart") :].count("text_delta") == SAID

    command = [sys.executable, "voice.py", PROMPT, sound.name]
    with printed.open("w") as output, killed_at_last(subprocess.Popen(command, cwd=tmp_path, stdout=output)) as voice:
        wait_until(lambda: seconds(sound), "something is spoken")
        first = seconds(sound)
        wait_until(has_fallen_silent, "so much is said")
        told = [line["data"]["text"] for line in log() if line.get("event") == "sentence"]
        wait_until(lambda: printed.read_text().splitlines() == told, "all is spoken that was told, each once")
        [stream] = HTTP.get(f"{deployment.url}/v1/streams", params={"limit": 1}).json()["streams"]
        assert stream["state"] == "running", "and the answer has not ended"
        HTTP.post(f"{deployment.url}/v1/streams/{stream['id']}/cancel").raise_for_status()
        assert voice.wait(30) == 0, "the voice ends with the stream"
    assert seconds(sound) > first, "the file has grown with each sentence"
    assert seconds(sound) > len(" ".join(told).split()) / WORDS_A_SECOND, "and has all of them"
