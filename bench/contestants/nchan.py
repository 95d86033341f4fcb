"""nchan: nginx's pub/sub module, in C. Debian: `apt install nginx libnginx-mod-nchan`.

Twice: with messages in nginx's own memory (nothing survives the process, one machine), and with its Redis storage in
distributed mode, which is the one comparable in function: a log outside of the process, any number of servers.
Published over kept HTTP connections, requests pipelined.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.contestants.side import REDIS, SERVER, Contestant, Shape, Side, open_streams
from bench.load import stamp
from bench.ports import free_port
from bench.processes import start, start_redis, temporary_folder, wait_for_port

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
CONNECTIONS = 256
"""nginx begins a pipelined request when the one before it is answered: with few connections, round trips to Redis
would be what is measured."""

CONFIGURATION = """\
load_module {module};
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  client_body_temp_path {folder};
  keepalive_requests 1000000000;
  tcp_nodelay on;
  nchan_shared_memory_size 1G;
  nchan_message_buffer_length 10000;
  nchan_message_timeout 1h;
  {upstream}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location = /pub {{ nchan_publisher http; nchan_channel_id $arg_id; {storage} }}
    location = /sub {{
      nchan_subscriber eventsource; nchan_channel_id $arg_id; nchan_subscriber_first_message oldest;
      nchan_eventsource_event text_delta; {storage}
    }}
  }}
}}
"""


def lack() -> str | None:
    if shutil.which("nginx") and MODULE.exists():
        return None
    return "apt install nginx libnginx-mod-nchan"


class PostSink:
    """One POST an event, pipelined; the answers are counted."""

    def __init__(self, port: str) -> None:
        self._port = int(port)
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.untaken = 0
        self._all_taken = asyncio.Event()
        self._counting: list[asyncio.Task[None]] = []

    async def open(self, streams: int) -> list[str]:
        self._connections = [await asyncio.open_connection("127.0.0.1", self._port) for _ in range(CONNECTIONS)]
        self._counting = [asyncio.create_task(self._count(answers)) for answers, _ in self._connections]
        return [f"/sub?id={stream}" for stream in range(streams)]

    def write(self, stream: int, n: int) -> None:
        body = stamp.event_json(n)
        # A stream's events on one connection: they must not overtake each other.
        self._connections[stream % CONNECTIONS][1].write(
            b"POST /pub?id=%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (stream, len(body), body)
        )
        self.untaken += 1

    def send(self) -> None:
        """The transports have it."""

    async def flush(self) -> None:
        while self.untaken:
            self._all_taken.clear()
            await self._all_taken.wait()

    async def _count(self, answers: asyncio.StreamReader) -> None:
        cut_off = b""
        while some := await answers.read(2**18):
            answered = cut_off + some
            if b"HTTP/1.1 4" in answered or b"HTTP/1.1 5" in answered:
                raise SystemExit(f"nchan refused an event: {answered[:200]!r}")
            self.untaken -= answered.count(b"HTTP/1.1 20")  # 201, or 202 where nobody watches
            if not self.untaken:
                self._all_taken.set()
            cut_off = answered[-10:]


def sink(port: str) -> PostSink:
    return PostSink(port)


def start_nchan(stack: ExitStack, shape: Shape, *, with_redis: bool) -> Side:
    folder, port = temporary_folder(stack), free_port()
    parts: dict[str, int] = {}
    upstream = storage = ""
    if with_redis:
        parts[REDIS], redis_port = start_redis(stack)
        upstream = f"upstream log {{ nchan_redis_server redis://127.0.0.1:{redis_port}; }}"
        storage = "nchan_redis_pass log; nchan_redis_storage_mode distributed;"
    configuration = folder / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(module=MODULE, folder=folder, port=port, upstream=upstream, storage=storage)
    )
    parts[SERVER] = start(stack, ["nginx", "-c", configuration, "-e", folder / "error.log"])
    wait_for_port(port, parts[SERVER])
    agents, paths = open_streams(stack, "nchan", str(port), shape.streams)
    return Side(port, paths, parts, agents)


NCHAN = Contestant("nchan, in memory", partial(start_nchan, with_redis=False), lack)
NCHAN_REDIS = Contestant("nchan, Redis", partial(start_nchan, with_redis=True), lack)
