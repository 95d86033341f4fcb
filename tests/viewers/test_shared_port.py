"""Two servers share a port; while one of them goes away, the other takes every connection."""

import asyncio
import signal
from collections import Counter

from bench.ports import free_port
from tests.rig.deployment import Deployment, Process, until, wait_until
from tests.viewers.viewer import connect

ASKERS = 8
DRAINS = 3


async def test_a_drain_refuses_and_swallows_no_connection_of_a_port_that_others_serve(deployment: Deployment) -> None:
    port = free_port()
    names = iter(f"shared-{n}" for n in range(DRAINS + 2))
    servers = [_serve(deployment, port, next(names)) for _ in range(2)]
    answers: Counter[str] = Counter()
    try:
        async with asyncio.timeout(60):
            asking = [asyncio.create_task(_ask_for_ever(port, answers)) for _ in range(ASKERS)]
            for n in range(DRAINS):
                await until(lambda n=n: answers.total() > 100 * n, "they are asking")
                await asyncio.to_thread(_drain, servers.pop(0))
                servers.append(await asyncio.to_thread(_serve, deployment, port, next(names)))
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
    finally:
        for server in servers:
            server.kill()
    print(f"{DRAINS} drains: {dict(answers)}")
    assert answers.keys() == {"200"}


def _serve(deployment: Deployment, port: int, name: str) -> Process:
    environment = {**deployment.environment, "LASTEVENT_LOG_LEVEL": "info"}
    server = Process(name, deployment.serve_argv(port), environment, deployment.folder)
    server.start()
    wait_until(lambda: "accepts connections" in server.output.read_text(), f"{name} serves")
    return server


def _drain(server: Process) -> None:
    server.send(signal.SIGTERM)
    server.wait()


async def _ask_for_ever(port: int, answers: Counter[str]) -> None:
    while True:
        answers[await _ask(port)] += 1


async def _ask(port: int) -> str:
    try:
        async with connect(port) as connection:
            connection.send("GET", "/healthz")
            answer = await connection.read_head()
            await connection.read_body(answer)
            return str(answer.status)
    except (OSError, EOFError) as error:
        return type(error).__name__
