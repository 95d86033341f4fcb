"""Agents whose model acts in text (transform.py): it is asked without tools, read by a transform, and answered in text.
What it wrote goes back to it as it wrote it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from worker.agents.history import Call, Json
from worker.agents.transform import CUT_OFF, Transform, stopping, transform_of, transformed
from worker.agents.transform import Call as TextCall
from worker.providers.chain import Target
from worker.providers.provider import Provider, ProviderEvent, Said
from worker.turns import Models


class InText:
    """Of one agent. `transform`: of the try that is under way."""

    def __init__(self, said: Any, tools: Sequence[Mapping[str, Any]]) -> None:
        self._said = said
        self._tools = tools
        self.begin(0)

    def begin(self, number: int) -> None:
        schemas = {tool["name"]: tool["input_schema"] for tool in self._tools}
        found = transform_of(self._said, schemas, number)
        assert found
        self.transform: Transform = found

    def models(self, models: Models) -> Models:
        """The same, with their answers read."""
        return _Models(models, self)

    def instructed(self, instructions: str) -> str:
        of_tools = self.transform.instructions((tool["name"], tool.get("description") or "") for tool in self._tools)
        return "\n\n".join(filter(None, (instructions, of_tools)))

    def request_for(self, request: Json, target: Target, number: int) -> Json:
        """Of a caller who gives the tools, for a try of this turn: they are told of in text."""
        self.begin(number)
        asked = {name: value for name, value in request.items() if name not in ("tools", "tool_choice", "transform")}
        system = request.get("system") or ""
        if instructions := self.instructed(""):
            block = {"type": "text", "text": instructions}
            asked["system"] = f"{system}\n\n{instructions}".strip() if isinstance(system, str) else [*system, block]
        return self.stopping(asked, target)

    def stopping(self, request: Json, target: Target) -> Json:
        return stopping(request, self.transform, target)

    def calls(self) -> list[Call]:
        return [Call(call.id, call.name, call.args, None, call.fault) for call in self.transform.calls]

    def say_again(self, number: int, text: str, stop_reason: str) -> list[ProviderEvent]:
        """What a turn of the log means."""
        self.begin(number)
        return [*self.transform.take(text), *self.transform.end(is_whole=stop_reason not in CUT_OFF)]

    def observed(self, results: Sequence[tuple[Call, str]]) -> list[Json]:
        """The results of a turn's calls, as what the user says next."""
        told = [(TextCall(call.id, call.name, call.args, call.fault), text) for call, text in results]
        return [{"type": "text", "text": self.transform.observation(told)}]


class _Models:
    def __init__(self, models: Models, in_text: InText) -> None:
        self._models = models
        self._in_text = in_text

    async def chain(self, model: str | list[str]) -> list[Target]:
        targets = await self._models.chain(model)
        return [target._replace(client=_Client(target.client, self._in_text)) for target in targets]


class _Client:
    def __init__(self, client: Provider, in_text: InText) -> None:
        self.name = client.name
        self._client = client
        self._in_text = in_text
        self.warm_up, self.check, self.aclose = client.warm_up, client.check, client.aclose

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        return transformed(self._client.stream(model, request), self._in_text.transform)
