"""What you import: agents and tools in your own Python, run by Lastevent's workers.

    from lastevent import Agent, Context, tool

    @tool(idempotent=True)
    async def find_order(order_id: str) -> dict:
        "Find an order by its number."
        return await db.order(order_id)

    support = Agent("support", model="anthropic/claude-sonnet-5-5", instructions="You help.", tools=[find_order])

    lastevent up --app myapp.agents

Nothing here needs Lastevent's broker or worker: only the standard library and, once agents are run, pydantic 2.
`import lastevent` loads neither pydantic nor anything heavy; Python 3.10 is enough.

agents.py    @agent for code of your own, Agent for the built-in loop
tools.py     @tool: a function that a run journals, so that it does not run twice
functions.py Tool: such a function's signature, schema and options
context.py   Context: what a run is told, and what it can say, ask and start
calls.py     a tool's call, from its opening in the journal to its result
events.py    what may be yielded besides text
schema.py    JSON Schemas from signatures, and values validated by them
errors.py    everything that can go wrong
host/        the process that runs an app: python -m lastevent.host
"""

from __future__ import annotations

from lastevent.agents import Agent, Limits, Prompt, agent, tags
from lastevent.context import Context, Input, current
from lastevent.errors import AgentBlocked, CallFailed, ToolError
from lastevent.events import Citation, Event, Status, Thinking
from lastevent.functions import NOT_DONE
from lastevent.tools import tool

__all__ = [
    "NOT_DONE",
    "Agent",
    "AgentBlocked",
    "CallFailed",
    "Citation",
    "Context",
    "Event",
    "Input",
    "Limits",
    "Prompt",
    "Status",
    "Thinking",
    "ToolError",
    "agent",
    "current",
    "tags",
    "tool",
]
