"""nginx with the usual lines for WebSocket, which pass a client's Upgrade on, and shared connections to the servers."""

import re
from pathlib import Path

import httpx

from tests.compose.balancer import AUTHORIZED, Balanced, Balancer
from tests.rig.deployment import HTTP

WEBSOCKET_LINES = """proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;"""
MAP = """http {
    map $http_upgrade $connection_upgrade {
        default upgrade;
        "" "";
    }
"""


def with_websocket_lines(configuration: str) -> str:
    changed, found = re.subn(r'proxy_set_header Connection "";', WEBSOCKET_LINES, configuration)
    assert found == 1
    return changed.replace("http {\n", MAP, 1)


def test_no_answer_reaches_another_client(balanced: Balanced, tmp_path: Path, certificate: Path) -> None:
    whole = b"GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    begun = b"GET /v1/hidden HTTP/1.1\r\nHost: x\r\nX: "  # whose last header would be the next client's request
    apart = b"\r\n" * 200_000 + begun  # so that it does not come in one read with its head
    nginx = Balancer(tmp_path, certificate, balanced.ports, change=with_websocket_lines)
    nginx.start()
    try:
        for upgrade in ("h2c", "websocket", "anything"):
            headers = {**AUTHORIZED, "Connection": "Upgrade", "Upgrade": upgrade, "Content-Type": "application/json"}
            for hidden in (whole, begun, apart) * 10:
                first = HTTP.post(f"{nginx.url}/v1/streams", content=hidden, headers=headers)
                second = HTTP.get(f"{nginx.url}/healthz")
                assert (first.status_code, first.json()["code"]) == (400, "invalid_json")
                assert (second.status_code, second.json()) == (200, {"status": "ok"})
        with httpx.stream("GET", f"{nginx.url}/healthz", headers=headers, trust_env=False) as upgraded:
            assert upgraded.status_code == 200
    finally:
        nginx.process.stop()
