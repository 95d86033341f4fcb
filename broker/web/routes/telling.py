"""What callers do with agents: which there are, what one is told while it runs, what it may do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from broker.log.deeds import APPROVED
from broker.service.bodies import Decide, GiveInput
from broker.service.record import agents_json
from broker.tenants.scopes import INPUT, WRITE
from broker.web.answers import AgentList, Told
from broker.web.grants import CheckedRoute, grant_of, needs
from broker.web.openapi import gives, takes
from broker.web.strict_json import json_response
from broker.web.tier import Tier

router = APIRouter(route_class=CheckedRoute, tags=["Agents"])


@router.get("/v1/agents", **gives("The agents that workers say they have", AgentList))
@needs()
async def agents(request: Request) -> Response:
    """What no worker has said for 7 days is not in it."""
    return json_response(agents_json(await Tier.of(request).streams.agents.known()))


@router.post("/v1/streams/{sid}/input", **takes(GiveInput, 200, "The input's id, which its event names", Told))
@needs(WRITE, token=INPUT)
async def give_input(request: Request, sid: str) -> Response:
    """For a stream that an agent answers, queued or running. It takes the input when it comes to it."""
    tier = Tier.of(request)
    grant = grant_of(request)
    body = await tier.body(request, GiveInput)
    return json_response({"id": await tier.streams.give_input(sid, grant, body)})


@router.post("/v1/streams/{sid}/approvals/{approval_id:path}", **takes(Decide, 200, "The decision's id", Told))
@needs(WRITE)
async def decide(
    request: Request, sid: str, approval_id: Annotated[str, Path(description="As `approval_request` names it")]
) -> Response:
    """The first decision counts. The same one again is answered like the first."""
    tier = Tier.of(request)
    grant = grant_of(request)
    body = await tier.body(request, Decide)
    decision = await tier.streams.decide(sid, approval_id, grant, body)
    tier.deeds.note(tier.deed(request, APPROVED, sid, approval=approval_id, approve=body.approve))
    return json_response({"id": decision})
