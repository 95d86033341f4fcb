"""Mercure, in Go: a hub of updates by topic, with a history in a file (Bolt).

It resumes with `Last-Event-ID` from that file: one process, one machine. Who publishes is not fenced, nothing ends a
topic. Each event is a POST with the publisher's token.
"""

from __future__ import annotations

from contextlib import ExitStack
from urllib.parse import quote_from_bytes

from joserfc import jwt
from joserfc.jwk import OctKey

from bench.contestants.side import SERVER, Contestant, Shape, Side, lack_of, open_streams
from bench.load.posting import PostSink, post
from bench.ports import free_port
from bench.processes import start, temporary_folder, wait_for_port

PROGRAM = "mercure"
SECRET = "of this benchmark alone, on loopback"

CONFIGURATION = """\
{{
  admin off
  auto_https off
  log {{
    level ERROR
  }}
  servers {{
    protocols h1
  }}
}}
http://:{port} {{
  bind 127.0.0.1
  mercure {{
    transport bolt {{
      path {folder}/updates.db
      size 100000
    }}
    publisher_jwt "{secret}"
    anonymous
    heartbeat 40s
    write_timeout 0s
  }}
}}
"""


class MercureSink(PostSink):
    paths = "/.well-known/mercure?topic={}"

    def __init__(self, port: str) -> None:
        super().__init__(port)
        token = jwt.encode({"alg": "HS256"}, {"mercure": {"publish": ["*"]}}, OctKey.import_key(SECRET))
        self._headers = (f"Authorization: Bearer {token}".encode(), b"Content-Type: application/x-www-form-urlencoded")

    def request(self, stream: int, body: bytes) -> bytes:
        form = b"topic=%d&data=%b" % (stream, quote_from_bytes(body).encode())
        return post(b"/.well-known/mercure", form, *self._headers)


def sink(port: str) -> MercureSink:
    return MercureSink(port)


def start_mercure(stack: ExitStack, shape: Shape) -> Side:
    folder, port = temporary_folder(stack), free_port()
    configuration = folder / "Caddyfile"
    configuration.write_text(CONFIGURATION.format(port=port, folder=folder, secret=SECRET))
    pid = start(
        stack, [PROGRAM, "run", "--config", configuration, "--adapter", "caddyfile"], cwd=folder, GOMAXPROCS="1"
    )
    wait_for_port(port, pid)
    agents, paths = open_streams(stack, "mercure", str(port), shape.streams)
    return Side(port, paths, {SERVER: pid}, agents)


MERCURE = Contestant("Mercure", start_mercure, lack_of(PROGRAM, "a release of github.com/dunglas/mercure"))
