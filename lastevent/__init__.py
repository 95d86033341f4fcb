"""What you import: agents and tools in your own Python, run by Lastevent's workers; and the client of a server.

    from lastevent import Agent, Context, tool

    @tool(idempotent=True)
    async def find_order(order_id: str) -> dict:
        "Find an order by its number."
        return await db.order(order_id)

    support = Agent("support", model="anthropic/claude-sonnet-5-5", instructions="You help.", tools=[find_order])

    lastevent up --app myapp.agents

    with Client("http://127.0.0.1:8000", key) as client:
        print(client.start("Where is my order?", agent="support").wait().text)

Nothing here needs Lastevent's broker or worker: only the standard library and, once agents are run, pydantic 2; for the
client httpx2. `import lastevent` loads neither of them, nor anything heavy; Python 3.10 is enough.

agents.py    @agent for code of your own, Agent for the built-in loop
tools.py     @tool: a function that a run journals, so that it does not run twice
functions.py Tool: such a function's signature, schema and options
context.py   Context: what a run is told, and what it can say, ask and start
calls.py     a tool's call, from its opening in the journal to its result
events.py    what may be yielded besides text
schema.py    JSON Schemas from signatures, and values validated by them
errors.py    everything that can go wrong
client/      the client of a server: Client, AsyncClient and what they give
testing.py   a server in a thread with scripted answers, for the tests of an app
host/        the process that runs an app: python -m lastevent.host
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lastevent.agents import Agent, Limits, Prompt, agent, tags
from lastevent.context import Context, Input, current
from lastevent.errors import AgentBlocked, CallFailed, ToolError
from lastevent.events import Citation, Event, Status, Thinking
from lastevent.functions import NOT_DONE
from lastevent.tools import tool

if TYPE_CHECKING:
    from lastevent.client.answer import Answer
    from lastevent.client.asynchronous import AsyncClient, AsyncStream
    from lastevent.client.errors import StreamError
    from lastevent.client.folding import fold
    from lastevent.client.forward import forward
    from lastevent.client.producer import AsyncProducer, Producer
    from lastevent.client.sync import Client, Stream

__all__ = [
    "NOT_DONE",
    "Agent",
    "AgentBlocked",
    "Answer",
    "AsyncClient",
    "AsyncProducer",
    "AsyncStream",
    "CallFailed",
    "Citation",
    "Client",
    "Context",
    "Event",
    "Input",
    "Limits",
    "Producer",
    "Prompt",
    "Status",
    "Stream",
    "StreamError",
    "Thinking",
    "ToolError",
    "agent",
    "current",
    "fold",
    "forward",
    "tags",
    "tool",
]

_LATER = {
    "Answer": "answer",
    "AsyncClient": "asynchronous",
    "AsyncProducer": "producer",
    "AsyncStream": "asynchronous",
    "Client": "sync",
    "Producer": "producer",
    "Stream": "sync",
    "StreamError": "errors",
    "fold": "folding",
    "forward": "forward",
}
"""The client's names → their files in client/, which are loaded when one is used: agents do without httpx2."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"lastevent.client.{_LATER[name]}"), name)
    globals()[name] = value
    return value
