"""What a thousand viewers cost Redis: what one does."""

import asyncio
import resource
from collections.abc import Callable

from redis.asyncio import Redis

from broker.store.connect import POOL_CONNECTIONS
from tests.rig.deployment import POLL_S, Deployment, until
from tests.viewers.producer import Producer
from tests.viewers.viewer import Viewer

STREAMS = 50
VIEWERS_A_STREAM = 20
EVENTS_A_STREAM = 60
BATCH = 10
WATCHER = "watcher"


async def test_a_thousand_viewers_of_fifty_streams_use_no_more_redis_connections_than_one(
    own_deployment: Callable[..., Deployment],
) -> None:
    _allow_open_files(4096)
    deployment = own_deployment()  # other tests have servers of their own on the shared one's Redis
    workers = 2 * len(deployment.workers)  # they listen for seizures, and for work
    await _until_subscribed(deployment, workers)
    with_one = await _most_connections(deployment, streams=1, viewers_a_stream=1)
    with_all = await _most_connections(deployment, streams=STREAMS, viewers_a_stream=VIEWERS_A_STREAM)
    print(f"Redis connections at most, with 1 viewer: {with_one}; with {STREAMS * VIEWERS_A_STREAM}: {with_all}")

    servers = len(deployment.ports)
    # The constant: a pool opens up to its limit when reads meet, as they do when a thousand viewers come at once.
    assert with_all["all"] <= with_one["all"] + servers * POOL_CONNECTIONS
    subscribed = 2 * servers + workers
    assert with_all["pubsub"] == subscribed, "each server subscribes on one connection to streams, and to credentials"


async def _most_connections(deployment: Deployment, *, streams: int, viewers_a_stream: int) -> dict[str, int]:
    """Run external streams from their first viewer to their end; how many connections Redis had at most.

    A viewer that a server cuts, since it has waited for Redis in vain on a busy machine, comes back.
    """
    most = {"all": 0, "pubsub": 0}
    async with (
        Redis.from_url(deployment.redis_url, client_name=WATCHER, decode_responses=True) as redis,
        asyncio.TaskGroup() as watching,
    ):
        watch = watching.create_task(_watch(redis, most))
        producers = [await Producer.create(deployment.ports[n % 2]) for n in range(streams)]
        viewers = [Viewer(producer.sid) for producer in producers for _ in range(viewers_a_stream)]
        async with asyncio.TaskGroup() as group:
            for n, viewer in enumerate(viewers):
                group.create_task(viewer.view_to_the_end(deployment.ports[n % 2]))
            await until(lambda: all(viewer.has_something for viewer in viewers), "all are connected")
            for producer in producers:
                group.create_task(_write_to_the_end(producer))
        watch.cancel()
    for viewer in viewers:
        assert viewer.ids == list(range(1, EVENTS_A_STREAM + 1)), viewer.answers
        assert all(answer.body.endswith(b": redis_unavailable\n") for answer in viewer.answers[:-1])
    return most


async def _write_to_the_end(producer: Producer) -> None:
    for first in range(2, EVENTS_A_STREAM, BATCH):
        await producer.write(*(f"{n} " for n in range(first, min(first + BATCH, EVENTS_A_STREAM))))
    await producer.finish()


async def _until_subscribed(deployment: Deployment, workers: int) -> None:
    """The servers are ready before the workers are, whose connections would be missing in what one viewer costs."""
    async with Redis.from_url(deployment.redis_url, client_name=WATCHER, decode_responses=True) as redis:

        async def all_are() -> bool:
            return (await _connections(redis))["pubsub"] >= workers

        await until(all_are, "the workers are there")


async def _watch(redis: Redis, most: dict[str, int]) -> None:
    while True:
        for kind, number in (await _connections(redis)).items():
            most[kind] = max(most[kind], number)
        await asyncio.sleep(POLL_S)


async def _connections(redis: Redis) -> dict[str, int]:
    clients = [client for client in await redis.client_list() if client["name"] != WATCHER]
    return {"all": len(clients), "pubsub": sum(int(client["sub"]) > 0 for client in clients)}


def _allow_open_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (min(number, hard) if hard != resource.RLIM_INFINITY else number, hard)
        )
