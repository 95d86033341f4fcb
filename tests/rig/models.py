"""A worker's models for tests of one generation: providers that the test has made."""

from __future__ import annotations

from worker.providers.chain import Target
from worker.providers.provider import Provider


class Models:
    """`providers`: Anthropic's, whatever their names; of a chain in its order, or one for whatever is asked."""

    def __init__(self, *providers: Provider) -> None:
        self._providers = providers

    async def chain(self, model: str | list[str]) -> list[Target]:
        names = [model] if isinstance(model, str) else model
        clients = self._providers if len(self._providers) > 1 else self._providers * len(names)
        return [
            Target(name, client, name.partition("/")[2], answers_as=client.name, form="anthropic")
            for name, client in zip(names, clients, strict=True)
        ]
