"""nchan: nginx's pub/sub module, in C. Debian: `apt install nginx libnginx-mod-nchan`.

Twice: with messages in nginx's own memory (nothing survives the process, one machine), and with its Redis storage in
distributed mode, which is the one comparable in function: a log outside of the process, any number of servers.
Published over kept HTTP connections, requests pipelined.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.contestants.side import REDIS, SERVER, Contestant, Shape, Side, open_streams
from bench.load.posting import PostSink, post
from bench.ports import free_port
from bench.processes import start, start_redis, temporary_folder, wait_for_port

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
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


class NchanSink(PostSink):
    paths = "/sub?id={}"

    def request(self, stream: int, body: bytes) -> bytes:
        return post(b"/pub?id=%d" % stream, body)


def sink(port: str) -> NchanSink:
    return NchanSink(port)


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
