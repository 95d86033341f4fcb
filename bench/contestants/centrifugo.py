"""Centrifugo, in Go: channels with a history, by its memory engine and by its Redis engine.

With the Redis engine it is comparable in function: a log outside of the process, any number of servers. History and
recovery are on, as they must be for a client that comes back. Its guarantees are fewer: nobody owns a channel, so two
publishers are not fenced, and who was cut for longer than the history reaches is only told that something is missing.
Viewers come by its unidirectional SSE, with a token that names their channel; events by its HTTP API, one a request.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from urllib.parse import quote

from joserfc import jwt
from joserfc.jwk import OctKey

from bench.contestants.side import REDIS, SERVER, Contestant, Shape, Side, lack_of, open_streams
from bench.load.posting import PostSink, post
from bench.ports import free_port
from bench.processes import start, start_redis, temporary_folder, wait_for_port

PROGRAM = "centrifugo"
SECRET = "of this benchmark alone, on loopback"


class CentrifugoSink(PostSink):
    refused = (*PostSink.refused, b'{"error"')

    def request(self, stream: int, body: bytes) -> bytes:
        return post(b"/api/publish", b'{"channel":"%d","data":%b}' % (stream, body), b"Content-Type: application/json")

    def path(self, stream: int) -> str:
        token = jwt.encode({"alg": "HS256"}, {"sub": "viewer", "channels": [str(stream)]}, OctKey.import_key(SECRET))
        return f"/connection/uni_sse?cf_connect={quote(json.dumps({'token': token}))}"


def sink(port: str) -> CentrifugoSink:
    return CentrifugoSink(port)


def start_centrifugo(stack: ExitStack, shape: Shape, *, with_redis: bool) -> Side:
    folder, port = temporary_folder(stack), free_port()
    parts: dict[str, int] = {}
    engine: dict[str, object] = {"type": "memory"}
    if with_redis:
        parts[REDIS], redis_port = start_redis(stack)
        engine = {"type": "redis", "redis": {"address": [f"redis://127.0.0.1:{redis_port}"]}}
    configuration = folder / "config.json"
    configuration.write_text(
        json.dumps(
            {
                "http_server": {"address": "127.0.0.1", "port": port},
                "log": {"level": "error"},
                "engine": engine,
                "client": {"token": {"hmac_secret_key": SECRET}, "connection_limit": 0},
                "channel": {"without_namespace": {"history_size": 10_000, "history_ttl": "1h", "force_recovery": True}},
                "http_api": {"insecure": True},
                "uni_sse": {"enabled": True},
                "usage_stats": {"disabled": True},
            }
        )
    )
    # By its own default it takes all cores: the one that the others' servers have is what is compared.
    parts[SERVER] = start(stack, [PROGRAM, "-c", configuration], GOMAXPROCS="1")
    wait_for_port(port, parts[SERVER])
    agents, paths = open_streams(stack, "centrifugo", str(port), shape.streams)
    return Side(port, paths, parts, agents)


LACK = lack_of(PROGRAM, "go install github.com/centrifugal/centrifugo/v6")
CENTRIFUGO = Contestant("Centrifugo, in memory", partial(start_centrifugo, with_redis=False), LACK)
CENTRIFUGO_REDIS = Contestant("Centrifugo, Redis", partial(start_centrifugo, with_redis=True), LACK)
