"""The receiver of docs/CLIENTS.md, as it stands, told of endings as the courier tells them."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks import Webhook
from starlette.testclient import TestClient

DOCUMENT = (Path(__file__).parents[2] / "docs" / "CLIENTS.md").read_text()
SECTION = DOCUMENT.partition("\n## Being told when it is over\n")[2].partition("\n## ")[0]


def test_it_takes_what_is_signed_once_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    monkeypatch.setenv("LASTEVENT_WEBHOOK_SECRETS", secret)
    receiver: dict[str, object] = {"__name__": "receiver"}
    exec(SECTION.partition("```python\n")[2].partition("```")[0], receiver)
    body = json.dumps({"type": "stream.done", "data": {"id": "a1", "usage": {"output_tokens": 5}}})
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "a1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("a1", now, body),
    }
    with TestClient(receiver["app"]) as sender:  # type: ignore[arg-type]
        assert [sender.post("/hooks", content=body, headers=headers).status_code for _ in range(2)] == [204, 204]
        assert sender.post("/hooks", content=body + " ", headers=headers).status_code == 401
    assert capsys.readouterr().out == "stream.done {'output_tokens': 5}\n"
